"""The start of k-means: greedy k-means++ on a weighted sample.

Shape letters: S sample rows, T checkpoints, K centroids, C candidates for the next centroid,
G blocks of B rows, X columns.

Source: Arthur and Vassilvitskii (2007), k-means++, with the candidates per step of its section 6
and of scikit-learn.
"""

import numpy as np

from s2l_ray import hashing
from s2l_ray.clusters import kernels


def plus_plus(
    sample_ST: np.ndarray, weight_S: np.ndarray, num_centroids: int, seed: int, start: int
) -> np.ndarray:
    """Draw distinct rows of the sample by greedy k-means++.

    At every step a few candidates are drawn in proportion to their squared distance from the
    closest of the rows that were chosen before. The one that leaves the least total squared
    distance is chosen.
    """
    num_candidates = 2 + int(np.log(num_centroids))
    uniform_KC = uniforms(num_centroids * num_candidates, seed, start).reshape(num_centroids, -1)
    loss_GTB, weight_GB = _blocks(sample_ST), _blocks(weight_S[:, None])[:, 0]
    sqdist_GB = np.full(weight_GB.shape, np.inf, np.float32)
    cumulative_GB = weight_GB.cumsum(dtype=np.float64).reshape(weight_GB.shape)
    chosen: list[int] = []
    for uniform_C in uniform_KC:
        # The first row has a single candidate.
        candidates = _drawn(cumulative_GB.reshape(-1), uniform_C if chosen else uniform_C[:1])
        total_C = np.empty(len(candidates))
        even_CT = kernels.padded_to_even(sample_ST[candidates])
        kernels.totals_after(loss_GTB, weight_GB, even_CT, sqdist_GB, total_C)
        best = candidates[total_C.argmin()]
        chosen.append(best)
        even_CT = kernels.padded_to_even(sample_ST[best][None])
        kernels.add_centroid(loss_GTB, weight_GB, even_CT, sqdist_GB, cumulative_GB)
        if not cumulative_GB[-1, -1]:
            # The squared distance of every other row underflows in float32.
            break
    return sample_ST[chosen]


def _blocks(sample_SX: np.ndarray) -> np.ndarray:
    """Return the rows in blocks, (G, X, B), one row to a lane; zeros fill up the last block."""
    num_blocks = -(-len(sample_SX) // kernels.BLOCK)
    filled = np.zeros((num_blocks * kernels.BLOCK, sample_SX.shape[1]), sample_SX.dtype)
    filled[: len(sample_SX)] = sample_SX
    return np.ascontiguousarray(filled.reshape(num_blocks, kernels.BLOCK, -1).transpose(0, 2, 1))


def _drawn(cumulative_S: np.ndarray, uniform_C: np.ndarray) -> list[int]:
    """Draw rows in proportion to their shares, given cumulative sums; none with a share of zero."""
    # Below the total, so that the result is a row with a share.
    below_C = np.minimum(uniform_C * cumulative_S[-1], np.nextafter(cumulative_S[-1], 0))
    return np.searchsorted(cumulative_S, below_C, side="right").tolist()


def uniforms(count: int, *salts: int) -> np.ndarray:
    """Return numbers in [0, 1) that are the same under every version of numpy."""
    bits = hashing.mixed(np.arange(count, dtype=np.uint64), *salts)
    return (bits >> np.uint64(11)) * 2.0**-53
