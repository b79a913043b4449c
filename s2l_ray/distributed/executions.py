"""Executions of Ray Data that end when their workers cannot do anything."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from s2l_ray.errors import UserError

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

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
