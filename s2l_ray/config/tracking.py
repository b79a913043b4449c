"""The section `tracking`: which trackers of experiments get the metrics of a run."""

from typing import Literal

from pydantic import Field

from s2l_ray.config.section import Section


class TrackingConfig(Section):
    """Trackers that get the metrics of trainings as they come, beside `logs/metrics.jsonl`.

    Nothing in a run depends on them, and a tracker that fails is left out.
    """

    to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Each of them is an extra, such as `pip install "s2l-ray[mlflow]"`. TensorBoard's files are
    in `logs/tensorboard` of the run. The others take address and keys from their own environment
    variables (WANDB_API_KEY, MLFLOW_TRACKING_URI)."""
    project: str = "s2l"
    """The project, or in MLflow the experiment, under which runs are listed."""
