"""Examples that the page shows: a sample over all clusters, and rows that were rejected.

Shapes: N examples, T checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import REJECTED_ROWS
from s2l_ray.artifacts.tables import Parts, original_rows
from s2l_ray.config.data import DataConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.data.examples import Example, read_example
from s2l_ray.data.row_errors import place_of
from s2l_ray.report import data_block, numbers, ranked_head
from s2l_ray.report.cluster_rows import NUM_ENDS, ClusterRows, losses
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.failures import explained
from s2l_ray.storage.location import Location

MAX_EXAMPLES = 1_800
MAX_REJECTED = 200
MAX_EXCERPT = 400
"""Characters of a prompt and of a response."""
MAX_BYTES = 2_200_000
"""Bytes of all examples on the page; with longer rows, fewer are shown."""
MAX_FILES = 512
"""Files of original rows that are read whole."""
ROWS_PER_READ = 1 << 14
TYPICAL, EXTREME = "typical", "extreme"


@dataclass(frozen=True)
class ExampleRow:
    """One example, or a rejected row; None and empty values are not known or do not apply."""

    id: str
    prompt: str = ""
    response: str = ""
    cluster: int | None = None
    stratum: str = ""
    is_selected: bool | None = None
    kind: str = ""
    """TYPICAL or EXTREME: nearest to the centroid of its cluster, or farthest from it."""
    reason: str = ""
    """The reason why the row was rejected."""
    losses: Sequence[float] = ()
    """T losses, nats per token."""


def chosen_ids(finished: Mapping[str, Finished], shown: Sequence[int]) -> list[str]:
    """Return the ids of the selected examples that the sample holds, best ranked first."""
    if SELECTION.name not in finished or not shown:
        return []
    of_each = max(1, (MAX_EXAMPLES // len(shown) - 2 * NUM_ENDS) // 2)
    return ranked_head.first_ids(finished[SELECTION.name], shown, of_each)


def example_rows(
    finished: Mapping[str, Finished], data: DataConfig | None, rows: ClusterRows
) -> list[ExampleRow]:
    """Return at most MAX_EXAMPLES examples of the clusters, with their text where it is known.

    Typical and extreme examples of all clusters come first, then selected ones, then others.
    """
    sample = _sample(rows)
    ids = sample["example_id"].to_pylist() if sample.num_rows else []
    selection = finished.get(SELECTION.name)
    selected = ranked_head.among(selection, ids) if selection else None
    text_of = _texts(finished, data, ids)
    loss_NT, found, num_bytes = losses(sample), [], 0
    for index, example_id in enumerate(ids):
        if text_of is not None and example_id not in text_of:
            continue
        prompt, response = text_of[example_id] if text_of else ("", "")
        example = ExampleRow(
            example_id,
            numbers.excerpt(prompt, MAX_EXCERPT),
            numbers.excerpt(response, MAX_EXCERPT),
            sample["cluster"][index].as_py(),
            sample["stratum"][index].as_py() or "",
            None if selected is None else example_id in selected,
            sample["kind"][index].as_py(),
            losses=() if loss_NT is None else loss_NT[index].tolist(),
        )
        num_bytes += len(data_block.as_json([example.prompt, example.response]).encode())
        if num_bytes > MAX_BYTES:
            break
        found.append(example)
    return found


def rejected_rows(finished: Mapping[str, Finished]) -> list[ExampleRow]:
    """Return the first rejected rows of every reason, at most MAX_REJECTED in all."""
    if PREPARE.name not in finished:
        return []
    reasons = finished[PREPARE.name].summary["rejected"]
    file = finished[PREPARE.name].folder / REJECTED_ROWS
    if not reasons or not file.is_file():
        return []
    of_each = -(-MAX_REJECTED // len(reasons))
    left = {reason: min(of_each, number) for reason, number in reasons.items()}
    found: list[ExampleRow] = []
    with explained(file, "read"), file.open() as stream:
        for batch in pq.ParquetFile(stream).iter_batches(ROWS_PER_READ):
            for row in batch.to_pylist():
                if left.get(row["reason"], 0):
                    left[row["reason"]] -= 1
                    found.append(_rejected(row))
            if not any(left.values()):
                break
    return found[:MAX_REJECTED]


def rows_by_id(rows: Parts, ids: Sequence[str], max_files: int) -> dict[str, dict[str, Any]]:
    """Return the original rows with these ids, from at most `max_files` files.

    If more files hold them, the rows of the first ids are returned. Files after the last of them
    are not read.
    """
    wanted, file_of = pa.array(ids, pa.string()), dict[str, Location]()
    for file in rows.files():
        if len(file_of) == len(set(ids)):
            break
        present = file.read_table(["example_id"])["example_id"]
        file_of |= dict.fromkeys(present.filter(pc.is_in(present, wanted)).to_pylist(), file)
    row_by_id: dict[str, dict[str, Any]] = {}
    read = dict.fromkeys(file_of[each] for each in ids if each in file_of)
    for file in list(read)[:max_files]:
        part = file.read_table()
        part = part.filter(pc.is_in(part["example_id"], wanted))
        row_by_id |= dict(zip(part["example_id"].to_pylist(), original_rows(part), strict=True))
    return row_by_id


def _sample(rows: ClusterRows) -> pa.Table:
    """Return the rows of the sample once each, with a column `kind`, in order of importance."""
    tables = [
        *_by_place(rows.nearest, TYPICAL),
        *_by_place(rows.farthest, EXTREME),
        *_by_place(rows.asked, ""),
        *_by_place(rows.sampled, ""),
    ]
    if not tables:
        return pa.table({})
    every = pa.concat_tables(tables, promote_options="default")
    firsts = dict[str, int]()
    for index, example_id in enumerate(every["example_id"].to_pylist()):
        firsts.setdefault(example_id, index)
    return every.take(pa.array(list(firsts.values())[:MAX_EXAMPLES], pa.int64()))


def _by_place(rows: pa.Table, kind: str) -> Iterator[pa.Table]:
    """Yield the rows so that the first of every cluster come before the second of any."""
    if not rows.num_rows:
        return
    seen: dict[int, int] = {}
    places = []
    for cluster in rows["cluster"].to_pylist():
        places.append(seen.get(cluster, 0))
        seen[cluster] = places[-1] + 1
    order = sorted(range(len(places)), key=lambda row: places[row])
    table = rows.take(pa.array(order, pa.int64()))
    names = [name for name in ("example_id", "stratum", "cluster", "loss_nats")
             if name in table.column_names]  # fmt: skip
    yield table.select(names).append_column("kind", pa.array([kind] * table.num_rows))


def _texts(
    finished: Mapping[str, Finished], data: DataConfig | None, ids: Sequence[str]
) -> dict[str, tuple[str, str]] | None:
    """Return prompt and response by id; None for a run without prepared rows."""
    if data is None or PREPARE.name not in finished:
        return None
    texts = {}
    rows = Parts(finished[PREPARE.name].folder, "rows")
    for example_id, row in rows_by_id(rows, ids, MAX_FILES).items():
        example = read_example(row, data.fields.of_pool)
        texts[example_id] = (_asked(example), example.response)
    return texts


def _asked(example: Example) -> str:
    """Return the question: in a conversation after earlier messages, else before its context."""
    is_conversation = example.is_chat or len(example.messages) > 2
    parts = [example.prompt, example.context]
    return "\n\n".join(part for part in (parts[::-1] if is_conversation else parts) if part)


def _rejected(row: Mapping[str, Any]) -> ExampleRow:
    place = place_of(row["file"], row["row"])
    return ExampleRow(
        numbers.with_marks(place),
        numbers.excerpt(row["excerpt"] or "", MAX_EXCERPT),
        reason=row["reason"],
    )
