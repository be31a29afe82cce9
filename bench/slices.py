"""Slices cut from volumes: 2-D images of kinds that the development sets hold in 3-D only.

    python bench/slices.py runs/slices

Through the middle of every heart (both phases, with labels), every abdomen (with labels), the lungs of MR (with lobes)
and of CT, across the axis of their thickest voxels; two slices where there are two people at most. Written as NIfTI to
a folder a kind; ``bench/calibration.sh`` and ``bench/verdict.py`` read them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_image, write_image

CUTS = {
    "heart": ("cardiac_cine_acdc/*_image.nii.gz", ("_image", "_labels"), (0.5,)),
    "abdomen": ("abdomen_mr_chaos/*_t2spir.nii.gz", ("_t2spir", "_labels"), (0.5,)),
    "lung-mr": ("lung_mr_proton/*_h1.nii.gz", ("_h1", "_lobes"), (0.4, 0.6)),
    "lung-ct": ("lung_ct_pair/[fm]*[ep].nii.gz", None, (0.4, 0.6)),
}
"""By kind: volumes, how their label maps are called, and where along the last axis they are cut."""


def cut(volume: Image, index: int) -> Image:
    """One slice across the last axis; its world axes are the two voxel axes, its middle is the origin."""
    array = np.ascontiguousarray(volume.array[:, :, index])
    affine = np.diag([*volume.grid.spacing[:2], 1.0])
    affine[:2, 2] = -affine[:2, :2] @ (np.array(array.shape) - 1) / 2
    return Image.from_array(array, Grid(array.shape, affine), name=volume.name)


def write(folder: Path, data: Path, kinds: Sequence[str] = tuple(CUTS)) -> None:
    """Write the slices of these kinds, ``KIND/NAME-PERCENT_image.nii.gz`` and ``_labels``."""
    for kind in kinds:
        pattern, labels, places = CUTS[kind]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted(data.glob(pattern)):
            volumes = {"image": read_image(file)}
            if labels is not None:
                volumes["labels"] = read_image(file.with_name(file.name.replace(*labels)))
            for place in places:
                index = int(place * volumes["image"].grid.shape[2])
                for what, volume in volumes.items():
                    name = f"{file.name.split('.')[0].removesuffix('_image')}-{100 * place:.0f}_{what}.nii.gz"
                    write_image(cut(volume, index), folder / kind / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.folder, Path(os.environ.get("VERIMORPH_DATA", "../shared/data")))
