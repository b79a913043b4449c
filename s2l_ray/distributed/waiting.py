"""Waiting for room: a stage begins when the cluster can hold the fewest of its workers."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

from s2l_ray import events
from s2l_ray.config.resources import ResourcesConfig
from s2l_ray.distributed import autoscaler
from s2l_ray.distributed.resources import Workers, free, num_free, total
from s2l_ray.errors import ConfigError
from s2l_ray.progress import doing, duration

SECONDS_UNTIL_SAID = 10.0
SECONDS_PER_LOOK = 1.0

_limit_seconds = ContextVar("limit_seconds", default=ResourcesConfig().wait)


@contextlib.contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Let every stage inside the block wait so long for room."""
    token = _limit_seconds.set(seconds)
    try:
        yield
    finally:
        _limit_seconds.reset(token)


def for_room(wanted: Workers) -> None:
    """Return when there is room for the fewest of the workers `wanted`.

    Ray would wait for ever, and say nothing: an autoscaler may add what is missing, and others may
    leave. A placement group of the same size tells both of them what is asked for.

    Raises:
        ConfigError: there was no room in the time that `limited_to` allows.
    """
    if num_free(wanted) >= wanted.min:
        return
    from ray.util.placement_group import placement_group, remove_placement_group

    doing(f"waiting for room for {described(wanted)}")
    each = {kind: amount for kind, amount in wanted.asks.items() if amount}
    group = placement_group([each] * wanted.min, strategy="PACK")
    started, limit, said = time.monotonic(), _limit_seconds.get(), False
    try:
        while not group.wait(SECONDS_PER_LOOK):
            waited = time.monotonic() - started
            if waited >= limit:
                raise ConfigError(
                    f"{wanted.stage}: no room for {described(wanted)} in {duration(limit)} "
                    f"(resources.wait). {what_there_is()} Lower {wanted.stage}.workers or what "
                    "each of them takes, give the cluster nodes that have it, or raise "
                    "resources.wait; the same command goes on from here."
                )
            if not said and waited >= SECONDS_UNTIL_SAID:
                said = True
                text = (
                    f"  {wanted.stage}: waiting for room for {described(wanted)}, at most "
                    f"{duration(limit)} (resources.wait). {what_there_is()}"
                )
                events.tell("notice", text=text)
    finally:
        remove_placement_group(group)


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
