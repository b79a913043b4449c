"""Exports: a folder with the rows of a subset for a trainer, and the lines of its configuration."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.config.data import DataConfig
from s2l_ray.errors import DataError, first
from s2l_ray.export.conversation import CannotHold, as_json, conversations, survey
from s2l_ray.export.rows import Row
from s2l_ray.export.trainers import CHAT_TEMPLATE, TRAINERS, Trainer, Written
from s2l_ray.storage.location import Location

ROWS_PER_BATCH = 1024
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_MARKS = (
    f"{CHAT_TEMPLATE} has no {{% generation %}} marks around what is learned, which "
    "assistant_only_loss needs: add them, or run with data.turns: last"
)
ReadRows = Callable[[], Iterator[dict[str, Any]]]
"""Reads the original rows of a subset, with example_id, from their beginning."""


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        path: its folder.
        trainer: the key of TRAINERS.
        num_rows: the rows that were written.
        files: the names of the files, the rows first.
        notes: what the trainer reads otherwise than the rows say, and what was left out; each with
            its number of rows.
        command: the command that trains, with MODEL and OUT to fill in.
    """

    path: str
    trainer: str
    num_rows: int
    files: tuple[str, ...]
    notes: tuple[str, ...]
    command: str

    def lines(self, path: str) -> list[str]:
        """Return the lines of the terminal.

        Args:
            path: the folder as it is to be shown.
        """
        title = TRAINERS[self.trainer].title
        return [
            f"{'rows':<10}{self.num_rows:,}, for {title}",
            *(f"{'note':<10}{note}" for note in self.notes),
            *(f"{'written':<10}{path}/{name}" for name in self.files),
            "",
            self.command,
        ]


def export(
    read_rows: ReadRows,
    data: DataConfig,
    trainer: str,
    out: Location,
    chat_template: str | None = None,
) -> Exported:
    """Write rows for a trainer into a new or empty folder, one batch in memory at a time.

    Args:
        read_rows: reads the original rows.
        data: the section of the run.
        trainer: a key of TRAINERS.
        out: the folder.
        chat_template: the Jinja text of `data.chat_template`; None if there is none.

    Raises:
        DataError: the folder is not empty, or no row can be written.
    """
    check_new(out)
    known = TRAINERS[trainer]
    common = survey(conversations(read_rows(), data))
    file = out / f"selected.{known.suffix}"
    template = "" if chat_template is None or common.is_text else str(out / CHAT_TEMPLATE)
    written = Written(str(out), str(file), common, data.max_tokens, template)
    outcome = _Outcome(known, written)
    with file.open_atomic() as stream:
        if known.suffix == "parquet":
            _write_parquet(stream, lambda: outcome.rows(read_rows, data))
        else:
            for row in outcome.rows(read_rows, data):
                stream.write(as_json(row).encode() + b"\n")
        if not outcome.num_rows:
            raise DataError(
                f"export: {known.title} can hold none of {common.num_rows:,} rows: "
                f"{first(outcome.notes(data))}. Choose another trainer."
            )
    notes = outcome.notes(data)
    if template and known.needs_marks and common.has_several_answers:
        notes += () if GENERATION.search(str(chat_template)) else (NO_MARKS,)
    files = known.files(written)
    command = known.command(written)
    if template:
        files[CHAT_TEMPLATE] = str(chat_template)
    files["README.md"] = _readme(trainer, outcome.num_rows, notes, command)
    for name, text in files.items():
        (out / name).write_bytes(text.encode())
    return Exported(str(out), trainer, outcome.num_rows, (file.name, *files), notes, command)


def check_new(out: Location) -> None:
    """Raise DataError if `out` is a file, or a folder that is not empty."""
    names = out.names() if out.is_folder() else []
    if names or (out.exists() and not out.is_folder()):
        what = f"a folder with {first(names)}" if names else "a file"
        raise DataError(f"{out} is {what}. Name a folder that is new or empty.")


class _Outcome:
    """Makes rows, and counts what became of them."""

    def __init__(self, trainer: Trainer, written: Written) -> None:
        self._trainer, self._written = trainer, written
        self.num_rows = 0
        self._notes: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def rows(self, read_rows: ReadRows, data: DataConfig) -> Iterator[Row]:
        """Yield the rows of the trainer, and count anew."""
        self.num_rows = 0
        self._notes.clear()
        self._left_out.clear()
        for conversation in conversations(read_rows(), data):
            try:
                row, notes = self._trainer.to_row(conversation, self._written.survey)
            except CannotHold as reason:
                self._left_out[str(reason)] += 1
                examples = self._examples.setdefault(str(reason), [])
                if len(examples) < 3 and conversation.example_id not in examples:
                    examples.append(conversation.example_id)
                continue
            self._notes.update(notes)
            self.num_rows += 1
            yield row

    def notes(self, data: DataConfig) -> tuple[str, ...]:
        """Return what a user should know, with numbers of rows."""
        of_all = f"of {self._written.survey.num_rows:,} rows"
        left_out = [
            f"left out, because {reason}: {count:,} {of_all} (first: "
            f"{first(self._examples[reason])})"
            for reason, count in self._left_out.most_common()
        ]
        otherwise = [f"{note}: {count:,} {of_all}" for note, count in self._notes.most_common()]
        return tuple([*left_out, *otherwise, *self._note_on_template(data)])

    def _note_on_template(self, data: DataConfig) -> list[str]:
        """Say with which template rows were scored, unless the trainer is told, or none is set."""
        trainer, written = self._trainer, self._written
        if written.survey.is_text:
            text = (
                f"{trainer.title} writes the text around rows by its own template; the run has "
                f"scored them with data.template: {data.template_name}"
            )
            return [text] if trainer.renders else []
        if not data.chat_template:
            return []
        scored = f"the run has scored rows with data.chat_template: {data.chat_template}"
        if not written.chat_template:
            return [f"{scored}; give {trainer.title} the same"]
        return [f"{scored}; {trainer.title} {trainer.template}"] if trainer.template else []


def _write_parquet(stream: IO[bytes], rows: Callable[[], Iterator[Row]]) -> None:
    """Write rows with a type for each column that all of them fit; they are read twice.

    Raises:
        DataError: no type fits all values.
    """
    try:
        schema = pa.schema([])
        for batch in _batches(rows()):
            found = pa.Table.from_pylist(batch).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        with pq.ParquetWriter(stream, schema) as writer:
            for batch in _batches(rows()):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"export: the rows do not fit into columns of Parquet ({cause}): their tools differ in "
            "the types of a key. Choose a trainer that reads jsonl."
        ) from None


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        yield batch


def _readme(trainer: str, num_rows: int, notes: tuple[str, ...], command: str) -> str:
    known = TRAINERS[trainer]
    lines = [f"# {num_rows:,} selected rows for {known.title}", "", "```text", command, "```"]
    if notes:
        lines += ["", *(f"* {note}" for note in notes)]
    return "\n".join([*lines, ""])
