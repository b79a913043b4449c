"""Amounts of rows and tokens, the work of a stage on them, and what it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import ModelSpec, WorkerRange
from s2l_ray.models import flops
from s2l_ray.models.flops import Shape


@dataclass(frozen=True)
class Amount:
    """A number of rows.

    Attributes:
        rows: their number.
        tokens: all their tokens.
        responses: the tokens of their responses, which are among `tokens`.
        cut: rows that lose the end of a response, because they are longer than data.max_tokens.
    """

    rows: int
    tokens: int
    responses: int
    cut: int = 0

    @property
    def row_tokens(self) -> float:
        """Return the mean number of tokens of a row."""
        return self.tokens / max(self.rows, 1)

    @property
    def prompt_tokens(self) -> float:
        """Return the mean number of prompt tokens of a row."""
        return (self.tokens - self.responses) / max(self.rows, 1)

    def scaled_to(self, rows: int) -> "Amount":
        """Return `rows` rows of the same mean lengths."""
        share = rows / max(self.rows, 1)
        counts = (self.tokens, self.responses, self.cut)
        return Amount(rows, *(round(count * share) for count in counts))

    def with_responses_of(self, limit: int | None) -> "Amount":
        """Return as many rows whose responses have on average at most `limit` tokens."""
        cut = 0 if limit is None else max(self.responses - self.rows * limit, 0)
        return Amount(self.rows, self.tokens - cut, self.responses - cut, self.cut)

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.responses + other.responses,
            self.cut + other.cut,
        )


@dataclass(frozen=True)
class Pool:
    """The pool that is trained on and scored.

    Attributes:
        amount: its rows.
        strata: number of strata.
        parts: number of parts.
        counted: whether it is prepared; otherwise rows and tokens are estimates.
        whole: whether every row was read; otherwise there may be more strata.
        rejected: how many rows cannot be used, and why; "" if all can.
        size_by_stratum: rows of each stratum, where each row was read and its tokens were counted
            before it is prepared; else None.
    """

    amount: Amount
    strata: int
    parts: int
    counted: bool
    whole: bool = True
    rejected: str = ""
    size_by_stratum: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Quantities:
    """The amounts that the stages of a configuration work on.

    Attributes:
        pool: the pool; None without `data`.
        imported: rows and checkpoints of imported trajectories; None if there are none.
        num_checkpoints: number of checkpoints that examples are scored at.
        num_selected: number of rows in the subset.
        held_out: the rows of each held-out set that is to be evaluated.
    """

    pool: Pool | None = None
    imported: tuple[int, int] | None = None
    num_checkpoints: int = 0
    num_selected: int = 0
    held_out: Mapping[str, Amount] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Return the number of rows that a subset is selected from."""
        if self.imported is not None:
            return self.imported[0]
        return self.pool.amount.rows if self.pool else 0

    @property
    def counted(self) -> bool:
        """Tell whether `num_rows` is a count, not an estimate."""
        return self.imported is not None or (self.pool is not None and self.pool.counted)

    @property
    def about(self) -> str:
        """Return "about " if the tokens of the pool are estimates, else ""."""
        return "" if self.pool is None or self.pool.counted else "about "


@dataclass(frozen=True)
class Work:
    """The computation of one stage.

    Attributes:
        tokens: all tokens that pass through the model, counted again in every epoch and at every
            checkpoint.
        flops: floating-point operations; None if the model is unknown.
        batch: the rows, of mean lengths, that pass through the model at once.
        units: the number of pieces that workers take one by one; None if all share every step.
    """

    tokens: int
    flops: float | None
    batch: Amount
    units: int | None


def forward_flops(shape: Shape, rows: Amount) -> float:
    """Return the operations of one forward pass, with logits of response positions only."""
    return flops.forward(shape, tokens=rows.tokens, logits=rows.responses, context=rows.row_tokens)


def most_workers(workers: int | WorkerRange) -> int:
    """Return the number of workers, or the upper end of its range."""
    return workers.max if isinstance(workers, WorkerRange) else workers


@dataclass(frozen=True)
class Speed:
    """Measured constants with which `s2l plan` converts operations into seconds.

    Attributes:
        of_product: the share that a worker reaches on average of a given speed in matrix products.
            It comes from two runs on two CPU cores in fp32. A GPU has reached more in scoring;
            narrow models in bf16 reach less.
        of_trial: the share that a worker reaches of the speed measured in passes of a small model.
            The rest goes to optimizer steps, other workers and rows of unequal length. It comes
            from two runs of docs/experiments.md on two other CPU cores, in fp32 and in bf16.
        start_seconds: seconds from the beginning of the stage to its first computation, mostly for
            imports. They come from the same two runs as `of_trial`.
        start_seconds_on_gpu: the same on a GPU, with the start of CUDA and the compilation of
            layers. They come from runs on one H200, where compilation took 41 of the reference's
            65 seconds, measured by itself.
    """

    of_product: float
    of_trial: float
    start_seconds: float
    start_seconds_on_gpu: float


@dataclass(frozen=True)
class Estimate:
    """The functions and constants that estimate the cost of a stage that computes with a model.

    Attributes:
        model: returns the model; None if the configuration names none.
        work: returns the computation, for a model of the given shape; None for an unknown shape.
        speed: constants that convert it into seconds.
    """

    model: Callable[[RunConfig], ModelSpec | None]
    work: Callable[[RunConfig, Quantities, Shape | None], Work]
    speed: Speed
