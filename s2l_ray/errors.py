"""Errors that a user can fix, `UserError`: exit code 2, one message, no traceback.

A message says where, how many, which (the first three) and what to do.
"""

from collections.abc import Mapping, Sequence


class UserError(ValueError):
    """The command was understood, and cannot be carried out until the user changes something."""


class ConfigError(UserError):
    """A configuration, a command-line option or the environment does not fit."""


class DataError(UserError):
    """Rows, trajectories or a selection are not what they must be."""


class ModelError(UserError):
    """A model, tokenizer or checkpoint cannot be used."""


class StorageError(UserError):
    """A path cannot be read or written."""


class UnitError(Exception):
    """A worker failed in a way that a user cannot repair; the message ends with its traceback."""


_CLASSES = {
    kind.__name__: kind
    for kind in (UserError, ConfigError, DataError, ModelError, StorageError, UnitError)
}
"""Classes that an error keeps on its way from one process to another."""


def as_message(error: UserError | UnitError) -> dict[str, str]:
    """Return an error as JSON values, for another process; see `from_message`."""
    kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _CLASSES)
    return {"error": kind.__name__, "message": str(error)}


def from_message(message: Mapping[str, str]) -> UserError | UnitError:
    """Return the error that `as_message` was given, with the same class and text.

    Raises:
        KeyError: the message names none of this module's classes.
    """
    return _CLASSES[message["error"]](message["message"])


def first(names: Sequence[object], limit: int = 3) -> str:
    """Return the first few of `names`, as every message lists them."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{shown}, ..." if len(names) > limit else shown


def one_line(error: BaseException) -> str:
    """Return the message of `error` without line breaks."""
    return " ".join(str(error).split())


def check_rejected_share(
    where: str,
    num_rows: int,
    counts: Mapping[str, int],
    locations: Mapping[str, Sequence[str]],
    max_rejected: float,
    note: str = "",
    *,
    whole: bool = True,
) -> None:
    """Raise DataError if the share of rejected rows is above its limit, or if no row is left.

    Args:
        where: the configuration key that names the rows' files.
        counts: rejected rows by reason.
        locations: for each reason, at least the first three rejected rows, as file and row.
        note: a sentence that says where all of them are listed.
        whole: whether these are all rows, not the first of more.
    """
    rejected = sum(counts.values())
    if rejected <= max_rejected * num_rows and rejected < num_rows:
        return
    by_count = sorted(counts.items(), key=lambda item: -item[1])
    lines = [
        f"  {count:,} {reason} (first: {'; '.join(locations[reason][:3])})"
        for reason, count in by_count
    ]
    of = f"{num_rows:,}" if whole else f"the first {num_rows:,}"
    advice = ", or raise data.max_rejected" if rejected < num_rows else ""
    if any("template" in reason for reason in counts):
        advice = f", take another chat template (data.chat_template, or another model){advice}"
    raise DataError(
        f"{where}: {rejected:,} of {of} rows cannot be used ({rejected / num_rows:.2%}; "
        f"the limit data.max_rejected is {max_rejected:.2%}):\n"
        + "\n".join(lines)
        + f"\n{note}Correct the data or data.fields{advice}."
        + ("" if note else " `s2l preview` shows such rows.")
    )
