"""Keys of a run file that have no effect beside others.

They are refused: whoever sets a key expects that it does something. A configuration that the
program stored has all sections and keys, with their defaults, so it is not checked.
"""

from collections.abc import Iterator

from s2l_ray.config.section import Section
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError

OF_TEXTS = frozenset({"prompt", "context", "response", "history"})
"""Fields of rows that are no conversations."""


def check(config: RunConfig) -> None:
    """Refuse keys that are set, and that nothing would read.

    Raises:
        ConfigError: all of them are named, with the reason.
    """
    if config.model_fields_set >= RunConfig.model_fields.keys():
        return  # nobody writes all sections, null where there is none
    problems = [f"  {', '.join(keys)}: {reason}" for keys, reason in _unread(config) if keys]
    if problems:
        listed = "\n".join(problems)
        raise ConfigError(f"keys without effect; leave them out:\n{listed}")


def _unread(config: RunConfig) -> Iterator[tuple[list[str], str]]:
    """Yield keys that are set without effect, and the reason; some of the lists are empty."""
    reference, trajectories = config.reference, config.trajectories
    if config.imports_trajectories and reference is not None:
        yield ["reference"], "nothing is trained or scored beside `trajectories.path`"
    elif reference is not None and reference.path is not None:
        yield (
            _set_beside("reference", reference, "path"),
            "nothing is trained beside `reference.path`, and all its checkpoints are used",
        )
    elif reference is not None and reference.perturbations is not None:
        kept = {"model", "perturbations", "scale"}
        yield (
            _in_order("reference", reference, _given(reference) - kept),
            "nothing is trained beside `reference.perturbations`",
        )
    elif reference is not None:
        yield (
            _in_order("reference", reference, _given(reference) & {"scale"}),
            "it is that of the noise of `reference.perturbations`, which is not set",
        )
    if trajectories is not None and trajectories.path is not None:
        yield (
            _set_beside("trajectories", trajectories, "path"),
            "nothing is scored beside `trajectories.path`",
        )
    clusters = config.clusters
    if clusters is not None and clusters.strata == "field":
        yield (
            _in_order("clusters", clusters, _given(clusters) & {"num_strata"}),
            "strata are those of `data.fields.stratum` unless `clusters.strata: auto` finds others",
        )
    if config.data is not None and config.data.fields.messages is not None:
        fields = config.data.fields
        yield (
            _in_order("data.fields", fields, _given(fields) & OF_TEXTS),
            "all of a conversation is in `data.fields.messages`",
        )
    target = config.target
    if target is not None and target.evaluate_every is None:
        yield (
            _in_order("target", target, _given(target) & {"evaluate_rows"}),
            "nothing is measured in the training without `target.evaluate_every`",
        )
    evaluation = config.evaluation
    if evaluation is not None and not evaluation.asks_for("bertscore"):
        unread = {"bertscore"} & evaluation.model_fields_set
        reason = "no set has bertscore in `evaluation.metrics`"
        yield _in_order("evaluation", evaluation, frozenset(unread)), reason


def _set_beside(name: str, section: Section, key: str) -> list[str]:
    """Return the keys of a section that are set, but for `key`."""
    return _in_order(name, section, _given(section) - {key})


def _in_order(name: str, section: Section, keys: frozenset[str]) -> list[str]:
    return [f"{name}.{key}" for key in type(section).model_fields if key in keys]


def _given(section: Section) -> frozenset[str]:
    """Return the keys that are set; one that is set to null says that there is nothing."""
    return frozenset(key for key in section.model_fields_set if getattr(section, key) is not None)
