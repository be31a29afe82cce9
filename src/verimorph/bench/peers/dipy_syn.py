"""DIPY: centre of mass, translation, rigid and affine by mutual information, then symmetric diffeomorphic (CC)."""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from dipy.align import affine_registration
from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
from dipy.align.metrics import CCMetric
from job import Job, itk_affine, write_field


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    with job.timing("files"):
        fixed, moving = nib.load(job.fixed), nib.load(job.moving)
        reference = sitk.ReadImage(job.fixed)
        fixed_array, moving_array = (np.asarray(image.dataobj, dtype=np.float64) for image in (fixed, moving))
    stages = ["center_of_mass", "translation", "rigid", "affine"]
    if job.kind == "rigid":
        stages = stages[:3]
    field = None
    with job.timing("register"):
        _, matrix = affine_registration(
            moving_array,
            fixed_array,
            moving_affine=moving.affine,
            static_affine=fixed.affine,
            pipeline=stages,
            nbins=job.settings["bins"],
            level_iters=job.settings["linear_iterations"],
            sigmas=[3.0, 1.0, 0.0],
            factors=[4, 2, 1],
        )
        if job.kind == "deformable":
            method = SymmetricDiffeomorphicRegistration(
                CCMetric(fixed_array.ndim, radius=job.settings["radius"]), level_iters=job.settings["iterations"]
            )
            field = method.optimize(fixed_array, moving_array, fixed.affine, moving.affine, matrix).get_forward_field()
    with job.timing("files"):
        chain = [job.out / "affine.tfm"]
        sitk.WriteTransform(itk_affine(matrix), str(chain[0]))
        if field is not None:
            # The field is in the frame of the fixed image's world (RAS) and acts before the affine.
            vectors = np.array(field, dtype=np.float32)
            vectors[..., :2] *= -1
            chain.insert(0, write_field(vectors, reference, job.out / "field.nii.gz"))
    job.finish(chain, ["dipy", "SimpleITK"])


if __name__ == "__main__":
    main()
