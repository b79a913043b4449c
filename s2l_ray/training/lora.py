"""Low-rank adapters of a target: added before the training, merged after it (arXiv:2106.09685)."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from s2l_ray.config.training import LoraConfig
from s2l_ray.errors import ConfigError


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
    """Freeze `model` and add low-rank adapters to all its linear layers, in place."""
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "target.lora needs the package peft: pip install 's2l-ray[lora]'"
        ) from None
    torch.manual_seed(seed)
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
    )
    peft.inject_adapter_in_model(wanted, model)


def merge_adapters(
    weights: Mapping[str, torch.Tensor], model: torch.nn.Module, config: LoraConfig
) -> dict[str, torch.Tensor]:
    """Return weights of a model without adapters: W + alpha / rank * B A (arXiv:2106.09685)."""
    plain = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_" not in name
    }
    for name, down in weights.items():
        if not name.endswith(".lora_A.default.weight"):
            continue
        layer = name.removesuffix(".lora_A.default.weight")
        up = weights[f"{layer}.lora_B.default.weight"]
        change = config.alpha / config.rank * (up.float() @ down.float())
        if model.get_submodule(layer).fan_in_fan_out:
            change = change.T
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
    return plain
