"""The numbers of the Learn2Reg evaluator, quirks included, from its documented definitions. Never mix with honest ones.

Where they differ from what their names say (``docs/metrics.md`` has a table with an example):

- *SDlogJ* is ``std(log(clip(det J + 3, 1e-9, 1e9)))``: the shift makes it about a quarter of the standard deviation of
  log det J, and a fold counts only below -3;
- *num_foldings* tests the shifted, clipped determinant for <= 0 and so is always 0;
- *HD95* has spacing (1, 1, 1): it is in voxels;
- *TRE* samples the field by cubic spline and multiplies the voxel difference by the spacing of the moving image;
- labels are moved with nearest neighbour, where a point past the outermost voxel *centre* is background;
- a label missing before registration counts for nothing, a label lost by registration has Dice 0 and infinite HD95,
  which makes the mean infinite.

A displacement here is a Learn2Reg field: ``(X, Y, Z, 3)`` in voxels; fixed voxel i corresponds to moving voxel
i + d(i).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.evaluate.overlap import count_overlap
from verimorph.evaluate.robustness import robust30_quantile
from verimorph.evaluate.surface import surface_distances_per_label
from verimorph.grid import Grid
from verimorph.transform import Affine, Transform

JACOBIAN_SHIFT = 3.0
JACOBIAN_CLIP = (1e-9, 1e9)
BORDER = 2


def voxel_displacement(transform: Transform, *, fixed_grid: Grid, moving_grid: Grid) -> Float[ndarray, "*space d"]:
    """Write a transform as a Learn2Reg field: from voxels of the fixed to voxels of the moving grid, in voxels.

    ``d(i) = A_moving^-1 T(A_fixed i) - i``; with both images on one grid this is the displacement on that grid.
    """
    # seen from a fixed grid on which the moving voxels had the fixed ones' places, d is a plain displacement
    renumbered = transform.then(Affine(fixed_grid.affine @ moving_grid.inverse_affine))
    return np.ascontiguousarray(np.moveaxis(renumbered.displacement_on(fixed_grid)[0].cpu().numpy(), 0, -1))


def warp_labels(moving_labels: Shaped[ndarray, "..."], displacement: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
    """Move labels as the challenge does: spline order 0, background past the outermost voxel centres."""
    from scipy import ndimage

    index = np.indices(displacement.shape[:-1], dtype=np.float64)
    return ndimage.map_coordinates(np.asarray(moving_labels), index + np.moveaxis(displacement, -1, 0), order=0)


def jacobian_determinant(displacement: Shaped[ndarray, "..."]) -> Float[ndarray, "x y z"]:
    """Jacobian determinant by central differences of voxel units, without the two outermost voxels of each side."""
    field = np.moveaxis(np.asarray(displacement, dtype=np.float64), -1, 0)
    gradient = np.empty((3, 3, *(n - 2 * BORDER for n in field.shape[1:])))

    def shifted(axis: int, step: int) -> ndarray:
        inner = [slice(BORDER, n - BORDER) for n in field.shape[1:]]
        inner[axis] = slice(BORDER + step, field.shape[axis + 1] - BORDER + step)
        return field[(slice(None), *inner)]

    for axis in range(3):
        gradient[:, axis] = (shifted(axis, 1) - shifted(axis, -1)) / 2
        gradient[axis, axis] += 1
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))


def sd_log_jacobian_plus_3(displacement: Shaped[ndarray, "..."], mask: Shaped[ndarray, "..."] | None = None) -> float:
    """The challenge's SDlogJ: ``std(log(clip(det J + 3, 1e-9, 1e9)))`` over the inner voxels (those in the mask)."""
    shifted = np.log((jacobian_determinant(displacement) + JACOBIAN_SHIFT).clip(*JACOBIAN_CLIP))
    if mask is not None:
        shifted = shifted[np.asarray(mask)[(slice(BORDER, -BORDER),) * 3] > 0]
    return float(shifted.std())


def target_registration_error(
    fixed_voxels: Shaped[ndarray, "..."],
    moving_voxels: Shaped[ndarray, "..."],
    displacement: Shaped[ndarray, "..."],
    *,
    moving_spacing: Iterable[float],
) -> Float[ndarray, " n"]:
    """The challenge's TRE in mm, ``|| (p + d(p) - q) * s_moving ||``: field by cubic spline; points in voxels."""
    from scipy import ndimage

    fixed, moving = np.asarray(fixed_voxels, float), np.asarray(moving_voxels, float)
    if fixed.shape != moving.shape:
        raise InputError(f"{len(fixed)} fixed and {len(moving)} moving landmarks; they must correspond row by row")
    carried = np.stack([ndimage.map_coordinates(displacement[..., c], fixed.T) for c in range(3)], axis=1)
    return np.linalg.norm((fixed + carried - moving) * np.array(tuple(moving_spacing)), axis=1)


def challenge_score(
    displacement: Shaped[ndarray, "..."],
    *,
    fixed_labels: Shaped[ndarray, "..."] | None = None,
    moving_labels: Shaped[ndarray, "..."] | None = None,
    labels: Sequence[int] | None = None,
    fixed_voxels: Shaped[ndarray, "..."] | None = None,
    moving_voxels: Shaped[ndarray, "..."] | None = None,
    moving_spacing: Iterable[float] = (1.0, 1.0, 1.0),
    mask: Shaped[ndarray, "..."] | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Score one case as the Learn2Reg evaluator (version 2.0) does.

    Parameters
    ----------
    displacement
        Learn2Reg field, ``(X, Y, Z, 3)``, voxels.
    fixed_labels, moving_labels
        Label maps on the fixed grid and the moving grid (the challenge has one shape for both).
    labels
        Labels of the task; default all non-zero labels of the fixed map.
    fixed_voxels, moving_voxels
        Landmarks in voxel coordinates.
    moving_spacing
        Voxel size of the moving image, mm, for the TRE.
    mask
        Fixed-image mask for SDlogJ, where the task uses masks.

    Returns
    -------
    dict
        ``sdlogj``, ``num_foldings`` (always 0), and with labels ``dice`` and ``hd95`` (voxels), with landmarks ``tre``
        (mm); each ``{"mean": number, "detailed": number or list}``. A label missing from either original map is NaN.

    Raises
    ------
    InputError
        If the field is not 3-D with components last, or its shape is not that of the fixed labels.
    """
    if np.ndim(displacement) != 4 or np.shape(displacement)[-1] != 3:
        raise InputError(f"the challenge scores 3-D fields of shape (X, Y, Z, 3), this one is {np.shape(displacement)}")
    deviation = sd_log_jacobian_plus_3(displacement, mask)
    result: dict[str, Any] = {
        "sdlogj": {"mean": deviation, "detailed": deviation},
        # count(max(det J + 3, 1e-9) <= 0): nothing that was clipped to be positive is ever <= 0
        "num_foldings": {"mean": 0.0, "detailed": 0.0},
    }
    if fixed_labels is not None and moving_labels is not None:
        fixed = np.asarray(fixed_labels)
        if fixed.shape != np.shape(displacement)[:3]:
            raise InputError(f"the field has shape {np.shape(displacement)[:3]}, the fixed labels {fixed.shape}")
        warped = warp_labels(moving_labels, displacement)
        wanted = [int(n) for n in (np.unique(fixed[fixed != 0]) if labels is None else labels)]
        present = np.isin(wanted, np.unique(fixed)) & np.isin(wanted, np.unique(moving_labels))
        counts = count_overlap(fixed, warped, wanted)
        by_label = dict(zip(counts.labels.tolist(), counts.dice().tolist(), strict=True))
        distances = surface_distances_per_label(fixed, warped, labels=wanted, threads=threads)
        dice = [by_label[n] if there else float("nan") for n, there in zip(wanted, present, strict=True)]
        hd95 = [
            distances[n].hausdorff(95.0) if there else float("nan") for n, there in zip(wanted, present, strict=True)
        ]
        result["dice"] = {"mean": _mean(dice), "detailed": dice}
        result["hd95"] = {"mean": _mean(hd95), "detailed": hd95}
    if fixed_voxels is not None and moving_voxels is not None:
        errors = target_registration_error(fixed_voxels, moving_voxels, displacement, moving_spacing=moving_spacing)
        result["tre"] = {"mean": float(errors.mean()), "detailed": errors.tolist()}
    return result


def aggregate(cases: Sequence[dict[str, Any]], *, version: str = "2024") -> dict[str, dict[str, float]]:
    """Aggregate `challenge_score` over cases: mean, standard deviation (population) and the script's "30" quantile."""
    found = {}
    for measure in cases[0] if cases else ():
        means = np.array([case[measure]["mean"] for case in cases], float)
        found[measure] = {
            "mean": float(means.mean()),
            "std": float(means.std()),
            "30": robust30_quantile(means, measure=measure, version=version),
        }
    return found


def _mean(values: list[float]) -> float:
    known = np.array(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")
