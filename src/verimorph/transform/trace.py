"""Where the voxels of one grid land in another through any transform, a few planes at a time.

Dense work on a large grid goes through here, so that float64 coordinates never exist for more than a slab. Neighbouring
matrices (voxel to world, linear parts, world to voxel) are multiplied first: a point pays one product between fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.grid import Grid
from verimorph.transform.protocol import Dense, Linear, Transform, parts_of

POINTS_AT_ONCE = 1 << 17
"""Points handled together: 3 MB of float64 coordinates, which stay in the cache, and many beside the cost of a call."""


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut axis 0 into runs of planes of at most ``POINTS_AT_ONCE`` voxels (at least one plane)."""
    plane = int(np.prod(shape[1:]))
    step = max(1, POINTS_AT_ONCE // plane)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def slab_index(shape: tuple[int, ...], planes: slice) -> Float[ndarray, "d n"]:
    """Voxel indices of some planes of axis 0, float64, ``(D, n)``, voxels in C order."""
    axes = [np.arange(planes.start, planes.stop), *(np.arange(n) for n in shape[1:])]
    out = np.empty((len(shape), *(len(axis) for axis in axes)))
    for d, axis in enumerate(axes):
        out[d] = axis.reshape([-1 if k == d else 1 for k in range(len(shape))])
    return out.reshape(len(shape), -1)


def transformed(matrix: Float[ndarray, "h h"], points: Float[ndarray, "d n"]) -> Float[ndarray, "d n"]:
    """Apply a homogeneous matrix to points in columns.

    Written out: a library product of a 3x3 matrix costs more in starting its threads than in arithmetic.
    """
    d = len(points)
    out = np.empty_like(points)
    for row, target in zip(matrix, out, strict=False):
        np.multiply(points[0], row[0], out=target)
        for k in range(1, d):
            target += row[k] * points[k]
        target += row[d]
    return out


def displaced(displacement: Float[Tensor, "1 d *space"], index: Float[ndarray, "d n"]) -> Float[ndarray, "d n"]:
    """Return ``index + u(index)``, linear between voxels, zero outside; all in voxels of the field."""
    where = torch.from_numpy(index).to(displacement.device, displacement.dtype)[None]
    return index + field.sample_field(displacement.detach(), where)[0].cpu().numpy()


@dataclass(frozen=True)
class Trace:
    """The map from voxels of ``start`` to voxels of ``end`` that a transform makes.

    Parameters
    ----------
    transform
        Fixed to moving.
    start
        Grid in fixed space.
    end
        Grid in moving space.
    """

    transform: Transform
    start: Grid
    end: Grid

    def __call__(self, planes: slice) -> Float[ndarray, "d n"]:
        """Where the voxels of some planes of axis 0 of ``start`` land, voxels of ``end``, float64."""
        points = slab_index(self.start.shape, planes)
        pending = self.start.affine  # from the coordinates in ``points`` to the world
        for number, part in enumerate(parts_of(self.transform)):
            if isinstance(part, Linear):
                pending = part.matrix @ pending
            elif isinstance(part, Dense):
                if number == 0 and part.grid.is_close(self.start, tolerance_mm=1e-4):
                    points += part.displacement[0, :, planes].detach().cpu().numpy().reshape(points.shape)
                else:
                    points = displaced(part.displacement, transformed(part.grid.inverse_affine @ pending, points))
                pending = part.grid.affine
            else:
                points = np.ascontiguousarray(part.map_points(transformed(pending, points).T).T)
                pending = np.eye(len(points) + 1)
        return transformed(self.end.inverse_affine @ pending, points)
