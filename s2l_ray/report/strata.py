"""Strata in the report: how many examples of each are in the pool and in the subset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s2l_ray.artifacts.finished import Finished
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.sections import RunConfig
from s2l_ray.selection.declaration import SELECTION

MAX_STRATA = 100
"""Number of lines in the table of strata."""


STRATUM = "stratum"
"""What strata are called where no field of the rows names them."""


def stratum_label(config: RunConfig) -> str:
    """Return what the page calls strata: the field that names them, or what they are."""
    if config.clusters is not None and config.clusters.strata == "auto":
        return "found stratum"
    if config.data is None or config.imports_trajectories:
        return STRATUM
    return config.data.fields.stratum or STRATUM


@dataclass(frozen=True)
class StratumLine:
    """Examples of one stratum in the pool and in the subset."""

    name: str
    num_examples: int
    num_selected: int
    num_clusters: int | None = None
    """None if clusters span several strata."""


def strata_lines(
    finished: Mapping[str, Finished], strata_of: Mapping[int, Counter[str]]
) -> list[StratumLine]:
    """Return pool and subset by stratum; empty without a selection or without strata.

    Args:
        strata_of: cluster -> its examples by stratum; empty if each cluster lies inside one.
    """
    if not {CLUSTERS.name, SELECTION.name} <= finished.keys():
        return []
    selected = finished[SELECTION.name].summary["strata"]
    pool = _pool_strata(finished[CLUSTERS.name], strata_of)
    if pool.keys() <= {""}:
        return []
    names = Counter(finished[CLUSTERS.name].summary["stratum_of_cluster"])
    return [
        StratumLine(name, pool[name], selected.get(name, 0), names[name] if any(names) else None)
        for name in sorted(pool)
    ]


def folded(strata: Sequence[StratumLine]) -> list[StratumLine]:
    """Return the strata, largest first; beyond MAX_STRATA lines the rest share the last one."""
    ordered = sorted(strata, key=lambda line: (-line.num_examples, line.name))
    if len(ordered) <= MAX_STRATA:
        return ordered
    rest = ordered[MAX_STRATA - 1 :]
    num_examples = sum(line.num_examples for line in rest)
    num_selected = sum(line.num_selected for line in rest)
    counted = [line.num_clusters for line in rest if line.num_clusters is not None]
    last = StratumLine(
        f"{len(rest):,} smaller strata",
        num_examples,
        num_selected,
        sum(counted) if counted else None,
    )
    return [*ordered[: MAX_STRATA - 1], last]


def _pool_strata(clusters: Finished, strata_of: Mapping[int, Counter[str]]) -> Counter[str]:
    """Count the examples of each stratum, by cluster sizes if no cluster spans several strata."""
    names = clusters.summary["stratum_of_cluster"]
    if not any(names):
        return sum(strata_of.values(), Counter[str]())
    counts: Counter[str] = Counter()
    for name, size in zip(names, clusters.summary["size_of_cluster"], strict=True):
        counts[name] += size
    return counts
