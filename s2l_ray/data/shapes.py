"""The shape of rows: which of their fields hold questions, answers, messages, strata and ids."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    "source",
    "dataset",
    "data_source",
    "dataset_name",
    "category",
    "task",
    "task_name",
    "domain",
    "topic",
    "subject",
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
        shape = _tried(rows, _with_labels(columns, names, given, len(rows)))
        if shape.num_usable >= CLEAR_SHARE * len(rows):
            return shape
        if best is None or shape.num_usable > best.num_usable:
            best = shape
    return best


def describe_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the fields of `rows` with the types of their values, for a message."""
    columns = _columns(rows)
    return ", ".join(
        f"{name} ({' or '.join(sorted({_type_name(value) for value in values}))})"
        for name, values in columns.items()
    )


def names_to_write(fields: FieldNames) -> dict[str, str | None]:
    """Return the keys of `fields` that are not at their defaults."""
    values = {key: getattr(fields, key) for key in type(fields).model_fields}
    return {key: value for key, value in values.items() if value != default_of(fields, key)}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each field that are not null, in the order of the fields."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            of_name = columns.setdefault(name, [])
            if value is not None:
                of_name.append(value)
    return columns


def _candidates(
    columns: Mapping[str, Sequence[Any]], given: Mapping[str, str | None]
) -> Iterator[dict[str, str | None]]:
    """Yield what the fields may stand for: conversations first, then the usual pairs of names."""
    if "messages" in given:
        yield {"messages": given["messages"]}
        return
    if not {"prompt", "response"} & given.keys():
        yield from _with_chats(columns)
    texts = {name.lower(): name for name, values in columns.items() if any(map(_is_text, values))}
    prompts, responses = (
        [given[key]] if key in given else [texts[name] for name in usual if name in texts]
        for key, usual in (("prompt", _PROMPTS), ("response", _RESPONSES))
    )
    for prompt, response in itertools.product(prompts, responses):
        if prompt != response:
            context = _context(columns, (prompt, response))
            yield {"prompt": prompt, "response": response, "context": context}


def _with_chats(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, str | None]]:
    """Yield what fields that hold messages may stand for."""
    structured = [name for name, values in columns.items() if any(map(_may_be_chat, values))]
    asked = next((name for name in _PROMPTS if name in structured), None)
    answered = [name for name in _RESPONSES if name in structured]
    if asked and answered:
        yield {"prompt": asked, "response": answered[0]}
    known = [name for name in _CHATS if name in structured]
    for name in (*known, *(name for name in structured if name not in known)):
        yield {"messages": name}
    spoken = next((name for name in _PROMPTS if any(map(_is_text, columns.get(name, [])))), None)
    if spoken and answered:
        yield {"prompt": spoken, "response": answered[0]}


def _context(columns: Mapping[str, Sequence[Any]], used: Sequence[str | None]) -> str | None:
    """Return the field of the context; it may be empty in all rows that were read."""
    names = {name.lower(): name for name, values in columns.items() if _are_texts(values)}
    name = next((name for name in _CONTEXTS if name in names and name not in used), None)
    if name is not None:
        return names[name]
    # The default would be read, whatever it holds.
    return None if any(columns.get("input", [])) else "input"


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _with_labels(
    columns: Mapping[str, Sequence[Any]],
    names: Mapping[str, str | None],
    given: Mapping[str, str | None],
    num_rows: int,
) -> FieldNames:
    """Return the field names with those of stratum, id, system and tools: given, or in the rows."""
    used = {*names.values(), *given.values()}
    rest = {name: values for name, values in columns.items() if name not in used}
    chosen: dict[str, str | None] = dict(names)
    chosen["stratum"] = _stratum(rest, num_rows)
    used.add(chosen["stratum"])
    chosen["id"] = _id(rest, num_rows)
    system = next((n for n in _SYSTEMS if any(map(_is_text, rest.get(n, [])))), "system")
    chosen["system"] = system
    if "messages" in names:
        chosen["tools"] = next((name for name in _TOOLS if rest.get(name)), "tools")
    if not all(isinstance(value, str | int | float) for value in rest.get("answer", [])):
        chosen["answer"] = None
    return FieldNames.model_validate({**chosen, **given})


def _stratum(columns: Mapping[str, Sequence[Any]], num_rows: int) -> str | None:
    """Return the field of the strata: one of the usual names, else a text with few values."""
    known = [name for name in _STRATA if name in columns]
    others = [
        name
        for name, values in columns.items()
        if name not in (*known, *_SYSTEMS, "split") and _are_texts(values)
    ]
    fitting = (n for n in (*known, *others) if _has_few_values(columns[n], num_rows))
    # The default would be read, whatever it holds.
    return next(fitting, None if "source" in columns else "source")


def _has_few_values(values: Sequence[Any], num_rows: int) -> bool:
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        return False
    count = len(set(values))
    return 2 <= count <= min(MOST_STRATA, num_rows // ROWS_PER_STRATUM)


def _id(columns: Mapping[str, Sequence[Any]], num_rows: int) -> str | None:
    """Return the field of the ids, if their values are unique; the default if it is absent."""
    for name in _IDS:
        values = columns.get(name, [])
        kinds = all(isinstance(v, str | int) and not isinstance(v, bool) for v in values)
        if kinds and len(values) == num_rows == len({str(value) for value in values}):
            return name
    return None if "id" in columns else "id"


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
