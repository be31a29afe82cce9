"""Running a model on overlapping tiles of a volume that is too large for it, and blending what comes out.

Displacements are in voxels and do not depend on where a tile lies, so tiles of fields are averaged as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

Run = Callable[[tuple[slice, ...]], dict[str, Tensor]]
"""Runs the model on one window of the volume."""


def tile_starts(length: int, tile: int, overlap: int, step: int) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread multiples of ``step``, neighbours overlap by ``overlap``.

    >>> tile_starts(64, 32, 8, 8)
    [0, 16, 32]
    >>> tile_starts(32, 32, 8, 8)
    [0]
    """
    if tile >= length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    last = length - tile
    return sorted({min(last, round(k * last / (count - 1) / step) * step) for k in range(count)})


def windows(shape: Sequence[int], tile: Sequence[int], *, overlap: float, step: int) -> Iterator[tuple[slice, ...]]:
    """Yield the windows that cover ``shape``; neighbours share about ``overlap`` of a tile along every axis."""
    starts = []
    for n, size in zip(shape, tile, strict=True):
        shared = min(size - step, max(step, math.ceil(overlap * size / step) * step)) if size < n else 0
        starts.append(tile_starts(n, size, shared, step))
    for corner in product(*starts):
        yield tuple(slice(a, a + min(size, n)) for a, size, n in zip(corner, tile, shape, strict=True))


def blend_window(shape: Sequence[int]) -> Float[Tensor, "1 1 *space"]:
    """Weight of a tile's voxels, ``prod_d sin^2(pi (i_d + 1/2) / n_d)`` and never 0: tiles fade into each other."""
    weight = torch.ones(1, 1, *shape)
    for axis, n in enumerate(shape):
        line = torch.sin(math.pi * (torch.arange(n) + 0.5) / n).square().clamp(min=1e-3)
        weight = weight * line.view([-1 if k == axis + 2 else 1 for k in range(len(shape) + 2)])
    return weight


def run_tiled(
    run: Run, shape: Sequence[int], tile: Sequence[int], *, overlap: float = 0.25, step: int = 1
) -> dict[str, Tensor]:
    """Run on every window and return the weighted means of all outputs that are maps.

    An output counts as a map if it has the tile's size divided by one whole number along each axis (a velocity at half
    resolution, say); ``step`` must be a multiple of that number. Others (matrices, control points) belong to one tile
    and are left out.
    """
    total: dict[str, Tensor] = {}
    weights: dict[tuple[int, ...], Tensor] = {}
    d = len(shape)
    for window in windows(shape, tile, overlap=overlap, step=step):
        outputs = run(window)
        seen: set[tuple[int, ...]] = set()
        for name, value in outputs.items():
            value = value.detach().float().cpu()
            shrink = _shrink(window, value, d, step)
            if shrink is None:
                continue
            place = (..., *(slice(w.start // f, w.stop // f) for w, f in zip(window, shrink, strict=True)))
            whole = tuple(n // f for n, f in zip(shape, shrink, strict=True))
            weight = blend_window(value.shape[2:])
            if name not in total:
                total[name] = torch.zeros(*value.shape[:2], *whole)
            if whole not in weights:
                weights[whole] = torch.zeros(1, 1, *whole)
            if whole not in seen:
                weights[whole][place] += weight
                seen.add(whole)
            total[name][place] += weight * value
    return {name: value / weights[tuple(value.shape[2:])] for name, value in total.items()}


def _shrink(window: Sequence[slice], value: Tensor, d: int, step: int) -> tuple[int, ...] | None:
    """By what whole numbers an output is coarser than its window; None if it is no map of it."""
    if value.ndim != d + 2:
        return None
    factors = []
    for side, n in zip(window, value.shape[2:], strict=True):
        length = side.stop - side.start
        if n == 0 or length % n or step % (length // n):
            return None
        factors.append(length // n)
    return tuple(factors)


def bytes_per_voxel(module: nn.Module, run: Callable[[], object], voxels: int) -> float:
    """Estimate how much memory a model needs for one voxel of its input, from a run on so many voxels.

    All that its layers put out, counted twice for what lies between layers (concatenation, interpolation, workspaces).
    Layers free much of it on the way, so this errs on the safe side.
    """
    counted = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal counted
        if isinstance(output, Tensor):
            counted += output.numel() * output.element_size()

    handles = [part.register_forward_hook(count) for part in module.modules() if not list(part.children())]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return 2.0 * counted / voxels + 64
