"""Events of this process, such as the begin and end of a stage, told to whoever listens.

Displays, the logs of a run, trackers and Ray's metrics listen. What happens is told once, where it
happens, and that place knows none of them.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

Event = dict[str, Any]
"""What happened (`event`), when (`time`, in UTC), and further values of JSON."""
Listener = Callable[[Event], None]

_listeners: list[Listener] = []


def tell(event: str, **values: Any) -> None:
    """Tell every listener, in this thread, that something happened."""
    told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
    for listener in tuple(_listeners):
        listener(told)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell `listener` all events inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
