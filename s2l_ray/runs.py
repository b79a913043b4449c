"""Runs from Python: start one, open one, read its tables, choose subsets of it, extend it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from s2l_ray.arguments import check_known, loaded_config, plain_budget
from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.finished import Finished, finished_stages
from s2l_ray.artifacts.manifest import RANKING, REJECTED_ROWS
from s2l_ray.artifacts.stage import Stage
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.budgets import Budget
from s2l_ray.config.paths import check_absolute, paths_of
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import PREPARE, own_chat_template
from s2l_ray.display import Say, with_display
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.export import folder
from s2l_ray.export.folder import Exported
from s2l_ray.export.names import NAMES as TRAINERS
from s2l_ray.extended import Extended
from s2l_ray.pipeline import destination, subset
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.subset import Selection
from s2l_ray.report import stage as report
from s2l_ray.report.arms import comparable_arms
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.selection.methods import METHODS, WITHIN
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage.location import Location
from s2l_ray.tables import Table
from s2l_ray.trajectories.declaration import TRAJECTORIES
from s2l_ray.version import __version__


@with_display
def run(
    config: str | Path | RunConfig,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    from_stage: str | None = None,
    until: str | None = None,
    address: str | None = None,
    say: Say = print,
) -> "Run":
    """Do what is not yet done of a run, and return it; `s2l run` from Python.

    A finished stage whose inputs are unchanged is skipped; an interrupted one goes on. Ray is
    started for the run and stopped after it, unless a running cluster is joined, which stays.

    Args:
        config: a YAML file, or a configuration that was read.
        overrides: keys of the file with other values: `{"selection.budget": 0.2}`, or texts as
            after `--set`: `["selection.budget=0.2"]`.
        from_stage: redo this stage and all after it.
        until: stop after this stage.
        address: join the Ray cluster there. Default: RAY_ADDRESS, else Ray is started here.
        say: is called with each line about the progress; `lambda line: None` is silence.

    Raises:
        UserError: the user can correct the cause. What was finished before stays finished.

    Examples:
        >>> run = s2l.run("mine.yaml", overrides={"seed": 7}, until="selection")
    """
    loaded = loaded_config(config, overrides)
    for name, stage in (("from_stage", from_stage), ("until", until)):
        if stage is not None and stage not in NAMES:
            raise ConfigError(f"{name} {stage!r} is no stage; stages: {', '.join(NAMES)}")
    if session.joins_cluster(address):
        check_absolute(paths_of(loaded))
    location = Location.of(loaded.run_dir)
    say(f"s2l_ray {__version__}: {loaded.run_dir}")
    done = pipeline.run(loaded, from_stage=from_stage, until=until, address=address, say=say)
    if not done:
        say("nothing to do: every stage is finished, and its inputs are unchanged")
    return Run(location, loaded)


def load(path: str | Path, *, with_extensions: bool = True) -> "Run":
    """Open an existing run; nothing is read but its configuration.

    Args:
        path: the run's directory or URI.
        with_extensions: tables and subsets hold the rows that `extend` has added, too.

    Raises:
        UserError: there is no run (`DataError`), or it cannot be read (`StorageError`).

    Examples:
        >>> run = s2l.load("s3://bucket/runs/phi2")
    """
    location = Location.of(path)
    return Run(location, subset.config_of(location), with_extensions)


@dataclass(frozen=True)
class Run:
    """A run on disk or on an object store, and what its stages have left.

    Tables show what is stored when they are asked for. With extensions they hold the rows of the
    run and, after them, those of every extension, as `select` ranks them: clusters are those of
    the last extension that moved the centroids, and the ranking is that of the last extension.

    Attributes:
        location: where the run is.
        config: the configuration that it was last run with.
        with_extensions: whether rows of extensions are shown and selected from.
    """

    location: Location
    config: RunConfig
    with_extensions: bool = True

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    @property
    def path(self) -> str:
        """The run's directory, absolute, or its URI."""
        return self.location.uri

    def trajectories(self) -> Table:
        """Return the losses of every example.

        Columns: example_id, stratum, loss_nats (float32, one per checkpoint, nats per token).
        `to_numpy()` is float32 (N, T); ids in the same order come with `to_pandas()`.

        Raises:
            DataError: they are not finished.
        """
        parts = self._pool().trajectories if self._has(CLUSTERS) else None
        if parts is None:
            self._check_finished(TRAJECTORIES)
            parts = Parts(self.location / TRAJECTORIES.folder)
        return Table(parts.files(), ("example_id", "stratum", "loss_nats"), "loss_nats")

    def clusters(self) -> Table:
        """Return the cluster of every example.

        Columns: example_id, stratum, cluster (int32, unique over strata), sqdist (float32, squared
        distance to the centroid, nats squared unless `clusters.scaling` is set). `to_numpy()` is
        int32 (N,), in the order of `trajectories()`.

        Raises:
            DataError: they are not finished, or an extension does not fit them.
        """
        self._check_finished(CLUSTERS)
        columns = ("example_id", "stratum", "cluster", "sqdist")
        return Table(self._pool().clusters.files(), columns, "cluster")

    def ranking(self) -> Table:
        """Return the examples in order of rank: the subset for budget B is rank < B.

        Examples for which `selection.where` does not hold are left out.

        Columns: example_id, stratum, cluster, rank (int64, from 0). `to_numpy()` is the ids.

        Raises:
            DataError: the selection is not finished, or an extension does not fit the run.
        """
        self._check_finished(SELECTION)
        folder = self.location / SELECTION.folder
        used = self._pool().extensions
        if used:
            folder = used[-1].folder(SELECTION.folder)
            if used[-1].summary(SELECTION.folder) is None:
                raise DataError(
                    f"{self.path} has extensions that are not ranked yet. Run "
                    f"`s2l extend {self.path}`, or load the run with with_extensions=False."
                )
        columns = ("example_id", "stratum", "cluster", "rank")
        return Table([folder / RANKING], columns, "example_id")

    def rejected(self) -> Table:
        """Return the input rows that could not be used.

        Columns: file, row (int64, 0-based), reason, excerpt. `to_numpy()` is the reasons.

        Raises:
            DataError: rows are not prepared, or the run has no `data`.
        """
        self._check_finished(PREPARE)
        folders = [self.location / PREPARE.folder]
        if self.with_extensions:
            folders += [
                item.folder(PREPARE.folder) for item in extensions.list_prepared(self.location)
            ]
        files = [folder / REJECTED_ROWS for folder in folders]
        return Table(files, ("file", "row", "reason", "excerpt"), "reason")

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the evaluation: method -> held-out set -> numbers with 95% intervals.

        The run's own method comes first; baselines have the keys that the report gives them.
        Losses are in nats per token, exact match is a share.

        Raises:
            DataError: nothing is evaluated.

        Examples:
            >>> run.metrics()["s2l"]["gsm8k"]["exact_match"]
            {'rate': 0.31, 'low': 0.29, 'high': 0.34}
        """
        arms = comparable_arms(self._finished(), self.config)
        if not arms:
            raise DataError(f"{self.path} has no finished evaluation. Run it: s2l run.")
        return {arm.name: arm.metrics["sets"] for arm in arms}

    def select(
        self,
        budget: Budget,
        method: str | None = None,
        seed: int | None = None,
        within: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        score: str | None = None,
        score_order: str | None = None,
        quantile: float | None = None,
        unlearned: str | None = None,
        where: str | None = None,
    ) -> Selection:
        """Choose another subset of the clustered pool, in seconds; nothing is written.

        The budget is spread over strata as the run's own. Subsets of one method, order and seed
        are nested: a larger one contains a smaller one.

        Args:
            budget: examples (50000), a fraction of the pool (0.11), or tokens ("20M tokens").
            method: default: the run's own, or s2l.
            seed: default: the run's own.
            within: which examples of a cluster s2l takes first. Default: the run's own.
            columns: columns to add to the rows, of rank, cluster, stratum and tokens. Default: the
                run's own.
            score: for `method="score"` and `within="score"`: a field of the rows, or FILE#COLUMN.
            score_order: "highest" (first) or "lowest".
            quantile: for `method="quantile-perplexity"`, from 0 to 1.
            unlearned: "keep", or "last" for examples whose loss does not fall.
            where: a condition, such as "quality >= 3 and tokens < 2000". These five are keys of
                the section `selection`. Default: the run's own.

        Raises:
            UserError: clusters are not finished, an extension does not fit them, the pool cannot
                give the budget, or numbers that the method needs are missing.

        Examples:
            >>> run.select(budget=0.05, method="balanced-random").write("random.jsonl")
        """
        check_known("method", method, list(METHODS))
        check_known("within", within, list(WITHIN))
        if seed is not None and seed < 0:
            raise ConfigError(f"seed {seed} is below zero")
        return subset.choose_subset(
            self.location,
            plain_budget(budget),
            method,
            seed,
            within=within,
            changes={
                "score": score,
                "score_order": score_order,
                "quantile": quantile,
                "unlearned": unlearned,
                "where": where,
            },
            extended=self.with_extensions,
            columns=columns,
        )

    def export(
        self,
        trainer: str,
        out: str | Path,
        *,
        budget: Budget | None = None,
        method: str | None = None,
        seed: int | None = None,
    ) -> Exported:
        """Write a subset as rows for a trainer, with the lines of its configuration.

        Args:
            trainer: trl, axolotl, llamafactory, open-instruct, torchtune or verl.
            out: a folder or URI that is new or empty.
            budget: as for `select`. Default: the run's own.
            method: as for `select`.
            seed: as for `select`.

        Raises:
            UserError: the run has no `data` or no budget, the folder is not empty, the trainer can
                hold no row, or the subset cannot be selected.

        Examples:
            >>> print(run.export("trl", "for-trl", budget=1000).command)
        """
        place = Location.of(out)
        check_known("trainer", trainer, TRAINERS)
        destination.file_of(self.location, place / "selected.jsonl", "jsonl")
        folder.check_new(place)
        if self.config.data is None:
            raise ConfigError(f"{self.path} has no `data`, so no rows to export.")
        own = self.config.selection
        wanted = budget if budget is not None else own.budget if own else None
        if wanted is None:
            raise ConfigError(f"{self.path} has no `selection`: give a budget.")
        selection = self.select(wanted, method, seed, columns=())
        prepared = PREPARE.directory(self.location).manifest()
        template = own_chat_template(self.config, prepared.inputs if prepared else {})
        made = folder.export(selection.rows, self.config.data, trainer, place, template)
        if not (origin := selection.summary().get("from")):
            return made
        return replace(made, notes=(f"these are rows of {origin}", *made.notes))

    @with_display
    def extend(
        self,
        data: Sequence[str] = (),
        *,
        update_centroids: bool = False,
        address: str | None = None,
        say: Say = print,
    ) -> Extended:
        """Score new data at the run's checkpoints, put it into clusters and rank it with the rest.

        Nothing is retrained, and nothing of the run is changed. Rows that the run or an earlier
        extension has are left out and counted. Tables and subsets of this run then hold the rows.

        Args:
            data: files, globs, directories, URIs or hf://org/name[:split], with the fields of the
                run's own data. None: earlier extensions again, after the run has changed.
            update_centroids: move the centroids until they fit old and new rows.
            address: as for `run`.
            say: as for `run`.

        Raises:
            UserError: the user can correct the cause; nothing of what failed is visible.
        """
        from s2l_ray.extend import plan as extending

        if session.joins_cluster(address):
            check_absolute({"DATA": data})
        say(f"s2l_ray {__version__}: {self.path}")
        outcome = extending.extend(
            self.location, data, update_centroids=update_centroids, address=address, say=say
        )
        if not outcome.done:
            say("nothing to do: these rows are scored, clustered and ranked")
        return Extended(self.location, outcome.extension)

    def report(self) -> str:
        """Write the report again from what is finished; return the path of its page."""
        return str(subset.rebuild_report(self.location))

    def comparison(self, *, until: str | None = None) -> list[str]:
        """Return lines that compare the evaluated methods; none without a finished evaluation.

        Args:
            until: leave out what a stage after this one has measured: it may be of another subset.
        """
        if EVALUATION not in _through(until):
            return []
        return report.summary_lines(self._finished(), self.config)

    def results(self, *, until: str | None = None) -> dict[str, str]:
        """Return what a run is for, as far as it exists, by name: `selected`, `model`, `report`.

        Args:
            until: leave out the results of stages after this one.
        """
        wanted = [stage for stage in _through(until) if stage.is_wanted(self.config)]
        paths_by_name = {name: paths for stage in wanted for name, paths in stage.results.items()}
        results: dict[str, str] = {}
        names_in = cache(Location.names)  # of each folder, which is listed once
        for name, paths in paths_by_name.items():
            places = [self.location / path for path in paths]
            made = [str(place) for place in places if place.name in names_in(place.parent)]
            if made:
                results[name] = made[0]
        return results

    def _finished(self) -> dict[str, Finished]:
        return finished_stages(self.location, STAGES)

    def _has(self, stage: Stage) -> bool:
        return stage.name in self._finished()

    def _check_finished(self, stage: Stage) -> None:
        if not self._has(stage):
            raise DataError(
                f"{self.path} has no finished {stage.name} that fits its data. Run it: s2l run."
            )

    def _pool(self) -> extensions.ExtendedPool:
        if self.with_extensions:
            return extensions.extended_pool(self.location)
        return extensions.pool(self.location, [])


def _through(until: str | None) -> tuple[Stage, ...]:
    """Return the stages up to `until`, or all."""
    return STAGES[: NAMES.index(until) + 1] if until else STAGES
