"""The tables of a comparison: a row for each result, for each item, and the summary that is shown.

Shape letters: S seeds, I items.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from s2l_ray.comparison.arms import Arm
from s2l_ray.comparison.records import ITEMS, RESULT, is_done
from s2l_ray.comparison.statistics import Estimate, crossed_mean, holm
from s2l_ray.comparison.variants import BASELINE
from s2l_ray.evaluation import metrics
from s2l_ray.storage.location import Location

RESULTS_FILE, ITEMS_FILE, TABLE_FILE = "results.parquet", "items.parquet", "table.csv"
MACRO = "macro-"
"""The prefix of a metric over strata, each counting the same."""
COUNTS = ("examples", "training_tokens")

ARM = [
    pa.field("method", pa.string()),
    pa.field("settings", pa.string()),
    pa.field("label", pa.string()),
    pa.field("budget", pa.string()),
    pa.field("seed", pa.int64()),
]
RESULTS = pa.schema(
    [
        *ARM[:4],
        pa.field("examples", pa.int64()),
        ARM[4],
        pa.field("set", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("items", pa.int64()),
        pa.field("training_tokens", pa.int64()),
        pa.field("seconds_selecting", pa.float64()),
        pa.field("seconds_training", pa.float64()),
        pa.field("flops", pa.float64()),
    ]
)
TABLE = pa.schema(
    [
        ("set", pa.string()),
        ("metric", pa.string()),
        ("budget", pa.string()),
        ("label", pa.string()),
        ("seeds", pa.int64()),
        ("examples", pa.int64()),
        ("training_tokens", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p", pa.float64()),
        ("seconds_selecting", pa.float64()),
        ("seconds_training", pa.float64()),
        ("flops", pa.float64()),
    ]
)
"""Means over seeds with 95% intervals, differences to random with theirs, and Holm's p-values."""


@dataclass(frozen=True)
class Outcome:
    """An arm, and the name of the trial that trained it."""

    arm: Arm
    trial: str


@dataclass(frozen=True)
class FinishedTrial:
    """What a trial has left: its numbers, and its items, without their texts."""

    numbers: Mapping[str, Any]
    items: pa.Table

    def scores(self) -> Iterator["Scores"]:
        """Yield the values of every set and metric that has any."""
        columns = metric_columns(self.items.schema)
        for name in pc.unique(self.items["set"]).to_pylist():
            of_set = self.items.filter(pc.equal(self.items["set"], name))
            coded = of_set["stratum"].combine_chunks().dictionary_encode()
            stratum_I = coded.indices.to_numpy()
            for metric, column in columns.items():
                values = of_set[column].cast(pa.float64())
                value_I = pc.fill_null(values, np.nan).to_numpy()
                if np.isfinite(value_I).any():
                    yield Scores(name, metric, value_I, stratum_I)


@dataclass(frozen=True)
class Scores:
    """One metric of the items of a set, in the order of the set.

    Attributes:
        value_I: float64; NaN for an item without it.
        stratum_I: int32, numbers of strata in the order in which they occur.
    """

    set: str
    metric: str
    value_I: np.ndarray
    stratum_I: np.ndarray

    @property
    def has_strata(self) -> bool:
        return len(np.unique(self.stratum_I)) > 1

    def means(self) -> Iterator[tuple[str, float, int]]:
        """Yield metric, mean and number of items: over the items, and over strata equally."""
        known_I = np.isfinite(self.value_I)
        value_I, stratum_I = self.value_I[known_I], self.stratum_I[known_I]
        yield self.metric, float(value_I.mean()), len(value_I)
        if self.has_strata:
            of_strata = [value_I[stratum_I == name].mean() for name in np.unique(stratum_I)]
            yield MACRO + self.metric, float(np.mean(of_strata)), len(value_I)


def metric_columns(schema: pa.Schema) -> dict[str, str]:
    """Return metric -> column of a table of items."""
    return {id_of(metric): metric.column for metric in metrics.of_columns(schema.names)}


def id_of(metric: metrics.Metric) -> str:
    """Return the name of a metric in tables: `exact-match` for exact match."""
    return metric.name.lower().replace(" ", "-")


def read_trial(trials: Location, name: str) -> FinishedTrial:
    """Return what a finished trial has left in its folder."""
    folder = trials / name
    schema = (folder / ITEMS).read_schema()
    columns = ["set", "file", "item", "stratum", *metric_columns(schema).values()]
    return FinishedTrial((folder / RESULT).read_json(), (folder / ITEMS).read_table(columns))


def write(folder: Location, trials: Location, outcomes: Sequence[Outcome]) -> None:
    """Write the three tables of those outcomes whose trials are finished; none if none is."""
    finished = [outcome for outcome in outcomes if is_done(trials, outcome.trial)]
    if not finished:
        return
    compared, results = _Compared(), list[dict[str, Any]]()
    with (folder / ITEMS_FILE).open_atomic() as stream:
        writer = None
        for outcome in finished:
            done = read_trial(trials, outcome.trial)
            results += _result_rows(outcome.arm, done)
            compared.add(outcome.arm, done)
            items = _items_of(outcome.arm, done.items)
            writer = writer or pq.ParquetWriter(stream, items.schema, compression="zstd")
            writer.write_table(items)
        if writer is not None:
            writer.close()
    (folder / RESULTS_FILE).write_table(pa.Table.from_pylist(results, schema=RESULTS))
    table = pa.Table.from_pylist(compared.rows(), schema=TABLE)
    with (folder / TABLE_FILE).open_atomic() as stream:
        pacsv.write_csv(table, stream)


@dataclass
class Rationed:
    """Makes a call only if such calls have taken at most a tenth of the time so far.

    To write the tables takes longer with every trial.
    """

    call: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    next: float = field(default=-math.inf, init=False)

    def __call__(self) -> None:
        started = self.clock()
        if started >= self.next:
            self.call()
            ended = self.clock()
            self.next = ended + 9 * (ended - started)


def read_table(folder: Location) -> pa.Table:
    """Return `table.csv` of a comparison."""
    with (folder / TABLE_FILE).local() as file:
        types = {field.name: field.type for field in TABLE}
        options = pacsv.ConvertOptions(column_types=types, strings_can_be_null=False)
        return pacsv.read_csv(file, convert_options=options)


def _named(arm: Arm) -> dict[str, Any]:
    """Return the columns that say which arm a row is of."""
    settings = json.dumps(arm.settings, sort_keys=True)
    values = (arm.method, settings, arm.label, arm.budget, arm.seed)
    return {field.name: value for field, value in zip(ARM, values, strict=True)}


def _result_rows(arm: Arm, done: FinishedTrial) -> Iterator[dict[str, Any]]:
    for scores in done.scores():
        for metric, value, items in scores.means():
            yield {
                **_named(arm),
                **_costs(arm, done.numbers),
                "set": scores.set,
                "metric": metric,
                "value": value,
                "items": items,
            }


def _costs(arm: Arm, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "examples": numbers["rows"],
        "training_tokens": numbers["training_tokens"],
        "seconds_selecting": arm.seconds_selecting,
        "seconds_training": numbers["seconds_training"],
        "flops": arm.flops_selecting + numbers["flops_training"],
    }


def _items_of(arm: Arm, items: pa.Table) -> pa.Table:
    columns = {
        name: pa.array([value] * len(items), ARM[place].type)
        for place, (name, value) in enumerate(_named(arm).items())
    }
    return pa.table({**columns, **{name: items[name] for name in items.column_names}})


class _Compared:
    """The scores of all arms, from which means, intervals and differences are computed."""

    def __init__(self) -> None:
        self.scores: dict[_Key, dict[int, Scores]] = {}
        """Set, metric, budget and label -> seed -> scores."""
        self.costs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.baselines: dict[str, str] = {}
        """Budget -> the label of the random arm of that budget."""

    def add(self, arm: Arm, done: FinishedTrial) -> None:
        """Take the scores of one outcome."""
        self.costs.setdefault((arm.budget, arm.label), []).append(_costs(arm, done.numbers))
        if arm.method == BASELINE:
            self.baselines.setdefault(arm.budget, arm.label)
        for scores in done.scores():
            key = _Key(scores.set, scores.metric, arm.budget, arm.label)
            self.scores.setdefault(key, {})[arm.seed] = scores

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of TABLE."""
        rows = []
        for macro in (False, True):
            for key, by_seed in self.scores.items():
                if not macro or next(iter(by_seed.values())).has_strata:
                    rows.append(self._row(key, macro=macro))
        rows = _without_repeated(rows)
        rows.sort(key=lambda row: (row["set"], row["metric"].removeprefix(MACRO)))
        _adjust(rows)
        return rows

    def _row(self, key: "_Key", *, macro: bool) -> dict[str, Any]:
        by_seed = self.scores[key]
        mean = _estimate([[scores] for scores in by_seed.values()], macro=macro)
        costs = self.costs[key.budget, key.label]
        row: dict[str, Any] = {
            **{name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]},
            **{name: round(np.mean([cost[name] for cost in costs])) for name in COUNTS},
            "set": key.set,
            "metric": f"{MACRO if macro else ''}{key.metric}",
            "budget": key.budget,
            "label": key.label,
            "seeds": len(by_seed),
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
        }
        baseline = self.scores.get(self._baseline_of(key), {})
        pairs = [[scores, baseline[seed]] for seed, scores in by_seed.items() if seed in baseline]
        if pairs and key != self._baseline_of(key):
            difference = _estimate(pairs, macro=macro)
            row |= {
                "difference": difference.mean,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p": difference.p,
            }
        return row

    def _baseline_of(self, key: "_Key") -> "_Key":
        """Return the random arm to compare with; of the only budget for an arm without one."""
        budget = key.budget
        if not budget and len(self.baselines) == 1:
            budget = next(iter(self.baselines))
        return replace(key, budget=budget, label=self.baselines.get(budget, ""))


@dataclass(frozen=True)
class _Key:
    set: str
    metric: str
    budget: str
    label: str


def _estimate(by_seed: Sequence[Sequence[Scores]], *, macro: bool) -> Estimate:
    """Return the mean of scores over seeds and items; of two, that of the first minus the second.

    Items that lack a value in one of them are left out.
    """
    value_SI = np.stack(
        [
            pair[0].value_I - pair[1].value_I if len(pair) > 1 else pair[0].value_I
            for pair in by_seed
        ]
    )
    known_I = np.isfinite(value_SI).all(axis=0)
    stratum_I = by_seed[0][0].stratum_I[known_I]
    return crossed_mean(value_SI[:, known_I], stratum_I if macro else None)


def _without_repeated(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out metrics over strata that have the means of those over items.

    They do where strata have equally many items. Two intervals of one number would differ, as one
    takes strata for given and one does not.
    """
    means: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in rows:
        of_arm = means.setdefault((row["set"], row["metric"]), {})
        of_arm[row["budget"], row["label"]] = row["mean"]
    repeated = {
        (name, metric)
        for (name, metric), of_arm in means.items()
        for plain in [means.get((name, metric.removeprefix(MACRO)), {})]
        if metric.startswith(MACRO) and all(abs(of_arm[a] - plain[a]) < 1e-9 for a in of_arm)
    }
    return [row for row in rows if (row["set"], row["metric"]) not in repeated]


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Replace the p-values of the methods of one set, metric and budget by Holm's, in place.

    Arms without a budget are no methods, and have none.
    """
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if not row["budget"]:
            row["p"] = None
        if row.get("p") is not None:
            family = (row["set"], row["metric"], row["budget"])
            families.setdefault(family, []).append(row)
    for family_rows in families.values():
        for row, p in zip(family_rows, holm([row["p"] for row in family_rows]), strict=True):
            row["p"] = p
