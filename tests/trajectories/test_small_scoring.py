"""A small pool is scored by a thread of this process: the bytes of an actor, and nothing else."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.errors import DataError, UserError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import part_scorer, small_scoring
from s2l_ray.trajectories import stage as trajectories
from s2l_ray.trajectories.part_scorer import Checkpoint
from tests.trajectories.scored import CONFIG, STEPS, part_bytes

THREADS = 2


@pytest.fixture
def process():
    """A process with settings of its own, which is not connected to Ray."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("medium")
    yield
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (THREADS, "medium")
    assert not ray.is_initialized()
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


def run(prepared, checkpoints, folder):
    out = StageDir(Location.of(folder), "trajectories", {"reference": "the same"})
    out.begin()
    with Progress("trajectories") as progress:
        return trajectories.run(CONFIG, prepared, checkpoints, out, progress=progress)


def test_it_leaves_the_bytes_of_a_scorer_and_the_process_as_it_was(
    prepared, checkpoints, expected, tmp_path, process, monkeypatch, capfd
):
    # Ends its process where a batch takes too long: this one is not the scorer's own.
    monkeypatch.setattr(part_scorer, "HANG_SECONDS", 1e-6)

    summary = run(prepared, checkpoints, tmp_path)

    assert part_bytes(tmp_path) == expected
    assert (summary["steps"], summary["rows"]) == (list(STEPS), 14)
    assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled()


def test_what_transformers_reports_of_a_checkpoint_is_not_shown(
    prepared, checkpoints, expected, tmp_path, process, capfd
):
    folder = tmp_path / "step-000010"
    shutil.copytree(str(checkpoints[1].folder), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"extra.weight": np.zeros(3, np.float32)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    verbosity = logging.get_verbosity()

    run(
        prepared,
        [checkpoints[0], Checkpoint(10, Location.of(folder)), checkpoints[2]],
        tmp_path / "out",
    )

    assert part_bytes(tmp_path / "out") == expected
    assert capfd.readouterr() == ("", "") and logging.get_verbosity() == verbosity


def test_a_failure_leaves_the_process_as_it_was(prepared, checkpoints, tmp_path, process):
    model = part_scorer.load_model(str(checkpoints[1].folder))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "step-000010")
    diverged = Checkpoint(10, Location.of(tmp_path) / "step-000010")

    with pytest.raises(DataError, match="no finite loss at step 10"):
        run(prepared, [checkpoints[0], diverged, checkpoints[2]], tmp_path / "out")


def size(checkpoints):
    folders = [checkpoint.folder for checkpoint in checkpoints]
    return sum(item for f in folders for name, item, _ in f.files() if "safetensors" in name)


def test_it_is_measured_by_the_bytes_of_the_weights_and_the_tokens(
    prepared, checkpoints, monkeypatch
):
    num_tokens = sum(len(ids) for table in prepared.tables() for ids in table["input_ids"])
    cost = size(checkpoints) * num_tokens

    monkeypatch.setattr(small_scoring, "MAX_BYTES_TIMES_TOKENS", cost)
    assert small_scoring.fits_here(CONFIG, prepared, checkpoints)
    assert small_scoring.fits_here(CONFIG, prepared, checkpoints[:1])
    monkeypatch.setattr(small_scoring, "MAX_BYTES_TIMES_TOKENS", cost - 1)
    assert not small_scoring.fits_here(CONFIG, prepared, checkpoints)


@pytest.mark.parametrize(("gpus", "fits"), [(None, True), (0, True), (0.5, False)])
def test_a_gpu_that_is_asked_for_is_used(prepared, checkpoints, gpus, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = CONFIG.model_copy(update={"gpus_per_worker": gpus})

    assert small_scoring.fits_here(config, prepared, checkpoints) is fits


def test_a_gpu_that_is_there_is_used_unless_it_is_not_wanted(prepared, checkpoints, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    unwanted = CONFIG.model_copy(update={"gpus_per_worker": 0})

    assert not small_scoring.fits_here(CONFIG, prepared, checkpoints)
    assert small_scoring.fits_here(unwanted, prepared, checkpoints)


def test_weights_of_unknown_size_are_left_to_actors(prepared, checkpoints, tmp_path):
    (tmp_path / "step-000400").mkdir()
    (tmp_path / "step-000400" / "config.json").write_text("{}")
    empty = Checkpoint(400, Location.of(tmp_path) / "step-000400")
    adapter = replace(checkpoints[0], base="a-model-of-any-size")

    missing = Checkpoint(500, Location.of(tmp_path) / "step-000500")

    assert not small_scoring.fits_here(CONFIG, prepared, [*checkpoints, empty])
    assert not small_scoring.fits_here(CONFIG, prepared, [*checkpoints, missing])
    assert not small_scoring.fits_here(CONFIG, prepared, [adapter])


def test_a_pool_without_tokens_fits(checkpoints, tmp_path):
    assert small_scoring.fits_here(CONFIG, Parts(Location.of(tmp_path)), checkpoints)


@pytest.mark.parametrize(("num_weights", "due"), [(1 << 10, 0), (1 << 20, 6)])
def test_no_actor_scores_a_small_pool_while_the_reference_trains(
    prepared, tmp_path, monkeypatch, num_weights, due
):
    """Fourteen rows have few tokens: the limit is lowered to what a million weights pass."""
    monkeypatch.setattr(small_scoring, "MAX_BYTES_TIMES_TOKENS", 1e8)
    checkpoints = [
        Checkpoint(step, Location.of(tmp_path) / f"step-{step:06d}") for step in (10, 20, 30)
    ]
    steps = iter([None, 0, 20])
    units = trajectories._Due(CONFIG, prepared, checkpoints, 3, lambda: next(steps))
    assert units() is None
    assert units() == 0  # nothing is saved yet, so nothing can be measured
    for checkpoint in checkpoints[:2]:
        (tmp_path / checkpoint.folder.name).mkdir()
        weights = {"weight": np.zeros(num_weights, np.float32)}
        save_file(weights, tmp_path / checkpoint.folder.name / "model.safetensors")

    assert units() == due


def test_nothing_is_due_of_a_pool_that_cannot_be_read(checkpoints, tmp_path):
    """The thread that asks goes on: whoever needs the pool names the part."""
    (tmp_path / "part-000000.parquet").write_text("torn")
    pool = Parts(Location.of(tmp_path))
    with pytest.raises(UserError, match="part-000000"):
        small_scoring.fits_here(CONFIG, pool, checkpoints)

    assert trajectories._Due(CONFIG, pool, checkpoints, 1, lambda: STEPS[-1])() == 0
