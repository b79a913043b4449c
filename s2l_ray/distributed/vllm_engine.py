"""Greedy answers by vLLM, through the batch processors of ray.data.llm.

vLLM needs a GPU, and this code has not been run on one: its configuration and its refusals are
tested, its answers are not.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2l_ray.config.sections import WorkerRange
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from ray.data.llm import vLLMEngineProcessorConfig

DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32"}


@dataclass(frozen=True)
class Engine:
    """How vLLM answers.

    Attributes:
        model: a folder that all machines of the cluster see.
        workers: engines, with one GPU each.
        prompts_per_batch: prompts that Ray Data hands to an engine at once.
        stop: tokens that end an answer.
    """

    model: str
    workers: int | WorkerRange
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
            "evaluation.engine: vllm needs the package vllm, and a GPU: "
            "pip install 's2l-ray[vllm]', or take evaluation.engine: transformers"
        )


def processor_config(engine: Engine) -> "vLLMEngineProcessorConfig":
    """Return the settings of the processor: tokens in, texts out, and no template of its own."""
    from ray.data.llm import vLLMEngineProcessorConfig

    count = engine.workers
    return vLLMEngineProcessorConfig(
        model_source=engine.model,
        engine_kwargs={"dtype": DTYPES[engine.precision], "generation_config": "vllm"},
        batch_size=engine.prompts_per_batch,
        concurrency=(count.min, count.max) if isinstance(count, WorkerRange) else count,
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
    """Return the greedy answer to every prompt, in their order, without special tokens."""
    import ray.data
    from ray.data.llm import build_processor

    requests = [request(engine, number, prompt) for number, prompt in enumerate(prompts)]
    processor = build_processor(
        processor_config(engine),
        postprocess=lambda row: {"number": row["number"], "text": row["generated_text"]},
    )
    rows = processor(ray.data.from_items(requests)).take_all()
    text_of = {row["number"]: row["text"] for row in rows}
    return [text_of[number] for number in range(len(prompts))]
