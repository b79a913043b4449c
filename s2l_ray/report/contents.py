"""Everything that the page shows of a run, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.report.cluster_cards import ClusterCard
from s2l_ray.report.clusters import ClusterView
from s2l_ray.report.comparison import ComparisonView
from s2l_ray.report.examples import ExampleRow
from s2l_ray.report.extensions import ExtensionsView
from s2l_ray.report.lengths import Lengths
from s2l_ray.report.provenance import Provenance
from s2l_ray.report.strata import STRATUM, StratumLine


@dataclass(frozen=True)
class StageLine:
    """A finished stage; `summary` holds the counts that the page shows."""

    name: str
    seconds: float
    finished: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    notes: Sequence[str] = ()
    """What the stage said besides, such as rows that are like a prompt of an evaluation set."""


@dataclass(frozen=True)
class PoolCounts:
    """Counts of the input rows; `num_duplicates` is None if repeated content was not counted."""

    num_rows: int
    num_kept: int
    num_rejected_by_reason: Mapping[str, int]
    num_tokens: int
    num_duplicates: int | None = None
    num_cut: int = 0
    """Examples that lose the end of a response, because they are longer than data.max_tokens."""


Measured = tuple[float | None, float | None, float | None]
"""A mean and the ends of its interval; None means not measured."""


@dataclass(frozen=True)
class ArmScore:
    """One arm on one set: means with the ends of their intervals; None means not measured."""

    set: str
    arm: str
    num_items: int
    loss_nats: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    exact_match: float | None = None
    exact_match_low: float | None = None
    exact_match_high: float | None = None
    num_strata: int = 1
    """If above one, the means are over strata, each of which counts the same."""
    further: Mapping[str, Measured] = field(default_factory=dict)
    """Shares by the names of their metrics."""


@dataclass(frozen=True)
class Comparison:
    """The mean of `arm` minus `baseline` over items, and its interval: of losses, or of shares."""

    set: str
    metric: str
    arm: str
    baseline: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the page shows; a part that is None or empty is left out."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageLine] = ()
    counts: PoolCounts | None = None
    lengths: Lengths | None = None
    clusters: ClusterView | None = None
    strata: Sequence[StratumLine] = ()
    stratum_label: str = STRATUM
    extensions: ExtensionsView | None = None
    curve: Sequence[tuple[int, float]] = ()
    """Steps of the reference's training, each with the mean loss since the step before it."""
    target_curve: Sequence[tuple[int, float]] = ()
    """The same of the target."""
    held_out: Sequence[tuple[int, Mapping[str, float]]] = ()
    """Steps of the target's training, each with the mean loss of held-out sets after it."""
    evaluation: Sequence[ArmScore] = ()
    comparisons: Sequence[Comparison] = ()
    comparison: ComparisonView | None = None
    """The table of `s2l compare`; the page then begins with it."""
    confidence: float = 0.95
    """The confidence of every interval on the page."""
    cards: Sequence[ClusterCard] = ()
    examples: Sequence[ExampleRow] = ()
    provenance: Provenance = field(default_factory=Provenance)


def set_title(name: str, scores: Sequence[ArmScore]) -> str:
    """Return the name of an evaluation set; with several strata, also that they count the same."""
    num_strata = max(score.num_strata for score in scores)
    return (
        f"{name}: means of {num_strata:,} strata, each counting the same"
        if num_strata > 1
        else name
    )
