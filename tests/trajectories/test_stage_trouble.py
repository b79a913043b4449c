"""Scoring that goes wrong: too little memory, workers that hang or die, damaged checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.artifacts.tables import Parts
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.distributed.map_units import SHARED, UnitRunner
from s2l_ray.distributed.resources import Workers
from s2l_ray.errors import DataError, ModelError
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import part_scorer
from tests import tiny
from tests.trajectories.scored import CONFIG, at, part_bytes, scorer

ROOT = Path(__file__).parents[2]


def out_of_memory_above(limit):
    """For a model that fits no batch of more tokens."""

    def refuse(_module, _arguments, inputs):
        if inputs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError(f"{inputs['input_ids'].numel()} tokens")

    return refuse


def test_batches_halve_until_they_fit(prepared, checkpoints, expected, tmp_path):
    worker = scorer(prepared, checkpoints, tmp_path)
    for index in range(3):
        worker.model(index).register_forward_pre_hook(out_of_memory_above(39), with_kwargs=True)
    worker.tokens_per_batch = 400
    for part in range(3):
        worker({"part": part, "group": [0, 1, 2]})

    assert worker.tokens_per_batch == 25
    notes = sorted(path.read_text() for path in (tmp_path / "units").glob("note-*"))
    assert [note.rpartition(" ")[2] for note in notes] == ["100", "200", "25", "50"]
    for one, other in zip(Parts(Location.of(tmp_path)).tables(), loaded(expected), strict=True):
        assert one.drop(["loss_nats"]).equals(other.drop(["loss_nats"]))
        found, wanted = (np.array(t["loss_nats"].to_pylist()) for t in (one, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def loaded(expected):
    return [pq.read_table(pa.BufferReader(content)) for content in expected.values()]


def test_an_example_that_fits_no_memory_is_named(prepared, checkpoints, tmp_path):
    worker = scorer(prepared, checkpoints, tmp_path)
    worker.model(0).register_forward_pre_hook(out_of_memory_above(20), with_kwargs=True)
    lengths = list(map(len, prepared.files()[0].read_table()["input_ids"].to_pylist()))
    longest = max(lengths)
    message = rf"example 0-{lengths.index(longest)} alone, which has {longest} tokens"
    with pytest.raises(DataError, match=message):
        worker({"part": 0, "group": [0]})
    assert not list(tmp_path.glob("units/losses-*"))


HANGS = """
import sys, threading
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.trajectories import part_scorer
from s2l_ray.storage.location import Location

part_scorer.HANG_SECONDS = 3.0
prepared, checkpoint, out = map(Location.of, sys.argv[1:])
config = TrajectoriesConfig(precision="fp32", tokens_per_batch=48)
worker = part_scorer.PartScorer(
    Parts(prepared), [part_scorer.Checkpoint(2, checkpoint)], config, out, gpus=0
)
worker.model(0).register_forward_pre_hook(lambda *_: threading.Event().wait())
worker({"part": 0, "group": [0]})
"""


def test_a_worker_that_hangs_ends_and_shows_where(prepared, checkpoints, tmp_path):
    places = [prepared.folder.uri, checkpoints[0].folder.uri, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", HANGS, *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Timeout (0:00:03)!" in done.stderr and "in score" in done.stderr


def test_a_unit_in_which_workers_die_too_often_is_refused_and_only_that_one(
    prepared, checkpoints, tmp_path
):
    attempts = Location.of(tmp_path) / "attempts"
    constructor = {"prepared": prepared, "checkpoints": checkpoints, "config": CONFIG, "gpus": 0}
    worker = UnitRunner(
        part_scorer.PartScorer,
        constructor | {"folder": Location.of(tmp_path) / "out"},
        Workers("trajectories", 1, 1),
        attempts,
    )
    deadly, other = (
        {"number": number, "unit": json.dumps({"part": part, "group": [0, 1, 2]})}
        for number, part in enumerate((0, 2))
    )
    (attempts / SHARED).write_bytes(b"")
    for attempt in range(MAX_ATTEMPTS):
        # Begun and no more, as if the process had ended.
        (attempts / "0" / str(attempt)).write_bytes(b"")
    refused = worker(deadly)
    assert refused["error"] == "DataError"
    assert 'trajectories: the worker died 3 times in unit {"part": 0' in refused["message"]
    for _ in range(MAX_ATTEMPTS + 1):
        assert worker(other)["error"] == ""
    assert list(part_bytes(tmp_path / "out")) == ["part-000002.parquet"]


def test_a_checkpoint_that_is_missing_or_cut_short_is_named(prepared, checkpoints, tmp_path):
    folder = tmp_path / "reference"
    for checkpoint in checkpoints[:2]:
        shutil.copytree(checkpoint.folder.uri, folder / checkpoint.folder.name)
    with (folder / "step-000010" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    for index, message in [(1, "step-000010.*cut short"), (2, "there is no .*step-000300")]:
        with pytest.raises(ModelError, match=message):
            scorer(prepared, at(folder), tmp_path)({"part": 0, "group": [0, index]})
    assert not list(tmp_path.glob("part-*"))


def test_a_checkpoint_that_looks_ahead_is_refused_before_anything_is_scored(prepared, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=tiny.NUM_TOKENS, intermediate_size=8, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "step-1")
    checkpoint = part_scorer.Checkpoint(1, Location.of(tmp_path / "step-1"))
    worker = scorer(prepared, [checkpoint], tmp_path / "out")

    with pytest.raises(ModelError, match=r"BertLMHeadModel \(bert\) is not causal"):
        worker({"part": 0, "group": [0]})
    assert not list((tmp_path / "out").rglob("losses-*"))
