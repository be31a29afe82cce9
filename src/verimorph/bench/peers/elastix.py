"""elastix through SimpleElastix: its default affine map, then its default B-spline map.

Only the automatic start (centre of one grid to centre of the other) is added: without it pairs whose origins differ
share no voxel. The transform leaves as the dense field that transformix computes.
"""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import SimpleITK as sitk
from job import Job


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(job.threads)
    with job.timing("files"):
        fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving))
    names = ["affine", "bspline"] if job.kind == "deformable" else [job.kind]
    maps = sitk.VectorOfParameterMap()
    for name in names:
        parameters = sitk.GetDefaultParameterMap(name)
        if name != "bspline":
            parameters["AutomaticTransformInitialization"] = ["true"]
        parameters["MaximumNumberOfIterations"] = [str(job.settings["iterations"])]
        parameters["RandomSeed"] = [str(job.settings["seed"])]
        parameters["WriteResultImage"] = ["false"]
        maps.append(parameters)
    method = sitk.ElastixImageFilter()
    method.SetFixedImage(fixed)
    method.SetMovingImage(moving)
    if job.fixed_mask:
        method.SetFixedMask(sitk.ReadImage(job.fixed_mask, sitk.sitkUInt8))
    if job.moving_mask:
        method.SetMovingMask(sitk.ReadImage(job.moving_mask, sitk.sitkUInt8))
    method.SetParameterMap(maps)
    method.SetNumberOfThreads(job.threads)
    method.SetOutputDirectory(str(job.out))
    method.LogToFileOff()
    method.LogToConsoleOff()
    with job.timing("register"):
        method.Execute()
    with job.timing("files"):
        dense = sitk.TransformixImageFilter()
        dense.SetMovingImage(moving)
        dense.SetTransformParameterMap(method.GetTransformParameterMap())
        dense.ComputeDeformationFieldOn()
        dense.SetOutputDirectory(str(job.out))
        dense.LogToFileOff()
        dense.LogToConsoleOff()
        dense.Execute()
        path = job.out / "field.nii.gz"
        sitk.WriteImage(sitk.Cast(dense.GetDeformationField(), sitk.sitkVectorFloat32), str(path))
    job.finish([path], ["SimpleITK-SimpleElastix"])


if __name__ == "__main__":
    main()
