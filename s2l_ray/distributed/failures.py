"""Failures of workers, turned into an error for the user or into one that names a bug."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from s2l_ray.distributed import preconditions
from s2l_ray.errors import ConfigError, DataError, UnitError, UserError, one_line

MAX_ATTEMPTS = 3
"""Attempts at a piece of work before its failure is reported."""


class LostWorkerError(DataError):
    """An actor died, or what it had returned is gone.

    Attributes:
        with_node: whether Ray cannot reach it, which is so for a node that is lost.
    """

    def __init__(self, message: str, *, with_node: bool) -> None:
        super().__init__(message)
        self.with_node = with_node


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the machine or a device had too little memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    # The names are Python's, torch's for GPUs, and that of Ray's memory monitor. Torch's allocator
    # for CPUs raises a plain RuntimeError.
    return (
        bool(names & {"MemoryError", "OutOfMemoryError"})
        or getattr(error, "errno", None) == errno.ENOMEM
        or "can't allocate mem" in str(error)
    )


RAN_OUT = {
    "ObjectStoreFullError": (
        "Ray's object store, in shared memory, is full. Give it more (`ray start "
        "--object-store-memory`; in a container `--shm-size`), or run fewer workers on a machine."
    ),
    "OutOfDiskError": (
        "Ray's temporary folder, into which its object store spills, is on a full disk. Free some "
        "space there, or give Ray another folder (RAY_TMPDIR; `ray start --temp-dir`)."
    ),
    "OutOfMemoryError": (
        "the memory of a machine or GPU ran out. Run fewer workers on a machine, lower the batch "
        "sizes of the stage, or use machines with more memory."
    ),
}
"""Name of an error's class -> what has run out, and what to do; of Ray, but for GPUs of torch."""


def ran_out(error: BaseException) -> str | None:
    """Return what a machine of the cluster has run out of, if that is the cause of `error`."""
    seen: BaseException | None = error
    known: list[BaseException] = []
    while seen is not None and seen not in known:
        known.append(seen)
        names = {kind.__name__ for kind in type(seen).__mro__}
        if is_out_of_memory(seen):
            names |= {"OutOfMemoryError"}
        for name in names & RAN_OUT.keys():
            return f"{RAN_OUT[name]} ({one_line(seen)[:200]})"
        of_ray = getattr(seen, "cause", None)
        seen = of_ray if isinstance(of_ray, BaseException) else seen.__cause__
    return None


@contextlib.contextmanager
def ran_out_explained() -> Iterator[None]:
    """Raise an error that names what has run out, for whatever Ray raises then.

    Raises:
        DataError: that is the cause of an error inside the block, or an actor has died there.
    """
    from ray.exceptions import ActorDiedError

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if what := ran_out(error):
            raise DataError(f"{what} The same command then goes on from here.") from error
        if isinstance(error, ActorDiedError) and not error.actor_init_failed:
            raise death("a process of Ray", one_line(error)[:300]) from error
        raise


def death(who: str, said: str) -> DataError:
    """Return the error for processes that have died, and have not said why.

    Args:
        who: the processes, as a phrase.
        said: what Ray says of them.
    """
    return DataError(
        f"{who} died, {why_died()}. Free memory or disk space there, or run fewer workers on a "
        f"machine; the same command then goes on from here. ({said})"
    )


def why_died() -> str:
    """Return the likely cause why a process of Ray has died, as a phrase."""
    folder = temporary_folder()
    try:
        if folder is not None:
            preconditions.check_space(folder)
    except ConfigError:
        return f"most likely because Ray's temporary folder {folder} is full on this machine"
    return "most likely for want of memory, or of space in Ray's temporary folder on its node"


def temporary_folder() -> Path | None:
    """Return the temporary folder of the Ray of this machine; None without a Ray here."""
    from ray._private.worker import _global_node

    return None if _global_node is None else Path(_global_node.get_temp_dir_path())


@contextlib.contextmanager
def user_errors(who: str, advice: str) -> Iterator[None]:
    """Raise what Ray raises inside the block as an error of this program.

    Args:
        who: the actor, as the message names it.
        advice: what to do when memory ran out, the last sentence of that message.

    Raises:
        UserError: the actor raised it; it has the same type and message here.
        LostWorkerError: the actor died, or cannot be reached.
        DataError: it had too little memory.
        UnitError: the actor failed in another way; the message holds its traceback.
    """
    from ray.exceptions import (
        ActorUnavailableError,
        ObjectLostError,
        RayActorError,
        RayError,
        RayTaskError,
    )

    try:
        yield
    except RayError as error:
        # If an argument comes from another actor that failed, that failure is the cause as well.
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, UserError):
            raise cause from None
        if is_out_of_memory(cause):
            what = f"had too little memory ({one_line(cause)[:200]})"
            raise DataError(f"{who} {what}. {advice}") from error
        if isinstance(cause, ActorUnavailableError | ObjectLostError):
            what = f"was lost, most likely with its node ({one_line(cause)[:200]})"
            raise LostWorkerError(f"{who} {what}. {advice}", with_node=True) from error
        if isinstance(cause, RayActorError):
            what = f"died {MAX_ATTEMPTS} times, {why_died()}"
            raise LostWorkerError(f"{who} {what}. {advice}", with_node=False) from error
        if (shortage := ran_out(cause)) is not None:
            raise DataError(f"{who.removesuffix(',')}: {shortage}") from error
        raise UnitError(f"{who} failed with:\n{error}") from None
