"""Walking through a large grid a few planes at a time, so that dense work in float64 stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.grid import Grid

POINTS_AT_ONCE = 1 << 18
"""Points handled together: 6 MB of float64 coordinates, small beside any image, large beside the cost of a call."""


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut axis 0 into runs of planes of at most ``POINTS_AT_ONCE`` voxels (at least one plane)."""
    plane = int(np.prod(shape[1:]))
    step = max(1, POINTS_AT_ONCE // plane)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def slab_index(shape: tuple[int, ...], planes: slice) -> Float[ndarray, "*slab d"]:
    """Voxel indices of the given planes of axis 0, float64, ``(planes, *shape[1:], D)``."""
    axes = [np.arange(planes.start, planes.stop), *(np.arange(n) for n in shape[1:])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float64)


def world_points(grid: Grid, planes: slice) -> Float[ndarray, "n d"]:
    """World positions of all voxels in the given planes of axis 0, in C order of the slab."""
    return grid.index_to_world(slab_index(grid.shape, planes)).reshape(-1, grid.ndim)
