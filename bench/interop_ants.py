"""The side of ``interop.py`` that runs in the environment of ANTs: what ANTs makes of our files and of its own.

Usage: ``python interop_ants.py FOLDER``. Knows nothing of Verimorph.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import ants
import numpy as np
import pandas


def carry_points(folder: Path, points: np.ndarray, files: list[str], inverted: list[bool]) -> np.ndarray:
    """Send LPS points through transforms, the first of the list first."""
    table = pandas.DataFrame(points, columns=["x", "y", "z"])
    names = [str(folder / name) for name in files]
    return ants.apply_transforms_to_points(3, table, names, whichtoinvert=inverted).to_numpy()[:, :3]


def main(folder: Path) -> None:
    """Apply our files, register with ANTs, apply its files; save arrays beside them."""
    fixed, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving"))
    points = np.load(folder / "points_lps.npy")

    def image(reference, source, files, name, interpolator="linear", invert=None):
        moved = ants.apply_transforms(
            fixed=reference,
            moving=source,
            transformlist=[str(folder / file) for file in files],
            interpolator=interpolator,
            whichtoinvert=invert,
            singleprecision=False,
        )
        np.save(folder / f"{name}.npy", moved.numpy())

    image(fixed, moving, ["transform.h5"], "ours_image")
    image(fixed, moving, ["transform.h5"], "ours_nearest", "nearestNeighbor")
    image(moving, fixed, ["inverse.h5"], "ours_inverse_image")
    image(fixed, moving, ["ours_1Warp.nii.gz", "ours_0GenericAffine.mat"], "ours_pair_image")
    np.save(folder / "ours_points.npy", carry_points(folder, points, ["transform.h5"], [False]))
    np.save(folder / "ours_inverse_points.npy", carry_points(folder, points, ["inverse.h5"], [False]))

    settings = {"type_of_transform": "SyN", "reg_iterations": (20, 10), "random_seed": 1}
    ants.registration(fixed, moving, outprefix=str(folder / "ants"), **settings)
    ants.registration(fixed, moving, outprefix=str(folder / "ants"), write_composite_transform=True, **settings)
    pair, composite = ["ants1Warp.nii.gz", "ants0GenericAffine.mat"], ["antsComposite.h5"]
    backward = ["ants0GenericAffine.mat", "ants1InverseWarp.nii.gz"]
    image(fixed, moving, pair, "ants_image")
    image(fixed, moving, composite, "ants_composite_image")
    image(moving, fixed, backward, "ants_inverse_image", invert=[True, False])
    image(moving, fixed, ["antsInverseComposite.h5"], "ants_inverse_composite_image")
    np.save(folder / "ants_points.npy", carry_points(folder, points, pair, [False, False]))
    np.save(folder / "ants_composite_points.npy", carry_points(folder, points, composite, [False]))
    (folder / "ants.json").write_text(json.dumps({"version": version("antspyx")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
