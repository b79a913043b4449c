"""Parts of tokenised rows in parquet files, as a training reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from s2l_ray.artifacts.token_tables import RANGES, flat_tokens
from s2l_ray.storage.location import Location
from s2l_ray.training.batches import TokenRows


@dataclass(frozen=True)
class TokenParts:
    """Parquet parts with the columns of `token_tables`; every part has at least one row."""

    files: Sequence[Location]
    num_rows: Sequence[int]
    num_tokens_of_longest: int

    @classmethod
    def of(cls, files: Sequence[Location]) -> "TokenParts":
        """Return the parts of those files that have rows; their lengths are read."""
        with_rows, num_rows, longest = [], [], 0
        for file in files:
            num_tokens = file.read_table(["num_tokens"])["num_tokens"]
            if len(num_tokens):
                with_rows.append(file)
                num_rows.append(len(num_tokens))
                longest = max(longest, pc.max(num_tokens).as_py())
        return cls(with_rows, num_rows, longest)

    def read(self, part: int) -> TokenRows:
        columns = ["input_ids", "num_prompt_tokens"]
        return TokenRows(*flat_tokens(self.files[part].read_table(columns, optional=RANGES)))
