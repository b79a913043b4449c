"""Items: the rows that are evaluated, and the model that they are put to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s2l_ray.artifacts.tables import original_rows
from s2l_ray.config.data import DataConfig
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.held_out_rows import Failure
from s2l_ray.data.row_errors import NO_ROOM, place_of
from s2l_ray.data.templates import Template
from s2l_ray.data.tokenise import TokenisedExample, prompt_ids, tokenise
from s2l_ray.models.generation import Generator
from s2l_ray.models.scoring import Scorer
from s2l_ray.storage.location import Location


@dataclass(frozen=True)
class Item:
    """A row that is evaluated; `tokens` is None if no response token fits."""

    file: str
    number: int
    example: Example
    tokens: TokenisedExample | None

    @property
    def location(self) -> str:
        return place_of(self.file, self.number)

    @property
    def num_response_tokens(self) -> int:
        return self.tokens.num_response_tokens if self.tokens else 0


@dataclass(frozen=True, eq=False)
class Target:
    """A model in memory, with what a row needs to become its tokens.

    Attributes:
        dtype: the model's own, or bfloat16 to run float32 weights under autocast.
        max_tokens: most tokens of a row, prompt included.
        rows_per_batch: rows that are answered, or of `max_tokens` scored, in one batch.
    """

    model: Any
    tokenizer: Any
    template: Template
    device: torch.device
    dtype: torch.dtype
    max_tokens: int
    rows_per_batch: int

    def losses(self, rows: Sequence[TokenisedExample]) -> np.ndarray:
        """Return the mean loss of each row's response, end-of-sequence included: float32 (N,)."""
        if not rows:
            return np.zeros(0, np.float32)
        scorer = Scorer(
            self.model,
            dtype=self.dtype,
            device=self.device,
            tokens_per_batch=self.rows_per_batch * self.max_tokens,
        )
        ids = [np.array(row.input_ids, np.int32) for row in rows]
        return scorer.score(ids, [row.learned for row in rows]).loss_N

    def completions(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Return the greedy answer to each example's prompt."""
        generator = Generator(
            self.model,
            self.tokenizer,
            dtype=self.dtype,
            device=self.device,
            max_new_tokens=max_new_tokens,
            rows_per_batch=self.rows_per_batch,
        )
        return generator.generate(prompt_ids(examples, self.template, self.tokenizer))


def read_items(
    file: Location, data: DataConfig, template: Template, tokenizer: Any
) -> tuple[list[Item], list[Failure]]:
    """Return the items of a unit, and the rows that the tokenizer's chat template refuses.

    Args:
        file: rows that `staged_units` wrote.
        data: the section with the names of fields of their set.
    """
    table = file.read_table()
    examples = [read_example(row, data.fields) for row in original_rows(table)]
    tokens = tokenise(examples, template, tokenizer, data.max_tokens)
    items, failures = [], []
    for uri, number, example, outcome in zip(
        table["file"].to_pylist(), table["row"].to_pylist(), examples, tokens, strict=True
    ):
        if not isinstance(outcome, RowError):
            items.append(Item(uri, number, example, outcome))
        elif outcome.reason == NO_ROOM:
            items.append(Item(uri, number, example, None))
        else:
            failures.append((outcome.reason, place_of(uri, number)))
    return items, failures
