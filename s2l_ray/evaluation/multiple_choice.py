"""Multiple choice: which of a row's choices the target finds likeliest.

Shapes: N items, C choices of an item.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from s2l_ray.data.examples import Example
from s2l_ray.data.tokenise import TokenisedExample, tokenise
from s2l_ray.evaluation.items import Item, Target


def right(items: Sequence[Item], target: Target) -> list[float | None]:
    """Tell for each item whether its right choice has the lowest mean loss per token.

    Each choice is scored as the response after the prompt, end-of-sequence included: its loss is
    minus its log-likelihood over the number of its tokens. Of equal losses the first counts.

    Returns:
        (N,), 1.0 for right and 0.0 for wrong; None if some choice does not fit into `max_tokens`.
    """
    rows_of_items = [_rows(item.example, target) for item in items]
    loss_N = target.losses([row for rows in rows_of_items for row in rows])
    results: list[float | None] = []
    done = 0
    for item, rows in zip(items, rows_of_items, strict=True):
        loss_C = loss_N[done : done + len(rows)]
        done += len(rows)
        is_right = bool(rows) and int(np.argmin(loss_C)) == item.example.right_choice
        results.append(float(is_right) if rows else None)
    return results


def _rows(example: Example, target: Target) -> list[TokenisedExample]:
    """Return an example with each of its choices as the response; none if one does not fit."""
    answered = [_answered(example, choice) for choice in example.choices]
    rows = tokenise(answered, target.template, target.tokenizer, target.max_tokens)
    fitting = [row for row in rows if isinstance(row, TokenisedExample) and not row.is_cut]
    return fitting if len(fitting) == len(rows) else []


def _answered(example: Example, choice: str) -> Example:
    *earlier, last = example.messages
    said = replace(last, content=choice, fields={})
    return replace(example, response=choice, messages=(*earlier, said))
