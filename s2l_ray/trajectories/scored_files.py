"""The files of parts that are being scored, and what a pass leaves beside losses.

Shapes: N examples of a part, T checkpoints.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import (
    EMBEDDINGS,
    NORMS,
    embedding_table,
    norm_table,
    part_name,
    trajectory_table,
)
from s2l_ray.models.checkpoints import DTYPES
from s2l_ray.storage.location import Location

UNITS = "units"
TABLES: Mapping[str, Callable[[pa.ChunkedArray, np.ndarray], pa.Table]] = {
    EMBEDDINGS: embedding_table,
    NORMS: norm_table,
}
"""What one checkpoint's pass may leave of each example, by the beginning of its files' names."""


class ScoredFiles:
    """Where losses of one precision lie, until all checkpoints have theirs and after.

    Args:
        folder: of the stage.
        steps: of the checkpoints.
    """

    def __init__(self, folder: Location, steps: Sequence[int], precision: str) -> None:
        self.folder, self.units = folder, folder / UNITS
        self.steps, self.precision = steps, precision

    def has_losses(self, part: int, index: int) -> bool:
        return self._losses(part, index).exists()

    def write(
        self,
        part: int,
        index: int,
        example_ids: pa.ChunkedArray,
        loss_N: np.ndarray,
        others: Mapping[str, np.ndarray],
    ) -> None:
        """What the checkpoint `index` has found of a part."""
        for name, value_N in others.items():
            # Losses of another precision would lie beside what is not of their pass; and these
            # come last: where they are, the rest is there of the same precision, too.
            for other in DTYPES.keys() - {self.precision}:
                self._losses(part, index, other).remove()
            file = self.folder / part_name(part, name)
            file.write_table(TABLES[name](example_ids, value_N))
        self._losses(part, index).write_npy(loss_N)

    def read_losses(self, part: int, index: int) -> np.ndarray:
        return self._losses(part, index).read_npy()

    def join_if_complete(self, part: int, table: pa.Table) -> None:
        """Write the final part once all its checkpoints are there.

        Two workers that finish a part's last two checkpoints at the same moment both see it
        complete and write the same file.
        """
        indices = range(len(self.steps))
        if not all(self.has_losses(part, index) for index in indices):
            return
        losses = [self.read_losses(part, index) for index in indices]
        loss_NT = np.stack(losses, axis=1) if table.num_rows else np.empty((0, len(losses)))
        (self.folder / part_name(part)).write_table(
            trajectory_table(table["example_id"], table["stratum"], loss_NT)
        )

    def note(self, text: str) -> None:
        """Leave it for the stage to say, once, whichever worker found it out and when."""
        (self.units / f"note-{zlib.crc32(text.encode()):08x}.txt").write_bytes(text.encode())

    def _losses(self, part: int, index: int, precision: str = "") -> Location:
        # Workers that compute in another precision never take up each other's losses.
        name = f"losses-{part:06d}-{self.steps[index]:09d}-{precision or self.precision}.npy"
        return self.units / name
