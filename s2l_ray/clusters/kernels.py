"""The closest centroid of every trajectory, and sums per cluster, updated as centroids move.

Compiled by numba: a pass of k-means is a few operations per row and centroid, and in numpy each of
them is a pass through memory. Rows are scanned in blocks, one row to a lane of a register. Squared
distances in float32 exclude all centroids that cannot be closest. The others (one, for most rows)
are measured in float64, one checkpoint after the other. So the result of a row does not depend on
the other rows, on their order or number, or on the width of a register.

Shape letters: N rows, T checkpoints, K clusters, B rows of a block, G blocks, C candidates for the
next centroid of a start.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
# numba compiles a function for the types it is called with. Rows are passed as an array and a row
# number: slices of one array would make all threads contend for its reference count.

from typing import NamedTuple

import numpy as np

from s2l_ray.compilation import cached_njit

LOSS_UNIT_NATS = 2.0**-24
SQDIST_UNIT = 2.0**-20

BLOCK = 128
"""Rows of a block. With 64 checkpoints a block still fits the nearest cache."""
_ROWS_AT_ONCE = 32 * BLOCK

_UNDERFLOW = np.float32(1e-30).view(np.int32)
"""Squares below this have lost digits in float32; as distances they count as zero."""
UNSEEN = -1
"""The label of a row that no sweep has seen."""
_ROUNDING = 2.0**-22
"""An upper bound of the relative change when a distance is stored in float32."""


class Rows(NamedTuple):
    """Rows, with their labels and bounds from the last sweep.

    Attributes:
        loss_NT: float32 (N, T).
        weight_N: int64 (N,), how many rows each stands for; empty if each stands for one.
        label_N: int32 (N,), `UNSEEN` for a row not seen before.
        lower_N: float32 (N,), a lower bound of the distance to the second closest centroid: nats.
    """

    loss_NT: np.ndarray
    weight_N: np.ndarray
    label_N: np.ndarray
    lower_N: np.ndarray


class Moves(NamedTuple):
    """The moves of centroids, and the distance within which others are their neighbours.

    Attributes:
        drift_K: float64 (K,), an upper bound of how far each has moved since the last call, nats.
        reach_K: float64 (K,), nats: a centroid within this distance is a neighbour. It decides how
            many rows are spared a scan, and nothing else.
    """

    drift_K: np.ndarray
    reach_K: np.ndarray


class Totals(NamedTuple):
    """Sums over rows by their labels.

    Attributes:
        loss_sum_KT: int64 (K, T), in `LOSS_UNIT_NATS`.
        count_K: int64 (K,), numbers of rows.
        sqdist_sum_K: int64 (K,), in `SQDIST_UNIT`.
        inexact_K: float64 (K,), the same sums in nats squared, to check that integers hold them.
    """

    loss_sum_KT: np.ndarray
    count_K: np.ndarray
    sqdist_sum_K: np.ndarray
    inexact_K: np.ndarray


def padded_to_even(centroid_KT: np.ndarray) -> np.ndarray:
    """Return the centroids in float32, with one at infinity added if their number is odd.

    Kernels compute the distances from two centroids at a time.
    """
    infinite_XT = np.full((len(centroid_KT) % 2, centroid_KT.shape[1]), np.inf)
    return np.concatenate([centroid_KT, infinite_XT], dtype=np.float32)


@cached_njit
def closest(loss_NT, even_KT, label_N, sqdist_N):
    """Fill `label_N` (ties: the lowest cluster) and `sqdist_N`, float64, nats squared."""
    lower_B = np.empty(BLOCK, np.float32)
    for start in range(0, len(loss_NT), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(loss_NT)))
        end = start + len(rows)
        _scan(loss_NT, rows, even_KT, label_N[start:end], sqdist_N[start:end], lower_B)


@cached_njit
def distances(loss_NT, centroid_KT, label_N, sqdist_N):
    """Fill `sqdist_N`, float64, nats squared, with the distances to the centroids of the labels."""
    for n in range(len(loss_NT)):
        sqdist_N[n] = _sqdist(loss_NT, n, centroid_KT, label_N[n])


@cached_njit
def update(rows, even_KT, moves, totals):
    """Update labels, bounds and sums from the previous centroids to these; scan few rows.

    If the centroid of a row is closer than the lower bound of all others, its label stays. Other
    rows are scanned. If a label changes, the losses of the row move from one sum to the other. Sums
    are integers, so they are equal to sums from scratch.

    Args:
        rows: labels and bounds are changed.
        even_KT: float32, the centroids, as `padded_to_even` returns them.
        totals: changed. In the call, losses and counts are those of the rows seen before, and
            distances are zero.

    Source:
        One bound per row: Hamerly (2010), doi:10.1137/1.9781611972801.12. Bounds that depend on
        neighbours alone: Rysavy and Hamerly (2016), doi:10.1137/1.9781611974348.38.
    """
    loss_NT, weight_N, bounds = rows.loss_NT, rows.weight_N, _neighbours(even_KT, moves)
    row_M = np.empty(_ROWS_AT_ONCE, np.int64)
    label_B = np.empty(BLOCK, np.int32)
    sqdist_B = np.empty(BLOCK, np.float64)
    lower_B = np.empty(BLOCK, np.float32)
    for start in range(0, len(loss_NT), _ROWS_AT_ONCE):
        span = (start, min(start + _ROWS_AT_ONCE, len(loss_NT)))
        num_open = _confirm(rows, span, even_KT, bounds, totals, row_M)
        for first in range(0, num_open, BLOCK):
            row_B = row_M[first : min(first + BLOCK, num_open)]
            _scan(loss_NT, row_B, even_KT, label_B, sqdist_B, lower_B)
            for b in range(len(row_B)):
                n = row_B[b]
                weight = weight_N[n] if len(weight_N) else 1
                rows.lower_N[n] = lower_B[b]
                if label_B[b] != rows.label_N[n]:
                    _move(loss_NT, n, weight, rows.label_N[n], label_B[b], totals)
                    rows.label_N[n] = label_B[b]
                _add(sqdist_B[b], weight, label_B[b], totals)


@cached_njit
def _confirm(rows, span, even_KT, bounds, totals, row_M):
    """Add up the rows whose labels stay; write the others to `row_M`; return how many these are.

    The bound of a row has two parts. The neighbours of its centroid are at least as far from it as
    before, less the farthest that one of them moved. All other centroids are at least as far from
    it as they are from its centroid, less the row's own distance from that.
    """
    num_open = 0
    moved_K, apart_K = bounds
    for n in range(*span):
        label = rows.label_N[n]
        if label != UNSEEN:
            before, moved = np.float64(rows.lower_N[n]), moved_K[label]
            sqdist = _sqdist(rows.loss_NT, n, even_KT, label)
            bound = min(before - moved, apart_K[label] - np.sqrt(sqdist))
            bound -= _ROUNDING * (before + moved)
            if bound > 0 and sqdist < bound * bound:
                rows.lower_N[n] = bound
                _add(sqdist, rows.weight_N[n] if len(rows.weight_N) else 1, label, totals)
                continue
        row_M[num_open] = n
        num_open += 1
    return num_open


@cached_njit
def _neighbours(even_KT, moves):
    """Return, for each centroid, the farthest move of a neighbour and a bound of the others.

    The bound is a lower one, of the distances of all centroids that are no neighbours.
    """
    num_clusters, num_checkpoints = len(moves.drift_K), even_KT.shape[1]
    moved_K, apart_K = np.empty(num_clusters), np.empty(num_clusters)
    centroid_TB = np.zeros((num_checkpoints, BLOCK), np.float32)
    sqdist_2B = np.empty(2 * BLOCK, np.float32)
    reach_B, moved_B = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    least_B = np.empty(BLOCK, np.float32)
    slack = np.int32(4 * num_checkpoints + 16)
    for start in range(0, num_clusters, BLOCK):
        size = min(BLOCK, num_clusters - start)
        for b in range(size):
            reach_B[b] = moves.reach_K[start + b] ** 2
            for t in range(num_checkpoints):
                centroid_TB[t, b] = even_KT[start + b, t]
        moved_B[:], least_B[:] = 0, np.inf
        for k in range(0, len(even_KT), 2):
            _approximate(centroid_TB, even_KT, k, sqdist_2B)
            for j in range(k, min(k + 2, num_clusters)):
                sqdist_B = sqdist_2B[(j - k) * BLOCK :]
                if start <= j < start + size:
                    sqdist_B[j - start] = np.inf
                drift = np.float32(moves.drift_K[j] * (1 + _ROUNDING))
                for b in range(BLOCK):
                    near = sqdist_B[b] <= reach_B[b]
                    moved_B[b] = max(moved_B[b], drift if near else np.float32(0))
                    least_B[b] = min(least_B[b], np.float32(np.inf) if near else sqdist_B[b])
        bits_B = least_B.view(np.int32)
        for b in range(size):
            bits_B[b] = bits_B[b] - slack if bits_B[b] > _UNDERFLOW else 0
            moved_K[start + b] = moved_B[b]
            apart_K[start + b] = np.sqrt(np.float64(least_B[b])) * (1 - _ROUNDING)
    return moved_K, apart_K


@cached_njit
def _add(sqdist, weight, label, totals):
    totals.sqdist_sum_K[label] += weight * np.int64(np.rint(sqdist / SQDIST_UNIT))
    totals.inexact_K[label] += weight * sqdist


@cached_njit
def _move(loss_NT, n, weight, old, label, totals):
    """Move the row from the sums of its old cluster, if it had one, to those of the new one."""
    totals.count_K[label] += weight
    if old != UNSEEN:
        totals.count_K[old] -= weight
    for t in range(loss_NT.shape[1]):
        units = weight * np.int64(np.rint(np.float64(loss_NT[n, t]) / LOSS_UNIT_NATS))
        totals.loss_sum_KT[label, t] += units
        if old != UNSEEN:
            totals.loss_sum_KT[old, t] -= units


@cached_njit
def _scan(loss_NT, row_B, even_KT, label_B, sqdist_B, lower_B):
    """Fill in, for at most `BLOCK` rows, the closest centroids, their squared distances, and lower
    bounds of the distances to the second closest.
    """
    num_checkpoints = loss_NT.shape[1]
    loss_TB = np.zeros((num_checkpoints, BLOCK), np.float32)
    for b in range(len(row_B)):
        for t in range(num_checkpoints):
            loss_TB[t, b] = loss_NT[row_B[b], t]
    sqdist_2B, least_2B = np.empty(2 * BLOCK, np.float32), np.empty(2 * BLOCK, np.float32)
    least_2B[:] = np.inf
    nearest_B = np.zeros(BLOCK, np.int32)
    for k in range(0, len(even_KT), 2):
        _approximate(loss_TB, even_KT, k, sqdist_2B)
        _compare(sqdist_2B, k, least_2B, nearest_B)
    # The bits of floats that are not negative, read as integers, are in the order of the floats. A
    # difference of one is at least 2^-24 of the value. Each of the T terms of a sum adds less than
    # three such errors to it, on either side of the comparison.
    bits_2B = least_2B.view(np.int32)
    least_bits_B, second_bits_B = bits_2B[:BLOCK], bits_2B[BLOCK:]
    slack = np.int32(4 * num_checkpoints + 16)
    for b in range(len(row_B)):
        n = row_B[b]
        label_B[b] = nearest_B[b]
        sqdist_B[b] = _sqdist(loss_NT, n, even_KT, nearest_B[b])
        if second_bits_B[b] <= max(least_bits_B[b] + slack, _UNDERFLOW):
            label_B[b], sqdist_B[b] = _exactly(loss_NT, n, even_KT)
            # No lower bound follows from two distances that are so nearly equal.
            second_bits_B[b] = slack
        second_bits_B[b] = max(second_bits_B[b] - slack, 0)
        lower_B[b] = np.sqrt(np.float64(least_2B[BLOCK + b])) * (1 - _ROUNDING)


@cached_njit
def _approximate(loss_TB, even_KT, k, sqdist_2B):
    """Fill in the squared distances of a block from centroids k and k + 1, in float32.

    Four checkpoints and two centroids at a time spare loads and stores.
    """
    num_checkpoints = len(loss_TB)
    sqdist_2B[:] = 0
    t = 0
    while t + 3 < num_checkpoints:
        c0, c1, c2, c3 = even_KT[k, t], even_KT[k, t + 1], even_KT[k, t + 2], even_KT[k, t + 3]
        j = k + 1
        e0, e1, e2, e3 = even_KT[j, t], even_KT[j, t + 1], even_KT[j, t + 2], even_KT[j, t + 3]
        for b in range(BLOCK):
            x0, x1 = loss_TB[t, b], loss_TB[t + 1, b]
            x2, x3 = loss_TB[t + 2, b], loss_TB[t + 3, b]
            d0, d1, d2, d3 = x0 - c0, x1 - c1, x2 - c2, x3 - c3
            sqdist_2B[b] = sqdist_2B[b] + d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
            d0, d1, d2, d3 = x0 - e0, x1 - e1, x2 - e2, x3 - e3
            sqdist_2B[BLOCK + b] = sqdist_2B[BLOCK + b] + d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
        t += 4
    while t < num_checkpoints:
        c0, e0 = even_KT[k, t], even_KT[k + 1, t]
        for b in range(BLOCK):
            d0, d1 = loss_TB[t, b] - c0, loss_TB[t, b] - e0
            sqdist_2B[b] += d0 * d0
            sqdist_2B[BLOCK + b] += d1 * d1
        t += 1


@cached_njit
def _compare(sqdist_2B, k, least_2B, nearest_B):
    """Update the two least squared distances so far, and the number of the closest centroid."""
    number_one, number_other = np.int32(k), np.int32(k + 1)
    for b in range(BLOCK):
        one, other = sqdist_2B[b], sqdist_2B[BLOCK + b]
        least, second = least_2B[b], least_2B[BLOCK + b]
        swapped = other < one
        low = other if swapped else one
        high = one if swapped else other
        nearer = low < least
        beaten = least if nearer else low
        second = beaten if beaten < second else second
        least_2B[b] = low if nearer else least
        least_2B[BLOCK + b] = high if high < second else second
        number = number_other if swapped else number_one
        nearest_B[b] = number if nearer else nearest_B[b]


@cached_njit
def _exactly(loss_NT, n, even_KT):
    """Return the closest centroid and its squared distance; all are measured in float64."""
    label, least = np.int32(0), np.inf
    for k in range(len(even_KT)):
        sqdist = _sqdist(loss_NT, n, even_KT, k)
        if sqdist < least:
            label, least = np.int32(k), sqdist
    return label, least


@cached_njit
def _sqdist(loss_NT, n, centroid_KT, k):
    total = 0.0
    for t in range(loss_NT.shape[1]):
        difference = np.float64(loss_NT[n, t]) - np.float64(centroid_KT[k, t])
        total += difference * difference
    return total


@cached_njit
def totals_after(loss_GTB, weight_GB, even_CT, sqdist_GB, total_C):
    """Fill `total_C`, float64: for each candidate, the inertia if it were one more centroid.

    The inertia is the weighted sum of squared distances. Lanes are added up in their order,
    whatever the width of a register.

    Args:
        loss_GTB: float32 (G, T, B), the rows; the padding of the last block has no weight.
        weight_GB: int64 (G, B).
        even_CT: float32, the candidates, as `padded_to_even` returns them.
        sqdist_GB: float32 (G, B), squared distances from the closest centroid so far.
    """
    sqdist_2B = np.empty(2 * BLOCK, np.float32)
    total_CB = np.zeros((len(even_CT), BLOCK))
    for g in range(len(loss_GTB)):
        loss_TB = loss_GTB[g]
        for c in range(0, len(even_CT), 2):
            _approximate(loss_TB, even_CT, c, sqdist_2B)
            for b in range(BLOCK):
                weight, before = np.float64(weight_GB[g, b]), sqdist_GB[g, b]
                total_CB[c, b] += weight * min(sqdist_2B[b], before)
                total_CB[c + 1, b] += weight * min(sqdist_2B[BLOCK + b], before)
    for c in range(len(total_C)):
        total_C[c] = 0
        for b in range(BLOCK):
            total_C[c] += total_CB[c, b]


@cached_njit
def add_centroid(loss_GTB, weight_GB, even_CT, sqdist_GB, cumulative_GB):
    """Lower `sqdist_GB` to the distances with one more centroid, the first of `even_CT`.

    Fill `cumulative_GB`, float64, with their weighted sums up to each row.
    """
    sqdist_2B = np.empty(2 * BLOCK, np.float32)
    total = 0.0
    for g in range(len(loss_GTB)):
        _approximate(loss_GTB[g], even_CT, 0, sqdist_2B)
        for b in range(BLOCK):
            sqdist_GB[g, b] = min(sqdist_2B[b], sqdist_GB[g, b])
            total += weight_GB[g, b] * np.float64(sqdist_GB[g, b])
            cumulative_GB[g, b] = total


@cached_njit
def waiting_times(loss_NT, key_N, mean_1T, mean_sqdist, time_N, rate_N):
    """Fill `time_N` and `rate_N`, float64: the times are exponentially distributed at these rates.

    The rate of a row is 1/2 + d / (2 D), with d its squared distance from the mean and D the mean
    squared distance.

    Args:
        key_N: uint64 (N,), hashes, whose upper bits serve as uniform random numbers.
        mean_1T, mean_sqdist: those of the whole pool; if `mean_sqdist` is 0, every rate is 1.
    """
    for n in range(len(loss_NT)):
        uniform = (np.float64(key_N[n] >> np.uint64(11)) + 0.5) * 2.0**-53
        rate = 1.0
        if mean_sqdist > 0:
            rate = 0.5 + 0.5 * _sqdist(loss_NT, n, mean_1T, 0) / mean_sqdist
        rate_N[n] = rate
        time_N[n] = -np.log(uniform) / rate
