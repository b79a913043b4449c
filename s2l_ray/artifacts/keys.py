"""Hash keys of the ids in a column."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing


def column_keys(ids: pa.ChunkedArray, **parameters: Any) -> np.ndarray:
    """Return the keys of `hashing.text_keys`, uint64 (N,), for a column of text without nulls.

    No Python object is made for an id.

    Args:
        parameters: other ones than those of `hashing.example_keys`.
    """
    keys = [_keys(chunk, parameters) for chunk in ids.chunks if len(chunk)]
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def _keys(ids: pa.StringArray, parameters: Mapping[str, Any]) -> np.ndarray:
    _, starts, content = ids.buffers()
    start_N = np.frombuffer(starts, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    return hashing.text_keys(np.frombuffer(content or b"", np.uint8), start_N, **parameters)
