"""The amount of text in input files, and whether the threads of this process prepare it."""

from collections.abc import Sequence

from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.data import DataConfig
from s2l_ray.storage.input_files import InputFile, format_of

MOST_BYTES_IN_THREADS = 20_000_000
"""So much text is prepared by threads of this process, where no cluster was joined."""
BYTES_OF_FILE = 10_000
"""Text that takes as long as the opening of a file."""
EXPANSION = 4
"""Bytes of text for each byte of a compressed file, or of Parquet."""


def fits_threads(config: DataConfig, files: Sequence[InputFile], pool: Parts | None = None) -> bool:
    """Tell whether `files` are so small that it takes longer to start processes for them.

    Args:
        config: the section of the pool.
        files: the input files, or the prepared rows of them.
        pool: the prepared parts of the pool that `files` extend, or None. Where near-duplicates are
            looked for, all of its rows are read as well.
    """
    compared = []
    if pool is not None and config.near_duplicates != "off":
        compared = Parts(pool.folder, "rows", pool.more).stored()
    if any(file.uri.startswith("hf://") for file in files):  # it does not state its size
        return False
    return sum(map(_text_bytes, [*files, *compared])) <= MOST_BYTES_IN_THREADS


def _text_bytes(file: InputFile) -> int:
    """Estimate the bytes of text in a file, which may be compressed."""
    kind, compression = format_of(file.uri)
    is_packed = compression is not None or kind == "parquet"
    return BYTES_OF_FILE + file.size * (EXPANSION if is_packed else 1)
