"""The speed at which this machine does the work of a stage, measured on a small model.

The small model has the widths of the large one; where that is very large, it has few of its layers
and a part of its vocabulary. A few rows pass through the functions that the stage calls. So the
operations per second are those of products of that size in that precision, together with everything
between the products, which takes most of the time where matrices are narrow or precision is low.

On a CPU as many workers as there will be are tried at once, because they share its memory. Only the
time in which the CPU worked for this program counts. The result is the median of several passes.

Shapes: B rows of a pass, L positions, M response positions.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel

from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.models import flops
from s2l_ray.models.dimensions import shape_of
from s2l_ray.models.scoring import Scorer, after_prompts, inference
from s2l_ray.training.batches import MicroBatch
from s2l_ray.training.declaration import REFERENCE, TARGET
from s2l_ray.training.loop import batch_loss, compile_to_train
from s2l_ray.trajectories.declaration import TRAJECTORIES

SECONDS = 0.5
"""Time for which each kind of pass is repeated, after one that sets libraries up: on a CPU of one
row, because a pass of a large model takes many seconds on a slow one."""
MOST_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""Tokens of a pass; with more, passes become longer and not faster."""
BATCHES = {"cpu": 1, "cuda": 16}
"""Batches that are scored in a pass, as a worker scores a part: a GPU works on one while the
program prepares the next."""
MOST_NEW_TOKENS = 16
"""Tokens of an answer; each of those that follow takes about as long."""
MOST_WEIGHTS = 5e8
"""Weights of all models that are tried at once: 12 bytes each, with gradients and a bf16 copy."""


@dataclass(frozen=True)
class BatchShape:
    """The rows of one pass: how many, their mean tokens, and the tokens that answers add."""

    count: int
    prompt_tokens: int
    response_tokens: int
    new_tokens: int = 0

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True)
class Trial:
    """A small model, the rows of a pass, and how the model computes.

    The model's weights are moved and cast.
    """

    model: PreTrainedModel
    rows: BatchShape
    dtype: torch.dtype
    device: torch.device

    def reference(self) -> float:
        """Measure operations per second of training; on a GPU, with compiled layers."""
        if self.device.type == "cpu":
            return self.training()
        # A copy: the outcome of a compilation stays with the model, and the scorer tries its own.
        model = copy.deepcopy(self.model).float()
        largest = self.rows.count, self.rows.row_tokens - 1
        compile_to_train(model, largest=largest, device=self.device, dtype=self.dtype)
        return replace(self, model=model).training()

    def training(self) -> float:
        """Measure operations per second of forward and backward passes."""
        model = self.model.float().train().to(self.device)
        seconds = self._seconds(partial(self._train, model))
        return flops.training_passes() * self._forward_operations() / seconds

    def scoring(self) -> float:
        """Measure operations per second of the scorer."""
        compiled = self.device.type == "cuda"
        return self._forward_operations() / self._seconds_to_score(compiled=compiled)

    def evaluation(self) -> float:
        """Measure operations per second of scoring rows and of answering them.

        The first token of an answer takes a pass over its prompt. Each of the others takes as long
        as one of the few that are tried.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = MOST_NEW_TOKENS if limit is None else limit - self.rows.prompt_tokens
        tried = min(self.rows.new_tokens, MOST_NEW_TOKENS, room)
        seconds, operations = self._seconds_to_score(), self._forward_operations()
        if tried > 0:
            first = self._seconds(partial(self._answer, 1))
            others = self._seconds(partial(self._answer, tried)) - first if tried > 1 else 0.0
            more = (self.rows.new_tokens - 1) / max(tried - 1, 1)
            seconds += first + max(others, 0.0) * more
            operations += self._answer_operations()
        return operations / seconds

    def _train(self, model: PreTrainedModel, count: int) -> None:
        rows = self.rows
        ids_BL = self._ids(rows.row_tokens, count)
        # A row's last token is predicted and never read.
        mask_BL = torch.zeros(count, rows.row_tokens - 1, dtype=torch.bool)
        mask_BL[:, rows.prompt_tokens - 1 :] = True
        target_M = ids_BL[:, rows.prompt_tokens :].flatten()
        batch = MicroBatch(ids_BL[:, :-1], mask_BL, target_M, 1.0)
        autocast = self.dtype == torch.bfloat16
        batch_loss(model, batch, device=self.device, autocast=autocast).backward()

    def _seconds_to_score(self, *, compiled: bool = False) -> float:
        """Return the seconds of one batch."""
        batches = BATCHES[self.device.type]
        score = partial(self._score, batches=batches, compiled=compiled)
        return self._seconds(score) / batches

    def _score(self, count: int, *, batches: int, compiled: bool) -> None:
        ids = list(self._ids(self.rows.row_tokens, batches * count).numpy())
        scorer = Scorer(
            self.model.to(self.dtype),
            dtype=self.dtype,
            device=self.device,
            tokens_per_batch=self.rows.count * self.rows.row_tokens,
            compiled=compiled,
        )
        scorer.score(ids, after_prompts(ids, [self.rows.prompt_tokens] * len(ids)))

    def _answer(self, new_tokens: int, count: int) -> None:
        ids_BL = self._ids(self.rows.prompt_tokens, count).to(self.device)
        # The model's own configuration may name an end-of-sequence token, which would end answers.
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        with inference(self.model.to(self.dtype), dtype=self.dtype, device=self.device):
            self.model.generate(  # type: ignore[operator]
                input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), max_new_tokens=new_tokens
            )

    def _ids(self, length: int, count: int) -> torch.Tensor:
        """Return random tokens, int64 (B, L), on the CPU."""
        vocab_size = self.model.config.get_text_config().vocab_size
        return torch.randint(vocab_size, (count, length))

    def _forward_operations(self) -> float:
        rows = self.rows
        return flops.forward(
            shape_of(self.model),
            tokens=rows.count * rows.row_tokens,
            logits=rows.count * rows.response_tokens,
            context=rows.row_tokens,
        )

    def _answer_operations(self) -> float:
        return flops.answers(
            shape_of(self.model),
            rows=self.rows.count,
            prompt=self.rows.prompt_tokens,
            new_tokens=self.rows.new_tokens,
        )

    def _seconds(self, work: Callable[[int], None]) -> float:
        """Return the median time of several calls of `work` with the number of rows."""
        count = self.rows.count
        self._seconds_of(partial(work, count if self.device.type == "cuda" else 1))
        times, end = list[float](), time.perf_counter() + SECONDS
        while not times or time.perf_counter() < end:
            times.append(self._seconds_of(partial(work, count)))
        return statistics.median(times)

    def _seconds_of(self, call: Callable[[], None]) -> float:
        on_gpu = self.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.thread_time
        start = clock()
        call()
        if on_gpu:
            # The GPU computes while this program goes on.
            torch.cuda.synchronize(self.device)
        return clock() - start


MEASURED: dict[str, Callable[[Trial], float]] = {
    REFERENCE.name: Trial.reference,
    TRAJECTORIES.name: Trial.scoring,
    TARGET.name: Trial.training,
    EVALUATION.name: Trial.evaluation,
}
"""The measurement of each stage."""


def flops_per_second(stage: str, trial: Trial, *, num_threads: int, num_workers: int = 1) -> float:
    """Measure operations per second of one worker of `stage`.

    Args:
        trial: of its rows at least one is tried, and no more than have `MOST_TOKENS` tokens.
        num_threads: threads of a worker on a CPU.
        num_workers: workers that compute at once; tried are as many as memory is likely to hold.
    """
    rows, model = trial.rows, trial.model
    num_workers = int(max(min(num_workers, MOST_WEIGHTS / model.num_parameters()), 1))
    count = max(min(rows.count, MOST_TOKENS[trial.device.type] // rows.row_tokens), 1)
    trial = replace(trial, rows=replace(rows, count=count))
    copies = [replace(trial, model=copy.deepcopy(model)) for _ in range(num_workers - 1)]
    with _threads(num_threads), ThreadPoolExecutor(num_workers) as workers:
        return statistics.mean(workers.map(MEASURED[stage], [trial, *copies]))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
