"""The metrics of an evaluation: one row of a table each.

A metric gives one number for every item, or None where an item has none. Means, intervals, paired
differences and tables follow from its row. A new metric is a function and a row.

Shapes: N items.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from s2l_ray.config.sections import EvaluationConfig, MetricName

if TYPE_CHECKING:
    from s2l_ray.evaluation.items import Item, Target

Unit = Literal["nats per token", "share"]
"""Shares lie between 0 and 1."""


@dataclass(frozen=True)
class Answers:
    """What a metric looks at: N items, what the target said, and the target.

    Attributes:
        completions: (N,), the target's greedy answers; empty texts if no metric needs them.
        target: the model that is evaluated.
    """

    items: "Sequence[Item]"
    completions: Sequence[str]
    target: "Target"
    config: EvaluationConfig

    @property
    def references(self) -> list[str]:
        """Return the whole responses of the rows, which texts are compared with."""
        return [item.example.response for item in self.items]


Score = Callable[[Answers], list[float | None]]


@dataclass(frozen=True)
class Metric:
    """A number of every item, and how its numbers are summed up.

    Attributes:
        name: what tables and comparisons call it.
        column: its column in items.parquet, and for all but exact match its key in metrics.json.
        key: its key in metrics.json.
        summary: the method behind its mean and interval, in words.
        is_rate: its numbers are right (1) or wrong (0).
        score: the function that gives the numbers; None for loss and exact match, which every
            evaluation has columns for.
        needs_completions: the target has to answer the prompts for it.
    """

    name: str
    column: str
    key: str
    summary: str
    unit: Unit = "share"
    higher_is_better: bool = True
    is_rate: bool = False
    score: Score | None = None
    needs_completions: bool = True

    @property
    def statistic(self) -> Literal["mean", "rate"]:
        """Return the key of the estimate beside those of its interval."""
        return "rate" if self.is_rate else "mean"


def _rouge_l(answers: Answers) -> list[float | None]:
    from s2l_ray.evaluation import text_overlap

    return text_overlap.rouge_l(answers.completions, answers.references)


def _sentence_bleu(answers: Answers) -> list[float | None]:
    from s2l_ray.evaluation import text_overlap

    return text_overlap.sentence_bleu(answers.completions, answers.references)


def _bertscore(answers: Answers) -> list[float | None]:
    from s2l_ray.evaluation import bertscore

    device = str(answers.target.device)
    return bertscore.f1(answers.completions, answers.references, answers.config.bertscore, device)


def _multiple_choice(answers: Answers) -> list[float | None]:
    from s2l_ray.evaluation import multiple_choice

    return multiple_choice.right(answers.items, answers.target)


T_INTERVAL = "mean over items, Student's t interval"
WILSON = "Wilson score interval"
LOSS = Metric(
    "loss", "loss_nats", "loss_nats", T_INTERVAL, "nats per token", higher_is_better=False
)
EXACT_MATCH = Metric(
    "exact match",
    "correct",
    "exact_match",
    f"share of items whose final answer is right, {WILSON}",
    is_rate=True,
)
ASKED_FOR: Mapping[MetricName, Metric] = {
    "exact-match": EXACT_MATCH,
    "program": EXACT_MATCH,  # programs are run for it
    "rouge-l": Metric(
        "ROUGE-L",
        "rouge_l",
        "rouge_l",
        f"F-measure of completion and response by rouge_score, stems compared; {T_INTERVAL}",
        score=_rouge_l,
    ),
    "bleu": Metric(
        "sentence BLEU",
        "sentence_bleu",
        "sentence_bleu",
        f"BLEU of each item alone by sacrebleu, over 100; {T_INTERVAL}",
        score=_sentence_bleu,
    ),
    "bertscore": Metric(
        "BERTScore",
        "bertscore",
        "bertscore",
        f"F1 of completion and response by bert_score, not rescaled; {T_INTERVAL}",
        score=_bertscore,
    ),
    "multiple-choice": Metric(
        "multiple choice",
        "multiple_choice",
        "multiple_choice",
        f"share of items whose right choice has the lowest mean loss per token, {WILSON}",
        is_rate=True,
        score=_multiple_choice,
        needs_completions=False,
    ),
}
"""By their names in `evaluation.metrics`, in the order of columns and tables."""
METRICS = (LOSS, *dict.fromkeys(ASKED_FOR.values()))


def asked_for(config: EvaluationConfig, name: str) -> list[Metric]:
    """Return the metrics of a set beside the loss, in the order of the table."""
    names = config.metrics_of(name)
    return list(dict.fromkeys(metric for asked, metric in ASKED_FOR.items() if asked in names))


def further(config: EvaluationConfig) -> list[Metric]:
    """Return the metrics that have columns of their own in this evaluation."""
    asked = {metric for name in config.sets for metric in asked_for(config, name)}
    return [metric for metric in METRICS if metric in asked and metric.score is not None]


def need_completions(config: EvaluationConfig, name: str) -> bool:
    """Tell whether the target has to answer the prompts of a set."""
    return any(metric.needs_completions for metric in asked_for(config, name))


def of_columns(names: Collection[str]) -> list[Metric]:
    """Return the metrics whose columns a table of items has."""
    return [metric for metric in METRICS if metric.column in names]


def has_values(metric: Metric, items: pa.Table) -> bool:
    """Tell whether a set was asked for a metric: some item has a number, or it is the loss."""
    return metric is LOSS or items[metric.column].null_count < items.num_rows
