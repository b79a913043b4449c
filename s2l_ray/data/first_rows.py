"""The first rows of input files, which show before a run what it would refuse."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from s2l_ray.config.data import DataConfig
from s2l_ray.data import pool_checks, sources
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.pool_checks import FieldCount, FileResult
from s2l_ray.data.row_errors import place_of
from s2l_ray.data.sources import SourceRow
from s2l_ray.errors import DataError, check_rejected_share, first
from s2l_ray.storage.input_files import InputFile

READ_ROWS, LEAST_READ = 20_000, 1_000
"""Number of first rows that are read: from all files together, and at least from each file."""
MOST_IDS = 1_000_000
"""Ids that are remembered to tell repeated ones; of very many files, those of the first rows."""
LOCATIONS_KEPT = 3
"""Rows of each reason that are named."""


@dataclass(frozen=True)
class FirstRows:
    """The first rows of one file.

    Attributes:
        file: the file.
        rows: the rows, as they were read.
        whole: whether these are all rows of the file.
        examples: the usable ones.
        numbers: the row numbers of the examples.
    """

    file: InputFile
    rows: list[SourceRow]
    whole: bool
    examples: list[Example]
    numbers: list[int]


@dataclass
class Survey:
    """What the first rows of all files of one kind show.

    Attributes:
        key: the key of the configuration that names the files.
        data: the section of the configuration.
        rows: number of rows that were read.
        whole: whether these are all rows.
        rejected: number of rows that cannot be used, by reason.
        locations: some of them, by reason.
    """

    key: str
    data: DataConfig
    rows: int = 0
    whole: bool = True
    rejected: Counter[str] = field(default_factory=Counter)
    locations: dict[str, list[str]] = field(default_factory=dict)
    _fields: FieldCount = field(default_factory=FieldCount)
    _files: list[FileResult] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _refused: str = ""

    def read(self, files: Sequence[InputFile]) -> Iterable[FirstRows]:
        """Yield the first rows of each file that has any, and count them."""
        most = max(READ_ROWS // max(len(files), 1), LEAST_READ)
        for file in files:
            rows = sources.read_rows(file)
            some = list(itertools.islice(rows, most))
            whole = next(rows, None) is None
            self.rows += len(some)
            self.whole = self.whole and whole
            if some:
                yield self._sorted(file, some, whole)

    def reject(self, reason: str, location: str, number: int = 1) -> None:
        """Count rows that cannot be used, one of which is at `location`."""
        self.rejected[reason] += number
        kept = self.locations.setdefault(reason, [])
        if len(kept) < LOCATIONS_KEPT:
            kept.append(location)

    @property
    def among(self) -> str:
        """Return " of the first N rows", or "" if all rows were read."""
        return "" if self.whole else f" of the first {self.rows:,} rows"

    def check_usable(self) -> None:
        """Refuse files with too few usable rows among those that were read.

        Raises:
            DataError: there are no rows, no usable ones, or more than `data.max_rejected` are not.
        """
        if not self.rows:
            raise DataError(f"{self.key}: there are no rows in its files. Check the path.")
        if self._refused and self.rejected.total() >= self.rows:
            raise DataError(
                f"{self.key}: none of the first {self._refused}. Mend the data or data.fields."
            )
        check_rejected_share(
            self.key,
            self.rows,
            self.rejected,
            self.locations,
            self.data.max_rejected,
            whole=self.whole,
        )

    def check_pool(self) -> None:
        """Refuse what the stage `prepare` would refuse of these rows.

        Raises:
            DataError: as `check_usable`; or a named field is in no row, or a file is useless.
        """
        self.check_usable()
        pool_checks.check_named_fields(self._fields, self.data.fields, self.key, self.among)
        pool_checks.check_files(self._files, self.key)

    def line(self) -> str:
        """Return how many rows cannot be used, and why; "" if all can."""
        return rejected_line(self.rejected, self.rows, whole=self.whole)

    def _sorted(self, file: InputFile, rows: list[SourceRow], whole: bool) -> FirstRows:
        """Return the rows with the usable ones as examples."""
        examples, numbers = list[Example](), list[int]()
        problem, reasons = "", Counter[str]()
        for row in rows:
            example, reason, detail = self._looked_at(row)
            if example is not None:
                examples.append(example)
                numbers.append(row.row)
                continue
            problem = problem or f"row {row.row:,} (from 0): {detail}"
            reasons[reason] += 1
            self.reject(reason, place_of(file.uri, row.row))
        self._fields.add((row.fields for row in rows if row.fields is not None), self.data.fields)
        if whole:
            self._files.append(FileResult(file.uri, len(rows), len(examples), reasons))
        if not examples and not self._refused:
            self._refused = f"{len(rows):,} rows of {file.uri} can be used (first: {problem})"
        return FirstRows(file, rows, whole, examples, numbers)

    def _looked_at(self, row: SourceRow) -> tuple[Example | None, str, str]:
        """Return a row as an example; None, the reason and more of it if it cannot be used."""
        if row.fields is None:
            return None, str(row.reason), str(row.reason)
        try:
            example = read_example(row.fields, self.data.fields)
        except RowError as error:
            return None, error.reason, str(error)
        if example.id is not None and example.id in self._ids:
            return None, "duplicate id", f"duplicate id: {example.id!r}"
        if example.id is not None and len(self._ids) < MOST_IDS:
            self._ids.add(example.id)
        return example, "", ""


def check_held_out(name: str, data: DataConfig, files: Sequence[InputFile]) -> None:
    """Refuse a set of `data.eval` whose first rows show no use.

    Raises:
        DataError: as `Survey.check_usable`.
    """
    survey = Survey(f"data.eval.{name}", data.of_set(name))
    for _ in survey.read(files):
        pass
    survey.check_usable()


def rejected_line(counts: Mapping[str, int], num_rows: int, *, whole: bool = True) -> str:
    """Return how many rows cannot be used, and the commonest reasons; "" if all can.

    Args:
        counts: rejected rows by reason.
        num_rows: all rows that were read.
        whole: whether these are all that there are.
    """
    total = sum(counts.values())
    if not total:
        return ""
    by_count = sorted(counts.items(), key=lambda item: -item[1])
    reasons = first([f"{count:,} {reason}" for reason, count in by_count])
    of = f"{num_rows:,}" if whole else f"the first {num_rows:,}"
    return f"{total:,} of {of} rows cannot be used ({total / num_rows:.2%}): {reasons}"
