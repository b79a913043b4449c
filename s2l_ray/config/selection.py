"""The section `selection` of a run file: which examples are kept."""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from s2l_ray.config import budgets
from s2l_ray.config.section import Section, default_of

Method = Literal[
    "s2l",
    "s2l-authors",
    "random",
    "balanced-random",
    "least-confidence",
    "middle-perplexity",
    "high-learnability",
    "confidence-curriculum",
    "longest-responses",
    "el2n",
    "facility-location",
    "rds-plus",
]
"""The names in `selection.methods.METHODS`."""


def _spelled(budget: budgets.Budget) -> budgets.Budget:
    """Tokens in the one spelling of their number, so that a run does not depend on it."""
    return budgets.checked(budget) if isinstance(budget, str) else budget


class SelectionConfig(Section):
    """Which examples are kept."""

    operational: ClassVar[frozenset[str]] = frozenset({"baselines"})
    added: ClassVar[frozenset[str]] = frozenset({"within", "weights", "minimum", "maximum"})

    method: Method = "s2l"
    """`s2l select --help` describes them."""
    budget: Annotated[int | float | str, AfterValidator(_spelled)]
    """Examples (50000), a fraction of the pool (0.11), or tokens as trained on (20M tokens)."""
    stratify: bool = True
    """Spread the budget over the strata first."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Stratum -> its weight in that; the others weigh 1."""
    minimum: NonNegativeInt | dict[str, NonNegativeInt] = 0
    """Examples of each stratum (or of those named) that come before all others."""
    maximum: PositiveInt | dict[str, NonNegativeInt] | None = None
    """Examples of each stratum (or of those named) that are taken at most; default: no limit."""
    within: Literal["random", "nearest", "lowest-variation"] = "random"
    """Which examples of a cluster s2l takes first: at random, or by distance, or the steadiest."""
    baselines: list[Method] = Field(default_factory=list)
    """Methods whose subsets of the same size are trained and evaluated beside this one."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of selection/selected.*."""

    @model_validator(mode="after")
    def _fits(self) -> "SelectionConfig":
        budgets.checked(self.budget)
        methods = [self.method, *self.baselines]
        if len(set(methods)) < len(methods):
            raise ValueError("`baselines` repeats a method")
        if self.within != "random" and "s2l" not in methods:
            raise ValueError(f"`within` orders the clusters of s2l; {self.method} has none")
        self.check_spread()
        self._check_bounds()
        return self

    def with_method(self, method: str) -> "SelectionConfig":
        """The same for one other method alone; what that ignores is at its default.

        So changing such a key leaves what was finished for that method finished.
        """
        ignored = set() if method == "s2l" else {"within"}
        ignored |= {"weights", "minimum", "maximum"} if method == "random" else set()
        defaults = {key: default_of(self, key) for key in ignored}
        return self.model_copy(update={**defaults, "method": method, "baselines": []})

    @property
    def is_even(self) -> bool:
        """Whether all strata are treated alike."""
        return not (self.weights or self.minimum or self.maximum)

    def check_spread(self) -> None:
        """Raise ValueError for weights and bounds of strata that the methods would ignore."""
        methods = {self.method, *self.baselines}
        if self.is_even:
            return
        if methods == {"random"}:
            raise ValueError("random knows no strata, and so no weights, minimum or maximum")
        if not self.stratify and methods - {"random", "balanced-random"}:
            raise ValueError("`weights`, `minimum` and `maximum` need `stratify: true`")

    def _check_bounds(self) -> None:
        named = [bound for bound in (self.minimum, self.maximum) if isinstance(bound, dict)]
        for stratum in [*(name for bound in named for name in bound), ""]:
            least, most = bound_of(self.minimum, stratum), bound_of(self.maximum, stratum)
            if least is not None and most is not None and least > most:
                where = f" of stratum {stratum!r}" if stratum else ""
                raise ValueError(f"`minimum`{where} ({least:,}) is above `maximum` ({most:,})")


def bound_of(bound: int | dict[str, int] | None, stratum: str) -> int | None:
    """`selection.minimum` or `maximum` of one stratum; None where there is none."""
    return bound.get(stratum) if isinstance(bound, dict) else bound
