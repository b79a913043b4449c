"""What the page shows of a run's extensions."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OldAndNew:
    """A quantile of the distance to the own centroid, of old and of new rows."""

    old: float
    new: float


@dataclass(frozen=True)
class ExtensionLine:
    """One extension; what is None is not known, or not yet."""

    name: str
    num_new: int
    num_known: int
    num_rejected: int
    num_clusters_used: int | None = None
    """Those that hold its rows, or any rows where all of them were placed anew."""
    num_clusters: int | None = None
    updated: bool = False
    """Whether all rows were placed in moved clusters."""
    median_distance: OldAndNew | None = None
    p95_distance: OldAndNew | None = None
    share_beyond_p95: float | None = None
    """Of new rows."""
    reclustering: str = ""
    """Whether it is due; empty where nothing was judged."""


@dataclass(frozen=True)
class ExtensionsView:
    """The extensions in their order, whether the newest rows fit, and what keeps them from use."""

    lines: Sequence[ExtensionLine]
    fit: str = ""
    hindrance: str = ""
    unit: str = "nats"
    """Of distances."""
