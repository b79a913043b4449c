"""Clusters: what comes out depends on the trajectories, never on who held them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, part_name, trajectory_table
from s2l_ray.clusters import held_rows, kmeans
from s2l_ray.clusters import stage as clusters
from s2l_ray.clusters.worker import START, ClusterWorker
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.threads import ThreadFleet
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location

NUM_ROWS, NUM_CHECKPOINTS = 230, 4
RNG = np.random.default_rng(5)
LOSS_NT = RNG.gamma(2.0, size=(NUM_ROWS, NUM_CHECKPOINTS)).astype(np.float32)
IDS = [f"e{number}" for number in range(NUM_ROWS)]
STRATA = [("math", "code", "chat")[number % 3] for number in range(NUM_ROWS)]
METHODS = ("minibatch", "authors")
SEVEN_PARTS = np.array_split(np.arange(NUM_ROWS), 7)


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


def write_parts(folder, parts, loss_NT=LOSS_NT, ids=IDS, strata=STRATA) -> list[Location]:
    """Each part holds the rows that it lists, in that order."""
    for number, rows in enumerate(parts):
        table = trajectory_table(
            pa.array([ids[row] for row in rows], pa.string()),
            pa.array([strata[row] for row in rows], pa.string()),
            loss_NT[np.asarray(rows, dtype=int)],
        )
        (folder / part_name(number)).write_table(table)
    return Parts(folder).files()


def settings(**changes: Any) -> ClustersConfig:
    """So small that mini-batches and several Lloyd sweeps take place."""
    usual = {"num_clusters": 5, "rows_per_sample": 40, "tolerance": 0.0, "rows_per_cluster": 1}
    return ClustersConfig(**{**usual, **changes})


def fleet_of(
    files: list[Location], config: ClustersConfig, shards=None, seed: int = 3, scales=None
):
    """A fleet in which shard i is the numbers of the parts that worker i holds."""
    shards = shards or [range(len(files))]
    shares = [{number: files[number] for number in shard} for shard in shards]
    return in_process([ClusterWorker(share, config, seed, scales) for share in shares])


def in_process(workers: list[Any]) -> ThreadFleet:
    """These workers as a fleet in this process."""
    return ThreadFleet(resources.threads("clusters"), workers, ["a worker"] * len(workers))


def clustered(folder, files, config, shards=None, seed: int = 3) -> tuple[dict[str, Any], Any]:
    """The summary, and the content of every file that was written."""
    fleet = fleet_of(files, config, shards, seed)
    summary = clusters.cluster(fleet, config, folder, progress=Progress("clusters"))
    return summary, {name: (folder / name).read_bytes() for name in folder.names()}


class Counted(Progress):
    """Shows nothing, and knows how many units are done."""

    done = 0

    def update(self, done: int, tokens: int = 0, note: str = "") -> None:
        self.done += done


def sampled_rows(config: ClustersConfig, seed: int) -> list[int]:
    """The rows with the largest hashes, which are drawn first, of each stratum or of all."""
    key_N = hashing.mixed(hashing.example_keys(IDS), seed, held_rows.SAMPLE)
    strata = np.array(STRATA) if config.per_stratum else np.array([""] * NUM_ROWS)
    return [
        row
        for name in np.unique(strata)
        for row in sorted(np.flatnonzero(strata == name), key=lambda row: -int(key_N[row]))[
            : config.rows_per_sample
        ]
    ]


def labels(folder: Location) -> pa.Table:
    return pa.concat_tables(Parts(folder).tables())


def centroids(folder: Location) -> np.ndarray:
    with (folder / "_centroids.npy").local() as path:
        return np.load(path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_stratum", [True, False])
@pytest.mark.parametrize(
    "shards",
    [
        [[0, 1, 2, 3, 4, 5, 6]],
        [[6, 2, 0, 5, 1, 4, 3]],
        [[1, 3, 5], [0, 2, 4, 6]],
        [[6], [5], [4], [3], [2], [1], [0]],
        [[0, 1, 2, 3, 4, 5, 6], []],
    ],
)
def test_every_byte_is_the_same_whoever_holds_which_parts(folder, shards, per_stratum, method):
    config = settings(per_stratum=per_stratum, method=method)
    files = write_parts(folder / "in", SEVEN_PARTS)

    expected = clustered(folder / "one", files, config)
    found = clustered(folder / "other", files, config, shards)

    assert found == expected
    assert len(expected[1]) == 8  # seven parts and the centroids


@pytest.mark.parametrize("method", METHODS)
def test_centroids_and_labels_do_not_depend_on_how_rows_lie_in_parts(folder, method):
    config = settings(method=method)
    shuffled = np.random.default_rng(0).permutation(NUM_ROWS)
    files = write_parts(folder / "in", SEVEN_PARTS)
    others = write_parts(folder / "other_in", np.array_split(shuffled, 3))

    summary, content = clustered(folder / "one", files, config)
    other_summary, other_content = clustered(folder / "other", others, config)

    assert content["_centroids.npy"] == other_content["_centroids.npy"]
    assert labels(folder / "one").sort_by("example_id") == labels(folder / "other").sort_by(
        "example_id"
    )
    assert summary["size_of_cluster"] == other_summary["size_of_cluster"]
    assert summary["inertia"] == pytest.approx(other_summary["inertia"], rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_trajectory_is_in_the_cluster_of_its_stratum_that_is_nearest(folder, method):
    files = write_parts(folder / "in", SEVEN_PARTS)
    summary, _ = clustered(folder / "out", files, settings(method=method))

    table, centroid_KT = labels(folder / "out"), centroids(folder / "out").astype(np.float64)
    sqdist_NK = ((LOSS_NT.astype(np.float64)[:, None] - centroid_KT) ** 2).sum(axis=2)
    of_other_stratum_NK = np.array(STRATA)[:, None] != np.array(summary["stratum_of_cluster"])
    sqdist_NK[of_other_stratum_NK] = np.inf
    np.testing.assert_array_equal(table["cluster"].to_numpy(), sqdist_NK.argmin(axis=1))
    np.testing.assert_allclose(table["sqdist"].to_numpy(), sqdist_NK.min(axis=1), rtol=1e-6)
    assert summary["inertia"] == pytest.approx(sqdist_NK.min(axis=1).sum())
    assert summary["size_of_cluster"] == np.bincount(table["cluster"].to_numpy()).tolist()
    assert table["example_id"].to_pylist() == IDS
    assert table["stratum"].to_pylist() == STRATA
    assert table.schema.types == [pa.string(), pa.string(), pa.int32(), pa.float32()]


def test_clusters_are_numbered_through_all_strata(folder):
    summary, _ = clustered(folder / "out", write_parts(folder / "in", SEVEN_PARTS), settings())

    assert summary["stratum_of_cluster"] == ["chat"] * 5 + ["code"] * 5 + ["math"] * 5
    assert summary["num_clusters"] == 15 and summary["rows"] == NUM_ROWS
    table = labels(folder / "out")
    for stratum, cluster in zip(table["stratum"], table["cluster"], strict=True):
        assert summary["stratum_of_cluster"][cluster.as_py()] == stratum.as_py()


def test_over_all_clusters_are_those_of_one_stratum_that_holds_everything(folder):
    one_stratum = write_parts(folder / "one_in", SEVEN_PARTS, strata=["x"] * NUM_ROWS)
    several = write_parts(folder / "in", SEVEN_PARTS)

    summary, content = clustered(folder / "one", one_stratum, settings(per_stratum=True))
    over_all, content_over_all = clustered(folder / "all", several, settings(per_stratum=False))

    assert content["_centroids.npy"] == content_over_all["_centroids.npy"]
    assert labels(folder / "one")["cluster"] == labels(folder / "all")["cluster"]
    assert over_all["stratum_of_cluster"] == [""] * 5
    assert summary["stratum_of_cluster"] == ["x"] * 5
    assert labels(folder / "all")["stratum"].to_pylist() == STRATA


def test_converged_centroids_are_the_means_of_their_clusters(folder):
    summary, _ = clustered(
        folder / "out", write_parts(folder / "in", SEVEN_PARTS), settings(lloyd_sweeps=100)
    )

    cluster_N = labels(folder / "out")["cluster"].to_numpy()
    mean_KT = [LOSS_NT[cluster_N == k].mean(axis=0) for k in range(summary["num_clusters"])]
    assert summary["converged"] and summary["lloyd_sweeps"] < 100
    np.testing.assert_allclose(centroids(folder / "out"), mean_KT, rtol=1e-5)


@pytest.mark.parametrize("per_stratum", [True, False])
def test_authors_centroids_are_fitted_to_the_sample_alone(folder, per_stratum):
    config = settings(method="authors", per_stratum=per_stratum)
    sampled = sampled_rows(config, seed=3)
    others = np.setdiff1d(np.arange(NUM_ROWS), sampled)
    loss_NT = LOSS_NT.copy()
    loss_NT[others] += 1

    _, content = clustered(folder / "one", write_parts(folder / "in", SEVEN_PARTS), config)
    files = write_parts(folder / "other_in", SEVEN_PARTS, loss_NT=loss_NT)
    _, without_others = clustered(folder / "two", files, config)
    loss_NT[sampled[0]] += 1
    files = write_parts(folder / "changed_in", SEVEN_PARTS, loss_NT=loss_NT)
    _, with_another = clustered(folder / "three", files, config)

    assert content["_centroids.npy"] == without_others["_centroids.npy"]
    assert content["_centroids.npy"] != with_another["_centroids.npy"]


def test_authors_centroids_are_those_of_scikit_learn(folder):
    cluster = pytest.importorskip("sklearn.cluster")
    config = settings(method="authors", per_stratum=False, rows_per_sample=10**6)
    summary, _ = clustered(folder / "out", write_parts(folder / "in", SEVEN_PARTS), config)

    start_KT = kmeans.random_rows(LOSS_NT, 5, 3 + START)
    theirs = cluster.KMeans(5, init=start_KT, n_init=1, max_iter=20, tol=0).fit(LOSS_NT)
    np.testing.assert_allclose(centroids(folder / "out"), theirs.cluster_centers_, rtol=1e-5)
    assert summary["inertia"] == pytest.approx(theirs.inertia_, rel=1e-5)
    assert summary["lloyd_sweeps"] == theirs.n_iter_


@pytest.mark.parametrize(("method", "total"), [("minibatch", 2 + 1), ("authors", 2 + 1)])
def test_every_sweep_is_counted_and_said(folder, method, total):
    files = write_parts(folder / "in", SEVEN_PARTS)
    progress = Counted("clusters")
    config = settings(method=method, lloyd_sweeps=2)
    summary = clusters.cluster(fleet_of(files, config), config, folder / "out", progress=progress)

    assert (summary["lloyd_sweeps"], summary["converged"]) == (2, False)
    assert (progress.done, progress.total) == (total, total)


def test_authors_sweeps_are_those_of_the_stratum_that_took_most(folder):
    # The only two trajectories of `few` are at rest at once.
    strata = ["few" if row in (4, 100) else "many" for row in range(NUM_ROWS)]
    files = write_parts(folder / "in", SEVEN_PARTS, strata=strata)
    short, _ = clustered(folder / "a", files, settings(method="authors", lloyd_sweeps=3))
    enough, _ = clustered(folder / "b", files, settings(method="authors", lloyd_sweeps=100))

    assert (short["lloyd_sweeps"], short["converged"]) == (3, False)
    assert 3 < enough["lloyd_sweeps"] < 100 and enough["converged"]


@pytest.mark.parametrize("per_stratum", [True, False])
def test_quality_is_high_where_clusters_are_far_apart_and_low_in_noise(folder, per_stratum):
    apart_NT = np.repeat([[0.0], [10], [20], [40], [70]], NUM_ROWS // 5, axis=0) + LOSS_NT / 100
    config = settings(per_stratum=per_stratum)
    apart, _ = clustered(
        folder / "a", write_parts(folder / "a_in", SEVEN_PARTS, apart_NT.astype("f4")), config
    )
    noise, _ = clustered(folder / "b", write_parts(folder / "b_in", SEVEN_PARTS), config)

    assert apart["silhouette"] > 0.98 and apart["stability"] == pytest.approx(1)
    assert 0 < noise["silhouette"] < 0.5 and noise["stability"] < 0.9


def test_another_seed_finds_other_centroids(folder):
    files = write_parts(folder / "in", SEVEN_PARTS)
    _, content = clustered(folder / "one", files, settings(), seed=3)
    _, other = clustered(folder / "two", files, settings(), seed=4)

    assert content["_centroids.npy"] != other["_centroids.npy"]


@pytest.mark.parametrize("method", METHODS)
def test_a_small_stratum_gets_as_many_clusters_as_it_has_distinct_trajectories(folder, method):
    strata = ["tiny" if row in (4, 100, 201) else "large" for row in range(NUM_ROWS)]
    files = write_parts(folder / "in", SEVEN_PARTS, strata=strata)
    summary, _ = clustered(folder / "out", files, settings(method=method))

    assert summary["shrunk_strata"] == {"tiny": 3}
    assert summary["stratum_of_cluster"] == ["large"] * 5 + ["tiny"] * 3
    tiny = labels(folder / "out").filter(pc.field("stratum") == "tiny")
    assert sorted(tiny["cluster"].to_pylist()) == [5, 6, 7]
    assert tiny["sqdist"].to_pylist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_equal_trajectories_form_one_cluster(folder, method):
    files = write_parts(folder / "in", SEVEN_PARTS, loss_NT=np.full_like(LOSS_NT, 1.5))
    config = settings(per_stratum=False, method=method)
    summary, _ = clustered(folder / "out", files, config)

    assert summary["num_clusters"] == 1 and summary["size_of_cluster"] == [NUM_ROWS]
    assert summary["inertia"] == 0
    np.testing.assert_array_equal(centroids(folder / "out"), [[1.5] * NUM_CHECKPOINTS])


@pytest.mark.parametrize("method", METHODS)
def test_trajectories_of_one_checkpoint_are_clustered(folder, method):
    loss_N1 = np.repeat([0.5, 2.0, 7.0], 20).astype(np.float32)[:, None]
    files = write_parts(
        folder / "in", np.array_split(np.arange(60), 4), loss_N1, IDS[:60], STRATA[:60]
    )
    config = settings(num_clusters=3, per_stratum=False, method=method)
    summary, _ = clustered(folder / "out", files, config)

    assert sorted(centroids(folder / "out")[:, 0].tolist()) == [0.5, 2.0, 7.0]
    assert summary["size_of_cluster"] == [20, 20, 20]


def test_a_part_without_rows_stays_a_part_without_rows(folder):
    with_empty = [SEVEN_PARTS[0], [], *SEVEN_PARTS[1:]]
    files = write_parts(folder / "in", with_empty)
    _, expected = clustered(folder / "one", write_parts(folder / "full", SEVEN_PARTS), settings())
    _, content = clustered(folder / "out", files, settings(), [[1], [0, 2, 3, 4, 5, 6, 7]])

    assert content["_centroids.npy"] == expected["_centroids.npy"]
    assert (folder / "out" / part_name(1)).read_table().num_rows == 0
    assert labels(folder / "out") == labels(folder / "one")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_a_loss_that_is_not_a_loss_is_refused_and_its_example_named(folder, bad):
    loss_NT = LOSS_NT.copy()
    loss_NT[40, 2] = loss_NT[42, 0] = bad
    files = write_parts(folder / "in", SEVEN_PARTS, loss_NT=loss_NT)

    with pytest.raises(DataError, match=r"2 trajectories in part-000001\.parquet .*e40, e42\)"):
        clustered(folder / "out", files, settings())
    assert (folder / "out").names() == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    @pytest.mark.parametrize("method", METHODS)
    def test_one_worker_and_two_write_the_bytes_of_an_in_process_fleet(self, folder, method):
        files = write_parts(folder / "in", SEVEN_PARTS)
        expected = clustered(folder / "out", files, settings(method=method))

        for workers in (1, 2):
            out = StageDir(folder / f"{workers}", "clusters", {})
            with Progress("clusters") as progress:
                summary = clusters.run(
                    settings(workers=workers, method=method),
                    Parts(folder / "in"),
                    out,
                    seed=3,
                    progress=progress,
                )
            names = out.location.names()
            content = {name: (out.location / name).read_bytes() for name in names}
            assert (summary, content) == expected

    def test_what_a_worker_refuses_reaches_the_user(self, folder):
        write_parts(folder / "in", SEVEN_PARTS, loss_NT=np.full_like(LOSS_NT, np.nan))
        out = StageDir(folder / "out", "clusters", {})

        with pytest.raises(DataError, match="33 trajectories in part-00000"):
            clusters.run(
                settings(), Parts(folder / "in"), out, seed=3, progress=Progress("clusters")
            )

    def test_a_pool_without_a_trajectory_is_refused(self, folder):
        write_parts(folder / "in", [[]])
        out = StageDir(folder / "out", "clusters", {})

        with pytest.raises(DataError, match=r"there are no trajectories in .*/in"):
            clusters.run(
                settings(), Parts(folder / "in"), out, seed=3, progress=Progress("clusters")
            )
