"""Whether loading keeps up with training: samples a second of the hippocampus set at 64^3, and where the time goes.

    python bench/loader.py [--data FOLDER] [--workers 0 1 2] [--batch 8] [--steps 30]

Prints one line a setting: preparing the 100 training images once, from disk on a second start, then batches as they
are, with flips and turns, and with affine, elastic and grey-value changes. A training step that takes longer than
``batch / (pairs a second)`` never waits (with one worker or more it overlaps with loading). Processor time a pair holds
on a busy machine, where pairs a second do not.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import tempfile
import time
from pathlib import Path

from verimorph.cli.runtime import tune_allocator
from verimorph.data.config import Data, build_data
from verimorph.field.backend import set_threads

SETTINGS = {
    "as they are": {},
    "flips, turns": {"flip": 0.5, "turn": 0.5},
    "flips, turns, affine": {"flip": 0.5, "turn": 0.5, "affine": 1.0},
    "all, elastic and grey values too": {"flip": 0.5, "turn": 0.5, "affine": 1.0, "elastic": 1.0, "intensity": 1.0},
}


def made(data: Path, cache: Path | None, augment: dict, workers: int) -> Data:
    """Build the data of the hippocampus recipe."""
    return build_data(
        {
            "dataset": "hippocampus_mr",
            "root": str(data / "hippocampus_mr"),
            "cache": None if cache is None else str(cache),
            "augment": augment,
            "workers": workers,
        },
        seed=0,
    )


def speed(data: Data, *, batch: int, steps: int) -> tuple[float, float]:
    """Pairs a second, and milliseconds of this process a pair, after two batches that start everything."""
    stream = data.train_batches(batch=batch)
    for _ in itertools.islice(stream, 2):
        pass
    start, spent = time.perf_counter(), time.process_time()
    for _ in itertools.islice(stream, steps):
        pass
    pairs = batch * steps
    return pairs / (time.perf_counter() - start), 1000 * (time.process_time() - spent) / pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--profile", action="store_true", help="also print where the time of the last setting goes")
    given = parser.parse_args()
    tune_allocator()
    set_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for title in ("prepared", "from disk"):
            data = made(given.data, Path(folder), {}, 0)
            start = time.perf_counter()
            data.fill()
            seconds = time.perf_counter() - start
            print(f"{title:34} {len(data.train_ids) / seconds:8.1f} images/s ({seconds:.1f} s for all)", flush=True)
        for (name, augment), workers in itertools.product(SETTINGS.items(), given.workers):
            data = made(given.data, Path(folder), augment, workers)
            rate, cost = speed(data, batch=given.batch, steps=given.steps)
            told = f", {cost:.1f} ms of processor a pair" if workers == 0 else f", {workers} workers"
            print(f"{name:34} {rate:8.1f} pairs/s{told}", flush=True)
        if given.profile:
            data = made(given.data, Path(folder), SETTINGS["flips, turns, affine"], 0)
            with cProfile.Profile() as profile:
                speed(data, batch=given.batch, steps=given.steps)
            pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
