"""Without a cluster a pool is prepared by threads of the program, or by processes beside it: the
bytes that actors write.
"""

import gzip
import json
import multiprocessing
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.data import DataConfig
from s2l_ray.data import input_sizes
from s2l_ray.data.input_sizes import BYTES_OF_FILE, EXPANSION, fits_threads
from s2l_ray.distributed import session
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.input_files import InputFile, expand
from s2l_ray.storage.location import Location
from tests import handmade, small_run, tiny
from tests.data.chat_templates import CHATML
from tests.data.test_prepare import jsonl, part_bytes, prepare_here, settings
from tests.program import called
from tests.small_run import manifest, sets, stages_done

POOL = DataConfig(train=["unused"])
MOST = input_sizes.MOST_BYTES_IN_THREADS


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    assert not ray.is_initialized()


@pytest.fixture
def small(tmp_path):
    """The small run of the tests, whose tokenizer has a chat template."""
    path = small_run.write_inputs(tmp_path)
    tiny.tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "tokenizer")
    return path


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(("template", "most"), [("alpaca", 0), ("chat", 0), ("chat", MOST)])
def test_what_is_prepared_here_is_what_one_worker_does_in_turn(
    small, tmp_path, monkeypatch, template, most
):
    """By processes, or by threads if there is at most so much text."""
    monkeypatch.setattr(input_sizes, "MOST_BYTES_IN_THREADS", most)
    given = sets(data__template=template, data__max_tokens=500)
    done = called("run", small, "--until", "prepare", *given)

    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == {"prepare"} and "Ray" not in done.stdout
    found = part_bytes(tmp_path / "run" / "prepared")
    assert len(found) == 2 * 16 + 2
    changes = {"max_tokens": 500, "decontaminate": "off"}
    prepare_here(
        tmp_path / "turns",
        [str(tmp_path / "train.jsonl")],
        settings(template, **changes),
        str(tmp_path / "tokenizer"),
    )
    listed = {"contaminated.parquet": found["contaminated.parquet"]}
    assert found == part_bytes(tmp_path / "turns") | listed
    again = called("run", small, "--until", "prepare", *given)
    assert "nothing to do" in again.stdout
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_cluster")
def test_a_list_that_is_asked_for_later_is_made_by_threads_too(small, tmp_path):
    assert called("run", small, "--until", "prepare").returncode == 0
    before = part_bytes(tmp_path / "run" / "prepared")

    done = called("run", small, "--until", "prepare", *sets(data__near_duplicates="report"))

    assert done.returncode == 0 and "Ray" not in done.stdout, done.stdout + done.stderr
    found = part_bytes(tmp_path / "run" / "prepared")
    assert found.keys() - before.keys() == {"near_duplicates.parquet"}
    assert found | before == found


@pytest.mark.usefixtures("no_cluster")
def test_a_bad_pool_is_refused_as_by_ray(small, tmp_path):
    jsonl(tmp_path / "train.jsonl", [b"{half", b"{half", *small_run.rows()])
    given = ["--until", "prepare", *sets(data__max_rejected=0.01)]
    message = small_run.refusal(called("run", small, *given))
    assert "data.train: 2 of 62 rows cannot be used (3.23%" in message
    assert "train.jsonl row 0" in message


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("most", [0, MOST])
def test_no_pool_needs_ray_unless_a_cluster_is_joined(small, monkeypatch, most):
    monkeypatch.setattr(input_sizes, "MOST_BYTES_IN_THREADS", most)
    prepare = handmade.planned(yaml.safe_load(small.read_text()))[:1]
    assert not pipeline.needs_ray(prepare, None)
    assert pipeline.needs_ray(prepare, "10.0.0.1:6379")


@pytest.mark.usefixtures("no_cluster")
def test_on_a_cluster_that_was_joined_ray_prepares(small, monkeypatch):
    prepare = handmade.planned(yaml.safe_load(small.read_text()))[:1]
    monkeypatch.setattr(session, "is_shared", lambda: True)
    assert pipeline.needs_ray(prepare, None)


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ([], True),
        ([("a.jsonl", MOST - BYTES_OF_FILE)], True),
        ([("a.jsonl", MOST)], False),
        ([("a.arrow", MOST - BYTES_OF_FILE)], True),
        ([("a.jsonl.gz", MOST // EXPANSION)], False),
        ([("a.csv.zst", (MOST - BYTES_OF_FILE) // EXPANSION)], True),
        ([("a.parquet", MOST // EXPANSION)], False),
        ([(f"{n}.jsonl", 0) for n in range(MOST // BYTES_OF_FILE)], True),
        ([(f"{n}.jsonl", 1) for n in range(MOST // BYTES_OF_FILE)], False),
        ([("a.jsonl", 1), ("hf://org/name", 0)], False),
    ],
)
def test_a_pool_is_prepared_by_threads_up_to_an_amount_of_text(files, fits):
    assert fits_threads(POOL, [InputFile(uri, size, "") for uri, size in files]) is fits


def test_rows_of_the_pool_count_where_new_rows_are_compared_with_them(tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows-000000.parquet")
    pool = Parts(Location.of(tmp_path))
    monkeypatch.setattr(input_sizes, "MOST_BYTES_IN_THREADS", BYTES_OF_FILE)
    compares = POOL.model_copy(update={"near_duplicates": "report"})

    assert fits_threads(POOL, [InputFile("new.jsonl", 0, "")], pool)
    assert not fits_threads(compares, [InputFile("new.jsonl", 0, "")], pool)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.parquet"])
def test_the_text_of_a_packed_file_is_not_underrated_by_much(tmp_path, name):
    rows = [
        {"instruction": f"What is {n} and {n * n}?", "output": f"{n} ducks"} for n in range(999)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(text))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    (file,) = expand([str(tmp_path / name)])
    assert 0.3 < input_sizes._text_bytes(file) / (len(text) + BYTES_OF_FILE) < 3


@pytest.mark.ray
def test_without_a_cluster_every_file_is_the_one_that_actors_wrote(finished, config, tmp_path):
    """`finished` was prepared on the tests' Ray."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    given = ["--until", "prepare", *sets(run_dir=tmp_path / "here")]
    done = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "run", config, *given],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray" not in done.stdout
    here, there = tmp_path / "here" / "prepared", finished / "prepared"
    assert part_bytes(here) == part_bytes(there)
    assert {path.name for path in here.iterdir()} == {path.name for path in there.iterdir()}
    same = ("fingerprint", "inputs", "summary")
    assert {key: manifest(here)[key] for key in same} == {k: manifest(there)[k] for k in same}
