"""The cluster and the environment: the one module that reads environment variables.

Opens Ray, and maps units of work over an autoscaling pool of actors.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from s2l_ray import errors
from s2l_ray.distributed import resources
from s2l_ray.errors import ConfigError, DataError, StorageError, UnitError, UserError
from s2l_ray.storage.location import Location

MAX_ATTEMPTS = 3
ADVICE_ON_MEMORY = {
    "data": "Lower data.rows_per_part, or use machines with more memory for each CPU.",
    "trajectories": "Lower trajectories.tokens_per_batch, or give each worker more memory.",
    "clusters": "Raise clusters.workers, on a cluster with more machines, or use larger ones.",
    "evaluation": "Lower evaluation.rows_per_batch, or give each worker more memory.",
}
BUSY_SHARE_TO_GROW = 0.25
"""Of a pool's workers, started or not; while units wait, it grows to four times those at work."""
CONNECT_SECONDS = 10.0
# As many threads as configured, on whatever machine: sums depend on it in the last bits.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def joins_cluster(address: str | None) -> bool:
    """Whether the program will join a running cluster, rather than start Ray on this machine."""
    return address is not None or bool(os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray is connected inside the block; a cluster that was joined is left running after it.

    Raises:
        ConfigError: there is no cluster at `address`.
    """
    import ray  # takes a second, which a command that finds nothing to do should not spend

    joined = joins_cluster(address)
    if joined:
        _check_answers(address or os.environ["RAY_ADDRESS"])
    # Ray's C++ core prints internal notes to the terminal at any level below this one.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Train takes in one saved state per look at its workers; every 2 s delays its end.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    try:
        with _native_output_held():
            ray.init(
                # "local": another Ray on this machine is none of ours unless we are told so.
                address=address if joined else "local",
                include_dashboard=None if joined else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not joined:
            raise
        place = address or "RAY_ADDRESS"
        raise ConfigError(f"no Ray cluster answers at {place}: {one_line(error)}") from None
    _quieten_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse HOST:PORT where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}. Check --address or RAY_ADDRESS, or "
            "leave both out to start Ray here."
        ) from None


@contextlib.contextmanager
def _native_output_held() -> Iterator[None]:
    """Standard error of C++ code inside the block is shown only when the block fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _quieten_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def worker_environment(*, cpus: float, gpus: float) -> dict[str, Any]:
    """The runtime environment of a worker that computes on `cpus` threads and `gpus` GPUs."""
    variables = {name: str(max(int(cpus), 1)) for name in THREAD_VARIABLES}
    if gpus == 0:
        # Ray hides none of a node's GPUs from it, and DeepSpeed would compute on one.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {"env_vars": variables}


def map_units(
    worker: type,
    units: Sequence[Mapping[str, Any]],
    wanted: resources.Workers,
    attempts: Location,
    **constructor: Any,
) -> Iterator[dict[str, Any]]:
    """Yield `worker(**constructor)(unit)` for every unit, in the order in which they finish.

    The units, small descriptions of work, are the dataset: each worker reads and writes its own
    parts, so nothing depends on block sizes, and no reader competes with the pool for cores.
    Units and results are JSON values. A unit that fails is tried again, and one whose worker dies
    is given to another; Ray would do so for ever, so attempts are counted in the folder `attempts`.

    Raises:
        UserError: as a worker raised it (Ray's own wrapping loses the type, so it comes as data);
            that is not tried again, but for a StorageError.
        DataError: MAX_ATTEMPTS times, a unit's worker died or had too little memory.
        UnitError: MAX_ATTEMPTS times, a unit failed in another way.
    """
    import ray.data

    if not units:
        return
    dataset = ray.data.from_items(
        [{"number": number, "unit": json.dumps(unit)} for number, unit in enumerate(units)],
        override_num_blocks=len(units),
    )
    scaling = dataset.context.autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = BUSY_SHARE_TO_GROW
    scaling.actor_pool_util_downscaling_threshold = 0.0
    results = dataset.map(
        _OneUnit,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(wanted.min, len(units)),
            max_size=min(wanted.max, len(units)),
            # A unit that waits behind another one would wait while other workers have nothing.
            max_tasks_in_flight_per_actor=1,
        ),
        fn_constructor_kwargs={
            "worker": worker,
            "constructor": constructor,
            "stage": wanted.stage,
            "attempts": attempts / uuid.uuid4().hex,
        },
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus or None,
        runtime_env=worker_environment(cpus=wanted.cpus, gpus=wanted.gpus),
    )
    for row in results.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"])(row["result"])
        yield json.loads(row["result"])


class _OneUnit:
    """Adapts a worker of one unit to Ray Data's rows; makes it at its first unit.

    An actor whose constructor fails is started again for ever, and its error is lost.
    """

    def __init__(
        self, worker: type, constructor: dict[str, Any], stage: str, attempts: Location
    ) -> None:
        self._make = functools.partial(worker, **constructor)
        self._stage, self._attempts = stage, attempts
        self._worker: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        begun, unit = self._attempts / str(row["number"]), row["unit"]
        failure: dict[str, str] | None = None
        for _ in range(MAX_ATTEMPTS):
            attempt = None
            try:
                before = begun.names()
                if len(before) >= MAX_ATTEMPTS:
                    return self._given_up([begun / name for name in before], unit)
                attempt = begun / f"{len(before)}-{uuid.uuid4().hex}"
                attempt.write_bytes(b"")
                self._worker = self._worker or self._make()
                result = json.dumps(self._worker(json.loads(unit)))
                begun.remove()
                return {"error": "", "result": result}
            except UserError as error:
                failure = _as_row(error)
                # An object store that fails once is no reason to end a run.
                if not isinstance(error, StorageError):
                    return failure
            except Exception as error:
                failure = self._failed(error, unit)
                # Whatever it holds, such as memory of a device, goes with it.
                self._worker = None
            if attempt is not None:
                with contextlib.suppress(StorageError):
                    attempt.write_json(failure)
        assert failure is not None
        return failure

    def _given_up(self, attempts: Sequence[Location], unit: str) -> dict[str, str]:
        """What earlier attempts say of themselves; those that a worker did not survive are mute."""
        said = [content for attempt in attempts if (content := attempt.read_bytes())]
        if said:
            last: dict[str, str] = json.loads(said[-1])
            return last
        return _as_row(
            DataError(
                f"{self._stage}: the worker died {len(attempts)} times in unit {unit[:100]}, most "
                f"likely for want of memory. {ADVICE_ON_MEMORY[self._stage]}"
            )
        )

    def _failed(self, error: Exception, unit: str) -> dict[str, str]:
        if is_out_of_memory(error):
            cause = f"the memory did not suffice for unit {unit[:100]} ({one_line(error)[:200]})"
            return _as_row(DataError(f"{self._stage}: {cause}. {ADVICE_ON_MEMORY[self._stage]}"))
        trace = "".join(traceback.format_exception(error))
        cause = f"failed in {MAX_ATTEMPTS} attempts, the last time with:\n{trace}"
        return _as_row(UnitError(f"{self._stage}: unit {unit[:100]} {cause}"))


def _as_row(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "result": str(error)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a device had too little memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    # Python's, torch's for GPUs, and that of Ray's monitor; torch's allocator for CPUs raises a
    # plain RuntimeError.
    return (
        bool(names & {"MemoryError", "OutOfMemoryError"})
        or getattr(error, "errno", None) == errno.ENOMEM
        or "can't allocate mem" in str(error)
    )


@contextlib.contextmanager
def user_errors(who: str, stage: str) -> Iterator[None]:
    """Raise the UserError of an actor's method as it was, and say of other failures whose they are.

    Raises:
        DataError: the actor died, or had too little memory.
        UnitError: it failed in another way; the message holds its traceback.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        yield
    except RayError as error:
        # What an actor was given by another one that failed comes as the cause, too.
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, UserError):
            raise cause from None
        if is_out_of_memory(cause):
            what = f"had too little memory ({one_line(cause)[:200]})"
        elif isinstance(cause, RayActorError):
            what = f"died {MAX_ATTEMPTS} times, most likely for want of memory"
        else:
            raise UnitError(f"{who} failed with:\n{error}") from None
        raise DataError(f"{who} {what}. {ADVICE_ON_MEMORY[stage]}") from error


def one_line(error: BaseException) -> str:
    """What `error` says, without line breaks."""
    return " ".join(str(error).split())
