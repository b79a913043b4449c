"""Settings of a selection are checked against the methods; an arm drops what its method ignores."""

import pytest

from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import ConfigError
from s2l_ray.selection import settings
from s2l_ray.selection.methods import METHODS, method_named


def section(**keys) -> SelectionConfig:
    return SelectionConfig(budget=5, **keys)


def given(method: str) -> dict[str, str]:
    """What a section must have for this method."""
    return {"score": "quality"} if method == "score" else {}


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
        ({"method": "score"}, "`score` is not given: name a field of the rows, or FILE#COLUMN"),
        ({"within": "score"}, "`score` is not given"),
        ({"score": "quality"}, "`score` is for score, and for `within: score`; s2l would not"),
        ({"score_order": "lowest"}, "`score_order` is for score"),
        ({"quantile": 0.1, "method": "ambiguous"}, "`quantile` is for quantile-perplexity; ambi"),
        ({"where": "quality >"}, r"selection\.where: 'quality >' is no condition: it ends too"),
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
        {"within": "score", "score": "quality", "score_order": "lowest"},
        {"method": "random", "baselines": ["score"], "score": "quality"},
        {"method": "quantile-perplexity", "quantile": 0.1, "where": "tokens < 9"},
        *({"method": name, **given(name)} for name in METHODS),
    ],
)
def test_keys_that_go_together_are_taken(keys):
    settings.check(section(**keys))


@pytest.mark.parametrize("method", METHODS)
def test_an_arm_has_the_defaults_of_what_its_method_ignores(method):
    keys = {"within": "nearest", "weights": {"a": 2.0}, "minimum": 1, "maximum": 9}
    keys |= {"score": "quality", "score_order": "lowest", "quantile": 0.1, "unlearned": "last"}
    arm = settings.with_method(section(**keys, baselines=["random"], format="parquet"), method)

    ignored = set() if method == "s2l" else {"within"}
    ignored |= {"weights", "minimum", "maximum"} if method == "random" else set()
    ignored |= {"score", "score_order"} if method != "score" else set()
    ignored |= {"quantile"} if method != "quantile-perplexity" else set()
    assert arm == section(
        method=method, format="parquet", **{k: v for k, v in keys.items() if k not in ignored}
    )
    settings.check(arm)


def test_an_unknown_method_has_no_row():
    with pytest.raises(ConfigError, match="did you mean 'balanced-random'"):
        method_named("balanced_random")
