"""Arguments of the Python face, checked and in one form."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ray.config import budgets
from s2l_ray.config.budgets import Budget
from s2l_ray.config.load import load
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError


def loaded_config(
    config: str | Path | RunConfig, overrides: Sequence[str] | Mapping[str, Any]
) -> RunConfig:
    """Return the configuration that was given, or the one in a file, with some keys overridden."""
    if not isinstance(overrides, Mapping):
        texts = list(overrides)
    else:
        texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    if isinstance(config, RunConfig):
        if texts:
            raise ConfigError("overrides go with a file; this configuration is already checked")
        return config
    return load(config, texts)


def check_known(what: str, name: str | None, known: Sequence[str]) -> None:
    """Raise ConfigError, with the nearest name, if a name is given that is not known."""
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{what} {name!r} is unknown; {hint}")


def plain_budget(budget: Budget) -> Budget:
    """Return a budget as a Python value; text in the one spelling of its number of tokens."""
    value = budget.item() if isinstance(budget, np.generic) else budget
    if isinstance(value, str):
        try:
            return budgets.checked(value)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return value
