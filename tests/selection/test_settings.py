"""Settings of a selection are checked against the methods; an arm drops what its method ignores."""

import pytest

from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import ConfigError
from s2l_ray.selection import settings
from s2l_ray.selection.methods import METHODS, method_named


def section(**keys) -> SelectionConfig:
    return SelectionConfig(budget=5, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": {"a": 2.0}, "stratify": False}, "need `stratify: true`"),
        ({"minimum": 1, "stratify": False, "baselines": ["balanced-random"]}, "need `stratify"),
        ({"maximum": 9, "method": "random"}, "random knows no strata"),
        ({"within": "nearest", "method": "s2l-authors"}, "orders the clusters of s2l"),
        ({"method": "best"}, r"selection: there is no method 'best'; methods: s2l, .*rds-plus"),
        ({"method": "el2m"}, r"no method 'el2m'; did you mean 'el2n'\?"),
        ({"baselines": ["random", "best"]}, "there is no method 'best'"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(section(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"minimum": {"a": 3}, "maximum": {"b": 2}},
        {"weights": {"a": 2}, "method": "balanced-random", "stratify": False},
        {"maximum": 9, "method": "random", "baselines": ["s2l"]},
        {"within": "nearest", "method": "random", "baselines": ["s2l"]},
        *({"method": name} for name in METHODS),
    ],
)
def test_keys_that_go_together_are_taken(keys):
    settings.check(section(**keys))


@pytest.mark.parametrize("method", METHODS)
def test_an_arm_has_the_defaults_of_what_its_method_ignores(method):
    keys = {"within": "nearest", "weights": {"a": 2.0}, "minimum": 1, "maximum": 9}
    arm = settings.with_method(section(**keys, baselines=["random"], format="parquet"), method)

    ignored = set() if method == "s2l" else {"within"}
    ignored |= {"weights", "minimum", "maximum"} if method == "random" else set()
    assert arm == section(
        method=method, format="parquet", **{k: v for k, v in keys.items() if k not in ignored}
    )
    settings.check(arm)


def test_an_unknown_method_has_no_row():
    with pytest.raises(ConfigError, match="did you mean 'balanced-random'"):
        method_named("balanced_random")
