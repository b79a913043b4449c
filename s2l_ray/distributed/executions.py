"""Executions of Ray Data that end when their workers cannot do anything."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from s2l_ray.distributed import cluster_watch

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class _GiveUp(ExecutionCallback):
    """Raises, in whoever takes the results, the error with which the watch gives a step up."""

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        """Look at the watch; Ray Data calls this some ten times a second."""
        if (error := cluster_watch.given_up()) is not None:
            raise error


@contextlib.contextmanager
def given_up_by_watch() -> Iterator[None]:
    """Let executions inside the block end with the error of the watch, where there is one."""
    callbacks = DataContext.get_current().custom_execution_callback_classes
    callbacks.append(_GiveUp)
    try:
        yield
    finally:
        callbacks.remove(_GiveUp)
