"""A clock that stands still."""


class Clock:
    """The time that a test says it is."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now
