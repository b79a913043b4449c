"""The table of a comparison as text for a terminal, and what it shows in a sentence."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from s2l_ray.comparison.arms import ALL_DATA
from s2l_ray.comparison.results import MACRO, id_of
from s2l_ray.comparison.variants import BASELINE
from s2l_ray.evaluation.metrics import METRICS
from s2l_ray.notation import flops
from s2l_ray.progress import duration

HIGHER_IS_BETTER = {id_of(metric): metric.higher_is_better for metric in METRICS}
SIGNIFICANT = 0.05
Row = Mapping[str, Any]


def lines(table: pa.Table) -> list[str]:
    """Return what each arm cost, and for each set and metric means and differences to random."""
    rows = table.to_pylist()
    text = _text(_costs(rows))
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [row for row in rows if row["set"] == name]
        for metric in dict.fromkeys(row["metric"] for row in of_set):
            mine = [row for row in of_set if row["metric"] == metric]
            text += ["", f"{name}: {_unit(metric)}", *_text(_scores(mine)), *sentences(mine)]
    return text


def _arm(row: Row) -> tuple[str, str]:
    return row["budget"], row["label"]


def _unit(metric: str) -> str:
    plain = metric.removeprefix(MACRO)
    weighting = "strata count the same" if metric.startswith(MACRO) else "items count the same"
    return f"{'loss, nats per token' if plain == 'loss' else plain} ({weighting})"


def _costs(rows: Sequence[Row]) -> Table:
    table = _table("budget", "arm", "examples", "tokens", "selecting", "training", "FLOPs")
    for row in {_arm(row): row for row in rows}.values():
        table.add_row(
            row["budget"],
            row["label"],
            f"{row['examples']:,}",
            f"{row['training_tokens']:,}",
            duration(row["seconds_selecting"]),
            duration(row["seconds_training"]),
            flops(row["flops"]),
        )
    return table


def _scores(rows: Sequence[Row]) -> Table:
    table = _table("budget", "arm", "seeds", "mean (95% interval)", "minus random", "p (Holm)")
    for row in rows:
        table.add_row(
            row["budget"],
            row["label"],
            str(row["seeds"]),
            _interval(row, "mean", "low", "high", "{:.4f}"),
            _interval(row, "difference", "difference_low", "difference_high", "{:+.4f}"),
            _p(row["p"]),
        )
    return table


def _interval(row: Row, mean: str, low: str, high: str, form: str) -> str:
    if row[mean] is None:
        return ""
    ends = "" if row[low] is None else f" ({form} to {form})".format(row[low], row[high])
    return form.format(row[mean]) + ends


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def sentences(rows: Sequence[Row]) -> list[str]:
    """Return what the rows of one set and metric show, in words: one sentence for each budget."""
    of_budget: dict[str, list[Row]] = {}
    for row in rows:
        if row["budget"]:
            of_budget.setdefault(row["budget"], []).append(row)
    return [_sentence(budget, mine, rows) for budget, mine in of_budget.items()]


def _sentence(budget: str, mine: Sequence[Row], rows: Sequence[Row]) -> str:
    if len(mine) > 1 and len({row["mean"] for row in mine}) == 1:
        return f"At {budget} all arms have {mine[0]['mean']:.4f}: this does not tell them apart."
    best = _best(mine)
    reached = f"the best mean is that of {best['label']}, {best['mean']:.4f}{_share(best, rows)}"
    random = next((row for row in mine if row["difference"] is None), None)
    if random is None or (len(mine) > 1 and all(row["difference"] is None for row in mine)):
        return f"At {budget} there is no {BASELINE} to compare with; {reached}."
    names_of: dict[str, list[str]] = {}
    for row in mine:
        if row is not random:
            names_of.setdefault(_verdict(row, random["label"]), []).append(row["label"])
    parts = []
    for verdict, names in names_of.items():
        be = "is" if len(names) == 1 else "are"
        parts.append(f"{_listed(names)} {verdict.replace('BE', be)}")
    return f"At {budget}, {'; '.join([*parts, reached])}."


def _verdict(row: Row, random: str) -> str:
    if row["p"] is None or row["p"] >= SIGNIFICANT:
        seeds = f"{row['seeds']} seed{'s' if row['seeds'] != 1 else ''}"
        return f"cannot be told from {random} with {seeds} (p >= {SIGNIFICANT})"
    better = (row["difference"] < 0) == _lower(row)
    return f"BE {'better' if better else 'worse'} than {random} (p < {SIGNIFICANT})"


def _lower(row: Row) -> bool:
    return not HIGHER_IS_BETTER[row["metric"].removeprefix(MACRO)]


def _best(rows: Sequence[Row]) -> Row:
    return (min if _lower(rows[0]) else max)(rows, key=lambda row: row["mean"])


def _share(best: Row, rows: Sequence[Row]) -> str:
    """Return what all data reaches, for comparison; empty if it was not trained on."""
    whole = [row for row in rows if row["label"] == ALL_DATA]
    return f" ({whole[0]['mean']:.4f} with all data)" if whole else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in columns:
        right = name not in ("budget", "arm")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def _text(table: Table) -> list[str]:
    stream = io.StringIO()
    # A label is the user's text: neither markup nor the name of a symbol.
    console = Console(file=stream, width=500, color_system=None, markup=False, emoji=False)
    console.print(table)
    return [f"  {line}".rstrip() for line in stream.getvalue().splitlines()]
