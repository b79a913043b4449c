"""Conditions on examples, such as `quality >= 3 and source = 'math'`: parsed by lark, evaluated by
pyarrow.

A value that is missing (null) makes a comparison null, `and`, `or` and `not` follow Kleene's logic,
and a condition that is null for an example does not hold for it. Nothing of the text is executed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import lark
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.errors import ConfigError, one_line

GRAMMAR = r"""
?start: or_
?or_: and_ (_OR and_)*
?and_: not_ (_AND not_)*
?not_: _NOT not_ -> negated
     | test
?test: sum
     | sum COMPARISON sum -> compared
     | sum _IN values -> is_in
     | sum _NOT _IN values -> is_not_in
     | sum _LIKE TEXT -> like
     | sum _NOT _LIKE TEXT -> not_like
     | sum _IS _NULL -> is_null
     | sum _IS _NOT _NULL -> is_not_null
values: "(" sum ("," sum)* ")"
?sum: product
    | sum SIGN product -> calculated
?product: factor
    | product TIMES factor -> calculated
?factor: SIGN factor -> signed
    | FUNCTION "(" sum ")" -> function
    | NUMBER -> number
    | TEXT -> text
    | (TRUE | FALSE) -> boolean
    | _part ("." _part)* -> name
    | "(" or_ ")"
_part: NAME | QUOTED

COMPARISON: "<=" | ">=" | "<>" | "!=" | "==" | "=" | "<" | ">"
SIGN: "+" | "-"
TIMES: "*" | "/"
NUMBER: /\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?/
TEXT: /'([^']|'')*'/ | /"([^"]|"")*"/
QUOTED: /`[^`]+`/
_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
_IS.2: /is\b/i
_NULL.2: /null\b/i
_LIKE.2: /like\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
FUNCTION.2: /(length|lower|number)(?=\s*\()/i
NAME: /[^\W\d]\w*/
%ignore /\s+/
"""
SYNTAX = (
    "names of fields, numbers and 'texts' with =, !=, <, <=, >, >=, in (...), like '%...%', "
    "is null, and, or, not, + - * /, length(), lower() and number()"
)
"""What a condition may hold, for messages."""

NUMERIC = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
"""The texts that are numbers."""

Path = tuple[str, ...]
"""A name with dots: `meta.score` is the field `score` in the objects of the field `meta`."""


@dataclass(frozen=True)
class Condition:
    """A condition, parsed.

    Attributes:
        text: as it was written.
        tree: its syntax tree.
        names: the names that it reads, each once, in order.
    """

    text: str
    tree: lark.Tree[lark.Token]
    names: tuple[Path, ...]

    def holds(self, value_by_name: Mapping[Path, Any], num_rows: int) -> pa.Array:
        """Return for each row true or false, or null if a value that decides is missing.

        Args:
            value_by_name: for each of `names` an array of `num_rows` values.
            num_rows: the number of rows.

        Raises:
            ConfigError: values are compared or calculated with that do not fit.
        """
        try:
            value = _Evaluation(value_by_name).transform(self.tree)
        except lark.exceptions.VisitError as error:
            if isinstance(error.orig_exc, _Unfit):
                raise self._refused(str(error.orig_exc)) from None
            if isinstance(error.orig_exc, pa.ArrowException):
                raise self._refused(one_line(error.orig_exc)) from None
            raise
        if value.kind not in (BOOLEAN, NULL):
            raise self._refused(f"it is {value.kind}, not true or false")
        holds = value.content if value.kind == BOOLEAN else pa.scalar(None, pa.bool_())
        if isinstance(holds, pa.Scalar):
            return pa.repeat(holds, num_rows)
        return holds.combine_chunks() if isinstance(holds, pa.ChunkedArray) else holds

    def _refused(self, problem: str) -> ConfigError:
        return ConfigError(f"selection.where: {self.text!r}: {problem}")


def parsed(text: str) -> Condition:
    """Return the condition that `text` states.

    Raises:
        ConfigError: it states none; the message says where it ends to be one.
    """
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        rest = "" if isinstance(error, lark.exceptions.UnexpectedEOF) else _rest(text, error)
        where = f"{rest[:20]!r} is not expected" if rest else "it ends too early"
        raise ConfigError(
            f"selection.where: {text!r} is no condition: {where}. It may hold {SYNTAX}; a name "
            "with other characters stands in `backticks`."
        ) from None
    if _depth(tree) > MAX_DEPTH:
        raise ConfigError(f"selection.where: {text[:60]!r}... is nested over {MAX_DEPTH} times")
    in_order = tree.iter_subtrees_topdown()
    names = dict.fromkeys(_path(found.children) for found in in_order if found.data == "name")
    return Condition(text, tree, tuple(names))


def shown(path: Path) -> str:
    """Return a name as it is written in a condition."""
    return ".".join(part if _is_plain(part) else f"`{part}`" for part in path)


def _is_plain(part: str) -> bool:
    return part.isidentifier() and part.lower() not in _KEYWORDS


def _rest(text: str, error: lark.exceptions.UnexpectedInput) -> str:
    """Return the text from the error on; "" if it is at the end."""
    position = error.pos_in_stream
    is_end = getattr(getattr(error, "token", None), "type", "") == "$END"
    return "" if is_end or position is None else text[position:]


@cache
def _parser() -> lark.Lark:
    return lark.Lark(GRAMMAR, parser="lalr")


def _depth(tree: lark.Tree[lark.Token]) -> int:
    """Return how many trees lie in one another, without recursion."""
    depth, level = 0, [tree]
    while level := [c for found in level for c in found.children if isinstance(c, lark.Tree)]:
        depth += 1
    return depth


def _path(parts: list[Any]) -> Path:
    return tuple(str(part).strip("`") for part in parts)


MAX_DEPTH = 100  # evaluation descends into conditions in one another
_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "null", "like", "true", "false"})
NUMBER, TEXT, BOOLEAN, DATE, NULL = "a number", "text", "true or false", "a date or time", "null"
_OTHER = "a list or an object"


class _Unfit(Exception):
    """Values that do not fit what is done with them."""


@dataclass(frozen=True)
class _Value:
    """A value of every row, or one for all of them.

    Attributes:
        content: an array or a scalar.
        kind: NUMBER, TEXT, BOOLEAN, DATE, NULL or _OTHER.
        text: how messages call it.
    """

    content: Any
    kind: str
    text: str


_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_CALCULATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,
}


@lark.v_args(inline=True)
class _Evaluation(lark.Transformer[Any, _Value]):
    """Evaluates a tree from its leaves, for all rows at once."""

    def __init__(self, value_by_name: Mapping[Path, Any]) -> None:
        super().__init__()
        self._value_by_name = value_by_name

    def name(self, *parts: Any) -> _Value:
        path = _path(list(parts))
        return _value(self._value_by_name[path], shown(path))

    def number(self, written: Any) -> _Value:
        is_whole = written.isdecimal() and int(written) < 2**63
        return _value(pa.scalar(int(written) if is_whole else float(written)), str(written))

    def text(self, token: Any) -> _Value:
        return _value(pa.scalar(_unquoted(token)), str(token))

    def boolean(self, token: Any) -> _Value:
        return _value(pa.scalar(token.lower() == "true"), str(token))

    def values(self, *values: _Value) -> list[_Value]:
        return [*values]

    def or_(self, *values: _Value) -> _Value:
        return reduce(_joined_by(pc.or_kleene, "or"), values)

    def and_(self, *values: _Value) -> _Value:
        return reduce(_joined_by(pc.and_kleene, "and"), values)

    def negated(self, value: _Value) -> _Value:
        return _Value(pc.invert(_boolean(value, "not")), BOOLEAN, f"not {value.text}")

    def compared(self, left: _Value, sign: Any, right: _Value) -> _Value:
        return _compared(left, str(sign), right)

    def is_in(self, value: _Value, others: list[_Value]) -> _Value:
        return self.or_(*(_compared(value, "=", other) for other in others))

    def is_not_in(self, value: _Value, others: list[_Value]) -> _Value:
        return self.negated(self.is_in(value, others))

    def like(self, value: _Value, pattern: Any) -> _Value:
        content = _text(value, "like")
        return _Value(pc.match_like(content, _unquoted(pattern)), BOOLEAN, f"{value.text} like")

    def not_like(self, value: _Value, pattern: Any) -> _Value:
        return self.negated(self.like(value, pattern))

    def is_null(self, value: _Value) -> _Value:
        return _Value(pc.is_null(value.content), BOOLEAN, f"{value.text} is null")

    def is_not_null(self, value: _Value) -> _Value:
        return _Value(pc.is_valid(value.content), BOOLEAN, f"{value.text} is not null")

    def calculated(self, left: _Value, sign: Any, right: _Value) -> _Value:
        text = f"{left.text} {sign} {right.text}"
        numbers = (_float(left, str(sign)), _float(right, str(sign)))
        return _Value(_CALCULATIONS[str(sign)](*numbers), NUMBER, text)

    def signed(self, sign: Any, value: _Value) -> _Value:
        content = _float(value, str(sign))
        return _Value(pc.negate(content) if sign == "-" else content, NUMBER, value.text)

    def function(self, name: Any, value: _Value) -> _Value:
        named, text = name.lower(), f"{name}({value.text})"
        if named == "length":
            return _Value(pc.utf8_length(_text(value, text)), NUMBER, text)
        if named == "lower":
            return _Value(pc.utf8_lower(_text(value, text)), TEXT, text)
        if value.kind != TEXT:
            return _Value(_float(value, text), NUMBER, text)
        return _Value(number_of_text(value.content), NUMBER, text)


def number_of_text(texts: Any) -> Any:
    """Return the numbers that texts are, float64, and null for other texts."""
    trimmed = pc.utf8_trim_whitespace(texts)
    is_number = pc.match_substring_regex(trimmed, f"^{NUMERIC}$")
    unsigned = pc.replace_substring_regex(trimmed, r"^\+", "")
    return pc.cast(pc.if_else(is_number, unsigned, pa.scalar(None, trimmed.type)), pa.float64())


def _value(content: Any, text: str) -> _Value:
    """Return a value of one of few types: numbers that pyarrow compares, text, booleans, dates."""
    kind, types = content.type, pa.types
    if types.is_dictionary(kind):
        content = content.cast(kind.value_type)
        kind = content.type
    if types.is_decimal(kind) or types.is_float16(kind):
        return _Value(content.cast(pa.float64()), NUMBER, text)
    if types.is_integer(kind) or types.is_floating(kind):
        return _Value(content, NUMBER, text)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _Value(content.cast(pa.large_string()), TEXT, text)
    if types.is_boolean(kind):
        return _Value(content, BOOLEAN, text)
    if types.is_temporal(kind):
        return _Value(content, DATE, text)
    return _Value(content, NULL if types.is_null(kind) else _OTHER, text)


def _compared(left: _Value, sign: str, right: _Value) -> _Value:
    text = f"{left.text} {sign} {right.text}"
    if NULL in (left.kind, right.kind):
        known = right if left.kind == NULL else left
        missing = pc.if_else(pc.is_valid(known.content), pa.scalar(None, pa.bool_()), None)
        return _Value(missing.cast(pa.bool_()), BOOLEAN, text)
    left, right = _dated(left, right), _dated(right, left)
    if left.kind != right.kind or left.kind == _OTHER:
        raise _Unfit(
            f"`{text}` compares {_described(left)} with {_described(right)}{_hint(left, right)}"
        )
    if left.kind == BOOLEAN and sign in ("<", "<=", ">", ">="):
        raise _Unfit(f"`{text}`: true and false have no order; use = or !=")
    return _Value(_COMPARISONS[sign](left.content, right.content), BOOLEAN, text)


def _described(value: _Value) -> str:
    """Return the name and kind of a value; kinds of literals are seen."""
    return f"{value.text} ({value.kind})"


def _hint(left: _Value, right: _Value) -> str:
    """Return what to write instead where text is compared with a number."""
    kinds = {left.kind: left, right.kind: right}
    if kinds.keys() == {TEXT, NUMBER} and not isinstance(kinds[TEXT].content, pa.Scalar):
        return f"; number({kinds[TEXT].text}) is the number that the text is"
    return ""


def _dated(value: _Value, other: _Value) -> _Value:
    """Return a text as a date or time if it is compared with one."""
    if value.kind != TEXT or other.kind != DATE:
        return value
    return _Value(value.content.cast(pa.string()).cast(other.content.type), DATE, value.text)


def _boolean(value: _Value, operator: str) -> Any:
    if value.kind == NULL:
        return value.content.cast(pa.bool_())
    if value.kind != BOOLEAN:
        raise _Unfit(f"`{operator}` joins conditions, and {value.text} is {value.kind}")
    return value.content


def _text(value: _Value, what: str) -> Any:
    if value.kind == NULL:
        return value.content.cast(pa.large_string())
    if value.kind != TEXT:
        raise _Unfit(f"`{what}` needs text, and {value.text} is {value.kind}")
    return value.content


def _float(value: _Value, what: str) -> Any:
    if value.kind not in (NUMBER, NULL):
        raise _Unfit(f"`{what}` needs numbers, and {value.text} is {value.kind}")
    return value.content.cast(pa.float64())


def _joined_by(
    function: Callable[[Any, Any], Any], operator: str
) -> Callable[[_Value, _Value], _Value]:
    def joined(left: _Value, right: _Value) -> _Value:
        content = function(_boolean(left, operator), _boolean(right, operator))
        return _Value(content, BOOLEAN, f"{left.text} {operator} {right.text}")

    return joined


def _unquoted(token: Any) -> str:
    quote = token[0]
    return str(token[1:-1]).replace(quote * 2, quote)
