"""One run file: YAML in, frozen sections out.

Every section is strict: a key that we do not know is an error that names the nearest valid one,
and no value is converted silently. `operational` keys change how fast a stage runs, not what it
leaves behind, so they are no part of its fingerprint.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from s2l_ray.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
Fraction = Annotated[float, Field(gt=0, le=1)]
NAMED_TEMPLATES = ("alpaca", "alpaca-official", "radiology", "chat")


class Section(BaseModel):
    """A frozen block of the run file; a key we do not know is an error, not a no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    operational: ClassVar[frozenset[str]] = frozenset()


class RandomModel(Section):
    """A causal LM initialised at random: its shape, and the tokenizer it goes with."""

    architecture: dict[str, Any]
    """Arguments of the transformers configuration; `model_type` is required."""
    tokenizer: str


ModelSpec = str | RandomModel


class FieldNames(Section):
    """Which field of an input row holds what; only prompt and response must be in every row."""

    prompt: str = "instruction"
    context: str | None = "input"
    response: str = "output"
    messages: str | None = None
    """Chat rows: a list of {role, content} or {from, value}; replaces prompt, context, response."""
    stratum: str | None = "source"
    id: str | None = "id"
    answer: str | None = "answer"
    """The final answer of an evaluation row; without it, the answer is read off the response."""


class DataConfig(Section):
    """The pool, the held-out sets, and how a row becomes tokens."""

    operational: ClassVar[frozenset[str]] = frozenset({"max_rejected", "eval"})

    train: list[str] = Field(min_length=1)
    eval: dict[str, str] = {}
    fields: FieldNames = FieldNames()
    rows_per_part: PositiveInt = 4096
    template: str = "alpaca"
    """alpaca, alpaca-official, radiology, chat, or a text file with {prompt} and {context}."""
    tokenizer: str | None = None
    """Default: the reference's; without a reference, the target's."""
    max_tokens: Annotated[int, Field(ge=2)] = 512
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01


class WorkerRange(Section):
    """Between `min` and `max` workers, following the queue."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class EverySteps(Section):
    """A checkpoint every so many optimizer steps."""

    every: PositiveInt


class Training(Section):
    """What the small and the large model's fine-tuning have in common."""

    operational: ClassVar[frozenset[str]] = frozenset({"gpus_per_worker", "resume_every"})

    epochs: PositiveFloat = 3.0
    max_steps: PositiveInt | None = None
    """Train for this many optimizer steps instead of `epochs`."""
    batch_size: PositiveInt = 128
    """Examples in one optimizer step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Examples in one forward pass of one worker; the rest is gradient accumulation."""
    learning_rate: PositiveFloat = 2.0e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises; a cosine to zero follows."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    precision: Precision = "auto"
    workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Default: 1 where the cluster has GPUs, else 0."""
    resume_every: PositiveInt = 200
    """Optimizer steps between two saves of the state that a restart continues from."""


class ReferenceConfig(Training):
    """The small model whose loss trajectories stand for the large model's gradients."""

    model: ModelSpec | None = None
    path: str | None = None
    """Existing checkpoints (DIR/step-* or DIR/checkpoint-*) instead of training."""
    checkpoints: PositiveInt | EverySteps = 12

    @model_validator(mode="after")
    def _one_origin(self) -> "ReferenceConfig":
        if (self.model is None) == (self.path is None):
            raise ValueError("give either `model` (to train one) or `path` (existing checkpoints)")
        return self


class TrajectoriesConfig(Section):
    """How every example's loss at every checkpoint is computed, or where it already lies."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers", "gpus_per_worker"})

    path: str | None = None
    """Existing parquet files with example_id, loss_nats and optionally stratum (a glob)."""
    precision: Precision = "auto"
    tokens_per_batch: PositiveInt = 16_384
    """Tokens in one forward pass, padding included."""
    workers: PositiveInt | WorkerRange = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None


class ClustersConfig(Section):
    """How loss trajectories are grouped (S2L, arXiv:2403.07384)."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers"})

    num_clusters: PositiveInt = 100
    """Over all, or in each stratum; fewer where there are fewer distinct trajectories."""
    per_stratum: bool = True
    rows_per_sample: PositiveInt = 25_600
    """Rows on which the k-means++ start is found, in each stratum or over all."""
    rows_per_batch: PositiveInt = 8_192
    """Rows in one mini-batch over the whole cluster, not per worker (expected size)."""
    minibatch_sweeps: Annotated[int, Field(ge=0)] = 4
    lloyd_sweeps: Annotated[int, Field(ge=1)] = 20
    """Full sweeps at the end; fewer if no trajectory changes its cluster."""
    workers: PositiveInt = 1


class SelectionConfig(Section):
    """Which examples are kept."""

    operational: ClassVar[frozenset[str]] = frozenset({"baselines"})

    method: Literal["s2l", "s2l-authors", "random", "balanced-random"] = "s2l"
    budget: int | float
    """Examples (50000), or a fraction of the pool (0.11)."""
    stratify: bool = True
    """Spread the budget over the strata first."""
    baselines: list[Literal["s2l", "s2l-authors", "random", "balanced-random"]] = []
    """Methods whose subsets of the same size are trained and evaluated beside this one."""
    format: Literal["jsonl", "parquet"] = "jsonl"

    @model_validator(mode="after")
    def _budget(self) -> "SelectionConfig":
        check_budget(self.budget)
        if self.method in self.baselines or len(set(self.baselines)) < len(self.baselines):
            raise ValueError("`baselines` repeats a method")
        return self


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685), merged into the weights at the end."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TargetConfig(Training):
    """The large model, fine-tuned on the subset alone."""

    model: ModelSpec
    zero_stage: Literal[1, 2, 3] = 2
    cpu_offload: bool = False
    activation_checkpointing: bool = False
    lora: LoraConfig | None = None


class EvaluationConfig(Section):
    """How the target is judged on held-out rows."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers", "gpus_per_worker"})

    sets: list[str] = Field(min_length=1)
    max_new_tokens: PositiveInt = 512
    max_items: PositiveInt | None = None
    """At most this many rows of each set, chosen by a hash of the row; default: all."""
    rows_per_batch: PositiveInt = 32
    precision: Precision = "auto"
    workers: PositiveInt | WorkerRange = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None


class RunConfig(Section):
    """One run: where it lives, its seed, and a section for every stage that is wanted."""

    run_dir: str
    seed: Annotated[int, Field(ge=0)] = 42
    data: DataConfig | None = None
    reference: ReferenceConfig | None = None
    trajectories: TrajectoriesConfig | None = None
    clusters: ClustersConfig | None = None
    selection: SelectionConfig | None = None
    target: TargetConfig | None = None
    evaluation: EvaluationConfig | None = None

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunConfig":
        scored = self.trajectories is not None and self.trajectories.path is None
        if scored and self.data is None:
            raise ValueError("`trajectories` needs `data`, or a `path` to existing ones")
        if self.reference is not None and self.data is None:
            raise ValueError("`reference` needs `data`")
        if scored and self.reference is None:
            raise ValueError("`trajectories` needs `reference`, or a `path` to existing ones")
        if self.clusters is not None and self.trajectories is None:
            raise ValueError("`clusters` needs `trajectories`")
        if self.selection is not None and self.clusters is None:
            raise ValueError("`selection` needs `clusters`")
        if self.target is not None and (self.selection is None or self.data is None):
            raise ValueError("`target` needs `selection` and `data`")
        if self.evaluation is not None:
            if self.target is None:
                raise ValueError("`evaluation` needs `target`")
            known = self.data.eval if self.data is not None else {}
            missing = [name for name in self.evaluation.sets if name not in known]
            if missing:
                raise ValueError(f"evaluation.sets: {missing[0]!r} is not a set of `data.eval`")
        return self


def check_budget(budget: int | float) -> None:
    """Raise ValueError for a budget that no pool can satisfy."""
    if isinstance(budget, bool) or budget <= 0:
        raise ValueError(f"a budget must be above zero, not {budget}")
    if isinstance(budget, float) and budget > 1:
        raise ValueError(
            f"a budget is a number of examples (50000) or a fraction of the pool up to 1.0, "
            f"not {budget}"
        )


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads `2e-5` as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that `text` holds; `origin` is named when it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` describes, with `k.k=value` overrides applied before it is checked."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: a mapping of sections is expected")
    for override in overrides:
        _apply(tree, override)
    return from_tree(tree, str(path))


def from_tree(tree: dict[str, Any], origin: str) -> RunConfig:
    """A checked configuration; every problem is listed in one ConfigError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        found = [(_place(item["loc"]), item) for item in error.errors()]
        lines = [_explain(place, item) for place, item in found if not _is_echo(place, item, found)]
        listed = "\n".join(f"  {line}" for line in dict.fromkeys(lines))
        raise ConfigError(f"{origin}:\n{listed}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as selection.budget=0.2")
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {name} is not a section")
        node = child
    node[leaf] = parse_yaml(text, f"--set {key}")


_UNION_MEMBER = re.compile(r"constrained-\w+|function-\w+\[.*\]|int|float|str|list\[.*\]|[A-Z]\w*")


def _place(loc: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of `loc` without the names that pydantic adds for the members of a union."""
    return tuple(str(name) for name in loc if not _UNION_MEMBER.fullmatch(str(name)))


def _is_echo(place: tuple[str, ...], item: Any, found: Sequence[Any]) -> bool:
    """Whether a mapping only failed as another member of its union; a key inside it is wrong."""
    return isinstance(item["input"], dict) and any(
        len(other) > len(place) and other[: len(place)] == place for other, _ in found
    )


def _explain(place: tuple[str, ...], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(place)
    key, message = ".".join(place), item["msg"].removeprefix("Value error, ")
    if item["type"] in ("value_error", "missing"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, not {item['input']!r}"


def _unknown_key(place: tuple[str, ...]) -> str:
    *parents, key = place
    known = list(_section_at(parents).model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(place)}: unknown key; {hint}"


def _section_at(parents: Sequence[str]) -> type[Section]:
    """The section class that lies at `parents`."""
    section: type[Section] = RunConfig
    for name in parents:
        annotation = repr(section.model_fields[name].annotation)
        inside = [cls for cls in _all_sections() if re.search(rf"\b{cls.__name__}\b", annotation)]
        section = inside[0] if inside else section
    return section


def _all_sections() -> list[type[Section]]:
    found, queue = [], [Section]
    while queue:
        cls = queue.pop()
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found
