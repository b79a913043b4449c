"""The closest centroid of every trajectory, and sums per cluster that follow moving centroids.

Compiled by numba: a pass of k-means is a few operations per row and centroid, and in numpy each of
them is a pass through memory. Squared distances in float32 leave the centroids that can be closest;
these (one, for most rows) are measured in float64, one checkpoint after the other. So a row's
result does not depend on the other rows, on their order or number, or on the width of a register.

Shape letters: N rows, T checkpoints, K clusters.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
# numba compiles a function for the types it is called with.

import numpy as np

from s2l_ray.maths.compiled import compiled as _compiled

LOSS_UNIT_NATS = 2.0**-24
SQDIST_UNIT = 2.0**-20

_UNDERFLOW = np.float32(1e-30).view(np.int32)
"""Squares below this have lost digits in float32: as distances they count as none."""
UNSEEN = -1
_ROUNDING = 2.0**-22
"""More than what storing a distance in float32 changes, relative to it."""


@_compiled
def closest(loss_NT, centroid_KT, label_N, sqdist_N):
    """Fill `label_N` (ties: the lowest cluster) and `sqdist_N`, float64, nats squared."""
    centroid_TK = np.ascontiguousarray(centroid_KT.T)
    sqdist_K = np.empty(len(centroid_KT), np.float32)
    for n in range(len(loss_NT)):
        label_N[n], sqdist_N[n], _ = _scanned(loss_NT[n], centroid_KT, centroid_TK, sqdist_K)


@_compiled
def distances(loss_NT, centroid_KT, label_N, sqdist_N):
    """Fill `sqdist_N`, float64, with squared distances to the centroids of these labels."""
    for n in range(len(loss_NT)):
        sqdist_N[n] = _sqdist(loss_NT[n], centroid_KT[label_N[n]])


@_compiled
def follow(
    loss_NT,
    weight_N,
    centroid_KT,
    drift_K,
    label_N,
    lower_N,
    loss_sum_KT,
    count_K,
    sqdist_sum_K,
    total_K,
):
    """Bring labels, bounds and sums from the previous centroids to these; look at few rows twice.

    A row whose centroid is closer than the lower bound of all others keeps it. Other rows are
    scanned, and where the label changes their losses move from one sum to the other: sums are
    integers, so they are what a sum from scratch would be.

    Args:
        loss_NT: float32 (N, T).
        weight_N: int64 (N,), how many rows each stands for; empty where it is one.
        centroid_KT: float32 (K, T).
        drift_K: float64 (K,), how far each centroid has moved since the last call, nats.
        label_N: int32 (N,), -1 for a row not seen before; changed.
        lower_N: float32 (N,), a lower bound of the distance to the second closest; changed.
        loss_sum_KT, count_K: int64, of the rows seen before; changed.
        sqdist_sum_K: int64 (K,), overwritten.
        total_K: float64 (K,), zeros; the same sums in nats squared, which tell whether integers
            hold them.

    Source:
        One bound per row is Hamerly's (2010), doi:10.1137/1.9781611972801.12.
    """
    centroid_TK = np.ascontiguousarray(centroid_KT.T)
    sqdist_K = np.empty(len(centroid_KT), np.float32)
    sqdist_sum_K[:] = 0
    farthest = np.argmax(drift_K)
    most = drift_K[farthest]
    next_most = 0.0
    for k in range(len(drift_K)):
        if k != farthest:
            next_most = max(next_most, drift_K[k])
    for n in range(len(loss_NT)):
        weight = weight_N[n] if len(weight_N) else 1
        old = label_N[n]
        label, sqdist = old, 0.0
        kept = False
        if old != UNSEEN:
            before = np.float64(lower_N[n])
            moved = next_most if old == farthest else most
            bound = before - moved - _ROUNDING * (before + moved)
            sqdist = _sqdist(loss_NT[n], centroid_KT[old])
            kept = bound > 0 and sqdist < bound * bound
            lower_N[n] = bound
        if not kept:
            label, sqdist, second = _scanned(loss_NT[n], centroid_KT, centroid_TK, sqdist_K)
            lower_N[n] = np.sqrt(second) * (1 - _ROUNDING)
        if label != old:
            label_N[n] = label
            count_K[label] += weight
            if old != UNSEEN:
                count_K[old] -= weight
            for t in range(loss_NT.shape[1]):
                units = weight * np.int64(np.rint(np.float64(loss_NT[n, t]) / LOSS_UNIT_NATS))
                loss_sum_KT[label, t] += units
                if old != UNSEEN:
                    loss_sum_KT[old, t] -= units
        sqdist_sum_K[label] += weight * np.int64(np.rint(sqdist / SQDIST_UNIT))
        total_K[label] += weight * sqdist


@_compiled
def _scanned(loss_T, centroid_KT, centroid_TK, sqdist_K):
    """The closest centroid, its squared distance, and a lower bound of the second closest's."""
    _approximate(loss_T, centroid_TK, sqdist_K)
    # The bits of floats that are not negative are in the order of the floats, and integers have
    # a minimum that is vectorised.
    bits_K = sqdist_K.view(np.int32)
    num_clusters = len(bits_K)
    least = bits_K[0]
    for k in range(1, num_clusters):
        least = min(least, bits_K[k])
    # One in the last place is at least 2^-24 of the value, and each of the T terms of a sum adds
    # less than three of these errors to it, on either side of the comparison.
    slack = np.int32(4 * len(loss_T) + 16)
    reach = max(least + slack, _UNDERFLOW)
    num_candidates, places = np.int32(0), np.int32(0)
    for k in range(num_clusters):
        inside = np.int32(1) if bits_K[k] <= reach else np.int32(0)
        num_candidates += inside
        places += inside * np.int32(k)
    label = places
    if num_candidates > 1:
        label = np.int32(0)
        while bits_K[label] > reach:
            label += np.int32(1)
    sqdist = _sqdist(loss_T, centroid_KT[label])
    if num_candidates > 1:
        for k in range(label + 1, num_clusters):
            if bits_K[k] <= reach:
                other = _sqdist(loss_T, centroid_KT[k])
                if other < sqdist:
                    label, sqdist = np.int32(k), other
        # Two that are this near each other bound nothing.
        return label, sqdist, 0.0
    bits_K[label] = np.int32(0x7F800000)
    second = bits_K[0]
    for k in range(1, num_clusters):
        second = min(second, bits_K[k])
    bits_K[0] = max(second - slack, 0)
    return label, sqdist, np.float64(sqdist_K[0])


@_compiled
def _approximate(loss_T, centroid_TK, sqdist_K):
    """Squared distances in float32; four checkpoints at a time spare loads and stores."""
    num_checkpoints, num_clusters = centroid_TK.shape
    sqdist_K[:] = 0
    t = 0
    while t + 3 < num_checkpoints:
        x0, x1, x2, x3 = loss_T[t], loss_T[t + 1], loss_T[t + 2], loss_T[t + 3]
        for k in range(num_clusters):
            d0, d1 = x0 - centroid_TK[t, k], x1 - centroid_TK[t + 1, k]
            d2, d3 = x2 - centroid_TK[t + 2, k], x3 - centroid_TK[t + 3, k]
            sqdist_K[k] = sqdist_K[k] + d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
        t += 4
    while t < num_checkpoints:
        x0 = loss_T[t]
        for k in range(num_clusters):
            d0 = x0 - centroid_TK[t, k]
            sqdist_K[k] += d0 * d0
        t += 1


@_compiled
def _sqdist(a_T, b_T):
    total = 0.0
    for t in range(len(a_T)):
        difference = np.float64(a_T[t]) - np.float64(b_T[t])
        total += difference * difference
    return total


@_compiled
def least_after(sample_TS, weight_S, chosen_T, sqdist_S, left_S):
    """Fill `left_S` with squared distances once `chosen_T` is a centroid, too; the weighted sum."""
    block = 1024
    total = 0.0
    new_B = np.empty(block, np.float32)
    for start in range(0, len(sqdist_S), block):
        size = min(block, len(sqdist_S) - start)
        new_B[:] = 0
        for t in range(len(chosen_T)):
            x = chosen_T[t]
            for s in range(size):
                difference = sample_TS[t, start + s] - x
                new_B[s] += difference * difference
        for s in range(size):
            least = min(new_B[s], sqdist_S[start + s])
            left_S[start + s] = least
            total += weight_S[start + s] * np.float64(least)
    return total


@_compiled
def waiting_times(loss_NT, key_N, mean_T, mean_sqdist, time_N, rate_N):
    """Fill `time_N` and `rate_N`, float64: when each row is drawn, exponentially at its rate.

    The rate is 1/2 and half the squared distance from the mean, as a multiple of the average one.

    Args:
        key_N: uint64 (N,), hashes, whose upper bits are uniform numbers.
        mean_T, mean_sqdist: float64, of the whole pool; with no distance, every rate is 1.
    """
    for n in range(len(loss_NT)):
        uniform = (np.float64(key_N[n] >> np.uint64(11)) + 0.5) * 2.0**-53
        rate = 0.5 + 0.5 * _sqdist(loss_NT[n], mean_T) / mean_sqdist if mean_sqdist > 0 else 1.0
        rate_N[n] = rate
        time_N[n] = -np.log(uniform) / rate
