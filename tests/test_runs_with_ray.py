"""Tables as datasets of Ray, and runs on an object store."""

import json

import numpy as np
import pytest

import s2l_ray as s2l
from tests import handmade
from tests.handmade import IDS, NUM_ROWS, changed, finish

pytestmark = pytest.mark.ray


def test_a_table_is_a_dataset_of_ray(ray_cluster, tmp_path):
    run = s2l.load(finish(handmade.inputs(tmp_path), until="clusters").uri)
    dataset = run.trajectories().to_ray(["example_id", "loss_nats"])
    rows = {row["example_id"]: row["loss_nats"] for row in dataset.iter_rows()}
    assert rows.keys() == set(IDS)
    losses = run.trajectories().to_numpy()
    np.testing.assert_array_equal(np.stack([rows[name] for name in IDS]), losses)
    assert run.clusters().to_ray().count() == NUM_ROWS


def test_a_run_on_an_object_store_is_read_and_selected_from(s3_bucket, tmp_path):
    tree = handmade.inputs(tmp_path)
    here = s2l.load(finish(tree, until="clusters").uri)
    there = s2l.load(finish(changed(tree, "run_dir", f"{s3_bucket}/run"), until="clusters").uri)

    assert there.path == f"{s3_bucket}/run"
    assert there.trajectories().to_arrow() == here.trajectories().to_arrow()
    assert there.clusters().to_arrow() == here.clusters().to_arrow()
    assert there.select(7).ids == here.select(7).ids
    assert list(there.select(7).rows()) == list(here.select(7).rows())
    written = there.select(7).write()
    assert written == f"{s3_bucket}/run/subsets/s2l-7-42/selected.jsonl"
    there.select(7).write(tmp_path / "copy.jsonl")
    lines = (tmp_path / "copy.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(here.select(7).rows())
