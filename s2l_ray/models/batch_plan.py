"""Batches of the scorer: rows of similar length, up to a number of tokens and of logits."""

import numpy as np


def plan_batches(
    num_tokens_N: np.ndarray,
    num_response_N: np.ndarray,
    *,
    tokens_per_batch: int,
    max_logit_rows: int | None,
    regime_N: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Put rows of similar length together, shortest first, ties in the order given.

    A batch's rows times its longest row is at most `tokens_per_batch`, and its response tokens at
    most `max_logit_rows` where logits are stored; a row that is above either is a batch of its own.

    Args:
        num_tokens_N: int array (N,).
        num_response_N: int array (N,), of which response tokens.
        regime_N: array (N,) that grows with the number of tokens; rows with different values never
            share a batch.

    Returns:
        int64 arrays of row numbers; every row is in exactly one.
    """
    order_N = np.argsort(num_tokens_N, kind="stable")
    changes_N = np.zeros(len(order_N), bool)
    if regime_N is not None:
        changes_N[1:] = np.diff(regime_N[order_N]) != 0
    starts = []
    num_rows = num_logits = 0
    for position, (num_tokens, num_response, changes) in enumerate(
        zip(
            num_tokens_N[order_N].tolist(),
            num_response_N[order_N].tolist(),
            changes_N.tolist(),
            strict=True,
        )
    ):
        too_long = (num_rows + 1) * num_tokens > tokens_per_batch
        too_many = max_logit_rows is not None and num_logits + num_response > max_logit_rows
        if position and (too_long or too_many or changes):
            starts.append(position)
            num_rows = num_logits = 0
        num_rows += 1
        num_logits += num_response
    return np.split(order_N, starts) if len(order_N) else []


def max_logit_rows(vocab_size: int, max_bytes: int = 256 * 2**20) -> int:
    """Return how many positions have float32 logits of at most `max_bytes`; at least one."""
    return max(1, max_bytes // (4 * vocab_size))
