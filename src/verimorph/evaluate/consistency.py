"""Whole-field errors in millimetres: inverse consistency, and distance to a known transform."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.evaluate.landmarks import MapsPoints, summarise_errors
from verimorph.grid import Grid

DEFAULT_POINTS = 200_000


def lattice_points(
    grid: Grid, *, mask: Shaped[ndarray, "..."] | None = None, max_points: int | None = DEFAULT_POINTS
) -> Float[ndarray, "n d"]:
    """World positions of voxel centres: all, or every k-th along each axis so that at most ``max_points`` remain.

    The subset is a regular lattice centred in the grid, so the same grid always gives the same points. With a mask the
    spacing of the lattice follows the number of voxels inside it.

    Parameters
    ----------
    grid
        Where the voxels are.
    mask
        Voxels to take (non-zero), shaped as the grid.
    max_points
        Upper bound (approximate with a mask); ``None`` takes every voxel.

    Raises
    ------
    InputError
        If the mask is on another grid or empty.
    """
    chosen = None
    size = grid.size
    if mask is not None:
        chosen = np.asarray(mask) > 0
        if chosen.shape != grid.shape:
            raise InputError(f"the mask has shape {chosen.shape}, the grid {grid.shape}; resample the mask to the grid")
        size = int(np.count_nonzero(chosen))
        if size == 0:
            raise InputError("the mask is empty: no voxel to measure on")
    step = 1
    while max_points is not None and size / step**grid.ndim > max_points:
        step += 1
    axes = [np.arange((n - 1) % step // 2, n, step) for n in grid.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    if chosen is None:
        return grid.index_to_world(index.reshape(-1, grid.ndim))
    inside = chosen[np.ix_(*axes)]
    if not inside.any():  # a mask thinner than the lattice: take its own voxels
        found = np.argwhere(chosen)
        return grid.index_to_world(found[:: max(1, len(found) // max_points)] if max_points else found)
    return grid.index_to_world(index[inside])


def inverse_consistency_error(
    transform: MapsPoints,
    inverse: MapsPoints,
    *,
    fixed_grid: Grid,
    moving_grid: Grid,
    fixed_mask: Shaped[ndarray, "..."] | None = None,
    moving_mask: Shaped[ndarray, "..."] | None = None,
    max_points: int | None = DEFAULT_POINTS,
) -> dict:
    """How far a point lands from itself after going there and back, in mm, both ways.

    ``forward``: ``|| T^-1(T(x)) - x ||`` for x over the fixed grid; ``backward``: ``|| T(T^-1(y)) - y ||`` for y over
    the moving grid. A point whose way leaves the other image, or the grid on which a dense part of either transform
    is defined, has no answer: it is excluded, and the excluded fraction is reported beside the error.

    Parameters
    ----------
    transform, inverse
        Fixed to moving, and moving to fixed (anything with ``map_points``; parts of a composite are followed).
    fixed_grid, moving_grid
        Grids of the two images.
    fixed_mask, moving_mask
        Voxels to start from; default all.
    max_points
        Points per direction (a regular lattice); ``None`` for every voxel.

    Returns
    -------
    dict
        ``forward`` and ``backward``, each the summary of `summarise_errors` plus ``excluded_fraction``.
    """
    return {
        "forward": _round_trip(transform, inverse, fixed_grid, moving_grid, fixed_mask, max_points),
        "backward": _round_trip(inverse, transform, moving_grid, fixed_grid, moving_mask, max_points),
    }


def endpoint_error(
    transform: MapsPoints,
    truth: MapsPoints,
    *,
    grid: Grid,
    mask: Shaped[ndarray, "..."] | None = None,
    max_points: int | None = None,
) -> Float[ndarray, " n"]:
    """Distance in mm between where a transform and the true transform send each point of the fixed grid.

    ``EPE(x) = || T(x) - T*(x) ||_2``. Both transforms must go the same way, fixed to moving.

    Parameters
    ----------
    transform, truth
        The transform to judge and the known one.
    grid, mask, max_points
        Where to measure; see `lattice_points`. Default: every voxel of the grid.

    Returns
    -------
    Errors in mm, one a point.
    """
    points = lattice_points(grid, mask=mask, max_points=max_points)
    return np.linalg.norm(transform.map_points(points) - truth.map_points(points), axis=1)


def _round_trip(
    there: MapsPoints, back: MapsPoints, start: Grid, other: Grid, mask: ndarray | None, max_points: int | None
) -> dict:
    points = lattice_points(start, mask=mask, max_points=max_points)
    away, defined = _follow(there, points)
    defined &= other.contains(away)
    home, defined_back = _follow(back, away)
    defined &= defined_back
    errors = np.linalg.norm(home - points, axis=1)[defined]
    return summarise_errors(errors) | {"excluded_fraction": float(1.0 - defined.mean())}


def _follow(transform: MapsPoints, points: ndarray) -> tuple[ndarray, ndarray]:
    """Map points and tell which stayed inside the grid of every dense part on their way."""
    parts = getattr(transform, "parts", None)
    if parts is None:
        grid = getattr(transform, "grid", None)
        inside = grid.contains(points) if isinstance(grid, Grid) else np.ones(len(points), bool)
        return np.asarray(transform.map_points(points)), inside
    inside = np.ones(len(points), bool)
    for part in parts:
        points, here = _follow(part, points)
        inside &= here
    return points, inside
