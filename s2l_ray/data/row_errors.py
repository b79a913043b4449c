"""Reasons for which a row is rejected."""

NO_ROOM = "no response tokens left"
REASONS = (
    "malformed JSON",
    "invalid UTF-8",
    "missing field",
    "empty field",
    "wrong type",
    "refused by the template",
    "changed by the template",
    "no learned turn",
    NO_ROOM,
    "duplicate id",
)
IN_EVALUATION_SET, NEAR_DUPLICATE = "in an evaluation set", "near duplicate"
ASKED_FOR = (IN_EVALUATION_SET, NEAR_DUPLICATE)
"""Reasons of rows that can be used, and that the configuration asks to leave out."""


class RowError(Exception):
    """A row that cannot be used: the reason, and the detail that explains it."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in (*REASONS, *ASKED_FOR), reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def place_of(file: object, row: int) -> str:
    """Return where a row is, as messages name it: rows of a file are counted as in its tables."""
    return f"{file} row {row:,} (from 0)"


def kind_of(value: object) -> str:
    """Return the type of a value as messages name it."""
    return "null" if value is None else f"of type {type(value).__name__}"


def checked_text(value: object, path: str) -> str:
    """Return `value`, which must be text that UTF-8 can encode; `path` is its name in messages.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, str):
        raise RowError("wrong type", f"{path} is {kind_of(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        detail = f"{path} has an unpaired surrogate at character {error.start}"
        raise RowError("invalid UTF-8", detail) from None
    return value
