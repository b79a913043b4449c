"""Stage 1: input files become numbered parts of tokenised rows, in input order.

First, one reader for each slice of a file cuts it into raw parts of `rows_per_part` consecutive
rows; a part never spans two slices. Then the driver compares 16 bytes of every row to detect
repeated rows and repeated ids, and rows that are to be left out are found. Last, the parts are
tokenised independently of each other.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.manifest import REJECTED_ROWS, StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.data import DataConfig
from s2l_ray.data import clean_pool, duplicates, input_sizes, pool_checks
from s2l_ray.data.first_rows import rejected_line
from s2l_ray.data.held_out import HeldOut
from s2l_ray.data.part_tokeniser import REJECTED, PartTokeniser, rejected_name
from s2l_ray.data.raw_parts import FileCutter, RawPart
from s2l_ray.data.row_errors import ASKED_FOR
from s2l_ray.data.slices import slices
from s2l_ray.distributed import resources, session
from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, check_rejected_share, first
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

LIBRARIES = ("s2l_ray.data.part_tokeniser", "s2l_ray.models.tokenizers")
"""Modules that take a worker of the stage long to import."""


def run(
    config: DataConfig,
    files: Sequence[InputFile],
    tokenizer: str | None,
    out: StageDir,
    *,
    progress: Progress,
    held_out: HeldOut | None = None,
    pool: Parts | None = None,
) -> dict[str, Any]:
    """Tokenise the rows part by part; every row ends in a part or in `rejected.parquet`.

    Args:
        tokenizer: a name or directory. With None the parts hold rows and ids only, and their token
            lists are empty (for trajectories that were computed by another program).
        held_out: the evaluation sets whose prompts are not to be in the pool.
        pool: the prepared parts of the pool that `files` extend. Rows that it already holds are
            left out and counted. None if `files` are a pool of their own.

    Writes  part-*.parquet      example_id, stratum: string; input_ids, response_starts,
                                response_ends: list<int32>; num_prompt_tokens, num_tokens: int32
            rows-*.parquet      the original fields, example_id, file, row
            rejected.parquet    file, row, reason, excerpt
            contaminated.parquet  as `contaminated_rows.CONTAMINATED`, with `decontaminate: drop`
    Raises  DataError when the rejected share is above `max_rejected`, or no row is left.
    """
    staged = out.location / "staged"
    run_units = _workers(out, config, files, pool)
    key = "data.train" if pool is None else "the new data"
    parts, count = _cut(config, files, staged, run_units, progress)
    if not parts:
        raise DataError(
            f"{key}: no rows in {len(files)} file(s) ({first([file.uri for file in files])})."
        )
    if pool is None:
        pool_checks.check_named_fields(count, config.fields, key)
    units = tokenising_units(files, parts, staged, pool)
    units, dropped = clean_pool.drop(
        config, held_out or {}, units, out.location, run_units, progress=progress, pool=pool
    )
    progress.start(sum(part.num_rows for part in parts))
    results: list[dict[str, Any]] = [{} for _ in units]
    for result in run_units(
        PartTokeniser, units, folder=out.location, config=config, tokenizer=tokenizer
    ):
        progress.update(result["rows"], result["tokens"])
        results[result["part"]] = result
    merge_rejected(out.location, len(parts))
    summary = summarise(results, tokenizer)
    check_rejected(summary, results, config.max_rejected, out.location, key)
    pool_checks.check_files(results_of_files(files, parts, results), key)
    if pool is None:
        strata, kept = len(summary["strata"]), summary["kept"]
        pool_checks.check_strata(strata, kept, config.fields.stratum, key)
    notes = [*summary.get("notes", []), *dropped.get("notes", [])]
    return {**summary, **dropped, **({"notes": notes} if notes else {})}


def list_rows(
    config: DataConfig,
    files: Sequence[InputFile],
    held_out: HeldOut,
    out: StageDir,
    *,
    progress: Progress,
    pool: Parts | None = None,
) -> dict[str, Any]:
    """Make the lists that the configuration asks for; return entries of the summary.

    Args:
        files: the input files, or the prepared rows of them: how much work it is.
        held_out: the evaluation sets whose prompts are looked for in the prepared rows.
        pool: the prepared parts of the pool that these rows extend, or None.

    Writes  as `clean_pool.report`
    """
    run_units = _workers(out, config, files, pool)
    return clean_pool.report(
        config, held_out, out.location, run_units, progress=progress, pool=pool
    )


def tokenising_units(
    files: Sequence[InputFile], parts: Sequence[RawPart], staged: Location, pool: Parts | None
) -> list[dict[str, Any]]:
    """Return the unit of work for each part: the part, its repeats and its rows that `pool` holds.

    Args:
        parts: the raw parts of all files, in order.
        staged: the folder of the raw parts.
    """
    repeats = duplicates.repeats(staged, parts)
    units = [
        {"part": number, **asdict(part), "uri": files[part.file].uri, "repeats": repeats[number]}
        for number, part in enumerate(parts)
    ]
    if pool is None:
        return units
    identity_K = duplicates.identities(pool)
    masks = duplicates.masks_of_pool_rows(staged, parts, repeats, identity_K)
    return [unit | {"known": mask} for unit, mask in zip(units, masks, strict=True)]


def merge_rejected(folder: Location, num_parts: int) -> None:
    """Write the rejected rows of all parts to `folder`/rejected.parquet, in input order."""
    with (
        (folder / REJECTED_ROWS).open_atomic() as stream,
        pq.ParquetWriter(stream, REJECTED) as writer,
    ):
        for part in range(num_parts):
            writer.write_table((folder / "staged" / rejected_name(part)).read_table())


def summarise(results: Sequence[Mapping[str, Any]], tokenizer: str | None) -> dict[str, Any]:
    """Add up the counts of all parts, as the manifest of the stage holds them."""
    strata: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for result in results:
        left_out.update(result["left_out"])
        strata.update(result["strata"])
        reasons.update(result["reasons"])
    totals = {key: sum(result[key] for result in results) for key in ("rows", "kept", "tokens")}
    notes = [f"{count:,} {what}" for what, count in sorted(left_out.items())]
    if unusable := rejected_line(reasons, totals["rows"]):
        notes.append(f"{unusable} (prepared/rejected.parquet)")
    if repeats := sum(result["duplicates"] for result in results):
        notes.append(
            f"{repeats:,} of the rows kept repeat an earlier one; data.near_duplicates: drop would "
            "leave them out"
        )
    types, faults = column_types.unified(
        column_types.decoded(text) for text in dict.fromkeys(result["fields"] for result in results)
    )
    known = {"known": sum(result["known"] for result in results)} if "known" in results[0] else {}
    assert totals["rows"] == totals["kept"] + sum(reasons.values()) + sum(known.values())
    return {
        "rows": totals["rows"],
        "kept": totals["kept"],
        **known,
        "rejected": dict(sorted(reasons.items())),
        "duplicates": repeats,
        "cut": sum(result["cut"] for result in results),
        "tokens": totals["tokens"],
        "longest_tokens": max((result["longest_tokens"] for result in results), default=0),
        "prompt_tokens": sum(result["prompt_tokens"] for result in results),
        "rows_per_part": [result["kept"] for result in results],
        "strata": dict(sorted(strata.items())),
        "tokenizer": tokenizer,
        **({"notes": notes} if notes else {}),
        "fields": {**{field.name: str(field.type) for field in types}, **dict.fromkeys(faults, "")},
        "fields_of_no_type": faults,
        "text_in_jsonl": {
            field.name: form for field in types if (form := column_types.becomes_text(field.type))
        },
    }


def check_rejected(
    summary: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    max_rejected: float,
    folder: Location,
    key: str = "data.train",
) -> None:
    """Raise DataError if more rows cannot be used than `max_rejected` allows, or none is left.

    Rows that the configuration asks to leave out are no unusable rows.
    """
    counts = {key: num for key, num in summary["rejected"].items() if key not in ASKED_FOR}
    num_dropped = sum(summary["rejected"].values()) - sum(counts.values())
    locations = {
        reason: [row for result in results for row in result["places"].get(reason, [])]
        for reason in counts
    }
    note = f"All of them are listed in {folder}/rejected.parquet. "
    check_rejected_share(key, summary["rows"], counts, locations, max_rejected, note)
    if not summary["kept"] and "known" not in summary:
        raise DataError(
            f"{key}: no row is left. {num_dropped:,} of {summary['rows']:,} hold a prompt of an "
            f"evaluation set, and the others cannot be used. {note}Correct data.train, data.eval "
            "or data.decontaminate."
        )


def results_of_files(
    files: Sequence[InputFile], parts: Sequence[RawPart], results: Sequence[Mapping[str, Any]]
) -> list[pool_checks.FileResult]:
    """Add up the counts of the parts of each file; rows that a pool already holds are kept."""
    rows, kept = Counter[int](), Counter[int]()
    reasons = [Counter[str]() for _ in files]
    for part, result in zip(parts, results, strict=True):
        rows[part.file] += result["rows"]
        kept[part.file] += result["kept"] + result.get("known", 0)
        reasons[part.file].update(result["reasons"])
    return [
        pool_checks.FileResult(file.uri, rows[number], kept[number], reasons[number])
        for number, file in enumerate(files)
    ]


def cutting_units(files: Sequence[InputFile]) -> list[dict[str, Any]]:
    """Return the unit of work for each slice of each file, in input order."""
    return [
        {"number": number, "slice": part.number, "slices": part.count, **asdict(file)}
        for number, file in enumerate(files)
        for part in slices(file)
    ]


def raw_parts(results: Sequence[Mapping[str, Any]]) -> list[RawPart]:
    """Return the raw parts that cutting units left, whose results are in input order."""
    parts, rows_of_file = [], Counter[int]()
    for result in results:
        number = result["number"]
        parts += [
            RawPart(number, name, num_rows, rows_of_file[number])
            for name, num_rows in result["parts"]
        ]
        rows_of_file[number] += result["rows"]
    return parts


def _cut(
    config: DataConfig,
    files: Sequence[InputFile],
    staged: Location,
    run_units: clean_pool.RunUnits,
    progress: Progress,
) -> tuple[list[RawPart], pool_checks.FieldCount]:
    """Cut every file into raw parts; return them in input order, and a count of their fields."""
    count, units, results = pool_checks.FieldCount(), cutting_units(files), []
    progress.start(len(units), "files read" if len(units) == len(files) else "slices read")
    for result in run_units(
        FileCutter, units, staged=staged, fields=config.fields, rows_per_part=config.rows_per_part
    ):
        results.append(result)
        count.merge(result["fields"])
        progress.update(1)
    return raw_parts(sorted(results, key=lambda r: (r["number"], r["slice"]))), count


def _workers(
    out: StageDir, config: DataConfig, files: Sequence[InputFile], pool: Parts | None
) -> clean_pool.RunUnits:
    """Return a function that runs units of work on one worker for each CPU.

    They are actors on a cluster that was joined, else processes, and threads for a little text.
    """
    advice = out.advice_on_memory
    if session.is_shared():  # this process may run on a small node
        workers = resources.workers("data", resources.one_per_cpu(), cpus=1, gpus=0, advice=advice)
    elif input_sizes.fits_threads(config, files, pool):
        workers = resources.threads("data", advice=advice)
    else:
        workers = resources.processes("data", *LIBRARIES, advice=advice)

    def run_units(
        worker: type, units: Sequence[Mapping[str, Any]], **constructor: Any
    ) -> Iterator[dict[str, Any]]:
        return map_units(worker, units, workers, out.location / "attempts", **constructor)

    return run_units
