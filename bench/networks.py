"""Seconds of the learned methods on one pair, convolutions as the package does them and as torch alone does.

    python bench/networks.py [--shape 64x64x64] [--threads 2] [--repeats 5] [--only modet+estienne]

One pair is what ``verimorph predict`` and a training of batch 1 have. On the CPU torch convolves the inner levels of
such a network by unfolding them (`verimorph.nn.blocks.convolve` says when); the two columns alternate in one process
and the smallest time of each is printed. Layout ``channels_last_3d``, as in ``predict``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock


def shortest(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Smallest seconds of each way, the ways in turn."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats + 1):  # the first of each meets cold caches and cannot be the smallest by chance
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64x64x64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="methods, by +")
    arguments = parser.parse_args()

    import torch

    from verimorph.cli.runtime import tune_allocator
    from verimorph.field import backend
    from verimorph.methods import METHODS, method
    from verimorph.nn import blocks

    tune_allocator()
    backend.set_threads(arguments.threads)
    shape = tuple(int(length) for length in arguments.shape.split("x"))
    torch.manual_seed(0)
    layout = torch.channels_last_3d
    fixed, moving = (torch.rand(1, 1, *shape).contiguous(memory_format=layout) for _ in range(2))
    print("| method | predict, torch | predict | | step, torch | step | |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.only.split("+") if arguments.only else METHODS:
        described = method(name)
        if described.task != "registration":
            continue
        window = {"window": [max(2, length // 16) for length in shape]} if "window" in described.settings() else {}
        model = described.model(**window).to(memory_format=layout)

        def predict(model: torch.nn.Module = model) -> None:
            with torch.inference_mode():
                model.eval()(fixed=fixed, moving=moving)

        def step(model: torch.nn.Module = model) -> None:
            found = model.train()(fixed=fixed, moving=moving)
            sum(value.square().mean() for value in found.values() if value.requires_grad).backward()
            model.zero_grad()

        def by_torch(run: Callable[[], object]) -> Callable[[], object]:
            def plain() -> None:
                with mock.patch.object(blocks, "torch_is_slow", return_value=False):
                    run()

            return plain

        row = name
        for run in (predict, step):
            seconds = shortest({"torch": by_torch(run), "ours": run}, arguments.repeats)
            row += f" | {seconds['torch']:.2f} | {seconds['ours']:.2f} | {seconds['ours'] / seconds['torch']:.2f}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
