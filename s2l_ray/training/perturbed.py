"""Stage 2 without a training: a copy of the pretrained model, and the noise of perturbed ones.

The model is written once. A perturbed copy is a number, a scale and a seed: whoever scores with it
loads the model and adds the noise, which takes less time than to read another copy.
"""

from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.training import ReferenceConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.storage.location import Location
from s2l_ray.training import ray_train
from s2l_ray.training.token_parts import TokenParts


def run(
    config: ReferenceConfig,
    prepared: Parts,
    out: StageDir,
    *,
    seed: int,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Write the pretrained model as the last of perturbations + 1 checkpoints.

    Reads   prepared.files    how many tokens the longest row has
    Writes  reference/step-*  the model, in float32
    Returns what `training.reference.run` returns of checkpoints, all of which have the one folder;
            and `noise`, the scale and the seed of those before the last.
    Raises  ModelError if the model cannot be used.
    """
    assert isinstance(config.model, str) and config.perturbations is not None
    steps = list(range(1, config.perturbations + 2))
    name = f"step-{steps[-1]:06d}"
    model = ray_train.absolute_model(config.model)
    copier = {
        "model": model,
        "tokenizer": model if tokenizer is None else ray_train.absolute_model(tokenizer),
        "num_tokens": TokenParts.of(prepared.files()).num_tokens_of_longest,
        "folder": out.location / name,
    }
    wanted = resources.workers(out.stage, 1, cpus=1, gpus=0, advice="Use larger machines.")
    for _ in map_units(Copier, [{}], wanted, out.location / "attempts", **copier):
        pass
    return {
        "path": None,
        "names": [name] * len(steps),
        "steps": steps,
        "noise": {"scale": config.scale, "seed": seed},
    }


@dataclass(frozen=True)
class Copier:
    """Worker that checks the model and writes it.

    Attributes:
        model, tokenizer: what they are loaded from.
        num_tokens: those of the longest row.
        folder: where the model goes.
    """

    model: Any
    tokenizer: Any
    num_tokens: int
    folder: Location

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        from s2l_ray.models import causality, checkpoints, dimensions

        tokenizer = checkpoints.load_tokenizer(self.tokenizer)
        model = checkpoints.load_model(self.model)
        num_ids = dimensions.number_of_ids(tokenizer)
        dimensions.check_rows_fit(model, num_tokens=self.num_tokens, num_ids=num_ids)
        causality.check_causal(model)
        with ray_train.temporary_folder() as folder:
            checkpoints.save_checkpoint(model, tokenizer, folder)
            self.folder.upload(folder)
        return unit
