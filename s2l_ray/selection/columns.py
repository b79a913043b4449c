"""Columns of numbers, one per example, that rankings and budgets read; read part by part.

Four bytes per number of an example are held, and eight more for the order of the keys if parts are
joined whose rows are not in the order of the pool. Everything is joined by example id.

Shape letters: N examples of the pool, P of one part, T checkpoints.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.manifest import NORMS, pass_folder
from s2l_ray.artifacts.tables import WITHOUT_PROMPT, Parts
from s2l_ray.artifacts.token_tables import RANGES, num_response_tokens
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import DataError, first
from s2l_ray.selection import summaries
from s2l_ray.selection.methods import METHODS

MISMATCH = "Trajectories and data do not belong together"
TOKENS, RESPONSE_TOKENS, SQDIST = "tokens", "response_tokens", "sqdist"
BEFORE_SCORING = frozenset({TOKENS, RESPONSE_TOKENS, "score"})
"""Numbers that are known without a reference."""
ERROR_NORM = "error_norm"
"""Name of the mean error norm of an example's response tokens at the first checkpoint (EL2N)."""
IFD = "ifd"
"""Name of the loss at the last checkpoint divided by that without the prompt."""
REDO_NORMS = "Set `trajectories.error_norms: true` and redo them with `--from trajectories`"


@dataclass(frozen=True)
class Sources:
    """The files that a selection reads.

    Attributes:
        clusters: example_id, stratum, cluster, sqdist of the pool.
        trajectories: losses and what else scoring left; None if there are none.
        rows: the original rows; None if the run has no data.
    """

    clusters: Parts
    trajectories: Parts | None = None
    rows: Parts | None = None

    @property
    def prepared(self) -> Parts | None:
        """The numbers of tokens, which are in the same folder as the rows."""
        return Parts(self.rows.folder, more=self.rows.more) if self.rows is not None else None


def read(names: Collection[str], key_N: np.ndarray, sources: Sources) -> dict[str, np.ndarray]:
    """Return the numbers with these names for every example of the pool.

    Only the files that hold them are read.

    Args:
        names: `tokens` and `response_tokens` (end-of-sequence included, as trained on), `sqdist`,
            `error_norm`, `ifd`, or keys of `summaries.SUMMARIES`.
        key_N: uint64 (N,), unique hashes of the ids, as `clusters` has them.

    Returns:
        for each name (N,), int32 for tokens and float32 for the others.

    Raises:
        DataError: the files are missing, or an example has no number, or more than one.
    """
    number_by_name: dict[str, np.ndarray] = {}
    counted = {name: _COUNTED[name] for name in names if name in _COUNTED}
    if counted:
        number_by_name |= _counts(counted, key_N, sources)
    if SQDIST in names:
        number_by_name |= _joined(
            _Reads(sources.clusters, [SQDIST], _column(SQDIST)), key_N, sources
        )
    if ERROR_NORM in names:
        needed = f"{ERROR_NORM} of every example is needed"
        norms = scored_parts(NORMS, sources, needed, REDO_NORMS)
        number_by_name |= _joined(_Reads(norms, [ERROR_NORM], _column(ERROR_NORM)), key_N, sources)
    summarised: Computed = {name: _of_losses(name) for name in names if name in summaries.SUMMARIES}
    if IFD in names:
        summarised = {**summarised, IFD: _ifd}
    if summarised:
        if sources.trajectories is None or not sources.trajectories.files():
            where = f" in {sources.trajectories.folder_names}" if sources.trajectories else ""
            raise DataError(
                f"selection: {first(sorted(summarised))} of every example is needed, and there are "
                f"no trajectories{where}. Redo them with `--from trajectories`."
            )
        optional = (WITHOUT_PROMPT,) if IFD in names else ()
        reads = _Reads(sources.trajectories, ["loss_nats"], summarised, optional=optional)
        number_by_name |= _joined(reads, key_N, sources)
    return number_by_name


Computed = Mapping[str, Callable[[pa.Table], np.ndarray]]
"""Name of a number -> its values, computed from a table."""


@dataclass(frozen=True)
class _Reads:
    """Columns of some parts, and the numbers that are computed from them.

    Attributes:
        parts: the files.
        columns: those that are read, next to example_id.
        computed: functions from a table to one number per row.
        dtype: type of the numbers.
        optional: columns that are read as well where a file has them.
    """

    parts: Parts
    columns: list[str]
    computed: Computed
    dtype: type = np.float32
    optional: tuple[str, ...] = ()


_COUNTED: Computed = {
    TOKENS: lambda table: table["num_tokens"].to_numpy(),
    RESPONSE_TOKENS: num_response_tokens,
}


def token_counts_missing(where: str) -> DataError:
    """Return the error for a selection that needs numbers of tokens which were not counted.

    Args:
        where: the end of "numbers of tokens are needed, and".
    """
    counting = [name for name, row in METHODS.items() if {TOKENS, RESPONSE_TOKENS} & {*row.numbers}]
    return DataError(
        f"selection: the number of tokens of every example is needed (for a budget in tokens, "
        f"for the column tokens, in a condition, or for {first(counting)}), and {where}. Give "
        "`data` with `data.tokenizer`, so that `prepare` counts them, or a budget in examples "
        "(50000) or as a fraction (0.11)."
    )


def check_will_be_counted(config: RunConfig) -> None:
    """Raise DataError if no stage of a configuration counts the tokens of its rows."""
    if config.data is None:
        raise token_counts_missing("there is no `data`")
    scored = config.trajectories is not None and config.trajectories.path is None
    if config.data.tokenizer is None and not scored:
        raise token_counts_missing("`data.tokenizer` is not given")


def _counts(counted: Computed, key_N: np.ndarray, sources: Sources) -> dict[str, np.ndarray]:
    prepared = sources.prepared
    if prepared is None or not prepared.files():
        raise token_counts_missing("there are no prepared rows")
    columns = ["num_tokens", "num_prompt_tokens"]
    reads = _Reads(prepared, columns, counted, np.int32, optional=RANGES)
    counts = _joined(reads, key_N, sources)
    num_without = sum(int((count_N <= 0).sum()) for count_N in counts.values())
    if num_without:
        raise token_counts_missing(
            f"the rows in {prepared.folder_names} were prepared without a tokenizer"
        )
    return counts


def _column(name: str) -> Computed:
    return {name: lambda table: table[name].to_numpy()}


def _of_losses(name: str) -> Callable[[pa.Table], np.ndarray]:
    return lambda table: summaries.SUMMARIES[name](_losses(table))


def _ifd(table: pa.Table) -> np.ndarray:
    """Return the instruction-following difficulty; infinite if the loss without prompt is 0."""
    if WITHOUT_PROMPT not in table.column_names:
        raise DataError(
            "selection: losses without prompts are needed, and the trajectories have none. Set "
            "`trajectories.without_prompt: true` and redo them with `--from trajectories`."
        )
    with_N, without_N = _losses(table)[:, -1], table[WITHOUT_PROMPT].to_numpy()
    ratio_N = np.full(len(with_N), np.inf, np.float32)
    return np.divide(with_N, without_N, out=ratio_N, where=without_N > 0)


def _losses(table: pa.Table) -> np.ndarray:
    """Return the column `loss_nats`, float32 (P, T)."""
    losses = table["loss_nats"].combine_chunks()
    flat: np.ndarray = losses.flatten().to_numpy()
    return flat.reshape(len(losses), losses.type.list_size)


def _joined(reads: _Reads, key_N: np.ndarray, sources: Sources) -> dict[str, np.ndarray]:
    """Return the computed numbers for every key; rows with other keys are left out."""
    computed, parts = reads.computed, reads.parts
    value_by_name: dict[str, np.ndarray] = {
        name: np.empty(len(key_N), reads.dtype) for name in computed
    }
    has_row_N = np.zeros(len(key_N), bool)
    num_rows = 0
    for table, row_P in align_with_pool(parts, reads.columns, key_N, optional=reads.optional):
        in_pool_P = row_P >= 0
        for name, compute in computed.items():
            value_by_name[name][row_P[in_pool_P]] = compute(table)[in_pool_P]
        has_row_N[row_P[in_pool_P]] = True
        num_rows += int(in_pool_P.sum())
    if not has_row_N.all():
        refuse_missing(key_N[~has_row_N], len(key_N), parts, sources, _advice(parts, sources))
    refuse_repeated(num_rows - len(key_N), parts)
    return value_by_name


def scored_parts(prefix: str, sources: Sources, needed: str, advice: str) -> Parts:
    """Return the files with this prefix from the passes that left the trajectories.

    Args:
        needed: the beginning of the message if there are none: what needs them.
        advice: its end: what to do.

    Raises:
        DataError: there are none.
    """
    losses = sources.trajectories
    parts = None
    if losses is not None:
        folder, *more = (pass_folder(each, prefix) for each in (losses.folder, *losses.more))
        parts = Parts(folder, prefix, tuple(more))
    if parts is None or not parts.files():
        where = f" in {losses.folder_names}" if losses else ""
        raise DataError(
            f"selection: {needed}, and there are none{where}. {advice}; trajectories that were "
            "imported have none."
        )
    return parts


def align_with_pool(
    parts: Parts, columns: list[str], key_N: np.ndarray, *, optional: tuple[str, ...] = ()
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield each part with the row numbers of its examples in the pool.

    Returns:
        tables of example_id, `columns` and what a file has of `optional`, each with row_P, integer
        (P,); -1 for an example that is not in the pool.
    """
    sorter_N: np.ndarray | None = None
    start = 0
    for table in parts.tables(["example_id", *columns], optional=optional):
        key_P = column_keys(table["example_id"])
        stop = start + len(key_P)
        if np.array_equal(key_N[start:stop], key_P):
            # The usual case, as stages write the same parts.
            row_P = np.arange(start, stop)
        else:
            sorter_N = np.argsort(key_N) if sorter_N is None else sorter_N
            row_P = rows_of_keys(key_P, key_N, sorter_N)
        yield table, row_P
        start = stop


def rows_of_keys(key_P: np.ndarray, key_N: np.ndarray, sorter_N: np.ndarray) -> np.ndarray:
    """Return the rows of the pool with these keys, integer (P,); -1 for a key that it has not.

    Args:
        key_P: uint64 (P,), the keys.
        key_N: uint64 (N,), those of the pool.
        sorter_N: int64 (N,), the order that sorts `key_N`.
    """
    if not len(key_N):
        return np.full(len(key_P), -1)
    sorted_P = np.searchsorted(key_N, key_P, sorter=sorter_N)
    row_P: np.ndarray = sorter_N[sorted_P % len(key_N)]
    return np.where(key_N[row_P] == key_P, row_P, -1)


def refuse_repeated(num_repeated: int, parts: Parts) -> None:
    """Raise DataError if several rows of `parts` have the same example_id."""
    if num_repeated > 0:
        raise DataError(
            f"selection: {num_repeated:,} rows of {parts.folder_names} repeat an example_id. "
            "Every example_id must be unique."
        )


def refuse_missing(
    missing_keys: np.ndarray, num_examples: int, parts: Parts, sources: Sources, advice: str
) -> NoReturn:
    """Raise DataError: the examples with these keys have no row in `parts`."""
    ids = ids_of(missing_keys[:4], sources)
    raise DataError(
        f"selection: {len(missing_keys):,} of {num_examples:,} examples have no row in "
        f"{parts.folder_names} (first: {first(ids)}). {advice}"
    )


def ids_of(some_keys: np.ndarray, sources: Sources) -> list[str]:
    """Return the ids with these keys, in the order of the pool."""
    ids: list[str] = []
    for table in sources.clusters.tables(["example_id"]):
        key_P = column_keys(table["example_id"])
        row_P = np.flatnonzero(np.isin(key_P, some_keys))
        ids += table["example_id"].take(pa.array(row_P)).to_pylist()
    return ids


def _advice(parts: Parts, sources: Sources) -> str:
    again = ", and extend the run again" if parts.more else ""
    if parts.prefix == NORMS:
        return f"{REDO_NORMS}{again}."
    if parts != sources.trajectories:
        return f"{MISMATCH}: check data.train, and data.fields.id."
    return f"Losses are gone: redo them with `--from trajectories`{again}."
