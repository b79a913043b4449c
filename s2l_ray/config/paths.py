"""Paths of a run file, which must mean the same on every machine of a cluster."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2l_ray.config.data import AUTO, CHATML, NAMED_TEMPLATES
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError
from s2l_ray.storage.location import absolute, absolute_if_file, is_uri


def paths_of(config: RunConfig) -> dict[str, Sequence[str]]:
    """Return the paths of a configuration that workers read or write, by key."""
    paths: dict[str, Sequence[str]] = {"run_dir": [config.run_dir]}
    if config.data is not None:
        paths["data.train"] = config.data.train
        paths["data.eval"] = [
            path for name in config.data.eval for path in config.data.files_of(name)
        ]
    if config.reference is not None and config.reference.path is not None:
        paths["reference.path"] = [config.reference.path]
    if config.trajectories is not None:
        if config.trajectories.path is not None:
            paths["trajectories.path"] = [config.trajectories.path]
        paths["trajectories.queries"] = config.trajectories.queries
    if config.selection is not None and config.selection.score_file is not None:
        paths["selection.score"] = [config.selection.score_file[0]]
    return paths


READERS = {
    "run_dir": (),
    "data.train": ("prepare",),
    "data.eval": ("prepare", "evaluation"),
    "reference.path": ("prepare", "reference", "trajectories"),
    # Losses of more than 2 GB are not copied: those who cluster them read the same files.
    "trajectories.path": ("trajectories", "clusters"),
    "trajectories.queries": ("trajectories",),
    "selection.score": ("selection",),
}
"""Key of `paths_of` -> the stages whose workers read these paths; `run_dir` has them all."""


def inputs_of(config: RunConfig, stages: Collection[str]) -> dict[str, Sequence[str]]:
    """Return the paths of a configuration that workers of `stages` read, by key."""
    return {key: paths for key, paths in paths_of(config).items() if {*READERS[key]} & {*stages}}


def stored_tree(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as a run stores it: its paths start at no current directory."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for key, change in _MADE_ABSOLUTE.items():
        tree = _changed(tree, key.split("."), change)
    return tree


def paths_in(tree: dict[str, Any]) -> list[str]:
    """Return the texts of a stored configuration that are, or may be, paths outside the run."""
    found: list[str] = []

    def noted(text: str) -> str:
        found.append(text)
        return text

    for key in _MADE_ABSOLUTE:
        if key != "run_dir":
            _changed(tree, key.split("."), noted)
    return found


def _changed(node: Any, keys: Sequence[str], change: Callable[[str], str]) -> Any:
    """Return a tree with the texts below `keys` changed; `*` is any key, and lists have none."""
    if isinstance(node, list):
        return [_changed(item, keys, change) for item in node]
    if isinstance(node, dict) and keys:
        key, *rest = keys
        return {
            name: _changed(value, rest, change) if key in (name, "*") else value
            for name, value in node.items()
        }
    return change(node) if isinstance(node, str) and not keys else node


def _absolute_template(name: str) -> str:
    return name if name in (*NAMED_TEMPLATES, AUTO, CHATML) else str(absolute_if_file(name))


def _absolute_score(score: str) -> str:
    pattern, mark, column = score.rpartition("#")
    return f"{absolute(pattern)}#{column}" if mark else score


_MADE_ABSOLUTE: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(
        (
            "run_dir",
            "data.train",
            "data.eval.*",
            "data.eval.*.files",
            "reference.path",
            "trajectories.path",
            "trajectories.queries",
        ),
        absolute,
    ),
    **dict.fromkeys(
        (
            "data.tokenizer",
            "reference.model",
            "reference.model.tokenizer",
            "target.model",
            "target.model.tokenizer",
            "evaluation.bertscore.model",
        ),
        absolute_if_file,
    ),
    "data.template": _absolute_template,
    "data.chat_template": _absolute_template,
    "selection.score": _absolute_score,
    "comparison.methods.selection.score": _absolute_score,
}
"""Keys of texts that are, or may be, paths -> what makes such a text absolute."""


def check_absolute(paths: Mapping[str, Sequence[str]]) -> None:
    """Refuse relative paths, which a job on a joined cluster would lose with its directory.

    Args:
        paths: by configuration key or name of an argument.

    Raises:
        ConfigError: a path is neither absolute nor a URI.
    """
    for key, values in paths.items():
        for value in values:
            if not is_uri(value) and not Path(value).expanduser().is_absolute():
                raise ConfigError(
                    f"{key}: {value!r} is relative, and on a joined cluster that means a "
                    "temporary copy of the working directory that vanishes with the job. Give an "
                    "absolute path on shared storage, or a URI such as s3://bucket/..."
                )
