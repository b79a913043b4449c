"""Files of a run as a dataset of Ray Data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s2l_ray.storage.location import Location
from s2l_ray.storage.row_groups import RowGroups

if TYPE_CHECKING:
    from ray.data import Dataset as Dataset


def parquet_dataset(files: Sequence[Location], columns: Sequence[str] | None = None) -> "Dataset":
    """Return a lazy dataset of the rows of parquet files, on the Ray that is connected.

    Ray Data connects to Ray by itself when nothing is connected: to RAY_ADDRESS, or to a Ray that
    it starts here and that lasts as long as the process.

    Ray Data reads the files by itself. On an object store it is not asked again where an answer
    ends within its headers, as it is where stages of a run read; no stage reads by this.

    Raises:
        StorageError: losses are read where they lie, and one of their files has changed.
    """
    import ray.data

    # Ray Data reads whole files by their paths, so nothing else looks at their dates.
    for place in {file.uri: file for file in files if isinstance(file, RowGroups)}.values():
        place.check()
    filesystem, _ = files[0].filesystem()
    # Several parts may lie in one file.
    paths = list(dict.fromkeys(file.filesystem()[1] for file in files))
    chosen = list(columns) if columns is not None else None
    return ray.data.read_parquet(paths, filesystem=filesystem, columns=chosen)
