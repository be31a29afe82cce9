"""A dense displacement on a grid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from dataclasses import field as attribute

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import InputError, NoInverseError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.composite import chain
from verimorph.transform.protocol import Transform
from verimorph.transform.trace import displaced, transformed

LARGEST_RESIDUAL_VOXELS = 0.5
"""A numerical inverse off by more than this somewhere is refused where the field folds, and warned about elsewhere."""


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A map given by a displacement at every voxel: index ``i`` goes to the world point ``A (i + u(i))``.

    Between voxels the displacement is linear; outside the grid (half a voxel beyond the outer centres) it is zero, as
    in ITK.

    Parameters
    ----------
    grid
        Where the displacement is known, usually the grid of the fixed image.
    displacement
        u, ``(1, D, *shape)``, channel d along axis d, in voxels of ``grid``.
    inverse_displacement
        Displacement of the inverse map on the same grid, if it is known; otherwise :meth:`inverse` computes it.
    inverse_residual
        Mean and largest distance, voxels, of a point from itself after there and back through a computed inverse
        (the worse of the two orders, over voxels that stay inside the grid).

    Raises
    ------
    InputError
        If a shape does not fit the grid.
    """

    grid: Grid
    displacement: Float[Tensor, "1 d *space"] = attribute(repr=False)
    inverse_displacement: Float[Tensor, "1 d *space"] | None = attribute(default=None, repr=False)
    inverse_residual: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_field(self.grid, self.displacement, "displacement")
        if self.inverse_displacement is not None:
            check_field(self.grid, self.inverse_displacement, "inverse displacement")

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.grid.ndim

    @property
    def kind(self) -> str:
        """``"displacement"``."""
        return "displacement"

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Add to every point the displacement found there."""
        return map_through_field(self.grid, self.displacement, points)

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form on any grid, in voxels of that grid; the stored field itself on its own grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> DisplacementField:
        """Return the inverse on the same grid: the stored one, or one found by fixed-point iteration.

        Raises
        ------
        NoInverseError
            If the field folds and no displacement inverts it to half a voxel.
        """
        if self.inverse_displacement is not None:
            return DisplacementField(self.grid, self.inverse_displacement, self.displacement, self.inverse_residual)
        forward = self.displacement.detach()
        found = field.invert(forward)
        # Of a fold, invert() finds one sheet: there and back is exact, back and there is not. Both must hold.
        returned = _length_inside(field.compose(found.displacement, forward), forward)
        mean, largest = max(found.mean_residual, returned[0]), max(found.max_residual, returned[1])
        if largest > LARGEST_RESIDUAL_VOXELS:
            folded = int((field.jacobian_determinant(forward) <= 0).sum())
            size = f"mean {mean:.2g}, largest {largest:.2g} voxels"
            if folded:
                raise NoInverseError(
                    f"the displacement field folds at {folded} voxels and cannot be inverted (residual: {size}); "
                    "use the inverse that was written with it, or register again with more regularity"
                )
            message = f"the numerical inverse of the field is inexact in places: {size}"
            warnings.warn(message, VerimorphWarning, stacklevel=2)
        return DisplacementField(self.grid, found.displacement, forward, (mean, largest))

    def then(self, after: Transform) -> Transform:
        """Return this map followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Change of volume, ``det(I + du/dx)``."""
        return dense.jacobian_determinant(self, grid)


def _length_inside(residual: Tensor, displacement: Tensor) -> tuple[float, float]:
    """Mean and largest length of a residual over the voxels that ``displacement`` keeps inside the grid."""
    shape = displacement.shape[2:]
    inside = torch.ones(shape, dtype=torch.bool, device=displacement.device)
    for d, n in enumerate(shape):
        place = torch.arange(n, device=displacement.device).view([-1 if k == d else 1 for k in range(len(shape))])
        inside &= (displacement[0, d] >= -place) & (displacement[0, d] <= n - 1 - place)
    length = residual[0].square().sum(0).sqrt()[inside]
    return (float(length.mean()), float(length.max())) if length.numel() else (0.0, 0.0)


def check_field(grid: Grid, displacement: Tensor, name: str) -> None:
    """Refuse a field whose shape is not ``(1, D, *grid.shape)``."""
    expected = (1, grid.ndim, *grid.shape)
    if tuple(displacement.shape) != expected:
        raise InputError(f"a {name} on a grid of {grid.shape} has shape {expected}, got {tuple(displacement.shape)}")


def map_through_field(grid: Grid, displacement: Tensor, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    """Return ``x + A_lin u(A^-1 x)`` for world points x; linear between voxels, zero outside."""
    points = np.asarray(points, dtype=np.float64)
    if len(points) == 0:
        return points.copy()
    d = grid.ndim
    index = transformed(grid.inverse_affine, np.ascontiguousarray(points.T))
    moved = displaced(displacement, index) - index
    return points + moved.T @ grid.affine[:d, :d].T


def displacement_from_vectors(vectors: ndarray, matrix: Float[ndarray, "d d"]) -> Float[Tensor, "1 d *space"]:
    """Turn vectors ``(*shape, D)`` of some frame into voxels: ``u = M^-1 v``, M the matrix from voxels to the frame.

    Works plane by plane of the last spatial axis, so that arrays in file order (first axis fastest) are read once and a
    memory-mapped or float64 source is never copied whole.
    """
    d = vectors.shape[-1]
    back = np.linalg.inv(matrix)
    out = np.empty((d, *vectors.shape[:-1]), dtype=np.float32)
    for k in range(vectors.shape[-2]):
        plane = np.asarray(vectors[..., k, :], dtype=np.float64)
        out[..., k] = np.moveaxis(plane @ back.T, -1, 0)
    return torch.from_numpy(out)[None]


def vectors_from_displacement(
    displacement: Float[Tensor, "1 d *space"], matrix: Float[ndarray, "d d"], dtype: type = np.float32
) -> ndarray:
    """Turn voxels into vectors of some frame, ``v = M u``: the inverse of :func:`displacement_from_vectors`.

    The result ``(*shape, D)`` is a view of an array ``(Z, Y, X, D)`` in C order, which is how ITK lays vectors out.
    """
    u = displacement[0].detach().cpu().numpy()
    d, shape = len(u), u.shape[1:]
    stored = np.empty((*shape[::-1], d), dtype=dtype)
    out = stored.transpose(*range(d - 1, -1, -1), d)
    for k in range(shape[-1]):
        out[..., k, :] = np.moveaxis(u[..., k], 0, -1).astype(np.float64) @ matrix.T
    return out
