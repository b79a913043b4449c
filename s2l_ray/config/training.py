"""The sections of trainings: of the reference model and of the target."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from s2l_ray.config.section import Section

Precision = Literal["auto", "fp32", "tf32", "bf16"]


class RandomModel(Section):
    """A causal language model with random weights: its shape and its tokenizer."""

    architecture: dict[str, Any]
    """Arguments of the transformers configuration; `model_type` is required."""
    tokenizer: str
    """A hub name or a directory."""


ModelSpec = str | RandomModel


class WorkerRange(Section):
    """A number of workers that follows the work that waits."""

    min: PositiveInt = 1
    """The fewest workers."""
    max: PositiveInt
    """The most workers."""

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class EverySteps(Section):
    """A fixed distance between checkpoints."""

    every: PositiveInt
    """Optimizer steps from one checkpoint to the next."""


class Training(Section):
    """Fine-tuning of the reference or the target."""

    operational: ClassVar[frozenset[str]] = frozenset({"gpus_per_worker", "resume_every"})

    epochs: PositiveFloat = 3.0
    """Passes over the pool (reference) or over the subset (target); 0.5 is half a pass."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; replaces `epochs`."""
    batch_size: PositiveInt = 128
    """Examples in one optimizer step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Examples in one forward pass of one worker; gradients are accumulated up to `batch_size`.
    Examples are sorted by length, so a small number has little padding; 4 is fast on a CPU."""
    learning_rate: PositiveFloat = 2.0e-5
    """Largest learning rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises; then it falls to zero as a cosine."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW, for all weights but biases and norms."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    precision: Precision = "auto"
    """Numbers of the forward and backward pass. auto: bf16 if the hardware has it, else fp32. tf32:
    fp32 with rounded products, on GPUs. Weights are updated in fp32 in any case."""
    workers: PositiveInt | WorkerRange = 1
    """Processes that train together. Another number sums gradients in another order, which changes
    the last bits."""
    cpus_per_worker: PositiveInt = 1
    """Threads of one worker, and the CPUs that it reserves on the cluster."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs that one worker reserves. Default: 1 if the cluster has GPUs, else 0."""
    resume_every: PositiveInt = 200
    """Optimizer steps between two saves of the state from which a training goes on after a failure.
    Ctrl-C saves the step under way, whatever this is."""


class ReferenceConfig(Training):
    """The small model whose loss trajectories stand for the large model's gradients."""

    added: ClassVar[frozenset[str]] = frozenset({"perturbations", "scale"})

    workers: PositiveInt | WorkerRange = 1
    """Processes that train together. {min: 1, max: 8} follows the size of the cluster; only a fixed
    number repeats exactly."""
    model: ModelSpec | None = None
    """A causal language model: a hub name, a directory, a .gguf file, or an architecture."""
    path: str | None = None
    """A directory of existing checkpoints (step-* or checkpoint-*), instead of training: whole
    models, or LoRA adapters of peft, which are merged with their base when they are loaded."""
    checkpoints: PositiveInt | EverySteps = 12
    """Number of checkpoints, at even fractions of the training; or {every: 500} steps."""
    perturbations: PositiveInt | None = None
    """Randomly perturbed copies of the pretrained `model` that rows are scored with, and with the
    model itself, instead of training it (arXiv:2606.26797); 6, for example. Set
    `trajectories.max_response_tokens: 1000` beside it. Default: `model` is trained."""
    scale: PositiveFloat = 0.1
    """Standard deviation of the noise of `perturbations`, as a share of that of the weights of each
    matrix."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ReferenceConfig":
        if (self.model is None) == (self.path is None):
            raise ValueError("give either `model` (to train one) or `path` (existing checkpoints)")
        if self.perturbations is not None and isinstance(self.model, RandomModel):
            raise ValueError(
                "`perturbations` are made of a pretrained model: name one in `model`, a hub name "
                "or a directory"
            )
        return self

    @property
    def is_trained(self) -> bool:
        """Tell whether `model` is trained."""
        return self.path is None and self.perturbations is None


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685), merged into the weights at the end."""

    rank: PositiveInt = 16
    """Rank of an update: columns of its first factor and rows of its second."""
    alpha: PositiveFloat = 32.0
    """Scale of updates: they are multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is set to zero in training."""


class TargetConfig(Training):
    """The large model, fine-tuned on the subset alone."""

    operational: ClassVar[frozenset[str]] = Training.operational | {
        "evaluate_every",
        "evaluate_rows",
    }

    workers: PositiveInt = 1
    """Processes that train together."""
    model: ModelSpec
    """A causal language model: a hub name, a directory, a .gguf file, or an architecture."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed divides among the workers: 1, optimizer state; 2, gradients as well; 3,
    weights as well."""
    cpu_offload: bool = False
    """Store optimizer state (and at stage 3 weights) in main memory. The first use compiles C++."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights. Default: all weights."""
    evaluate_every: PositiveInt | None = None
    """Optimizer steps between two measurements of the loss on held-out rows, one more of which
    follows the last step: those of `evaluation.sets`, or without `evaluation` all of data.eval.
    The training is the same with it. Default: none."""
    evaluate_rows: PositiveInt | None = None
    """Most rows of each set that `evaluate_every` measures, chosen by a hash of the row. Default:
    those that the evaluation takes, so that the last loss is the evaluation's."""
