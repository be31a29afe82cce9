"""How much two label maps agree: Dice, Jaccard, volume similarity, all labels from one joint histogram.

Rules for empty labels, the same for every measure of this file:

- a label in neither map has no value: NaN;
- a label in one map only overlaps nothing: 0 (volume similarity -2 or +2);
- label 0 is background and is left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, Shaped
from numpy import ndarray

from verimorph.errors import InputError

_LARGEST_TABLE = 1 << 22  # label values up to here are looked up in a table, larger or negative ones by binary search


@dataclass(frozen=True)
class OverlapCounts:
    """Voxel counts per label of two label maps on one grid.

    Attributes
    ----------
    labels
        Label values, ascending, ``(L,)``.
    intersection
        Voxels that have the label in both maps, ``(L,)``.
    fixed, moved
        Voxels that have the label in each map, ``(L,)``.
    """

    labels: Integer[ndarray, " l"]
    intersection: Integer[ndarray, " l"]
    fixed: Integer[ndarray, " l"]
    moved: Integer[ndarray, " l"]

    def dice(self) -> Float[ndarray, " l"]:
        """Dice coefficient ``2 |F n M| / (|F| + |M|)``, in [0, 1]; 1 is best; NaN where both are empty."""
        return _ratio(2.0 * self.intersection, self.fixed + self.moved)

    def jaccard(self) -> Float[ndarray, " l"]:
        """Jaccard index ``|F n M| / |F u M|``, in [0, 1]; 1 is best; NaN where both are empty."""
        return _ratio(self.intersection, self.fixed + self.moved - self.intersection)

    def volume_similarity(self) -> Float[ndarray, " l"]:
        """Signed relative volume difference ``2 (|M| - |F|) / (|M| + |F|)``, in [-2, 2]; > 0 where moved is larger.

        This is the form of ITK's ``LabelOverlapMeasures`` with fixed as target. Taha & Hanbury (2015) call
        ``1 - |this| / 2`` the volumetric similarity.
        """
        return _ratio(2.0 * (self.moved - self.fixed), self.fixed + self.moved)


def count_overlap(
    fixed_labels: Shaped[ndarray, "*space"], moved_labels: Shaped[ndarray, "..."], labels: Iterable[int] | None = None
) -> OverlapCounts:
    """Count the voxels of each label and of each intersection in one pass over a joint histogram.

    Parameters
    ----------
    fixed_labels, moved_labels
        Label maps of the same shape; integers, or floating point that holds integers.
    labels
        Which labels to count, in any order. Default: all of either map but 0.

    Raises
    ------
    InputError
        If the shapes differ, or a map holds fractions (it was interpolated as an intensity image).
    """
    fixed, moved = _integers(fixed_labels, "fixed labels"), _integers(moved_labels, "moved labels")
    if fixed.shape != moved.shape:
        raise InputError(
            f"fixed labels have shape {fixed.shape}, moved labels {moved.shape}; "
            "resample the moving labels to the fixed grid first"
        )
    # NIfTI voxels lie in Fortran order; reading both maps as they lie in memory saves a transposing copy
    order: Literal["F", "C"] = "F" if fixed.flags.f_contiguous and moved.flags.f_contiguous else "C"
    fixed_values, fixed_codes = _compact(fixed, order=order)
    moved_values, moved_codes = _compact(moved, order=order)
    width = len(moved_values)
    joint = np.bincount(
        np.multiply(fixed_codes, width, dtype=np.int64) + moved_codes, minlength=len(fixed_values) * width
    ).reshape(len(fixed_values), width)

    if labels is None:
        wanted = np.union1d(fixed_values, moved_values)
        wanted = wanted[wanted != 0]
    else:
        wanted = np.unique(np.fromiter(labels, dtype=np.int64))
    row, in_fixed = _find(wanted, fixed_values)
    column, in_moved = _find(wanted, moved_values)
    return OverlapCounts(
        labels=wanted,
        intersection=np.where(in_fixed & in_moved, joint[row, column], 0),
        fixed=np.where(in_fixed, joint.sum(1)[row], 0),
        moved=np.where(in_moved, joint.sum(0)[column], 0),
    )


def dice_per_label(
    fixed_labels: Shaped[ndarray, "*space"], moved_labels: Shaped[ndarray, "..."], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Dice coefficient of each label, ``2 |F n M| / (|F| + |M|)``.

    Parameters
    ----------
    fixed_labels, moved_labels
        Label maps on one grid.
    labels
        Labels to score. Default: all non-zero labels of either map.

    Returns
    -------
    dict
        Label to value in [0, 1], ascending labels; 1 is best. NaN for a label in neither map, 0 in one map only.

    Examples
    --------
    >>> dice_per_label(np.array([1, 1, 2, 0]), np.array([1, 2, 2, 0]), labels=[1, 2, 3])
    {1: 0.6666666666666666, 2: 0.6666666666666666, 3: nan}
    """
    counts = count_overlap(fixed_labels, moved_labels, labels)
    return _by_label(counts.labels, counts.dice())


def jaccard_per_label(
    fixed_labels: Shaped[ndarray, "*space"], moved_labels: Shaped[ndarray, "..."], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Jaccard index of each label, ``|F n M| / |F u M|``, in [0, 1]; NaN for a label in neither map."""
    counts = count_overlap(fixed_labels, moved_labels, labels)
    return _by_label(counts.labels, counts.jaccard())


def volume_similarity_per_label(
    fixed_labels: Shaped[ndarray, "*space"], moved_labels: Shaped[ndarray, "..."], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Signed relative volume difference of each label, ``2 (|M| - |F|) / (|M| + |F|)``; see `OverlapCounts`."""
    counts = count_overlap(fixed_labels, moved_labels, labels)
    return _by_label(counts.labels, counts.volume_similarity())


def label_values(labels: Shaped[ndarray, "*space"]) -> list[int]:
    """Return the label values of a map, ascending, without 0 (the background)."""
    values, _ = _compact(_integers(labels, "labels"), codes=False)
    return [int(v) for v in values if v != 0]


def _by_label(labels: ndarray, values: ndarray) -> dict[int, float]:
    return {int(label): float(value) for label, value in zip(labels, values, strict=True)}


def _ratio(numerator: ndarray, denominator: ndarray) -> Float[ndarray, " l"]:
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _integers(labels: ndarray, name: str) -> Integer[ndarray, "*space"]:
    """View as integers; a floating-point map is accepted only where it holds whole numbers."""
    array = np.asarray(labels)
    if array.dtype == bool:
        return array.view(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        return array
    whole = np.round(array)
    if not np.array_equal(whole, array):
        raise InputError(
            f"the {name} hold fractions or NaN, so they are not a label map; "
            "move labels with interpolation 'labels' or 'nearest'"
        )
    return whole.astype(np.int64)


def _compact(
    labels: Shaped[ndarray, "*space"], *, order: Literal["C", "F", "K"] = "K", codes: bool = True
) -> tuple[ndarray, ndarray]:
    """Return the values present and, flat, the position of each voxel's value among them (empty if not ``codes``)."""
    flat = labels.ravel(order=order)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if 0 <= low and high < _LARGEST_TABLE:
        present = np.bincount(flat, minlength=high + 1) > 0
        values = np.flatnonzero(present)
        if not codes:
            return values, values[:0]
        table = np.zeros(high + 1, dtype=np.int32)
        table[values] = np.arange(len(values))
        return values, table[flat]
    if codes:
        values, inverse = np.unique(flat, return_inverse=True)
        return values.astype(np.int64), inverse.ravel()
    return np.unique(flat).astype(np.int64), np.zeros(0, np.int64)


def _find(wanted: Sequence[int] | ndarray, values: ndarray) -> tuple[ndarray, ndarray]:
    if len(values) == 0:
        return np.zeros(len(wanted), int), np.zeros(len(wanted), bool)
    position = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return position, values[position] == wanted
