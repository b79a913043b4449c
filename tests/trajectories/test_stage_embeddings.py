"""Embeddings of the last checkpoint: as defined, and of the same bytes after an interruption."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from s2l_ray.artifacts.manifest import StageDir, section_inputs
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.config.training import WorkerRange
from s2l_ray.distributed import resources
from s2l_ray.errors import DataError, ModelError
from s2l_ray.progress import Progress
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import queries
from s2l_ray.trajectories import stage as trajectories
from s2l_ray.trajectories.declaration import TRAJECTORIES
from tests import tiny
from tests.models.test_embeddings import defined_embedding
from tests.trajectories.scored import CONFIG, part_bytes, score_all, scorer

EMBEDDED = CONFIG.model_copy(update={"embeddings": True})
BOTH = EMBEDDED.model_copy(update={"error_norms": True, "workers": WorkerRange(min=1, max=2)})


def test_an_embedding_is_the_weighted_mean_at_the_last_checkpoint_and_of_length_one(
    prepared,
    checkpoints,
    tmp_path,
):
    score_all(prepared, checkpoints, tmp_path / "trajectories", config=EMBEDDED)

    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[-1].folder.uri, dtype=torch.float32
    ).eval()
    written = list(Parts(Location.of(tmp_path / "embeddings"), "embeddings").tables())
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
    whole, again = (tmp_path / name / "trajectories" for name in ("whole", "again"))
    score_all(prepared, checkpoints, whole, config=EMBEDDED)
    score_all(prepared, checkpoints, again, [(0,), (1, 2)], EMBEDDED)
    assert part_bytes(again, "embeddings") == part_bytes(whole, "embeddings") != {}
    # Written by a worker that died before its losses were, perhaps in another precision.
    (again / "units" / "losses-000000-000000300-fp32.npy").unlink()
    (again.parent / "embeddings" / "embeddings-000000.parquet").write_bytes(b"")
    (again / "part-000000.parquet").unlink()
    kept = (again.parent / "embeddings" / "embeddings-000002.parquet").stat().st_mtime_ns

    score_all(prepared, checkpoints, again, [(2,), (0, 1)], EMBEDDED)

    assert part_bytes(again, "embeddings") == part_bytes(whole, "embeddings")
    assert part_bytes(again) == part_bytes(whole)
    assert (again.parent / "embeddings" / "embeddings-000002.parquet").stat().st_mtime_ns == kept


def test_without_the_key_nothing_else_is_written_and_fingerprints_are_as_they_were(
    prepared,
    checkpoints,
    expected,
    tmp_path,
):
    score_all(prepared, checkpoints, tmp_path / "trajectories", config=CONFIG)
    assert part_bytes(tmp_path / "trajectories") == expected
    assert part_bytes(tmp_path / "trajectories", "embeddings") == {}
    assert "trajectories.embeddings" not in section_inputs("trajectories", CONFIG)
    assert section_inputs("trajectories", EMBEDDED)["trajectories.embeddings"] is True


def infinite_at_the_end_of_the_second_row(_layer, inputs):
    hidden_BLH = inputs[0].clone()
    if hidden_BLH.shape[:2] == (2, 3):
        hidden_BLH[1, -1] = torch.inf
    return (hidden_BLH, *inputs[1:])


def test_an_embedding_that_is_not_finite_names_its_example(checkpoints, tmp_path):
    rows = pa.table(
        {
            "example_id": ["e0", "e1"],
            "stratum": ["", ""],
            "input_ids": pa.array([[5, 6, 8], [5, 6, 7]], pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([1, 1], pa.int32()),
        }
    )
    (Location.of(tmp_path) / "prepared" / part_name(0)).write_table(rows)
    parts = Parts(Location.of(tmp_path) / "prepared")

    def scored(config, folder):
        worker = scorer(parts, checkpoints, tmp_path / folder, config)
        layer = worker.model(2).get_output_embeddings()
        layer.register_forward_pre_hook(infinite_at_the_end_of_the_second_row)
        return worker({"part": 0, "group": [0, 1, 2]})

    # The last token is in no loss, but in the embedding.
    assert scored(CONFIG, "without")["fresh"]
    message = r"1 examples have no finite embedding at step 300 \(first: e1\)"
    with pytest.raises(DataError, match=message):
        scored(EMBEDDED, "with")
    assert not list((tmp_path / "with").glob("*-000000.parquet"))
    assert not (tmp_path / "embeddings").exists()


def test_a_model_that_hides_its_hidden_states_is_refused_at_its_first_checkpoint(
    prepared, checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr(GPTNeoXForCausalLM, "get_output_embeddings", lambda _model: None)
    with pytest.raises(ModelError, match=r"no embeddings\. Set trajectories\.embeddings: false"):
        scorer(prepared, checkpoints, tmp_path, EMBEDDED)({"part": 0, "group": [0, 1, 2]})
    assert not list(tmp_path.iterdir())
    assert scorer(prepared, checkpoints, tmp_path)({"part": 0, "group": [0, 1, 2]})["fresh"]


def test_existing_trajectories_have_no_embeddings():
    with pytest.raises(ValueError, match="`embeddings` come with scoring"):
        TrajectoriesConfig(path="losses/*.parquet", embeddings=True)


@pytest.mark.ray
def test_queries_are_counted_and_embedded_in_the_precision_of_the_pool(
    prepared, checkpoints, tmp_path, ray_cluster
):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [json.dumps({"instruction": f"say {word}", "output": word}) for word in ("a", "bb")]
    (tmp_path / "asked.jsonl").write_text("\n".join([*rows, "{"]))
    files = input_files.expand([str(tmp_path / "asked.jsonl")])
    data = DataConfig(train=["pool.jsonl"], max_rejected=0.5)
    asked = queries.Queries(files, data, str(tmp_path / "tokenizer"))
    out = StageDir(Location.of(tmp_path / "out"), "trajectories", {}, TRAJECTORIES.further_folders)
    with Progress("trajectories") as progress:
        summary = trajectories.run(
            BOTH, prepared, checkpoints, out, progress=progress, queries=asked
        )

    assert (summary["num_query_rows"], summary["rejected_query_rows"]) == (2, 1)
    assert summary["notes"][0].startswith("1 of 3 rows of trajectories.queries cannot be used: 1 ")
    parts, _ = queries.write_query_parts(asked, Location.of(tmp_path / "tokens"))
    asked_folder = out.location.parent / "queries"
    (table,), (found,) = parts.tables(), Parts(asked_folder / "embeddings", "embeddings").tables()
    model = AutoModelForCausalLM.from_pretrained(checkpoints[-1].folder.uri, dtype=torch.float32)
    defined_NH = np.stack([defined_embedding(model, ids) for ids in table["input_ids"].to_pylist()])
    length_N1 = np.linalg.norm(defined_NH, axis=1, keepdims=True)
    assert found["example_id"].equals(table["example_id"])
    np.testing.assert_allclose(found["embedding"].to_pylist(), defined_NH / length_N1, atol=1e-3)
    assert (asked_folder / "embeddings").names() == ["embeddings-000000.parquet"]
    assert (asked_folder / "out").names() == ["part-000000.parquet"]

    with pytest.raises(DataError, match="some workers score in bf16 and others in fp32"):
        other = replace(out, location=out.location / "other")
        wanted = resources.workers("trajectories", 1, cpus=1, gpus=0)
        trajectories.embed_queries(BOTH, parts, checkpoints[-1], other, wanted, "bf16")
