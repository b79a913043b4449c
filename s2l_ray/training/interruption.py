"""Ctrl-C in a training: the workers finish the step under way, save it, and end.

Ray Train alone would end the workers at once, and all steps since the last saved state with them.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray._private import state
from ray.core.generated import gcs_pb2
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from s2l_ray import events, interrupts
from s2l_ray.background import running_thread
from s2l_ray.distributed.waiting import LostRoom
from s2l_ray.progress import Progress
from s2l_ray.training.board import MEASURING

SECONDS_TO_ANSWER = 30.0
"""Longest time without a sign of rank 0, once it is to save, until the training is given up."""
SECONDS_PER_LOOK = 0.5


class Stopped(Exception):
    """Raised on every rank once the state after `step` is saved, because the user wants to stop."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class InterruptibleTrainer(TorchTrainer):
    """Calls `on_interrupt` at Ctrl-C. If that returns False, Ray Train ends the workers.

    Ray Train shows its controller in the main thread alone: a training that another thread runs can
    be neither interrupted nor given up.
    """

    on_interrupt: Callable[[], bool] = staticmethod(lambda: False)
    _controller: Any = None

    def fit(self) -> ray.train.Result:
        """Train to the end; see `DataParallelTrainer.fit`."""
        try:
            return super().fit()
        except ray.exceptions.RayActorError:
            if self._controller is not None:
                _remove_placement_groups(self._controller)
            raise

    def _create_default_callbacks(self) -> list[Any]:
        """Return Ray Train's callbacks, without those that start a process for nothing.

        One would give out the shards of data sets: a training here has none. One would remove the
        placement groups of a controller that dies: `fit` does, unless another thread calls it.
        """
        unneeded: tuple[type, ...] = (DatasetsCallback,)
        if threading.current_thread() is threading.main_thread():
            unneeded += (PlacementGroupCleanerCallback,)
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, unneeded)]

    def give_up(self) -> None:
        """End a training of the main thread that waits for room; `fit` then raises RayActorError.

        It may be called in any thread. The controller hears no call while it waits, so it is
        killed.
        """
        if self._controller is not None:
            ray.kill(self._controller)
            _remove_placement_groups(self._controller)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Take the controller of a `fit` in the main thread, and set the handler of Ctrl-C."""
        self._controller = controller
        super()._register_sigint_handler(controller)
        end_workers = signal.getsignal(signal.SIGINT)
        assert callable(end_workers)

        def handle(number: int, frame: FrameType | None) -> None:
            if not self.on_interrupt():
                end_workers(number, frame)

        signal.signal(signal.SIGINT, handle)


def _remove_placement_groups(actor: Any) -> None:
    """Remove what an actor that is dead has asked for; until its job ends, Ray would go on asking.

    Which actor made a placement group, no public function says.
    """
    for record in state.state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(record)
        if group.creator_actor_id == actor._actor_id.binary():
            identity = ray.PlacementGroupID(group.placement_group_id)
            remove_placement_group(PlacementGroup(identity))


@dataclass
class _Interruption:
    """Asks the workers to save and to end, once, and gives them up if they do not answer.

    After the last step they only write the result: the process ends when the stage is finished.

    Attributes:
        board: where rank 0 sees that it is to stop.
        progress: of the training.
        total_steps: of the training.
        room: of the training.
        asked: when they were asked, or were last heard of since; None before.
    """

    board: Any
    progress: Progress
    total_steps: int
    room: LostRoom
    asked: float | None = None

    def begin(self) -> bool:
        """Return True if the workers end by themselves, and lose no step.

        Raises:
            KeyboardInterrupt: the training waited for room; it is given up.
        """
        if self.room.leave():
            raise KeyboardInterrupt
        step = self.progress.reached
        if self.asked is not None or step is None:
            return False
        interrupts.takes_time.set()
        self.asked = time.monotonic()
        self.board.stop.remote()
        self.progress.is_to_stop = True
        # Which one that is, this process learns later: steps are done faster than it looks at them.
        text = "stopping when the step under way is saved"
        if step >= self.total_steps and self.progress.state().doing != MEASURING:
            text = "stopping when the result of the training is written"
        events.tell("notice", text=f"{text} (Ctrl-C again: stop at once, without saving)")
        self.progress.doing(text)
        return True

    def keep(self, stop: threading.Event) -> None:
        """Interrupt the main thread again if rank 0 is silent for too long after `begin`."""
        while not stop.wait(SECONDS_PER_LOOK):
            if self.asked is None:
                continue
            if self.progress.reached is not None:
                self.asked = time.monotonic()
            elif time.monotonic() - self.asked > SECONDS_TO_ANSWER:
                text = (
                    "the workers do not answer: stopping without saving. The steps since the last "
                    "saved state (resume_every) are lost."
                )
                events.tell("notice", text=text)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return


@contextlib.contextmanager
def interruptible(
    trainer: InterruptibleTrainer,
    board: Any,
    progress: Progress,
    total_steps: int,
    room: LostRoom,
) -> Iterator[None]:
    """Save at Ctrl-C inside the block; raise KeyboardInterrupt when it ends the training.

    Ray Train would exit with 0.
    """
    before = signal.getsignal(signal.SIGINT)
    interruption = _Interruption(board, progress, total_steps, room)
    trainer.on_interrupt = interruption.begin  # type: ignore[method-assign]
    try:
        with running_thread(interruption.keep):
            yield
    except SystemExit as ended:
        interrupts.takes_time.clear()
        if ended.code:
            raise
        raise KeyboardInterrupt from None
    except BaseException:
        interrupts.takes_time.clear()
        raise
    finally:
        # Ray Train leaves its own handler behind; it sets none outside the main thread.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
