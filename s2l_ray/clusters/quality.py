"""Measures of a clustering: its silhouette, and its agreement with another clustering.

scikit-learn has both measures. It is not used: other last digits would change manifests, and its
import takes 2.4 s and 140 MiB in every worker.

Shape letters: S rows, T checkpoints, A and B clusters of two clusterings.
"""

import numpy as np


def silhouette(loss_ST: np.ndarray, label_S: np.ndarray) -> float:
    """Return the mean over rows of (b - a) / max(a, b).

    a is the mean distance of a row to the others of its cluster. b is the least mean distance to
    the rows of another cluster. A row that is alone in its cluster counts 0. Clusters that are well
    apart give 1; rows on the border between clusters give 0.

    Args:
        loss_ST: float array (S, T). S * S distances are computed, S at a time.
        label_S: integer array (S,), of at least two clusters.

    Raises:
        ValueError: there are fewer than two clusters.

    Source:
        Rousseeuw (1987), doi:10.1016/0377-0427(87)90125-7.
    """
    names, label_S = np.unique(label_S, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"a silhouette needs two clusters, not {len(names)}")
    count_A = np.bincount(label_S)
    loss_ST = loss_ST.astype(np.float64)
    total = 0.0
    for loss_T, label in zip(loss_ST, label_S, strict=True):
        if count_A[label] == 1:
            continue
        distance_S = np.sqrt(((loss_ST - loss_T) ** 2).sum(axis=1))
        sum_A = np.bincount(label_S, distance_S)
        inside = sum_A[label] / (count_A[label] - 1)
        mean_A = sum_A / count_A
        mean_A[label] = np.inf
        outside = mean_A.min()
        larger = max(inside, outside)
        total += (outside - inside) / larger if larger else 0.0
    return total / len(label_S)


def adjusted_rand_index(
    label_S: np.ndarray, other_S: np.ndarray, count_S: np.ndarray | None = None
) -> float:
    """Return the share of pairs of rows that two clusterings treat alike, corrected for chance.

    1 means equal clusterings; 0 is what independent clusterings give on average.

    Args:
        label_S, other_S: integer arrays (S,), the clusters of the same rows.
        count_S: how many rows each entry stands for; None for one.

    Source:
        Hubert and Arabie (1985), doi:10.1007/BF01908075.
    """
    count_S = np.ones(len(label_S)) if count_S is None else count_S
    _, label_S = np.unique(label_S, return_inverse=True)
    _, other_S = np.unique(other_S, return_inverse=True)
    _, both_S = np.unique(label_S * np.int64(len(other_S)) + other_S, return_inverse=True)
    together, first, second = (
        _pairs(np.bincount(group_S, count_S)) for group_S in (both_S, label_S, other_S)
    )
    chance = first * second / max(_pairs(np.array([count_S.sum()])), 1.0)
    most = (first + second) / 2
    return float((together - chance) / (most - chance)) if most != chance else 1.0


def _pairs(count_A: np.ndarray) -> float:
    return float((count_A * (count_A - 1.0)).sum() / 2)
