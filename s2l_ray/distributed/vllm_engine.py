"""Greedy answers by vLLM, through the batch processors of ray.data.llm.

It was run on CPUs, with the CPU build of vLLM; on a GPU it was not.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2l_ray.distributed.resources import Workers
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from ray.data.llm import vLLMEngineProcessorConfig

DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32"}

CACHE_BYTES_ON_CPU = 1 << 30
"""Keys and values of an engine without a GPU; vLLM would take nine tenths of the memory, as it does
of a GPU's."""


@dataclass(frozen=True)
class Engine:
    """How vLLM answers.

    Attributes:
        model: a folder that all machines of the cluster see.
        workers: the engines. Where they take no GPU, the CPU build of vLLM has to be installed.
        prompts_per_batch: prompts that Ray Data hands to an engine at once.
        stop: tokens that end an answer.
    """

    model: str
    workers: Workers
    precision: str
    prompts_per_batch: int
    max_new_tokens: int
    stop: tuple[int, ...]


def check_installed() -> None:
    """Refuse vLLM where it is not installed.

    Raises:
        ConfigError: there is no package vllm.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "evaluation.engine: vllm needs the package vllm: "
            "pip install 's2l-ray[vllm]', or take evaluation.engine: transformers"
        )


def processor_config(engine: Engine) -> "vLLMEngineProcessorConfig":
    """Return the settings of the processor: tokens in, texts out, and no template of its own."""
    from ray.data.llm import vLLMEngineProcessorConfig

    workers = engine.workers
    kwargs: dict[str, Any] = {"dtype": DTYPES[engine.precision], "generation_config": "vllm"}
    if not workers.gpus:
        kwargs["kv_cache_memory_bytes"] = CACHE_BYTES_ON_CPU
    return vLLMEngineProcessorConfig(
        model_source=engine.model,
        engine_kwargs=kwargs,
        placement_group_config={"bundle_per_worker": workers.asks},
        batch_size=engine.prompts_per_batch,
        log_engine_metrics=False,  # their exporter needs Ray Serve
        concurrency=(workers.min, workers.max),
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def request(engine: Engine, number: int, prompt: Sequence[int]) -> dict[str, Any]:
    """Return a row of the dataset: a prompt, with the greedy sampling of its answer."""
    sampling = {
        "temperature": 0.0,
        "max_tokens": engine.max_new_tokens,
        "stop_token_ids": list(engine.stop),
        "skip_special_tokens": True,
    }
    return {"number": number, "tokenized_prompt": list(prompt), "sampling_params": sampling}


def answers(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Return the greedy answer to every prompt, in their order, without special tokens.

    Raises:
        ConfigError: vLLM failed, most likely at its start.
    """
    import ray.data
    from ray.data.llm import build_processor
    from ray.exceptions import RayError

    requests = [request(engine, number, prompt) for number, prompt in enumerate(prompts)]
    processor = build_processor(
        processor_config(engine),
        postprocess=lambda row: {"number": row["number"], "text": row["generated_text"]},
    )
    try:
        rows = processor(ray.data.from_items(requests)).take_all()
    except RayError as error:
        cause = [type(error).__name__, *str(error).strip().splitlines()][-1].rstrip(".")
        raise ConfigError(
            f"evaluation.engine: vllm failed: {cause[:300]}. More is in the logs of Ray's workers "
            "(session_latest/logs in Ray's temporary folder, on the machine of the worker). Mend "
            "that, or take evaluation.engine: transformers."
        ) from error
    text_of = {row["number"]: row["text"] for row in rows}
    return [text_of[number] for number in range(len(prompts))]
