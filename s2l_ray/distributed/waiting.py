"""Waiting for room: a stage begins when the cluster can hold the fewest of its workers.

A training whose workers were lost with their nodes waits for room again.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from s2l_ray import events
from s2l_ray.config.resources import ResourcesConfig
from s2l_ray.distributed import autoscaler, cluster_watch
from s2l_ray.distributed.resources import Workers, free, num_free, total
from s2l_ray.errors import ConfigError, UserError
from s2l_ray.progress import doing, duration

SECONDS_UNTIL_SAID = 10.0
SECONDS_PER_LOOK = 1.0
SECONDS_OF_GRACE = 10.0
"""Time for workers that start or end, which for a moment have neither room nor names, and are not
waited for."""

_limit_seconds = ContextVar("limit_seconds", default=ResourcesConfig().wait)


@contextlib.contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Let every stage inside the block wait so long for room."""
    token = _limit_seconds.set(seconds)
    try:
        yield
    finally:
        _limit_seconds.reset(token)


def for_room(wanted: Workers) -> float:
    """Wait for room for the fewest of the workers `wanted`; return the seconds that it took.

    Ray would wait for ever, and say nothing: an autoscaler may add what is missing, and others may
    leave. A placement group of the same size tells both of them what is asked for.

    Raises:
        ConfigError: there was no room in the time that `limited_to` allows.
    """
    if num_free(wanted) >= wanted.min:
        return 0.0
    from ray.util.placement_group import placement_group, remove_placement_group

    doing(f"waiting for room for {described(wanted)}")
    each = {kind: amount for kind, amount in wanted.asks.items() if amount}
    group = placement_group([each] * wanted.min, strategy="PACK")
    wait = _Wait(wanted, _limit_seconds.get(), _to_begin(wanted))
    try:
        while not group.wait(SECONDS_PER_LOOK):
            wait.look()
    finally:
        remove_placement_group(group)
    return time.monotonic() - wait.started


def _to_begin(wanted: Workers) -> str:
    return (
        f"Lower {wanted.stage}.workers or what each of them takes, give the cluster nodes that "
        "have it, or raise resources.wait; the same command goes on from here."
    )


def _to_go_on(wanted: Workers) -> str:
    return (
        "Its workers were lost. Give the cluster nodes that have it, or raise resources.wait: the "
        "same command goes on from the last saved state. With another number of "
        f"{wanted.stage}.workers it begins anew."
    )


@dataclass
class _Wait:
    """A wait that is said when it gets long, and that does not last for ever.

    Attributes:
        wanted: the workers that there is no room for.
        limit_seconds: the longest that it may last.
        advice: what to do then.
        started: the moment from which it counts.
    """

    wanted: Workers
    limit_seconds: float
    advice: str
    started: float = field(default_factory=time.monotonic)
    is_said: bool = False

    def look(self) -> None:
        """Say what is waited for, once, if that takes long.

        Raises:
            ConfigError: it has taken as long as it may.
        """
        waited, stage = time.monotonic() - self.started, self.wanted.stage
        limit = duration(self.limit_seconds)
        if waited >= self.limit_seconds:
            raise ConfigError(
                f"{stage}: no room for {described(self.wanted)} in {limit} (resources.wait). "
                f"{what_there_is()} {self.advice}"
            )
        if not self.is_said and waited >= SECONDS_UNTIL_SAID:
            self.is_said = True
            text = (
                f"  {stage}: waiting for room for {described(self.wanted)}, at most {limit} "
                f"(resources.wait). {what_there_is()}"
            )
            events.tell("notice", text=text)


class LostRoom:
    """The room of a training, which it may lose with nodes while it runs.

    Ray Train starts the workers again as soon as there is room, and else waits for ever and says
    nothing. It starts none before there is room for all of them.

    Attributes:
        error: why the training was given up; None if it was not.
    """

    def __init__(
        self, wanted: Workers, give_up: Callable[[], None], *, waited: float = 0.0
    ) -> None:
        """Take what the training needs to be given up.

        Args:
            wanted: its workers.
            give_up: ends it from any thread.
            waited: the seconds for which there was no room for its first workers.
        """
        self.error: UserError | None = None
        self._wanted, self._give_up = wanted, give_up
        self._advice, self._waited = _to_begin(wanted), waited
        self._limit_seconds = _limit_seconds.get()  # other threads have the default
        self._wait: _Wait | None = None

    def regained(self) -> None:
        """Note that workers are at work, so that the next wait begins anew."""
        self._advice, self._waited = _to_go_on(self._wanted), 0.0
        self._wait = None

    def leave(self) -> bool:
        """Give the training up if it waits for room, and tell whether it did."""
        if self._wait is None:
            return False
        self._give_up()
        return True

    def look(self) -> str:
        """Return what a training without workers waits for, where that is room; "" where it is not.

        The training is given up when it has waited as long as `limited_to` allows, or when the
        watch has given its workers up.
        """
        wanted = self._wanted
        self.error = self.error or cluster_watch.given_up()
        if self.error is not None:
            self._give_up()  # again, if there was nothing yet that could be ended
        elif self._is_there():
            self._wait = None
            return ""
        if self._wait is None:
            counts_from = time.monotonic() + SECONDS_OF_GRACE - self._waited
            self._wait = _Wait(wanted, self._limit_seconds, self._advice, counts_from)
        if self.error is None:
            try:
                self._wait.look()
            except ConfigError as error:
                self.error = error
                self._give_up()
        return f"waiting for room for {described(wanted)}"

    def _is_there(self) -> bool:
        started = cluster_watch.workers(cluster_watch.OF_TRAININGS)
        return bool(started) or num_free(self._wanted) >= self._wanted.min


def described(wanted: Workers) -> str:
    """Return the fewest of the workers, and what each of them takes, as a phrase."""
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.asks.items() if amount)
    return f"{wanted.min} worker{'s' if wanted.min > 1 else ''} of {each}"


def what_there_is() -> str:
    """Return sentences on what the cluster has, what is free, and what its autoscaler does."""
    has, left = total(), free()
    kinds = ", ".join(
        f"{has.get(kind, 0):g} {kind} ({left.get(kind, 0):g} free)" for kind in ("CPU", "GPU")
    )
    managed = autoscaler.report()
    return f"The cluster has {kinds}. {managed or 'Nothing adds nodes to it.'}"
