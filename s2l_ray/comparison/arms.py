"""The arms of a comparison: a method, a budget and a seed, and the subset that they give.

Clusters are made again for every seed, in `comparison/clusters/`, in a folder that is named after
all that shapes them; clusters of the run itself are used where they are the same.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from s2l_ray.artifacts.manifest import StageDir, fingerprint
from s2l_ray.artifacts.stage import RunPlan
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.comparison.variants import Variant, names_read
from s2l_ray.config.budgets import Budget
from s2l_ray.data.declaration import PREPARE
from s2l_ray.progress import Progress
from s2l_ray.selection import columns, ranking, summaries
from s2l_ray.selection import stage as selection
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.input_files import InputFile, content_hash
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import TRAJECTORIES

ALL_DATA, NO_TRAINING = "all-data", "no-training"
"""The arms beside the methods: the whole pool, and the target as it begins."""
SUBSETS = "subsets"
"""The folder of records of what subsets hold, in that of a comparison."""
ROWS = "rows"
"""The folder of the rows of subsets, in that of a comparison, while their trials are made."""


@dataclass(frozen=True)
class Arm:
    """One row of a comparison before it is trained.

    Attributes:
        label: its name in tables.
        method: the name of the method, ALL_DATA or NO_TRAINING.
        settings: in what the method differs from the run's own.
        budget: as asked for; "" if there is none.
        seed: of the repetition.
        key: a hash of all that decides the subset; "" for no training.
        subset: a hash of the selected rows; "" for no training.
        num_rows: examples.
        seconds_selecting: time of all that the selection needs.
        flops_selecting: operations of the same, in models.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    budget: str
    seed: int
    key: str = ""
    subset: str = ""
    num_rows: int = 0
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
        own = self._own_clusters
        if not (variant.needs_clusters or variant.has_own_strata):
            return own
        inputs = CLUSTERS.task(self._clustering(variant, seed), "").inputs
        wanted = CLUSTERS.directory(self.folder, inputs)
        if wanted.fingerprint == own.fingerprint:
            return own
        location = self.folder / CLUSTERS.folder / wanted.fingerprint
        return replace(wanted, location=location)

    def make_clusters(self, variant: Variant, seed: int) -> None:
        """Cluster the trajectories for `clusters_of`; Ray must be connected."""
        out = self.clusters_of(variant, seed)
        task = CLUSTERS.task(self._clustering(variant, seed), "")
        started = time.monotonic()
        out.begin()
        with Progress(f"clusters ({variant.label}, seed {seed})") as progress:
            summary = task.fill(out, progress)
        out.finish(summary, time.monotonic() - started)

    def _clustering(self, variant: Variant, seed: int) -> RunPlan:
        """Return a plan with the clusters of the variant; strata of a field know no seed."""
        return self._planned(variant, seed if variant.needs_clusters else self.plan.config.seed)

    def _planned(self, variant: Variant, seed: int) -> RunPlan:
        """Return a plan whose clusters are those of the variant; losses are those of the run."""
        return replace(self.plan, config=variant.config.model_copy(update={"seed": seed}))

    def arms(self, variant: Variant, seed: int, budgets: Sequence[Budget]) -> Iterator[Arm]:
        """Yield the arm of every budget.

        What a subset holds is recorded, so that only a new one is selected and written.
        """
        choose: Chooser | None = None
        for budget in budgets:
            if not self._record(self._key(variant, seed, budget)).is_file():
                with variant.errors_named():
                    choose = choose or self.chooser(variant, seed)
                    self._record(self._key(variant, seed, budget)).write_json(choose(budget))
            known = self.recorded(variant, seed, budget)
            assert known is not None, "it was written"
            yield known

    def recorded(self, variant: Variant, seed: int, budget: Budget) -> Arm | None:
        """Return the arm of a subset that is recorded; None if it never was selected."""
        key = self._key(variant, seed, budget)
        if not self._record(key).is_file():
            return None
        named = (variant.label, variant.method, variant.settings)
        return Arm(*named, name_of(budget), seed, key, **self._record(key).read_json())

    def _record(self, key: str) -> Location:
        return self.folder / SUBSETS / f"{key}.json"

    def _key(self, variant: Variant, seed: int, budget: Budget) -> str:
        """Return a hash of all that shapes a subset: pool, losses, clusters, settings, seed."""
        section = variant.selection.model_copy(update={"budget": budget})
        planned = replace(self._planned(variant, seed), arms={"": section})
        clusters = {CLUSTERS.name: self.clusters_of(variant, seed).fingerprint}
        return fingerprint({**SELECTION.task(planned, "").inputs, **clusters})

    def chooser(self, variant: Variant, seed: int) -> "Chooser":
        """Return a function that selects a budget, writes its rows, and returns what they are."""
        clustered = self.clusters_of(variant, seed)
        manifest = clustered.manifest()
        assert manifest is not None, f"{clustered.location} is not finished"
        cost = self.scoring if needs_scoring(variant) else Cost(0.0, 0.0)
        clustering = manifest.seconds if variant.needs_clusters else 0.0
        rows = self.plan.parts(PREPARE, "rows")
        sources = columns.Sources(Parts(clustered.location), self.plan.parts(TRAJECTORIES), rows)
        started = time.monotonic()
        pool = selection.load_pool(sources.clusters)
        before = cost.seconds + clustering + time.monotonic() - started

        def choose(budget: Budget) -> dict[str, Any]:
            started = time.monotonic()
            section = variant.selection.model_copy(update={"budget": budget})
            chosen = selection.rank(pool, section, sources, seed=seed).subset_R
            seconds = before + time.monotonic() - started
            costs = {"seconds_selecting": seconds, "flops_selecting": cost.flops}
            rows_file = self.rows_file(self._key(variant, seed, budget))
            return {**self._written(pool.key_N[chosen], rows_file), **costs}

        return choose

    def whole_pool(self) -> dict[str, Any]:
        """Return what the subset of all rows is; they are written if that is not known."""
        if self.recorded_pool() is None:
            self._record(self._key_of_pool).write_json(self.write_whole_pool())
        known = self.recorded_pool()
        assert known is not None, "it was written"
        return known

    def recorded_pool(self) -> dict[str, Any] | None:
        """Return what the subset of all rows is; None if it is not recorded."""
        key = self._key_of_pool
        record = self._record(key)
        return {"key": key, **record.read_json()} if record.is_file() else None

    def write_whole_pool(self) -> dict[str, Any]:
        """Write all rows, and return what they are."""
        keys = selection.load_pool(Parts(self._own_clusters.location)).key_N
        return self._written(keys, self.rows_file(self._key_of_pool))

    @property
    def _key_of_pool(self) -> str:
        """Return a hash of the pool: its rows, and the trajectories and clusters that it has."""
        return f"all-{fingerprint(self.plan.after(SELECTION))}"

    @property
    def _own_clusters(self) -> StageDir:
        """Return the folder of the run's own clusters."""
        return next(step for step in self.plan.steps if step.stage == CLUSTERS.name).out

    def _written(self, keys: np.ndarray, file: Location) -> dict[str, Any]:
        """Write the rows with these keys, and return a hash of the file, and their number."""
        selection.write_selected(keys, self.plan.parts(PREPARE, "rows"), file)
        # Ids that are the user's own say nothing about the content of rows, nor about their order.
        return {"subset": content_hash(InputFile(file.uri, 0, ""))[:16], "num_rows": len(keys)}

    def rows_file(self, key: str) -> Location:
        """Return the file of the rows of an arm; it is there until its trial is made."""
        section = self.plan.config.selection
        return self.folder / ROWS / f"{key}.{section.format if section else 'jsonl'}"


Chooser = Callable[[Budget], dict[str, Any]]


def needs_scoring(variant: Variant) -> bool:
    """Tell whether a method cannot do without the reference."""
    section = variant.selection
    numbers = ranking.numbers_needed(section) - columns.BEFORE_SCORING
    numbers |= names_read(section) & set(summaries.SUMMARIES)
    return variant.needs_clusters or bool(METHODS[variant.method].vectors or numbers)


def name_of(budget: Budget) -> str:
    """Return a budget as tables name it: 50000, 0.11, 20M tokens."""
    return budget if isinstance(budget, str) else json.dumps(budget)
