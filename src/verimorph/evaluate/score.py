"""The measured facts of one registration, in millimetres and true units: what goes into ``metrics.json``.

This is the honest mode. Learn2Reg's own numbers come from ``evaluate/challenge.py`` and never mix with these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from verimorph.errors import InputError
from verimorph.evaluate.consistency import DEFAULT_POINTS, inverse_consistency_error
from verimorph.evaluate.diffeomorphism import non_diffeomorphic_volume
from verimorph.evaluate.landmarks import summarise_errors, target_registration_error
from verimorph.evaluate.overlap import count_overlap, label_values
from verimorph.evaluate.regularity import jacobian_summary
from verimorph.evaluate.surface import surface_distances_per_label
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io.documents import without_nan
from verimorph.io.points import Points
from verimorph.transform import identity
from verimorph.transform.protocol import Transform


def score(
    *,
    fixed_labels: Image | None = None,
    moved_labels: Image | None = None,
    moving_labels: Image | None = None,
    fixed_landmarks: Points | None = None,
    moving_landmarks: Points | None = None,
    transform: Transform | None = None,
    inverse: Transform | None = None,
    initial: Transform | None = None,
    fixed_grid: Grid | None = None,
    moving_grid: Grid | None = None,
    jacobian: Image | None = None,
    mask: Image | None = None,
    labels: Iterable[int] | None = None,
    surface: bool = True,
    non_diffeomorphic: bool = True,
    surface_dice_tolerance_mm: float = 1.0,
    unit: str = "mm",
    max_points: int | None = DEFAULT_POINTS,
    threads: int = 2,
) -> dict[str, Any]:
    """Measure whatever can be measured with what is given; every argument is optional.

    Parameters
    ----------
    fixed_labels, moved_labels
        Label maps on the fixed grid; ``moved_labels`` is the moving map after registration (nearest neighbour). It is
        made here from ``moving_labels`` and ``transform`` where missing.
    moving_labels
        The label map before registration. A label absent from it (or from ``fixed_labels``) cannot be matched by any
        transform: it is named in ``labels_not_in_both`` and left out of the means. Without ``moving_labels`` the moved
        map stands in for it.
    fixed_landmarks, moving_landmarks
        Corresponding points, RAS+ mm.
    transform, inverse, initial
        Fixed to moving; moving to fixed; and the transform the registration started from (scored too, as ``initial``).
    fixed_grid, moving_grid
        Grids of the images; the fixed grid defaults to that of the labels or of the Jacobian map.
    jacobian
        Jacobian determinants of the whole transform on the fixed grid; computed from ``transform`` where missing.
    mask
        Fixed-grid voxels on which Jacobian and inverse consistency are measured.
    labels
        Labels to score; default all non-zero ones.
    surface
        Whether to compute surface distances (the slow part).
    non_diffeomorphic
        Whether to compute the non-diffeomorphic volume of the transform (a few seconds for a brain).
    surface_dice_tolerance_mm
        Tolerance of the surface Dice.
    unit
        Unit of spacing, used in the keys: ``"mm"``, or ``"voxel"`` where the image has no known voxel size.
    max_points
        Points per direction for inverse consistency.
    threads
        Threads for the surface distances.

    Returns
    -------
    dict
        JSON-able (no NaN; a missing value is ``None``), with those of the keys ``labels``, ``landmarks``,
        ``jacobian``, ``non_diffeomorphic``, ``inverse_consistency_mm`` for which there was input, and
        ``mode`` and ``unit``.

    Raises
    ------
    InputError
        If label maps lie on different grids, or landmark lists differ in length.
    """
    metrics: dict[str, Any] = {"mode": "honest", "unit": unit}
    grid = fixed_grid or next((i.grid for i in (fixed_labels, jacobian, moved_labels) if i is not None), None)

    if fixed_labels is not None:
        if moved_labels is None and moving_labels is not None and transform is not None:
            moved_labels = transform.resample(moving_labels, fixed_labels.grid, interpolation="nearest")
        if moved_labels is not None:
            metrics["labels"] = score_labels(
                fixed_labels,
                moved_labels,
                moving_labels=moving_labels,
                labels=labels,
                surface=surface,
                tolerance_mm=surface_dice_tolerance_mm,
                unit=unit,
                threads=threads,
            )
            for name, start in (("identity", identity(fixed_labels.grid.ndim)), ("initial", initial)):
                if start is None or moving_labels is None:
                    continue
                there = start.resample(moving_labels, fixed_labels.grid, interpolation="nearest")
                before = score_labels(
                    fixed_labels, there, moving_labels=moving_labels, labels=labels, surface=False, unit=unit
                )
                metrics["labels"][name] = {"mean": before["mean"]}

    if fixed_landmarks is not None and moving_landmarks is not None:
        pair = fixed_landmarks.coordinates, moving_landmarks.coordinates
        found: dict[str, Any] = {"identity": summarise_errors(target_registration_error(*pair))}
        if initial is not None:
            found["initial"] = summarise_errors(target_registration_error(*pair, initial))
        if transform is not None:
            errors = target_registration_error(*pair, transform)
            found["registered"] = summarise_errors(errors)
            names = fixed_landmarks.names or [str(i) for i in range(len(errors))]
            found["per_landmark"] = [{"name": n, "tre": float(e)} for n, e in zip(names, errors, strict=True)]
        metrics["landmarks"] = {f"tre_{unit}": found}

    if jacobian is None and transform is not None and grid is not None:
        determinants = transform.jacobian_determinant(grid)[0].cpu().numpy()
    else:
        determinants = None if jacobian is None else jacobian.array
    inside = None if mask is None else np.asarray(mask.array) > 0
    if determinants is not None:
        metrics["jacobian"] = jacobian_summary(determinants, inside)
    if non_diffeomorphic and transform is not None and grid is not None:
        displacement = transform.displacement_on(grid)[0].cpu().numpy()
        found_folds = non_diffeomorphic_volume(displacement, spacing=grid.spacing, mask=inside)
        metrics["non_diffeomorphic"] = {
            "voxels": found_folds.voxels,
            "percent": found_folds.percent,
            f"{unit}{grid.ndim}": found_folds.mm,
            "folding_voxels": found_folds.folding_voxels,
        }

    if transform is not None and inverse is not None and grid is not None:
        other = moving_grid or (moving_labels.grid if moving_labels is not None else grid)
        metrics[f"inverse_consistency_{unit}"] = inverse_consistency_error(
            transform, inverse, fixed_grid=grid, moving_grid=other, fixed_mask=inside, max_points=max_points
        )
    return without_nan(metrics)


def score_labels(
    fixed_labels: Image,
    moved_labels: Image,
    *,
    moving_labels: Image | None = None,
    labels: Iterable[int] | None = None,
    surface: bool = True,
    tolerance_mm: float = 1.0,
    unit: str = "mm",
    threads: int = 2,
) -> dict[str, Any]:
    """Score two label maps on one grid, per label and in the mean over the labels that both images have.

    Returns
    -------
    dict
        ``mean`` (measure to value), ``std`` and ``median`` likewise, ``n_labels`` that went into them,
        ``labels_not_in_both`` (``fixed_only``, ``moving_only``), ``labels_lost`` (in both images but gone after
        registration: Dice 0, surface distances undefined and so left out of *their* mean: read both together) and
        ``per_label`` (label to measures; NaN where undefined).

    Raises
    ------
    InputError
        If the two maps are not on one grid.
    """
    if not fixed_labels.grid.is_close(moved_labels.grid, tolerance_mm=1e-2):
        raise InputError(
            f"{moved_labels.name} ({moved_labels.grid}) is not on the grid of {fixed_labels.name} "
            f"({fixed_labels.grid}); resample it with 'verimorph apply'"
        )
    in_fixed = set(label_values(fixed_labels.array))
    in_moving = set(label_values((moving_labels or moved_labels).array))
    if labels is not None:
        wanted = set(labels)
        in_fixed, in_moving = in_fixed & wanted, in_moving & wanted
    counts = count_overlap(fixed_labels.array, moved_labels.array, sorted(in_fixed | in_moving))
    common = in_fixed & in_moving
    per_label: dict[int, dict[str, float]] = {}
    columns = zip(counts.labels, counts.dice(), counts.jaccard(), counts.volume_similarity(), strict=True)
    for label, dice, jaccard, volume in columns:
        if int(label) in common:
            per_label[int(label)] = {"dice": float(dice), "jaccard": float(jaccard), "volume_similarity": float(volume)}
        else:
            per_label[int(label)] = dict.fromkeys(("dice", "jaccard", "volume_similarity"), math.nan)
    if surface:
        found = surface_distances_per_label(
            fixed_labels.array,
            moved_labels.array,
            spacing=fixed_labels.grid.spacing,
            labels=sorted(common),
            tolerance=tolerance_mm,
            threads=threads,
        )
        for label, row in per_label.items():
            row |= _surface_row(found.get(label), tolerance_mm, unit)
    rows = [per_label[label] for label in sorted(common)]
    lost = [int(n) for n, m in zip(counts.labels, counts.moved, strict=True) if int(n) in common and m == 0]
    return {
        "mean": _column_statistic(rows, np.mean),
        "std": _column_statistic(rows, np.std),
        "median": _column_statistic(rows, np.median),
        "n_labels": len(common),
        "labels_not_in_both": {"fixed_only": sorted(in_fixed - in_moving), "moving_only": sorted(in_moving - in_fixed)},
        "labels_lost": lost,
        "per_label": per_label,
    }


def _surface_row(found: Any, tolerance_mm: float, unit: str) -> dict[str, float]:
    names = (f"hd95_{unit}", f"hd100_{unit}", f"assd_{unit}", f"surface_dice_{tolerance_mm:g}{unit}")
    if found is None:
        return dict.fromkeys(names, math.nan)
    values = (found.hausdorff(95.0), found.hausdorff(100.0), found.average(), found.surface_dice())
    # a lost label has no surface: an infinite distance cannot be averaged, so it is missing here and 0 in Dice
    return {n: v if math.isfinite(v) else math.nan for n, v in zip(names, values, strict=True)}


def _column_statistic(rows: list[dict[str, float]], statistic: Any) -> dict[str, float]:
    names = rows[0] if rows else {}
    columns = {name: np.array([row[name] for row in rows], float) for name in names}
    return {n: float(statistic(c[~np.isnan(c)])) if (~np.isnan(c)).any() else math.nan for n, c in columns.items()}


def flat_measures(metrics: dict[str, Any]) -> dict[str, float]:
    """Pick the headline numbers of a `score` result into one flat row, NaN where missing: a line of a table."""
    unit = metrics.get("unit", "mm")
    row: dict[str, Any] = dict(metrics.get("labels", {}).get("mean", {}))
    found = metrics.get("landmarks", {}).get(f"tre_{unit}", {})
    errors = found.get("registered", found.get("identity", {}))
    row |= {f"tre_{name}_{unit}": errors[name] for name in ("mean", "median", "p95", "max") if name in errors}
    jacobian = metrics.get("jacobian", {})
    row |= {name: jacobian[name] for name in ("folding_percent", "sd_log_jacobian") if name in jacobian}
    if "non_diffeomorphic" in metrics:
        row["ndv_percent"] = metrics["non_diffeomorphic"]["percent"]
    for way, errors in metrics.get(f"inverse_consistency_{unit}", {}).items():
        row |= {f"inverse_consistency_{way}_{name}_{unit}": errors[name] for name in ("mean", "p95")}
    return {name: math.nan if value is None else float(value) for name, value in row.items()}
