"""Non-diffeomorphic volume: how much of a digital map is folded, counted so that no fold can hide.

Liu, Chen, Wei, Carass, Prince: "On finite difference Jacobian computation in deformable image registration",
International Journal of Computer Vision 2024, doi 10.1007/s11263-024-02047-1. A positive central-difference determinant
does not certify that a map is invertible (a checkerboard has zero central difference). What does, between the grid
points, are the signed volumes of the simplices that the points around each voxel span. Written here from the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.errors import InputError

_SLAB_VOXELS = 1 << 18  # working set of a slab stays in the processor's cache


@dataclass(frozen=True)
class NonDiffeomorphism:
    """Folded space of a digital map: volume in 3-D (NDV), area in 2-D (NDA).

    Attributes
    ----------
    voxels
        Folded volume in voxel volumes (pixel areas in 2-D).
    percent
        The same as a share of the voxels that were counted.
    mm
        The same in mm^3 (mm^2 in 2-D).
    folding_voxels
        Voxels with at least one determinant <= 0.
    map
        Folded volume at each voxel, in voxel volumes, shaped as the grid; 0 outside the mask.
    """

    voxels: float
    percent: float
    mm: float
    folding_voxels: int
    map: Float[ndarray, "*space"]


def non_diffeomorphic_volume(
    displacement: Shaped[ndarray, "..."],
    *,
    spacing: Iterable[float] | None = None,
    mask: Shaped[ndarray, "..."] | None = None,
) -> NonDiffeomorphism:
    r"""Measure the non-diffeomorphic volume (3-D) or area (2-D) of a displacement field.

    With the map ``P(x) = x + u(x)`` in voxels, continued past the border with the border's displacement:

    - one-sided determinants: column a is ``P(x + e_a) - P(x)`` or ``P(x) - P(x - e_a)``; all combinations, 8 in 3-D
      (six times the signed volumes of the corner tetrahedra of the voxel's eight octants) and 4 in 2-D;
    - in 3-D two more, of the central tetrahedra of the two ways to cut a cube into five,
      ``det[P(x-e1-e2), P(x-e1-e3), P(x-e2-e3)]`` and ``det[P(x+e1+e2), P(x+e2+e3), P(x+e1+e3)]``, each column less
      ``P(x)``;
    - ``NDV = sum_x sum_dets max(-det, 0) / 2 / 6`` (half, for every point of space is covered by two cuttings), and
      ``NDA = sum_x sum_dets max(-det, 0) / 2 / 2``.

    0 if and only if the piecewise linear map is invertible everywhere. Spacing plays no part but in the unit mm^3.

    Parameters
    ----------
    displacement
        Field in voxels of its own grid, ``(D, *shape)`` or ``(1, D, *shape)``, channel d along axis d. Not written to.
    spacing
        Voxel size along each axis, mm, for the volume in mm^3. Default 1.
    mask
        Voxels to count; default all.

    Raises
    ------
    InputError
        If shapes do not fit or the mask is empty.
    """
    field = np.asarray(displacement)
    if field.ndim in (4, 5) and field.shape[0] == 1 and field.ndim - 2 == field.shape[1]:
        field = field[0]
    d = field.ndim - 1
    if d not in (2, 3) or field.shape[0] != d:
        raise InputError(f"a displacement field has shape (D, *shape) with D = 2 or 3, got {field.shape}")
    shape = field.shape[1:]
    inside = np.ones(shape, bool) if mask is None else np.asarray(mask) > 0
    if inside.shape != shape:
        raise InputError(f"the mask has shape {inside.shape}, the field {shape}; use one grid")
    counted = int(np.count_nonzero(inside))
    if counted == 0:
        raise InputError("the mask is empty: no voxel left to measure folding on")

    folded_volume = np.zeros(shape, np.float64)
    folds = np.zeros(shape, bool)
    thickness = max(1, _SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], thickness):
        stop = min(start + thickness, shape[0])
        rows = np.arange(start - 1, stop + 1).clip(0, shape[0] - 1)
        padding = [(0, 0), (0, 0), *[(1, 1)] * (d - 1)]
        slab = np.pad(field[:, rows].astype(np.float64), padding, mode="edge")
        folded_volume[start:stop], folds[start:stop] = _folded(slab)

    factor = 0.5 / (6 if d == 3 else 2)
    folded_volume *= np.where(inside, factor, 0.0)
    total = float(folded_volume.sum())
    cell = float(np.prod(np.ones(d) if spacing is None else np.array(tuple(spacing), float)))
    return NonDiffeomorphism(
        voxels=total,
        percent=100.0 * total / counted,
        mm=total * cell,
        folding_voxels=int(np.count_nonzero(folds & inside)),
        map=folded_volume,
    )


def _folded(slab: Float[ndarray, "d *padded"]) -> tuple[ndarray, ndarray]:
    """Sum of the negative parts of all determinants, and where any is not positive, on the inside of a padded slab."""
    d = slab.shape[0]

    def step(offset: tuple[int, ...]) -> Float[ndarray, "d *space"]:
        """P(x + offset) - P(x)."""
        moved = tuple(slice(1 + o, slab.shape[a + 1] - 1 + o) for a, o in enumerate(offset))
        centre = (slice(1, -1),) * d
        return slab[(slice(None), *moved)] - slab[(slice(None), *centre)] + np.reshape(offset, (d,) + (1,) * d)

    unit = np.eye(d, dtype=int).tolist()
    # column of axis a: forward difference, and backward difference P(x) - P(x - e_a)
    sides = [(step(tuple(e)), -step(tuple(-n for n in e))) for e in unit]
    negative = np.zeros(sides[0][0].shape[1:])
    folds = np.zeros(negative.shape, bool)
    for choice in product((0, 1), repeat=d):
        _add(_determinant([sides[a][c] for a, c in enumerate(choice)]), negative, folds)
    if d == 3:
        _add(_determinant([step((-1, -1, 0)), step((-1, 0, -1)), step((0, -1, -1))]), negative, folds)
        _add(_determinant([step((1, 1, 0)), step((0, 1, 1)), step((1, 0, 1))]), negative, folds)
    return negative, folds


def _add(determinant: ndarray, negative: ndarray, folds: ndarray) -> None:
    folds |= determinant <= 0
    negative -= np.minimum(determinant, 0.0)


def _determinant(columns: list[Float[ndarray, "d *space"]]) -> Float[ndarray, "*space"]:
    if len(columns) == 2:
        a, b = columns
        return a[0] * b[1] - a[1] * b[0]
    a, b, c = columns
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
