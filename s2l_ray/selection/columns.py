"""Numbers of each example that rankings and budgets look at, streamed in part by part.

Of an example four bytes per number are held, and while parts that do not run parallel to the pool
are joined, eight for the order of the keys. Everything is joined by example id.

Shape letters: N examples of the pool, P of one part, T checkpoints.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import NORMS, Parts
from s2l_ray.errors import DataError, first
from s2l_ray.selection import summaries

APART = "Trajectories and data do not belong together"
TOKENS, RESPONSE_TOKENS, SQDIST = "tokens", "response_tokens", "sqdist"
ERROR_NORM = "error_norm"
"""The mean error norm of an example's response tokens at the first checkpoint (EL2N)."""
REDO_NORMS = "Set `trajectories.error_norms: true` and redo them with `--from trajectories`"


@dataclass(frozen=True)
class Sources:
    """Where an example's numbers lie; None where a run has no such stage."""

    clusters: Parts
    trajectories: Parts | None = None
    prepared: Parts | None = None


def read(names: Collection[str], key_N: np.ndarray, sources: Sources) -> dict[str, np.ndarray]:
    """The numbers of these names for every example of the pool; reads what they need alone.

    Args:
        names: `tokens` and `response_tokens` (end-of-sequence included, as trained on), `sqdist`,
            `error_norm`, or names of `summaries.OF_TRAJECTORY`.
        key_N: uint64 (N,), unique hashes of the ids, as `clusters` has them.

    Returns:
        for each name int32 (N,) of tokens, or float32 (N,).

    Raises:
        DataError: there are none, or an example has no number, or more than one.
    """
    found: dict[str, np.ndarray] = {}
    counted = {name: _COUNTED[name] for name in names if name in _COUNTED}
    if counted:
        found |= _counts(counted, key_N, sources)
    if SQDIST in names:
        computed = {SQDIST: lambda table: table[SQDIST].to_numpy()}
        found |= _joined(sources.clusters, [SQDIST], computed, np.float32, key_N, sources)
    if ERROR_NORM in names:
        computed = {ERROR_NORM: lambda table: table[ERROR_NORM].to_numpy()}
        norms = beside_losses(
            NORMS, sources, f"{ERROR_NORM} of every example is needed", REDO_NORMS
        )
        found |= _joined(norms, [ERROR_NORM], computed, np.float32, key_N, sources)
    summarised = {name: _of_losses(name) for name in names if name in summaries.OF_TRAJECTORY}
    if summarised:
        if sources.trajectories is None or not sources.trajectories.files():
            where = f" in {sources.trajectories.places}" if sources.trajectories else ""
            raise DataError(
                f"selection: {first(sorted(summarised))} of every example is needed, and there are "
                f"no trajectories{where}. Redo them with `--from trajectories`."
            )
        columns = ["loss_nats"]
        found |= _joined(sources.trajectories, columns, summarised, np.float32, key_N, sources)
    return found


Computed = Mapping[str, Callable[[pa.Table], np.ndarray]]
_COUNTED: Computed = {
    TOKENS: lambda table: table["num_tokens"].to_numpy(),
    RESPONSE_TOKENS: lambda table: (
        table["num_tokens"].to_numpy() - table["num_prompt_tokens"].to_numpy()
    ),
}


def no_counts(where: str) -> DataError:
    """What to say where tokens are to be counted and never were."""
    return DataError(
        f"selection: the number of tokens of every example is needed (for a budget in tokens, or "
        f"for longest-responses), and {where}. Give `data` with `data.tokenizer`, so that "
        "`prepare` counts them, or a budget in examples (50000) or as a fraction (0.11)."
    )


def _counts(counted: Computed, key_N: np.ndarray, sources: Sources) -> dict[str, np.ndarray]:
    prepared = sources.prepared
    if prepared is None or not prepared.files():
        raise no_counts("there are no prepared rows")
    columns = ["num_tokens", "num_prompt_tokens"]
    found = _joined(prepared, columns, counted, np.int32, key_N, sources)
    num_without = sum(int((count_N <= 0).sum()) for count_N in found.values())
    if num_without:
        raise no_counts(f"the rows in {prepared.places} were prepared without a tokenizer")
    return found


def _of_losses(name: str) -> Callable[[pa.Table], np.ndarray]:
    def summarised(table: pa.Table) -> np.ndarray:
        losses = table["loss_nats"].combine_chunks()
        loss_PT = losses.flatten().to_numpy().reshape(len(losses), losses.type.list_size)
        return summaries.OF_TRAJECTORY[name](loss_PT)

    return summarised


def _joined(
    parts: Parts,
    columns: list[str],
    computed: Computed,
    dtype: type,
    key_N: np.ndarray,
    sources: Sources,
) -> dict[str, np.ndarray]:
    """What `computed` makes of the rows of `parts`, for every key; other rows are left out."""
    value_by_name: dict[str, np.ndarray] = {name: np.empty(len(key_N), dtype) for name in computed}
    met_N = np.zeros(len(key_N), bool)
    num_met = 0
    for table, row_P in located(parts, columns, key_N):
        is_ours_P = row_P >= 0
        for name, compute in computed.items():
            value_by_name[name][row_P[is_ours_P]] = compute(table)[is_ours_P]
        met_N[row_P[is_ours_P]] = True
        num_met += int(is_ours_P.sum())
    if not met_N.all():
        refuse_missing(key_N[~met_N], len(key_N), parts, sources, _advice(parts, sources))
    refuse_repeated(num_met - len(key_N), parts)
    return value_by_name


def beside_losses(prefix: str, sources: Sources, needed: str, advice: str) -> Parts:
    """The files beside trajectories whose names begin so; a DataError where there are none."""
    losses = sources.trajectories
    parts = Parts(losses.folder, prefix, losses.more) if losses is not None else None
    if parts is None or not parts.files():
        where = f" in {parts.places}" if parts else ""
        raise DataError(
            f"selection: {needed}, and there are none{where}. {advice}; trajectories from "
            "elsewhere have none."
        )
    return parts


def located(
    parts: Parts, columns: list[str], key_N: np.ndarray
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Each part with the places of its examples in the pool; -1 for one that is not in it."""
    sorter_N: np.ndarray | None = None
    start = 0
    for table in parts.tables(["example_id", *columns]):
        key_P = hashing.example_keys(table["example_id"].to_pylist())
        stop = start + len(key_P)
        if np.array_equal(key_N[start:stop], key_P):
            # Stages write part for part, so this is the rule.
            row_P = np.arange(start, stop)
        else:
            sorter_N = np.argsort(key_N) if sorter_N is None else sorter_N
            place_P = np.searchsorted(key_N, key_P, sorter=sorter_N)
            row_P = sorter_N[place_P % max(len(key_N), 1)]
            row_P = np.where(key_N[row_P] == key_P, row_P, -1)
        yield table, row_P
        start = stop


def refuse_repeated(num_repeated: int, parts: Parts) -> None:
    """Raise DataError when rows of `parts` are of one example."""
    if num_repeated > 0:
        raise DataError(
            f"selection: {num_repeated:,} rows of {parts.places} repeat an example_id. "
            "Every example_id must be unique."
        )


def refuse_missing(
    missing_keys: np.ndarray, num_examples: int, parts: Parts, sources: Sources, advice: str
) -> NoReturn:
    """Raise DataError: the examples with these keys have no row in `parts`."""
    ids: list[str] = []
    for table in sources.clusters.tables(["example_id"]):
        key_P = hashing.example_keys(table["example_id"].to_pylist())
        row_P = np.flatnonzero(np.isin(key_P, missing_keys[:4]))
        ids += table["example_id"].take(pa.array(row_P)).to_pylist()
    raise DataError(
        f"selection: {len(missing_keys):,} of {num_examples:,} examples have no row in "
        f"{parts.places} (first: {first(ids)}). {advice}"
    )


def _advice(parts: Parts, sources: Sources) -> str:
    again = ", and extend the run again" if parts.more else ""
    if parts.prefix == NORMS:
        return f"{REDO_NORMS}{again}."
    if parts != sources.trajectories:
        return f"{APART}: check data.train, and data.fields.id."
    return f"Losses are gone: redo them with `--from trajectories`{again}."
