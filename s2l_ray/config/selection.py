"""The section `selection` of a run file: how examples are ranked, and how many are selected."""

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
from s2l_ray.config.section import Section


def _normalised(budget: budgets.Budget) -> budgets.Budget:
    """Return a budget in tokens in one spelling, so that fingerprints do not depend on it."""
    return budgets.checked(budget) if isinstance(budget, str) else budget


class SelectionConfig(Section):
    """How examples are ranked, and how many of them make the subset."""

    operational: ClassVar[frozenset[str]] = frozenset({"baselines"})
    added: ClassVar[frozenset[str]] = frozenset(
        {
            "within",
            "weights",
            "minimum",
            "maximum",
            "columns",
            "where",
            "score",
            "score_order",
            "quantile",
            "unlearned",
        }
    )

    method: str = "s2l"
    """How examples are ranked. `s2l select --help` lists and describes the methods."""
    budget: Annotated[int | float | str, AfterValidator(_normalised)]
    """Size of the subset: examples (50000), a fraction of the pool (0.11), or tokens (20M tokens),
    counted as they are trained on."""
    where: str | None = None
    """A condition on examples, such as "quality >= 3 and tokens < 2000": only those for which it
    holds can be selected, whatever the method. Fractions of a budget stay fractions of the whole
    pool. Names are fields of the rows, and stratum, cluster, tokens, response_tokens, last_loss,
    loss_drop and loss_slope."""
    stratify: bool = True
    """Spread the budget over the strata first, then inside each stratum by the method."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Stratum -> weight. Strata share the budget in proportion to their weights; default: 1."""
    minimum: NonNegativeInt | dict[str, NonNegativeInt] = 0
    """Examples of each stratum (or of those named) that are selected before all others."""
    maximum: PositiveInt | dict[str, NonNegativeInt] | None = None
    """The most examples of each stratum (or of those named); default: no limit."""
    within: Literal["random", "nearest", "lowest-variation", "score"] = "random"
    """Which examples of a cluster are selected first: random ones, those nearest to the centroid,
    those whose loss varies least over the checkpoints (total variation), or those that come first
    by `score`."""
    score: str | None = None
    """A number of each example, for `method: score` and `within: score`: a field of the rows, or
    FILE#COLUMN, parquet files (a path, glob or URI) with example_id and a column of numbers."""
    score_order: Literal["highest", "lowest"] = "highest"
    """Which scores come first."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The quantile of the losses at the last checkpoint whose surroundings come first, for `method:
    quantile-perplexity`: 0 is the lowest loss, 1 the highest."""
    unlearned: Literal["keep", "last"] = "keep"
    """Examples whose loss does not fall over the checkpoints (by a line fitted to it): keep treats
    them as all others; last puts them after all others of their stratum, whatever the method."""
    baselines: list[str] = Field(default_factory=list)
    """Further methods to compare with: a target is trained and evaluated on the subset of each, for
    the same budget."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """File format of the subset."""
    columns: list[Literal["rank", "cluster", "stratum", "tokens"]] = Field(default_factory=list)
    """Columns that are added to the selected rows: rank (from 0), number of the cluster, stratum,
    number of tokens. No row may have a field of that name."""

    @model_validator(mode="after")
    def _fits(self) -> "SelectionConfig":
        budgets.checked(self.budget)
        methods = [self.method, *self.baselines]
        if len(set(methods)) < len(methods):
            raise ValueError("`baselines` repeats a method")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("`columns` repeats a column")
        self._check_bounds()
        if self.score is not None and not all(self.score_file or (self.score,)):
            raise ValueError(f"`score` is the name of a field or FILE#COLUMN, not {self.score!r}")
        return self

    @property
    def score_file(self) -> tuple[str, str] | None:
        """The pattern of files and the column of `score`; None if it is the name of a field."""
        if self.score is None or "#" not in self.score:
            return None
        pattern, _, column = self.score.rpartition("#")
        return pattern, column

    @property
    def is_even(self) -> bool:
        """True if no weight, minimum or maximum of a stratum is set."""
        return not (self.weights or self.minimum or self.maximum)

    def _check_bounds(self) -> None:
        named = [bound for bound in (self.minimum, self.maximum) if isinstance(bound, dict)]
        for stratum in [*(name for bound in named for name in bound), ""]:
            least, most = bound_of(self.minimum, stratum), bound_of(self.maximum, stratum)
            if least is not None and most is not None and least > most:
                where = f" of stratum {stratum!r}" if stratum else ""
                raise ValueError(f"`minimum`{where} ({least:,}) is above `maximum` ({most:,})")


def bound_of(bound: int | dict[str, int] | None, stratum: str) -> int | None:
    """Return `selection.minimum` or `maximum` of one stratum; None if it has none."""
    return bound.get(stratum) if isinstance(bound, dict) else bound
