"""The arms of a comparison: a method, a budget and a seed, and the subset that they give.

Clusters are made again for every seed, in `comparison/clusters/`, in a folder that is named after
all that shapes them; clusters of the run itself are used where they are the same.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.stage import RunPlan
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.comparison.variants import Variant
from s2l_ray.config.budgets import Budget
from s2l_ray.data.declaration import PREPARE
from s2l_ray.progress import Progress
from s2l_ray.selection import columns, conditions, ranking, summaries
from s2l_ray.selection import stage as selection
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import TRAJECTORIES

ALL_DATA, NO_TRAINING = "all-data", "no-training"
"""The arms beside the methods: the whole pool, and the target as it begins."""
SUBSETS = "subsets"
"""The folder of the files of rows, in that of a comparison, while it is made."""


@dataclass(frozen=True)
class Arm:
    """One row of a comparison before it is trained.

    Attributes:
        label: its name in tables.
        method: the name of the method, ALL_DATA or NO_TRAINING.
        settings: in what the method differs from the run's own.
        budget: as asked for; "" if there is none.
        seed: of the repetition.
        subset: a hash of the ids of the selected examples; "" for no training.
        num_rows: examples.
        seconds_selecting: time of all that the selection needs.
        flops_selecting: operations of the same, in models.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    budget: str
    seed: int
    subset: str
    num_rows: int
    seconds_selecting: float = 0.0
    flops_selecting: float = 0.0

    @property
    def name(self) -> str:
        """Return label and budget."""
        return f"{self.label}, {self.budget}" if self.budget else self.label


@dataclass(frozen=True)
class Cost:
    """Time and operations."""

    seconds: float
    flops: float


@dataclass(frozen=True)
class Selector:
    """Chooses subsets of a run whose trajectories are finished.

    Attributes:
        plan: the steps of the run.
        folder: of the comparison.
        scoring: cost of the reference and of the trajectories.
    """

    plan: RunPlan
    folder: Location
    scoring: Cost

    def clusters_of(self, variant: Variant, seed: int) -> StageDir:
        """Return the folder of the clusters that a method chooses from; they may not exist yet."""
        own = next(step for step in self.plan.steps if step.stage == CLUSTERS.name).out
        if not variant.follows_clusters:
            return own
        inputs = CLUSTERS.task(self._planned(variant, seed), "").inputs
        wanted = CLUSTERS.directory(self.folder, inputs)
        if wanted.fingerprint == own.fingerprint:
            return own
        location = self.folder / CLUSTERS.folder / wanted.fingerprint
        return replace(wanted, location=location)

    def make_clusters(self, variant: Variant, seed: int) -> None:
        """Cluster the trajectories for `clusters_of`; Ray must be connected."""
        out = self.clusters_of(variant, seed)
        task = CLUSTERS.task(self._planned(variant, seed), "")
        started = time.monotonic()
        out.begin()
        with Progress(f"clusters ({variant.label}, seed {seed})") as progress:
            summary = task.fill(out, progress)
        out.finish(summary, time.monotonic() - started)

    def _planned(self, variant: Variant, seed: int) -> RunPlan:
        """Return a plan whose clusters are those of the variant; losses are those of the run."""
        return replace(self.plan, config=variant.config.model_copy(update={"seed": seed}))

    def arms(
        self, variant: Variant, seed: int, budgets: Sequence[Budget]
    ) -> Iterator[tuple[Arm, Location]]:
        """Yield the arm of every budget, and the file of its rows, which is written."""
        clustered = self.clusters_of(variant, seed)
        manifest = clustered.manifest()
        assert manifest is not None, f"{clustered.location} is not finished"
        cost = self.scoring if needs_scoring(variant) else Cost(0.0, 0.0)
        clustering = manifest.seconds if variant.follows_clusters else 0.0
        rows = self.plan.parts(PREPARE, "rows")
        sources = columns.Sources(Parts(clustered.location), self.plan.parts(TRAJECTORIES), rows)
        started = time.monotonic()
        pool = selection.load_pool(sources.clusters)
        before = cost.seconds + clustering + time.monotonic() - started
        for budget in budgets:
            started = time.monotonic()
            section = variant.selection.model_copy(update={"budget": budget})
            chosen = selection.rank(pool, section, sources, seed=seed).subset_R
            seconds = before + time.monotonic() - started
            keys = pool.key_N[chosen]
            arm = Arm(
                variant.label, variant.method, variant.settings, name_of(budget), seed,
                digest_of(keys), len(keys), seconds, cost.flops,
            )  # fmt: skip
            yield arm, self._written(arm.subset, keys)

    def whole_pool(self) -> tuple[str, int, Location]:
        """Return the hash, the number and the file of all rows, which is written."""
        own = next(step for step in self.plan.steps if step.stage == CLUSTERS.name).out
        keys = selection.load_pool(Parts(own.location)).key_N
        digest = digest_of(keys)
        return digest, len(keys), self._written(digest, keys)

    def _written(self, digest: str, keys: np.ndarray) -> Location:
        """Write the rows with these keys, unless they are there already."""
        section = self.plan.config.selection
        file = self.folder / SUBSETS / f"{digest}.{section.format if section else 'jsonl'}"
        if not file.exists():
            selection.write_selected(keys, self.plan.parts(PREPARE, "rows"), file)
        return file


def needs_scoring(variant: Variant) -> bool:
    """Tell whether a method cannot do without the reference."""
    section = variant.selection
    numbers = ranking.numbers_needed(section) - columns.BEFORE_SCORING
    if section.where is not None:
        read = {path[0] for path in conditions.parsed(section.where).names}
        numbers |= read & set(summaries.SUMMARIES)
    return variant.follows_clusters or bool(METHODS[variant.method].vectors or numbers)


def name_of(budget: Budget) -> str:
    """Return a budget as tables name it: 50000, 0.11, 20M tokens."""
    return budget if isinstance(budget, str) else json.dumps(budget)


def digest_of(keys: np.ndarray) -> str:
    """Return a hash of a set of examples, whatever their order."""
    return hashlib.sha256(np.sort(keys).astype("<u8").tobytes()).hexdigest()[:16]
