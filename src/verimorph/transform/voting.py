"""Reading voxels that must not be mixed: the nearest one, and the vote of the neighbours. Exact for any voxel type."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray


def inside(index: Float[ndarray, "d n"], shape: tuple[int, ...]) -> np.ndarray:
    """Tell which indices lie in ``[-0.5, N - 0.5)`` along every axis, the test of ITK."""
    found = np.ones(index.shape[1], dtype=bool)
    for coordinate, n in zip(index, shape, strict=True):
        found &= (coordinate >= -0.5) & (coordinate < n - 0.5)
    return found


def read_nearest(
    array: Shaped[ndarray, "*space"], index: Float[ndarray, "d n"], background: float | int | np.generic = 0
) -> Shaped[ndarray, " n"]:
    """Value of the nearest voxel, halves up as ITK rounds them; nothing passes through a float."""
    flat = np.zeros(index.shape[1], dtype=np.intp)
    for coordinate, n in zip(index, array.shape, strict=True):
        flat = flat * n + np.clip(np.floor(coordinate + 0.5), 0, n - 1).astype(np.intp)
    values = array.reshape(-1)[flat]
    values[~inside(index, array.shape)] = background
    return values


def read_vote(
    array: Shaped[ndarray, "*space"], index: Float[ndarray, "d n"], background: float | int | np.generic = 0
) -> Shaped[ndarray, " n"]:
    """Label with the greatest linear-interpolation weight among the ``2^D`` neighbours.

    The same as interpolating the indicator image of every label linearly and taking the label of the largest value
    (ITK's and ANTs' generic label interpolation), at a cost and memory that do not depend on how many labels there are:
    only labels of the neighbours can win. Equal weights go to the smaller label.
    """
    ends, fractions = [], []
    for coordinate, n in zip(index, array.shape, strict=True):
        low = np.floor(coordinate)
        fractions.append(coordinate - low)
        low = low.astype(np.intp)
        ends.append((np.clip(low, 0, n - 1), np.clip(low + 1, 0, n - 1)))
    flat_array = array.reshape(-1)
    corners = list(itertools.product((0, 1), repeat=array.ndim))
    labels = np.empty((len(corners), index.shape[1]), dtype=array.dtype)
    for label, corner in zip(labels, corners, strict=True):
        flat = ends[0][corner[0]]
        for d in range(1, array.ndim):
            flat = flat * array.shape[d] + ends[d][corner[d]]
        np.take(flat_array, flat, out=label)
    values = labels[0].copy()
    mixed = np.flatnonzero((labels != labels[0]).any(axis=0))
    if mixed.size:
        values[mixed] = _winner(labels[:, mixed], [f[mixed] for f in fractions], corners)
    values[~inside(index, array.shape)] = background
    return values


def _winner(labels: ndarray, fractions: list[ndarray], corners: list[tuple[int, ...]]) -> ndarray:
    """Label with the largest sum of weights, for points whose corners differ."""
    weights = np.ones(labels.shape)
    for weight, corner in zip(weights, corners, strict=True):
        for fraction, end in zip(fractions, corner, strict=True):
            weight *= fraction if end else 1 - fraction
    winner, most = labels[0].copy(), np.full(labels.shape[1], -1.0)
    for label in labels:
        votes = (weights * (labels == label)).sum(axis=0)
        tie = np.abs(votes - most) <= 1e-9
        better = (votes > most) & ~tie | tie & (label < winner)
        winner, most = np.where(better, label, winner), np.where(better, votes, most)
    return winner


def looks_like_labels(array: Shaped[ndarray, "*space"]) -> bool:
    """Tell whether voxels are labels rather than measured intensities.

    Labels are whole numbers, whatever the type of the voxels, and either few (at most 32 different ones, as in masks
    and marked points) or in patches: where intensities vary from voxel to voxel, a label map has mostly equal
    neighbours. Counted are pairs along every axis of which at least one is not zero; over half equal means labels.
    """
    if array.dtype.kind not in "buif" or array.size == 0:
        return False
    if array.dtype.kind == "f" and not bool((array == np.rint(array)).all()):
        return False
    if _few_values(array):
        return True
    equal = pairs = 0
    for axis, n in enumerate(array.shape):
        before, after = np.take(array, range(0, n - 1, 2), axis), np.take(array, range(1, n, 2), axis)
        counted = (before != 0) | (after != 0)
        pairs += int(counted.sum())
        equal += int(((before == after) & counted).sum())
    return equal > 0.5 * pairs


def _few_values(array: ndarray, limit: int = 32) -> bool:
    """Whether at most ``limit`` different values occur. Stops at the first stretch of voxels that has more."""
    seen = np.empty(0, dtype=array.dtype)
    flat = array.ravel(order="K")
    for start in range(0, flat.size, 1 << 18):
        seen = np.unique(np.concatenate([seen, np.unique(flat[start : start + (1 << 18)])]))
        if seen.size > limit:
            return False
    return True
