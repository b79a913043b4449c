"""Files of the stage: losses by part and checkpoint, the final parts, and notes.

Shapes: N examples of a part, T checkpoints.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS
from s2l_ray.artifacts.tables import (
    WITHOUT_PROMPT,
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
"""Results of one checkpoint's pass other than losses, by their folder next to that of the stage."""


class ScoredFiles:
    """Writes and reads the files of losses that were computed in one precision.

    They stay in the folder `units` after the final parts are written.

    Args:
        folder: the folder of the stage.
        steps: the optimizer steps of the checkpoints.
        without_prompt: whether the results of the last checkpoint hold WITHOUT_PROMPT.
    """

    def __init__(
        self,
        folder: Location,
        steps: Sequence[int],
        precision: str,
        *,
        without_prompt: bool = False,
    ) -> None:
        self.folder, self.units = folder, folder / UNITS
        self.steps, self.precision, self.without_prompt = steps, precision, without_prompt

    def has_losses(self, part: int, index: int) -> bool:
        """Return True if the losses of a part at the checkpoint `index` are written."""
        return self._losses(part, index).is_file()

    def write(
        self,
        part: int,
        index: int,
        example_ids: pa.ChunkedArray,
        loss_N: np.ndarray,
        others: Mapping[str, np.ndarray],
    ) -> None:
        """Write the results of a part at the checkpoint `index`, losses last.

        Args:
            loss_N: float32 (N,), nats per token.
            others: results of N examples by their name in `TABLES`, and perhaps WITHOUT_PROMPT.
        """
        if WITHOUT_PROMPT in others:
            self._without_prompt(part).write_npy(others[WITHOUT_PROMPT])
        for name in others.keys() & TABLES.keys():
            # Losses in other precisions are removed: these results are not of their pass. Losses
            # come last, so if they exist, the other results exist in the same precision.
            for other in DTYPES.keys() - {self.precision}:
                self._losses(part, index, other).remove()
            file = self.folder.parent / name / part_name(part, name)
            file.write_table(TABLES[name](example_ids, others[name]))
        self._losses(part, index).write_npy(loss_N)

    def read_losses(self, part: int, index: int) -> np.ndarray:
        """Return float32 (N,), the losses of a part at the checkpoint `index`."""
        return self._losses(part, index).read_npy()

    def join_if_complete(self, part: int, table: pa.Table) -> None:
        """Write the final part if the losses of all its checkpoints are there.

        Two workers that finish a part's last two checkpoints at the same moment both see it
        complete and write the same file.
        """
        indices = range(len(self.steps))
        if not all(self.has_losses(part, index) for index in indices):
            return
        losses = [self.read_losses(part, index) for index in indices]
        loss_NT = np.stack(losses, axis=1) if table.num_rows else np.empty((0, len(losses)))
        without_N = None
        if self.without_prompt:
            without_N = (
                self._without_prompt(part).read_npy() if table.num_rows else np.empty(0, np.float32)
            )
        (self.folder / part_name(part)).write_table(
            trajectory_table(table["example_id"], table["stratum"], loss_NT, without_N)
        )

    def note(self, text: str) -> None:
        """Leave a note that the stage reports once, even if several workers leave it."""
        (self.units / f"note-{zlib.crc32(text.encode()):08x}.txt").write_bytes(text.encode())

    def _without_prompt(self, part: int) -> Location:
        return self.units / f"without-prompt-{part:06d}-{self.precision}.npy"

    def _losses(self, part: int, index: int, precision: str = "") -> Location:
        # The precision is in the name: no worker reads losses of another precision.
        name = f"losses-{part:06d}-{self.steps[index]:09d}-{precision or self.precision}.npy"
        return self.units / name
