"""Check, load and save models, tokenizers and checkpoint directories.

Weights come from safetensors or GGUF files only, never from pickles, and no code that comes with a
model is run.
"""

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from s2l_ray.config.training import ModelSpec, RandomModel
from s2l_ray.errors import ConfigError, ModelError, first
from s2l_ray.models import gguf_files
from s2l_ray.models.adapters import (
    Adapter,
    Loadable,
    adapter_of,
    check_peft,
    merge,
    tokenizer_source,
)
from s2l_ray.models.load_errors import explained_loading
from s2l_ray.models.model_files import check_model_files, has_tokenizer
from s2l_ray.models.origins import opened_source, source_of
from s2l_ray.models.tokenizers import load_tokenizer
from s2l_ray.storage.location import Location, is_uri

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def load_model(
    spec: Loadable, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """Return a causal LM on the CPU with its weights in `dtype`, whatever type they are stored in.

    Args:
        spec: a name as in `origins`, a RandomModel, or an adapter, which is merged with its base.
        seed: decides a RandomModel's weights; torch's own random state does not change.

    Raises:
        ModelError: there is no such model, or its weights are missing, damaged or pickled.
        ConfigError: it is an adapter, and peft is not installed.
    """
    if isinstance(spec, RandomModel):
        return _initialised(_random_config(spec), dtype, seed)
    if isinstance(spec, Adapter):
        return _merged(spec, dtype)
    adapter = adapter_of(spec)
    if adapter is not None:
        return _merged(adapter, dtype)
    with explained_loading(f"model {spec}"), opened_source(spec) as (location, options):
        if "gguf_file" in options:
            # Otherwise its weights may stay quantised, and can be neither trained nor saved.
            options["quantization_config"] = GgufConfig(dequantize=True)
        elif Path(location).is_dir():
            check_model_files(Location.of(location))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"model {spec}: {len(missing):,} weights are not in its files ({first(missing)}); "
            f"was it saved as a causal language model?"
        )
    return model.eval()


def _merged(adapter: Adapter, dtype: torch.dtype) -> PreTrainedModel:
    """Return the base of an adapter, with the adapter merged into its weights."""
    folder = Location.of(adapter.folder)
    check_model_files(folder)
    check_peft(f"the LoRA adapter {adapter.folder}")
    base = load_model(adapter.base, dtype=dtype)
    with folder.local() as path, explained_loading(f"adapter {adapter.folder}"):
        return merge(base, Location.of(path)).eval()


def load_without_weights(spec: ModelSpec) -> PreTrainedModel:
    """Return a causal LM whose weights have shapes and no content; the hub is not asked.

    Raises:
        ModelError: the model is not on this machine, or its configuration cannot be used.
    """
    with explained_loading(f"model {spec}"):
        config = _offline_config(spec)
        _check_kind(config, spec)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)


def _check_kind(config: PreTrainedConfig, spec: ModelSpec) -> None:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        name = spec.architecture["model_type"] if isinstance(spec, RandomModel) else spec
        raise ModelError(
            f"model {name}: {config.model_type} is no causal language model. Take one that "
            f"AutoModelForCausalLM of transformers knows."
        )


def load_miniature(
    spec: ModelSpec, *, preferred: float, max_layer: float
) -> PreTrainedModel | None:
    """Return a causal LM as wide as `spec`, with fewer layers and tokens; None if a layer is large.

    Its weights are random, in float32.

    Args:
        preferred: how many weights all layers may have together, and how many the embeddings; one
            layer of each kind is there in any case.
        max_layer: how many weights one layer may have.

    Raises:
        ModelError: as for `load_without_weights`.
    """
    with explained_loading(f"model {spec}"):
        config = _offline_config(spec)
        text = config.get_text_config()
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        embedding, output = whole.get_input_embeddings(), whole.get_output_embeddings()
        apart = {id(layer.weight) for layer in (embedding, output) if layer is not None}
        in_layers = sum(w.numel() for w in whole.parameters() if id(w) not in apart)
        per_layer = in_layers / text.num_hidden_layers
        if per_layer > max_layer:
            return None
        kinds = list(getattr(text, "layer_types", None) or [])
        # One of each kind at least.
        least = max((kinds.index(kind) + 1 for kind in kinds), default=1)
        wanted = max(preferred / per_layer, least)
        text.num_hidden_layers = int(min(wanted, text.num_hidden_layers))
        if kinds:
            with suppress(AttributeError):  # some derive them from the number
                text.layer_types = kinds[: text.num_hidden_layers]
        text.vocab_size = int(min(max(preferred / embedding.embedding_dim, 1), text.vocab_size))
        if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
            text.pad_token_id = None
        return _initialised(config, torch.float32, seed=0)


def _offline_config(spec: ModelSpec) -> PreTrainedConfig:
    if isinstance(spec, RandomModel):
        return _random_config(spec, offline=True)
    adapter = adapter_of(spec)
    if adapter is not None:
        return _offline_config(adapter.base)
    location, options = source_of(spec)
    if "gguf_file" in options:
        return gguf_files.config_of(Path(location, options["gguf_file"]))
    return AutoConfig.from_pretrained(
        location, trust_remote_code=False, local_files_only=True, **options
    )


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write a Hugging Face directory: configuration, safetensors and tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def check_model(spec: ModelSpec, *, needs_tokenizer: bool = True) -> None:
    """Refuse a model with an error that shows without loading weights and without the hub.

    Args:
        needs_tokenizer: refuse a folder without a tokenizer, too.

    Raises:
        ModelError: a file of the model is missing or cut short, or the architecture does not know
            one of its arguments.
        ConfigError: it is an adapter, and peft is not installed.
    """
    name = spec.tokenizer if isinstance(spec, RandomModel) else spec
    if isinstance(spec, RandomModel):
        _architecture(spec)
    location, options = (name, {}) if is_uri(name) else source_of(name)
    is_folder = is_uri(name) or Path(location).is_dir()
    if isinstance(spec, RandomModel) or options or not is_folder:
        return
    folder = Location.of(location)
    check_model_files(folder)
    adapter = adapter_of(spec)
    if adapter is not None:
        check_peft(f"the LoRA adapter {adapter.folder}")
        check_model(adapter.base, needs_tokenizer=False)
    source = tokenizer_source(name)
    if needs_tokenizer and source == name and not has_tokenizer(folder):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json); save it in the same folder")


def device_for(gpus: float) -> torch.device:
    """Return the device for a worker that has so many GPUs.

    Raises:
        ModelError: it has a GPU, and torch cannot use it.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError(
            f"{gpus:g} GPUs were asked for, but torch {torch.__version__} sees none here; "
            f"install a CUDA build of torch or set gpus_per_worker: 0"
        )
    return torch.device("cuda")


def set_precision(precision: str, device: torch.device) -> str:
    """Set the precision of products in this process, and return its name in `DTYPES`.

    `auto` is bf16 where the hardware multiplies it natively, else fp32. Products of fp32 are
    rounded to TF32 only if `precision` is `tf32`.

    Raises:
        ConfigError: `tf32`, and the device does not have it.
    """
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.is_tf32_supported()):
        raise ConfigError(
            f"precision: tf32 is one of NVIDIA's GPUs since Ampere, and a worker computes on "
            f"{device}. Use fp32, bf16 or auto."
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = torch.cpu.get_capabilities()
        native = bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
    return "bf16" if native else "fp32"


def _architecture(spec: RandomModel) -> tuple[str, dict[str, Any]]:
    """Return the model type of `spec` and the arguments of its configuration, which knows them.

    Raises:
        ModelError: there is no model type, or the architecture does not know an argument.
    """
    arguments = dict(spec.architecture)
    name = arguments.pop("model_type", None)
    if name is None:
        raise ModelError("a model initialised at random needs `model_type` in its architecture")
    with explained_loading(f"architecture {name}"):
        _refuse_unknown(arguments, AutoConfig.for_model(name), name)
    return name, arguments


def _random_config(spec: RandomModel, *, offline: bool = False) -> PreTrainedConfig:
    name, arguments = _architecture(spec)
    tokenizer = load_tokenizer(spec, offline=offline)
    with explained_loading(f"architecture {name}"):
        config = AutoConfig.for_model(name, **_token_arguments(tokenizer) | arguments)
    if config.vocab_size < len(tokenizer):
        raise ModelError(
            f"architecture {name}: vocab_size {config.vocab_size:,} is less than the "
            f"{len(tokenizer):,} tokens of tokenizer {spec.tokenizer}; leave it out"
        )
    return config


def _token_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    pad = tokenizer.pad_token_id
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # Models never train the embedding of their padding token, so it must not be another's.
        "pad_token_id": None if pad == tokenizer.eos_token_id else pad,
    }


def _refuse_unknown(arguments: dict[str, Any], default: PreTrainedConfig, name: str) -> None:
    for key in arguments:
        if not hasattr(default, key):
            near = difflib.get_close_matches(key, [*default.to_dict(), *default.attribute_map], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"architecture {name} has no {key!r}{hint}")


def _initialised(config: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), explained_loading(f"architecture {config.model_type}"):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Weights are drawn in float32 for any dtype. Buffers (rotary frequencies) must not change.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()
