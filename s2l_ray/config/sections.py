"""The sections of a run file, one for each stage, and `RunConfig`, the whole of them.

Every section is strict: a key that we do not know is an error that names the nearest valid one,
and no value is converted silently. `operational` keys change how fast a stage runs, not what it
leaves behind, so they are no part of its fingerprint.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from s2l_ray.config.section import Section
from s2l_ray.config.selection import SelectionConfig

Precision = Literal["auto", "fp32", "tf32", "bf16"]
Fraction = Annotated[float, Field(gt=0, le=1)]
NAMED_TEMPLATES = ("alpaca", "alpaca-official", "radiology", "chat")


def _listed(value: Any) -> Any:
    """One name stands for a list of one."""
    return [value] if isinstance(value, str) else value


class RandomModel(Section):
    """A causal LM initialised at random: its shape, and the tokenizer it goes with."""

    architecture: dict[str, Any]
    """Arguments of the transformers configuration; `model_type` is required."""
    tokenizer: str


ModelSpec = str | RandomModel


class FieldNames(Section):
    """Which field of an input row holds what; only prompt and response must be in every row."""

    prompt: str = "instruction"
    """What is asked."""
    context: str | None = "input"
    """What the prompt refers to; may be absent or empty in a row."""
    response: str = "output"
    """What is learned."""
    messages: str | None = None
    """Chat rows: a list of {role, content} or {from, value}; replaces prompt, context, response."""
    stratum: str | None = "source"
    """What the budget and the clusters are spread over."""
    id: str | None = "id"
    """Becomes example_id; a row without one gets a hash of its content."""
    answer: str | None = "answer"
    """The final answer of an evaluation row; where it is absent, or the response's own field, the
    answer is read off the response."""


class DataConfig(Section):
    """The pool, the held-out sets, and how a row becomes tokens."""

    operational: ClassVar[frozenset[str]] = frozenset({"max_rejected", "eval"})

    train: Annotated[list[str], BeforeValidator(_listed)] = Field(min_length=1)
    """Files, globs, directories, s3:// or gs:// URIs, or hf://org/name[:split]."""
    eval: dict[str, str] = Field(default_factory=dict)
    """Name -> file, glob, directory or URI of each held-out set."""
    fields: FieldNames = FieldNames()
    rows_per_part: PositiveInt = 4096
    """Input rows in one part, the unit of work."""
    template: str = "alpaca"
    """alpaca, alpaca-official, radiology, chat, or a text file with {prompt} and {context}."""
    tokenizer: str | None = None
    """Default: the reference's; without one, rows are kept and not tokenised."""
    max_tokens: Annotated[int, Field(ge=2)] = 512
    """Longer rows lose the end of their response."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unusable rows above which the run stops."""


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
    """Passes over the pool, or over the subset; 0.5 is half a pass."""
    max_steps: PositiveInt | None = None
    """Train for this many optimizer steps instead of `epochs`."""
    batch_size: PositiveInt = 128
    """Examples in one optimizer step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Examples in one forward pass of one worker; the rest is gradient accumulation. They come
    sorted by length: few have little padding, and on a CPU 4 are fast."""
    learning_rate: PositiveFloat = 2.0e-5
    """Peak of AdamW's learning rate."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises; a cosine to zero follows."""
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and norms."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to it."""
    precision: Precision = "auto"
    """bf16 where the hardware has it, else fp32; weights are updated in fp32 either way.
    tf32 rounds the products of fp32 on GPUs."""
    workers: PositiveInt | WorkerRange = 1
    """Processes; another number sums gradients in another order."""
    cpus_per_worker: PositiveInt = 1
    """Threads of one worker, and what it takes of the cluster."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Default: 1 where the cluster has GPUs, else 0."""
    resume_every: PositiveInt = 200
    """Optimizer steps between two saves of the state that a restart continues from."""


class ReferenceConfig(Training):
    """The small model whose loss trajectories stand for the large model's gradients."""

    workers: PositiveInt | WorkerRange = 1
    """Processes; {min: 1, max: 8} follows the cluster, and only a fixed number repeats exactly."""
    model: ModelSpec | None = None
    """Any causal language model of transformers."""
    path: str | None = None
    """Existing checkpoints (DIR/step-* or DIR/checkpoint-*) instead of training."""
    checkpoints: PositiveInt | EverySteps = 12
    """How many, at even fractions of training; or {every: 500} steps."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ReferenceConfig":
        if (self.model is None) == (self.path is None):
            raise ValueError("give either `model` (to train one) or `path` (existing checkpoints)")
        return self


class ActorPool(Section):
    """Workers that come and go with the queue of units."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers", "gpus_per_worker"})

    precision: Precision = "auto"
    """bf16 where the hardware has it, else fp32; tf32 rounds the products of fp32 on GPUs."""
    workers: PositiveInt | WorkerRange = 1
    """A number, or {min: 1, max: 16} to follow the queue."""
    cpus_per_worker: PositiveInt = 1
    """Threads of one worker, and what it takes of the cluster."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 where the cluster has GPUs, else 0."""


class TrajectoriesConfig(ActorPool):
    """How every example's loss at every checkpoint is computed, or where it already lies."""

    added: ClassVar[frozenset[str]] = frozenset({"embeddings", "error_norms", "queries"})

    path: str | None = None
    """Existing parquet files with example_id, loss_nats and optionally stratum (a glob)."""
    tokens_per_batch: PositiveInt = 16_384
    """Tokens in one forward pass, padding included; faster: on CPUs 2,048, on large GPUs 65,536."""
    max_response_tokens: PositiveInt | None = None
    """Score only so many first tokens of a response; about 1,000 do (arXiv:2606.26797)."""
    embeddings: bool = False
    """Keep one vector of each example from the last checkpoint, for methods that compare them."""
    error_norms: bool = False
    """Keep how far off the first checkpoint's predictions are in each example, for el2n."""
    queries: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    """Rows that a selection is to resemble, read as data.train: embedded as well, for rds-plus."""

    @model_validator(mode="after")
    def _embeds_what_it_scores(self) -> "TrajectoriesConfig":
        if self.embeddings and self.path is not None:
            raise ValueError("`embeddings` come with scoring; existing trajectories have none")
        if self.error_norms and self.path is not None:
            raise ValueError("`error_norms` come with scoring; existing trajectories have none")
        if self.queries and not self.embeddings:
            raise ValueError("`queries` are compared with examples: set `embeddings: true`, too")
        return self


MOST_CLUSTERS = 256
"""That `clusters.num_clusters: auto` chooses, of one stratum or over all."""


class ClustersConfig(Section):
    """How loss trajectories are grouped (S2L, arXiv:2403.07384)."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers"})
    added: ClassVar[frozenset[str]] = frozenset({"scaling"})

    method: Literal["minibatch", "authors"] = "minibatch"
    """minibatch, or authors: fitted to a sample alone, from random rows, as the authors' code."""
    scaling: Literal["raw", "standardised", "shape"] = "raw"
    """What of a trajectory is compared: raw, its losses, as the paper does; standardised, each
    checkpoint's with mean 0 and variance 1 (in each stratum or over all); shape, its course alone,
    without level and size."""
    num_clusters: PositiveInt | Literal["auto"] = 100
    """Over all, or in each stratum; fewer where there are fewer distinct trajectories. auto: as
    many, up to 256, as tell trajectories apart."""
    per_stratum: bool = True
    """k-means inside each stratum, as the authors do, or over all."""
    rows_per_sample: PositiveInt | None = None
    """Rows on which the k-means++ start is found, or all is fitted; in each stratum or over all.
    Default: 25,600, or for minibatch 25 for each cluster where that is more. Batches follow, each
    four times as large as the one before, up to all rows."""
    tolerance: NonNegativeFloat = 3.0e-4
    """A batch, in the end all rows, is swept until a sweep would lower its inertia by no more than
    this share; 3e-5 comes nearer to rest, 0 there."""
    lloyd_sweeps: Annotated[int, Field(ge=1)] = 20
    """Sweeps over all rows, or with `authors` over the sample; fewer where `tolerance` is met."""
    workers: PositiveInt = 1
    """Actors that share the trajectories."""

    @property
    def sample_size(self) -> int:
        """Rows of the sample that a start is fitted to."""
        if self.rows_per_sample is not None:
            return self.rows_per_sample
        most = MOST_CLUSTERS if self.num_clusters == "auto" else self.num_clusters
        # With few rows for a cluster, its centroid starts far from where it belongs.
        return max(25_600, most * (25 if self.method == "minibatch" else 1))

    @model_validator(mode="after")
    def _fits(self) -> "ClustersConfig":
        changed = self.scaling != "raw" or self.num_clusters == "auto"
        if self.method == "authors" and changed:
            raise ValueError(
                "`method: authors` is the k-means of the authors' code, which scales nothing and "
                "is told its number of clusters: leave `scaling` raw and give `num_clusters` a "
                "number, or take `method: minibatch`"
            )
        if self.num_clusters != "auto" and self.sample_size < self.num_clusters:
            raise ValueError(
                f"rows_per_sample ({self.sample_size:,}) is below num_clusters "
                f"({self.num_clusters:,})"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685), merged into the weights at the end."""

    rank: PositiveInt = 16
    """Of the two factors of an update."""
    alpha: PositiveFloat = 32.0
    """Updates are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the input of the adapters."""


class TargetConfig(Training):
    """The large model, fine-tuned on the subset alone."""

    workers: PositiveInt = 1
    model: ModelSpec
    """Any causal language model of transformers."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed partitions: optimizer state, and gradients, and weights."""
    cpu_offload: bool = False
    """Optimizer state (and at stage 3 weights) in main memory; its first use compiles C++."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    lora: LoraConfig | None = None
    """Default: full fine-tuning."""


class EvaluationConfig(ActorPool):
    """How the target is judged on held-out rows."""

    sets: Annotated[list[str], BeforeValidator(_listed)] = Field(min_length=1)
    """Names from data.eval."""
    max_new_tokens: PositiveInt = 512
    """Of a greedy completion."""
    max_items: PositiveInt | None = None
    """At most this many rows of each set, chosen by a hash of the row; default: all."""
    rows_per_batch: PositiveInt = 32
    """Rows that are completed together."""


class RunConfig(Section):
    """One run: where it lives, its seed, and a section for every stage that is wanted."""

    run_dir: str
    """A directory, or a URI (s3://, gs://) on an object store."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Decides initial weights, data order, clusters and ranking."""
    data: DataConfig | None = None
    reference: ReferenceConfig | None = None
    trajectories: TrajectoriesConfig | None = None
    clusters: ClustersConfig | None = None
    selection: SelectionConfig | None = None
    target: TargetConfig | None = None
    evaluation: EvaluationConfig | None = None

    @property
    def imports_trajectories(self) -> bool:
        """Tell whether trajectories were computed elsewhere, so that nothing is scored here."""
        return self.trajectories is not None and self.trajectories.path is not None

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
