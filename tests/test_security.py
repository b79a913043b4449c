"""What docs/security.md promises and no other file tests; and that it names tests that exist."""

import ast
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import s2l_ray as s2l
from s2l_ray.comparison.results import TABLE
from s2l_ray.data.row_errors import RowError
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError, ModelError, UserError
from s2l_ray.models import checkpoints, model_files
from s2l_ray.storage.location import Location
from tests import handmade, tiny
from tests.data.chat_templates import CHATML
from tests.data.test_chat_rendering import SAID, chat, outcome

ROOT = Path(__file__).parents[1]
SENTINEL = "s3cret-of-this-machine"


@pytest.fixture
def hostile_run(tmp_path, monkeypatch):
    """A finished run whose rows try to lead out of it by ids and strata."""
    ids = [f"../../{number}" for number in range(handmade.NUM_ROWS)]
    strata = ["/etc/passwd" if number % 2 else "..\\..\\a\nb" for number in range(len(ids))]
    rows = [
        {**row, "id": name, "source": stratum}
        for row, name, stratum in zip(handmade.ROWS, ids, strata, strict=True)
    ]
    for name, values in {"IDS": ids, "STRATA": strata, "ROWS": rows}.items():
        monkeypatch.setattr(handmade, name, values)
    for variable in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(variable, SENTINEL)
    folder = tmp_path / "deep" / "er"
    return s2l.load(handmade.finish(handmade.inputs(folder), until="clusters").uri)


def test_no_name_in_a_row_leads_out_of_the_folder_that_is_written(hostile_run, tmp_path):
    before = set(tmp_path.rglob("*"))
    hostile_run.select(6).write(tmp_path / "subset.jsonl")
    hostile_run.export("trl", tmp_path / "exported")

    written = {path.relative_to(tmp_path) for path in set(tmp_path.rglob("*")) - before}
    inside = {path for path in written if path.parts[0] in ("exported", "subset.jsonl")}
    assert inside
    assert {path.parts[:3] for path in written - inside} <= {("deep", "er", "run")}
    assert not list(tmp_path.parent.glob("[0-9]"))


def test_no_secret_of_the_environment_is_in_what_a_run_leaves(hostile_run, tmp_path):
    hostile_run.select(6).write(tmp_path / "subset.jsonl")
    hostile_run.export("trl", tmp_path / "exported")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if SENTINEL.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("uri", ["s3://AKIA:{}@bucket/run", "abfs://team:{}@pool/run"])
def test_an_address_with_a_password_is_refused_without_showing_it(uri):
    with pytest.raises(ConfigError, match="holds a password") as refused:
        Location.of(uri.format(SENTINEL)).exists()
    assert SENTINEL not in str(refused.value)


def test_workers_are_given_numbers_of_threads_and_no_other_variables(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    given = session.worker_environment(cpus=2, gpus=0)
    assert list(given) == ["env_vars"]
    assert set(given["env_vars"]) == {*session.THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES"}


def test_the_only_table_for_spreadsheets_has_no_text_of_rows():
    """Names of sets, metrics and arms come from the configuration; the rest is numbers."""
    texts = {field.name for field in TABLE if str(field.type) == "string"}
    assert texts == {"set", "metric", "budget", "label"}


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(messages[0]) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.getcwd() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ strftime_now.__self__.tokenizer }}",
        "{{ raise_exception.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ messages[0].content.format.__self__.__class__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    ],
)
def test_a_template_reaches_nothing_of_python(source):
    try:
        item, tokenizer = outcome(f"{source}\n{CHATML}", chat(*SAID))
    except UserError as error:
        said = str(error)
    else:
        is_refused = isinstance(item, RowError)
        said = item.detail if is_refused else tokenizer.decode(item.input_ids)
    assert said
    assert not re.search(rf"<class|<module|object at 0x|uid=|root:|'os'|{os.getcwd()}", said)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_the_folder_of_a_model_shows_nothing_of_what_it_leads_to(tmp_path, name):
    (tmp_path / "secret").write_text(SENTINEL)
    folder = Path(tiny.save(tmp_path / "model", "llama"))
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError) as refused:
        checkpoints.check_model(str(folder))
        checkpoints.load_tokenizer(str(folder))
    assert SENTINEL not in str(refused.value)


def test_the_index_of_a_model_cannot_name_weights_elsewhere(tmp_path):
    tiny.save(tmp_path / "other", "llama")
    folder = Path(tiny.save(tmp_path / "model", "llama"))
    (folder / "model.safetensors").unlink()
    weights = {"weight_map": {"lm_head.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    with pytest.raises(ModelError, match=r"\.\./other/model\.safetensors is missing"):
        checkpoints.check_model(str(folder))


HEADER = save({"a": np.zeros(3, np.float32)})


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(HEADER) - 1), put=st.binary(max_size=6))
def test_any_file_of_weights_has_a_header_or_is_refused(tmp_path, place, put):
    file = tmp_path / "model.safetensors"
    file.write_bytes(HEADER[:place] + put + HEADER[place + len(put) :])
    try:
        tensors = model_files.safetensors_header(Location.of(file))
    except ModelError as error:
        assert "model.safetensors" in str(error)
    else:
        assert isinstance(tensors, dict)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_settings_that_are_nested_without_end_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        model_files.read_settings(Location.of(tmp_path / "config.json"))


def test_every_test_that_the_page_names_exists():
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 20
    assert named <= defined
