"""Losses that a user brings, in files of their own."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts.tables import Parts
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

RNG = np.random.default_rng(11)
LOSS_NT = RNG.gamma(2.0, size=(23, 5)).astype(np.float32)
IDS = [f"e{row}" for row in range(23)]
STRATA = [f"s{row % 3}" for row in range(23)]


def list_column(loss_NT, kind=None):
    return pa.array(loss_NT.tolist(), kind or pa.list_(pa.float32()))


def parquet(path, losses, ids=IDS, row_group_size=None, **more):
    columns = {"example_id": ids[: len(losses)], "loss_nats": losses, **more}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def files_of(uris):
    """The files as they are listed; one that is not there has no bytes."""
    paths = map(Path, uris)
    return [InputFile(str(p), p.stat().st_size if p.exists() else 0, "") for p in paths]


def rows(folder):
    return [row for table in Parts(Location.of(folder)).tables() for row in table.to_pylist()]


KINDS = {
    "list of float32": pa.list_(pa.float32()),
    "list of float64": pa.list_(pa.float64()),
    "fixed-size list of float32": pa.list_(pa.float32(), 5),
    "fixed-size list of float64": pa.list_(pa.float64(), 5),
    "large list": pa.large_list(pa.float32()),
}
