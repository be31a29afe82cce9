"""ConvexAdam with MIND features, after greedy's affine: it searches on one grid and has no linear stage of its own."""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import greedy
import numpy as np
import SimpleITK as sitk
import torch
from convexAdam.convex_adam_MIND import convex_adam_pt
from job import Job, itk_affine, write_field
from picsl_greedy import Greedy3D


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    torch.set_num_threads(job.threads)
    with job.timing("files"):
        fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving))
    field = None
    with job.timing("register"):
        matrix, *_ = greedy.affine(job, Greedy3D(), fixed, moving, job.settings)
        affine = itk_affine(matrix)
        if job.kind == "deformable":
            outside = float(sitk.GetArrayViewFromImage(moving).min())
            moved = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, outside)
            f, m = (
                torch.from_numpy(sitk.GetArrayFromImage(image).transpose(2, 1, 0).copy()) for image in (fixed, moved)
            )
            field = np.asarray(
                convex_adam_pt(f, m, dtype=torch.float32, verbose=False, device=torch.device("cpu")), dtype=np.float64
            )
    with job.timing("files"):
        chain = [job.out / "affine.tfm"]
        sitk.WriteTransform(affine, str(chain[0]))
        if field is not None:
            # Voxels along the axes of the fixed grid -> mm in ITK's frame.
            axes = np.reshape(fixed.GetDirection(), (3, 3)) * np.array(fixed.GetSpacing())
            vectors = np.einsum("dk,xyzk->xyzd", axes, field).astype(np.float32)
            chain.insert(0, write_field(vectors, fixed, job.out / "field.nii.gz"))
    job.finish(chain, ["convexAdam", "picsl_greedy", "torch"])


if __name__ == "__main__":
    main()
