"""Stage 3: the mean response loss of every example at every checkpoint.

The unit of work is one part at a group of checkpoints. It leaves one small file per part and
checkpoint, so that an interruption costs at most the units under way. Batches are planned inside a
part, never across parts, so a loss does not depend on the worker that computes it. The worker that
completes a part's last checkpoint joins its files into the final part. Workers are actors of Ray,
or, for what takes less time than an actor's start, a thread of this process.

With `embeddings`, the forward pass at the last checkpoint also leaves an embedding of each example,
in a folder of its own: whoever reads losses does not pass over embeddings, which are larger. With
`error_norms`, the pass at the first checkpoint leaves these, because EL2N is meant for models early
in their training. With `without_prompt`, the last checkpoint reads the responses once more, alone.

Shapes: T checkpoints, H hidden size of the reference.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from s2l_ray.artifacts.extensions import LOSSES_BEFORE
from s2l_ray.artifacts.manifest import QUERIES, StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.distributed.spare import run_on_free_resources
from s2l_ray.errors import ConfigError, DataError, UserError
from s2l_ray.progress import Progress
from s2l_ray.training import schedule
from s2l_ray.trajectories import small_scoring
from s2l_ray.trajectories.part_scorer import Checkpoint, PartScorer
from s2l_ray.trajectories.queries import Queries, write_query_parts
from s2l_ray.trajectories.scored_files import UNITS


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

    Reads   prepared part-*     example_id, stratum, input_ids, response_starts, response_ends
    Writes  part-*.parquet      example_id, stratum: string, loss_nats: fixed_size_list<float32>[T]
                                with `without_prompt` also loss_without_prompt_nats: float32, at the
                                last checkpoint
            ../embeddings/      with `embeddings`: example_id: string, embedding:
                                fixed_size_list<float16>[H], of length one
            ../error_norms/     with `error_norms`: example_id: string, error_norm: float32, at the
                                first checkpoint
            ../queries/         losses and embeddings of queries, at the last checkpoint alone
    Returns sums over the rows; the number of files of losses (part x checkpoint) that were there
            before, scored while the reference trained or by a run that was interrupted; the number
            of query rows that could be used; notes on slower scoring, and on query rows that could
            not be used.
    Raises  DataError naming the examples whose loss or embedding is not finite, or the part whose
            worker died too often, or if query rows cannot be used; ModelError for a reference
            that shows no hidden states.
    """
    # Queries come first: their rows may be refused, and scoring takes hours.
    tokens_of_queries = out.location / UNITS / QUERIES
    query_parts, counts = write_query_parts(queries, tokens_of_queries) if queries else (None, {})
    wanted = _workers(config, out, here=small_scoring.fits_here(config, prepared, checkpoints))
    units = schedule.scoring_units(len(prepared.files()), len(checkpoints), wanted.max)
    progress.start(len(units), "units (part x checkpoints)")
    progress.doing("loading checkpoints, scoring the first units")
    num_before = len(_names(out, "losses-"))
    sums = np.zeros((len(checkpoints), 2))
    tokens, precision = 0, ""
    for result in _scored(config, prepared, checkpoints, out, units, wanted=wanted):
        progress.update(1, result["tokens"] if result["fresh"] else 0)
        tokens += result["tokens"]
        sums[result["group"]] += result["sums"]
        precision = result["precision"]
    if query_parts is not None:
        progress.doing("scoring the queries")
        of_queries = replace(out, location=out.further_folder(QUERIES) / out.location.name)
        embed_queries(config, query_parts, checkpoints[-1], of_queries, wanted, precision)
    notes = [(out.location / UNITS / name).read_bytes().decode() for name in _names(out, "note-")]
    notes += counts.get("notes", [])
    optional = {**counts, LOSSES_BEFORE: num_before, "notes": notes}
    return {
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "rows": int(sums[0, 1]),
        "tokens": tokens,
        "mean_loss_nats": [round(total / rows, 6) for total, rows in sums],
        "precision": precision,
        **{key: value for key, value in optional.items() if value},
    }


def _scored(
    config: TrajectoriesConfig,
    prepared: Parts,
    checkpoints: Sequence[Checkpoint],
    out: StageDir,
    units: Sequence[dict[str, Any]],
    *,
    wanted: resources.Workers,
    precision: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the result of a PartScorer for every unit.

    Raises:
        DataError: workers compute in different precisions, or in another one than `precision`.
    """
    results = map_units(
        PartScorer,
        units,
        wanted,
        out.location / UNITS / "attempts",
        prepared=prepared,
        checkpoints=list(checkpoints),
        config=config,
        folder=out.location,
        gpus=wanted.gpus,
        owns_process=not wanted.here,
    )
    with small_scoring.process_kept():
        for result in results:
            if precision not in ("", result["precision"]):
                raise DataError(
                    f"trajectories: some workers score in {precision} and others in "
                    f"{result['precision']}. Set trajectories.precision to one of them."
                )
            precision = result["precision"]
            yield result


def embed_queries(
    config: TrajectoriesConfig,
    rows: Parts,
    checkpoint: Checkpoint,
    out: StageDir,
    wanted: resources.Workers,
    precision: str,
) -> None:
    """Leave the losses and embeddings of query rows at `checkpoint` in `out`.

    Raises:
        DataError: a worker computes in another precision than `precision`, that of the pool.
    """
    config = config.model_copy(update={"error_norms": False, "without_prompt": False})
    units = [{"part": part, "group": [0]} for part in range(len(rows.files()))]
    for _ in _scored(config, rows, [checkpoint], out, units, wanted=wanted, precision=precision):
        pass
    (out.location / UNITS).remove()


@contextlib.contextmanager
def score_while_training(
    config: TrajectoriesConfig,
    prepared: Parts,
    checkpoints: Sequence[Checkpoint],
    out: StageDir,
    *,
    steps_done: Callable[[], int | None],
) -> Iterator[None]:
    """Score, inside the block, checkpoints of a reference that is training, on free resources.

    The losses are those that `run` computes. It reuses the files that are there, and does the rest.

    Args:
        checkpoints: those that the training will leave, in its order.
        steps_done: returns how many optimizer steps are done, or None while the workers of the
            training wait for resources.
    """
    try:
        wanted = _workers(config, out)
    except ConfigError:  # the stage will report it
        yield
        return
    num_parts = len(prepared.files())
    units = [
        {"part": part, "group": [index]}
        for index in range(len(checkpoints))
        for part in range(num_parts)
    ]
    out.begin()
    with run_on_free_resources(
        PartScorer,
        units,
        _Due(config, prepared, checkpoints, num_parts, steps_done),
        wanted,
        prepared=prepared,
        checkpoints=list(checkpoints),
        config=config,
        folder=out.location,
        gpus=wanted.gpus,
    ):
        yield


@dataclass
class _Due:
    """Tells how many units have their checkpoint by now; None while training waits."""

    config: TrajectoriesConfig
    prepared: Parts
    checkpoints: Sequence[Checkpoint]
    num_parts: int
    steps_done: Callable[[], int | None]

    def __call__(self) -> int | None:
        step = self.steps_done()
        if step is None:
            return None
        saved = sum(checkpoint.step <= step for checkpoint in self.checkpoints)
        try:
            return 0 if saved and self.is_small else saved * self.num_parts
        except UserError:
            return 0  # a part that cannot be read; whoever needs it says so

    @cached_property
    def is_small(self) -> bool:
        """Tell whether this process will score the pool sooner; a checkpoint has to be saved."""
        like_first = [self.checkpoints[0]] * len(self.checkpoints)
        return small_scoring.fits_here(self.config, self.prepared, like_first)


def _names(out: StageDir, start: str) -> list[str]:
    return [name for name in (out.location / UNITS).names() if name.startswith(start)]


def _workers(config: TrajectoriesConfig, out: StageDir, *, here: bool = False) -> resources.Workers:
    if here:
        return replace(resources.threads(out.stage, advice=out.advice_on_memory), max=1)
    return resources.workers(
        out.stage,
        config.workers,
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        advice=out.advice_on_memory,
    )
