"""Surface distances between border voxels, unweighted: the convention of MedPy and MONAI.

A border voxel belongs to the mask and has a face neighbour that does not. Distances run between voxel centres and each
voxel counts once, so oblique surfaces count for less than with the area-weighted elements of ``evaluate/surface.py``,
which is what the rest of the package reports. This file exists to reproduce other tools' numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.evaluate.surface import _between, _check, _union_box


@dataclass(frozen=True)
class BorderDistances:
    """Distances from the border voxels of each mask to the border of the other.

    Attributes
    ----------
    fixed_to_moved, moved_to_fixed
        Distances in the order of the voxels; infinite where the other mask is empty.
    """

    fixed_to_moved: Float[ndarray, " f"]
    moved_to_fixed: Float[ndarray, " m"]

    def hausdorff(self, percent: float = 100.0, *, pooled: bool = False) -> float:
        """Hausdorff distance at a percentile, interpolated linearly between order statistics.

        ``pooled=False``: the larger of the two directed percentiles (MONAI). ``pooled=True``: the percentile of both
        directions' distances together (MedPy's ``hd95``). NaN if both masks are empty, infinite if one is.
        """
        if not self.fixed_to_moved.size or not self.moved_to_fixed.size:
            return float("inf" if self.fixed_to_moved.size or self.moved_to_fixed.size else "nan")
        if pooled:
            return float(np.percentile(np.concatenate([self.fixed_to_moved, self.moved_to_fixed]), percent))
        return float(max(np.percentile(d, percent) for d in (self.fixed_to_moved, self.moved_to_fixed)))

    def average(self, *, pooled: bool = False) -> float:
        """Average symmetric surface distance: mean of the two directed means (MedPy), or over all voxels (MONAI)."""
        if not self.fixed_to_moved.size or not self.moved_to_fixed.size:
            return float("inf" if self.fixed_to_moved.size or self.moved_to_fixed.size else "nan")
        if pooled:
            return float(np.concatenate([self.fixed_to_moved, self.moved_to_fixed]).mean())
        return float((self.fixed_to_moved.mean() + self.moved_to_fixed.mean()) / 2)


def border_distances(
    fixed: Shaped[ndarray, "*space"], moved: Shaped[ndarray, "..."], *, spacing: Iterable[float] | None = None
) -> BorderDistances:
    """Measure exact distances between the border voxels of two masks.

    Parameters
    ----------
    fixed, moved
        Masks of one shape, 2-D or 3-D. Outside the array is background.
    spacing
        Voxel size along each axis, mm; default 1.

    Raises
    ------
    InputError
        If shapes or dimensions do not agree.
    """
    from scipy import ndimage

    fixed, moved = np.asarray(fixed, bool), np.asarray(moved, bool)
    steps = _check(fixed, moved, spacing)
    box = _union_box(fixed, moved)
    if box is None:
        return BorderDistances(np.zeros(0), np.zeros(0))
    borders = []
    for mask in (fixed, moved):
        inside = np.pad(mask[box], 1)
        borders.append(inside & ~ndimage.binary_erosion(inside))
    return BorderDistances(*_between(borders[0], borders[1], steps))
