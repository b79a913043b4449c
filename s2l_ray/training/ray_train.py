"""Ray Train for both fine-tunings: workers, restarts, saved states and interruption.

`fit` runs in the driver, and the functions below it in the workers that it starts. A restart, after
a lost worker or of the whole program, continues from the last state that the workers reported. The
state is in the stage's folder until the training has ended. Ctrl-C has them report a last one.
"""

import contextlib
import errno
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from safetensors import SafetensorError

from s2l_ray import collector, events
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.training import RandomModel, Training
from s2l_ray.distributed import failures, resources, session, waiting
from s2l_ray.errors import DataError, StorageError, UserError, as_message, from_message, one_line
from s2l_ray.models.adapters import Adapter
from s2l_ray.progress import Progress
from s2l_ray.storage.failures import cause, temporary_space
from s2l_ray.storage.location import is_uri
from s2l_ray.training import board
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.interruption import InterruptibleTrainer, Stopped, interruptible

if TYPE_CHECKING:
    # Models' libraries take seconds to import; only workers need them.
    from s2l_ray.training import loop as training
    from s2l_ray.training.held_out import HeldOut

RESUME = "resume"
MAX_FAILURES = 3
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
STEPS_PER_PREEMPTION_CHECK = 10

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
        ConfigError: the cluster has no room for the fewest workers, and got none in time; or has
            lost it.
        UserError: a worker raised it; it has the same type and message here, and is not retried.
        DataError: at the last attempt a worker died, or had too little memory.
    """
    wanted = resources.workers(
        out.stage, config.workers, cpus=config.cpus_per_worker, gpus=config.gpus_per_worker
    )
    waited = waiting.for_room(wanted)
    elastic = wanted.min < wanted.max
    wall = board.of_driver()
    trainer = InterruptibleTrainer(
        # Bound, because the controller would load models' libraries to read a configuration.
        partial(_on_worker, ray.cloudpickle.dumps((loop, settings)), wall, config.cpus_per_worker),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(wanted.min, wanted.max) if elastic else wanted.min,
            use_gpu=wanted.gpus > 0,
            resources_per_worker={"CPU": wanted.cpus, "GPU": wanted.gpus},
        ),
        run_config=run_config(out, wanted),
    )
    room = waiting.LostRoom(wanted, trainer.give_up, waited=waited)
    with (
        interruptible(trainer, wall, progress, total_steps, room),
        board.shown(wall, total_steps, progress, room),
        _with_user_errors(out),
        _without_room(room),
    ):
        outcome = trainer.fit().return_value
    if "error" in outcome:
        raise from_message(outcome)
    if "stopped" in outcome:
        events.tell("notice", text=f"saved step {outcome['stopped']} of {total_steps}")
        raise KeyboardInterrupt
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
def _with_user_errors(out: StageDir) -> Iterator[None]:
    """Raise the user's and the storage's errors in place of Ray Train's, inside the block."""
    try:
        yield
    except ray.train.TrainingFailedError as failed:
        known = _user_error(list(getattr(failed, "worker_failures", {}).values()), out)
        if known is not None:
            raise known from failed
        raise


@contextlib.contextmanager
def _without_room(room: waiting.LostRoom) -> Iterator[None]:
    """Raise the reason why a training was given up, in place of what Ray raises then."""
    try:
        yield
    except ray.exceptions.RayActorError:
        if room.error is None:
            raise
        raise room.error from None


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
            what = f"died, {failures.why_died()}" if died else "had too little memory"
            return DataError(
                f"{out.stage}: workers failed {MAX_FAILURES + 1} times; the last time one {what} "
                f"({one_line(error)[:200]}). If no machine was lost and no disk is full, memory "
                f"did not suffice: lower {out.stage}.micro_batch_size, or give each worker more. "
                "The same command then goes on from the last saved state."
            )
    for error in causes:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
            return StorageError(
                f"{out.stage}: cannot write {out.location}: {cause(error, 'write', out.location)}"
            )
    return None


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
    _board: board.Writer | None
    """None but for rank 0."""
    _warned: bool = field(default=False, init=False)

    def doing(self, what: str) -> None:
        """Tell the driver what is done before the first step."""
        if self._board is not None:
            self._board.doing(what)

    def begin(self, start: int) -> None:
        """Tell the driver that the steps after `start` begin."""
        if self._board is not None:
            self._board.begin(start)

    def show(self, report: "training.StepReport") -> None:
        """Send a step to the driver."""
        if self._board is not None:
            self._board.add({**asdict(report), "memory_bytes": _peak_memory(self.device)})

    def show_held_out(self, step: int, loss_nats: Mapping[str, float]) -> None:
        """Send the loss of the held-out sets after a step to the driver."""
        if self._board is not None:
            self._board.add_held_out(step, loss_nats)

    def measuring(self) -> None:
        """Tell the driver that the loss of held-out rows is measured before the next step."""
        if self._board is not None:
            self._board.busy(board.MEASURING)

    def must_stop(self) -> bool:
        """Return True, on every rank after the same step, once the user wants to stop."""
        stop = torch.tensor(self._board is not None and self._board.is_to_stop, dtype=torch.uint8)
        if self.num_ranks > 1:
            stop = stop.to(self.device)
            dist.broadcast(stop, src=0)
        return bool(stop.item())

    def must_leave(self, step: int) -> bool:
        """Return True once, on every rank, when the node of a worker will soon be taken away."""
        if self._warned or step % STEPS_PER_PREEMPTION_CHECK:
            return False
        self._warned = ray.train.get_preemption_info() is not None
        return self._warned


def _on_worker(packed: bytes, wall: Any, num_threads: int) -> dict[str, Any]:
    """Run the loop on the settings that are packed, a pair; models' libraries load with them."""
    with collector.paused():
        loop, settings = ray.cloudpickle.loads(packed)
    torch.set_num_threads(num_threads)
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, num_ranks, get_device(), board.Writer(wall) if rank == 0 else None)
    try:
        return {"result": loop(worker, settings)}
    except Stopped as stopped:
        return {"stopped": stopped.step}
    except UserError as error:
        if num_ranks > 1 and not getattr(error, "on_every_rank", False):
            raise  # the others wait for this rank: only the end of the group frees them
        # Returned, not raised: what a user must change does not go away by trying again.
        return as_message(error)


def _peak_memory(device: torch.device) -> int:
    """Return the most memory, in bytes, that this process has had on `device`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    held_out: "HeldOut | None" = None,
) -> "training.History":
    """Train to the end, from the last saved state if there is one.

    Args:
        after_step: called with the number of steps done, on every rank, after every step except
            those before the saved state.
        held_out: rows whose loss is measured on the way.
    """
    from s2l_ray.training import loop as training

    history = _resumed(state)
    history.record_workers(worker.num_ranks)
    start = history.step
    worker.begin(start)
    ranks = {"rank": worker.rank, "num_ranks": worker.num_ranks}
    measure = partial(_measure, worker, engine, held_out, history, plan.total_steps)
    if start:
        measure()  # the training may have been stopped while it measured
        _stop_if_asked(worker, history, state)
    for report in training.steps(engine, plan, start=start, **ranks):
        history.add(report)
        after_step(history.step)
        worker.show(report)
        measure()
        _stop_if_asked(worker, history, state)
        due = history.step % plan.config.resume_every == 0 and history.step < plan.total_steps
        if worker.must_leave(history.step) or due:
            _save(history, state, worker.rank)
    return history


def _stop_if_asked(worker: Worker, history: "training.History", state: State) -> None:
    if worker.must_stop():
        _save(history, state, worker.rank, wait=True)
        raise Stopped(history.step)


def _measure(
    worker: Worker,
    engine: "training.Engine",
    held_out: "HeldOut | None",
    history: "training.History",
    total_steps: int,
) -> None:
    """Measure the loss of held-out rows, if that is due after the last step and not done yet."""
    step = history.step
    if held_out is None or history.is_measured or not held_out.is_due(step, total_steps):
        return
    worker.measuring()
    found = held_out.losses(
        engine, rank=worker.rank, num_ranks=worker.num_ranks, must_stop=worker.must_stop
    )
    if found is not None:
        history.held_out.append((step, found))
        worker.show_held_out(step, found)


def _resumed(state: State) -> "training.History":
    from s2l_ray.training import loop as training

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return training.History()
    with checkpoint.as_directory() as folder:
        state.load(Path(folder))
        return training.History.read(Path(folder))


def _save(history: "training.History", state: State, rank: int, *, wait: bool = False) -> None:
    """Pass the state to Ray Train, which stores it while training goes on, or before this returns.

    What is reported with it, Ray Train shows as metrics of the training.
    """
    checkpoint, mode = None, ray.train.CheckpointUploadMode
    if state.on_every_rank or rank == 0:
        folder = Path(tempfile.mkdtemp(prefix="s2l-state-"))
        with temporary_space(SafetensorError):
            state.save(folder)
            if rank == 0:
                history.write(folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(
        {
            "step": history.step,
            "loss_nats": history.loss_nats[-1],
            "num_tokens": history.num_tokens,
        },
        checkpoint=checkpoint,
        checkpoint_upload_mode=mode.SYNC if wait else mode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
