"""The prompts of the evaluation sets, which a pool is compared with."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from s2l_ray.config.data import DataConfig
from s2l_ray.data.contamination import PROMPTS, user_turns
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.sources import read_rows
from s2l_ray.storage.input_files import InputFile

HeldOut = Mapping[str, Sequence[InputFile]]
"""The files of each evaluation set, by name."""


def read_prompts(sets: HeldOut, config: DataConfig) -> tuple[pa.Table, dict[str, int]]:
    """Return the prompts of all sets, and for each set the number of rows that cannot be used.

    Raises:
        DataError: a file is missing or damaged.
    """
    prompts, unusable = [], dict.fromkeys(sets, 0)
    for name, files in sets.items():
        fields = config.of_set(name).fields
        for file in files:
            for row in read_rows(file):
                try:
                    text = "\n".join(user_turns(read_example(row.fields or {}, fields)))
                except RowError:
                    unusable[name] += 1
                    continue
                prompts.append({"set": name, "file": file.uri, "row": row.row, "text": text})
    return pa.Table.from_pylist(prompts, PROMPTS), unusable
