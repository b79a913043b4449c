"""The section `clusters` of a run file."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from s2l_ray.config.section import Section

MOST_CLUSTERS = 256
"""The largest number that `clusters.num_clusters: auto` chooses, in one stratum or over all."""
ROWS_PER_STRATUM = 100
"""Rows for each of the strata that `clusters.strata: auto` finds, on average and at least: four
clusters of the default `rows_per_cluster`."""


FINDS_KINDS = (
    "where rows are of many kinds, S2L over all of them can lose to random choice; clusters: "
    "{strata: auto} with trajectories: {embeddings: true} finds the kinds first (docs/methods.md)"
)
"""What to know of a pool in which no field tells kinds of rows apart."""


def found_name(number: int) -> str:
    """Return the name of the found stratum with this number, from 0: found-01, found-02, ..."""
    return f"found-{number + 1:02d}"


class ClustersConfig(Section):
    """Groups of loss trajectories, made by k-means (S2L, arXiv:2403.07384)."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers"})
    added: ClassVar[frozenset[str]] = frozenset({"scaling", "strata", "num_strata"})
    as_before: ClassVar[Mapping[str, Any]] = {"rows_per_cluster": 1}

    method: Literal["minibatch", "authors"] = "minibatch"
    """minibatch: from a sample over growing mini-batches to all rows. authors: fitted to a sample
    alone, starting from random rows, as the authors' code does."""
    scaling: Literal["raw", "standardised", "shape"] = "raw"
    """The form in which trajectories are compared. raw: their losses, as in the paper.
    standardised: losses of each checkpoint with mean 0 and variance 1, in each stratum or over
    all. shape: each trajectory without its level and size."""
    strata: Literal["field", "auto"] = "field"
    """field: the strata of `data.fields.stratum`. auto: strata that k-means finds in the embeddings
    of the last checkpoint (`trajectories.embeddings: true`), where no field says what is alike.
    They replace those of the field in all later stages; held-out rows keep theirs."""
    num_strata: PositiveInt = 24
    """Strata that `strata: auto` finds; fewer in a pool with less than 100 rows for each."""
    num_clusters: PositiveInt | Literal["auto"] = 100
    """Clusters over all, or in each stratum; fewer if fewer trajectories differ, or if
    `rows_per_cluster` asks for it. auto: as many, up to 256, as still tell trajectories apart."""
    rows_per_cluster: PositiveInt = 25
    """With fewer rows than this for each of `num_clusters`, on average, minibatch makes fewer
    clusters, over all or in the stratum. A cluster of one row says nothing. 1: never fewer."""
    per_stratum: bool = True
    """Run k-means inside each stratum, as the authors' code does, instead of over all."""
    rows_per_sample: PositiveInt | None = None
    """Rows of the sample, in each stratum or over all. minibatch fits its start to the sample, and
    then goes on with batches, each four times as large as the one before, up to all rows; authors
    fits everything to it. Default: 25,600, or for minibatch 25 for each cluster if that is more."""
    tolerance: NonNegativeFloat = 3.0e-4
    """Sweeps over a batch end when the next one would lower its inertia by no more than this share.
    With 3e-5 centroids are nearer to a fixed point; with 0 they reach it."""
    lloyd_sweeps: Annotated[int, Field(ge=1)] = 20
    """Most sweeps over all rows (minibatch) or over the sample (authors)."""
    workers: PositiveInt = 1
    """Actors that hold the trajectories in memory, each its share. Without a cluster, losses of up
    to 2 GB are clustered by threads of the program itself, one for each CPU; the results are the
    same."""

    def clusters_of(self, num_rows: int) -> "int | Literal['auto']":
        """Return how many clusters `num_rows` rows get, of a stratum or of all."""
        if self.num_clusters == "auto" or not self.may_make_fewer:
            return self.num_clusters
        return min(self.num_clusters, max(num_rows // self.rows_per_cluster, 1))

    def strata_of(self, num_rows: int) -> int:
        """Return how many strata `strata: auto` finds in so many rows."""
        return min(self.num_strata, max(num_rows // ROWS_PER_STRATUM, 1))

    @property
    def may_make_fewer(self) -> bool:
        """Tell whether `rows_per_cluster` has an effect."""
        return self.num_clusters != "auto" and self.method != "authors"

    @property
    def sample_size(self) -> int:
        """The rows of the sample that a start is fitted to."""
        if self.rows_per_sample is not None:
            return self.rows_per_sample
        most = MOST_CLUSTERS if self.num_clusters == "auto" else self.num_clusters
        # With few rows for a cluster, its centroid starts far from where it belongs.
        return max(25_600, most * (25 if self.method == "minibatch" else 1))

    @model_validator(mode="after")
    def _fits(self) -> "ClustersConfig":
        changed = self.scaling != "raw" or self.num_clusters == "auto"
        if self.method == "authors" and changed:
            raise ValueError(
                "`method: authors` is the k-means of the authors' code, which scales nothing and "
                "needs a number of clusters: leave `scaling` raw and give `num_clusters` a "
                "number, or take `method: minibatch`"
            )
        if self.num_clusters != "auto" and self.sample_size < self.num_clusters:
            raise ValueError(
                f"rows_per_sample ({self.sample_size:,}) is below num_clusters "
                f"({self.num_clusters:,})"
            )
        return self
