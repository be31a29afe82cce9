"""ANTs through ANTsPy: the two script parameter sets and the package's own, much weaker, default.

``type`` is the transform type as ANTsPy names it; linear pairs use the linear stages of the same set.
"""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

from pathlib import Path

import ants
from job import Job

_LINEAR = {
    "SyN": {"rigid": "Rigid", "affine": "Affine"},
    "antsRegistrationSyN[s]": {"rigid": "antsRegistrationSyN[r]", "affine": "antsRegistrationSyN[a]"},
    "antsRegistrationSyNQuick[s]": {"rigid": "antsRegistrationSyNQuick[r]", "affine": "antsRegistrationSyNQuick[a]"},
}


def main() -> None:
    """Register the pair of the job."""
    job = Job()
    with job.timing("files"):
        fixed, moving = ants.image_read(job.fixed), ants.image_read(job.moving)
        masks = {
            name: ants.image_read(path)
            for name, path in (("mask", job.fixed_mask), ("moving_mask", job.moving_mask))
            if path
        }
    kind = job.settings["type"] if job.kind == "deformable" else _LINEAR[job.settings["type"]][job.kind]
    with job.timing("register"):
        result = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform=kind,
            outprefix=str(job.out / "ants_"),
            random_seed=job.settings["seed"],
            **masks,
        )
    job.finish([Path(path) for path in result["fwdtransforms"]], ["antspyx"])


if __name__ == "__main__":
    main()
