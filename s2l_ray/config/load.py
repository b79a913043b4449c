"""A run file as checked sections: YAML, `--set` overrides, and every problem in one message."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from s2l_ray.config import budgets, explain, without_effect
from s2l_ray.config.budgets import Budget
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the run that `path` describes.

    Args:
        path: a YAML file.
        overrides: `KEY=VALUE` texts such as `selection.budget=0.2`, applied before the
            configuration is checked. A value is read as YAML.

    Raises:
        ConfigError: the file cannot be read, a key or value is wrong (all of them are listed), or
            a key is set that has no effect beside others.
    """
    if Path(path).is_dir():
        raise ConfigError(
            f"the configuration {path} is a directory: give a YAML file, or a run's config.json"
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: a mapping of sections is expected")
    for override in overrides:
        _apply(tree, override)
    config = from_tree(tree, str(path))
    without_effect.check(config)
    return config


def from_tree(tree: dict[str, Any], origin: str) -> RunConfig:
    """Return the checked configuration of `tree`; `origin` is the name that errors give it.

    Raises:
        ConfigError: a key or value is wrong; all of them are listed.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        listed = "\n".join(f"  {line}" for line in explain.problems(error, tree, RunConfig))
        raise ConfigError(f"{origin}:\n{listed}") from None


def parse_budget(text: str, origin: str) -> Budget:
    """Read a budget: examples, a fraction, or tokens; `origin` is the name that errors give it.

    Raises:
        ConfigError: `text` is no budget.
    """
    value = parse_yaml(text, origin)
    if isinstance(value, str) and "token" in value.lower():
        try:
            return budgets.checked(value)
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"{origin} {text!r} is no number: give 50000, or 0.11, or tokens: '20M tokens'"
        )
    return value


def parse_yaml(text: str, origin: str) -> Any:
    """Return the value of a YAML 1.2 text; `origin` is the name that errors give it.

    Raises:
        ConfigError: it is not YAML, asks for code to run, or names a key twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{origin} is not YAML: {where}{error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{origin} is nested too deeply to be read") from None
    except (YAMLError, ValueError, KeyError) as error:
        # A scalar that looks like a number or a date and is none comes as what its reader raises.
        raise ConfigError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as selection.budget=0.2")
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {name} is not a section")
        node = child
    node[leaf] = parse_yaml(text, f"--set {key}")
