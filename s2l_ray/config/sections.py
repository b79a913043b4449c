"""`RunConfig`, which holds the sections of a run file, one for each stage, and those of scoring and
evaluation.

Every section is strict: a key that we do not know is an error that names the nearest valid one,
and no value is converted silently. `operational` keys change how fast a stage runs, not what it
leaves behind, so they are no part of its fingerprint.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    model_validator,
)

from s2l_ray.config.clusters import ClustersConfig, found_name
from s2l_ray.config.comparison import ComparisonConfig
from s2l_ray.config.data import DataConfig
from s2l_ray.config.resources import ResourcesConfig
from s2l_ray.config.section import Listed, Section, listed
from s2l_ray.config.selection import SelectionConfig
from s2l_ray.config.tracking import TrackingConfig
from s2l_ray.config.training import Precision, ReferenceConfig, TargetConfig, WorkerRange


class ActorPool(Section):
    """Workers that are added and removed as the work that waits requires."""

    operational: ClassVar[frozenset[str]] = frozenset({"workers", "gpus_per_worker"})

    precision: Precision = "auto"
    """Numbers of the forward pass. auto: bf16 if the hardware has it, else fp32. tf32: fp32 with
    rounded products, on GPUs."""
    workers: PositiveInt | WorkerRange = 1
    """Processes: a number, or {min: 1, max: 16} to follow the work that waits."""
    cpus_per_worker: PositiveInt = 1
    """Threads of one worker, and the CPUs that it reserves on the cluster."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs that one worker reserves. Default: 1 if the cluster has GPUs, else 0."""


class TrajectoriesConfig(ActorPool):
    """The loss of every example at every checkpoint: computed, or read from existing files."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"embeddings", "error_norms", "queries", "without_prompt"}
    )

    path: str | None = None
    """A glob of existing parquet files with example_id, loss_nats and optionally stratum, instead
    of scoring. loss_nats is a list of one loss per checkpoint, nats per token. With `data`,
    every row of the pool must have one, and files without a stratum get those of the pool."""
    tokens_per_batch: PositiveInt = 16_384
    """Tokens in one forward pass, padding included. Faster: 2,048 on CPUs, 65,536 on large GPUs."""
    max_response_tokens: PositiveInt | None = None
    """Tokens of a response that are scored, from its beginning; about 1,000 suffice
    (arXiv:2606.26797). Default: all."""
    embeddings: bool = False
    """Store one vector of each example, from the last checkpoint, for methods that compare them."""
    error_norms: bool = False
    """Store the mean error norm of each example at the first checkpoint, for the method el2n."""
    without_prompt: bool = False
    """Store the loss of each response that is read without its prompt, at the last checkpoint, for
    the method ifd. A further pass over the responses alone."""
    queries: Listed = Field(default_factory=list)
    """Files of rows that a selection should resemble, named and read as data.train. They are
    embedded, too, for the method rds-plus."""

    @model_validator(mode="after")
    def _embeds_what_it_scores(self) -> "TrajectoriesConfig":
        if self.embeddings and self.path is not None:
            raise ValueError("`embeddings` come with scoring; existing trajectories have none")
        if self.error_norms and self.path is not None:
            raise ValueError("`error_norms` come with scoring; existing trajectories have none")
        if self.without_prompt and self.path is not None:
            raise ValueError("`without_prompt` comes with scoring; existing trajectories lack it")
        if self.queries and not self.embeddings:
            raise ValueError("`queries` are compared with examples: set `embeddings: true`, too")
        return self


MetricName = Literal["exact-match", "program", "rouge-l", "bleu", "bertscore", "multiple-choice"]

Metrics = Annotated[list[MetricName], BeforeValidator(listed)]
EXACT_MATCH: tuple[MetricName, ...] = ("exact-match",)


class BertScoreConfig(Section):
    """The model behind BERTScore (arXiv:1904.09675)."""

    model: str = "roberta-large"
    """A model that reads texts in both directions: a hub name or a directory. roberta-large is the
    choice of bert_score for English."""
    layer: PositiveInt | None = None
    """The layer whose states are compared. Default: the one that bert_score recommends."""


class EvaluationConfig(ActorPool):
    """Evaluation of the target on held-out rows."""

    added: ClassVar[frozenset[str]] = frozenset({"engine", "metrics", "bertscore", "run_programs"})

    sets: Listed = Field(min_length=1)
    """Held-out sets that are evaluated, by their names in data.eval."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of a completion, which is greedy."""
    max_items: PositiveInt | None = None
    """Most rows of each set; they are chosen by a hash of the row. Default: all."""
    rows_per_batch: PositiveInt = 32
    """Rows that are completed in one batch."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What completes the prompts. vllm answers through ray.data.llm, with an engine for each of
    `workers`, and needs `s2l-ray[vllm]`, or the CPU build of vLLM where `gpus_per_worker` is 0;
    losses are computed as ever. It is untested on GPUs."""
    metrics: Metrics | dict[str, Metrics] = Field(default_factory=lambda: [*EXACT_MATCH])
    """What is measured beside the loss: a list for all sets, or one for each by its name, where a
    set without one has exact-match. program is exact-match where completions that are programs are
    run, as with `run_programs`. rouge-l, bleu and bertscore compare the completion with the
    response; multiple-choice compares the losses of the choices that `fields.choices` of the data
    names. bertscore needs `s2l-ray[bertscore]`."""
    bertscore: BertScoreConfig = BertScoreConfig()
    """The model behind BERTScore, a hub name or a directory that reads texts in both directions,
    and the layer whose states are compared; default: roberta-large, which bert_score takes for
    English, and the layer that it recommends."""

    run_programs: bool = False
    """Run completions that are Python programs, and take what they print for the answer. They run
    without network, files, environment and other processes, within limits; a machine that cannot
    keep them apart is refused. Default: programs are counted, and have no answer."""

    def metrics_of(self, name: str) -> list[MetricName]:
        """Return the metrics of a set."""
        if isinstance(self.metrics, list):
            return self.metrics
        return self.metrics.get(name, [*EXACT_MATCH])

    def runs_programs_of(self, name: str) -> bool:
        """Tell whether completions of a set that are programs are run."""
        return self.run_programs or "program" in self.metrics_of(name)

    @property
    def runs_some_programs(self) -> bool:
        return any(self.runs_programs_of(name) for name in self.sets)

    def asks_for(self, metric: MetricName) -> bool:
        """Tell whether a metric is measured on some set."""
        return any(metric in self.metrics_of(name) for name in self.sets)

    @model_validator(mode="after")
    def _names_its_sets(self) -> "EvaluationConfig":
        named = [] if isinstance(self.metrics, list) else list(self.metrics)
        unknown = [name for name in named if name not in self.sets]
        if unknown:
            raise ValueError(f"metrics: {unknown[0]!r} is not one of `sets`")
        return self


class RunConfig(Section):
    """One run: its directory, its seed, and a section for every stage that is to run."""

    run_dir: str
    """Directory of the run, or a URI on an object store (s3://, gs://, abfs://ACCOUNT@CONTAINER)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Decides random initial weights, the order of the data, clusters and the ranking."""
    data: DataConfig | None = None
    reference: ReferenceConfig | None = None
    trajectories: TrajectoriesConfig | None = None
    clusters: ClustersConfig | None = None
    selection: SelectionConfig | None = None
    target: TargetConfig | None = None
    evaluation: EvaluationConfig | None = None
    comparison: ComparisonConfig | None = None
    """What `s2l compare` compares; `s2l run` does not read it."""
    resources: ResourcesConfig = ResourcesConfig()
    """What a run does where the cluster has no room for it yet."""
    tracking: TrackingConfig | None = None
    """Trackers that get the metrics of trainings; results do not depend on it."""

    @property
    def imports_trajectories(self) -> bool:
        """True if trajectories are read from existing files, so that nothing is scored."""
        return self.trajectories is not None and self.trajectories.path is not None

    @property
    def held_out_sets(self) -> dict[str, int | None]:
        """Return the sets whose loss is measured while the target trains, and most rows of each."""
        if self.target is None or self.target.evaluate_every is None or self.data is None:
            return {}
        if self.evaluation is None:
            return dict.fromkeys(self.data.eval, self.target.evaluate_rows)
        limits = (self.target.evaluate_rows, self.evaluation.max_items)
        most = min((limit for limit in limits if limit is not None), default=None)
        return dict.fromkeys(self.evaluation.sets, most)

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
        if self.clusters is not None and self.clusters.strata == "auto":
            self._check_found_strata(self.clusters.num_strata)
        if self.selection is not None and self.clusters is None:
            raise ValueError("`selection` needs `clusters`")
        chosen = self.selection is not None or self.comparison is not None
        if self.target is not None and (not chosen or self.data is None):
            raise ValueError("`target` needs `selection` (or `comparison`) and `data`")
        if self.target is not None and self.target.evaluate_every and not self.held_out_sets:
            raise ValueError(
                "`target.evaluate_every` needs held-out rows: name them in `data.eval`"
            )
        if self.evaluation is not None:
            if self.target is None:
                raise ValueError("`evaluation` needs `target`")
            known = self.data.eval if self.data is not None else {}
            missing = [name for name in self.evaluation.sets if name not in known]
            if missing:
                raise ValueError(f"evaluation.sets: {missing[0]!r} is not a set of `data.eval`")
            self._check_choices()
            if self.comparison is not None and self.evaluation.engine == "vllm":
                raise ValueError("`comparison` evaluates with `engine: transformers` alone")
        if self.comparison is not None:
            needed = ("clusters", "target", "evaluation")
            if absent := [f"`{name}`" for name in needed if getattr(self, name) is None]:
                raise ValueError(f"`comparison` also needs {' and '.join(absent)}")
        return self

    def _check_found_strata(self, most: int) -> None:
        """Refuse found strata without embeddings, and names that they will not have."""
        if self.imports_trajectories:
            raise ValueError(
                "`clusters.strata: auto` finds strata in embeddings, which come with scoring; "
                "existing trajectories have none: leave out `clusters.strata`"
            )
        if self.trajectories is not None and not self.trajectories.embeddings:
            raise ValueError(
                "`clusters.strata: auto` finds strata in embeddings: set "
                "`trajectories.embeddings: true`, too; where losses are there already, redo them "
                "with `--from trajectories`"
            )
        names = {found_name(number) for number in range(most)}
        for key in ("weights", "minimum", "maximum"):
            bound = getattr(self.selection, key, None)
            others = sorted(set(bound) - names) if isinstance(bound, dict) else []
            if others:
                raise ValueError(
                    f"`selection.{key}` names {others[0]!r}, which is no stratum that "
                    f"`clusters.strata: auto` finds (these are {found_name(0)} to "
                    f"{found_name(most - 1)})"
                )

    def _check_choices(self) -> None:
        assert self.data is not None and self.evaluation is not None
        for name in self.evaluation.sets:
            asked = "multiple-choice" in self.evaluation.metrics_of(name)
            if asked and self.data.of_set(name).fields.choices is None:
                raise ValueError(
                    f"evaluation.metrics: multiple-choice on {name} needs the field of the "
                    f"choices: write data.eval.{name}: {{files: ..., fields: {{choices: ...}}}}"
                )
