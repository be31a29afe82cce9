"""Do ANTs and Verimorph agree about each other's transforms? Run by ``make interop``.

On an oblique, anisotropic pair of images on different grids: ANTs (antspyx, in an environment of its own under
``bench/environments/ants``, because its pins conflict with ours) applies our ``transform.h5`` and ``inverse.h5``; we
apply what ANTs writes, ``Composite.h5``, ``1Warp.nii.gz``, ``1InverseWarp.nii.gz`` and ``0GenericAffine.mat``. Both
sides carry the image and points; the largest differences are printed, and the exit code is 1 if one is too large.

First run: a few minutes and about 500 MB for the environment. Later runs: seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import warnings
from pathlib import Path

import numpy as np
import torch

from verimorph.carry import apply
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_transform, write_image, write_transform
from verimorph.transform import Composite, DisplacementField, Transform, map_points_back, similarity

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / "environments" / "ants"
FOLDER = HERE / "runs" / "interop"
ANTSPYX = "antspyx>=0.6"

POINT_TOLERANCE_MM = 1e-3
IMAGE_TOLERANCE = 2e-3
"""Of an image of values 0 to 1: float32 arithmetic in another order."""
RIM = 1e-3
"""Share of voxels that may differ more: coordinates within rounding of the edge of the image fall on either side."""


def ants_python() -> Path:
    """Python of the ANTs environment, which is made on the first call."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    if subprocess.run([python, "-c", "import ants"], capture_output=True).returncode:
        print(f"installing {ANTSPYX} into {ENVIRONMENT} (once)", flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", ANTSPYX], check=True)
    return python


def oblique_pair() -> tuple[Image, Image, Composite]:
    """Two smooth images on tilted grids of different spacing and handedness, and a map between them."""
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    turn[:, 0] *= np.sign(np.linalg.det(turn))
    fixed_affine, moving_affine = np.eye(4), np.eye(4)
    fixed_affine[:3, :3], fixed_affine[:3, 3] = turn * [1.1, 1.4, 2.2], [-31, 12, 47]
    fixed = Grid((48, 42, 30), fixed_affine)
    moving_affine[:3, :3] = turn @ np.array([[0.96, -0.28, 0], [-0.28, -0.96, 0], [0, 0, 1]]) * [1.3, 1.2, 1.8]
    shape = np.array([46, 50, 36])
    moving_affine[:3, 3] = fixed.centre - moving_affine[:3, :3] @ (shape - 1) / 2 + [2, -1, 1]
    moving = Grid(tuple(shape), moving_affine)
    axes = np.meshgrid(*[np.linspace(0, np.pi, n) for n in fixed.shape], indexing="ij")
    bump = np.prod([np.sin(axis) for axis in axes], axis=0)
    u = np.stack([2.0 * bump * np.cos(2 * axes[1]), -1.5 * bump, 1.0 * bump * np.sin(2 * axes[0])])
    field = DisplacementField(fixed, torch.from_numpy(u.astype(np.float32))[None])
    linear = similarity(rotation=[0.08, -0.1, 0.12], scale=1.05, translation=[3.0, -2, 1], centre=fixed.centre)
    images = []
    for grid in (fixed, moving):
        points = grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) - fixed.centre
        waves = sum(np.sin(points @ random.normal(size=3) * 0.12 + phase) for phase in range(6))
        envelope = np.exp(-((points / 22) ** 2).sum(-1))
        images.append(Image.from_array(((waves / 12 + 0.5) * envelope + 0.1).astype(np.float32), grid))
    return images[0], images[1], Composite([field, linear])


def compare(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float, unit: str, rim: float = 0.0) -> bool:
    """Print one line and tell whether the two agree."""
    difference = np.abs(ours - theirs)
    beyond = float((difference > tolerance).mean())
    good = beyond <= rim and np.ptp(theirs) > 10 * tolerance
    share = f", {100 * beyond:.3f} % beyond {tolerance:g}" if rim else ""
    print(f"{'ok  ' if good else 'FAIL'} {name:<58} largest difference {difference.max():.2e}{unit}{share}")
    return good


def main() -> int:
    """Run both sides and compare."""
    python = ants_python()
    FOLDER.mkdir(parents=True, exist_ok=True)
    fixed, moving, transform = oblique_pair()
    for image, name in ((fixed, "fixed.nii.gz"), (moving, "moving.nii.gz")):
        write_image(image, FOLDER / name)
    inverse = transform.inverse()
    write_transform(transform, FOLDER / "transform.h5")
    write_transform(inverse, FOLDER / "inverse.h5")
    write_transform(transform.parts[0], FOLDER / "ours_1Warp.nii.gz")
    write_transform(transform.parts[1], FOLDER / "ours_0GenericAffine.mat")
    random = np.random.default_rng(1)
    points = fixed.grid.index_to_world(random.uniform(6, np.array(fixed.grid.shape) - 7, (1000, 3)))
    np.save(FOLDER / "points_lps.npy", points * [-1, -1, 1])
    subprocess.run([python, HERE / "interop_ants.py", FOLDER], check=True)
    found = json.loads((FOLDER / "ants.json").read_text())
    print(f"ANTsPy {found['version']}, on {fixed.grid} and {moving.grid}\n")

    def image_of(name: str) -> np.ndarray:
        return np.load(FOLDER / f"{name}.npy")

    def points_of(name: str) -> np.ndarray:
        return np.load(FOLDER / f"{name}.npy") * [-1, -1, 1]

    agreed = [
        compare("our transform.h5 in ANTs, points", transform.map_points(points), points_of("ours_points"), *_MM),
        compare("our inverse.h5 in ANTs, points", inverse.map_points(points), points_of("ours_inverse_points"), *_MM),
    ]
    ours = {
        "ours_image": ("our transform.h5 in ANTs, image, linear", transform, moving, fixed.grid, "linear"),
        "ours_nearest": ("our transform.h5 in ANTs, image, nearest", transform, moving, fixed.grid, "nearest"),
        "ours_inverse_image": ("our inverse.h5 in ANTs, image, linear", inverse, fixed, moving.grid, "linear"),
        "ours_pair_image": (
            "our 1Warp.nii.gz + 0GenericAffine.mat in ANTs, image",
            transform,
            moving,
            fixed.grid,
            "linear",
        ),
    }
    for name, (title, through, image, onto, interpolation) in ours.items():
        moved = through.resample(image, onto, interpolation=interpolation).array
        agreed.append(compare(title, moved, image_of(name), *_VALUE))

    warp, affine = FOLDER / "ants1Warp.nii.gz", FOLDER / "ants0GenericAffine.mat"
    backward = FOLDER / "ants1InverseWarp.nii.gz"
    composite, inverse_composite = FOLDER / "antsComposite.h5", FOLDER / "antsInverseComposite.h5"
    both = read_transform(warp).then(read_transform(affine))
    sources: dict[str, tuple[str, Transform]] = {
        "1Warp.nii.gz + 0GenericAffine.mat": ("ants", both),
        "Composite.h5": ("ants_composite", read_transform(composite)),
    }
    for title, (name, read) in sources.items():
        moved = read.resample(moving, fixed.grid).array
        agreed.append(compare(f"ANTs' {title} here, image", moved, image_of(f"{name}_image"), *_VALUE))
        agreed.append(
            compare(f"ANTs' {title} here, points", read.map_points(points), points_of(f"{name}_points"), *_MM)
        )
    listed = apply(moving, transform=[warp, affine], reference=fixed.grid).array
    agreed.append(compare("the same list given to verimorph apply", listed, image_of("ants_image"), *_VALUE))
    back: dict[str, tuple[str, Transform]] = {
        "0GenericAffine.mat inverted + 1InverseWarp.nii.gz": (
            "ants_inverse_image",
            read_transform(affine).inverse().then(read_transform(backward)),
        ),
        "InverseComposite.h5": ("ants_inverse_composite_image", read_transform(inverse_composite)),
    }
    for title, (name, read) in back.items():
        moved = read.resample(fixed, moving.grid).array
        agreed.append(compare(f"ANTs' {title} here", moved, image_of(name), *_VALUE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = map_points_back(both, both.map_points(points))
    agreed.append(compare("points through ANTs' transform and back", there, points, 0.01, " mm"))
    print(f"\n{sum(agreed)} of {len(agreed)} agree")
    return 0 if all(agreed) else 1


_MM = (POINT_TOLERANCE_MM, " mm")
_VALUE = (IMAGE_TOLERANCE, "", RIM)

if __name__ == "__main__":
    sys.exit(main())
