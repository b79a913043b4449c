"""What the stage asks of its workers, wherever they are."""

from collections.abc import Sequence
from typing import Any, Protocol


class Fleet(Protocol):
    """Workers that each hold a share of the parts: `RayFleet` or `ThreadFleet`."""

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Return what `method` returns on every worker."""

    def shuffle(
        self, names: Sequence[str], mapper: str, reducer: str, *arguments: Any
    ) -> dict[str, Any]:
        """Map on all workers, and reduce each name on one of them."""
