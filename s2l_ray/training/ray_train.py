"""Ray Train for both fine-tunings: workers, restarts, saved states and progress.

`fit` runs in the driver, and the functions below it in the workers that it starts. A restart, after
a lost worker or of the whole program, continues from the last state that the workers reported. The
state is in the stage's folder until the training has ended.
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
from s2l_ray.config.sections import RandomModel, Training
from s2l_ray.distributed import failures, resources, session, waiting
from s2l_ray.errors import DataError, StorageError, UserError, as_message, from_message, one_line
from s2l_ray.models.adapters import Adapter
from s2l_ray.progress import Progress
from s2l_ray.storage.failures import temporary_space
from s2l_ray.storage.location import is_uri
from s2l_ray.training.batches import TrainingPlan

if TYPE_CHECKING:
    # Models' libraries take seconds to import; only workers need them.
    from s2l_ray.training import loop as training

RESUME = "resume"
MAX_FAILURES = 3
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
STEPS_PER_PREEMPTION_CHECK = 10
SECONDS_PER_LOOK = 0.5
SECONDS_PER_BEAT, SECONDS_WITHOUT_BEAT = 1.0, 5.0
"""Time between two beats of rank 0, and time after which it counts as dead or unable to work."""

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
    """Run `loop(worker, settings)` on `config.workers` workers, and return rank 0's result.

    With a range of workers, as many train as the cluster has. Whenever that number changes,
    training continues from the last saved state. It does so after a failure, too, at most
    `MAX_FAILURES` times.

    Raises:
        ConfigError: the cluster has no room for the fewest workers, and got none in time.
        UserError: a worker raised it; it has the same type and message here, and is not retried.
        DataError: at the last attempt a worker died, or had too little memory.
    """
    wanted = resources.workers(
        out.stage, config.workers, cpus=config.cpus_per_worker, gpus=config.gpus_per_worker
    )
    waiting.for_room(wanted)
    elastic = wanted.min < wanted.max
    board = _Board.options(  # type: ignore[attr-defined]
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
    ).remote()
    trainer = TorchTrainer(
        # Bound, because the controller would load models' libraries to read a configuration.
        partial(_on_worker, loop, settings, board, config.cpus_per_worker),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(wanted.min, wanted.max) if elastic else wanted.min,
            use_gpu=wanted.gpus > 0,
            resources_per_worker={"CPU": wanted.cpus, "GPU": wanted.gpus},
        ),
        run_config=run_config(out, wanted),
    )
    with _interruptible(), _shown_as_progress(board, total_steps, progress), _with_user_errors(out):
        outcome = trainer.fit().return_value
    if "error" in outcome:
        raise from_message(outcome)
    return dict(outcome["result"])


def run_config(out: StageDir, wanted: resources.Workers) -> ray.train.RunConfig:
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
    """Raise KeyboardInterrupt when Ctrl-C ends a training; Ray Train would exit with 0."""
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
    """Raise the user's and the storage's errors in place of Ray Train's, inside the block."""
    try:
        yield
    except ray.train.TrainingFailedError as failed:
        known = _user_error(list(getattr(failed, "worker_failures", {}).values()), out)
        if known is not None:
            raise known from failed
        raise


def _user_error(failures_of_workers: Sequence[Exception], out: StageDir) -> UserError | None:
    """Return the error for the failures of a group of workers; None if they are a bug.

    The death of a worker comes before the failures of the others, which are its consequence.
    """
    causes = [getattr(error, "health_check_failure", error) for error in failures_of_workers]
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
    """Holds the progress that rank 0 writes and the driver reads."""

    def __init__(self) -> None:
        self._last: tuple[int, int, int, str] | None = None
        self._beat = 0.0

    def write(self, start: int, step: int, num_tokens: int, note: str) -> None:
        self._last = (start, step, num_tokens, note)

    def beat(self) -> None:
        self._beat = time.monotonic()

    def read(self) -> tuple[int, int, int, str] | None:
        """Return what was written last; None if the process that wrote it is dead."""
        if time.monotonic() - self._beat > SECONDS_WITHOUT_BEAT:
            self._last = None
        return self._last


@contextlib.contextmanager
def _shown_as_progress(board: Any, total_steps: int, progress: Progress) -> Iterator[None]:
    """Show what is written on the board as progress, inside the block; then end the board."""
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


def absolute_model(spec: Any) -> Any:
    """Return the model `spec` with absolute paths, for workers, which run in another directory."""
    if isinstance(spec, Adapter):
        return spec  # its paths are absolute
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
        """Send this worker's progress to the driver; `num_tokens` counts from `start`."""
        if self.rank == 0:
            note = f"loss {history.loss_nats[-1]:.3f}" if history.step else ""
            self._board.write.remote(start, history.step, num_tokens, note)

    def must_leave(self, step: int) -> bool:
        """Return True once, on every rank, when the node of a worker will soon be taken away."""
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
    """Tell the board for ever that this process is alive, so that the driver sees its end soon."""
    while True:
        board.beat.remote()
        time.sleep(SECONDS_PER_BEAT)


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Raise a UserError of any rank on every rank, so that no rank waits for another.

    Every rank has to enter the block.
    """
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
    """Yield a temporary folder on this worker's disk, which is deleted after the block.

    Raises:
        StorageError: the disk of temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder, temporary_space(SafetensorError):
        yield Path(folder)


@dataclass(frozen=True)
class State:
    """The functions that write an engine's state to a folder on this rank, and read it."""

    save: Callable[[Path], None]
    load: Callable[[Path], None]
    on_every_rank: bool
    """True if each rank has a shard of the state, False if rank 0 has all of it."""


def train(
    worker: Worker,
    engine: "training.Engine",
    plan: TrainingPlan,
    *,
    state: State,
    after_step: Callable[[int], None] = lambda _step: None,
) -> "training.History":
    """Train to the end, from the last saved state if there is one.

    Args:
        after_step: called with the number of steps done, on every rank, after every step except
            those before the saved state.
    """
    from s2l_ray.training import loop as training

    history = _resumed(state)
    history.record_workers(worker.num_ranks)
    start, before = history.step, history.num_tokens
    worker.show(start, history, 0)
    ranks = {"rank": worker.rank, "num_ranks": worker.num_ranks}
    for report in training.steps(engine, plan, start=start, **ranks):
        history.add(report)
        after_step(history.step)
        worker.show(start, history, history.num_tokens - before)
        due = history.step % plan.config.resume_every == 0 and history.step < plan.total_steps
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
    """Pass the state to Ray Train, which stores it while training goes on."""
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
