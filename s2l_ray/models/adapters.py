"""LoRA adapters, as peft saves them: the model that an adapter belongs to, and merging the two."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from s2l_ray.config.training import ModelSpec, RandomModel
from s2l_ray.errors import ConfigError, ModelError, first
from s2l_ray.models.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    has_tokenizer,
    read_settings,
    safetensors_header,
)
from s2l_ray.models.origins import is_hub_name, local_path
from s2l_ray.storage.location import Location, absolute_if_file, is_uri

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter and the model whose weights it changes.

    Attributes:
        folder: the adapter's folder, a path or a URI.
        base: the name of the model, as in `origins`.
    """

    folder: str
    base: str

    def __str__(self) -> str:
        return self.folder


Loadable = ModelSpec | Adapter
"""What weights can be loaded from."""


def adapter_of(name: ModelSpec) -> Adapter | None:
    """Return the adapter in the folder `name`, with the base that it names; None for a model.

    Raises:
        ModelError: its configuration cannot be read, or the base is a folder that is not here, or
            its own.
    """
    if isinstance(name, RandomModel) or is_hub_name(name):
        return None
    folder = Location.of(name if is_uri(name) else local_path(name))
    if not is_uri(name) and not local_path(name).is_dir():
        return None
    if ADAPTER_CONFIG not in folder.names():
        return None
    settings = read_settings(folder / ADAPTER_CONFIG)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}/{ADAPTER_CONFIG} names no base_model_name_or_path")
    if not is_hub_name(base) and not is_uri(base) and not local_path(base).exists():
        raise ModelError(
            f"{folder} is an adapter of the model {base}, which is not here; correct "
            f"base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    if Location.of(absolute_if_file(base)) == folder:
        raise ModelError(
            f"{folder}/{ADAPTER_CONFIG} names its own folder as base_model_name_or_path; name the "
            "model that the adapter was trained on"
        )
    if revision and is_hub_name(base) and "@" not in base:
        base = f"{base}@{revision}"
    return Adapter(str(folder), str(absolute_if_file(base)))


def base_of_checkpoints(folder: str, name: str) -> str | None:
    """Return the base of the adapters in the checkpoints of `folder`; None if they are models.

    Args:
        folder: holds the checkpoints.
        name: of one checkpoint; `model_files.check_checkpoints` has seen that all are alike.
    """
    adapter = adapter_of(f"{folder.rstrip('/')}/{name}")
    return adapter.base if adapter else None


def tokenizer_source(name: str) -> str:
    """Return where the tokenizer of a model is: for an adapter without one, at its base."""
    adapter = adapter_of(name)
    if adapter is None or has_tokenizer(Location.of(adapter.folder)):
        return name
    return tokenizer_source(adapter.base)


def check_peft(needing: str) -> None:
    """Raise ConfigError, naming what needs it, unless peft is installed."""
    try:
        import peft  # noqa: F401 - merging needs it
    except ImportError:
        raise ConfigError(
            f"{needing} needs the package peft: pip install 's2l-ray[lora]'"
        ) from None


def merge(base: "PreTrainedModel", folder: Location) -> "PreTrainedModel":
    """Return `base` with the adapter in the local folder merged into its weights.

    All its weights can be trained.

    Raises:
        ModelError: some weights of the adapter have no place in the base.
    """
    check_peft(f"the LoRA adapter {folder.uri}")
    import peft

    tensors = safetensors_header(folder / ADAPTER_WEIGHTS)
    _resize_embeddings(base, tensors)
    config = replace(peft.PeftConfig.from_pretrained(folder.uri), inference_mode=True)
    wrapped = peft.PeftModel(base, config)
    result = wrapped.load_adapter(folder.uri, "default", torch_device="cpu")
    # peft saves embeddings that were resized twice, and reads those under the shorter name.
    unused = [
        key for key in result.unexpected_keys if key.replace(".modules_to_save", "") not in tensors
    ]
    strange = [*unused, *result.missing_keys]
    if strange:
        raise ModelError(
            f"{folder}: {len(strange):,} weights of the adapter are not those that its base can "
            f"take ({first(strange)})"
        )
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged.requires_grad_(True)


def _resize_embeddings(base: "PreTrainedModel", tensors: Mapping[str, Any]) -> None:
    """Give `base` as many embeddings as the adapter has, if tokens were added for it."""
    embedding = base.get_input_embeddings()
    (name,) = (name for name, module in base.named_modules() if module is embedding)
    for key, tensor in tensors.items():
        if key.endswith(f"{name}.weight") and tensor["shape"][0] != embedding.num_embeddings:
            base.resize_token_embeddings(tensor["shape"][0], mean_resizing=False)
            return
