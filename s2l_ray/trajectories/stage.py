"""Stage 3: the mean response loss of every example at every checkpoint.

The unit of work is one part at a group of checkpoints; its results are one small file per part and
checkpoint, so an interrupted run loses at most the units that were under way. Batches are planned
inside a part and never across, so a loss does not depend on who computes it. The worker that
completes a part's last checkpoint joins its files into the final part.

Where memory does not suffice for a batch, the part is scored in batches of half as many tokens.

With `embeddings`, the forward pass of the last checkpoint leaves one of each example, too, in a
file beside the part: what reads losses does not pass over embeddings, which are larger. With
`error_norms`, that of the first one leaves these, as EL2N is meant early in a training.

Shapes: N examples of a part, H hidden size of the reference.
"""

import contextlib
import faulthandler
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS, QUERIES, Parts, StageDir
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed import failures, resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.distributed.spare import run_on_free_resources
from s2l_ray.errors import ConfigError, DataError, first, one_line
from s2l_ray.models.checkpoints import DTYPES, compute_in, device_for, load_model
from s2l_ray.models.scoring import check_embeds, score
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.trajectories.queries import Queries, tokenised
from s2l_ray.trajectories.scored_files import UNITS, Files, Kept

MODEL_CACHE_BYTES = 4 << 30
"""Checkpoints that a worker keeps loaded; reading one again costs little next to scoring a part."""
HANG_SECONDS = 1800.0
"""A worker that computes on one batch for so long is ended, and its unit given to another."""
ADVICE_ON_MEMORY = "Lower trajectories.tokens_per_batch, or give each worker more memory."


@dataclass(frozen=True)
class Checkpoint:
    """One scored model: the optimizer step, and the Hugging Face directory."""

    step: int
    folder: Location


def run(
    config: TrajectoriesConfig,
    prepared: Parts,
    checkpoints: Sequence[Checkpoint],
    out: StageDir,
    *,
    progress: Progress,
    queries: Queries | None = None,
) -> dict[str, Any]:
    """Score every prepared row at every checkpoint; embed queries at the last one.

    Reads   prepared part-*     example_id, stratum, input_ids, num_prompt_tokens
    Writes  part-*.parquet      example_id, stratum: string, loss_nats: fixed_size_list<float32>[T]
            embeddings-*.parquet    where wanted: example_id: string, embedding:
                                fixed_size_list<float16>[H], of length one
            error_norms-*.parquet   where wanted: example_id: string, error_norm: float32, at the
                                first checkpoint
            queries/            of queries, losses and embeddings for the last checkpoint alone
    Returns sums; how many files of losses (part x checkpoint) were there before, scored while the
            reference trained or by a run that was interrupted; how many query rows could be used;
            notes on what had to go slower, and on query rows that could not.
    Raises  DataError naming the examples whose loss or embedding is not finite, or the part whose
            worker died too often, or when query rows cannot be used; ModelError for a reference
            that shows no hidden states.
    """
    # Before hours of scoring, as its rows may be refused.
    place = out.location / UNITS / QUERIES
    asked, counts = tokenised(queries, place) if queries else (None, {})
    num_workers = _workers(config).max
    units = schedule.scoring_units(len(prepared.files()), len(checkpoints), num_workers)
    progress.start(len(units), "units (part x checkpoints)")
    num_before = len(_names(out, "losses-"))
    sums = np.zeros((len(checkpoints), 2))
    tokens, precision = 0, ""
    for result in _scored(config, prepared, checkpoints, out.location, units):
        progress.update(1, result["tokens"] if result["fresh"] else 0)
        tokens += result["tokens"]
        sums[result["group"]] += result["sums"]
        precision = result["precision"]
    if asked is not None:
        _embed(config, asked, checkpoints[-1], out.location / QUERIES, precision)
    notes = [(out.location / UNITS / name).read_bytes().decode() for name in _names(out, "note-")]
    worth_saying = {
        **counts,
        "num_losses_before": num_before,
        "notes": [*notes, *counts.get("notes", [])],
    }
    return {
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "rows": int(sums[0, 1]),
        "tokens": tokens,
        "mean_loss_nats": [round(total / rows, 6) for total, rows in sums],
        "precision": precision,
        **{key: value for key, value in worth_saying.items() if value},
    }


def _scored(
    config: TrajectoriesConfig,
    prepared: Parts,
    checkpoints: Sequence[Checkpoint],
    folder: Location,
    units: Sequence[dict[str, Any]],
    precision: str = "",
) -> Iterator[dict[str, Any]]:
    """What a Scorer brings of each unit, all in one precision: that which is given, if any."""
    wanted = _workers(config)
    for result in map_units(
        Scorer,
        units,
        wanted,
        folder / UNITS / "attempts",
        prepared=prepared,
        checkpoints=list(checkpoints),
        config=config,
        folder=folder,
        gpus=wanted.gpus,
    ):
        if precision not in ("", result["precision"]):
            raise DataError(
                f"trajectories: some workers score in {precision} and others in "
                f"{result['precision']}. Set trajectories.precision to one of them."
            )
        precision = result["precision"]
        yield result


def _embed(
    config: TrajectoriesConfig,
    rows: Parts,
    checkpoint: Checkpoint,
    folder: Location,
    precision: str,
) -> None:
    """Leave the losses and embeddings of query rows at `checkpoint` in `folder`."""
    config = config.model_copy(update={"error_norms": False})
    units = [{"part": part, "group": [0]} for part in range(len(rows.files()))]
    for _ in _scored(config, rows, [checkpoint], folder, units, precision):
        pass
    (folder / UNITS).remove()


@contextlib.contextmanager
def ahead(
    config: TrajectoriesConfig,
    prepared: Parts,
    checkpoints: Sequence[Checkpoint],
    out: StageDir,
    *,
    reached: Callable[[], int | None],
) -> Iterator[None]:
    """Inside, while the reference trains, its checkpoints are scored where resources are free.

    `reached` says which step's checkpoint is there by now, and None while the training's own
    workers have yet to find their place. Losses are those that `run` computes, which takes up
    what it finds and does the rest.
    """
    try:
        wanted = _workers(config)
    except ConfigError:  # which is for the stage to say
        yield
        return
    num_parts = len(prepared.files())
    units = [
        {"part": part, "group": [index]}
        for index in range(len(checkpoints))
        for part in range(num_parts)
    ]

    def num_due() -> int | None:
        step = reached()
        return step and num_parts * sum(checkpoint.step <= step for checkpoint in checkpoints)

    out.begin()
    with run_on_free_resources(
        Scorer,
        units,
        num_due,
        wanted,
        prepared=prepared,
        checkpoints=list(checkpoints),
        config=config,
        folder=out.location,
        gpus=wanted.gpus,
    ):
        yield


def _names(out: StageDir, start: str) -> list[str]:
    return [name for name in (out.location / UNITS).names() if name.startswith(start)]


def _workers(config: TrajectoriesConfig) -> resources.Workers:
    return resources.workers(
        "trajectories",
        config.workers,
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        advice=ADVICE_ON_MEMORY,
    )


class Scorer:
    """Holds loaded checkpoints and scores one part at a group of them."""

    def __init__(
        self,
        prepared: Parts,
        checkpoints: list[Checkpoint],
        config: TrajectoriesConfig,
        folder: Location,
        gpus: float,
    ) -> None:
        torch.set_num_threads(config.cpus_per_worker)
        self.parts, self.checkpoints, self.config = prepared.files(), checkpoints, config
        self.device = device_for(gpus)
        self.precision = compute_in(config.precision, self.device)
        self.dtype = DTYPES[self.precision]
        self.files = Files(folder, [checkpoint.step for checkpoint in checkpoints], self.precision)
        self.tokens_per_batch = config.tokens_per_batch
        self.models: OrderedDict[int, nn.Module] = OrderedDict()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        part, group = unit["part"], unit["group"]
        table = self.parts[part].read_table()
        token_ids = self._token_ids(table)
        missing = [index for index in group if not self.files.has_losses(part, index)]
        for index in missing:
            loss_N, kept = self._score(table, token_ids, index)
            self.files.write(part, index, table["example_id"], loss_N, kept)
        self.files.join_if_complete(part, table)
        losses = [self.files.read_losses(part, index) for index in group]
        return {
            **unit,
            "fresh": bool(missing),
            "tokens": sum(map(len, token_ids)) * len(group),
            "sums": [[float(loss_N.sum(dtype=np.float64)), len(loss_N)] for loss_N in losses],
            "precision": self.precision,
        }

    def _token_ids(self, table: pa.Table) -> list[np.ndarray]:
        """The tokens of every row that are read to score it."""
        token_ids, limit = token_arrays(table), self.config.max_response_tokens
        if limit is None:
            return token_ids
        end_N = table["num_prompt_tokens"].to_numpy() + limit
        return [row[:end] for row, end in zip(token_ids, end_N, strict=True)]

    def _score(
        self, table: pa.Table, token_ids: list[np.ndarray], index: int
    ) -> tuple[np.ndarray, list[Kept]]:
        """Losses of the part at one checkpoint, and what else this one is to leave."""
        if not table.num_rows:
            return np.empty(0, np.float32), []
        # EL2N is a score of models that have learned for a short time only.
        wanted = {
            EMBEDDINGS: self.config.embeddings and index == len(self.checkpoints) - 1,
            NORMS: self.config.error_norms and index == 0,
        }
        kept = {name: Kept(name, table.num_rows) for name, is_wanted in wanted.items() if is_wanted}
        loss_N = self._in_batches_that_fit(table, token_ids, self._model(index), kept)
        finite = {"loss": np.isfinite(loss_N)}
        finite |= {item.what: item.is_finite_N for item in kept.values()}
        for what, is_finite_N in finite.items():
            self._check_finite(what, is_finite_N, table, index)
        return loss_N, list(kept.values())

    def _check_finite(
        self, what: str, is_finite_N: np.ndarray, table: pa.Table, index: int
    ) -> None:
        bad = np.flatnonzero(~is_finite_N)
        if len(bad):
            names = [table["example_id"][int(row)].as_py() for row in bad[:4]]
            raise DataError(
                f"trajectories: {len(bad):,} examples have no finite {what} at step "
                f"{self.checkpoints[index].step} (first: {first(names)}). The reference diverged, "
                "or bf16 overflows: lower reference.learning_rate, or set "
                "trajectories.precision=fp32."
            )

    def _in_batches_that_fit(
        self,
        table: pa.Table,
        token_ids: list[np.ndarray],
        model: nn.Module,
        kept: Mapping[str, Kept],
    ) -> np.ndarray:
        longest = max(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        while True:
            _alive()
            try:
                return score(
                    model,
                    token_ids,
                    table["num_prompt_tokens"].to_numpy(),
                    tokens_per_batch=self.tokens_per_batch,
                    dtype=self.dtype,
                    device=self.device,
                    compiled=self.device.type == "cuda",
                    on_batch=_alive,
                    on_slower_way=self.files.note,
                    on_embeddings=kept.get(EMBEDDINGS),
                    on_norms=kept.get(NORMS),
                )
            except Exception as error:
                if not failures.is_out_of_memory(error):
                    raise
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
            finally:
                faulthandler.cancel_dump_traceback_later()
            # Only here is the failure, and with it the memory of its batch, gone.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _model(self, index: int) -> nn.Module:
        if index not in self.models:
            model = load_model(str(self.checkpoints[index].folder), dtype=self.dtype)
            self.models[index] = model.to(self.device)
            if self.config.embeddings:
                # Not of the last one alone: that is after hours of scoring.
                check_embeds(model)
            held = len(self.models) * _num_bytes(model)
            if held > MODEL_CACHE_BYTES and len(self.models) > 1:
                self.models.popitem(last=False)
        self.models.move_to_end(index)
        return self.models[index]


def _alive(_num_rows: int = 0) -> None:
    """Put off the end of this process; whoever does not call again in time shows where it is."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)


def token_arrays(table: pa.Table) -> list[np.ndarray]:
    """The `input_ids` column as one int32 array per row."""
    column = table["input_ids"].combine_chunks()
    values = column.values.to_numpy()
    offsets = column.offsets.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


def _num_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
