"""A training whose workers wait at a step until one is taken away: it cannot end before."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from s2l_ray.training import ray_train

HELD_AT = 60


class Held(ray_train.Worker):
    """Waits for ever, in a training that was not interrupted yet, when it is at a step."""

    def show(self, start, history, num_tokens) -> None:
        super().show(start, history, num_tokens)
        if start == 0 and history.step == HELD_AT:
            threading.Event().wait()


def fit(started: Callable, loop: ray_train.Loop, *given: Any, **named: Any) -> dict[str, Any]:
    """`ray_train.fit`, which is `started`, with workers that wait."""
    return started(partial(_held, loop), *given, **named)


def _held(loop: ray_train.Loop, worker: ray_train.Worker, settings: dict[str, Any]):
    worker.__class__ = Held
    return loop(worker, settings)
