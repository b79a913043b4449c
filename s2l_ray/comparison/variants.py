"""What a comparison compares: methods with settings, each as the configuration of its own run."""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from s2l_ray.config.comparison import ComparedMethod, ComparisonConfig
from s2l_ray.config.load import from_tree
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.errors import ConfigError, UserError, as_message, first, from_message
from s2l_ray.selection import conditions, settings
from s2l_ray.selection.methods import METHODS, method_named

BASELINE = "random"
"""The method that every other one is compared with."""
OF_CLUSTERS = frozenset({"cluster", "sqdist"})
"""Numbers of an example that another clustering may change."""


@dataclass(frozen=True)
class Variant:
    """A method with settings.

    Attributes:
        label: its name in tables.
        method: its name in `METHODS`.
        settings: in what it differs from the run's own selection and clusters.
        config: the run's configuration with the selection and the clusters of this method.
        where: the key under which it stands, for messages.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    config: RunConfig
    where: str = "comparison.methods"

    @property
    def selection(self) -> SelectionConfig:
        assert self.config.selection is not None
        return self.config.selection

    @property
    def needs_clusters(self) -> bool:
        """Tell whether the subset depends on clusters, or on strata that are found."""
        row, clusters = METHODS[self.method], self.config.clusters
        assert clusters is not None
        finds_strata = clusters.strata == "auto" and not row.ignores_strata
        return row.reads_clusters or finds_strata or bool(OF_CLUSTERS & names_read(self.selection))

    @property
    def has_own_strata(self) -> bool:
        """Tell whether strata may differ from those of the run's clusters, by a setting."""
        return "clusters" in self.settings

    def errors_named(self) -> contextlib.AbstractContextManager[None]:
        """Let errors about its selection name the keys of the comparison."""
        return _errors_named(self.where, self.settings)


@contextlib.contextmanager
def _errors_named(where: str, given: Collection[str]) -> Iterator[None]:
    """Let errors inside the block that name `selection` name what the user wrote.

    A setting that is not among those `given` is the run's own, and keeps its name.
    """
    try:
        yield
    except UserError as error:
        key, colon, rest = str(error).partition(":")
        section, _, name = key.partition(".")
        if section != "selection" or (name and name != "budget" and name not in given):
            raise
        written = "comparison.budgets" if name == "budget" else f"{where}.{name}".rstrip(".")
        raise from_message({**as_message(error), "message": f"{written}{colon}{rest}"}) from None


def names_read(section: SelectionConfig) -> set[str]:
    """Return the names of numbers of the run, or of fields, in a condition and a score."""
    paths = conditions.parsed(section.where).names if section.where is not None else ()
    names = {path[-1] for path in paths if len(path) == 1 or path[0] == "run"}
    return names | ({section.score.removeprefix("run.")} if section.score is not None else set())


def variants(config: RunConfig) -> list[Variant]:
    """Return the methods of `config.comparison`, in its order.

    Raises:
        ConfigError: there is no such method, a setting is unknown or has no effect, or two methods
            are the same.
    """
    section = config.comparison
    assert section is not None
    found = [_variant(config, section, place) for place in range(len(section.methods))]
    for key in ("label", "config"):
        values = [getattr(item, key) for item in found]
        twice = [item.label for item in found if values.count(getattr(item, key)) > 1]
        if twice:
            raise ConfigError(
                f"comparison.methods: {len(twice)} are the same ({first(twice)}); leave one out, "
                "or give them settings that differ"
            )
    return found


def _variant(config: RunConfig, section: ComparisonConfig, place: int) -> Variant:
    """Return the method at one place of the section."""
    item, where = section.methods[place], f"comparison.methods.{place}"
    with _errors_named(where, item.selection):
        changed = _config_of(config, section, item, where)
    return Variant(item.label or _label(item, changed), item.method, _given(item), changed, where)


def _config_of(
    config: RunConfig, section: ComparisonConfig, item: ComparedMethod, where: str
) -> RunConfig:
    """Return the configuration with the selection and the clusters of a method."""
    row = method_named(item.method)
    own = config.selection or SelectionConfig(budget=section.budgets[0])
    base = settings.with_method(own, item.method)
    if row.ignores_strata or row.always_stratified:
        base = base.model_copy(update={"stratify": True})
    tree = config.model_dump(mode="json")
    tree["selection"] = {
        **base.model_dump(mode="json"),
        **item.selection,
        "budget": section.budgets[0],
    }
    tree["clusters"] = {**tree["clusters"], **item.clusters}
    changed = from_tree(tree, f"{where} ({item.method})")
    assert changed.selection is not None
    settings.check(changed.selection)
    settings.check_stratify(changed.selection)
    return changed


def _given(item: ComparedMethod) -> dict[str, Any]:
    return {**item.selection, **({"clusters": item.clusters} if item.clusters else {})}


def _label(item: ComparedMethod, config: RunConfig) -> str:
    """Return the method and its settings in words: `s2l (num_clusters 50, stratify false)`.

    A method that draws evenly from strata is another one where these are found: it says so.
    """
    given = {**item.clusters, **item.selection}
    assert config.clusters is not None
    finds_strata = config.clusters.strata == "auto" and "strata" not in item.clusters
    draws_from_strata = METHODS[item.method].always_stratified
    listed = ["over found strata"] if finds_strata and draws_from_strata else []
    listed += [
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in given.items()
    ]
    return f"{item.method} ({', '.join(listed)})" if listed else item.method
