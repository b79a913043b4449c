"""How fast this machine does the work of a stage: a few rows through a small model like its own.

The small one has the widths of the large one and, where that is very large, few of its layers and
a part of its vocabulary. It passes through the functions that the stage calls. So operations per
second are those of products of that size in that precision, with all that comes between products,
which is most of the time where matrices are narrow or precision is low.

On a CPU as many workers as there will be try at once, because they share its memory, and only the
time in which it worked for this program counts. The median of several passes does.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from s2l_ray.models import flops
from s2l_ray.models.dimensions import shape_of
from s2l_ray.models.scoring import Scorer, inference
from s2l_ray.training.batches import MicroBatch
from s2l_ray.training.loop import batch_loss, compile_to_train

SECONDS = 0.5
"""Of each kind of pass, after one that sets libraries up."""
MOST_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""Tokens of a pass; with more, passes become longer and not faster."""
BATCHES = {"cpu": 1, "cuda": 16}
"""That are scored in a pass, as a worker scores a part: a GPU works on one while the program
prepares the next."""
MOST_NEW_TOKENS = 16
"""Of an answer; those that follow take about as long."""
MOST_WEIGHTS = 5e8
"""Of all models that are tried at once; 12 bytes each, with gradients and a copy in bf16."""


@dataclass(frozen=True)
class BatchShape:
    """What passes at once: so many average rows, and what is to be added to their prompts."""

    count: int
    prompt_tokens: int
    response_tokens: int
    new_tokens: int = 0

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True)
class Trial:
    """A small model, and how it computes."""

    model: PreTrainedModel
    rows: BatchShape
    dtype: torch.dtype
    device: torch.device

    def reference(self) -> float:
        """Operations per second of forward and backward passes, on a GPU of compiled layers."""
        if self.device.type == "cpu":
            return self.training()
        # What has come of a model once stays, and the scorer is to find out for itself.
        model = copy.deepcopy(self.model).float()
        largest = self.rows.count, self.rows.row_tokens - 1
        compile_to_train(model, largest=largest, device=self.device, dtype=self.dtype)
        return replace(self, model=model).training()

    def training(self) -> float:
        """Operations per second of forward and backward passes."""
        rows, model = self.rows, self.model.float().train().to(self.device)
        ids_BL = self._ids(rows.row_tokens)
        # A row's last token is predicted and never read.
        mask_BL = torch.zeros(rows.count, rows.row_tokens - 1, dtype=torch.bool)
        mask_BL[:, rows.prompt_tokens - 1 :] = True
        target_M = ids_BL[:, rows.prompt_tokens :].flatten()
        batch = MicroBatch(ids_BL[:, :-1], mask_BL, target_M, 1.0)
        autocast = self.dtype == torch.bfloat16

        def step() -> None:
            batch_loss(model, batch, device=self.device, autocast=autocast).backward()

        return flops.training_passes() * self._read() / self._seconds(step)

    def scoring(self) -> float:
        """Operations per second of the scorer."""
        compiled = self.device.type == "cuda"
        return self._read() / self._seconds_to_score(compiled=compiled)

    def evaluation(self) -> float:
        """Operations per second of the scorer and of answers, as a row has of both.

        The first token of an answer takes a pass over its prompt, and each of the others as long as
        one of a few does.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = MOST_NEW_TOKENS if limit is None else limit - self.rows.prompt_tokens
        tried = min(self.rows.new_tokens, MOST_NEW_TOKENS, room)
        seconds, operations = self._seconds_to_score(), self._read()
        if tried > 0:
            first = self._seconds(lambda: self._answer(1))
            others = self._seconds(lambda: self._answer(tried)) - first if tried > 1 else 0.0
            more = (self.rows.new_tokens - 1) / max(tried - 1, 1)
            seconds += first + max(others, 0.0) * more
            operations += self._answered(self.rows.new_tokens)
        return operations / seconds

    def _ids(self, length: int, count: int | None = None) -> torch.Tensor:
        vocab_size = self.model.config.get_text_config().vocab_size
        return torch.randint(vocab_size, (count or self.rows.count, length))

    def _seconds_to_score(self, *, compiled: bool = False) -> float:
        """Of one batch."""
        rows, batches = self.rows, BATCHES[self.device.type]
        ids = list(self._ids(rows.row_tokens, batches * rows.count).numpy())

        def passed() -> None:
            Scorer(
                self.model.to(self.dtype),
                dtype=self.dtype,
                device=self.device,
                tokens_per_batch=rows.count * rows.row_tokens,
                compiled=compiled,
            ).score(ids, np.full(len(ids), rows.prompt_tokens))

        return self._seconds(passed) / batches

    def _answer(self, new_tokens: int) -> None:
        ids_BL = self._ids(self.rows.prompt_tokens).to(self.device)
        # Of the model's own, an end-of-sequence token would be left.
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        with inference(self.model.to(self.dtype), dtype=self.dtype, device=self.device):
            self.model.generate(  # type: ignore[operator]
                input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), max_new_tokens=new_tokens
            )

    def _read(self) -> float:
        """Operations of one forward pass."""
        rows = self.rows
        return flops.forward(
            shape_of(self.model),
            tokens=rows.count * rows.row_tokens,
            logits=rows.count * rows.response_tokens,
            context=rows.row_tokens,
        )

    def _answered(self, new_tokens: int) -> float:
        rows = self.rows
        return flops.answers(
            shape_of(self.model), rows=rows.count, prompt=rows.prompt_tokens, new_tokens=new_tokens
        )

    def _seconds(self, passed: Callable[[], None]) -> float:
        """The median of several calls."""
        on_gpu = self.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.thread_time

        def taken() -> float:
            start = clock()
            passed()
            if on_gpu:
                # It computes while this program goes on.
                torch.cuda.synchronize(self.device)
            return clock() - start

        taken()
        found, end = list[float](), time.perf_counter() + SECONDS
        while not found or time.perf_counter() < end:
            found.append(taken())
        return statistics.median(found)


MEASURED: dict[str, Callable[[Trial], float]] = {
    "reference": Trial.reference,
    "trajectories": Trial.scoring,
    "target": Trial.training,
    "evaluation": Trial.evaluation,
}


def flops_per_second(
    stage: str,
    model: PreTrainedModel,
    rows: BatchShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int,
    num_workers: int = 1,
) -> float:
    """Operations per second of one worker of `stage`.

    Args:
        model: a small one; its weights are moved and cast.
        rows: of one pass; no more than `MOST_TOKENS` of them are taken, and at least one row.
        num_threads: of a worker on a CPU.
        num_workers: that compute at once; as many as memory is likely to hold are tried.
    """
    num_workers = int(max(min(num_workers, MOST_WEIGHTS / model.num_parameters()), 1))
    count = max(min(rows.count, MOST_TOKENS[device.type] // rows.row_tokens), 1)
    rows = replace(rows, count=count)
    models = [model, *(copy.deepcopy(model) for _ in range(num_workers - 1))]
    trials = [Trial(each, rows, dtype, device) for each in models]
    with _threads(num_threads), ThreadPoolExecutor(num_workers) as workers:
        return statistics.mean(workers.map(MEASURED[stage], trials))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
