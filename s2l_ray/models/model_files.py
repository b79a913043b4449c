"""Files of a model's folder: whether they are whole, and how to convert those of other trainers.

Only safetensors are read. What trainers leave beside them (`training_args.bin`, `optimizer.pt`,
`scheduler.pt`, `rng_state.pth`) is never opened: these are pickles, which can run code.
"""

import json
import re
import shlex
import struct
from collections.abc import Sequence
from typing import Any

from s2l_ray.errors import DataError, ModelError, StorageError, UserError, first
from s2l_ray.models.origins import list_checkpoints
from s2l_ray.storage.failures import explained
from s2l_ray.storage.location import Location

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_STATE = re.compile(r"(training_args\.bin|optimizer.*|scheduler.*|scaler.*|rng_state.*)")
"""Names of what a trainer resumes from, besides weights."""
_DEEPSPEED = re.compile(r"global_step[0-9]+|zero_to_fp32\.py|zero_pp_rank_.*")
_FSDP = re.compile(r"pytorch_model_fsdp.*|.*\.distcp")


def check_model_files(folder: Location) -> None:
    """Refuse a folder that does not hold the whole weights of a model or of an adapter.

    Raises:
        ModelError: a file is missing, cut short, or of a kind that has to be converted first; the
            message names it, and the command that converts it.
    """
    names = folder.names()
    has_weights = WEIGHTS in names or INDEX in names
    if ADAPTER_CONFIG in names:
        if has_weights:
            raise ModelError(
                f"{folder} holds a model ({WEIGHTS}) and an adapter ({ADAPTER_CONFIG}); move one "
                f"of them to another folder"
            )
        _check_adapter(folder, names)
        return
    if not has_weights:
        _refuse_without_weights(folder, names)
    if CONFIG not in names:
        raise ModelError(
            f"{folder} has no {CONFIG}; expected a Hugging Face model directory. Copy the "
            f"{CONFIG} of the model that was trained into it."
        )
    read_settings(folder / CONFIG)
    for name in [WEIGHTS] if WEIGHTS in names else _shards(folder / INDEX):
        if name not in names:
            raise ModelError(f"{folder}/{name} is missing, though the index in its folder names it")
        safetensors_header(folder / name)


def has_tokenizer(folder: Location) -> bool:
    """Tell whether there is a tokenizer in a folder."""
    return any(name in TOKENIZER_FILES for name in folder.names())


def check_checkpoints(folder: Location) -> list[tuple[int, str]]:
    """Return step and name of the checkpoints in `folder`, steps ascending.

    Raises:
        DataError: there are none.
        ModelError: some are not whole, or they are of different models; the message names them.
    """
    listed = _listed(folder)
    reasons = dict[str, str]()
    kinds = dict[str, str]()
    for _, name in listed:
        try:
            check_model_files(folder / name)
            kinds.setdefault(_kind(folder / name), name)
        except UserError as error:
            reasons[name] = str(error)
    if reasons:
        shown = "; ".join(list(reasons.values())[:3])
        raise ModelError(
            f"reference.path: {len(reasons)} of {len(listed)} checkpoints in {folder} cannot be "
            f"used ({first(list(reasons))}): {shown}. If a training was stopped while it saved a "
            f"checkpoint, move that folder elsewhere."
        )
    if len(kinds) > 1:
        found = "; ".join(f"{name}: {kind}" for kind, name in kinds.items())
        raise ModelError(
            f"reference.path: the checkpoints in {folder} are of different models ({found}). They "
            f"have to come from one training."
        )
    return listed


def first_checkpoint(path: str) -> str:
    """Return the name of the earliest checkpoint in the folder `path`.

    Raises:
        DataError: there is none.
    """
    return _listed(Location.of(path))[0][1]


def safetensors_header(file: Location) -> dict[str, Any]:
    """Return type, shape and place of every tensor in a file, by name.

    Raises:
        ModelError: its header and its size disagree, as they do if the file was cut short.
    """
    with explained(file, "read"), file.open() as stream:
        size = stream.size()
        length_bytes = stream.read(8)
        (length,) = struct.unpack("<Q", length_bytes) if len(length_bytes) == 8 else (size,)
        if 8 + length > size:
            raise ModelError(f"{file} is cut short: {size:,} bytes do not hold its header")
        content = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(content)
        tensors = {key: item for key, item in header.items() if key[:2] != "__"}
        ends = [item["data_offsets"][1] for item in tensors.values()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be loaded: its header is damaged ({error})") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{file} is cut short: {size:,} of {expected:,} bytes")
    return tensors


def read_settings(file: Location) -> dict[str, Any]:
    """Return the keys of a JSON file of a model.

    Raises:
        ModelError: the file is no JSON object.
    """
    try:
        settings = file.read_json()
    except StorageError as error:
        raise ModelError(str(error)) from None
    if not isinstance(settings, dict):
        raise ModelError(f"{file} holds no settings of a model")
    return settings


def _check_adapter(folder: Location, names: Sequence[str]) -> None:
    settings = read_settings(folder / ADAPTER_CONFIG)
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if kind != "LORA":
        merge = (
            "from peft import AutoPeftModelForCausalLM as A; "
            f"A.from_pretrained({folder.uri!r}).merge_and_unload().save_pretrained('NEW_FOLDER')"
        )
        raise ModelError(
            f"{folder} holds an adapter of type {kind}; only LORA is merged here. Merge it "
            f"yourself, if its kind can be: {_python(merge)}"
        )
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(f"{folder} holds an adapter for {task}, not for a causal language model")
    if not settings.get("base_model_name_or_path"):
        raise ModelError(f"{folder}/{ADAPTER_CONFIG} names no base_model_name_or_path")
    if ADAPTER_WEIGHTS in names:
        safetensors_header(folder / ADAPTER_WEIGHTS)
    elif "adapter_model.bin" in names:
        raise _pickled(folder, "adapter_model.bin", ADAPTER_WEIGHTS)
    else:
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}")


def _refuse_without_weights(folder: Location, names: Sequence[str]) -> None:
    """Raise the ModelError that says what a folder without safetensors of a model holds instead."""
    place = shlex.quote(folder.uri)
    sharded = [name for name in names if _FSDP.fullmatch(name) and not name.endswith(".bin")]
    if sharded:
        shards = place if sharded[0].endswith(".distcp") else f"{place}/{sharded[0]}"
        config = "" if CONFIG in names else f", then copy the model's {CONFIG} into it"
        raise ModelError(
            f"{folder} holds weights in the shards of FSDP ({first(sharded)}). Convert them once: "
            f"accelerate merge-weights {shards} {place}{config}"
        )
    partitions = [name for name in names if _DEEPSPEED.fullmatch(name)]
    if partitions:
        raise _partitioned(folder, names, partitions)
    pickles = [
        name for name in names if name.endswith((".bin", ".pt", ".pth")) and not _STATE.match(name)
    ]
    if any(name.startswith("pytorch_model") and "fsdp" not in name for name in pickles):
        load = (
            "from transformers import AutoModelForCausalLM as A; "
            f"A.from_pretrained({folder.uri!r}, use_safetensors=False)"
            f".save_pretrained({folder.uri!r})"
        )
        raise ModelError(
            f"{folder} has pickled weights only ({first(pickles)}), which can run code when "
            f"loaded. If you trust them, convert them once: {_python(load)}"
        )
    if pickles:
        raise _pickled(folder, pickles[0], WEIGHTS)
    raise ModelError(_nothing(folder, names))


def _nothing(folder: Location, names: Sequence[str]) -> str:
    """Say what a folder without any weights lacks."""
    checkpoints = list_checkpoints(names)
    shards = [name for name in names if re.fullmatch(r"model-.*\.safetensors", name)]
    if checkpoints:
        return (
            f"{folder} holds checkpoints and no model of its own; give one of them, such as "
            f"{folder}/{checkpoints[-1][1]}"
        )
    if shards:
        return f"{folder} has shards ({first(shards)}) and no {INDEX} that lists them"
    if ADAPTER_WEIGHTS in names:
        return f"{folder} has {ADAPTER_WEIGHTS} and no {ADAPTER_CONFIG}"
    if CONFIG not in names:
        return f"{folder} has no {CONFIG}; expected a Hugging Face model directory"
    return f"{folder} has no {WEIGHTS}"


def _partitioned(folder: Location, names: Sequence[str], found: Sequence[str]) -> ModelError:
    """Return the refusal of a folder with weights in the partitions of DeepSpeed."""
    own = "zero_to_fp32.py" in names
    inside = any(name.startswith("zero_pp_rank_") for name in found)
    root = folder.parent if inside else folder
    place = shlex.quote(root.uri)
    script = f"{place}/zero_to_fp32.py" if own else "-m deepspeed.utils.zero_to_fp32"
    tag = f" --tag {shlex.quote(folder.name)}" if inside else ""
    return ModelError(
        f"{folder} holds weights in the partitions of DeepSpeed ({first(found)}). Convert them "
        f"once: python {script} {place} {place} --safe_serialization{tag}"
    )


def _pickled(folder: Location, name: str, wanted: str) -> ModelError:
    convert = (
        "import torch; from safetensors.torch import save_file; "
        f"d = torch.load({f'{folder}/{name}'!r}, map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone() for k, v in d.items()}}, {f'{folder}/{wanted}'!r}, "
        "metadata={'format': 'pt'})"
    )
    return ModelError(
        f"{folder} has pickled weights only ({name}), which can run code when loaded. Convert "
        f"them once: {_python(convert)}"
    )


def _python(code: str) -> str:
    """Return the command that runs a line of Python."""
    return f"python -c {shlex.quote(code)}"


def _shards(index: Location) -> list[str]:
    """Return the files that the index of a model names.

    Raises:
        ModelError: the index cannot be read.
    """
    files = read_settings(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{index} cannot be loaded: it has no weight_map")
    return sorted({str(name) for name in files.values()})


def _kind(folder: Location) -> str:
    """Return what the checkpoints of one training have in common, as text."""
    names = folder.names()
    if ADAPTER_CONFIG in names:
        return f"adapter of {read_settings(folder / ADAPTER_CONFIG)['base_model_name_or_path']}"
    config = read_settings(folder / CONFIG)
    sizes = [f"{key} {config[key]}" for key in ("hidden_size", "vocab_size") if key in config]
    return ", ".join([str(config.get("model_type")), *sizes])


def _listed(folder: Location) -> list[tuple[int, str]]:
    names = folder.names()
    listed = list_checkpoints(names)
    if not listed:
        raise DataError(_no_checkpoints(folder, names))
    return listed


def _no_checkpoints(folder: Location, names: Sequence[str]) -> str:
    text = f"reference.path: no step-* or checkpoint-* directories in {folder}"
    if CONFIG in names or ADAPTER_CONFIG in names:
        return f"{text}, which is itself a model. Give the folder that holds its checkpoints."
    numbered = [name for name in names if re.search(r"[0-9]", name)]
    if numbered:
        step = re.findall("[0-9]+", numbered[0])[-1]
        return (
            f"{text}; there are {first(numbered)}. Name checkpoints by their optimizer steps: "
            f"mv {numbered[0]} checkpoint-{int(step)}"
        )
    return f"{text}."
