"""The first rows of a pool as a model reads them: what `s2l preview` prints."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.data import pool_checks, sources
from s2l_ray.data.declaration import check_template, pool_files, pool_tokenizer
from s2l_ray.data.examples import example_id, read_example
from s2l_ray.data.row_errors import RowError, place_of
from s2l_ray.data.sources import SourceRow
from s2l_ray.data.templates import Template, load_template
from s2l_ray.data.tokenise import TokenisedExample, decoded, tokenise
from s2l_ray.errors import ConfigError
from s2l_ray.models.tokenizers import load_tokenizer
from s2l_ray.storage.location import Location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_SCANNED = 1_000
"""First rows whose rejection and cut are counted."""
LOSS = "bold green"
"""The style of text with loss, on a terminal."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class PreviewedRow:
    """A row of the pool, tokenised or rejected.

    Attributes:
        file: the URI of its file.
        row: its number in that file, from 0.
        fields: the row; None if it cannot be parsed.
        example_id: as in the prepared pool; None if it is rejected.
        stratum: its stratum.
        tokens: its tokens; None if it is rejected.
        rejected: why it is.
        left_out: messages left out of it: what they are -> their number.
    """

    file: str
    row: int
    fields: Mapping[str, Any] | None
    example_id: str | None = None
    stratum: str = ""
    tokens: TokenisedExample | None = None
    rejected: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


class Previewer:
    """Reads, renders and tokenises rows as the stage `prepare` does, one after the other."""

    def __init__(self, config: RunConfig) -> None:
        """Load the tokenizer and the template.

        Raises:
            UserError: there is no data or no tokenizer, or one of them cannot be used.
        """
        name = pool_tokenizer(config)
        if config.data is None or name is None:
            raise ConfigError(
                "preview: there is nothing to tokenise. Give `data`, and a tokenizer: "
                "data.tokenizer, or a `reference`."
            )
        check_template(config)
        self.data: DataConfig = config.data
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(name)
        self.template: Template = load_template(self.data)
        self.listing = pool_files(self.data, Location.of(config.run_dir))

    def rows(self) -> Iterator[PreviewedRow]:
        """Yield the rows of the pool, file by file."""
        known = Counter[str]()
        for file in self.listing.files:
            for row in sources.read_rows(file):
                yield self._row(file.uri, row, known)

    def _row(self, uri: str, row: SourceRow, known: Counter[str]) -> PreviewedRow:
        if row.fields is None:
            return PreviewedRow(uri, row.row, None, rejected=f"{row.reason}: {row.excerpt}")
        try:
            example = read_example(row.fields, self.data.fields.of_pool)
            first_id = example_id(example, 0)
            occurrence, known[first_id] = known[first_id], known[first_id] + 1
            if occurrence and example.id is not None:
                raise RowError("duplicate id", repr(example.id))
            (item,) = tokenise([example], self.template, self.tokenizer, self.data.max_tokens)
            if isinstance(item, RowError):
                raise item
        except RowError as error:
            return PreviewedRow(uri, row.row, row.fields, rejected=str(error))
        return PreviewedRow(
            uri,
            row.row,
            row.fields,
            example_id(example, occurrence),
            example.stratum,
            item,
            left_out=example.left_out,
        )

    def segments(self, tokens: TokenisedExample) -> list[tuple[str, bool]]:
        """Return the text that a model reads in pieces, each with whether it carries loss."""
        return decoded(tokens, self.tokenizer)


def json_lines(previewer: Previewer, num_rows: int) -> Iterator[str]:
    """Yield one line of JSON for each of the first rows, rejected ones included.

    A line is {"example_id", "segments": [{"text", "loss"}]}, or {"file", "row", "rejected"}.
    """
    for row in itertools.islice(previewer.rows(), num_rows):
        if row.tokens is None:
            yield json.dumps({"file": row.file, "row": row.row, "rejected": row.rejected})
        else:
            pieces = previewer.segments(row.tokens)
            segments = [{"text": text, "loss": loss} for text, loss in pieces]
            yield json.dumps({"example_id": row.example_id, "segments": segments})


def show(previewer: Previewer, num_rows: int, console: Console) -> None:
    """Print the first rows, with colour for loss or in brackets, and what would be rejected.

    Raises:
        UserError: the rows read lack a field that the configuration names.
    """
    data = previewer.data
    count = pool_checks.FieldCount()
    reasons, left_out, num_read, num_cut = Counter[str](), Counter[str](), 0, 0
    first_place: dict[str, str] = {}
    rows = previewer.rows()
    for number, row in enumerate(itertools.islice(rows, max(ROWS_SCANNED, num_rows))):
        if number < num_rows:
            _print_row(row, previewer, console)
        num_read += 1
        if row.fields is not None:
            count.add([row.fields], data.fields)
        if row.tokens is None:
            reason, _, detail = row.rejected.partition(": ")
            reasons[reason] += 1
            first_place.setdefault(reason, f"{place_of(row.file, row.row)}: {detail or reason}")
        else:
            num_cut += row.tokens.is_cut
            left_out.update(row.left_out)
            left_out.update(row.tokens.notes)
    among = "" if next(rows, None) is None else " first"
    for note in previewer.listing.notes:
        console.print(Text(_visible(note)))
    _print_summary(console, f"{num_read:,}{among} rows", reasons, first_place)
    if reasons.total() > data.max_rejected * num_read:
        console.print(
            f"That is more than data.max_rejected ({data.max_rejected:.2%}), so `s2l run` would "
            "stop."
        )
    for what, number in sorted(left_out.items()):
        console.print(Text(f"{number:,} {_visible(what)}"))
    if num_cut:
        console.print(
            f"{num_cut:,} of them are longer than data.max_tokens ({data.max_tokens:,}) and lose "
            "their end."
        )
    pool_checks.check_named_fields(count, data.fields, "data.train", among and " read")


def _print_row(row: PreviewedRow, previewer: Previewer, console: Console) -> None:
    place = place_of(row.file, row.row)
    if row.tokens is None:
        console.print(Text(f"{place}: rejected: {_visible(row.rejected)}\n", style="red"))
        return
    tokens = row.tokens
    facts = [
        place,
        f"id {row.example_id}",
        *([f"stratum {row.stratum}"] if row.stratum else []),
        f"{len(tokens.input_ids):,} tokens, {tokens.num_response_tokens:,} with loss",
        *(["cut at data.max_tokens"] if tokens.is_cut else []),
        *tokens.notes,
        *(f"{number} {what}" for what, number in row.left_out.items()),
    ]
    console.print(Text(_visible(" · ".join(facts)), style="dim"))
    text = Text()
    for piece, has_loss in previewer.segments(tokens):
        if not has_loss:
            text.append(_visible(piece))
        elif console.color_system is None:
            text.append(f"[[{_visible(piece)}]]")
        else:
            text.append(_visible(piece), style=LOSS)
    console.print(text)
    console.print()


def _print_summary(
    console: Console, rows: str, reasons: Mapping[str, int], first_place: Mapping[str, str]
) -> None:
    marks = "in [[ ]]" if console.color_system is None else "in colour"
    console.print(Text(f"Text {marks} carries loss."))
    if not reasons:
        console.print(f"None of the {rows} would be rejected.")
        return
    console.print(f"{sum(reasons.values()):,} of the {rows} would be rejected:")
    for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
        console.print(Text(f"  {number:,} {reason} (first: {_visible(first_place[reason])})"))


def _visible(text: str) -> str:
    """Return text of unknown origin without control characters, which could rule a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
