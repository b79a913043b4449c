"""Executions of Ray Data that end when their workers cannot do anything."""

import contextlib
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from s2l_ray.errors import UserError

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

SECONDS_TO_END = 2.0
_begun: "weakref.WeakSet[StreamingExecutor]" = weakref.WeakSet()


class _Note(ExecutionCallback):
    """Notes executions that begin."""

    def before_execution_starts(self, executor: "StreamingExecutor") -> None:
        """Note one that has all it needs to begin."""
        _begun.add(executor)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note executions that begin inside the block, for `give_up`."""
    callbacks = DataContext.get_current().custom_execution_callback_classes
    callbacks.append(_Note)
    try:
        yield
    finally:
        callbacks.remove(_Note)


def give_up(error: UserError) -> None:
    """Raise `error` in whoever takes the results of executions; call it from any thread.

    Their own loop cannot be asked: it may hang in a call to an actor of Ray Data, which dies as
    often as the workers do.
    """
    for executor in list(_begun):
        _, output = executor._output_node
        output.mark_finished(error)


def hang() -> bool:
    """Return True if an execution goes on even SECONDS_TO_END after nobody waits for it any more.

    Its loop is then in a call to an actor that Ray tries to reach for ever. If this process left
    Ray now, the loop's next call would end the process, with exit code 1 and without a word.
    """
    deadline = time.monotonic() + SECONDS_TO_END
    for executor in list(_begun):
        if executor.is_alive():
            executor.join(max(0.0, deadline - time.monotonic()))
    return any(executor.is_alive() for executor in _begun)
