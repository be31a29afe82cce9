"""SimpleITK: affine by Mattes mutual information, then diffeomorphic demons over three levels.

The moving image is resampled through the affine, its histogram matched to the fixed one, and demons runs from coarse to
fine, the field of one level starting the next.
"""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import SimpleITK as sitk
from job import Job, levels_that_fit


def linear(fixed, moving, job):
    """Return the affine or rigid transform of the pair, from the middle of one grid to the middle of the other."""
    d, settings = fixed.GetDimension(), job.settings
    model = {
        (3, "rigid"): sitk.Euler3DTransform,
        (2, "rigid"): sitk.Euler2DTransform,
    }.get((d, job.kind), lambda: sitk.AffineTransform(d))()
    start = sitk.CenteredTransformInitializer(fixed, moving, model, sitk.CenteredTransformInitializerFilter.GEOMETRY)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(settings["bins"])
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(settings["sampling"], 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, settings["linear_iterations"])
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    for path, tell in ((job.fixed_mask, method.SetMetricFixedMask), (job.moving_mask, method.SetMetricMovingMask)):
        if path:
            tell(sitk.ReadImage(path, sitk.sitkUInt8))
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def coarser(image, shrink: int):
    """Return ``image`` smoothed and resampled to voxels ``shrink`` times as large, over the same field of view."""
    if shrink == 1:
        return image
    size = [max(1, round(n / shrink)) for n in image.GetSize()]
    spacing = [s * n / m for s, n, m in zip(image.GetSpacing(), image.GetSize(), size, strict=True)]
    d = len(size)
    corner = image.TransformContinuousIndexToPhysicalPoint([-0.5] * d)
    direction = image.GetDirection()
    origin = [corner[i] + sum(direction[d * i + j] * spacing[j] / 2 for j in range(d)) for i in range(d)]
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * shrink * s for s in image.GetSpacing()])
    return sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, origin, spacing, direction)


def demons(fixed, moving, settings):
    """Return the displacement field between two images on one grid."""
    moving = sitk.HistogramMatching(moving, fixed, 256, settings["match_points"], True)
    levels = levels_that_fit(fixed.GetSize(), len(settings["iterations"]), smallest=1)
    field = None
    for level, iterations in zip(range(levels - 1, -1, -1), settings["iterations"][-levels:], strict=True):
        f, m = coarser(fixed, 2**level), coarser(moving, 2**level)
        method = sitk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(settings["sigma_voxels"])
        method.SetMaximumUpdateStepLength(settings["step_voxels"])
        if field is None:
            field = method.Execute(f, m)
        else:
            start = sitk.Resample(field, f, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(f, m, start)
    return field


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(job.threads)
    with job.timing("files"):
        fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving))
    field = None
    with job.timing("register"):
        matrix = linear(fixed, moving, job)
        if job.kind == "deformable":
            outside = float(sitk.GetArrayViewFromImage(moving).min())
            field = demons(fixed, sitk.Resample(moving, fixed, matrix, sitk.sitkLinear, outside), job.settings)
    with job.timing("files"):
        chain = [job.out / "affine.tfm"]
        if isinstance(matrix, sitk.CompositeTransform):
            matrix = matrix.GetBackTransform()
        sitk.WriteTransform(matrix, str(chain[0]))
        if field is not None:
            chain.insert(0, job.out / "field.nii.gz")
            sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(chain[0]))
    job.finish(chain, ["SimpleITK"])


if __name__ == "__main__":
    main()
