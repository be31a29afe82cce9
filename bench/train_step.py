"""A training step of voxelmorph, ours and the same written with the usual PyTorch idioms: seconds and peak memory.

    python bench/train_step.py --shape 160 192 224 --threads 2 --steps 3

The usual way: the U-Net from Conv3d, LeakyReLU, MaxPool3d, Upsample and cat, displacement by ``grid_sample``, local
correlation from separable convolutions and automatic differentiation, contiguous tensors. Ours: the method as
``verimorph.methods`` builds it, ``verimorph.field.warp``, the objective's terms, ``channels_last_3d``. A third row has
our network in the usual step. All start from the same weights on the same pair and must give the same losses; each runs
in a process of its own. Expected on two threads: at most 0.6 times the seconds and 0.8 times the memory of the usual.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("usual", "usual step, our network", "ours")


def usual_network():
    """The U-Net of voxelmorph, every layer its own tensor."""
    import torch
    from torch import nn

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2))

    class Usual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([block(2, 16), block(16, 32), block(32, 32), block(32, 32)])
            self.up = nn.ModuleList([block(32, 32), block(64, 32), block(64, 32), block(64, 32)])
            self.tail = nn.Sequential(block(48, 32), block(32, 16), block(16, 16))
            self.flow = nn.Conv3d(16, 3, 3, padding=1)
            self.pool, self.larger = nn.MaxPool3d(2), nn.Upsample(scale_factor=2, mode="nearest")

        def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
            x, kept = torch.cat([fixed, moving], dim=1), []
            for layer in self.down:
                x = layer(x)
                kept.append(x)
                x = self.pool(x)
            for layer in self.up:
                x = torch.cat([self.larger(layer(x)), kept.pop()], dim=1)
            return self.flow(self.tail(x))

    return Usual()


def usual_warp(moving, flow):
    """grid_sample of the identity plus the displacement, normalised, axes reversed."""
    import torch
    from torch.nn import functional

    shape = flow.shape[2:]
    axes = [torch.arange(n, dtype=flow.dtype) for n in shape]
    where = torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0) + flow
    where = torch.stack([2 * where[:, d] / (shape[d] - 1) - 1 for d in range(3)], dim=-1).flip(-1)
    return functional.grid_sample(moving, where, mode="bilinear", align_corners=True)


def usual_lncc(fixed, moved, width: int = 9):
    """Squared local correlation from window sums, each a convolution with ones along one axis after another."""
    import torch
    from torch.nn import functional

    def total(x):
        for axis in range(3):
            size, pad = [1, 1, 1], [0, 0, 0]
            size[axis], pad[axis] = width, width // 2
            x = functional.conv3d(x, torch.ones(1, 1, *size), padding=tuple(pad))
        return x

    n = width**3
    f, m = total(fixed), total(moved)
    ff, mm, fm = total(fixed * fixed), total(moved * moved), total(fixed * moved)
    cross = fm - f * m / n
    return 1 - (cross * cross / ((ff - f * f / n) * (mm - m * m / n) + 1e-5)).mean()


def usual_diffusion(flow):
    """Mean squared forward differences, axes averaged."""
    return sum(flow.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def pair(shape: list[int]):
    """Two smooth images in [0, 1] of the same kind."""
    import torch
    from torch.nn import functional

    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 1, *[max(2, n // 8) for n in shape], generator=random)
    fixed, moving = functional.interpolate(coarse, size=shape, mode="trilinear").split(1)
    return fixed.clone(), moving.clone()


def measure(way: str, shape: list[int], threads: int, steps: int) -> dict:
    """Run one way; the first step warms up and is not timed."""
    import torch

    from verimorph.field import warp
    from verimorph.field.backend import set_threads
    from verimorph.methods import method
    from verimorph.objective import build_objective

    set_threads(threads)
    torch.manual_seed(0)
    ours = method("voxelmorph").model()
    torch.nn.init.normal_(ours.head.convolution.weight, std=1e-2)  # a field that moves something
    if way == "usual":
        network = usual_network()
        network.load_state_dict(dict(zip(network.state_dict(), ours.state_dict().values(), strict=True)))
        predict = network
    else:
        network = ours.to(memory_format=torch.channels_last_3d) if way == "ours" else ours

        def predict(fixed, moving):
            return network(fixed=fixed, moving=moving)["field"]

    objective = build_objective("lncc:radius=4,border=zeros", "diffusion:weight=1")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    fixed, moving = pair(shape)

    def loss_of(field):
        if way == "ours":
            return objective({"fixed": fixed, "moved": warp(moving, field), "field": field}).total
        return usual_lncc(fixed, usual_warp(moving, field)) + usual_diffusion(field)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, processor, losses = [], [], []
    for _ in range(steps + 1):
        start, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(predict(fixed, moving))
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "way": way,
        "seconds": min(seconds[1:]),
        "processor_seconds": min(processor[1:]),
        "peak_gib": (peak - before) / 2**20,
        "losses": losses,
    }


def main() -> None:
    """Measure the three ways and print a table of ratios to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[80, 96, 112])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="only this one, as JSON")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.shape, given.threads, given.steps)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "NUMBA_NUM_THREADS": str(given.threads)}
    rows = []
    for way in WAYS:
        command = [sys.executable, str(Path(__file__).resolve()), "--way", way, "--threads", str(given.threads)]
        command += ["--steps", str(given.steps), "--shape", *map(str, given.shape)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(f"\n{'x'.join(map(str, given.shape))}, batch 1, {given.threads} threads\n")
    print("| step | seconds | processor seconds | peak, GiB | time ratio | memory ratio |\n|---|---|---|---|---|---|")
    first = rows[0]
    for row in rows:
        ratio, memory = row["seconds"] / first["seconds"], row["peak_gib"] / first["peak_gib"]
        print(
            f"| {row['way']} | {row['seconds']:.2f} | {row['processor_seconds']:.2f} | {row['peak_gib']:.2f} "
            f"| {ratio:.2f} | {memory:.2f} |"
        )
    for row in rows[1:]:
        worst = max(abs(a - b) for a, b in zip(row["losses"], first["losses"], strict=True))
        print(f"largest difference of the loss, {row['way']}: {worst:.1e}")


if __name__ == "__main__":
    main()
