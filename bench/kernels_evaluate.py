"""Time of every metric on a real brain pair, in seconds and against a copy of the same volume.

    python bench/kernels_evaluate.py                      # brain_t1_oasis 1000/1001, 139 labels, 1 and 2 threads
    python bench/kernels_evaluate.py --threads 2 --only surface

The moving labels are carried to the fixed grid by the difference of the image centres, so the surfaces are as far apart
as before a registration: the harder case. "copies" is the time over that of copying one float32 volume; it holds from
machine to machine where seconds do not. Seconds are the smallest of the repeats; "cpu" is processor time of that run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from verimorph import field
from verimorph.cli.runtime import tune_allocator
from verimorph.evaluate import (
    border_distances,
    challenge,
    count_overlap,
    inverse_consistency_error,
    jacobian_summary,
    label_values,
    non_diffeomorphic_volume,
    score_labels,
    surface_distances_per_label,
)
from verimorph.field.backend import set_threads
from verimorph.image import Image
from verimorph.io import read_image
from verimorph.transform import Affine, DisplacementField

DATA = Path(os.environ.get("VERIMORPH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def labels_on_one_grid(fixed_name: str, moving_name: str) -> tuple[Image, Image]:
    """Two label maps, the second carried to the grid of the first by the shift of the image centres."""
    fixed, moving = read_image(DATA / fixed_name), read_image(DATA / moving_name)
    shift = np.eye(4)
    shift[:3, 3] = moving.grid.centre - fixed.grid.centre
    return fixed, Affine(shift).resample(moving, fixed.grid, interpolation="nearest")


def cases(fixed: Image, moved: Image, threads: int) -> dict[str, Callable[[], object]]:
    """One closure a metric."""
    grid, spacing = fixed.grid, fixed.grid.spacing
    a, b = fixed.array, moved.array
    coarse = torch.randn(1, 3, *(max(n // 16, 3) for n in grid.shape), generator=torch.Generator().manual_seed(1))
    displacement = (field.resize(coarse, grid.shape) * 2).contiguous()
    forward, backward = DisplacementField(grid, displacement), DisplacementField(grid, -displacement)
    determinant = forward.jacobian_determinant(grid)[0].numpy()
    voxel_field = np.moveaxis(displacement[0].numpy(), 0, -1)
    largest = max(label_values(a), key=lambda n: int((a == n).sum()))
    return {
        "overlap, all labels": lambda: count_overlap(a, b),
        "surface distances, all labels": lambda: surface_distances_per_label(a, b, spacing=spacing, threads=threads),
        "all of score_labels": lambda: score_labels(fixed, moved, threads=threads),
        "border distances, largest label": lambda: border_distances(a == largest, b == largest, spacing=spacing),
        "Jacobian summary": lambda: jacobian_summary(determinant),
        "non-diffeomorphic volume": lambda: non_diffeomorphic_volume(displacement[0].numpy(), spacing=spacing),
        "inverse consistency, 200 000 points": lambda: inverse_consistency_error(
            forward, backward, fixed_grid=grid, moving_grid=grid
        ),
        "challenge: SDlogJ": lambda: challenge.sd_log_jacobian_plus_3(voxel_field),
        "challenge: whole case": lambda: challenge.challenge_score(
            voxel_field, fixed_labels=a, moving_labels=b, threads=threads
        ),
    }


def fastest(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and processor seconds of the fastest of several runs."""
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


def main() -> None:
    """Print one table a number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixed", default="brain_t1_oasis/1000_labels.nii.gz", help="label map below VERIMORPH_DATA")
    parser.add_argument("--moving", default="brain_t1_oasis/1001_labels.nii.gz")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="only metrics whose name contains this")
    given = parser.parse_args()
    tune_allocator()
    fixed, moved = labels_on_one_grid(given.fixed, given.moving)
    volume = np.zeros(fixed.grid.shape, np.float32)
    print(f"{fixed.grid}; {len(label_values(fixed.array))} labels")
    for threads in given.threads:
        set_threads(threads)
        copy = fastest(volume.copy, 20)[0]
        print(f"\n{threads} thread{'s' * (threads > 1)}; a copy of the volume takes {1000 * copy:.1f} ms")
        print(f"{'metric':<38} {'seconds':>8} {'cpu':>8} {'copies':>8}")
        for name, run in cases(fixed, moved, threads).items():
            if given.only in name:
                wall, cpu = fastest(run, given.repeats)
                print(f"{name:<38} {wall:8.2f} {cpu:8.2f} {wall / copy:8.0f}")


if __name__ == "__main__":
    main()
