"""Centroids move under other settings of `clusters` as they do by default: the whole program."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.small_extension import NEW, folder
from tests.small_run import manifest, sets, stages_done, table

pytestmark = pytest.mark.ray


@pytest.fixture(
    scope="module",
    params=[{"scaling": "standardised"}, {"num_clusters": "auto"}, {"method": "authors"}],
    ids=lambda changes: "-".join(*changes.items()),
)
def moved(request, extended, config, s2l, tmp_path_factory) -> tuple[Path, str]:
    """The extended run, clustered in another way, whose extension moves what came of it.

    And what the program said.
    """
    run = Path(shutil.copytree(extended, tmp_path_factory.mktemp("moved") / "run"))
    changes = {f"clusters__{key}": value for key, value in request.param.items()}
    for command in (
        ("run", config, "--until", "selection", *sets(run_dir=run, **changes)),
        ("extend", run, "--update-centroids"),
    ):
        done = s2l(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert stages_done(done.stdout) == {"clusters", "selection"}
    return run, done.stdout


def compared(run: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All trajectories as they are clustered, by the definition, their strata and ids."""
    own, new = (table(place / "trajectories") for place in (run, folder(run)))
    found = pa.concat_tables([own, new])
    value_NT = np.stack(found["loss_nats"].to_numpy()).astype(float)
    strata = np.array(found["stratum"])
    if manifest(run / "clusters")["summary"].get("scaling") == "standardised":
        is_own = np.arange(len(value_NT)) < len(own)
        for name in set(strata):
            of_run = is_own & (strata == name)
            rows_NT = value_NT[of_run if of_run.any() else strata == name]
            mean_T, deviation_T = rows_NT.mean(axis=0), rows_NT.std(axis=0)
            value_NT[strata == name] = (value_NT[strata == name] - mean_T) / deviation_T
    return value_NT, strata, found["example_id"].to_pylist()


def sqdist(value_NT, strata, centroid_KT, of_cluster) -> np.ndarray:
    """Squared distances to all centroids; infinite to those of other strata."""
    sqdist_NK = ((value_NT[:, None] - centroid_KT.astype(float)) ** 2).sum(axis=2)
    sqdist_NK[strata[:, None] != np.array(of_cluster)] = np.inf
    return sqdist_NK


def test_all_rows_are_in_the_nearest_of_the_moved_clusters(moved):
    run, _ = moved
    place = folder(run) / "clusters"
    value_NT, strata, ids = compared(run)
    before, after = (manifest(where)["summary"] for where in (run / "clusters", place))
    stored_KT, now_KT = (np.load(where / "_centroids.npy") for where in (run / "clusters", place))
    sqdist_NK = sqdist(value_NT, strata, now_KT, after["stratum_of_cluster"])

    found = table(place)
    assert found["example_id"].to_pylist() == ids and len(ids) == 60 + len(NEW)
    assert found["cluster"].to_pylist() == sqdist_NK.argmin(axis=1).tolist()
    np.testing.assert_allclose(found["sqdist"], sqdist_NK.min(axis=1), rtol=1e-3, atol=1e-6)

    # Clusters keep their numbers, and what is nearest is nearer than it was.
    known = len(stored_KT)
    assert after["stratum_of_cluster"][:known] == before["stratum_of_cluster"]
    assert set(after["stratum_of_cluster"][known:]) == {"spell"}
    is_known = strata != "spell"
    unmoved_NK = sqdist(value_NT, strata, stored_KT, before["stratum_of_cluster"])[is_known]
    assert sqdist_NK[is_known].min(axis=1).sum() < unmoved_NK.min(axis=1).sum()


def test_what_was_fitted_to_the_run_alone_is_not_fitted_again(moved):
    run, _ = moved
    before, after = (
        manifest(where)["summary"] for where in (run / "clusters", folder(run) / "clusters")
    )
    if "scales" in before:
        assert {name: after["scales"][name] for name in before["scales"]} == before["scales"]
    assert set(after.get("tried", {})) == ({"spell"} if "tried" in before else set())


def test_distances_have_their_unit_beside_them(moved):
    run, said = moved
    scaled = "scaling" in manifest(run / "clusters")["summary"]
    unit = "standard deviations" if scaled else "nats"
    fit = manifest(folder(run) / "clusters")["summary"]["fit"]
    assert fit["unit"] == unit and fit["centroids_updated"]
    assert f"{unit} (median; " in said


def test_the_ranking_is_by_the_moved_clusters(moved):
    run, _ = moved
    label_by_id = {
        row["example_id"]: row["cluster"]
        for row in table(folder(run) / "clusters").select(["example_id", "cluster"]).to_pylist()
    }
    ranking = table(folder(run) / "selection", "ranking.parquet").to_pylist()
    assert {row["example_id"]: row["cluster"] for row in ranking} == label_by_id
