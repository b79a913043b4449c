"""Stage 1: input files become numbered parts of tokenised rows, in input order.

First every file is cut, by one reader, into staged parts of `rows_per_part` consecutive rows; a
part never spans two files. Then the parts are tokenised independently of each other. Between the
two, 16 bytes per row meet on the driver to find repeated rows and repeated ids.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts.manifest import (
    Parts,
    StageDir,
    original_rows,
    part_name,
    rows_name,
    rows_table,
)
from s2l_ray.config.sections import DataConfig
from s2l_ray.data import staging, tokenise
from s2l_ray.data.staging import Cutter, StagedPart, excerpt_of
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, check_rejected_share, first
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

REJECTED = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
PLACES_SHOWN = 3
ADVICE_ON_MEMORY = "Lower data.rows_per_part, or use machines with more memory for each CPU."


def run(
    config: DataConfig,
    files: Sequence[InputFile],
    tokenizer: str | None,
    out: StageDir,
    *,
    progress: Progress,
    pool: Parts | None = None,
) -> dict[str, Any]:
    """Tokenise the rows part by part; every one ends in a part or in `rejected.parquet`.

    Args:
        tokenizer: a name or directory; None keeps rows and ids only (for trajectories computed
            elsewhere), with empty token lists.
        pool: prepared parts; their rows are known, so that those of `files` are left out and
            counted. None for rows that make a pool by themselves.

    Writes  part-*.parquet      example_id, stratum: string, input_ids: list<int32>,
                                num_prompt_tokens, num_tokens: int32
            rows-*.parquet      the original fields, example_id, file, row
            rejected.parquet    file, row, reason, excerpt
    Raises  DataError when the rejected share is above `max_rejected`, or no row is left.
    """
    staged = out.location / "staged"
    wanted = resources.workers(
        "data", resources.one_per_cpu(), cpus=1, gpus=0, advice=ADVICE_ON_MEMORY
    )
    cut = _cut(config, files, staged, wanted, progress)
    parts = [
        StagedPart(file=file, name=name, num_rows=num_rows)
        for file, names in enumerate(cut)
        for name, num_rows in names
    ]
    where = "data.train" if pool is None else "the new data"
    if not parts:
        raise DataError(
            f"{where}: no rows in {len(files)} file(s) ({first([file.uri for file in files])})."
        )
    repeats = staging.repeats(staged, parts)
    known = _known(staged, parts, repeats, pool)
    units = [
        {"part": number, **asdict(part), "uri": files[part.file].uri, "repeats": repeats[number]}
        | known[number]
        for number, part in enumerate(parts)
    ]
    progress.start(sum(part.num_rows for part in parts))
    results: list[dict[str, Any]] = [{} for _ in units]
    for result in map_units(
        Tokeniser,
        units,
        wanted,
        out.location / "attempts",
        folder=out.location,
        config=config,
        tokenizer=tokenizer,
    ):
        progress.update(result["rows"], result["tokens"])
        results[result["part"]] = result
    _merge_rejected(out.location, staged, len(parts))
    summary = _summary(results, tokenizer)
    _check_rejected(summary, results, config.max_rejected, out.location, where)
    return summary


def _cut(
    config: DataConfig,
    files: Sequence[InputFile],
    staged: Location,
    wanted: resources.Workers,
    progress: Progress,
) -> list[list[tuple[str, int]]]:
    """For each file, the names and row counts of its staged parts."""
    units = [{"number": number, **asdict(file)} for number, file in enumerate(files)]
    cut: list[list[tuple[str, int]]] = [[] for _ in files]
    progress.start(len(files), "files read")
    for result in map_units(
        Cutter,
        units,
        wanted,
        staged / "attempts",
        staged=staged,
        fields=config.fields,
        rows_per_part=config.rows_per_part,
    ):
        cut[result["number"]] = [(name, num_rows) for name, num_rows in result["parts"]]
        progress.update(1)
    return cut


def _known(
    staged: Location,
    parts: Sequence[StagedPart],
    repeats: Sequence[Sequence[tuple[int, int]]],
    pool: Parts | None,
) -> list[dict[str, str]]:
    """What the unit of each part says of rows that `pool` has; nothing where there is no pool."""
    if pool is None:
        return [{} for _ in parts]
    found = staging.known_rows(staged, parts, repeats, staging.identities(pool))
    return [{"known": known} for known in found]


class Tokeniser:
    """Turns one staged part into a tokenised part, its original rows and its rejected rows."""

    def __init__(self, folder: Location, config: DataConfig, tokenizer: str | None) -> None:
        self.folder, self.staged, self.config = folder, folder / "staged", config
        self.tokenizer = self.template = None
        if tokenizer is not None:
            # It takes seconds to import, which those that only cut files do not have to spend.
            from s2l_ray.models.checkpoints import load_tokenizer

            self.tokenizer = load_tokenizer(tokenizer)
            self.template = tokenise.load_template(config.template)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        done = self.staged / f"done-{unit['part']:06d}.json"
        if not done.exists():
            done.write_json(self._tokenise(unit))
        result: dict[str, Any] = done.read_json()
        return result

    def _tokenise(self, unit: dict[str, Any]) -> dict[str, Any]:
        checked = (self.staged / unit["name"]).read_table().to_pylist()
        rows_by_number = self._originals(unit["name"], checked)
        repeats, known_P = dict(unit["repeats"]), None
        if "known" in unit:
            known_P = staging.unpacked(unit["known"], len(checked))
        rejected = [(row["row"], row["reason"], row["excerpt"]) for row in checked if row["reason"]]
        kept = []
        for position, row in enumerate(checked):
            if row["reason"] or (known_P is not None and known_P[position]):
                continue
            fields = rows_by_number[row["row"]]
            example = tokenise.read_example(fields, self.config.fields)
            occurrence = repeats.get(position, 0)
            if example.id is not None and occurrence:
                error = tokenise.RowError("duplicate id", repr(example.id))
                rejected.append((row["row"], error.reason, excerpt_of(error, fields)))
                continue
            kept.append((row["row"], fields, example, occurrence))
        outcomes = self._tokens([example for _, _, example, _ in kept])
        good, num_duplicates = [], 0
        for (row_number, fields, example, occurrence), tokens in zip(kept, outcomes, strict=True):
            if isinstance(tokens, tokenise.RowError):
                rejected.append((row_number, tokens.reason, excerpt_of(tokens, fields)))
            else:
                example_id = _example_id(example, occurrence)
                good.append((row_number, fields, example, example_id, tokens))
                num_duplicates += occurrence > 0
        result = self._write(unit, good, sorted(rejected), num_duplicates)
        return result if known_P is None else result | {"known": int(known_P.sum())}

    def _originals(self, name: str, checked: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
        table = (self.staged / f"rows-{name}").read_table()
        numbers = [row["row"] for row in checked if not row["reason"]]
        return dict(zip(numbers, original_rows(table), strict=True))

    def _tokens(self, examples: Sequence[tokenise.Example]) -> Sequence[Any]:
        if self.tokenizer is None or self.template is None:
            return [tokenise.TokenisedExample([], 0)] * len(examples)
        return tokenise.tokenise(examples, self.template, self.tokenizer, self.config.max_tokens)

    def _write(
        self,
        unit: Mapping[str, Any],
        good: Sequence[Any],
        rejected: Sequence[tuple[int, str, str]],
        num_duplicates: int,
    ) -> dict[str, Any]:
        part, uri = unit["part"], unit["uri"]
        numbers, fields, examples, ids, tokens = zip(*good, strict=True) if good else [()] * 5
        (self.folder / part_name(part)).write_table(_part_table(ids, examples, tokens))
        (self.folder / rows_name(part)).write_table(rows_table(fields, ids, uri, numbers))
        table = pa.table(
            [[uri] * len(rejected), *([row[k] for row in rejected] for k in range(3))],
            schema=REJECTED,
        )
        (self.staged / f"rejected-{part:06d}.parquet").write_table(table)
        return {
            "part": part,
            "rows": unit["num_rows"],
            "kept": len(good),
            "duplicates": num_duplicates,
            "tokens": sum(len(token.input_ids) for token in tokens),
            "prompt_tokens": sum(token.num_prompt_tokens for token in tokens),
            "strata": Counter(example.stratum for example in examples),
            "reasons": Counter(reason for _, reason, _ in rejected),
            "places": _first_places(uri, rejected),
        }


def _example_id(example: tokenise.Example, occurrence: int) -> str:
    if example.id is not None:
        return example.id
    digest = tokenise.content_digest(example)
    return f"{digest}-{occurrence}" if occurrence else digest


def _part_table(
    ids: Sequence[str],
    examples: Sequence[tokenise.Example],
    tokens: Sequence[tokenise.TokenisedExample],
) -> pa.Table:
    return pa.table(
        {
            "example_id": pa.array(ids, pa.string()),
            "stratum": pa.array([example.stratum for example in examples], pa.string()),
            "input_ids": pa.array([token.input_ids for token in tokens], pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([t.num_prompt_tokens for t in tokens], pa.int32()),
            "num_tokens": pa.array([len(token.input_ids) for token in tokens], pa.int32()),
        }
    )


def _first_places(uri: str, rejected: Sequence[tuple[int, str, str]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for row, reason, _ in rejected:
        known = places.setdefault(reason, [])
        if len(known) < PLACES_SHOWN:
            known.append(f"{uri} row {row}")
    return places


def _merge_rejected(folder: Location, staged: Location, num_parts: int) -> None:
    with (
        (folder / "rejected.parquet").open_atomic() as stream,
        pq.ParquetWriter(stream, REJECTED) as writer,
    ):
        for part in range(num_parts):
            writer.write_table((staged / f"rejected-{part:06d}.parquet").read_table())


def _summary(results: Sequence[Mapping[str, Any]], tokenizer: str | None) -> dict[str, Any]:
    strata: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for result in results:
        strata.update(result["strata"])
        reasons.update(result["reasons"])
    totals = {key: sum(result[key] for result in results) for key in ("rows", "kept", "tokens")}
    known = {"known": sum(result["known"] for result in results)} if "known" in results[0] else {}
    assert totals["rows"] == totals["kept"] + sum(reasons.values()) + sum(known.values())
    return {
        "rows": totals["rows"],
        "kept": totals["kept"],
        **known,
        "rejected": dict(sorted(reasons.items())),
        "duplicates": sum(result["duplicates"] for result in results),
        "tokens": totals["tokens"],
        "prompt_tokens": sum(result["prompt_tokens"] for result in results),
        "rows_per_part": [result["kept"] for result in results],
        "strata": dict(sorted(strata.items())),
        "tokenizer": tokenizer,
    }


def _check_rejected(
    summary: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    max_rejected: float,
    folder: Location,
    where: str = "data.train",
) -> None:
    counts = summary["rejected"]
    places = {
        reason: [place for result in results for place in result["places"].get(reason, [])]
        for reason in counts
    }
    note = f"All of them are listed in {folder}/rejected.parquet. "
    check_rejected_share(where, summary["rows"], counts, places, max_rejected, note)
