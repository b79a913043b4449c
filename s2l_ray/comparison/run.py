"""`s2l compare`: the target trained on the subset of every method, budget and seed.

The run's own stages come first, up to its clusters. Then every arm gets its subset, and every
distinct subset, seed and number of steps one trial. What a trial leaves is in a folder that is
named after all that shapes it, so nothing is trained twice, and a configuration with another
method, budget or seed trains only what is new.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from s2l_ray.artifacts.amounts import Amount, Pool, Quantities
from s2l_ray.artifacts.inputs import CONTENTS
from s2l_ray.artifacts.stage import RunPlan
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.comparison import records, results
from s2l_ray.comparison.arms import (
    ALL_DATA,
    NO_TRAINING,
    ROWS,
    Arm,
    Cost,
    Selector,
    name_of,
    needs_scoring,
)
from s2l_ray.comparison.records import FOLDER, TRIALS, Ended, Trial
from s2l_ray.comparison.results import Outcome, Rationed
from s2l_ray.comparison.trials import trials_of
from s2l_ray.comparison.variants import Variant, variants
from s2l_ray.config.comparison import ComparisonConfig
from s2l_ray.config.paths import stored_tree
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import TargetConfig
from s2l_ray.data import kept_templates
from s2l_ray.data.cleaning import held_out_files
from s2l_ray.data.declaration import PREPARE
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.monitoring import logged, trackers
from s2l_ray.pipeline import preflight
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.staleness import refuse_discarding, stale
from s2l_ray.pipeline.steps import plan
from s2l_ray.pipeline.subset import rebuild_report
from s2l_ray.progress import Progress, duration, label_column
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from s2l_ray.training.declaration import REFERENCE, TARGET
from s2l_ray.trajectories.declaration import TRAJECTORIES

Say = Callable[[str], None]


def compare(config: RunConfig, *, address: str | None = None, say: Say = print) -> Location:
    """Do what is not yet done of a comparison, and return its folder.

    Writes  comparison/results.parquet   a row for each arm, seed, set and metric
            comparison/items.parquet     a row for each arm, seed and item
            comparison/table.csv         means over seeds, intervals and differences to random
            the run's own subset, if it has `selection`, and its report
    Raises  ConfigError if the configuration has no `comparison`, or a method of it cannot be used;
            UserError of any stage.
    """
    compared = check(config)
    folder = Location.of(config.run_dir)
    with contextlib.ExitStack() as stack:
        connection = _Connection(config, address, stack, say)
        _run_stages(config, compared, connection, say)
        planned = plan(config, folder)
        with exclusive(folder), logged(folder, config.tracking, session.secrets()):
            _store(config, folder)
            made = _Comparison(planned, compared, connection, say).make()
        # Before Ray is left: with the connection, a job may lose its working directory.
        if config.selection is not None:
            pipeline.run(config, until=SELECTION.name, address=address, say=lambda _: None)
        rebuild_report(folder)
        return made


def check(config: RunConfig) -> list[Variant]:
    """Return the methods of a comparison, after the checks that need neither pool nor models.

    Raises:
        UserError: naming what cannot be compared.
    """
    if config.comparison is None:
        raise ConfigError(
            "there is no section `comparison`. Add one, such as\n"
            "comparison: {methods: [random, s2l], budgets: [0.05, 0.11], seeds: [0, 1, 2]}"
        )
    if config.data is None:
        raise ConfigError("`comparison` needs `data`: the target is trained on rows of the pool")
    trackers.check(config.tracking, Location.of(config.run_dir))
    compared = variants(config)
    for variant in compared:
        with variant.errors_named():
            SELECTION.check(variant.config)
    for stage in (TARGET, EVALUATION):
        stage.check(config)
    return compared


@dataclass
class _Connection:
    """The connection to Ray, made when it is first needed, and kept to the end."""

    config: RunConfig
    address: str | None
    stack: contextlib.ExitStack
    say: Say
    is_open: bool = False

    def open(self) -> None:
        """Connect, for stages of the run, which check their paths themselves."""
        if not self.is_open:
            wait_seconds = self.config.resources.wait
            pipeline.connect(self.address, wait_seconds, self.stack, self.say)
            self.is_open = True

    def open_for(self, *stages: str) -> None:
        """Connect, and refuse a node that does not share the run and what `stages` read."""
        self.open()
        run = Location.of(self.config.run_dir)
        pipeline.check_shared(run, self.config, stages, self.address)


def _run_stages(
    config: RunConfig, compared: Sequence[Variant], connection: _Connection, say: Say
) -> None:
    """Run the stages of the run up to its clusters, with a check of budgets once rows are counted.

    The reference is not trained for a budget that the pool cannot give.
    """
    folder = Location.of(config.run_dir)
    planned = plan(config, folder)
    steps = planned.through(CLUSTERS.name)
    todo = stale(steps, None)
    refuse_discarding(planned.steps, todo, None)  # before rows are prepared again
    if pipeline.needs_ray(todo, connection.address):
        connection.open()
    for until in (PREPARE.name, CLUSTERS.name):
        if until in {step.stage for step in steps}:
            pipeline.run(config, until=until, address=connection.address, say=say)
            check_budgets(compared)


def _store(config: RunConfig, folder: Location) -> None:
    """Store what was compared; the other sections stay those that the results of the run are of."""
    stored = folder / pipeline.CONFIG
    asked = stored_tree(config)
    before = stored.read_json() if stored.is_file() else asked
    stored.write_json({**before, "comparison": asked["comparison"]})


def check_budgets(
    compared: Sequence[Variant],
    outdated: Collection[str] = (),
    summaries: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Refuse budgets that the pool cannot give, once its size is known.

    Args:
        compared: the methods.
        outdated: as for `preflight.check_pool`.
        summaries: as for `preflight.check_pool`.
    """
    for variant in compared:
        assert variant.config.comparison is not None
        for budget in variant.config.comparison.budgets:
            section = variant.selection.model_copy(update={"budget": budget})
            with variant.errors_named():
                config = variant.config.model_copy(update={"selection": section})
                preflight.check_pool(config, outdated, summaries)


@dataclass
class _Comparison:
    """The arms of one configuration, and their trials.

    Attributes:
        plan: the steps of the run, which are finished up to its clusters.
        compared: the methods.
        connection: to Ray.
        say: takes each line of progress.
    """

    plan: RunPlan
    compared: Sequence[Variant]
    connection: _Connection
    say: Say

    @property
    def folder(self) -> Location:
        return self.plan.run / FOLDER

    @property
    def section(self) -> ComparisonConfig:
        assert self.plan.config.comparison is not None
        return self.plan.config.comparison

    def make(self) -> Location:
        """Select, train, evaluate, and write the results as they come."""
        selector = Selector(self.plan, self.folder, self._cost_of_scoring())
        self._make_clusters(selector)
        arms = list(self._arms(selector))
        trials = trials_of(self.plan, arms, selector)
        records.ask(self.folder, (item.name for item in trials))
        outcomes = [Outcome(arm, item.name) for arm, item in zip(arms, trials, strict=True)]
        todo = {item.name: item for item in trials}
        for name in [name for name in todo if records.is_done(self.trials_folder, name)]:
            del todo[name]
        arm_of = {outcome.trial: outcome.arm for outcome in reversed(outcomes)}
        finished = len(arm_of) - len(todo)
        if finished:
            self.say(f"  {finished:,} trials are finished, and {len(todo):,} are to do")
        write = partial(results.write, self.folder, self.trials_folder, outcomes)
        sometimes = Rationed(write)
        failed: list[str] = []
        try:
            self._write_rows(selector, arms, {item.rows for item in todo.values()})
            for ended in self._ended(list(todo.values()), finished):
                self._report(arm_of[ended.trial], ended)
                failed += [ended.error] if ended.error is not None else []
                sometimes()
        finally:
            write()
        if failed:
            raise DataError(
                f"comparison: {len(failed):,} of {len(todo):,} trials failed, and the others are "
                f"finished (first: {failed[0]}). The same command tries them again; the tables "
                f"have the others."
            )
        (self.folder / ROWS).remove()
        return self.folder

    @property
    def trials_folder(self) -> Location:
        return self.folder / TRIALS

    def _report(self, arm: Arm, ended: Ended) -> None:
        if ended.error is not None:
            self.say(f"  failed: {ended.error}")
            return
        name = f"{arm.name}, seed {arm.seed}"
        done = results.read_trial(self.trials_folder, ended.trial)
        losses = ", ".join(
            f"{scores.set} {np.nanmean(scores.value_I):.4f}"
            for scores in done.scores()
            if scores.metric == "loss"
        )
        time = duration(done.numbers["seconds_training"])
        self.say(f"  {label_column(name)}{time:>8}   {done.numbers['rows']:,} rows, loss {losses}")

    # --- subsets ---

    def _make_clusters(self, selector: Selector) -> None:
        made = set()
        for variant in self.compared:
            for seed in self.section.seeds:
                out = selector.clusters_of(variant, seed)
                if not out.is_current() and out.location not in made:
                    self.connection.open_for(CLUSTERS.name)
                    selector.make_clusters(variant, seed)
                    made.add(out.location)

    def _arms(self, selector: Selector) -> Iterator[Arm]:
        """Yield every arm."""
        for variant in self.compared:
            for seed in self.section.seeds:
                yield from selector.arms(variant, seed, self.section.budgets)
        if self.section.all_data:
            whole = selector.whole_pool()
            for seed in self.section.seeds:
                yield Arm(ALL_DATA, ALL_DATA, {}, "", seed, **whole)
        for seed in self.section.seeds:
            yield Arm(NO_TRAINING, NO_TRAINING, {}, "", seed)

    def _write_rows(self, selector: Selector, arms: Sequence[Arm], files: Collection[str]) -> None:
        """Write those of `files` that are not there: rows that an earlier comparison selected."""
        variants = {variant.label: variant for variant in self.compared}
        budgets = {name_of(budget): budget for budget in self.section.budgets}
        for arm in arms:
            file = selector.rows_file(arm.key)
            if not arm.key or str(file) not in files or file.is_file():
                continue
            if arm.budget:
                selector.chooser(variants[arm.label], arm.seed)(budgets[arm.budget])
            else:
                selector.write_whole_pool()

    def _cost_of_scoring(self) -> Cost:
        """Return what the reference and the trajectories of the run have cost."""
        if not any(needs_scoring(variant) for variant in self.compared):
            return Cost(0.0, 0.0)
        seconds, flops = 0.0, 0.0
        planned = {step.stage for step in self.plan.steps}
        for stage in (REFERENCE, TRAJECTORIES):
            if stage.name not in planned:
                continue
            manifest = stage.directory(self.plan.run).manifest()
            seconds += manifest.seconds if manifest else 0.0
            flops += self._flops(stage) if manifest else 0.0
        return Cost(seconds, flops)

    def _flops(self, stage: Any) -> float:
        """Return the operations of a finished stage that computes with the reference."""
        from s2l_ray.models import local_models

        is_given = getattr(stage.section_of(self.plan.config), "path", None) is not None
        model = stage.estimate.model(self.plan.config)
        if is_given or model is None:
            return 0.0
        summary = self.plan.summary(PREPARE)
        tokens, prompts = summary["tokens"], summary["prompt_tokens"]
        amount = Amount(summary["kept"], tokens, tokens - prompts)
        pool = Pool(amount, len(summary["strata"]), len(summary["rows_per_part"]), True)
        steps = self.plan.summary(TRAJECTORIES)["steps"]
        quantities = Quantities(pool=pool, num_checkpoints=len(steps))
        shape = local_models.shape(self.plan.contents.pinned(model))
        work = stage.estimate.work(self.plan.config, quantities, shape)
        return work.flops or 0.0

    # --- trials ---

    @property
    def target(self) -> TargetConfig:
        """The section `target`, with a model that workers can load."""
        from s2l_ray.training import ray_train

        section = self.plan.config.target
        assert section is not None
        model = ray_train.absolute_model(self.plan.contents.loadable(section.model))
        return section.model_copy(update={"model": model})

    def _ended(self, todo: Sequence[Trial], finished: int) -> Iterator[Ended]:
        """Train and evaluate, and yield the end of each trial; `finished` others are there."""
        if not todo:
            return
        # Names of trials hold the commits of models on the hub: the next comparison has the same.
        self.plan.contents.check_revisions()
        (self.plan.run / CONTENTS).write_json(self.plan.contents.cache)
        self.connection.open_for(TARGET.name, EVALUATION.name)
        from s2l_ray.comparison import pool, separate

        evaluation, data = self.plan.config.evaluation, self.plan.config.data
        assert evaluation is not None and data is not None
        names = dict.fromkeys(evaluation.sets)
        sets = {name: held_out_files(data, name, self.plan.run).files for name in names}
        in_pool = partial(pool.done, per_gpu=self.section.trials_per_gpu)
        run = separate.done if separate.is_needed(self.target) else in_pool
        with Progress(FOLDER) as progress:
            progress.start(finished + len(todo), "trials", done=finished)
            yield from run(
                todo,
                target=self.target,
                data=kept_templates.keep(data, self.plan.run),
                evaluation=evaluation,
                sets=sets,
                folder=self.folder,
                progress=progress,
            )
