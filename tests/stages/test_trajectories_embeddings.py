"""Embeddings of the last checkpoint: as defined, and of the same bytes after an interruption."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from s2l_ray.artifacts import Parts, part_name, section_inputs
from s2l_ray.config import TrajectoriesConfig
from s2l_ray.errors import DataError
from s2l_ray.stages import trajectories
from s2l_ray.storage import Location
from tests.modelling.test_embeddings import defined_embedding
from tests.stages import test_trajectories as without
from tests.stages.test_trajectories import CONFIG, ROWS_OF_PART, part_bytes, with_poisoned_token

checkpoints, prepared, expected = without.checkpoints, without.prepared, without.expected
EMBEDDED = CONFIG.model_copy(update={"embeddings": True})


def score_all(prepared, checkpoints, folder, groups=((0, 1, 2),), config=EMBEDDED):
    place = Location.of(folder)
    for group in groups:
        worker = trajectories.Scorer(prepared, list(checkpoints), config, place, gpus=0)
        for part in range(len(ROWS_OF_PART)):
            worker({"part": part, "group": list(group)})


def embedding_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("embeddings-*"))}


def test_an_embedding_is_the_weighted_mean_at_the_last_checkpoint_and_of_length_one(
    prepared,
    checkpoints,
    tmp_path,
):
    score_all(prepared, checkpoints, tmp_path)

    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[-1].folder.uri, dtype=torch.float32
    ).eval()
    written = list(Parts(Location.of(tmp_path), "embeddings").tables())
    tables = [table for table in prepared.tables() if table.num_rows]
    assert len(written) == len(tables) == 2
    for table, found in zip(tables, written, strict=True):
        assert (
            str(found.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[16]"
        )
        assert found["example_id"].equals(table["example_id"])
        for ids, embedding in zip(
            table["input_ids"].to_pylist(), found["embedding"].to_pylist(), strict=True
        ):
            defined = defined_embedding(model, ids)
            np.testing.assert_allclose(embedding, defined / np.linalg.norm(defined), atol=1e-3)


def test_an_interrupted_run_goes_on_to_the_same_embeddings(
    prepared,
    checkpoints,
    tmp_path,
):
    whole, again = tmp_path / "whole", tmp_path / "again"
    score_all(prepared, checkpoints, whole)
    score_all(prepared, checkpoints, again, [(0,), (1, 2)])
    assert embedding_bytes(again) == embedding_bytes(whole) != {}
    # Written by a worker that died before its losses were, perhaps in another precision.
    (again / "units" / "losses-000000-000000300-fp32.npy").unlink()
    (again / "embeddings-000000.parquet").write_bytes(b"")
    (again / "part-000000.parquet").unlink()
    kept = (again / "embeddings-000002.parquet").stat().st_mtime_ns

    score_all(prepared, checkpoints, again, [(2,), (0, 1)])

    assert embedding_bytes(again) == embedding_bytes(whole)
    assert part_bytes(again) == part_bytes(whole)
    assert (again / "embeddings-000002.parquet").stat().st_mtime_ns == kept


def test_without_the_key_nothing_else_is_written_and_fingerprints_are_as_they_were(
    prepared,
    checkpoints,
    expected,
    tmp_path,
):
    score_all(prepared, checkpoints, tmp_path, config=CONFIG)
    assert part_bytes(tmp_path) == expected
    assert embedding_bytes(tmp_path) == {}
    assert "trajectories.embeddings" not in section_inputs("trajectories", CONFIG)
    assert section_inputs("trajectories", EMBEDDED)["trajectories.embeddings"] is True


def test_an_embedding_that_is_not_finite_names_its_example(
    checkpoints,
    tmp_path,
):
    # The last token is in no loss, but in the embedding.
    with_poisoned_token(tmp_path / "broken", token=7)
    rows = pa.table(
        {
            "example_id": ["e0", "e1"],
            "stratum": ["", ""],
            "input_ids": pa.array([[5, 6, 8], [5, 6, 7]], pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([1, 1], pa.int32()),
        }
    )
    (Location.of(tmp_path) / "prepared" / part_name(0)).write_table(rows)
    places = [checkpoints[0], trajectories.Checkpoint(10, Location.of(tmp_path / "broken"))]

    def scored(config, folder):
        parts = Parts(Location.of(tmp_path) / "prepared")
        worker = trajectories.Scorer(parts, places, config, Location.of(tmp_path / folder), gpus=0)
        return worker({"part": 0, "group": [0, 1]})

    assert scored(CONFIG, "without")["fresh"]
    with pytest.raises(DataError, match=r"1 examples .* at step 10 \(first: e1\)"):
        scored(EMBEDDED, "with")
    assert not list((tmp_path / "with").glob("*-000000.parquet"))


def test_existing_trajectories_have_no_embeddings():
    with pytest.raises(ValueError, match="`embeddings` come with scoring"):
        TrajectoriesConfig(path="losses/*.parquet", embeddings=True)
