"""The shape of rows: which of their fields hold questions, answers, messages, strata and ids."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from s2l_ray.config.data import FieldNames
from s2l_ray.config.section import default_of
from s2l_ray.data.examples import Example, read_example
from s2l_ray.data.row_errors import RowError

_CHATS = ("messages", "conversations", "conversation", "chosen", "dialog", "dialogue", "chat")
_PROMPTS = (
    "instruction",
    "prompt",
    "question",
    "query",
    "problem",
    "instructions",
    "inputs",
    "input",
    "user",
    "human",
    "source_text",
    "document",
    "article",
    "dialogue",
)
_RESPONSES = (
    "output",
    "response",
    "completion",
    "answer",
    "solution",
    "outputs",
    "targets",
    "target",
    "assistant",
    "gpt",
    "chosen",
    "target_text",
    "summary",
    "highlights",
)
_CONTEXTS = ("input", "context", "passage")
_SYSTEMS = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_STRATA = (
    "task",
    "task_name",
    "category",
    "topic",
    "subject",
    "domain",
    "source",
    "dataset",
    "data_source",
    "dataset_name",
    "subset",
    "type",
    "language",
    "lang",
)
_IDS = ("id", "_id", "uid", "uuid", "idx", "prompt_id", "question_id", "conversation_id")
CLEAR_SHARE = 0.9
"""A shape under which this share of rows can be read is taken, whatever else fits."""
MOST_STRATA = 50
ROWS_PER_STRATUM = 5
"""A field whose values have fewer rows each, in the mean, is no stratum."""
_Columns = Mapping[str, Sequence[Any]]
"""Field -> its values that are not null."""


@dataclass(frozen=True)
class Shape:
    """Rows as they can be read."""

    fields: FieldNames
    num_usable: int
    """Rows that can be read so."""
    problem: str
    """Why the first of the other rows cannot; empty if there is none."""
    has_chats: bool
    has_tools: bool
    has_earlier_turns: bool
    """Rows of instructions come with a system text or earlier turns."""
    num_characters: tuple[int, ...]
    """The length of each usable row."""
    num_strata: int
    other_strata: tuple[str, ...] = ()
    """Further fields with usual names that could be that of the stratum."""


def shape_of(
    rows: Sequence[Mapping[str, Any]], given: Mapping[str, str | None] = MappingProxyType({})
) -> Shape | None:
    """Return the first shape under which nearly all of `rows` can be read, else most of them.

    None if nothing in the rows looks like a question with an answer, or like a chat.

    Args:
        rows: some rows.
        given: keys of FieldNames -> the fields that hold them; only the others are looked for.
    """
    best: Shape | None = None
    columns = _columns(rows)
    for names in _candidates(columns, given):
        shape = _tried(rows, _with_labels(columns, {**names, **given}, len(rows)))
        if shape.num_usable >= CLEAR_SHARE * len(rows):
            best = shape
            break
        if best is None or shape.num_usable > best.num_usable:
            best = shape
    if best is None:
        return None
    free = _without(columns, best.fields.model_dump())
    known = _usual(free, _STRATA)
    others = (name for name in _fitting("stratum", free, len(rows)) if name in known)
    return replace(best, other_strata=tuple(others))


def describe_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the fields of `rows` with the types of their values, for a message."""
    columns = _columns(rows)
    return ", ".join(
        f"{name} ({' or '.join(sorted({_type_name(value) for value in values}))})"
        for name, values in columns.items()
    )


def names_to_write(fields: FieldNames, *, has_strata: bool = False) -> dict[str, str | None]:
    """Return the keys of `fields` that are not at their defaults, and where rows have strata that
    of the stratum in any case: it decides about every subset.
    """
    values = {key: getattr(fields, key) for key in type(fields).model_fields}
    return {
        key: value
        for key, value in values.items()
        if value != default_of(fields, key) or (has_strata and key == "stratum")
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> _Columns:
    """Return the values of each field that are not null, in the order of the fields."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            of_name = columns.setdefault(name, [])
            if value is not None:
                of_name.append(value)
    return columns


def _candidates(
    columns: _Columns, given: Mapping[str, str | None]
) -> Iterator[Mapping[str, str | None]]:
    """Yield what the fields may stand for: conversations first, then the usual pairs of names."""
    if given.get("messages") is not None:
        yield given
        return
    free = _without(columns, given)
    if not {"prompt", "response"} & given.keys():
        chats = _with_chats(free)
        yield from (names for names in chats if not names.keys() & given.keys())
    texts = [name for name, values in free.items() if any(map(_is_text, values))]
    prompts, responses = (
        [given[key]] if key in given else _usual(texts, names)
        for key, names in (("prompt", _PROMPTS), ("response", _RESPONSES))
    )
    for prompt, response in itertools.product(prompts, responses):
        if prompt != response:
            pair = {"prompt": prompt, "response": response}
            yield {"context": _context(columns, {**pair, **given}), **pair}


def _without(columns: _Columns, names: Mapping[str, str | None]) -> _Columns:
    """Return the columns to which `names` gives no role."""
    return {name: values for name, values in columns.items() if name not in names.values()}


def _usual(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the columns that have one of `names`, whatever their case, in the order of `names`."""
    of_name = {column.lower(): column for column in columns}
    return [of_name[name] for name in names if name in of_name]


def _with_chats(columns: _Columns) -> Iterator[dict[str, str | None]]:
    """Yield what fields that hold messages may stand for."""
    structured = [name for name, values in columns.items() if any(map(_may_be_chat, values))]
    texts = [name for name, values in columns.items() if any(map(_is_text, values))]
    asked, answered = _usual(structured, _PROMPTS), _usual(structured, _RESPONSES)
    if asked and answered:
        yield {"prompt": asked[0], "response": answered[0]}
    known = _usual(structured, _CHATS)
    for name in (*known, *(name for name in structured if name not in known)):
        yield {"messages": name}
    spoken = _usual(texts, _PROMPTS)
    if spoken and answered:
        yield {"prompt": spoken[0], "response": answered[0]}


def _context(columns: _Columns, names: Mapping[str, str | None]) -> str | None:
    """Return the field of the context; it may be empty in all rows that were read."""
    free = _without(columns, names)
    texts = [name for name, values in free.items() if _are_texts(values)]
    return next(iter(_usual(texts, _CONTEXTS)), _default("context", columns, free))


def _default(key: str, columns: _Columns, free: _Columns) -> str | None:
    """Return the default name of a key; None where it would be read, whatever it holds.

    Args:
        key: one for which no column was found.
        free: the columns that have no role yet.
    """
    name = str(FieldNames.model_fields[key].default)
    is_empty = all(value in ("", []) for value in columns.get(name, []))
    return name if name not in columns or (name in free and is_empty) else None


def _with_labels(columns: _Columns, names: Mapping[str, str | None], num_rows: int) -> FieldNames:
    """Return the field names with those of labels that `names` lacks; no field gets two roles."""
    chosen = dict(names)
    for key in ("system", "tools", "stratum", "id"):
        if key not in names and (key != "tools" or _is_chat(columns, names)):
            free = _without(columns, chosen)
            chosen[key] = next(_fitting(key, free, num_rows), _default(key, columns, free))
    # The field of the response may be that of the answer, too.
    if "answer" not in names and chosen.get("response") != "answer":
        is_free = "answer" not in chosen.values()
        if not (is_free and _are_labels(columns.get("answer", []), str, int, float)):
            chosen["answer"] = None
    return FieldNames.model_validate(chosen)


def _fitting(key: str, columns: _Columns, num_rows: int) -> Iterator[str]:
    """Yield the columns that may be that of a key: those of usual names, then other strata."""
    if key == "system":
        yield from (n for n in _usual(columns, _SYSTEMS) if any(map(_is_text, columns[n])))
    elif key == "tools":
        yield from (name for name in _usual(columns, _TOOLS) if columns[name])
    elif key == "stratum":
        known, no_strata = _usual(columns, _STRATA), _usual(columns, (*_SYSTEMS, "split"))
        others = (n for n in columns if n not in known + no_strata and _are_texts(columns[n]))
        yield from (n for n in (*known, *others) if _has_few_values(columns[n], num_rows))
    else:
        yield from (n for n in _usual(columns, _IDS) if _are_unique(columns[n], num_rows))


def _has_few_values(values: Sequence[Any], num_rows: int) -> bool:
    most = min(MOST_STRATA, num_rows // ROWS_PER_STRATUM)
    return _are_labels(values, str, int) and 2 <= len(set(values)) <= most


def _are_unique(values: Sequence[Any], num_rows: int) -> bool:
    if not _are_labels(values, str, int):
        return False
    return len(values) == num_rows == len({str(value) for value in values})


def _are_labels(values: Sequence[Any], *kinds: type) -> bool:
    return all(isinstance(value, kinds) and not isinstance(value, bool) for value in values)


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _tried(rows: Sequence[Mapping[str, Any]], fields: FieldNames) -> Shape:
    examples: list[Example] = []
    problem = ""
    for row in rows:
        try:
            examples.append(read_example(row, fields))
        except RowError as error:
            problem = problem or str(error)
    chats = [example for example in examples if example.is_chat]
    return Shape(
        fields=fields,
        num_usable=len(examples),
        problem=problem,
        has_chats=bool(chats),
        has_tools=any(_uses_tools(example) for example in chats),
        has_earlier_turns=any(len(e.messages) > 2 and not e.is_chat for e in examples),
        num_characters=tuple(sum(len(m.text) for m in e.messages) for e in examples),
        num_strata=len({example.stratum for example in examples}),
    )


def _uses_tools(example: Example) -> bool:
    return bool(example.tools) or any("tool_calls" in m.fields for m in example.messages)


def _is_chat(columns: _Columns, names: Mapping[str, str | None]) -> bool:
    contents = {names.get(key) for key in ("prompt", "response", "messages")}
    return any(_may_be_chat(v) for n, values in columns.items() if n in contents for v in values)


def _may_be_chat(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{") or value.lstrip().startswith("[ {")
    if isinstance(value, Mapping):
        return any(isinstance(item, list | tuple) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _type_name(value: Any) -> str:
    names = {str: "text", dict: "object", list: "list", bool: "true or false", bytes: "bytes"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "other")
