"""Held-out sets that a pool is compared with: which are there, and which are said to be gone."""

from s2l_ray.data import cleaning
from s2l_ray.storage.location import Location
from tests.data.test_prepare import jsonl, row, settings


def test_sets_that_are_gone_are_left_out_and_named(tmp_path):
    here = jsonl(tmp_path / "here.jsonl", [row(1)])
    data = settings(eval={"gone": str(tmp_path / "gone.jsonl"), "here": here})

    reachable, gone = cleaning.with_reachable_sets(data, Location.of(tmp_path / "run"))

    assert reachable.eval == {"here": here} and gone == ["gone"]
    assert data.eval.keys() == {"gone", "here"}
