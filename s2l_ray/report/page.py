"""The report as one HTML page without links or other files.

Everything that reaches the page is escaped, because rows, names and reasons may be hostile text.
Its policy lets run only the scripts with the hashes that it names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from s2l_ray.notation import flops
from s2l_ray.report import charts, numbers, score_charts, sentences, training_charts, vega
from s2l_ray.report.charts import Chart
from s2l_ray.report.cluster_cards import ClusterCard
from s2l_ray.report.clusters import cluster_facts, quality
from s2l_ray.report.contents import ArmScore, ReportData, set_title
from s2l_ray.report.data_block import as_json, source_hash
from s2l_ray.report.examples import ExampleRow
from s2l_ray.report.sentences import verdict
from s2l_ray.report.strata import folded

MAX_SETTING = 300
SCRIPTS = ("drawing.js", "charts.js", "clusters.js", "browser.js", "page.js")
"""Scripts of the page, in the order in which they run as one."""


def render(report: ReportData) -> str:
    """Return the page; equal reports give equal bytes."""
    drawn = drawn_charts(report)
    style, library = _file("page.css"), vega.script()
    own = "\n".join(_file(name) for name in SCRIPTS)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=numbers.count, share=numbers.share, nats=numbers.nats, duration=numbers.duration,
        summary=numbers.summary, power=numbers.power, flops=flops, name=numbers.name,
    )  # fmt: skip
    return environment.from_string(_file("page.html")).render(
        report=report,
        policy=policy([library, own], style),
        style=Markup(style),  # noqa: S704 - our own files
        scripts=[Markup(library), Markup(own)],  # noqa: S704 - our own files, and Vega
        values=Markup(as_json(values(report, drawn))),  # noqa: S704 - escaped there
        charts={chart.name: chart for chart in drawn},
        lead=sentences.lead(report),
        result=sentences.result(report),
        cost=sentences.cost(report),
        settings=settings(report.config),
        strata=folded(report.strata),
        cluster_facts=cluster_facts(report.clusters),
        quality=quality(report.clusters),
        sets=evaluated_sets(report),
        compared=compared_sets(report),
    )


def policy(scripts: Sequence[str], style: str) -> str:
    """Return the Content-Security-Policy: these scripts and this style, and nothing else."""
    hashes = " ".join(map(source_hash, scripts))
    return (
        f"default-src 'none'; script-src {hashes}; style-src {source_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def drawn_charts(report: ReportData) -> list[Chart]:
    """Return the charts that can be drawn."""
    headline = score_charts.compared(report.comparison)
    if headline is None and report.evaluation:
        headline = score_charts.scored(report.evaluation)
    every = [
        headline,
        charts.strata(report.strata, report.stratum_label),
        charts.lengths(report.lengths),
        *charts.cluster_charts(report.clusters),
        training_charts.reference(report.curve),
        training_charts.target(report.target_curve, report.held_out),
        score_charts.budgets(report.comparison),
    ]
    return [chart for chart in every if chart is not None]


def values(report: ReportData, drawn: Sequence[Chart]) -> dict[str, Any]:
    """Return what the scripts of the page read."""
    clusters = report.clusters
    return {
        "name": report.name,
        "charts": {chart.name: asdict(chart) for chart in drawn},
        "steps": list(clusters.steps) if clusters and clusters.steps else None,
        "clusters": [_card(card) for card in report.cards],
        "examples": [_example(example) for example in report.examples],
        "config": dict(report.config),
    }


def evaluated_sets(report: ReportData) -> list[tuple[str, list[ArmScore], list[str]]]:
    """Return title, scores and verdicts of each evaluation set, in the order of its first score."""
    sets = []
    for name in dict.fromkeys(score.set for score in report.evaluation):
        scores = [score for score in report.evaluation if score.set == name]
        pairs = [pair for pair in report.comparisons if pair.set == name]
        verdicts = [verdict(pair, report.confidence) for pair in pairs]
        sets.append((set_title(name, scores), scores, verdicts))
    return sets


def compared_sets(report: ReportData) -> list[tuple[str, str, list[Any]]]:
    """Return set, metric and lines of the comparison, in the order of the table."""
    arms = report.comparison.arms if report.comparison else ()
    pairs = dict.fromkeys((arm.set, arm.metric) for arm in arms)
    return [(*pair, [arm for arm in arms if (arm.set, arm.metric) == pair]) for pair in pairs]


def settings(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each section with its keys as dotted names; keys without a value are left out."""
    scalars = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {"run": scalars} | {
        key: value for key, value in config.items() if isinstance(value, Mapping)
    }
    flat = [(name, _flat(section)) for name, section in sections.items()]
    return [(name, rows) for name, rows in flat if rows]


def _card(card: ClusterCard) -> dict[str, Any]:
    return {
        "number": card.number,
        "size": card.size,
        "taken": card.num_selected,
        "mean": card.mean_T.tolist(),
        "band": None if card.band_2T is None else card.band_2T.tolist(),
        "strata": [[numbers.name(name), number] for name, number in card.strata],
        "numStrata": card.num_strata,
    }


def _example(example: ExampleRow) -> list[Any]:
    """Return the columns that drawing.js names: a list is shorter than an object."""
    return [
        example.id,
        example.prompt,
        example.response,
        example.cluster,
        numbers.name(example.stratum),
        example.is_selected,
        example.kind,
        example.reason,
        list(example.losses),
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        text = ", ".join(_text(item) for item in value)
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SETTING else f"{text[:MAX_SETTING]} ..."


@cache
def _file(name: str) -> str:
    return resources.files("s2l_ray.report").joinpath(name).read_text(encoding="utf-8")
