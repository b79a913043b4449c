"""Errors that a user can fix: exit code 2, one message, no traceback.

A message says where, how many, which (the first three) and what to do.
"""

from collections.abc import Sequence


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


def first(names: Sequence[object], limit: int = 3) -> str:
    """The first few of `names`, as every message lists them."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{shown}, ..." if len(names) > limit else shown
