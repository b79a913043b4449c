"""Scoring that this process has done before an actor of Ray has loaded its libraries."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch
from transformers.utils import logging

from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed import resources

if TYPE_CHECKING:
    from s2l_ray.trajectories.part_scorer import Checkpoint

MAX_BYTES_TIMES_TOKENS = 1e11
"""The most bytes of weights, of all checkpoints together, times tokens of the pool: half as many
operations in fp32, which take some seconds of one core, as the start of an actor does."""


def fits_here(
    config: TrajectoriesConfig, prepared: Parts, checkpoints: Sequence["Checkpoint"]
) -> bool:
    """Tell whether a thread of this process scores the pool, and no GPU is there to do it."""
    if config.gpus_per_worker or any(checkpoint.base for checkpoint in checkpoints):
        return False
    sizes = [_num_bytes(checkpoint) for checkpoint in checkpoints]
    if not all(sizes) or not resources.fits_here(lambda: sum(sizes)):
        return False
    if _has_more_tokens(prepared, MAX_BYTES_TIMES_TOKENS / sum(sizes)):
        return False
    return config.gpus_per_worker == 0 or not torch.cuda.is_available()


def _has_more_tokens(prepared: Parts, limit: float) -> bool:
    """Tell whether a pool has more tokens than `limit`; no part is read after that is known."""
    num_tokens = 0
    for file in prepared.files():
        lengths = pc.list_value_length(file.read_table(["input_ids"])["input_ids"])
        num_tokens += pc.sum(lengths).as_py() or 0
        if num_tokens > limit:
            return True
    return False


def _num_bytes(checkpoint: "Checkpoint") -> int:
    """Return the size of its weights; 0 for weights that are not in safetensors of its folder."""
    files = checkpoint.folder.files() if checkpoint.folder.is_folder() else []
    return sum(size for name, size, _ in files if name.endswith(".safetensors"))


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Restore what a scorer sets for the whole process, after the block.

    Inside it transformers shows errors alone, and no bars: reports of actors go to Ray's logs.
    """
    num_threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    shows_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
