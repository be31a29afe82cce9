"""Time of every field kernel at full size, against a copy of the same volume.

    python bench/kernels_field.py                      # 160 x 192 x 224, 1 and 2 threads, compiled and torch
    python bench/kernels_field.py --shape 80 96 112 --threads 2 --backend numba --only gaussian

The unit "copies" is the time over that of copying one float32 volume with the same number of threads: it holds from
machine to machine where milliseconds do not. Milliseconds are the smallest of the repeats, so that a busy machine does
little harm; "cpu" is the smallest processor time, which tells when the threads did not really run side by side.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from verimorph import field
from verimorph.cli.runtime import tune_allocator
from verimorph.field.backend import kernels_in_use, plain_torch, set_threads


def smooth_field(shape: tuple[int, ...], amplitude: float, seed: int) -> Tensor:
    """Random field of about ``amplitude`` voxels, smooth over 16 voxels, zero at the rim."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, len(shape), *(max(n // 16, 3) for n in shape), generator=random)
    for axis in range(2, coarse.ndim):
        for end in (0, coarse.shape[axis] - 1):
            coarse.select(axis, end).zero_()
    return (field.resize(coarse, shape) * amplitude).contiguous()


def cases(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One closure a kernel."""
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    u, v = smooth_field(shape, 2.0, 1), smooth_field(shape, 0.7, 2)
    turn = np.eye(4)
    angle = np.deg2rad(10)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = (np.array(shape) - 1) / 2
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    half = tuple(n // 2 for n in shape)
    small = field.resize(u, half)

    def backward(make: Callable[[Tensor], Tensor], start: Tensor) -> Callable[[], object]:
        def run() -> Tensor:
            leaf = start.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(make(leaf).sum(), leaf)
            return gradient

        return run

    return {
        "warp": lambda: field.warp(image, u),
        "warp, affine": lambda: field.warp(image, u, matrix=turn),
        "warp, 3 channels": lambda: field.warp(v, u),
        "warp, nearest": lambda: field.warp(image, u, mode="nearest"),
        "warp with gradient": lambda: field.warp_with_gradient(image, u),
        "warp with gradient, affine": lambda: field.warp_with_gradient(image, u, matrix=turn),
        "compose": lambda: field.compose(u, v),
        "exponentiate, 4 steps": lambda: field.exponentiate(v, steps=4),
        "invert, 10 iterations": lambda: field.invert(u, iterations=10, tolerance=0.0),
        "jacobian determinant": lambda: field.jacobian_determinant(u),
        "gaussian 0.7, 3 channels": lambda: field.gaussian_smooth(u, 0.7),
        "gaussian 1.73, 3 channels": lambda: field.gaussian_smooth(u, 1.73),
        "gaussian 3, 3 channels": lambda: field.gaussian_smooth(u, 3.0),
        "gaussian 1.73, 1 channel": lambda: field.gaussian_smooth(image, 1.73),
        "box radius 4, 1 channel": lambda: field.box_mean(image, 4),
        "resize half to full, 3 channels": lambda: field.resize_displacement(small, shape),
        "resize full to half, 1 channel": lambda: field.resize(image, half),
        "warp, forward + backward": backward(lambda leaf: field.warp(image, leaf), u),
        "compose, forward + backward": backward(lambda leaf: field.compose(leaf, leaf), v),
        "exponentiate 4, forward + backward": backward(lambda leaf: field.exponentiate(leaf, steps=4), v),
    }


def smallest(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Smallest wall and smallest processor time, milliseconds."""
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((time.process_time() - cpu) * 1e3)
    return min(walls), min(cpus)


def main() -> None:
    """Print one line a kernel, back end and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 224))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backend", choices=["numba", "torch", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="kernels whose name holds this word")
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help="as the commands do")
    options = parser.parse_args()

    shape = tuple(options.shape)
    backends = ["numba", "torch"] if options.backend == "both" else [options.backend]
    if "numba" in backends and kernels_in_use() != "numba":
        backends.remove("numba")
        print("compiled kernels are not available here")
    print("allocator keeps memory:", tune_allocator() if options.keep_memory else False)
    chosen = {name: run for name, run in cases(shape).items() if options.only in name}
    print(f"{'x'.join(map(str, shape))}, smallest of {options.repeats}, {os.cpu_count()} processors")
    print(f"{'kernel':36s} {'threads':>7s} {'back end':>8s} {'ms':>8s} {'cpu ms':>8s} {'copies':>7s}")
    source, target = torch.rand(shape), torch.rand(shape)
    for threads in options.threads:
        set_threads(threads)
        copy, cpu = smallest(lambda: target.copy_(source), 3 * options.repeats)
        print(f"{'copy':36s} {threads:7d} {'':8s} {copy:8.1f} {cpu:8.1f} {1.0:7.1f}")
        for name, run in chosen.items():
            for backend in backends:
                if backend == "numba":
                    wall, cpu = smallest(run, options.repeats)
                else:
                    with plain_torch():
                        wall, cpu = smallest(run, max(options.repeats // 2, 1))
                print(f"{name:36s} {threads:7d} {backend:>8s} {wall:8.1f} {cpu:8.1f} {wall / copy:7.1f}", flush=True)


if __name__ == "__main__":
    main()
