"""Does the bound hold for deformations of other families than those it was learned on?

    python bench/other_deformations.py measure runs/other          pairs of every kind; goes on where it stopped
    python bench/other_deformations.py table runs/other            coverage by kind, and by distance to the border

The packaged calibration was learned on sums of bumps, on smoothed noise, and on copies without noise. Here all is made
and applied by other code (SciPy), in three families, of which only the second is like one that was learned from:

``spline``: a cubic spline through random values at 5 to 9 control points along the longest axis of the image, without
an affine part; what comes in from outside the image is air; Rician noise, the contrast stays.
``copy``: noise smoothed over 8 % of the longest side, at most 3 to 8 mm anywhere, read by cubic splines, edge values
repeated, no noise at all: as one tests a program on one image and its warped copy.
``scan``: the same over 10 %, at most 4 to 10 mm, read linearly; 3 % of white noise in both, another gamma and uneven
brightness in the moving image.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage

from verimorph.field import jacobian_determinant
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_image
from verimorph.prepare import default_background
from verimorph.transform import Composite, DisplacementField
from verimorph.uncertainty.bound import LEVELS, read_calibration
from verimorph.uncertainty.known import KnownPair, foreground
from verimorph.uncertainty.metrics import spearman
from verimorph.uncertainty.suite import measure_known, read_case, write_case

IMAGES = {
    "brain": ("brain_t1_oasis/*_t1_brain.nii.gz", 3),
    "cardiac": ("cardiac_cine_acdc/*_ed_image.nii.gz", 5),
    "abdomen": ("abdomen_mr_chaos/*_t2spir.nii.gz", 3),
    "lung-ct": ("lung_ct_pair/*_*.nii.gz", 4),
    "lung-mr": ("lung_mr_proton/*_h1.nii.gz", 4),
    "hippocampus": ("hippocampus_mr/*_image.nii.gz", 6),
}
SEED = 5000
NEAR = 10
"""Voxels to the border that count as near it."""


def spline_field(shape: tuple[int, ...], nodes: tuple[int, ...], mean: float, seed: int) -> Float[ndarray, "..."]:
    """Cubic spline through random control values, of a mean length, voxels along the axes; weaker where it folds."""
    random = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*[np.linspace(0, m - 1, n) for n, m in zip(shape, nodes, strict=True)], indexing="ij"))
    u = np.stack([ndimage.map_coordinates(random.standard_normal(nodes), index, order=3) for _ in shape])
    u *= mean / np.sqrt((u**2).sum(0)).mean()
    while float(jacobian_determinant(torch.from_numpy(u[None]).float()).min()) < 0.2:
        u *= 0.8
    return u


def smooth_field(grid: Grid, share: float, largest_mm: float, seed: int) -> Float[ndarray, "..."]:
    """Noise smoothed over a share of the longest side, voxels along the axes; weaker where it folds."""
    random = np.random.default_rng(seed)
    sides = np.array(grid.shape) * grid.spacing
    width = np.maximum(share * sides.max() / grid.spacing, 1)
    mm = np.stack([ndimage.gaussian_filter(random.standard_normal(grid.shape), width, mode="reflect") for _ in sides])
    mm *= largest_mm / np.sqrt((mm**2).sum(0)).max()
    u = mm / grid.spacing.reshape(-1, *[1] * grid.ndim)
    while float(jacobian_determinant(torch.from_numpy(u[None]).float()).min()) < 0.2:
        u *= 0.8
    return u


def read_at(values: Float[ndarray, "*space"], u: Float[ndarray, "..."], **how: Any) -> Float[ndarray, "*space"]:
    """``values(i + u(i))`` by SciPy."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij")).astype(float)
    return ndimage.map_coordinates(values, index + u, **how)


def known(image: Image, u: ndarray, fixed: ndarray, moving: ndarray, **how: Any) -> KnownPair:
    """The pair of these voxels, whose truth is this field."""
    truth = Composite([DisplacementField(image.grid, torch.from_numpy(u[None]).float())])
    inside = read_at(foreground(image).astype(float), u, order=1, **how) > 0.5
    images = [
        Image.from_array(values.astype(np.float32), image.grid, name=name)
        for values, name in ((fixed, "fixed"), (moving, "moving"))
    ]
    return KnownPair(*images, truth, inside, float("nan"))


def spline_pair(image: Image, seed: int) -> KnownPair:
    """The image deformed by a spline of a mean length of 1 to 4 voxels."""
    random = np.random.default_rng(seed)
    grid = image.grid
    values = image.array.astype(np.float64)
    sides = np.array(grid.shape) * grid.spacing
    apart = float(sides.max()) / (int(random.integers(5, 10)) - 1)
    nodes = tuple(int(n) for n in np.maximum(np.rint(sides / apart) + 1, 2))
    u = spline_field(grid.shape, nodes, random.uniform(1, 4), seed)
    fixed = read_at(values, u, order=1, mode="constant", cval=float(default_background(image)))
    low, high = np.percentile(values, (0.5, 99.5))
    level = random.uniform(0.005, 0.03) * (high - low)

    def scanned(shown: ndarray) -> ndarray:
        noise = level * random.standard_normal((2, *shown.shape))
        return np.hypot(shown - low + noise[0], noise[1]) + low

    return known(image, u, scanned(fixed), scanned(values), mode="constant")


def copy_pair(image: Image, seed: int) -> KnownPair:
    """The image and its warped copy, nothing else."""
    u = smooth_field(image.grid, 0.08, np.random.default_rng(seed).uniform(3, 8), seed)
    values = image.array.astype(np.float64)
    return known(image, u, read_at(values, u, order=3, mode="nearest"), values, mode="nearest")


def scan_pair(image: Image, seed: int) -> KnownPair:
    """The image deformed, and as another scanner might show it."""
    random = np.random.default_rng(seed)
    u = smooth_field(image.grid, 0.1, random.uniform(4, 10), seed)
    values = image.array.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    span = high - low
    rough = ndimage.gaussian_filter(random.standard_normal(values.shape), np.array(values.shape) / 3, mode="reflect")
    bias = 1 + 0.2 * rough / np.abs(rough).max()
    shown = low + span * np.clip((values - low) / span, 0, None) ** random.uniform(0.8, 1.25) * bias
    fixed = read_at(values, u, order=1, mode="nearest")
    both = [one + 0.03 * span * random.standard_normal(values.shape) for one in (fixed, shown)]
    return known(image, u, *both, mode="nearest")


FAMILIES: dict[str, Callable[[Image, int], KnownPair]] = {"spline": spline_pair, "copy": copy_pair, "scan": scan_pair}


def measure(folder: Path, family: str, only: list[str]) -> None:
    root = Path(os.environ.get("VERIMORPH_DATA", "../shared/data"))
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (pattern, count) in IMAGES.items():
        files = [f for f in sorted(root.glob(pattern)) if "mask" not in f.name and "label" not in f.name]
        if only and kind not in only:
            continue
        for number in range(count):
            # From the end of the list: those at its beginning are in the calibration most often.
            path = folder / f"{kind}-{number}.npz"
            if path.is_file() or not files:
                continue
            begun = time.time()
            image = read_image(files[-1 - number % len(files)])
            pair = FAMILIES[family](image, SEED + number)
            write_case(measure_known(pair, kind=kind, name=path.stem, seed=number), path)
            print(family, path.stem, f"{time.time() - begun:.0f} s", flush=True)


def table(folder: Path, calibration: str) -> None:
    held = read_calibration(calibration)
    print("| family | images | cases | 50 % | 80 % | 90 % | near the border | farther | ratio | rank r | taken for |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rows: dict[str, list[list[float]]] = {}
    taken: dict[str, list[str]] = {}
    for path in [path for family in FAMILIES for path in sorted((folder / family).glob("*.npz"))]:
        p = read_case(path).points
        row = f"{path.parent.name} | {p.kind}"
        kind = held.kind_of(p.traits)
        evidence = p.evidence[:, [p.names.index(name) for name in held.scale.names]]
        inside = p.foreground
        error = p.error[inside]
        bounds = {q: held.bound(evidence, inside, q, kind)[inside] for q in LEVELS}
        near = p.evidence[inside, p.names.index("border")] < NEAR
        within = error <= bounds[0.9]
        rows.setdefault(row, []).append(
            [float((error <= bounds[q]).mean()) for q in LEVELS[:3]]
            + [float(within[part].mean()) if part.any() else np.nan for part in (near, ~near)]
            + [float(np.median(bounds[0.9]) / np.median(error)), spearman(error, bounds[0.9])]
        )
        taken.setdefault(row, []).append(kind)
    for kind, found in rows.items():  # hearts are never farther from the border: their stacks are thin
        columns = np.array(found, dtype=float).T
        mean = [float(np.nanmean(column)) if np.isfinite(column).any() else np.nan for column in columns]
        shares = " | ".join("-" if np.isnan(v) else f"{100 * v:.1f}" for v in mean[:5])
        names = ", ".join(f"{name} {taken[kind].count(name)}" for name in dict.fromkeys(taken[kind]))
        print(f"| {kind} | {len(found)} | {shares} | {mean[5]:.2f} | {mean[6]:.2f} | {names} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", default="general")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of image")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: all")
    args = parser.parse_args()
    if args.what == "measure":
        for family in args.family or FAMILIES:
            measure(args.folder / family, family, args.only)
    else:
        table(args.folder, args.calibration)


if __name__ == "__main__":
    main()
