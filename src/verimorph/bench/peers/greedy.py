"""greedy (Yushkevich): affine, then composition of small smooth steps, NCC; through the picsl_greedy wheel.

Linear pairs, and the affine stage of pairs of different contrast, use NMI. Coarse levels that would leave fewer than
four slices are dropped: greedy stops with an error there. Warps are kept at full precision (``-wp 0``); the default
rounds to 0.1 voxel. greedy adds noise of an unseeded generator to the images under NCC: no two runs are the same.
"""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from job import Job, itk_affine, levels_that_fit
from picsl_greedy import Greedy2D, Greedy3D


def affine(job, engine, fixed, moving, settings):
    """Run greedy's linear stage and return its matrix (RAS mm, fixed to moving)."""
    alike = job.kind == "deformable" and job.contrast == "same"
    metric = settings["affine_metric"] if alike else settings["linear_metric"]
    levels = levels_that_fit(fixed.GetSize(), len(settings["iterations"]))
    schedule = "x".join(str(count) for count in settings["iterations"][:levels])
    freedom = {3: {"rigid": 6}, 2: {"rigid": 3}}[fixed.GetDimension()].get(job.kind, 12)
    masks, images = "", {"fixed": fixed, "moving": moving, "matrix": None}
    if job.fixed_mask:
        masks = " -gm mask"
        images["mask"] = sitk.ReadImage(job.fixed_mask, sitk.sitkFloat32)
    engine.execute(
        f"-threads {job.threads} -a -dof {freedom} -ia-image-centers -m {metric} -n {schedule} "
        f"-i fixed moving{masks} -o matrix",
        **images,
    )
    return engine["matrix"], schedule, masks, images


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    with job.timing("files"):
        fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving))
    engine = Greedy3D() if fixed.GetDimension() == 3 else Greedy2D()
    with job.timing("register"):
        matrix, schedule, masks, images = affine(job, engine, fixed, moving, job.settings)
        if job.kind == "deformable":
            np.savetxt(job.out / "affine.mat", matrix)
            images = {name: image for name, image in images.items() if name != "matrix"} | {"warp": None}
            engine.execute(
                f"-threads {job.threads} -m {job.settings['metric']} -n {schedule} -wp 0 "
                f"-i fixed moving{masks} -it {job.out / 'affine.mat'} -o warp",
                **images,
            )
    with job.timing("files"):
        chain = [job.out / "affine.tfm"]
        sitk.WriteTransform(itk_affine(matrix), str(chain[0]))
        if job.kind == "deformable":
            chain.insert(0, job.out / "warp.nii.gz")
            sitk.WriteImage(engine["warp"], str(chain[0]))
    job.finish(chain, ["picsl_greedy", "SimpleITK"])


if __name__ == "__main__":
    main()
