"""Losses of responses without their prompts: transformers, one row at a time, is the oracle."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from s2l_ray.artifacts.manifest import section_inputs
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.errors import ModelError
from s2l_ray.models.flops import Shape
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import part_scorer
from s2l_ray.trajectories.work import Amount, Pool, scoring_work
from tests import tiny
from tests.trajectories.scored import CONFIG, part_bytes, score_all

ALONE = CONFIG.model_copy(update={"without_prompt": True})
COLUMN = "loss_without_prompt_nats"


def defined(model, response, start) -> float:
    """The loss that transformers computes for the response after one token that has none."""
    ids = torch.tensor([[start, *response]])
    labels = torch.tensor([[-100, *response]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def written(folder):
    return pa.concat_tables(Parts(Location.of(folder)).tables())


def test_losses_are_those_of_transformers_row_by_row(prepared, checkpoints, expected, tmp_path):
    folder = tmp_path / "trajectories"
    score_all(prepared, checkpoints, folder, config=ALONE)

    model = AutoModelForCausalLM.from_pretrained(checkpoints[-1].folder.uri, dtype=torch.float32)
    rows = pa.concat_tables(prepared.tables()).to_pylist()
    found = written(folder)
    assert model.config.bos_token_id is None and model.config.eos_token_id == 256
    assert str(found.schema.field(COLUMN).type) == "float"
    assert found["example_id"].to_pylist() == [row["example_id"] for row in rows]
    defined_N = [
        defined(model.eval(), row["input_ids"][row["num_prompt_tokens"] :], 256) for row in rows
    ]
    np.testing.assert_allclose(found[COLUMN].to_numpy(), defined_N, rtol=1e-5)
    # All else is as without it.
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, content in expected.items():
        (plain / name).write_bytes(content)
    assert found.drop_columns(COLUMN) == written(plain)


def test_responses_of_several_turns_are_read_one_after_the_other(checkpoints, tmp_path):
    ids = np.random.default_rng(4).integers(1, 256, 20).tolist()
    ranges = {"response_starts": [[0, 9]], "response_ends": [[4, 15]]}
    row = {"example_id": ["a"], "stratum": [""], "input_ids": [ids], "num_prompt_tokens": [0]}
    table = pa.table(row).append_column("num_tokens", pa.array([20], pa.int32()))
    for name, value in ranges.items():
        table = table.append_column(name, pa.array(value, pa.list_(pa.int32())))
    folder = Location.of(tmp_path / "prepared")
    (folder / part_name(0)).write_table(table)

    for limit, response in ((None, ids[1:4] + ids[9:15]), (6, ids[1:4] + ids[9:12])):
        config = ALONE.model_copy(update={"max_response_tokens": limit})
        out = tmp_path / f"{limit}"
        out.mkdir()
        scorer = part_scorer.PartScorer(
            Parts(folder), checkpoints[-1:], config, Location.of(out), gpus=0
        )
        scorer({"part": 0, "group": [0]})
        model = AutoModelForCausalLM.from_pretrained(checkpoints[-1].folder.uri)
        expected = defined(model.float().eval(), response, 256)
        assert written(out)[COLUMN].to_pylist() == [pytest.approx(expected, rel=1e-5)]


def test_an_interrupted_run_goes_on_to_the_same_bytes(prepared, checkpoints, tmp_path):
    whole, again = (tmp_path / name / "trajectories" for name in ("whole", "again"))
    score_all(prepared, checkpoints, whole, config=ALONE)
    score_all(prepared, checkpoints, again, [(0,), (1, 2)], config=ALONE)
    assert part_bytes(again) == part_bytes(whole) != {}
    (again / "units" / "losses-000000-000000300-fp32.npy").unlink()
    (again / "units" / "without-prompt-000000-fp32.npy").write_bytes(b"")
    (again / "part-000000.parquet").unlink()
    score_all(prepared, checkpoints, again, [(2,), (0, 1)], config=ALONE)
    assert part_bytes(again) == part_bytes(whole)


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ({"bos_token_id": 5, "eos_token_id": 256}, 5),
        ({"bos_token_id": 0}, 0),
        ({"eos_token_id": [7, 256]}, 7),
    ],
)
def test_a_response_begins_after_the_token_that_begins_a_text(tokens, start):
    assert part_scorer.start_token(tiny.model(**tokens)) == start


def test_a_model_without_such_a_token_is_refused():
    with pytest.raises(ModelError, match=r"neither a beginning-of-sequence nor .*without_prompt"):
        part_scorer.start_token(tiny.model(bos_token_id=None, eos_token_id=None))


def test_without_the_key_fingerprints_are_as_they_were():
    assert "trajectories.without_prompt" not in section_inputs("trajectories", CONFIG)
    assert section_inputs("trajectories", ALONE)["trajectories.without_prompt"] is True
    with pytest.raises(ValueError, match="`without_prompt` comes with scoring"):
        TrajectoriesConfig(path="losses/*.parquet", without_prompt=True)


def test_the_further_pass_is_one_over_the_responses():
    pool = Pool(Amount(rows=10, tokens=1000, responses=300), 1, 1, True)
    shape = Shape(body=1000, output=100, attention=0, width=10)
    plain, alone = (scoring_work(config, pool, 3, shape) for config in (CONFIG, ALONE))
    assert plain.tokens == 3000 and alone.tokens == 3310
    assert alone.flops - plain.flops == 2 * (1000 * 310 + 100 * 300)
