"""Tables of a run, read when they are asked for: as pandas, Arrow, numpy or a Ray dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from s2l_ray.errors import ConfigError
from s2l_ray.storage.location import Location

if TYPE_CHECKING:
    import pandas as pd

    from s2l_ray.distributed.datasets import Dataset


@dataclass(frozen=True)
class Table:
    """A table of a run; its files are read when one of its methods is called, and not before.

    Rows are in stored order: part after part of the run, then of each extension. All tables of
    one run that have an `example_id` can be joined by it.

    Attributes:
        files: the parquet files that hold the rows, local or on an object store.
        columns: names of the columns.
        values: the column that `to_numpy` returns by default.

    Examples:
        >>> run.trajectories().to_numpy()                     # float32 (N, T)
        >>> run.clusters().to_pandas(["example_id", "cluster"])
    """

    files: Sequence[Location]
    columns: Sequence[str]
    values: str

    def __repr__(self) -> str:
        return f"Table({', '.join(self.columns)}; {len(self.files):,} files)"

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the table into memory.

        Args:
            columns: the columns that are read. Default: all.

        Raises:
            UserError: a column is unknown (`ConfigError`), a file cannot be read (`StorageError`).
        """
        names = self._checked(columns)
        return pa.concat_tables([file.read_table(names) for file in self.files])

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Read the table into memory, as a data frame; args and errors as for `to_arrow`.

        A trajectory becomes a numpy array in its cell.
        """
        return self.to_arrow(columns).to_pandas()

    def to_numpy(self, column: str | None = None) -> np.ndarray:
        """Read one column into memory.

        Args:
            column: default: `values`, which is `loss_nats` of trajectories, `cluster` of clusters,
                `example_id` of a ranking and `reason` of rejected rows.

        Returns:
            an array (N,) in stored order; lists of one length, such as trajectories, become
            (N, T). Text is an array of Python strings.

        Raises:
            UserError: as `to_arrow`.
        """
        name = self.values if column is None else column
        values = self.to_arrow([name])[name].combine_chunks()
        if pa.types.is_fixed_size_list(values.type):
            return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
        return values.to_numpy(zero_copy_only=False)

    def to_ray(self, columns: Sequence[str] | None = None) -> "Dataset":
        """Return a lazy dataset of Ray Data; no row passes through this process.

        Rows come in no particular order. If this process is not connected to Ray, Ray Data
        connects it: to RAY_ADDRESS, or to a Ray that it starts here. Args and errors as for
        `to_arrow`.
        """
        from s2l_ray.distributed.datasets import parquet_dataset

        return parquet_dataset(self.files, self._checked(columns))

    def _checked(self, columns: Sequence[str] | None) -> list[str]:
        names = list(self.columns if columns is None else columns)
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            raise ConfigError(
                f"column {unknown[0]!r} is unknown; columns: {', '.join(self.columns)}"
            )
        return names
