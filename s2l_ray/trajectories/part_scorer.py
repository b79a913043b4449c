"""The worker of the stage: it holds loaded checkpoints and scores parts with them.

Where memory does not suffice for a batch, a part is scored in batches of half as many tokens.

Shapes: N examples of a part, H hidden size of the reference.
"""

import faulthandler
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedModel

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS
from s2l_ray.artifacts.tables import WITHOUT_PROMPT, Parts
from s2l_ray.artifacts.token_tables import rows_of_tokens
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed.failures import is_out_of_memory
from s2l_ray.errors import DataError, ModelError, first, one_line
from s2l_ray.models import embeddings
from s2l_ray.models.adapters import Adapter, Loadable
from s2l_ray.models.causality import check_causal
from s2l_ray.models.checkpoints import DTYPES, device_for, load_model, set_precision
from s2l_ray.models.perturbation import Noise, perturb
from s2l_ray.models.scoring import Scorer, Scores, check_embeds
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.scored_files import ScoredFiles

MODEL_CACHE_BYTES = 4 << 30
"""Size of the checkpoints that a worker keeps loaded: at most this, but always one of them.
Reading a checkpoint again costs little next to scoring a part."""
HANG_SECONDS = 1800.0
"""Time after which a worker that still computes on one batch ends; its unit goes to another."""


@dataclass(frozen=True)
class Checkpoint:
    """A model to score with: the optimizer step, and the Hugging Face directory.

    Attributes:
        base: the model that the directory holds an adapter of; None for whole weights.
        noise: what is added to the weights, if anything.
    """

    step: int
    folder: Location
    base: str | None = None
    noise: Noise | None = None

    @property
    def model(self) -> Loadable:
        """Return what is loaded."""
        return str(self.folder) if self.base is None else Adapter(str(self.folder), self.base)


@dataclass(frozen=True)
class _Rows:
    """The tokens of each row of a part, and which of them are response tokens."""

    token_ids: list[np.ndarray]
    learned: list[np.ndarray]


class PartScorer:
    """Scores one part at a group of checkpoints, and keeps the checkpoints loaded."""

    def __init__(
        self,
        prepared: Parts,
        checkpoints: list[Checkpoint],
        config: TrajectoriesConfig,
        folder: Location,
        gpus: float,
        *,
        owns_process: bool = True,
    ) -> None:
        torch.set_num_threads(config.cpus_per_worker)
        # A process of others is not ended because a batch takes long, as while it is suspended.
        self._postpone_exit = _postpone_exit if owns_process else _nothing
        self.parts, self.checkpoints, self.config = prepared.files(), checkpoints, config
        self.device = device_for(gpus)
        self.precision = set_precision(config.precision, self.device)
        steps = [checkpoint.step for checkpoint in checkpoints]
        self.files = ScoredFiles(
            folder, steps, self.precision, without_prompt=config.without_prompt
        )
        self.tokens_per_batch = config.tokens_per_batch
        self.models: OrderedDict[int, PreTrainedModel] = OrderedDict()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write what is missing of the unit's files, and return its sums."""
        part, group = unit["part"], unit["group"]
        table = self.parts[part].read_table()
        rows = self._rows(table)
        missing = [index for index in group if not self.files.has_losses(part, index)]
        for index in missing:
            loss_N, others = self._results(table, rows, index)
            self.files.write(part, index, table["example_id"], loss_N, others)
        self.files.join_if_complete(part, table)
        losses = [self.files.read_losses(part, index) for index in group]
        return {
            **unit,
            "fresh": bool(missing),
            "tokens": sum(map(len, rows.token_ids)) * len(group),
            "sums": [[float(loss_N.sum(dtype=np.float64)), len(loss_N)] for loss_N in losses],
            "precision": self.precision,
        }

    def model(self, index: int) -> PreTrainedModel:
        """Return the model of a checkpoint, by its position, on the worker's device."""
        if index not in self.models:
            checkpoint = self.checkpoints[index]
            model = load_model(checkpoint.model, dtype=DTYPES[self.precision])
            if checkpoint.noise is not None:
                perturb(model, checkpoint.noise)
            self.models[index] = model.to(self.device)
            check_causal(model)
            if self.config.embeddings:
                # At every checkpoint: the last one alone comes after hours of scoring.
                check_embeds(model)
            if self.config.without_prompt:
                start_token(model)
            held = len(self.models) * _num_bytes(model)
            if held > MODEL_CACHE_BYTES and len(self.models) > 1:
                self.models.popitem(last=False)
        self.models.move_to_end(index)
        return self.models[index]

    def _rows(self, table: pa.Table) -> _Rows:
        """Return the tokens of every row that are read to score it."""
        token_ids, learned = rows_of_tokens(table)
        limit = self.config.max_response_tokens
        if limit is not None:
            end_N = [_end_of_response(row, limit) for row in learned]
            token_ids = [row[:end] for row, end in zip(token_ids, end_N, strict=True)]
            learned = [row[:end] for row, end in zip(learned, end_N, strict=True)]
        return _Rows(token_ids, learned)

    def _results(
        self, table: pa.Table, rows: _Rows, index: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the part's losses at a checkpoint, and its other results there by name.

        Raises:
            DataError: some of them are not finite; names the examples.
        """
        if not table.num_rows:
            return np.empty(0, np.float32), {}
        embeds = self.config.embeddings and self._is_last(index)
        # EL2N is a score of models that have learned for a short time only.
        norms = self.config.error_norms and index == 0
        scores = self._scores(table, rows, index, embeds=embeds, error_norms=norms)
        for note in dict.fromkeys(scores.notes):
            self.files.note(note)
        others = {}
        if scores.embedding_NH is not None:
            others[EMBEDDINGS] = scores.embedding_NH.cpu().numpy()
        if scores.error_norm_N is not None:
            others[NORMS] = scores.error_norm_N
        if self.config.without_prompt and self._is_last(index):
            alone = _responses(rows, start_token(self.model(index)))
            others[WITHOUT_PROMPT] = self._scores(table, alone, index).loss_N
        self._check_finite("loss", scores.loss_N, table, index)
        for name, value_N in others.items():
            what = name.removesuffix("_nats").removesuffix("s").replace("_", " ")
            self._check_finite(what, value_N, table, index)
        return scores.loss_N, others

    def _check_finite(self, what: str, value_N: np.ndarray, table: pa.Table, index: int) -> None:
        is_finite_N = np.isfinite(value_N).reshape(len(value_N), -1).all(axis=1)
        bad = np.flatnonzero(~is_finite_N)
        if len(bad):
            names = [table["example_id"][int(row)].as_py() for row in bad[:4]]
            raise DataError(
                f"trajectories: {len(bad):,} examples have no finite {what} at step "
                f"{self.checkpoints[index].step} (first: {first(names)}). The reference diverged, "
                "or bf16 overflows: lower reference.learning_rate or reference.scale, or set "
                "trajectories.precision=fp32."
            )

    def _is_last(self, index: int) -> bool:
        return index == len(self.checkpoints) - 1

    def _scores(
        self,
        table: pa.Table,
        rows: _Rows,
        index: int,
        *,
        embeds: bool = False,
        error_norms: bool = False,
    ) -> Scores:
        """Score the part in the largest batches that fit the memory.

        Raises:
            DataError: memory does not suffice for the longest row alone.
        """
        while True:
            scorer = self._scorer(index, embeds=embeds, error_norms=error_norms)
            self._postpone_exit()
            try:
                return scorer.score(rows.token_ids, rows.learned, on_batch=self._postpone_exit)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_batches(table, rows.token_ids, error)
            finally:
                faulthandler.cancel_dump_traceback_later()
            # Only here is the failure, and with it the memory of its batch, gone.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _scorer(self, index: int, *, embeds: bool, error_norms: bool) -> Scorer:
        return Scorer(
            self.model(index),
            dtype=DTYPES[self.precision],
            device=self.device,
            tokens_per_batch=self.tokens_per_batch,
            compiled=self.device.type == "cuda",
            error_norms=error_norms,
            embed=embeddings.unit if embeds else None,
        )

    def _halve_batches(
        self, table: pa.Table, token_ids: list[np.ndarray], error: Exception
    ) -> None:
        longest = max(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        if self.tokens_per_batch <= len(token_ids[longest]):
            raise DataError(
                f"trajectories: memory does not suffice for example "
                f"{table['example_id'][longest].as_py()} alone, which has "
                f"{len(token_ids[longest]):,} tokens ({one_line(error)[:200]}). "
                "Lower data.max_tokens, or give each worker more memory."
            ) from error
        self.tokens_per_batch //= 2
        self.files.note(
            f"memory did not suffice for batches of {self.config.tokens_per_batch:,} "
            f"tokens; some have {self.tokens_per_batch:,}"
        )


def start_token(model: PreTrainedModel) -> int:
    """Return the token after which a text begins: beginning-of-sequence, or else end-of-sequence.

    Raises:
        ModelError: the configuration of the model names neither.
    """
    config = model.config.get_text_config()
    for named in (config.bos_token_id, config.eos_token_id):
        token = named[0] if isinstance(named, list) and named else named
        if isinstance(token, int):
            return token
    raise ModelError(
        f"{type(model).__name__}: its configuration names neither a beginning-of-sequence nor an "
        "end-of-sequence token (bos_token_id, eos_token_id), after one of which responses are "
        "read without their prompts. Set trajectories.without_prompt: false, or add one."
    )


def _responses(rows: _Rows, start: int) -> _Rows:
    """Return the tokens of each row that have a loss, after the token `start`, which has none."""
    first = np.array([start])
    token_ids = [
        np.concatenate([first, ids[is_learned]])
        for ids, is_learned in zip(rows.token_ids, rows.learned, strict=True)
    ]
    return _Rows(token_ids, [np.arange(len(ids)) > 0 for ids in token_ids])


def _postpone_exit(_num_rows: int = 0) -> None:
    """End this process, with a traceback, unless this is called again within `HANG_SECONDS`."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)


def _nothing(_num_rows: int = 0) -> None:
    """Do nothing after a batch."""


def _end_of_response(learned: np.ndarray, limit: int) -> int:
    """Return the number of tokens up to the response token with this number, or to the last."""
    place = np.flatnonzero(learned)[:limit]
    return int(place[-1]) + 1 if len(place) == limit else len(learned)


def _num_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
