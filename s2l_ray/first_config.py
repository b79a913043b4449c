"""A first configuration for files of rows: what `s2l init` prints."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from s2l_ray.config import without_effect
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.config.data import FieldNames
from s2l_ray.config.load import from_tree
from s2l_ray.data import shapes, sources
from s2l_ray.data.examples import read_example
from s2l_ray.data.parsers import SourceRow
from s2l_ray.data.pool_checks import FieldCount, check_named_fields
from s2l_ray.data.row_errors import RowError
from s2l_ray.errors import ConfigError, DataError, ModelError, first
from s2l_ray.evaluation import final_answers
from s2l_ray.models import local_models
from s2l_ray.storage import input_files
from s2l_ray.storage.input_files import InputFile

MODEL, CHAT_MODEL, TOOLS_MODEL = (
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
)
"""Small references: for instructions, for chats, and for chats whose template must know tools."""
MOST_FILES, ROWS_PER_FILE = 8, 1000
"""Files that are looked at, and rows of each."""
EPOCHS, MOST_CHECKPOINTS = 3, 12
NO_FIELDS: Mapping[str, str | None] = MappingProxyType({})
CHARACTERS_PER_TOKEN = 3
"""A low estimate, so that rows fit into max_tokens."""
SHORT_ANSWER = 40
"""Characters of a response that is an answer without further words."""
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*(?::[\w./-]+)*")
_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


@dataclass(frozen=True)
class Found:
    """What the first rows of the files show."""

    shape: shapes.Shape
    num_rows: int
    """Rows of all files, estimated unless `is_whole`."""
    num_read: int
    is_whole: bool
    states_answers: bool
    """Most responses state a final answer, or are a short one."""

    @property
    def num_usable(self) -> int:
        """Rows of all files that can be used, estimated by the share among those looked at."""
        return self.num_rows * self.shape.num_usable // self.num_read


def text_of(
    files: Sequence[str], model: str | None = None, fields: Mapping[str, str | None] = NO_FIELDS
) -> str:
    """Return a configuration that reads `files`, as YAML with comments.

    Args:
        files: as in data.train.
        model: the reference; None to propose one.
        fields: keys of data.fields -> names of fields; the others are looked for.

    Raises:
        ConfigError: there is no such key.
        DataError: there is no such file, there are no rows, or no field of theirs is known.
        ModelError: the model cannot be used for these rows.
    """
    _check_keys(files, fields)
    found = look_at(files, fields)
    lines = _header(files, found)
    lines += [f"run_dir: runs/{_run_name(files[0])}", "data:"]
    lines += [f"  {line}" for line in _data(files, found, model)]
    lines += _stages(found, model)
    return "\n".join(lines) + "\n"


def parse_fields(texts: Sequence[str]) -> dict[str, str | None]:
    """Return the fields that texts such as `prompt=question,response=answer` name.

    Raises:
        ConfigError: a part of them is no KEY=FIELD.
    """
    fields: dict[str, str | None] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        key, equals, name = (part.strip() for part in pair.partition("="))
        if not (key and equals and name):
            raise ConfigError(
                f"--fields {pair!r}: expected KEY=FIELD, such as prompt=question,response=answer; "
                "FIELD is null where the rows have none"
            )
        fields[key] = None if name == "null" else name
    return fields


def _check_keys(files: Sequence[str], fields: Mapping[str, str | None]) -> None:
    """Refuse what a configuration with these fields would be refused for."""
    tree = {"run_dir": "runs", "data": {"train": list(files), "fields": dict(fields)}}
    without_effect.check(from_tree(tree, "--fields"))


def look_at(patterns: Sequence[str], fields: Mapping[str, str | None] = NO_FIELDS) -> Found:
    """Return what the first rows of `patterns` show, some of whose fields may be known.

    Raises:
        DataError: as for `text_of`.
    """
    files = input_files.expand(patterns, "FILES")
    read = [_first_rows(file) for file in files[:MOST_FILES]]
    rows = [row.fields for sample, _ in read for row in sample if row.fields is not None]
    if not rows:
        raise DataError(f"there are no rows in {first([file.uri for file in files])}")
    names = first([file.uri for file in files])
    shape = shapes.shape_of(rows, fields)
    if shape is None or not shape.num_usable:
        why = f" (first: {' '.join(shape.problem.split())})" if shape is not None else ""
        raise DataError(
            f"it cannot be told which fields of {names} hold questions, answers or messages{why}; "
            f"the rows have {shapes.describe_columns(rows)}. Say which ones do: "
            "--fields prompt=FIELD,response=FIELD, or --fields messages=FIELD for chats."
        )
    named, count = FieldNames.model_validate(dict(fields)), FieldCount()
    count.add(rows, named)
    check_named_fields(count, named, names, " that were looked at")
    is_whole = len(files) <= MOST_FILES and all(whole for _, whole in read)
    num_read = sum(len(sample) for sample, _ in read)
    num_rows = num_read if is_whole else max(_num_rows(files, read), num_read)
    return Found(shape, num_rows, num_read, is_whole, _states_answers(rows, shape.fields))


def _states_answers(rows: Sequence[Mapping[str, Any]], fields: FieldNames) -> bool:
    """Tell whether exact-match, which compares final answers, says something of such rows."""
    examples = []
    for row in rows:
        with contextlib.suppress(RowError):
            examples.append(read_example(row, fields))
    stating = sum(
        example.answer is not None
        or len(example.response) <= SHORT_ANSWER
        or final_answers.stated(example.response) is not None
        for example in examples
    )
    return 2 * stating >= len(examples)


def _first_rows(file: InputFile) -> tuple[list[SourceRow], bool]:
    """Return the first rows of a file, and whether these are all."""
    rows = sources.read_rows(file)
    return list(itertools.islice(rows, ROWS_PER_FILE)), next(rows, None) is None


def _num_rows(files: Sequence[InputFile], read: Sequence[tuple[list[SourceRow], bool]]) -> int:
    """Return the number of rows of all files, estimated from those that were looked at."""
    looked_at = files[: len(read)]
    counts = [
        len(sample)
        if whole
        else sources.estimated_rows(file, [row.fields for row in sample if row.fields])
        for file, (sample, whole) in zip(looked_at, read, strict=True)
    ]
    num_bytes = sum(file.size for file in looked_at)
    share = sum(file.size for file in files) / num_bytes if num_bytes else len(files) / len(read)
    return round(sum(counts) * share)


def _header(files: Sequence[str], found: Found) -> list[str]:
    about = "" if found.is_whole else f"about {found.num_rows:,} rows, of which the first "
    seen = f"{about}{found.num_read:,} were looked at" if about else f"{found.num_read:,} rows"
    lines = [
        f"# Written by `s2l init` for {first(files)}: {seen}.",
        "# `s2l keys` lists what else may be set.",
    ]
    num_unusable = found.num_read - found.shape.num_usable
    if num_unusable:
        why = found.shape.problem or "they cannot be parsed"
        lines += [
            f"# {num_unusable:,} of these rows cannot be used (first: {' '.join(why.split())}).",
            "# More than 1% of such rows stop a run: mend them, or raise data.max_rejected.",
        ]
    return lines


def _data(files: Sequence[str], found: Found, model: str | None) -> list[str]:
    """Return the lines of the section `data`."""
    shape = found.shape
    train = ", ".join(map(_scalar, files))
    lines = [
        f"train: [{train}]",
        "# eval: {heldout: heldout.jsonl}   # rows for `evaluation`; no training may see them",
    ]
    fields = shapes.names_to_write(shape.fields, has_strata=shape.num_strata > 1)
    if fields:
        pairs = ", ".join(f"{key}: {_scalar(name)}" for key, name in fields.items())
        lines.append(f"fields: {{{pairs}}}")
    if shape.num_strata > 1:
        others = f"; another could be {first(shape.other_strata)}" if shape.other_strata else ""
        strata = f"{shape.num_strata} strata, by {shape.fields.stratum}{others}"
        lines.append(f"# The rows looked at have {strata}.")
    is_chat = shape.has_chats or shape.has_earlier_turns
    if shape.has_earlier_turns:
        lines.append("template: chat   # the rows have a system text or earlier turns")
    if is_chat and model is not None:
        own = _chat_template(model)
        if own is not None and shape.has_tools and "tool" not in own:
            raise ModelError(
                f"the rows have tools, and {model} has no chat template that knows them: take "
                f"another model, such as {TOOLS_MODEL}"
            )
        if own == "":
            lines.append("chat_template: chatml   # the tokenizer has no chat template of its own")
    most = sorted(shape.num_characters)[int(0.95 * (len(shape.num_characters) - 1))]
    max_tokens = 2 ** math.ceil(math.log2(max(most / CHARACTERS_PER_TOKEN, 512)))
    if max_tokens > 512:
        lines.append(f"max_tokens: {min(max_tokens, 4096)}   # longer rows lose their end")
    return lines


def _stages(found: Found, model: str | None) -> list[str]:
    """Return the lines of all sections after `data`."""
    batch_size = next(
        (
            size
            for size in (128, 64, 32, 16)
            if _steps(found.num_usable, size) >= 2 * MOST_CHECKPOINTS
        ),
        8,
    )
    steps = _steps(found.num_usable, batch_size)
    checkpoints = min(MOST_CHECKPOINTS, max(steps * 4 // 5, 1))
    name = _scalar(model or _proposed(found.shape))
    return [
        "# A small model of the family of the target; its losses stand for the target's.",
        f"reference: {{model: {name}, epochs: {EPOCHS}, batch_size: {batch_size}, "
        f"checkpoints: {checkpoints}}}",
        *_clusters(found.shape),
        "selection: {budget: 0.1}   # a share of the rows, a number of them, or 20M tokens",
        "# The subset is written to subset/ in run_dir. To train and compare here, add:",
        "# target: {model: a larger one, epochs: 3}",
        *_evaluation(found),
    ]


def _evaluation(found: Found) -> list[str]:
    if found.states_answers:
        return ["# evaluation: {sets: [heldout]}   # the loss, and whether final answers are right"]
    return [
        "# evaluation: {sets: [heldout], metrics: []}",
        "#   the loss alone: few responses state a final answer, such as a number, to compare",
    ]


def _clusters(shape: shapes.Shape) -> list[str]:
    """Return the lines of `trajectories` and `clusters`: inside strata that are named, or found."""
    defaults = ClustersConfig()
    most = f"{defaults.num_clusters}, or one for every {defaults.rows_per_cluster} rows"
    if shape.num_strata > 1:
        return ["trajectories: {}", f"clusters: {{}}   # in each stratum {most} if that is fewer"]
    return [
        "# No field tells kinds of rows apart, so they are found in the reference's embeddings.",
        "trajectories: {embeddings: true}",
        f"clusters: {{strata: auto}}   # in each of {defaults.num_strata} found strata {most}",
    ]


def _steps(num_rows: int, batch_size: int) -> int:
    return EPOCHS * math.ceil(num_rows / batch_size)


def _proposed(shape: shapes.Shape) -> str:
    if shape.has_tools:
        return TOOLS_MODEL
    return CHAT_MODEL if shape.has_chats or shape.has_earlier_turns else MODEL


def _chat_template(model: str) -> str | None:
    """Return the chat template of a model, "" if it has none; None if it is not on this machine."""
    tokenizer = local_models.tokenizer(model)
    return None if tokenizer is None else str(tokenizer.chat_template or "")


def _run_name(pattern: str) -> str:
    """Return a name for the folder of the run, from the name of the first file."""
    name = pattern.removeprefix("hf://").rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "mine"


def _scalar(value: Any) -> str:
    """Return a name as YAML, quoted where it would be read as something else."""
    if value is None:
        return "null"
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
