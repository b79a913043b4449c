"""Trainings whose workers wait at a step: they cannot end before a test has done its part."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from s2l_ray.training import ray_train

HELD_AT = 60


class Held(ray_train.Worker):
    """Waits for ever, in a training that was not interrupted yet, when it is at a step."""

    def begin(self, start) -> None:
        super().begin(start)
        self.is_new = start == 0

    def show(self, report) -> None:
        super().show(report)
        if self.is_new and report.step == HELD_AT:
            self.wait()

    def wait(self) -> None:
        threading.Event().wait()


class HeldUntilStopped(Held):
    """Waits at the step until the driver asks rank 0 to stop."""

    def wait(self) -> None:
        if self._board is not None:
            self._board._stop.wait()


def fit(
    started: Callable, loop: ray_train.Loop, *given: Any, kind: type = Held, **named: Any
) -> dict[str, Any]:
    """`ray_train.fit`, which is `started`, with workers that wait."""
    return started(partial(_held, kind, loop), *given, **named)


def _held(kind: type, loop: ray_train.Loop, worker: ray_train.Worker, settings: dict[str, Any]):
    worker.__class__ = kind
    return loop(worker, settings)
