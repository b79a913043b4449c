"""The files of parts that are being scored, and what a pass leaves beside losses.

Shapes: N examples of a part, T checkpoints.
"""

import io
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from s2l_ray.artifacts.manifest import (
    EMBEDDINGS,
    NORMS,
    embedding_table,
    norm_table,
    part_name,
    trajectory_table,
)
from s2l_ray.models import embeddings
from s2l_ray.models.checkpoints import DTYPES
from s2l_ray.models.transfer import sent
from s2l_ray.storage.location import Location

UNITS = "units"
TABLES: Mapping[str, Callable[[pa.ChunkedArray, np.ndarray], pa.Table]] = {
    EMBEDDINGS: embedding_table,
    NORMS: norm_table,
}
"""What one checkpoint's pass may leave of each example, by the beginning of its files' names."""


class Kept:
    """What batches bring of N examples, one of `TABLES`, as it is to be written.

    Attributes:
        what: one of them, in words.
    """

    def __init__(self, name: str, num_rows: int) -> None:
        self.name, self.num_rows = name, num_rows
        self.what = name.removesuffix("s").replace("_", " ")
        self._found_N = torch.empty(0)

    def __call__(self, row_B: np.ndarray, found_B: torch.Tensor) -> None:
        value_B = embeddings.unit(found_B) if self.name == EMBEDDINGS else found_B
        if not len(self._found_N):
            self._found_N = value_B.new_zeros((self.num_rows, *value_B.shape[1:]))
        self._found_N[sent(row_B, value_B.device)] = value_B

    @property
    def value_N(self) -> np.ndarray:
        """An entry for each example: of embeddings float16 of length one, else float32."""
        value_N: np.ndarray = self._found_N.cpu().numpy()
        return value_N

    @property
    def is_finite_N(self) -> np.ndarray:
        """bool (N,)."""
        finite_NH: np.ndarray = np.isfinite(self.value_N).reshape(self.num_rows, -1)
        return np.logical_and.reduce(finite_NH, axis=1)


class Files:
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
        kept: Sequence[Kept],
    ) -> None:
        """What the checkpoint `index` has found of a part."""
        for item in kept:
            # Losses of another precision would lie beside what is not of their pass; and these
            # come last: where they are, the rest is there of the same precision, too.
            for other in DTYPES.keys() - {self.precision}:
                self._losses(part, index, other).remove()
            place = self.folder / part_name(part, item.name)
            place.write_table(TABLES[item.name](example_ids, item.value_N))
        buffer = io.BytesIO()
        np.save(buffer, loss_N, allow_pickle=False)
        self._losses(part, index).write_bytes(buffer.getvalue())

    def read_losses(self, part: int, index: int) -> np.ndarray:
        content = io.BytesIO(self._losses(part, index).read_bytes())
        loss_N: np.ndarray = np.load(content, allow_pickle=False)
        return loss_N

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
