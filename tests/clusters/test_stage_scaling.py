"""Scaled trajectories are clustered as if they had been written so, and placed by stored scales."""

import json

import numpy as np
import pytest

from s2l_ray.artifacts.extensions import BaseRun, Extension
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters import placement as placing
from s2l_ray.clusters import stage as clusters
from s2l_ray.clusters.scaling import Scale
from s2l_ray.clusters.worker import MomentsWorker
from s2l_ray.config.sections import RunConfig
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from tests.clusters.test_stage import (
    IDS,
    LOSS_NT,
    NUM_ROWS,
    SEVEN_PARTS,
    STRATA,
    centroids,
    fleet_of,
    in_process,
    labels,
    settings,
    write_parts,
)

SCALINGS = ("standardised", "shape")
NEW_NT = LOSS_NT[::-1] * np.float32(1.5) + np.float32(0.25)


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


def scales_of(files, config, shards=None) -> dict[str, Scale]:
    shards = shards or [range(len(files))]
    shares = [{number: files[number] for number in shard} for shard in shards]
    return clusters.scales_of(in_process([MomentsWorker(share, config) for share in shares]))


def clustered(place, files, config, shards=None, scales=None, stored=None):
    """The summary and all files of clusters whose rows have these scales, or their own."""
    if scales is None:
        scales = scales_of(files, config, shards)
    fleet = fleet_of(files, config, shards, scales=scales)
    summary = clusters.cluster(
        fleet,
        config,
        place,
        progress=Progress("clusters"),
        stored=clusters.StoredClusters(dict(stored or {})),
    )
    return summary, {name: (place / name).read_bytes() for name in place.names()}


def rows_of(per_stratum: bool) -> list[np.ndarray]:
    strata = np.array(STRATA if per_stratum else [""] * NUM_ROWS)
    return [np.flatnonzero(strata == name) for name in np.unique(strata)]


def by_definition(scaling: str, per_stratum: bool) -> np.ndarray:
    """What is compared, from numpy's mean and deviation."""
    value_NT = LOSS_NT.astype(float)
    if scaling == "shape":
        value_NT = value_NT - value_NT.mean(axis=1, keepdims=True)
        return (value_NT / value_NT.std(axis=1, keepdims=True)).astype(np.float32)
    for row_N in rows_of(per_stratum):
        of_N = value_NT[row_N]
        value_NT[row_N] = (of_N - of_N.mean(axis=0)) / of_N.std(axis=0)
    return value_NT.astype(np.float32)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("per_stratum", [True, False])
def test_scaled_rows_are_clustered_as_if_they_lay_there_scaled(folder, scaling, per_stratum):
    files = write_parts(folder / "in", SEVEN_PARTS)
    written = write_parts(folder / "s", SEVEN_PARTS, loss_NT=by_definition(scaling, per_stratum))
    config = settings(scaling=scaling, per_stratum=per_stratum)
    summary, _ = clustered(folder / "out", files, config)
    expected, _ = clustered(folder / "raw", written, settings(per_stratum=per_stratum))

    assert labels(folder / "out")["cluster"] == labels(folder / "raw")["cluster"]
    np.testing.assert_allclose(centroids(folder / "out"), centroids(folder / "raw"), atol=1e-5)
    assert summary["inertia"] == pytest.approx(expected["inertia"], rel=1e-5)
    assert summary["scaling"] == scaling and "scaling" not in expected


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("per_stratum", [True, False])
@pytest.mark.parametrize(
    "shards",
    [
        [[6, 2, 0, 5, 1, 4, 3]],
        [[1, 3, 5], [0, 2, 4, 6]],
        [[6], [5], [4], [3], [2], [1], [0]],
        [[0, 1, 2, 3, 4, 5, 6], []],
    ],
)
def test_every_byte_is_the_same_whoever_holds_which_parts(folder, shards, per_stratum, scaling):
    config = settings(scaling=scaling, per_stratum=per_stratum)
    files = write_parts(folder / "in", SEVEN_PARTS)
    bits = [
        {name: scale.as_json() for name, scale in scales_of(files, config, of).items()}
        for of in (None, shards)
    ]

    assert bits[0] == bits[1]
    assert clustered(folder / "a", files, config, shards) == clustered(folder / "b", files, config)


def test_the_unit_of_a_checkpoint_is_of_no_account_when_standardised(folder):
    other_NT = LOSS_NT * np.array([1, 1024, 2**-6, 1], np.float32)
    files = write_parts(folder / "in", SEVEN_PARTS)
    others = write_parts(folder / "other_in", SEVEN_PARTS, loss_NT=other_NT)
    found = {}
    for scaling in ("raw", "standardised"):
        for name, of in (("one", files), ("two", others)):
            clustered(folder / scaling / name, of, settings(scaling=scaling))
            found[scaling, name] = labels(folder / scaling / name)["cluster"]

    assert found["standardised", "one"] == found["standardised", "two"]
    assert found["raw", "one"] != found["raw", "two"]


def test_a_stratum_is_standardised_by_its_own_rows_alone(folder):
    files = write_parts(folder / "in", SEVEN_PARTS)
    scales = scales_of(files, settings())
    (whole,) = scales_of(files, settings(per_stratum=False)).values()

    assert set(scales) == set(STRATA)
    for name, row_N in zip(sorted(scales), rows_of(per_stratum=True), strict=True):
        np.testing.assert_allclose(scales[name].mean_T, LOSS_NT[row_N].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(scales[name].deviation_T, LOSS_NT[row_N].std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole.mean_T, LOSS_NT.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_constant_trajectories_are_one_cluster_at_zero(folder, scaling):
    constant_NT = np.full_like(LOSS_NT, 0.3)
    files = write_parts(folder / "in", SEVEN_PARTS, loss_NT=constant_NT)
    summary, _ = clustered(folder / "out", files, settings(scaling=scaling, per_stratum=False))

    assert summary["size_of_cluster"] == [NUM_ROWS]
    np.testing.assert_allclose(centroids(folder / "out"), 0, atol=1e-6)


def test_a_loss_that_is_none_is_refused_before_it_is_summed(folder):
    loss_NT = LOSS_NT.copy()
    loss_NT[40, 2] = np.nan
    files = write_parts(folder / "in", SEVEN_PARTS, loss_NT=loss_NT)
    with pytest.raises(clusters.DataError, match=r"1 trajectories in part-000001\.parquet .*e40"):
        scales_of(files, settings(scaling="standardised"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    """A run is clustered and extended as the program does it, on actors."""

    @pytest.fixture
    def config(self, folder) -> RunConfig:
        section = settings(scaling="standardised", workers=2)
        brought = {"path": "losses"}
        return RunConfig(
            run_dir=folder.uri,
            seed=3,
            trajectories=brought,
            clusters=section.model_dump(),
        )

    def finish(self, folder, config, place="clusters"):
        out = StageDir(folder / place, "clusters", {})
        losses = Parts(folder / "trajectories")
        summary = clusters.run(config.clusters, losses, out, seed=3, progress=Progress("clusters"))
        return out.finish(summary, 1.0)

    def test_scales_are_in_the_manifest_and_files_are_those_of_one_process(self, folder, config):
        files = write_parts(folder / "trajectories", SEVEN_PARTS)
        manifest = self.finish(folder, config)
        expected, content = clustered(folder / "alone", files, config.clusters)

        scales = scales_of(files, config.clusters)
        told = {name: scale.as_json() for name, scale in scales.items()}
        assert manifest.summary == {**expected, "scales": told}
        assert content == {name: (folder / "clusters" / name).read_bytes() for name in content}

    def test_rows_of_an_extension_are_scaled_by_what_is_stored(self, folder, config):
        known = [row for row in range(NUM_ROWS) if STRATA[row] != "chat"]
        write_parts(folder / "trajectories", [known])
        base = BaseRun(folder, config, {"clusters": self.finish(folder, config)})
        extension = Extension(folder, 1, ("new",))
        write_parts(extension.folder("trajectories"), SEVEN_PARTS, loss_NT=NEW_NT)
        out = StageDir(extension.folder("clusters"), "clusters", {})
        summary = json.loads(
            json.dumps(placing.place(base, [extension], out, Progress("clusters"), moves=False))
        )

        before, scales = base.summary("clusters")["scales"], summary["scales"]
        assert {name: scales[name] for name in before} == before
        assert set(scales) - set(before) == {"chat"} == set(summary["new_strata"])
        chat = np.array([stratum == "chat" for stratum in STRATA])
        np.testing.assert_allclose(scales["chat"]["mean"], NEW_NT[chat].mean(axis=0), rtol=1e-5)
        self.check_places(out.location, summary)

    def check_places(self, place, summary):
        """Every new row is nearest to its centroid among those of its stratum."""
        centroid_KT, of_K = centroids(place).astype(float), np.array(summary["stratum_of_cluster"])
        for row, item in enumerate(labels(place).to_pylist()):
            scale = summary["scales"][item["stratum"]]
            value_T = (NEW_NT[row].astype(float) - scale["mean"]) / scale["deviation"]
            sqdist_K = ((value_T - centroid_KT) ** 2).sum(axis=1)
            sqdist_K[of_K != item["stratum"]] = np.inf
            assert item["example_id"] == IDS[row] and item["cluster"] == sqdist_K.argmin()
            assert item["sqdist"] == pytest.approx(sqdist_K.min(), rel=1e-4, abs=1e-9)
