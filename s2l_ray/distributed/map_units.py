"""Units of work, done by an autoscaling pool of actors and tried again when they fail."""

import contextlib
import functools
import gc
import json
import socket
import threading
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from s2l_ray import events
from s2l_ray.distributed import processes, resources, shared_paths, threads, waiting
from s2l_ray.distributed.failures import MAX_ATTEMPTS, is_out_of_memory, ran_out
from s2l_ray.distributed.session import worker_environment
from s2l_ray.errors import (
    ConfigError,
    DataError,
    StorageError,
    UnitError,
    UserError,
    as_message,
    from_message,
    one_line,
)
from s2l_ray.storage.location import Location

BUSY_SHARE_TO_GROW = 0.25
"""While units wait, a pool grows as long as this share of its workers, started or not, is busy: to
four times the busy ones."""


def map_units(
    worker: type,
    units: Sequence[Mapping[str, Any]],
    wanted: resources.Workers,
    attempts: Location,
    **constructor: Any,
) -> Generator[dict[str, Any], None, None]:
    """Yield `worker(**constructor)(unit)` for every unit, in the order in which they finish.

    The units, small descriptions of work, are the dataset. Each worker reads and writes its own
    parts. So nothing depends on block sizes, and no reader competes with the pool for cores.
    A unit that fails is tried again. A unit whose worker dies is given to another worker. Ray would
    repeat that for ever, so attempts are counted by files in the folder `attempts`.
    Workers that are threads of this process, or processes beside it, need no Ray; their units are
    tried again as well.
    A caller that stops before the last result closes the generator, so that no more is begun.

    Args:
        worker: a class; each actor makes one object of it, at its first unit.
        units: JSON values; so are the results.
        wanted: the actors, and the advice for a message that memory ran out.
        attempts: a folder for the counts, which is empty again when all units are done.
        constructor: keyword arguments of `worker`.

    Raises:
        ConfigError: the cluster has no room for a worker, and got none in time.
        UserError: the worker raised it; it has the same type and message here. It is not tried
            again unless it is a StorageError.
        DataError: in MAX_ATTEMPTS attempts the worker died or had too little memory.
        UnitError: a unit failed MAX_ATTEMPTS times in another way.
    """
    if not units:
        return
    counts = attempts / uuid.uuid4().hex
    if counts.is_local:
        (counts / SHARED).write_bytes(b"")
    rows = [{"number": number, "unit": json.dumps(unit)} for number, unit in enumerate(units)]
    runner = {"worker": worker, "constructor": constructor, "wanted": wanted, "attempts": counts}
    beside = processes.finished if wanted.preload else threads.finished
    run = beside if wanted.here else _on_ray
    for row in run(UnitRunner, rows, wanted, runner):
        if row["error"]:
            raise from_message(row)
        if row["attempts"] > 1:
            unit, cause = units[row["number"]], row["message"] or "its worker died"
            told = {"unit": json.dumps(unit)[:100], "attempts": row["attempts"]}
            events.tell("retried", stage=wanted.stage, error=cause[:500], **told)
        yield json.loads(row["result"])
    counts.remove()


def _on_ray(
    runner: type,
    rows: Sequence[dict[str, Any]],
    wanted: resources.Workers,
    constructor: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield `runner(**constructor)(row)` for every row, done by a pool of actors."""
    import ray.data

    waiting.for_room(replace(wanted, min=1))  # one of them does all the work, if later
    dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    scaling = dataset.context.autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = BUSY_SHARE_TO_GROW
    scaling.actor_pool_util_downscaling_threshold = 0.0
    results = dataset.map(
        runner,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(wanted.min, len(rows)),
            max_size=min(wanted.max, len(rows)),
            # A unit queued behind another one would wait while other workers are idle.
            max_tasks_in_flight_per_actor=1,
        ),
        fn_constructor_kwargs=dict(constructor),
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus or None,
        runtime_env=worker_environment(cpus=wanted.cpus, gpus=wanted.gpus),
    )
    yield from results.iter_rows()


DONE = "done"
"""The name of a file beside the attempts at a unit that succeeded: Ray does a unit again if its
result is lost with a node, and earlier attempts then no longer count."""
SHARED = "shared"
"""The name of a file that a worker sees if its node shares the folder of the run."""
_MAKING = threading.Lock()
"""Held while a worker is made: threads that import one library at once may see half of it."""


class UnitRunner:
    """Adapts a worker of one unit to Ray Data's rows.

    The worker is made at the first unit. If it were made in this constructor and failed, Ray would
    restart the actor for ever and lose the error.
    """

    def __init__(
        self,
        worker: type,
        constructor: dict[str, Any],
        wanted: resources.Workers,
        attempts: Location,
    ) -> None:
        self._make = functools.partial(worker, **constructor)
        self._stage, self._advice, self._attempts = wanted.stage, wanted.advice, attempts
        self._worker: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._shares_run = self._has_made_one = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number, unit = row["number"], row["unit"]
        begun = self._attempts / str(number)
        failure: dict[str, Any] | None = None
        for _ in range(MAX_ATTEMPTS):
            attempt = None
            try:
                self._check_shared()
                before = begun.names()
                if len(before) >= MAX_ATTEMPTS and DONE not in before:
                    return self._given_up([begun / name for name in before], unit)
                attempt = begun / f"{len(before)}-{uuid.uuid4().hex}"
                attempt.write_bytes(b"")
                self._worker = self._worker or self._made()
                result = json.dumps(self._worker(json.loads(unit)))
                (begun / DONE).write_bytes(b"")
                message = failure["message"] if failure is not None else ""
                row = {"error": "", "message": message, "result": result}
                return {**row, "attempts": len(before) + 1, "number": number}
            except UserError as error:
                failure = _as_row(error)
                # An object store that fails once is no reason to end a run.
                if not isinstance(error, StorageError):
                    return failure
            except Exception as error:
                failure = self._failed(error, unit)
                # So that what the worker holds is freed, such as memory of a device.
                self._worker = None
            if attempt is not None:
                with contextlib.suppress(StorageError):
                    attempt.write_json(failure)
        assert failure is not None
        return failure

    def _made(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return a new worker, whose libraries the garbage collector no longer searches.

        They are some million objects, which would be visited again for every few thousand rows: a
        sixth of the time of tokenising. A worker that failed is freed before the next one is made.
        """
        with _MAKING:
            if self._has_made_one:
                gc.unfreeze()
                gc.collect()
            self._has_made_one = True
            worker: Callable[[dict[str, Any]], dict[str, Any]] = self._make()
            gc.freeze()
        return worker

    def _check_shared(self) -> None:
        """Refuse a node that does not share the run: it may have joined since the run began."""
        if self._shares_run or not self._attempts.is_local:
            return
        if not (self._attempts / SHARED).is_file():
            folder = str(self._attempts.parent)
            raise ConfigError(shared_paths.unshared("run_dir", folder, [socket.gethostname()]))
        self._shares_run = True

    def _given_up(self, attempts: Sequence[Location], unit: str) -> dict[str, Any]:
        """Return the failure that the last of earlier attempts recorded.

        An attempt whose worker died recorded nothing. If all of them did, that is the failure.
        """
        recorded = [content for attempt in attempts if (content := attempt.read_bytes())]
        if recorded:
            last: dict[str, Any] = json.loads(recorded[-1])
            return last
        return _as_row(
            DataError(
                f"{self._stage}: the worker died {len(attempts)} times in unit {unit[:100]}, most "
                f"likely for want of memory. {self._advice}"
            )
        )

    def _failed(self, error: Exception, unit: str) -> dict[str, Any]:
        if is_out_of_memory(error):
            cause = f"the memory did not suffice for unit {unit[:100]} ({one_line(error)[:200]})"
            return _as_row(DataError(f"{self._stage}: {cause}. {self._advice}"))
        if (shortage := ran_out(error)) is not None:
            return _as_row(DataError(f"{self._stage}: unit {unit[:100]}: {shortage}"))
        trace = "".join(traceback.format_exception(error))
        cause = f"failed in {MAX_ATTEMPTS} attempts, the last time with:\n{trace}"
        return _as_row(UnitError(f"{self._stage}: unit {unit[:100]} {cause}"))


def _as_row(error: UserError | UnitError) -> dict[str, Any]:
    return {**as_message(error), "result": "", "attempts": 0, "number": 0}
