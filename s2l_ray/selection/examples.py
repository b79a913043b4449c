"""The examples of a pool, as methods of selection see them.

Shape letters: N examples, K of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Examples:
    """The examples of a pool, in any order, with all that a ranking reads of them.

    Attributes:
        key_N: uint64 (N,), from `hashing.example_keys`.
        cluster_N: integer (N,), cluster numbers from 0.
        stratum_N: integer (N,), stratum numbers from 0; all equal if there are no strata.
        numbers: by name, numbers (N,), none of them NaN: those that the method reads
            (`Method.numbers`).
        inside_N: numbers (N,), none of them NaN; `s2l` takes the examples of a cluster in
            increasing order of them. None for a random order.
        vectors: by name, finite (rows, H): those that the method compares (`Method.vectors`).
            "embeddings" has a row for every example, "queries" one for every query.
        settings: by key of the section, the values of the settings that the method reads
            (`Method.settings`).
    """

    key_N: np.ndarray
    cluster_N: np.ndarray
    stratum_N: np.ndarray
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    inside_N: np.ndarray | None = None
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = [self.key_N, self.cluster_N, self.stratum_N, *self.numbers.values()]
        columns += [] if self.inside_N is None else [self.inside_N]
        shapes = {column.shape for column in columns}
        if len(shapes) > 1 or self.key_N.ndim != 1:
            raise ValueError(f"keys, clusters and strata must be of one length, not {shapes}")
        if len(self.vectors.get("embeddings", self.key_N)) != len(self.key_N):
            raise ValueError("every example needs one embedding")
        if self.key_N.dtype != np.uint64:
            raise ValueError(f"keys must be uint64, not {self.key_N.dtype}")
        if min(self.cluster_N.min(initial=0), self.stratum_N.min(initial=0)) < 0:
            raise ValueError("cluster and stratum numbers must not be negative")

    def at(self, row_K: np.ndarray) -> "Examples":
        """Return the examples in these rows, in this order; vectors are left out."""
        return replace(
            self,
            key_N=self.key_N[row_K],
            cluster_N=self.cluster_N[row_K],
            stratum_N=self.stratum_N[row_K],
            numbers={name: number_N[row_K] for name, number_N in self.numbers.items()},
            inside_N=None if self.inside_N is None else self.inside_N[row_K],
            vectors={},
        )
