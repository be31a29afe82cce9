"""Speed of the measures as a ratio to a copy of the same volume: what a machine-independent speed claim looks like.

    python bench/kernels_objective.py [--threads 2] [--shape 160x192x224] [--repeats 7]

A copy reads and writes one float32 volume. Every figure is the smallest of its repeats; copies are timed before,
between and after the measures, and the smallest of all copies is the unit. Compilation is reported apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable


def smallest(action: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", default="160x192x224")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="only measures whose name contains this")
    arguments = parser.parse_args()
    os.environ["NUMBA_NUM_THREADS"] = str(arguments.threads)

    import torch

    from verimorph.field import backend
    from verimorph.objective import regularity, similarity

    backend.set_threads(arguments.threads)
    shape = tuple(int(length) for length in arguments.shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, *(max(2, length // 8) for length in shape), generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")
    images = (images + 0.05 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    fixed, moved = images[:1].contiguous(), images[1:].contiguous()
    displacement = torch.nn.functional.interpolate(
        torch.randn(1, 3, *(max(2, length // 16) for length in shape), generator=generator),
        size=shape,
        mode="trilinear",
    )
    target = torch.empty_like(fixed)

    def with_gradient(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, **settings: object) -> Callable:
        def run() -> None:
            last = inputs[-1].detach().requires_grad_()
            function(*inputs[:-1], last, **settings).backward()

        return run

    statistics = similarity.lncc_statistics(fixed, 4)
    rows: list[tuple[str, Callable[[], object]]] = [
        ("MSE, value and gradient", lambda: similarity.mse_value_and_gradient(fixed, moved)),
        ("MAE, value and gradient", with_gradient(similarity.mae, fixed, moved)),
        ("Pearson, value and gradient", with_gradient(similarity.pearson, fixed, moved)),
        ("LNCC 9^3, statistics of the fixed image", lambda: similarity.lncc_statistics(fixed, 4)),
        (
            "LNCC 9^3, value and gradient",
            lambda: similarity.lncc_value_and_gradient(fixed, moved, 4, statistics=statistics),
        ),
        ("LNCC 9^3, value and gradient, nothing kept", lambda: similarity.lncc_value_and_gradient(fixed, moved, 4)),
        ("LNCC Gaussian, value and gradient", with_gradient(similarity.lncc_gaussian, fixed, moved)),
        ("MIND-SSC, descriptors", lambda: similarity.mind_ssc(fixed)),
        ("MIND-SSC, value and gradient", with_gradient(similarity.mind_distance, fixed, moved)),
        ("MI, value and gradient", lambda: similarity.mutual_information_value_and_gradient(fixed, moved)),
        (
            "MI Mattes, value and gradient",
            lambda: similarity.mutual_information_value_and_gradient(fixed, moved, window="mattes"),
        ),
        ("local MI, value and gradient", with_gradient(similarity.local_mutual_information, fixed, moved)),
        ("correlation ratio, value and gradient", with_gradient(similarity.correlation_ratio, fixed, moved)),
        (
            "local correlation ratio, value and gradient",
            with_gradient(similarity.local_correlation_ratio, fixed, moved),
        ),
        ("SSIM, value and gradient", with_gradient(similarity.ssim, fixed, moved)),
        ("NGF, value and gradient", with_gradient(similarity.ngf, fixed, moved)),
        ("diffusion, value and gradient", with_gradient(regularity.diffusion, displacement)),
        ("total variation, value and gradient", with_gradient(regularity.total_variation, displacement)),
        ("bending energy, value and gradient", with_gradient(regularity.bending, displacement)),
        ("linear elasticity, value and gradient", with_gradient(regularity.linear_elasticity, displacement)),
        ("Jacobian folding, value and gradient", with_gradient(regularity.jacobian_folding, displacement)),
    ]
    rows = [row for row in rows if arguments.only.lower() in row[0].lower()]
    copies = [smallest(lambda: target.copy_(fixed), 3 * arguments.repeats)]
    results = []
    for name, action in rows:
        start = time.perf_counter()
        action()
        first = time.perf_counter() - start
        cpu = time.process_time()
        wall = smallest(action, arguments.repeats)
        cpu = 1e3 * (time.process_time() - cpu) / arguments.repeats
        copies.append(smallest(lambda: target.copy_(fixed), arguments.repeats))
        results.append((name, first, wall, cpu))
        print(f"{name}: {wall:.0f} ms, cpu {cpu:.0f} ms, copy {copies[-1]:.2f} ms", file=sys.stderr, flush=True)
    unit = min(copies)
    print(f"{arguments.shape}, {arguments.threads} threads, kernels: {backend.kernels_in_use()}, copy {unit:.2f} ms\n")
    print("| measure | x copy | ms | CPU ms | first call s |")
    print("|---|---|---|---|---|")
    for name, first, wall, cpu in results:
        print(f"| {name} | {wall / unit:.0f} | {wall:.0f} | {cpu:.0f} | {first:.1f} |")


if __name__ == "__main__":
    main()
