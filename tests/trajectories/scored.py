"""A small pool and three checkpoints, and how a stage's worker scores them in this process."""

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.part_scorer import Checkpoint, PartScorer
from tests import tiny

STEPS = (2, 10, 300)

ROWS_OF_PART = (9, 0, 5)

CONFIG = TrajectoriesConfig(precision="fp32", tokens_per_batch=48)


def write_checkpoints(folder):
    for seed, step in enumerate(STEPS):
        tiny.save(folder / f"step-{step:06d}", seed=seed)
    return at(folder)


def write_prepared(folder):
    folder = Location.of(folder)
    rng = np.random.default_rng(3)
    for part, num_rows in enumerate(ROWS_OF_PART):
        lengths = rng.integers(4, 40, num_rows)
        columns = {
            "example_id": pa.array([f"{part}-{row}" for row in range(num_rows)], pa.string()),
            "stratum": pa.array([f"s{row % 2}" for row in range(num_rows)], pa.string()),
            "input_ids": pa.array(
                [rng.integers(1, 256, length).tolist() for length in lengths],
                pa.list_(pa.int32()),
            ),
            "num_prompt_tokens": pa.array([rng.integers(1, n) for n in lengths], pa.int32()),
        }
        (folder / part_name(part)).write_table(pa.table(columns))
    return Parts(folder)


def at(folder):
    return [Checkpoint(step, Location.of(folder) / f"step-{step:06d}") for step in STEPS]


def scorer(prepared, checkpoints, folder, config=CONFIG):
    return PartScorer(prepared, list(checkpoints), config, Location.of(folder), gpus=0)


def score_all(prepared, checkpoints, folder, groups=((0, 1, 2),), config=CONFIG):
    """Every part at every group, one scorer for each group."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        worker({"part": part, "group": list(group)})
        for group in groups
        for worker in [scorer(prepared, checkpoints, folder, config)]
        for part in range(len(ROWS_OF_PART))
    ]


def part_bytes(folder, prefix="part"):
    """The files of a stage's folder, or of one next to it that is named as its files begin."""
    folder = folder if prefix == "part" else folder.parent / prefix
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{prefix}-*"))}
