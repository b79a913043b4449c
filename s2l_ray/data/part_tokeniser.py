"""The worker of stage 1, which turns a raw part into tokens, original rows and rejected rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.tables import field_types, kept_rows, original_rows, part_name, rows_name
from s2l_ray.artifacts.token_tables import token_table
from s2l_ray.config.data import DataConfig
from s2l_ray.data import duplicates
from s2l_ray.data.dropped_rows import load_dropped
from s2l_ray.data.examples import Example, RowError, id_of_content, read_example
from s2l_ray.data.raw_parts import excerpt_of, read_numbered
from s2l_ray.data.row_errors import place_of
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import TokenisedExample, tokenise
from s2l_ray.storage.location import Location

REJECTED = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
LOCATIONS_SHOWN = 3
"""Number of rejected rows of each reason that a part reports by file and row."""
RejectedRow = tuple[int, str, str, str]
"""Row number, reason, excerpt, and the detail if the row was rejected when it was tokenised."""


@dataclass(frozen=True)
class _UsableRow:
    """A row that can be tokenised; `occurrence` counts the equal rows before it.

    `digest` is that of its content, unless the user gave the row an id.
    """

    number: int
    fields: dict[str, Any]
    example: Example
    digest: bytes
    occurrence: int

    @property
    def example_id(self) -> str:
        return self.example.id or id_of_content(self.digest.hex(), self.occurrence)


class PartTokeniser:
    """Turns one raw part into a tokenised part, its original rows and its rejected rows."""

    def __init__(self, folder: Location, config: DataConfig, tokenizer: str | None) -> None:
        self.folder, self.staged, self.config = folder, folder / "staged", config
        self.tokenizer = self.template = None
        if tokenizer is not None:
            # Importing it takes seconds, which a worker that only cuts files does not need.
            from s2l_ray.models.tokenizers import load_tokenizer

            self.tokenizer = load_tokenizer(tokenizer)
            self.template = load_template(config)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        # By its name and not its number alone: what an older version left of other parts is redone.
        done = self.staged / f"tokenised-{unit['part']:06d}-{unit['name']}.json"
        if not done.is_file():
            done.write_json(self._tokenise(unit))
        result: dict[str, Any] = done.read_json()
        return result

    def _tokenise(self, unit: dict[str, Any]) -> dict[str, Any]:
        checked = read_numbered(self.staged / unit["name"], unit["row_offset"]).to_pylist()
        originals = read_numbered(self.staged / f"rows-{unit['name']}", unit["row_offset"])
        in_pool_P = np.zeros(len(checked), bool)
        if "known" in unit:
            in_pool_P = duplicates.unpacked(unit["known"], len(checked))
        usable, rejected = self._read(unit, checked, originals, in_pool_P)
        good: list[tuple[_UsableRow, TokenisedExample]] = []
        outcomes = self._tokens([row.example for row in usable])
        for row, tokens in zip(usable, outcomes, strict=True):
            if isinstance(tokens, RowError):
                excerpt = excerpt_of(tokens, row.fields)
                rejected.append((row.number, tokens.reason, excerpt, tokens.detail))
            else:
                good.append((row, tokens))
        result = self._write(unit, originals, good, sorted(rejected))
        return result | {"known": int(in_pool_P.sum())} if "known" in unit else result

    def _read(
        self,
        unit: Mapping[str, Any],
        checked: Sequence[Mapping[str, Any]],
        originals: pa.Table,
        in_pool_P: np.ndarray,
    ) -> tuple[list[_UsableRow], list[RejectedRow]]:
        """Return the rows that can be tokenised and the rejected ones; leave out the pool's."""
        numbers = [row["row"] for row in checked if not row["reason"]]
        fields_by_row = dict(zip(numbers, original_rows(originals), strict=True))
        repeats, dropped = dict(unit["repeats"]), load_dropped(unit)
        names = self.config.fields.of_pool
        rejected = [
            (row["row"], row["reason"], row["excerpt"], "") for row in checked if row["reason"]
        ]
        usable = []
        for position, row in enumerate(checked):
            if row["reason"] or in_pool_P[position]:
                continue
            fields = fields_by_row[row["row"]]
            example = read_example(fields, names)
            occurrence = repeats.get(position, 0)
            error = dropped.get(position)
            if example.id is not None and occurrence:
                error = RowError("duplicate id", repr(example.id))
            if error is not None:
                rejected.append((row["row"], error.reason, excerpt_of(error, fields), ""))
                continue
            usable.append(_UsableRow(row["row"], fields, example, row["digest"], occurrence))
        return usable, rejected

    def _tokens(self, examples: Sequence[Example]) -> Sequence[TokenisedExample | RowError]:
        if self.tokenizer is None or self.template is None:
            return [TokenisedExample([], [])] * len(examples)
        return tokenise(examples, self.template, self.tokenizer, self.config.max_tokens)

    def _write(
        self,
        unit: Mapping[str, Any],
        originals: pa.Table,
        good: Sequence[tuple[_UsableRow, TokenisedExample]],
        rejected: Sequence[RejectedRow],
    ) -> dict[str, Any]:
        part, uri = unit["part"], unit["uri"]
        ids = [row.example_id for row, _ in good]
        numbers = [row.number for row, _ in good]
        tokens = [item for _, item in good]
        table = token_table(
            ids,
            [row.example.stratum for row, _ in good],
            [item.input_ids for item in tokens],
            [item.response_ranges for item in tokens],
        )
        (self.folder / part_name(part)).write_table(table)
        kept = kept_rows(originals, ids, uri, numbers)
        (self.folder / rows_name(part)).write_table(kept)
        table = pa.table(
            [[uri] * len(rejected), *([row[k] for row in rejected] for k in range(3))],
            schema=REJECTED,
        )
        (self.staged / rejected_name(part)).write_table(table)
        return {
            "part": part,
            "rows": unit["num_rows"],
            "kept": len(good),
            "duplicates": sum(row.occurrence > 0 for row, _ in good),
            "tokens": sum(len(item.input_ids) for item in tokens),
            "longest_tokens": max((len(item.input_ids) for item in tokens), default=0),
            "prompt_tokens": sum(len(i.input_ids) - i.num_response_tokens for i in tokens),
            "strata": Counter(row.example.stratum for row, _ in good),
            "reasons": Counter(reason for _, reason, *_ in rejected),
            "cut": sum(item.is_cut for item in tokens),
            "left_out": _notes(good),
            "fields": column_types.encoded(field_types(kept)),
            "places": _first_locations(uri, rejected),
        }


def rejected_name(part: int) -> str:
    """Return the name of the file with the rejected rows of a part, in the folder `staged`."""
    return f"rejected-{part:06d}.parquet"


def _notes(rows: Sequence[tuple[_UsableRow, TokenisedExample]]) -> Counter[str]:
    """Return what was left out of rows, or handled in them: what it is -> how often."""
    notes: Counter[str] = Counter()
    for row, tokens in rows:
        notes.update(row.example.left_out)
        notes.update(tokens.notes)
    return notes


def _first_locations(uri: str, rejected: Sequence[RejectedRow]) -> dict[str, list[str]]:
    locations: dict[str, list[str]] = {}
    for row, reason, _, detail in rejected:
        of_reason = locations.setdefault(reason, [])
        if len(of_reason) < LOCATIONS_SHOWN:
            # What a template says is known from the template alone, so one row tells it for all.
            words = f": {detail}" if detail and not of_reason else ""
            of_reason.append(f"{place_of(uri, row)}{words}")
    return locations
