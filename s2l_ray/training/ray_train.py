"""Ray Train for both fine-tunings: workers, restarts, what a restart continues from, progress.

`fit` runs in the driver, everything else here in the workers that it starts. A restart, after a
lost worker or of the whole program, continues from the last state that the workers reported; the
state lies beside the stage's results until the training has ended.
"""

import contextlib
import errno
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors import SafetensorError

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.background import running_thread
from s2l_ray.config.sections import ModelSpec, RandomModel, Training
from s2l_ray.distributed import failures, resources, session
from s2l_ray.errors import DataError, StorageError, UserError, as_message, from_message, one_line
from s2l_ray.progress import Progress
from s2l_ray.storage.location import is_uri, temporary_space
from s2l_ray.training.batches import PartReader

if TYPE_CHECKING:
    # Models' libraries take seconds to import; only workers need them.
    from s2l_ray.training import loop as training

RESUME = "resume"
MAX_FAILURES = 3
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
STEPS_PER_PREEMPTION_CHECK = 10
SECONDS_PER_LOOK = 0.5
SECONDS_PER_BEAT, SECONDS_WITHOUT_BEAT = 1.0, 5.0
"""A rank 0 that was not heard of for so long is gone, or cannot work."""

Loop = Callable[["Worker", dict[str, Any]], dict[str, Any]]


# --- in the driver ------------------------------------------------------------------------------


def fit(
    loop: Loop,
    settings: dict[str, Any],
    config: Training,
    out: StageDir,
    *,
    total_steps: int,
    progress: Progress,
) -> dict[str, Any]:
    """What `loop(worker, settings)` returns on rank 0 of `config.workers` workers.

    With a range of workers, training goes on with as many as the cluster has, from the last saved
    state whenever that number changes.

    Raises:
        UserError: as a worker raised it; that is not retried. Other failures are, `MAX_FAILURES`
            times, from the last saved state.
        DataError: in the end a worker died, or had too little memory.
    """
    wanted = resources.workers(
        out.stage, config.workers, cpus=config.cpus_per_worker, gpus=config.gpus_per_worker
    )
    elastic = wanted.min < wanted.max
    board = _Board.options(  # type: ignore[attr-defined]
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
    ).remote()
    trainer = TorchTrainer(
        # Bound, not given as its configuration: the controller would load models' libraries for it.
        partial(_on_worker, loop, settings, board, config.cpus_per_worker),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(wanted.min, wanted.max) if elastic else wanted.min,
            use_gpu=wanted.gpus > 0,
            resources_per_worker={"CPU": wanted.cpus, "GPU": wanted.gpus},
        ),
        run_config=_run_config(out, wanted),
    )
    with _interruptible(), _shown_as_progress(board, total_steps, progress), _with_user_errors(out):
        outcome = trainer.fit().return_value
    if "error" in outcome:
        raise from_message(outcome)
    return dict(outcome["result"])


def _run_config(out: StageDir, wanted: resources.Workers) -> ray.train.RunConfig:
    filesystem, path = (out.location / RESUME).filesystem()
    return ray.train.RunConfig(
        # Ray Train continues any run of the same name that it finds.
        name=f"{out.stage}-{out.fingerprint}",
        storage_path=path,
        storage_filesystem=None if out.location.is_local else filesystem,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        worker_runtime_env=session.worker_environment(cpus=wanted.cpus, gpus=wanted.gpus),
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a training and is raised as on_every_rank, where Ray Train would exit with 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        # Ray Train leaves its own handler behind; it sets none outside the main thread.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _with_user_errors(out: StageDir) -> Iterator[None]:
    """Errors of users and of storage as themselves, not as a failed training."""
    try:
        yield
    except ray.train.TrainingFailedError as failed:
        known = _user_error(list(getattr(failed, "worker_failures", {}).values()), out)
        if known is not None:
            raise known from failed
        raise


def _user_error(errors: Sequence[Exception], out: StageDir) -> UserError | None:
    """What a user can do about the failures of a group of workers; None if that is a bug.

    A worker that died comes before what the others say, which lost it.
    """
    causes = [getattr(error, "health_check_failure", error) for error in errors]
    for error in causes:
        if isinstance(error, UserError):
            return error
    for error in causes:
        died = isinstance(error, ray.exceptions.RayActorError)
        if died or failures.is_out_of_memory(error):
            return DataError(
                f"{out.stage}: workers failed {MAX_FAILURES + 1} times; the last time one "
                f"{'died' if died else 'had too little memory'} "
                f"({one_line(error)[:200]}). If no machine was lost, memory did not "
                f"suffice: lower {out.stage}.micro_batch_size, or give each worker more of it. "
                "The same command then goes on from the last saved state."
            )
    for error in causes:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
            return StorageError(f"{out.stage}: cannot write {out.location}: {error}")
    return None


@ray.remote(num_cpus=0)
class _Board:
    """Where rank 0 writes how far it is, for the driver to read."""

    def __init__(self) -> None:
        self._last: tuple[int, int, int, str] | None = None
        self._beat = 0.0

    def write(self, start: int, step: int, num_tokens: int, note: str) -> None:
        self._last = (start, step, num_tokens, note)

    def beat(self) -> None:
        self._beat = time.monotonic()

    def read(self) -> tuple[int, int, int, str] | None:
        """What was written last, by a process that still lives."""
        if time.monotonic() - self._beat > SECONDS_WITHOUT_BEAT:
            self._last = None
        return self._last


@contextlib.contextmanager
def _shown_as_progress(board: Any, total_steps: int, progress: Progress) -> Iterator[None]:
    """Inside, what is written on the board is shown as progress."""
    try:
        with running_thread(partial(_show_progress, board, total_steps, progress)):
            yield
    finally:
        ray.kill(board)


def _show_progress(board: Any, total_steps: int, progress: Progress, stop: threading.Event) -> None:
    begun = shown = shown_tokens = -1
    while not stop.wait(SECONDS_PER_LOOK):
        last = None
        with contextlib.suppress(ray.exceptions.RayError):
            last = ray.get(board.read.remote())
        if last is None:
            progress.pause()
            begun = -1
            continue
        start, step, num_tokens, note = last
        if start != begun:
            progress.start(total_steps, "steps", done=start)
            begun, shown, shown_tokens = start, start, 0
        progress.update(step - shown, num_tokens - shown_tokens, note)
        shown, shown_tokens = step, num_tokens


def absolute_model(spec: ModelSpec) -> ModelSpec:
    """`spec` for workers, which run in a directory of their own."""
    if isinstance(spec, RandomModel):
        return spec.model_copy(update={"tokenizer": absolute_model(spec.tokenizer)})
    path = Path(spec).expanduser()
    return str(path.absolute()) if not is_uri(spec) and path.exists() else spec


# --- in a worker --------------------------------------------------------------------------------


@dataclass
class Worker:
    """One of `num_ranks` processes that train together."""

    rank: int
    num_ranks: int
    device: torch.device
    _board: Any
    _warned: bool = field(default=False, init=False)

    def show(self, start: int, history: "training.History", num_tokens: int) -> None:
        """Let the driver know how far this worker is; `num_tokens` counts from `start`."""
        if self.rank == 0:
            note = f"loss {history.loss_nats[-1]:.3f}" if history.step else ""
            self._board.write.remote(start, history.step, num_tokens, note)

    def must_leave(self, step: int) -> bool:
        """True once, on every rank, when a worker's node is about to be taken away."""
        if self._warned or step % STEPS_PER_PREEMPTION_CHECK:
            return False
        self._warned = ray.train.get_preemption_info() is not None
        return self._warned


def _on_worker(
    loop: Loop, settings: dict[str, Any], board: Any, num_threads: int
) -> dict[str, Any]:
    torch.set_num_threads(num_threads)
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, num_ranks, get_device(), board)
    if rank == 0:
        threading.Thread(target=_beat, args=(board,), daemon=True).start()
    try:
        return {"result": loop(worker, settings)}
    except UserError as error:
        if num_ranks > 1 and not getattr(error, "on_every_rank", False):
            raise  # the others wait for this rank: only the end of the group frees them
        # Returned, not raised: what a user must change does not go away by trying again.
        return as_message(error)


def _beat(board: Any) -> None:
    """Say again and again that this process lives; whatever ends it, the driver sees it soon."""
    while True:
        board.beat.remote()
        time.sleep(SECONDS_PER_BEAT)


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """A UserError of one rank is raised on every rank, so that none waits for the others."""
    own = None
    try:
        yield
    except UserError as error:
        own = as_message(error)
    messages: list[dict[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, own)
    for message in messages:
        if message is not None:
            shared = from_message(message)
            shared.on_every_rank = True  # type: ignore[union-attr]
            raise shared


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder of this worker, for what is stored elsewhere before the block ends.

    Raises:
        StorageError: the disk that temporary files lie on is full.
    """
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder, temporary_space(SafetensorError):
        yield Path(folder)


@dataclass(frozen=True)
class State:
    """How an engine's state is written to, and read from, a folder on this rank."""

    save: Callable[[Path], None]
    load: Callable[[Path], None]
    on_every_rank: bool
    """Whether each rank has a shard of it, or rank 0 all of it."""


def train(
    worker: Worker,
    engine: "training.Engine",
    parts: PartReader,
    config: Training,
    *,
    seed: int,
    total_steps: int,
    state: State,
    after_step: Callable[[int], None],
) -> "training.History":
    """Train to the end, from the last saved state if there is one.

    `after_step` is called on every rank after every step that was not done before.
    """
    from s2l_ray.training import loop as training

    history = _resumed(state)
    history.on(worker.num_ranks)
    start, before = history.step, history.num_tokens
    worker.show(start, history, 0)
    for report in training.steps(
        engine,
        parts,
        config,
        seed=seed,
        total_steps=total_steps,
        start=start,
        rank=worker.rank,
        num_ranks=worker.num_ranks,
    ):
        history.add(report)
        after_step(history.step)
        worker.show(start, history, history.num_tokens - before)
        due = history.step % config.resume_every == 0 and history.step < total_steps
        if worker.must_leave(history.step) or due:
            _save(history, state, worker.rank)
    return history


def _resumed(state: State) -> "training.History":
    from s2l_ray.training import loop as training

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return training.History()
    with checkpoint.as_directory() as folder:
        state.load(Path(folder))
        return training.History.read(Path(folder))


def _save(history: "training.History", state: State, rank: int) -> None:
    """Hand the state to Ray Train, which stores it while training goes on."""
    checkpoint = None
    if state.on_every_rank or rank == 0:
        folder = Path(tempfile.mkdtemp(prefix="s2l-state-"))
        with temporary_space(SafetensorError):
            state.save(folder)
            if rank == 0:
                history.write(folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(
        {"step": history.step},
        checkpoint=checkpoint,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
