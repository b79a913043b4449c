"""The list of the rows that hold a prompt of an evaluation set, and their counts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.data.compared_tables import NAMES, ComparedTable
from s2l_ray.data.contamination import SAME_PROMPT, different_prompts
from s2l_ray.data.row_comparer import MATCHES, matches_name
from s2l_ray.errors import first
from s2l_ray.storage.location import Location

CONTAMINATED = pa.schema(
    [
        *NAMES,
        ("set", pa.string()),
        ("eval_file", pa.string()),
        ("eval_row", pa.int64()),
        *(MATCHES.field(name) for name in ("kind", "share", "matched")),
    ]
)
"""Columns of the list, which has a line for every row and every different prompt that it holds."""


def matched_tables(
    folder: Location, results: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the matches of each table that has any."""
    for result in results:
        if result["matches"]:
            yield result["number"], (folder / matches_name(result["number"])).read_table()


def write_list(
    file: Location,
    tables: Sequence[ComparedTable],
    matches: Iterator[tuple[int, pa.Table]],
    prompts: pa.Table,
) -> dict[str, Any]:
    """Write the list to `file`, and return the counts.

    Returns:
        `rows`, the number of rows in the list; and `sets`: for each evaluation set the number of
        different `prompts`, how many of them were `found`, and the rows that hold the `same_prompt`
        as one, or, if none, an `overlap`.
    """
    names = prompts["set"].to_pylist()
    num_prompts = Counter(prompt.set for prompt in different_prompts(prompts))
    found: dict[str, set[int]] = {name: set() for name in num_prompts}
    num_rows, same, overlapping = 0, Counter[str](), Counter[str]()
    with file.open_atomic() as stream, pq.ParquetWriter(stream, CONTAMINATED) as writer:
        for number, table in matches:
            writer.write_table(_lines(tables[number], table, prompts))
            kinds: dict[tuple[int, str], str] = {}
            for line in table.select(["position", "prompt", "kind"]).to_pylist():
                name = names[line["prompt"]]
                found[name].add(line["prompt"])
                row = line["position"], name
                kinds[row] = SAME_PROMPT if line["kind"] == SAME_PROMPT else kinds.get(row, "")
            num_rows += len({position for position, _ in kinds})
            same.update(name for (_, name), kind in kinds.items() if kind)
            overlapping.update(name for (_, name), kind in kinds.items() if not kind)
    sets = {
        name: {
            "prompts": num_prompts[name],
            "found": len(found[name]),
            "same_prompt": same[name],
            "overlap": overlapping[name],
        }
        for name in num_prompts
    }
    return {"rows": num_rows, "sets": sets}


def notes(
    counts: Mapping[str, Any], unusable: Mapping[str, int], *, are_dropped: bool
) -> list[str]:
    """Return the sentences about it for the line of `prepare`; none if nothing was found."""
    said = []
    if counts["rows"]:
        of_sets = [
            f"{name} {item['same_prompt'] + item['overlap']:,}"
            for name, item in counts["sets"].items()
            if item["found"]
        ]
        same = sum(item["same_prompt"] for item in counts["sets"].values())
        is_done = (
            "they are left out"
            if are_dropped
            else "look at them before data.decontaminate: drop leaves them out"
        )
        said.append(
            f"{counts['rows']:,} row(s) are like a prompt of an evaluation set "
            f"({first(of_sets, 8)}): {same:,} have the same prompt, the others much of its text, "
            f"as rows of one template have. prepared/contaminated.parquet lists them; {is_done}"
        )
    for name, number in unusable.items():
        if number:
            said.append(
                f"{number:,} row(s) of data.eval.{name} cannot be used, and are not looked for in "
                "the pool"
            )
    return said


def _lines(table: ComparedTable, matches: pa.Table, prompts: pa.Table) -> pa.Table:
    names, held = table.names(matches["position"].to_numpy()), prompts.take(matches["prompt"])
    columns = [*names.columns, held["set"], held["file"], held["row"]]
    columns += [matches[name] for name in ("kind", "share", "matched")]
    return pa.table(columns, schema=CONTAMINATED)
