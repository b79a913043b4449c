"""Shapes of JSON files that hold no row on each line, told from their beginnings.

An array of objects is read whatever its file is called. An object around the rows, an object of
columns and rows over several lines are refused, with the command that makes lines of them.
"""

import re
from dataclasses import dataclass, field
from itertools import chain, pairwise

from s2l_ray.errors import DataError, first

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},:\n]|[^\s"\[\]{},:]+', re.DOTALL)
_ROW_KEYS = {
    *("data", "rows", "examples", "dataset", "items", "instances", "records", "samples"),
    *("entries", "train", "validation", "test"),
}
"""Keys that hold the rows of a file that is one object."""


@dataclass
class _Beginning:
    """What the beginning of an object tells.

    Attributes:
        values: its keys, and the first two tokens of their values.
        has_lines: whether it goes on after a line break, and not with another object.
        rest: what follows its end; None if the end is not yet there.
    """

    values: dict[str, bytes] = field(default_factory=dict)
    has_lines: bool = False
    rest: bytes | None = None


def is_array_of_objects(head: bytes) -> bool:
    """Tell whether a file begins with an array whose first element is an object."""
    return re.match(rb"\s*\[\s*\{", head) is not None


def check_lines(origin: str, head: bytes, *, may_be_one_object: bool) -> None:
    """Raise DataError if a file that begins with an object does not have one on each line.

    Args:
        origin: the file, for messages.
        head: its beginning.
        may_be_one_object: whether its name (.json) allows one object that holds all rows.
    """
    if not re.match(rb"\s*\{", head):
        return
    beginning = _beginning(head)
    keys, values = list(beginning.values), beginning.values
    rows = [key for key in keys if key.lower() in _ROW_KEYS and values[key][:1] in b"[{"]
    openings = set(values.values())
    are_columns = openings == {b"{"} or (
        len(keys) > 1 and all(v[:1] == b"[" and v[1:] not in b"[{]" for v in openings)
    )
    is_one_line = (
        may_be_one_object and (rows or are_columns) and not (beginning.rest or b"").strip()
    )
    if not beginning.has_lines and not is_one_line:
        return
    if rows:
        how = f"If the rows are in {rows[0]!r}: jq -c '.{rows[0]}[]' FILE > rows.jsonl"
    elif are_columns:
        how = (
            "Its values are columns: in Python, pandas.read_json(FILE).to_json('rows.jsonl', "
            "orient='records', lines=True)"
        )
    else:
        how = "If each object is a row over several lines: jq -c . FILE > rows.jsonl"
    raise DataError(
        f"data: {origin} is neither an array nor an object on each line: it begins with one object "
        f"with the keys {first(keys, 8)}. {how}."
    )


def _beginning(head: bytes) -> _Beginning:
    """Read the first object of `head` as far as it goes."""
    found = _Beginning()
    open_containers: list[bytes] = []
    before, key = b"", ""
    for match, following in pairwise(chain(_TOKEN.finditer(head), [None])):
        assert match is not None, "only the last one is"
        token = match.group()
        after = following.group() if following else b""
        if token == b"\n":
            if open_containers and before == b"}" and after == b"{":
                # Without a comma between them these are lines, and an earlier one is not closed.
                return _Beginning()
            innermost = open_containers[-1] if open_containers else b""
            goes_on = before in (b"[", b"{", b",") and (
                innermost == b"[" or after[:1] == b'"' or after == b"}"
            )
            found.has_lines |= bool(open_containers) and goes_on and after != b"\n"
            continue
        if len(open_containers) == 1:
            if after == b":" and token[:1] == b'"':
                key = token[1:-1].decode(errors="replace")
            elif before == b":" and key:
                found.values[key] = token[:1] + (after[:1] if token == b"[" else b"")
        if token in (b"[", b"{"):
            open_containers.append(token)
        elif token in (b"]", b"}") and open_containers:
            open_containers.pop()
            if not open_containers:
                found.rest = head[match.end() :]
                return found
        before = token
    return found
