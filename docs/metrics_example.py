"""The example of metrics.md: one case scored in both modes. Run with --write to put the table into the page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from verimorph.evaluate import challenge, score, summarise_errors, target_registration_error
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import Points
from verimorph.transform import DisplacementField

PAGE = Path(__file__).with_name("metrics.md")
BEGIN, END = "<!-- example: begin -->", "<!-- example: end -->"
SHAPE, SPACING = (48, 44, 32), (1.0, 1.0, 2.5)


def example() -> tuple[np.ndarray, Image, Image, np.ndarray, np.ndarray]:
    """A field with a few folds, label maps of four blobs (one of which the field loses), and landmarks, in voxels."""
    random = np.random.default_rng(7)
    grid = Grid(SHAPE, np.diag([*SPACING, 1.0]))
    index = np.indices(SHAPE, dtype=float)
    field = np.stack([ndimage.gaussian_filter(random.normal(size=SHAPE), 3.0) for _ in range(3)])
    field *= np.array([6.6, 6.6, 3.3]).reshape(3, 1, 1, 1) / np.abs(field).max()
    fixed, moving = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    for label, (centre, radius) in enumerate([((14, 14, 10), 8), ((32, 28, 18), 9), ((14, 32, 22), 6)], start=1):
        for volume, shift in ((fixed, 0.0), (moving, 1.5)):
            middle = np.array(centre) + (shift, 0, 0)
            offset = (index - middle.reshape(3, 1, 1, 1)) * np.reshape(SPACING, (3, 1, 1, 1))
            volume[(offset**2).sum(0) <= radius**2] = label
    # a structure of one voxel that no fixed voxel looks at: the registration loses it
    number = np.arange(moving.size).reshape(SHAPE)
    seen = challenge.warp_labels(number, np.moveaxis(field, 0, -1))
    lost = np.setdiff1d(number[moving == 0], seen)
    fixed[40, 6, 6] = moving.flat[lost[len(lost) // 2]] = 4
    points = random.uniform([6, 6, 4], [42, 38, 28], (40, 3))
    carried = np.stack([ndimage.map_coordinates(c, points.T, order=1) for c in field], axis=1)
    partners = points + carried + random.normal(scale=0.4, size=points.shape)
    return field.astype(np.float32), Image.from_array(fixed, grid), Image.from_array(moving, grid), points, partners


def table() -> str:
    """The example as a Markdown table."""
    field, fixed, moving, points, partners = example()
    grid = fixed.grid
    transform = DisplacementField(grid, torch.from_numpy(field[None]))
    theirs = challenge.challenge_score(
        np.moveaxis(field, 0, -1),
        fixed_labels=fixed.array,
        moving_labels=moving.array,
        fixed_voxels=points,
        moving_voxels=partners,
        moving_spacing=SPACING,
    )
    ours = score(
        fixed_labels=fixed,
        moving_labels=moving,
        fixed_landmarks=Points(grid.index_to_world(points)),
        moving_landmarks=Points(grid.index_to_world(partners)),
        transform=transform,
    )
    labels, jacobian, folds = ours["labels"], ours["jacobian"], ours["non_diffeomorphic"]
    honest_errors = summarise_errors(
        target_registration_error(grid.index_to_world(points), grid.index_to_world(partners), transform)
    )
    dice, hd95, tre = theirs["dice"], theirs["hd95"], theirs["tre"]
    found = (f"{jacobian['folding_voxels']} ({jacobian['folding_percent']:.3f} %)", f"{folds['percent']:.3f} %")
    rows = [
        (
            "spread of the Jacobian",
            f"{theirs['sdlogj']['mean']:.4f}",
            f"{jacobian['sd_log_jacobian']:.4f}",
            "3 is added to det J before the logarithm; folds down to −3 count as ordinary values",
        ),
        (
            "folding voxels",
            f"{theirs['num_foldings']['mean']:.0f}",
            found[0],
            "the count tests the shifted and clipped determinant: it cannot be anything but 0",
        ),
        (
            "non-diffeomorphic volume",
            "–",
            f"{found[1]} ({folds['mm3']:.1f} mm³)",
            "not part of the challenge; finds folds that central differences miss",
        ),
        (
            "HD95 of label 1",
            f"{hd95['detailed'][0]:.3f} voxels",
            f"{labels['per_label']['1']['hd95_mm']:.3f} mm",
            "the challenge passes spacing (1, 1, 1)",
        ),
        (
            "HD95, mean",
            f"{hd95['mean']:.3f} voxels",
            f"{labels['mean']['hd95_mm']:.3f} mm",
            f"label 4 is lost: infinite there ({np.mean(hd95['detailed'][:3]):.3f} without); here left out, named",
        ),
        (
            "Dice, mean",
            f"{dice['mean']:.4f}",
            f"{labels['mean']['dice']:.4f}",
            "one rule (a lost label counts 0); nearest neighbour may differ in ties and at the image edge",
        ),
        (
            "TRE, mean",
            f"{tre['mean']:.4f} mm",
            f"{honest_errors['mean']:.4f} mm",
            "field sampled by cubic spline there; linearly, as it is applied, here",
        ),
    ]
    lines = ["| quantity | challenge | honest | why |", "|---|---|---|---|"]
    lines += [f"| {name} | {a} | {b} | {why} |" for name, a, b, why in rows]
    return "\n".join(lines)


def written(page: str, example_table: str) -> str:
    """The page with the example between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{example_table}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
    else:
        print(table())
