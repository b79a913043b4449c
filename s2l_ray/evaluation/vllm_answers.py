"""Answers of a trained target by vLLM, before workers score the items and compare the answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s2l_ray.artifacts.tables import rows_name
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import prompt_ids
from s2l_ray.distributed import vllm_engine
from s2l_ray.distributed.resources import Workers
from s2l_ray.distributed.vllm_engine import Engine
from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import metrics
from s2l_ray.evaluation.items import read_items
from s2l_ray.models.tokenizers import load_tokenizer
from s2l_ray.storage.location import Location, is_uri


def check(run_dir: str) -> None:
    """Refuse vLLM where it cannot be used.

    Raises:
        ConfigError: it is not installed, or the run is on an object store.
    """
    vllm_engine.check_installed()
    if is_uri(run_dir):
        raise ConfigError(
            f"evaluation.engine: vllm reads the target from a folder, and run_dir is {run_dir}. "
            "Give a folder that all machines see, or take evaluation.engine: transformers."
        )


def texts_file(staged: Location, unit: Mapping[str, Any]) -> Location:
    """Return the file of the answers to the items of a unit."""
    return staged / f"texts-{unit['unit']:06d}.json"


def answer_units(
    config: EvaluationConfig,
    data: DataConfig,
    model: Location,
    units: Sequence[Mapping[str, Any]],
    staged: Location,
    workers: Workers,
    answer: Callable[[Engine, list[list[int]]], list[str]] = vllm_engine.answers,
) -> None:
    """Write the answers of every unit that needs some and has none yet.

    Args:
        workers: the engines.
        answer: what gives the answers to prompts.
    """
    waiting = [
        unit
        for unit in units
        if metrics.need_completions(config, unit["set"]) and not texts_file(staged, unit).is_file()
    ]
    if not waiting:
        return
    template = load_template(data)
    with model.local() as path:
        tokenizer = load_tokenizer(str(path))
    prompts: list[list[int]] = []
    sizes = []
    for unit in waiting:
        rows = staged / rows_name(unit["unit"])
        items, _ = read_items(rows, data.of_set(unit["set"]), template, tokenizer)
        sizes.append(len(items))
        prompts += prompt_ids([item.example for item in items], template, tokenizer)
    engine = Engine(
        model.uri,
        workers,
        config.precision,
        config.rows_per_batch,
        config.max_new_tokens,
        (tokenizer.eos_token_id,),
    )
    texts = iter(answer(engine, prompts))
    for unit, size in zip(waiting, sizes, strict=True):
        texts_file(staged, unit).write_json([next(texts) for _ in range(size)])
