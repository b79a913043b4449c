"""Trajectories: the losses of the definition, the same bytes whoever computes them and when."""

import shutil
import threading
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.artifacts.token_tables import token_table
from s2l_ray.config.training import WorkerRange
from s2l_ray.errors import DataError, ModelError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.trajectories import part_scorer
from s2l_ray.trajectories import stage as trajectories
from tests import tiny
from tests.trajectories.scored import CONFIG, ROWS_OF_PART, STEPS, at, part_bytes, score_all, scorer


def losses_by_definition(table, checkpoint):
    """One example at a time, all logits: the mean of -log p over its response tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder.uri, dtype=torch.float32).eval()
    losses = []
    for row in table.to_pylist():
        with torch.no_grad():
            logits_LV = model(torch.tensor([row["input_ids"]])).logits[0].double()
        log_p_LV = torch.log_softmax(logits_LV, dim=-1)
        places = range(row["num_prompt_tokens"], len(row["input_ids"]))
        terms = [-log_p_LV[place - 1, row["input_ids"][place]].item() for place in places]
        losses.append(sum(terms) / len(terms))
    return losses


def test_a_loss_is_the_mean_over_response_tokens_of_minus_log_probability(
    prepared, checkpoints, tmp_path
):
    results = score_all(prepared, checkpoints, tmp_path)
    for table, scored, result in zip(
        prepared.tables(), Parts(Location.of(tmp_path)).tables(), results, strict=True
    ):
        assert str(scored.schema.field("loss_nats").type) == "fixed_size_list<element: float>[3]"
        assert scored.select(["example_id", "stratum"]).equals(
            table.select(["example_id", "stratum"])
        )
        loss_NT = np.array(scored["loss_nats"].to_pylist()).reshape(-1, 3)
        by_definition = [losses_by_definition(table, checkpoint) for checkpoint in checkpoints]
        np.testing.assert_allclose(loss_NT.T, by_definition, rtol=1e-5)
        sums = np.array(result["sums"])
        np.testing.assert_allclose(sums[:, 0], loss_NT.sum(axis=0, dtype=np.float64), rtol=1e-12)
        assert sums[:, 1].tolist() == [table.num_rows] * 3
        assert (result["fresh"], result["precision"]) == (True, "fp32")


@pytest.mark.parametrize("groups", [[(2,), (1,), (0,)], [(0, 1), (2,)], [(1, 2), (0,)]])
def test_a_part_has_the_same_bytes_however_its_checkpoints_are_grouped(
    prepared, checkpoints, expected, tmp_path, groups
):
    score_all(prepared, checkpoints, tmp_path, groups)
    assert part_bytes(tmp_path) == expected


def test_a_part_is_there_once_its_last_checkpoint_is_scored_and_not_before(
    prepared, checkpoints, expected, tmp_path
):
    score_all(prepared, checkpoints, tmp_path, [(2,), (0,)])
    assert part_bytes(tmp_path) == {}
    score_all(prepared, checkpoints, tmp_path, [(1,)])
    assert part_bytes(tmp_path) == expected


@pytest.mark.parametrize("lost", range(4))
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    prepared, checkpoints, expected, tmp_path, lost
):
    score_all(prepared, checkpoints, tmp_path, [(0, 1), (2,)])
    units = sorted((tmp_path / "units").glob("losses-*"))
    assert len(units) == 9
    gone = [*units[lost::4], *sorted(tmp_path.glob("part-*"))[: lost + 1]]
    kept = {path: path.stat().st_mtime_ns for path in units if path not in gone}
    for path in gone:
        path.unlink()

    results = score_all(prepared, checkpoints, tmp_path, [(0,), (1, 2)])
    assert part_bytes(tmp_path) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    fresh = {(r["part"], index) for r in results for index in r["group"] if r["fresh"]}
    assert {divmod(units.index(path), 3) for path in gone if path in units} <= fresh


def test_results_do_not_depend_on_how_many_checkpoints_a_worker_can_hold(
    prepared, checkpoints, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(part_scorer, "MODEL_CACHE_BYTES", 1)
    worker = scorer(prepared, checkpoints, tmp_path)
    for part in range(len(ROWS_OF_PART)):
        worker({"part": part, "group": [0, 1, 2]})
        assert len(worker.models) <= 1
    assert part_bytes(tmp_path) == expected


def with_poisoned_token(folder, token):
    """A checkpoint that has no finite loss where `token` is read."""
    model = tiny.model(seed=1)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def test_a_loss_that_is_not_finite_names_the_examples_and_the_step(prepared, checkpoints, tmp_path):
    broken = tmp_path / "broken"
    with_poisoned_token(broken, token=7)
    rows = [[5, 6, 7, 8], [5, 6, 8, 8], [7, 9, 9], [7, 1, 1], [1, 2, 7], [7, 7, 7, 7], [3, 4, 5]]
    table = pa.table(
        {
            "example_id": [f"e{row}" for row in range(len(rows))],
            "stratum": [""] * len(rows),
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([1] * len(rows), pa.int32()),
        }
    )
    (Location.of(tmp_path) / "prepared" / part_name(0)).write_table(table)
    worker = scorer(
        Parts(Location.of(tmp_path) / "prepared"),
        [checkpoints[0], part_scorer.Checkpoint(10, Location.of(broken))],
        tmp_path / "out",
    )
    # The last token is predicted, never read: e4 has a finite loss.
    with pytest.raises(
        DataError, match=r"4 examples have no finite loss at step 10 \(first: e0, e2, e3, \.\.\.\)"
    ):
        worker({"part": 0, "group": [0, 1]})
    assert not list((tmp_path / "out").glob("part-*"))
    assert not (tmp_path / "out" / "units" / "losses-000000-000000010-fp32.npy").exists()


@pytest.mark.parametrize("limit", [1, 3, 10_000])
def test_a_limit_on_response_tokens_scores_the_first_ones_alone(
    prepared, checkpoints, tmp_path, limit
):
    config = CONFIG.model_copy(update={"max_response_tokens": limit})
    worker = part_scorer.PartScorer(prepared, checkpoints, config, Location.of(tmp_path), gpus=0)

    result = worker({"part": 0, "group": [0, 1, 2]})

    table = next(iter(prepared.tables()))
    rows = [
        row | {"input_ids": row["input_ids"][: row["num_prompt_tokens"] + limit]}
        for row in table.to_pylist()
    ]
    cut = pa.Table.from_pylist(rows, schema=table.schema)
    by_definition = [losses_by_definition(cut, checkpoint) for checkpoint in checkpoints]
    scored = next(iter(Parts(Location.of(tmp_path)).tables()))
    loss_NT = np.array(scored["loss_nats"].to_pylist())
    np.testing.assert_allclose(loss_NT.T, by_definition, rtol=1e-5)
    assert result["tokens"] == 3 * sum(len(row["input_ids"]) for row in rows)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_units_cover_everything_once_and_keep_all_workers_busy(num_parts, num_steps, num_workers):
    units = schedule.scoring_units(num_parts, num_steps, num_workers)
    pairs = [(unit["part"], index) for unit in units for index in unit["group"]]
    assert sorted(pairs) == [(part, i) for part in range(num_parts) for i in range(num_steps)]
    assert len(units) >= min(num_parts * num_steps, num_workers)
    sizes = {len(unit["group"]) for unit in units}
    assert max(sizes) - min(sizes) <= 1
    groups = [unit["group"] for unit in units]
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes == len({tuple(group) for group in groups}) - 1


def test_one_part_is_shared_by_several_workers():
    assert len(schedule.scoring_units(1, 12, 4)) == 12
    assert schedule.scoring_units(100, 12, 4)[0]["group"] == list(range(12))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_a_limit_counts_response_tokens_over_the_ranges(checkpoints, tmp_path, limit):
    ids = np.arange(12)
    ranges = [(0, 2), (4, 6), (9, 10)]
    table = token_table(["a"], [""], [ids], [ranges])
    (Location.of(tmp_path / "prepared") / part_name(0)).write_table(table)
    config = CONFIG.model_copy(update={"max_response_tokens": limit})
    prepared = Parts(Location.of(tmp_path / "prepared"))
    worker = part_scorer.PartScorer(prepared, checkpoints, config, Location.of(tmp_path), gpus=0)

    result = worker({"part": 0, "group": [0]})

    # Nothing predicts the first token, so four carry a loss.
    places = [1, 4, 5, 9][:limit]
    assert result["tokens"] == (places[-1] + 1 if limit <= 4 else 12)
    model = AutoModelForCausalLM.from_pretrained(str(checkpoints[0].folder))
    labels = torch.full((1, 12), -100)
    labels[0, places] = torch.tensor(ids[places])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids)[None], labels=labels).loss.item()
    assert result["sums"][0] == [pytest.approx(expected, rel=1e-5), 1]


def stage(folder):
    out = StageDir(Location.of(folder), "trajectories", {"reference": "the same"})
    out.begin()
    return out


def run(prepared, checkpoints, folder):
    out = stage(folder)
    config = CONFIG.model_copy(update={"workers": WorkerRange(min=1, max=2)})
    with Progress("trajectories") as progress:
        return trajectories.run(config, prepared, checkpoints, out, progress=progress)


@pytest.mark.ray
def test_two_workers_that_are_stopped_and_go_on_leave_the_bytes_of_one(
    prepared, checkpoints, expected, tmp_path, ray_cluster
):
    folder, out = tmp_path / "reference", tmp_path / "out"
    for checkpoint in checkpoints[:2]:
        shutil.copytree(checkpoint.folder.uri, folder / checkpoint.folder.name)
    with pytest.raises(ModelError, match="step-000300"):
        run(prepared, at(folder), out)
    assert part_bytes(out).keys() <= {"part-000001.parquet"}  # no rows, so nothing to score

    shutil.copytree(checkpoints[2].folder.uri, folder / checkpoints[2].folder.name)
    summary = run(prepared, at(folder), out)
    assert part_bytes(out) == expected
    rows = [
        row["loss_nats"] for table in Parts(Location.of(out)).tables() for row in table.to_pylist()
    ]
    np.testing.assert_allclose(summary["mean_loss_nats"], np.mean(rows, axis=0), atol=1e-6)
    assert (summary["steps"], summary["rows"]) == (list(STEPS), 14)
    assert summary["precision"] == "fp32"


@pytest.mark.ray
def test_what_is_scored_while_the_reference_trains_is_what_the_stage_scores(
    prepared, checkpoints, expected, tmp_path, ray_cluster
):
    out, done = stage(tmp_path / "out"), [None]
    units = out.location / "units"
    with trajectories.score_while_training(
        CONFIG, prepared, checkpoints, out, steps_done=lambda: done[0]
    ):
        for done[0], num_files in ((2, 3), (299, 6)):
            while len(names := units.names()) < num_files:
                threading.Event().wait(0.1)
            steps = {int(name.split("-")[2]) for name in names}
            assert steps == {step for step in STEPS if step <= done[0]}
    assert len(units.names()) == 6

    summary = run(prepared, checkpoints, tmp_path / "out")
    assert summary["num_losses_before"] == 6
    assert part_bytes(tmp_path / "out") == expected
