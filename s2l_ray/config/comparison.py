"""The section `comparison` of a run file: which subsets `s2l compare` trains the target on."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from s2l_ray.config import budgets
from s2l_ray.config.section import Section

Seed = Annotated[int, Field(ge=0, lt=2**63)]
OF_COMPARISON = ("budget", "baselines", "format", "columns")
"""Keys of `selection` that no method of a comparison carries."""


def _as_section(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _normalised(budget: budgets.Budget) -> budgets.Budget:
    return budgets.checked(budget)


class ComparedMethod(Section):
    """A method, and the settings in which it differs from the run's own selection and clusters."""

    method: str
    """How examples are ranked. `s2l select --help` lists and describes the methods."""
    label: str | None = None
    """Its name in tables and plots. Default: the method and its settings."""
    selection: dict[str, Any] = Field(default_factory=dict)
    """Keys of `selection` with other values; they may also stand beside `method`."""
    clusters: dict[str, Any] = Field(default_factory=dict)
    """Keys of `clusters` with other values."""

    @model_validator(mode="before")
    @classmethod
    def _keys_of_selection(cls, value: Any) -> Any:
        """Move keys that stand beside `method` into `selection`."""
        if not isinstance(value, dict):
            return value
        own = {key: value[key] for key in value if key in cls.model_fields}
        beside = {key: value[key] for key in value if key not in cls.model_fields}
        if not beside or not isinstance(own.get("selection", {}), dict):
            return own
        return {**own, "selection": {**own.get("selection", {}), **beside}}

    @model_validator(mode="after")
    def _is_of_a_method(self) -> "ComparedMethod":
        refused = [key for key in OF_COMPARISON if key in self.selection]
        if refused:
            raise ValueError(f"`{refused[0]}` is no setting of a method; see comparison.budgets")
        return self


class ComparisonConfig(Section):
    """Methods, budgets and seeds; the target is trained and evaluated on the subset of each."""

    methods: Annotated[
        list[Annotated[ComparedMethod, BeforeValidator(_as_section)]], Field(min_length=1)
    ] = Field(default_factory=lambda: [ComparedMethod(method=m) for m in ("random", "s2l")])
    """Methods of selection; one may carry settings of its own:
    {method: s2l, stratify: false, clusters: {num_clusters: 50}}."""
    budgets: Annotated[
        list[Annotated[int | float | str, AfterValidator(_normalised)]], Field(min_length=1)
    ] = Field(default=[0.11])
    """Sizes of the subsets, each as `selection.budget`."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    """Each is a repetition: it decides clusters, subset, order of the rows, and random weights."""
    steps: Literal["equal", "epochs"] = "equal"
    """equal: as many optimizer steps on every subset, `target.max_steps`, or `target.epochs` passes
    over the largest budget. epochs: `target.epochs` passes over each subset."""
    all_data: bool = True
    """Train on the whole pool, too."""
    trials_per_gpu: PositiveInt = 1
    """Trainings that share a GPU. On CPUs, each takes `target.cpus_per_worker`."""

    @model_validator(mode="after")
    def _names_each_once(self) -> "ComparisonConfig":
        for key in ("methods", "budgets", "seeds"):
            listed = [repr(item) for item in getattr(self, key)]
            if len(set(listed)) < len(listed):
                raise ValueError(f"`{key}` names one twice")
        labels = [item.label for item in self.methods if item.label is not None]
        if len(set(labels)) < len(labels):
            raise ValueError("`methods` gives two methods one label")
        return self
