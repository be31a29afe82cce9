"""Maps of uncertainty beside a truth: a known transform, landmarks, or labels of both images.

Works out where to look and what the error is there; the numbers come from `verimorph.uncertainty.scoring`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.evaluate.consistency import DEFAULT_POINTS, lattice_points
from verimorph.evaluate.landmarks import MapsPoints, target_registration_error
from verimorph.image import Image
from verimorph.io.points import Points
from verimorph.io.validate import check_labels, check_mask, check_same_grid
from verimorph.uncertainty import metrics
from verimorph.uncertainty.maps import values_at
from verimorph.uncertainty.scoring import LARGE_ERROR_MM, score_bound, score_label_uncertainty


def against_transform(
    bound: Image,
    transform: MapsPoints,
    truth: MapsPoints,
    *,
    level: float,
    spread: Image | None = None,
    regions: Image | None = None,
    mask: Image | None = None,
    fixed: Image | None = None,
    large_error_mm: float = LARGE_ERROR_MM,
    max_points: int | None = DEFAULT_POINTS,
) -> dict[str, Any]:
    """Score a bound against a known transform: the error of a voxel is ``|| T(x) - T*(x) ||``, mm.

    Measured in the mask; without one over the anatomy of the fixed image; without that over the labels; else
    everywhere.

    Parameters
    ----------
    bound
        Bound of the error at every voxel of the fixed grid, mm; NaN where there is none.
    transform, truth
        What was found and what is right, both fixed to moving.
    level
        Level of the bound.
    spread
        Standard deviation of the displacement on the same grid, mm.
    regions
        Label map on the same grid: a row of the table for each label.
    mask, fixed
        Where to measure; see above.
    large_error_mm
        Errors above this are to be found.
    max_points
        Points of a regular lattice, at most about this many; ``None`` for every voxel.

    Returns
    -------
    What `score_bound` returns, and ``where``: the place in words.

    Raises
    ------
    InputError
        If a map is on another grid, or the bound holds values below 0.
    """
    _check_bound(bound)
    for image, role in ((spread, "displacement spread"), (fixed, "fixed image")):
        if image is not None:
            check_same_grid(bound, image, role, image_role="error bound")
    if regions is not None:
        check_labels(regions, bound, "regions")
    inside, where = _place(bound, mask, fixed, regions)
    points = lattice_points(bound.grid, mask=inside, max_points=max_points)
    index = tuple(np.rint(bound.grid.world_to_index(points)).astype(int).T)
    errors = np.linalg.norm(transform.map_points(points) - truth.map_points(points), axis=1)
    found = score_bound(
        errors,
        bound.array[index],
        level=level,
        spread_mm=None if spread is None else spread.array[index],
        groups=None if regions is None else regions.array[index],
        large_error_mm=large_error_mm,
        dimensions=bound.grid.ndim,
    )
    if found["n"] == 0:
        raise InputError(f"{bound.name} has no value anywhere in {where}")
    return {"where": where} | found


def against_landmarks(
    bound: Image,
    transform: MapsPoints,
    fixed_landmarks: Points,
    moving_landmarks: Points,
    *,
    level: float,
    spread: Image | None = None,
    large_error_mm: float = LARGE_ERROR_MM,
) -> dict[str, Any]:
    """Score a bound at landmarks: the error is ``|| T(p) - q ||``, mm, the bound is read at the fixed landmark.

    The error holds that of whoever set the landmarks, so a bound of the registration alone covers less here.

    Returns
    -------
    What `score_bound` returns; ``coverage_interval`` (Clopper-Pearson, 95 %), ``outside`` (landmarks where the map has
    no value, left out) and ``per_landmark``.

    Raises
    ------
    InputError
        If the lists do not correspond, no landmark lies in the map, or the bound holds values below 0.
    """
    _check_bound(bound)
    if spread is not None:
        check_same_grid(bound, spread, "displacement spread", image_role="error bound")
    points = np.asarray(fixed_landmarks.coordinates, float)
    if points.shape[1] != bound.grid.ndim:
        raise InputError(f"landmarks are {points.shape[1]}-D, the error bound {bound.name} is {bound.grid.ndim}-D")
    errors = target_registration_error(points, moving_landmarks.coordinates, transform)
    bounds = values_at(bound, points)
    known = ~np.isnan(bounds) & ~np.isnan(errors)
    if not known.any():
        raise InputError(
            f"none of the {len(points)} fixed landmarks lies where {bound.name} has a value; are they in another frame "
            "(LPS, voxels), or of another image?"
        )
    found = score_bound(
        errors[known],
        bounds[known],
        level=level,
        spread_mm=None if spread is None else values_at(spread, points[known]),
        large_error_mm=large_error_mm,
        dimensions=bound.grid.ndim,
    )
    names = fixed_landmarks.names or [str(n + 1) for n in range(len(points))]
    rows: list[dict[str, Any]] = [
        {"name": name, "error_mm": float(e), "bound_mm": float(b), "held": bool(e <= b)}
        for name, e, b in zip(names, errors, bounds, strict=True)
        if not np.isnan(e + b)
    ]
    interval = metrics.coverage_interval(sum(row["held"] for row in rows), len(rows))
    return found | {"coverage_interval": list(interval), "outside": int((~known).sum()), "per_landmark": rows}


def against_labels(
    uncertainty: Image,
    fixed_labels: Image,
    moved_labels: Image,
    *,
    labels: Iterable[int] | None = None,
    mask: Image | None = None,
) -> dict[str, Any]:
    """Score the uncertainty of moved labels against where they differ from the labels of the fixed image.

    Returns
    -------
    What `score_label_uncertainty` returns.

    Raises
    ------
    InputError
        If the maps are not on one grid or hold no labels.
    """
    for image, role in ((fixed_labels, "fixed labels"), (moved_labels, "moved labels")):
        check_labels(image, uncertainty, role)
    if mask is not None:
        check_mask(mask, uncertainty, "mask")
    found = score_label_uncertainty(
        np.asarray(fixed_labels.array).astype(np.int64),
        np.asarray(moved_labels.array).astype(np.int64),
        np.asarray(uncertainty.array, float),
        spacing=uncertainty.grid.spacing,
        labels=labels,
        mask=None if mask is None else np.asarray(mask.array) > 0,
    )
    if found["n_labels"] == 0:
        which = "any label" if labels is None else f"label {', '.join(str(n) for n in labels)}"
        raise InputError(
            f"neither {fixed_labels.name} nor {moved_labels.name} holds {which}; there is nothing to judge"
        )
    return found


def _place(
    bound: Image, mask: Image | None, fixed: Image | None, regions: Image | None
) -> tuple[Bool[ndarray, "*space"] | None, str]:
    """Voxels to measure on (``None``: all), and in words."""
    if mask is not None:
        check_mask(mask, bound, "mask")
        return np.asarray(mask.array) > 0, f"mask {mask.name}"
    if fixed is not None:
        from verimorph.uncertainty.known import foreground

        return foreground(fixed), f"anatomy of {fixed.name}"
    if regions is not None:
        return np.asarray(regions.array) > 0, f"labels of {regions.name}"
    return None, "every voxel"


def _check_bound(bound: Image) -> None:
    values = bound.array
    if not np.isfinite(values).any():
        raise InputError(f"error bound {bound.name}: no voxel holds a number; give the map that register wrote")
    if np.nanmin(values) < 0:
        raise InputError(
            f"error bound {bound.name}: holds values below 0 (down to {np.nanmin(values):.3g}); a bound is a length, mm"
        )
