"""How fast this machine multiplies matrices of a model's size."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WINDOW_SECONDS = 0.03
"""Of one measurement: long beside a clock's resolution."""
FEED_FORWARD = 4
"""A transformer's widest matrices have about this many times its hidden size."""
LARGEST = {"cpu": (512, 2_048), "cuda": (16_384, 8_192)}
"""Tokens and width beyond which products become longer and not faster."""


def matrix_flops_per_second(
    *,
    num_tokens: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int,
    seconds: float = 0.5,
) -> float:
    """Operations per second of one worker in (num_tokens, width) x (width, 4 width) products.

    They are as large as the model's own, because small ones are slower, on a GPU by far. Other work
    on the machine can only slow them down, so the best of many short measurements counts, and on a
    CPU only the time in which it worked for this program.

    Args:
        num_tokens: of one forward pass, at least one.
        width: the model's hidden size.
        num_threads: of a worker on a CPU.
        seconds: for all measurements together.
    """
    most_tokens, most_wide = LARGEST[device.type]
    num_tokens, width = min(num_tokens, most_tokens), min(width, most_wide)
    left = torch.randn(num_tokens, width, device=device).to(dtype)
    right = torch.randn(width, FEED_FORWARD * width, device=device).to(dtype)
    flops = 2 * num_tokens * width * FEED_FORWARD * width
    best = 0.0
    with _threads(num_threads):
        _products_per_second(left, right)  # the first products also set the libraries up
        end = time.perf_counter() + seconds
        while not best or time.perf_counter() < end:
            best = max(best, flops * _products_per_second(left, right))
    return best


def _products_per_second(left: torch.Tensor, right: torch.Tensor) -> float:
    on_gpu = left.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    start, count, passed = clock(), 0, 0.0
    while passed < WINDOW_SECONDS:
        torch.mm(left, right)
        if on_gpu:
            # It computes while this program goes on.
            torch.cuda.synchronize(left.device)
        count += 1
        passed = clock() - start
    return count / passed


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
