"""The reference's training against transformers' Trainer: tokens per second, and the loss curve.

    python benchmarks/bench_reference.py [--steps 4] [--repeats 5] [--threads 2]
    python benchmarks/bench_reference.py --device cuda --precision bf16 --models smollm2-135m \
        --batch-size 128 --micro-batch-size 64 --steps 8

Both train the same weights on the same global batches in the same order, with AdamW and one
schedule, in float32 or in bfloat16 by autocast; ours with compiled layers on a GPU, as the stage
has them. Trainer gets micro-batches padded to their longest row with labels of -100 for prompt and
padding, as its collators make them. They alternate; the first step of each training is left out,
and medians count. Lengths and model shapes are those of bench_scoring.py. One process, no Ray.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from bench_scoring import SHAPES, pool, record
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from s2l_ray.config.training import Training
from s2l_ray.models.checkpoints import DTYPES
from s2l_ray.models.scoring import after_prompts
from s2l_ray.training import loop
from s2l_ray.training.batches import TokenRows, TrainingPlan, global_batches

IGNORED = -100


class Parts:
    """A pool of one part."""

    def __init__(self, rows: list[np.ndarray], num_prompt_N: np.ndarray) -> None:
        self._rows = TokenRows.of(rows, after_prompts(rows, num_prompt_N))
        self.num_rows = [len(rows)]

    def read(self, part: int) -> TokenRows:
        return self._rows


class Clock(TrainerCallback):
    """When each step of Trainer ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class InOrder(Trainer):
    """Takes the rows as they come: in the order of our global batches."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.SequentialSampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def padded(items: list[tuple[np.ndarray, int]]) -> dict[str, torch.Tensor]:
    """A micro-batch as the collators of transformers make it."""
    length = max(len(ids) for ids, _ in items)
    ids_BL = torch.zeros(len(items), length, dtype=torch.long)
    label_BL = torch.full_like(ids_BL, IGNORED)
    mask_BL = torch.zeros_like(ids_BL)
    for row, (ids, num_prompt) in enumerate(items):
        ids_BL[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        label_BL[row, num_prompt : len(ids)] = ids_BL[row, num_prompt : len(ids)]
        mask_BL[row, : len(ids)] = 1
    return {"input_ids": ids_BL, "labels": label_BL, "attention_mask": mask_BL}


def plain(
    model: PreTrainedModel, batches: list[TokenRows], config: Training, given: argparse.Namespace
) -> tuple[list, list]:
    """Seconds and losses of Trainer's steps."""
    items = [
        (batch.token_ids[start:end], int(batch.learned[start:end].argmax()))
        for batch in batches
        for start, end in itertools.pairwise(batch.offset.tolist())
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
            max_steps=len(batches),
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=config.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=given.device == "cpu",
            bf16=given.precision == "bf16",
            remove_unused_columns=False,
        )
        InOrder(
            model, arguments, data_collator=padded, train_dataset=items, callbacks=[clock]
        ).train()
    return list(np.diff(clock.ends)), clock.losses


def ours(
    model: PreTrainedModel, parts: Parts, config: Training, given: argparse.Namespace
) -> tuple[list, list]:
    """Seconds and losses of our steps."""
    device, dtype = torch.device(given.device), DTYPES[given.precision]
    if device.type == "cuda":
        largest = config.micro_batch_size, int(parts.read(0).num_tokens_N.max()) - 1
        reason = loop.compile_to_train(model, largest=largest, device=device, dtype=dtype)
        assert reason is None, f"uncompiled: {reason}"
    engine = loop.Replica(model, config, device=device, dtype=dtype)
    ends, losses = [], []
    for report in loop.steps(engine, TrainingPlan(parts, config, 0, given.steps)):
        ends.append(time.perf_counter())
        losses.append(report.loss_nats)
    return list(np.diff(ends)), losses


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    shape = dict(SHAPES[name])
    model_config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    rows, num_prompt_N = pool(model_config.vocab_size, max(509, given.steps * given.batch_size))
    parts = Parts(rows, num_prompt_N)
    config = Training(
        batch_size=given.batch_size,
        micro_batch_size=given.micro_batch_size,
        learning_rate=1e-4,
        warmup=0.0,
    )
    batches = list(
        itertools.islice(global_batches(parts, batch_size=config.batch_size, seed=0), given.steps)
    )
    num_tokens = sum(len(batch.token_ids) for batch in batches[1:])

    def fresh() -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)

    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(given.repeats):
        plain_s, plain_losses = plain(fresh(), batches, config, given)
        ours_s, our_losses = ours(fresh(), parts, config, given)
        times["plain"].append(sum(plain_s))
        times["ours"].append(sum(ours_s))
    pairs = zip(times["plain"], times["ours"], strict=True)
    return {
        "model": name,
        "plain_tokens_per_second": num_tokens / statistics.median(times["plain"]),
        "ours_tokens_per_second": num_tokens / statistics.median(times["ours"]),
        "ratio": statistics.median(one / other for one, other in pairs),
        "ratio_lowest": min(p / o for p, o in zip(times["plain"], times["ours"], strict=True)),
        "plain_losses": plain_losses,
        "our_losses": our_losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["pythia-70m"], choices=SHAPES)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    name = f"reference-{given.device}-{given.precision}.json"
    record(given, name, measured, given.models)


if __name__ == "__main__":
    main()
