"""Extensions made by hand, as the terminal and the report show them."""

import pytest

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.pipeline import subset
from s2l_ray.report.extensions import (
    ExtensionLine,
    OldAndNew,
    extensions_view,
    summary_lines,
)
from s2l_ray.storage.location import Location
from tests.extended_by_hand import NUM_NEW, data, finished_run, given, inputs, redo
from tests.handmade import planned


@pytest.fixture
def tree(tmp_path):
    return inputs(tmp_path)


@pytest.fixture
def run(tree, tmp_path) -> Location:
    return finished_run(tree, tmp_path)


def test_the_report_shows_what_came_of_every_extension(run, tree, tmp_path):
    assert extensions_view(run) is None
    first = given(run, data(tmp_path, 0))
    out = StageDir(first.folder("clusters"), "clusters", first_inputs(first))
    fit = {
        "rows": 6,
        "rows_of_new_strata": 0,
        "rows_of_small_strata": 0,
        "unit": "standard deviations",
        "median_distance": {"old": 1.0, "new": 2.0},
        "p95_distance": {"old": 3.0, "new": 4.0},
        "share_beyond_p95": {"old": 0.04, "new": 0.5},
        "reclustering_due": True,
    }
    out.finish({**first.summary("clusters"), "fit": fit}, 1.0)
    given(run, data(tmp_path, 10))
    view = extensions_view(run)
    assert view.lines[0] == ExtensionLine(
        first.name,
        num_new=NUM_NEW,
        num_in_pool=2,
        num_rejected=1,
        num_clusters_used=5,
        num_clusters=5,
        median_distance=OldAndNew(1.0, 2.0),
        p95_distance=OldAndNew(3.0, 4.0),
        share_beyond_p95=0.5,
        reclustering="due",
    )
    distance = "median 2 standard deviations (old rows 1), 95th percentile 4 (3)"
    assert ("distance", distance) in summary_lines(first)
    assert view.unit == "standard deviations"
    assert view.lines[1].median_distance is None and view.problem == ""
    assert view.fit.startswith("cannot be judged")
    redo(planned(tree)[3], seed=8)
    problem = extensions_view(run).problem
    assert "were assigned to clusters that no longer exist" in problem


def test_the_page_of_an_extended_run_has_the_section(run, tmp_path):
    given(run, data(tmp_path))
    assert '<section id="extensions"' in subset.rebuild_report(run).read_bytes().decode()


def first_inputs(extension: extensions.Extension) -> dict:
    return StageDir(extension.folder("clusters"), "clusters", {}).manifest().inputs
