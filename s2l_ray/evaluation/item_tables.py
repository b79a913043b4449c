"""The table of evaluated items, `evaluation/items.parquet`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.evaluation import answers, metrics
from s2l_ray.evaluation.metrics import EXACT_MATCH, Answers
from s2l_ray.evaluation.programs import Reading, readings

ITEMS = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.int64()),
        ("file", pa.string()),
        ("stratum", pa.string()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("completion", pa.string()),
        ("program", pa.string()),
        ("predicted", pa.string()),
        ("correct", pa.bool_()),
        ("loss_nats", pa.float32()),
        ("num_response_tokens", pa.int32()),
    ]
)
"""Columns of every evaluation."""
RESPONSE = "response"
"""The column of the whole response, which is there if a metric compares texts with it."""


def schema(config: EvaluationConfig) -> pa.Schema:
    """Return the columns of an evaluation: ITEMS, and one for each further metric."""
    more = metrics.further(config)
    fields = [pa.field(metric.column, pa.float64()) for metric in more]
    if any(metric.needs_completions for metric in more):
        fields.insert(0, pa.field(RESPONSE, pa.string()))
    return pa.schema([*ITEMS, *fields])


def items_table(name: str, answered: Answers, losses: Sequence[float | None]) -> pa.Table:
    """Return the table of some items of the set `name`, with the columns of `schema`.

    A column of a metric that the set is not asked for is null, exact match included.

    Args:
        answered: the items, their completions, and the target.
        losses: mean loss of each item's response, in nats per token; None if no token fits.
    """
    config = answered.config
    asked = metrics.asked_for(config, name)
    scores = {metric.column: metric.score(answered) for metric in asked if metric.score}
    rows: list[dict[str, Any]] = []
    completed, golds = _readings(
        answered, run=config.runs_programs_of(name) and EXACT_MATCH in asked
    )
    for item, loss, completion, reading, gold in zip(
        answered.items, losses, answered.completions, completed, golds, strict=True
    ):
        example, predicted = item.example, reading.answer
        rows.append(
            {
                "set": name,
                "item": item.number,
                "file": item.file,
                "stratum": example.stratum,
                "prompt": example.prompt,
                "gold": gold,
                "completion": completion,
                "program": reading.program,
                "predicted": predicted,
                "correct": answers.equal(predicted, gold) if EXACT_MATCH in asked else None,
                "loss_nats": loss,
                "num_response_tokens": item.num_response_tokens,
                RESPONSE: example.response,
                **{column: values[len(rows)] for column, values in scores.items()},
            }
        )
    return pa.Table.from_pylist(rows, schema=schema(config))


def _readings(answered: Answers, run: bool) -> tuple[list[Reading], list[str | None]]:
    """Return what each completion answers, and the right answer of each item."""
    responses = ["" if item.example.answer else item.example.response for item in answered.items]
    texts = [*answered.completions, *responses]
    read = readings(texts, run=run, at_once=answered.config.cpus_per_worker)
    num_items = len(answered.items)
    golds = [
        item.example.answer or reading.answer
        for item, reading in zip(answered.items, read[num_items:], strict=True)
    ]
    return read[:num_items], golds
