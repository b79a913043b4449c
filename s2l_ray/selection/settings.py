"""Settings of a selection, checked against the table of methods; and the section of each arm."""

from s2l_ray.config.section import default_of
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import ConfigError, first
from s2l_ray.selection import conditions
from s2l_ray.selection.methods import METHODS, WITHIN, method_named

STRATUM_KEYS = frozenset({"weights", "minimum", "maximum"})
SCORE = "score"
"""The method, the order inside clusters and the number of the key `score`."""


def check(section: SelectionConfig) -> None:
    """Refuse methods that do not exist, and keys that all methods of the section would ignore.

    Raises:
        ConfigError: naming the method or the key.
    """
    methods = [section.method, *section.baselines]
    ordered = [name for name in methods if method_named(name).orders_within]
    if section.within != default_of(section, "within") and not ordered:
        raise ConfigError(f"selection: `within` {clusters_missing(section.method)}")
    problem = problem_with_settings(section)
    if problem is not None:
        raise ConfigError(f"selection: {problem}")
    if section.where is not None:
        conditions.parsed(section.where)
    problem = problem_with_strata(section)
    if problem is not None:
        raise ConfigError(f"selection: {problem}")


def check_stratify(section: SelectionConfig) -> None:
    """Refuse `stratify: false` if no method of the section would read it.

    Stored configurations may have it, so this is no part of `check`.

    Raises:
        ConfigError: naming the methods.
    """
    methods = {name: method_named(name) for name in [section.method, *section.baselines]}
    fixed = all(row.ignores_strata or row.always_stratified for row in methods.values())
    if section.stratify != default_of(section, "stratify") and fixed:
        raise ConfigError(
            f"selection: `stratify` has no effect on {first(list(methods))}; leave it out"
        )


def problem_with_strata(section: SelectionConfig) -> str | None:
    """Return why weights and bounds of strata do not fit the methods; None if they fit.

    Raises:
        ConfigError: there is no such method.
    """
    if section.is_even:
        return None
    methods = {name: method_named(name) for name in [section.method, *section.baselines]}
    stratified = {name: row for name, row in methods.items() if not row.ignores_strata}
    if not stratified:
        names = first(list(methods))
        return f"{names} knows no strata, and so no weights, minimum or maximum"
    if not section.stratify and not all(row.always_stratified for row in stratified.values()):
        return "`weights`, `minimum` and `maximum` need `stratify: true`"
    return None


def problem_with_settings(section: SelectionConfig) -> str | None:
    """Return why settings of single methods do not fit the methods; None if they fit.

    Raises:
        ConfigError: there is no such method.
    """
    methods = [section.method, *section.baselines]
    read = {key for name in methods for key in settings_read(section, name)}
    if SCORE in read and section.score is None:
        return "`score` is not given: name a field of the rows, or FILE#COLUMN"
    for key in sorted(_SETTINGS - read):
        if getattr(section, key) != default_of(section, key):
            readers = [name for name, row in METHODS.items() if key in row.settings]
            within = ", and for `within: score`" if SCORE in readers else ""
            return f"`{key}` is for {first(readers)}{within}; {first(methods)} would not read it"
    return None


def settings_read(section: SelectionConfig, method: str) -> set[str]:
    """Return the keys of _SETTINGS that `method` reads.

    Raises:
        ConfigError: there is no such method.
    """
    row = method_named(method)
    inside = row.orders_within and section.within == SCORE
    return {*row.settings, *(METHODS[SCORE].settings if inside else ())}


def effective(section: SelectionConfig) -> SelectionConfig:
    """Return the section with those settings at their defaults that its own method does not read.

    So a change of one that only a baseline reads leaves finished work for the method finished.
    """
    unread = _SETTINGS - settings_read(section, section.method)
    return section.model_copy(update={key: default_of(section, key) for key in unread})


def clusters_missing(method: str) -> str:
    """Return the end of a message that `within` does not fit `method`."""
    ordered = [name for name, row in METHODS.items() if row.orders_within]
    return f"orders the clusters of {first(ordered)}; {method} has none"


def with_method(section: SelectionConfig, method: str) -> SelectionConfig:
    """Return the section for one other method alone; keys that this ignores are at their defaults.

    So a change of such a key leaves finished work for the method finished.

    Raises:
        ConfigError: there is no such method.
    """
    row = method_named(method)
    ignored = set() if row.orders_within else {"within"}
    ignored |= STRATUM_KEYS if row.ignores_strata else set()
    defaults = {key: default_of(section, key) for key in ignored}
    return effective(section.model_copy(update={**defaults, "method": method, "baselines": []}))


def inside_number(section: SelectionConfig) -> str | None:
    """Return the name of the number that orders the examples of a cluster; None for at random."""
    return WITHIN[section.within] if method_named(section.method).orders_within else None


_SETTINGS = frozenset(key for row in METHODS.values() for key in row.settings)
"""Keys that only some methods read."""
