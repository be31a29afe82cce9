"""Reading voxels that must not be mixed: the nearest one, and the vote of the neighbours. Exact for any voxel type."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray


def inside(index: Float[ndarray, "n d"], shape: tuple[int, ...]) -> np.ndarray:
    """Tell which indices lie in ``[-0.5, N - 0.5)`` along every axis, the test of ITK."""
    return ((index >= -0.5) & (index < np.array(shape) - 0.5)).all(axis=1)


def read_nearest(
    array: Shaped[ndarray, "*space"], index: Float[ndarray, "n d"], background: float | int | np.generic = 0
) -> Shaped[ndarray, " n"]:
    """Value of the nearest voxel, halves up as ITK rounds them; nothing passes through a float."""
    nearest = np.floor(index + 0.5).astype(np.intp)
    np.clip(nearest, 0, np.array(array.shape) - 1, out=nearest)
    values = array[tuple(nearest.T)]
    values[~inside(index, array.shape)] = background
    return values


def read_vote(
    array: Shaped[ndarray, "*space"], index: Float[ndarray, "n d"], background: float | int | np.generic = 0
) -> Shaped[ndarray, " n"]:
    """Label with the greatest linear-interpolation weight among the ``2^D`` neighbours.

    The same as interpolating the indicator image of every label linearly and taking the label of the largest value
    (ITK's and ANTs' generic label interpolation), at a cost and memory that do not depend on how many labels there are:
    only labels of the neighbours can win. Equal weights go to the smaller label.
    """
    d = array.ndim
    limit = np.array(array.shape) - 1
    low = np.floor(index)
    fraction = index - low
    low = low.astype(np.intp)
    corners = np.array(list(itertools.product((0, 1), repeat=d)), dtype=np.intp)
    labels = np.stack([array[tuple(np.clip(low + corner, 0, limit).T)] for corner in corners])
    values = labels[0].copy()
    mixed = np.flatnonzero((labels != labels[0]).any(axis=0))
    if mixed.size:
        weights = np.stack([np.where(corner, fraction[mixed], 1 - fraction[mixed]).prod(axis=1) for corner in corners])
        labels = labels[:, mixed]
        winner, most = labels[0].copy(), np.full(mixed.size, -1.0)
        for label in labels:
            votes = (weights * (labels == label)).sum(axis=0)
            tie = np.abs(votes - most) <= 1e-9
            better = (votes > most) & ~tie | tie & (label < winner)
            winner, most = np.where(better, label, winner), np.where(better, votes, most)
        values[mixed] = winner
    values[~inside(index, array.shape)] = background
    return values


def looks_like_labels(array: Shaped[ndarray, "*space"]) -> bool:
    """Tell whether integer voxels are a label map rather than measured intensities.

    Labels come in patches, intensities vary from voxel to voxel: a map has mostly equal neighbours where it is not
    zero. The test counts pairs along every axis of which at least one is not zero; more than half equal means labels.
    Voxels of a non-integer type are never taken for labels.
    """
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        return False
    equal = pairs = 0
    for axis, n in enumerate(array.shape):
        before, after = np.take(array, range(0, n - 1, 2), axis), np.take(array, range(1, n, 2), axis)
        counted = (before != 0) | (after != 0)
        pairs += int(counted.sum())
        equal += int(((before == after) & counted).sum())
    return pairs > 0 and equal > 0.5 * pairs
