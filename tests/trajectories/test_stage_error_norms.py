"""Error norms of the first checkpoint: as defined, and of the same bytes after an interruption."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from s2l_ray.artifacts.manifest import section_inputs
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.storage.location import Location
from tests.models.test_error_norms import defined_norm
from tests.trajectories.scored import CONFIG, part_bytes, score_all

NORMED = CONFIG.model_copy(update={"error_norms": True})
BOTH = NORMED.model_copy(update={"embeddings": True})


def test_a_norm_is_that_of_the_first_checkpoint_and_losses_stay(
    prepared, checkpoints, expected, tmp_path
):
    score_all(prepared, checkpoints, tmp_path / "trajectories", config=NORMED)

    model = AutoModelForCausalLM.from_pretrained(checkpoints[0].folder.uri, dtype=torch.float32)
    written = list(Parts(Location.of(tmp_path / "error_norms"), "error_norms").tables())
    tables = [table for table in prepared.tables() if table.num_rows]
    assert len(written) == len(tables) == 2
    for table, found in zip(tables, written, strict=True):
        assert str(found.schema.field("error_norm").type) == "float"
        assert found["example_id"].equals(table["example_id"])
        rows = table.select(["input_ids", "num_prompt_tokens"]).to_pylist()
        defined_N = [defined_norm(model.eval(), *row.values()) for row in rows]
        np.testing.assert_allclose(found["error_norm"].to_numpy(), defined_N, rtol=1e-5)
    assert part_bytes(tmp_path / "trajectories") == expected
    assert part_bytes(tmp_path / "trajectories", "embeddings") == {}


def test_an_interrupted_run_goes_on_to_the_same_norms(prepared, checkpoints, tmp_path):
    whole, again = (tmp_path / name / "trajectories" for name in ("whole", "again"))
    score_all(prepared, checkpoints, whole, config=BOTH)
    score_all(prepared, checkpoints, again, [(0,), (1, 2)], config=BOTH)
    assert part_bytes(again, "error_norms") == part_bytes(whole, "error_norms") != {}
    # Written by a worker that died before its losses were, perhaps in another precision.
    (again / "units" / "losses-000000-000000002-fp32.npy").unlink()
    (again.parent / "error_norms" / "error_norms-000000.parquet").write_bytes(b"")
    (again / "part-000000.parquet").unlink()
    kept = (again.parent / "error_norms" / "error_norms-000002.parquet").stat().st_mtime_ns

    score_all(prepared, checkpoints, again, [(2,), (0, 1)], config=BOTH)

    assert part_bytes(again, "error_norms") == part_bytes(whole, "error_norms")
    assert part_bytes(again, "embeddings") == part_bytes(whole, "embeddings") != {}
    assert part_bytes(again) == part_bytes(whole)
    assert (again.parent / "error_norms" / "error_norms-000002.parquet").stat().st_mtime_ns == kept


def test_what_another_precision_has_left_is_not_kept_beside_losses(prepared, checkpoints, tmp_path):
    def scored(precision, folder):
        config = BOTH.model_copy(update={"precision": precision})
        score_all(prepared, checkpoints, folder, config=config)
        return {
            prefix: part_bytes(folder, prefix) for prefix in ("part", "embeddings", "error_norms")
        }

    whole, again = scored("bf16", tmp_path / "whole"), tmp_path / "again"
    assert scored("bf16", again) == whole
    between = again / "units" / "losses-000000-000000010-bf16.npy"
    written = between.stat().st_mtime_ns

    other = scored("fp32", again)
    assert all(other[prefix] != whole[prefix] for prefix in whole)
    assert scored("bf16", again) == whole
    # What has losses alone is scored once.
    assert between.stat().st_mtime_ns == written


def test_without_the_key_no_norms_are_written_and_fingerprints_are_as_they_were(
    prepared, checkpoints, tmp_path
):
    score_all(prepared, checkpoints, tmp_path / "trajectories", config=CONFIG)
    assert part_bytes(tmp_path / "trajectories", "error_norms") == {}
    assert "trajectories.error_norms" not in section_inputs("trajectories", CONFIG)
    assert section_inputs("trajectories", NORMED)["trajectories.error_norms"] is True


def test_existing_trajectories_have_no_norms():
    with pytest.raises(ValueError, match="`error_norms` come with scoring"):
        TrajectoriesConfig(path="losses/*.parquet", error_norms=True)
