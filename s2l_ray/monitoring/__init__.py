"""Logs of a run, and trackers of experiments, which look on and change nothing."""

import contextlib
from collections.abc import Iterator, Sequence

from s2l_ray.config.tracking import TrackingConfig
from s2l_ray.monitoring import journal, trackers
from s2l_ray.storage.location import Location


@contextlib.contextmanager
def logged(
    run: Location, tracking: TrackingConfig | None, secrets: Sequence[str]
) -> Iterator[None]:
    """Keep the logs of `run`, and feed its trackers, inside the block.

    Args:
        run: the folder, which this process holds.
        tracking: the trackers; None for none.
        secrets: texts that are never written to the logs.
    """
    with journal.kept(run, secrets), trackers.fed(tracking, run):
        yield
