"""The table of selection methods: a function of `rankings`, and what the program has to know of it.

To add a method, write its function there and its row here; nothing else names it.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2l_ray.errors import ConfigError
from s2l_ray.selection import rankings
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.water_filling import Quotas


class Ranker(Protocol):
    """A function from examples and a seed to order_N: order_N[r] is the row that has rank r.

    With `stratify`, the budget is first spread over the strata, evenly or by `quotas` (by stratum
    number). Inside each stratum the method's own order decides.
    """

    def __call__(
        self, examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        ranking: the function.
        description: one line for `s2l select --help`.
        numbers: names of the numbers of each example that `ranking` reads; see `columns.read`.
        vectors: names of the vectors that it compares; see `embedding_matrix.read`.
        ignores_strata: True if `stratify`, weights and bounds of strata change nothing.
        always_stratified: True if the budget is spread over the strata whatever `stratify` says.
        orders_within: True if the setting `within` orders the examples of its clusters.
        reads_clusters: True if the clusters decide which examples are selected.
        settings: keys of the section that it reads, and that other methods do not.
    """

    ranking: Ranker
    description: str
    numbers: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    ignores_strata: bool = False
    always_stratified: bool = False
    orders_within: bool = False
    reads_clusters: bool = False
    settings: tuple[str, ...] = ()

    def spreads(self, stratify: bool) -> bool:
        """Tell whether a budget is spread over the strata first."""
        return self.always_stratified or (stratify and not self.ignores_strata)


METHODS: Mapping[str, Method] = {
    "s2l": Method(
        rankings.s2l,
        "even over clusters of loss trajectories (S2L, arXiv:2403.07384)",
        orders_within=True,
        reads_clusters=True,
    ),
    "s2l-authors": Method(
        rankings.s2l_authors,
        "S2L as its authors' code has it: clusters of one or two examples last",
        reads_clusters=True,
    ),
    "random": Method(rankings.random, "uniform over the pool", ignores_strata=True),
    "balanced-random": Method(
        rankings.balanced_random,
        "random, even over strata (arXiv:2503.01807)",
        always_stratified=True,
    ),
    "least-confidence": Method(
        rankings.least_confidence, "highest loss at the last checkpoint first", ("last_loss",)
    ),
    "middle-perplexity": Method(
        rankings.middle_perplexity,
        "nearest to the median loss at the last checkpoint first (arXiv:2309.04564)",
        ("last_loss",),
    ),
    "quantile-perplexity": Method(
        rankings.quantile_perplexity,
        "nearest to a quantile of the loss at the last checkpoint first (selection.quantile)",
        ("last_loss",),
        settings=("quantile",),
    ),
    "high-learnability": Method(
        rankings.high_learnability,
        "greatest fall of the loss over the training first",
        ("loss_drop",),
    ),
    "confidence-curriculum": Method(
        rankings.confidence_curriculum,
        "most confident over the training first (arXiv:2205.09898)",
        ("confidence",),
    ),
    "ambiguous": Method(
        rankings.ambiguous,
        "confidence that varies most over the training first (arXiv:2009.10795)",
        ("variability",),
    ),
    "ifd": Method(
        rankings.ifd,
        "highest loss relative to that without the prompt first, if below 1 (arXiv:2308.12032)",
        ("ifd",),
    ),
    "longest-responses": Method(
        rankings.longest_responses,
        "most response tokens first (arXiv:2402.04833)",
        ("response_tokens",),
    ),
    "el2n": Method(
        rankings.el2n,
        "farthest-off predictions at the first checkpoint first (arXiv:2107.07075)",
        ("error_norm",),
    ),
    "facility-location": Method(
        rankings.facility_location,
        "what covers the rest best, by cosines of embeddings (Wei et al., 2015)",
        vectors=("embeddings",),
    ),
    "rds-plus": Method(
        rankings.rds_plus,
        "most like the queries, which take turns, by cosines of embeddings (arXiv:2503.01807)",
        vectors=("embeddings", "queries"),
    ),
    "score": Method(
        rankings.score,
        "highest or lowest score first, by a field or numbers in files (selection.score)",
        ("score",),
        settings=("score", "score_order"),
    ),
}

WITHIN: Mapping[str, str | None] = {
    "random": None,
    "nearest": "sqdist",
    "lowest-variation": "variation",
    "score": "score",
}
"""Orders of the examples inside a cluster, and the number that `Examples.inside_N` is for each: at
random (S2L), by the distance to the centroid, by the total variation of the trajectory (XMAS,
arXiv:2510.01454), and by the score that a configuration names."""


def method_named(name: str) -> Method:
    """Return the row of METHODS with this name.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}? Methods" if near else "methods"
        raise ConfigError(f"selection: there is no method {name!r}; {hint}: {', '.join(METHODS)}")
    return METHODS[name]
