"""Coarse copies of a pair of images. Axes are shrunk towards equal spacing, never past it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verimorph.field import resize, shrink
from verimorph.grid import Grid


@dataclass(frozen=True)
class Volume:
    """An image on the compute device and where it is: ``(1, 1, *shape)`` with a grid, and a mask or None."""

    tensor: Float[Tensor, "1 1 *space"]
    grid: Grid
    mask: Float[Tensor, "1 1 *space"] | None = None


@dataclass(frozen=True)
class Level:
    """A pair at one resolution."""

    fixed: Volume
    moving: Volume
    shrink: int
    """Nominal shrink factor of the fixed image's finest axis."""


def level_shape(grid: Grid, spacing_mm: float) -> tuple[int, ...]:
    """Voxels along each axis when every axis that is finer than ``spacing_mm`` is brought to about that spacing.

    >>> import numpy as np
    >>> level_shape(Grid((256, 256, 32), np.diag([1.0, 1.0, 4.0, 1.0])), 4.0)
    (64, 64, 32)
    """
    lengths = zip(grid.shape, grid.spacing, strict=True)
    return tuple(max(1, math.ceil(n * float(s) / max(spacing_mm, float(s)) - 1e-6)) for n, s in lengths)


def shrink_volume(volume: Volume, spacing_mm: float) -> Volume:
    """Smooth and resample to :func:`level_shape`."""
    shape = level_shape(volume.grid, spacing_mm)
    if shape == volume.grid.shape:
        return volume
    tensor = shrink(volume.tensor, [n / m for n, m in zip(volume.grid.shape, shape, strict=True)])
    mask = None if volume.mask is None else (resize(volume.mask, shape) > 0.5).to(tensor.dtype)
    return Volume(tensor, volume.grid.resized(shape), mask)


def make_level(*, fixed: Volume, moving: Volume, shrink: int, spacing_mm: float) -> Level:
    """Return both images at a common target spacing."""
    return Level(shrink_volume(fixed, spacing_mm), shrink_volume(moving, spacing_mm), shrink)
