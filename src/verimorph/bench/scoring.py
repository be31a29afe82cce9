"""One scorer for every engine: it sees transform files and the case, never who made them.

Transform files are in ITK's frame and formats; labels move by nearest neighbour in SimpleITK; the measures are those of
`verimorph.evaluate`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from verimorph.bench.cases import Case
from verimorph.errors import InputError

_REGION_POINTS = 20000


def read_chain(files: list[Path] | tuple[Path, ...], ndim: int) -> Any:
    """Return one SimpleITK transform for transform files of which the first acts first on a fixed point."""
    import SimpleITK as sitk

    parts = []
    for file in files:
        if file.name.endswith((".nii.gz", ".nii", ".mha", ".nrrd")):
            parts.append(sitk.DisplacementFieldTransform(sitk.ReadImage(str(file), sitk.sitkVectorFloat64)))
        else:
            parts.append(sitk.ReadTransform(str(file)))
    # SimpleITK applies the part that was added last first.
    return sitk.CompositeTransform(parts[::-1]) if parts else sitk.Transform(ndim, sitk.sitkIdentity)


def start_of(case: Case) -> Any:
    """Return what the identity row does: nothing, or a shift of the middle of one image onto that of the other."""
    import SimpleITK as sitk

    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat64) for path in (case.fixed, case.moving))
    d = fixed.GetDimension()
    if case.start == "header":
        return sitk.Transform(d, sitk.sitkIdentity)
    middle = _centre_of_mass if case.start == "centre-of-mass" else _centre
    return sitk.TranslationTransform(d, (middle(moving) - middle(fixed)).tolist())


def score_transform(case: Case, transform: Any) -> dict[str, float]:
    """Measure a SimpleITK transform of the case.

    Returns
    -------
    dict
        ``dice`` (mean over labels present in both), ``landmark_error`` and ``reference_error`` (mean, in the units of
        the case), for deformable cases also ``folding_percent`` (fixed grid), ``sd_log_jacobian`` (inside the fixed
        labels where there are any). What cannot be measured is left out.

    Raises
    ------
    InputError
        If the transform maps some point to nowhere (NaN or infinity).
    """
    from verimorph.io.transforms.itk import from_simpleitk

    scores: dict[str, float] = {}
    if case.fixed_labels is not None:
        scores["dice"] = _dice(case, transform)
    ours = from_simpleitk(transform, "the result")
    if case.landmarks is not None:
        scores["landmark_error"] = _landmark_error(case, ours)
    if case.region is not None:
        scores["reference_error"] = _reference_error(case, ours)
    if case.kind == "deformable":
        scores.update(_smoothness(case, ours))
    for name, value in scores.items():
        if not math.isfinite(value):
            raise InputError(f"{case.name}: {name} is {value}; the transform has NaN or infinite values")
    return scores


def _dice(case: Case, transform: Any) -> float:
    import SimpleITK as sitk

    from verimorph.evaluate import dice_per_label

    fixed, moving = (sitk.ReadImage(str(path)) for path in (case.fixed_labels, case.moving_labels))
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor)
    f, m, w = (np.rint(sitk.GetArrayFromImage(image)).astype(np.int64) for image in (fixed, moving, moved))
    both = (set(np.unique(f).tolist()) & set(np.unique(m).tolist())) - {0}
    if not both:
        raise InputError(f"{case.name}: the two label maps have no label in common")
    return float(np.mean(list(dice_per_label(f, w, labels=sorted(both)).values())))


def _landmark_error(case: Case, transform: Any) -> float:
    from verimorph.evaluate import target_registration_error
    from verimorph.io import read_points

    fixed, moving = (read_points(str(case.landmarks), columns=which) for which in ("fixed", "moving"))
    return float(np.mean(target_registration_error(fixed.coordinates, moving.coordinates, transform)))


def _reference_error(case: Case, transform: Any) -> float:
    import SimpleITK as sitk

    from verimorph.evaluate import target_registration_error
    from verimorph.io.transforms.itk import from_simpleitk, lps

    region = sitk.ReadImage(str(case.region))
    index = np.argwhere(sitk.GetArrayViewFromImage(region) > 0)[:, ::-1]
    d = region.GetDimension()
    if not len(index):
        raise InputError(f"{case.region}: holds no voxel above 0; nothing to score over")
    index = index[:: max(1, len(index) // _REGION_POINTS)]
    axes = np.reshape(region.GetDirection(), (d, d)) * np.array(region.GetSpacing())
    points = (index @ axes.T + np.array(region.GetOrigin())) @ lps(d)
    fixed, moving = (
        from_simpleitk(read_chain(chain, d), str(case.region)).map_points(points)
        for chain in (case.region_to_fixed, case.region_to_moving)
    )
    return float(np.mean(target_registration_error(fixed, moving, transform)))


def _smoothness(case: Case, transform: Any) -> dict[str, float]:
    from verimorph.evaluate import folding_percent, sd_log_jacobian
    from verimorph.io import read_image

    grid = read_image(case.fixed).grid
    jacobian = transform.jacobian_determinant(grid)[0].numpy()
    inside = None
    if case.fixed_labels is not None:
        labels = read_image(case.fixed_labels)
        if labels.grid.shape == grid.shape:
            inside = labels.array > 0
    # A map that folds everywhere has no logarithm: the share that folds says it all.
    scores = {"folding_percent": folding_percent(jacobian), "sd_log_jacobian": sd_log_jacobian(jacobian, inside)}
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _centre(image: Any) -> Float[np.ndarray, " d"]:
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _centre_of_mass(image: Any) -> Float[np.ndarray, " d"]:
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(image)
    values -= values.min()
    if values.sum() == 0:
        return _centre(image)
    index = [
        float(np.average(np.arange(n), weights=values.sum(axis=tuple(k for k in range(values.ndim) if k != axis))))
        for axis, n in enumerate(values.shape)
    ]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index[::-1]))
