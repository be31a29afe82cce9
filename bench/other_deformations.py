"""Does the bound hold for deformations of another family than those it was learned on?

    python bench/other_deformations.py measure runs/other          pairs of every kind; goes on where it stopped
    python bench/other_deformations.py table runs/other            coverage by kind, and by distance to the border

The packaged calibration was learned on sums of bumps and on smoothed noise. Here every displacement is a cubic spline
through random values at 5 to 9 control points along the longest axis of the image, without an affine part, made and
applied by other code (SciPy). What the deformation brings in from outside the image is air. Noise is Rician, the
contrast stays.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage

from verimorph.field import jacobian_determinant
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


def other_pair(image: Image, seed: int) -> KnownPair:
    """The image deformed by a spline of a mean length of 1 to 4 voxels."""
    random = np.random.default_rng(seed)
    grid = image.grid
    values = image.array.astype(np.float64)
    sides = np.array(grid.shape) * grid.spacing
    apart = float(sides.max()) / (int(random.integers(5, 10)) - 1)
    nodes = tuple(int(n) for n in np.maximum(np.rint(sides / apart) + 1, 2))
    u = spline_field(grid.shape, nodes, random.uniform(1, 4), seed)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")).astype(float)
    air = float(default_background(image))
    fixed = ndimage.map_coordinates(values, index + u, order=1, mode="constant", cval=air)
    inside = ndimage.map_coordinates(foreground(image).astype(float), index + u, order=1, mode="constant") > 0.5
    low, high = np.percentile(values, (0.5, 99.5))
    level = random.uniform(0.005, 0.03) * (high - low)

    def scanned(shown: ndarray, name: str) -> Image:
        noise = level * random.standard_normal((2, *shown.shape))
        return Image.from_array((np.hypot(shown - low + noise[0], noise[1]) + low).astype(np.float32), grid, name=name)

    truth = Composite([DisplacementField(grid, torch.from_numpy(u[None]).float())])
    return KnownPair(scanned(fixed, "fixed"), scanned(values, "moving"), truth, inside, float("nan"))


def measure(folder: Path, only: list[str]) -> None:
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
            pair = other_pair(image, SEED + number)
            write_case(measure_known(pair, kind=kind, name=path.stem, seed=number), path)
            print(path.stem, f"{time.time() - begun:.0f} s", flush=True)


def table(folder: Path, calibration: str) -> None:
    held = read_calibration(calibration)
    print("| images | cases | 50 % | 80 % | 90 % | near the border | farther | ratio | rank r | taken for |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows: dict[str, list[list[float]]] = {}
    taken: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.npz")):
        p = read_case(path).points
        kind = held.kind_of(p.traits)
        evidence = p.evidence[:, [p.names.index(name) for name in held.scale.names]]
        inside = p.foreground
        error = p.error[inside]
        bounds = {q: held.bound(evidence, inside, q, kind)[inside] for q in LEVELS}
        near = p.evidence[inside, p.names.index("border")] < NEAR
        within = error <= bounds[0.9]
        rows.setdefault(p.kind, []).append(
            [float((error <= bounds[q]).mean()) for q in LEVELS[:3]]
            + [float(within[part].mean()) if part.any() else np.nan for part in (near, ~near)]
            + [float(np.median(bounds[0.9]) / np.median(error)), spearman(error, bounds[0.9])]
        )
        taken.setdefault(p.kind, []).append(kind)
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
    args = parser.parse_args()
    if args.what == "measure":
        measure(args.folder, args.only)
    else:
        table(args.folder, args.calibration)


if __name__ == "__main__":
    main()
