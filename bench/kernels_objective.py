"""Speed of the measures as a ratio to a copy of the same volume: what a machine-independent speed claim looks like.

    python bench/kernels_objective.py [--threads 2] [--shape 160x192x224] [--repeats 7]

A copy reads one float32 volume and writes another, in turn through eight pairs, so that it goes through memory and not
through a cache that happens to hold all of it. Copies alternate with the runs of a measure; the ratio is the smallest
time of the measure to the smallest of its copies. On a machine that others use at the same time a short copy finds a
quiet moment more easily than a long measure: there the ratio of processor times says more. Compilation is apart.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from typing import NamedTuple


class Timing(NamedTuple):
    """Shortest wall time and mean processor time, in milliseconds."""

    wall: float
    processor: float


def alternate(action: Callable[[], object], copy: Callable[[], object], repeats: int) -> tuple[Timing, Timing]:
    """Time an action, and the copies between its runs."""
    walls: tuple[list[float], list[float]] = ([], [])
    processors = [0.0, 0.0]
    for _ in range(repeats):
        for which, run, times in ((0, action, 1), (1, copy, 8)):
            before = time.process_time()
            for _ in range(times):
                start = time.perf_counter()
                run()
                walls[which].append(time.perf_counter() - start)
            processors[which] += (time.process_time() - before) / times
    first, second = (Timing(1e3 * min(w), 1e3 * p / repeats) for w, p in zip(walls, processors, strict=True))
    return first, second


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", default="160x192x224")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="only measures whose name contains one of these, by +")
    arguments = parser.parse_args()
    os.environ["NUMBA_NUM_THREADS"] = str(arguments.threads)

    import torch

    from verimorph.cli.runtime import tune_allocator
    from verimorph.field import backend
    from verimorph.objective import consistency, labels, regularity, similarity

    tune_allocator()  # as every command does: else fresh pages cost more than the arithmetic
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
    volumes = torch.rand(16, *shape, generator=generator)
    turn = itertools.cycle(range(8))

    def copy() -> None:
        pair = next(turn)
        volumes[8 + pair].copy_(volumes[pair])

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
        ("Jacobian volume, value and gradient", with_gradient(regularity.jacobian_volume, displacement)),
    ]
    opposite = -displacement
    classes = torch.cat([fixed, moved, 1 - fixed, 1 - moved], 1).softmax(1)  # four labels
    others = classes.flip(1).contiguous()
    points = torch.rand(1, 300, 3, generator=generator) * (torch.tensor(shape) - 1)
    rows += [
        (f"{name}, value and gradient", with_gradient(function, *inputs))
        for name, function, inputs in (
            ("Laplacian prior", regularity.laplacian_prior, (displacement, opposite)),
            ("inverse consistency", consistency.inverse_consistency, (displacement, opposite)),
            ("gradient inverse consistency", consistency.gradient_inverse_consistency, (displacement, opposite)),
            ("feature distance, 4 channels", similarity.feature_distance, (classes, others)),
            ("soft Dice, 4 labels", labels.soft_dice, (classes, others)),
            ("generalised Dice, 4 labels", labels.generalised_dice, (classes, others)),
            ("partial-label Dice, 4 labels", labels.partial_dice, (classes, others)),
            ("cross-entropy, 4 labels", labels.cross_entropy, (classes, others)),
            ("known field", labels.known_field_distance, (opposite, displacement)),
        )
    ]

    def landmarks() -> None:
        leaf = displacement.detach().requires_grad_()
        labels.landmark_distance(leaf, points, points).backward()

    rows.append(("landmarks, 300 points, value and gradient", landmarks))
    rows = [row for row in rows if any(part in row[0].lower() for part in arguments.only.lower().split("+"))]
    print(f"{arguments.shape}, {arguments.threads} threads, kernels: {backend.kernels_in_use()}\n")
    print("| measure | x copy | x copy, CPU | ms | copy ms | CPU ms | first call s |")
    print("|---|---|---|---|---|---|---|")
    for name, action in rows:
        start = time.perf_counter()
        action()
        first = time.perf_counter() - start
        spent, unit = alternate(action, copy, arguments.repeats)
        ratios = f"{spent.wall / unit.wall:.0f} | {spent.processor / unit.processor:.0f}"
        times = f"{spent.wall:.0f} | {unit.wall:.2f} | {spent.processor:.0f} | {first:.1f}"
        print(f"| {name} | {ratios} | {times} |", flush=True)


if __name__ == "__main__":
    main()
