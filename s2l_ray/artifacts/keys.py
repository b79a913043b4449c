"""Hash keys of the ids in a column."""

import numpy as np
import pyarrow as pa

from s2l_ray import hashing


def column_keys(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the keys of `hashing.example_keys`, uint64 (N,), for a column of text without nulls.

    No Python object is made for an id.
    """
    keys = [_keys(chunk) for chunk in ids.chunks if len(chunk)]
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def _keys(ids: pa.StringArray) -> np.ndarray:
    _, starts, content = ids.buffers()
    start_N = np.frombuffer(starts, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    return hashing.text_keys(np.frombuffer(content or b"", np.uint8), start_N)
