"""Hash keys of the ids in a column."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def column_keys(ids: pa.ChunkedArray, **parameters: Any) -> np.ndarray:
    """Return the keys of `hashing.text_keys`, uint64 (N,), for a column of text without nulls.

    No Python object is made for an id.

    Args:
        parameters: other ones than those of `hashing.example_keys`.

    Raises:
        TypeError: the column is no text, whose ids would get keys that no other code knows.
    """
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if len(ids) and not any(is_kind(kind) for is_kind in _TEXT):
        raise TypeError(f"ids are text, not {ids.type}")
    keys = [_keys(chunk, parameters) for chunk in ids.chunks if len(chunk)]
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def _keys(ids: pa.Array, parameters: Mapping[str, Any]) -> np.ndarray:
    if not pa.types.is_string(ids.type):  # a large string, a dictionary of strings, or a view
        ids = ids.cast(pa.large_string())
    _, starts, content = ids.buffers()
    kind = np.int32 if pa.types.is_string(ids.type) else np.int64
    start_N = np.frombuffer(starts, kind)[ids.offset : ids.offset + len(ids) + 1]
    return hashing.text_keys(np.frombuffer(content or b"", np.uint8), start_N, **parameters)
