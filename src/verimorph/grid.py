"""Where voxels are in the world: a shape and a voxel-to-world matrix, nothing else.

World coordinates are RAS+ millimetres everywhere inside the package. Other frames (LPS, FSL, FreeSurfer) exist only in
the modules of ``io`` that read and write the formats which use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num
from numpy import ndarray

from verimorph.errors import InputError


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular 2-D or 3-D lattice of voxel centres in world space.

    Voxel index ``i`` (NIfTI order, axis 0 first) lies at the world point ``affine @ [i, 1]``.

    Parameters
    ----------
    shape
        Voxels along each axis, ``(X, Y)`` or ``(X, Y, Z)``.
    affine
        Homogeneous voxel-to-world matrix in RAS+ mm, ``(D+1, D+1)``. Default: unit spacing, origin 0.

    Raises
    ------
    InputError
        If the matrix has the wrong size, is not finite or is singular, or an axis has no voxel.

    Examples
    --------
    >>> grid = Grid((10, 20, 30), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> grid.spacing
    array([2., 2., 3.])
    >>> grid.centre
    array([ 9. , 19. , 43.5])
    """

    shape: tuple[int, ...]
    affine: Num[ndarray, "h h"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        d = len(shape)
        if d not in (2, 3):
            raise InputError(f"a grid has 2 or 3 axes, this one has {d} (shape {shape}); choose one volume or slice")
        if min(shape) < 1:
            raise InputError(f"a grid needs at least one voxel along each axis, this one has shape {shape}")
        affine = np.eye(d + 1) if self.affine is None else np.array(self.affine, dtype=np.float64)
        if affine.shape != (d + 1, d + 1):
            raise InputError(f"a {d}-D grid needs a {d + 1}x{d + 1} affine, got {affine.shape}")
        if not np.isfinite(affine).all():
            raise InputError("the voxel-to-world affine has NaN or infinite entries; repair the header")
        scale = np.linalg.norm(affine[:d, :d], axis=0)
        if scale.min() <= 0 or abs(np.linalg.det(affine[:d, :d] / np.where(scale > 0, scale, 1))) < 1e-6:
            raise InputError("the voxel-to-world affine is singular; repair the header (sform or qform)")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @cached_property
    def spacing(self) -> Float[ndarray, " d"]:
        """Distance between neighbouring voxel centres along each axis, mm."""
        return np.linalg.norm(self.affine[: self.ndim, : self.ndim], axis=0)

    @cached_property
    def direction(self) -> Float[ndarray, "d d"]:
        """Unit vectors of the voxel axes in world coordinates, one a column."""
        return self.affine[: self.ndim, : self.ndim] / self.spacing

    @property
    def origin(self) -> Float[ndarray, " d"]:
        """World position of voxel 0."""
        return self.affine[: self.ndim, self.ndim].copy()

    @cached_property
    def inverse_affine(self) -> Float[ndarray, "h h"]:
        """World-to-voxel matrix."""
        return np.linalg.inv(self.affine)

    @property
    def centre(self) -> Float[ndarray, " d"]:
        """World position of the middle of the field of view."""
        return self.index_to_world((np.array(self.shape) - 1) / 2)

    @property
    def extent(self) -> Float[ndarray, " d"]:
        """Edge lengths of the field of view (outer voxel edges), mm."""
        return self.spacing * np.array(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3 (area in mm^2 in 2-D)."""
        return float(abs(np.linalg.det(self.affine[: self.ndim, : self.ndim])))

    @property
    def axis_codes(self) -> str:
        """Anatomical direction that each axis points to, e.g. ``"RAS"``. Two axes read as R and A."""
        affine = self.affine
        if self.ndim == 2:
            affine = np.block([[affine[:2, :2], np.zeros((2, 2))], [np.zeros((2, 2)), np.eye(2)]])
        return "".join(nib.orientations.aff2axcodes(affine)[: self.ndim])

    def index_to_world(self, index: Num[ndarray, "*n d"]) -> Float[ndarray, "*n d"]:
        """Map voxel indices (fractions allowed) to world points, mm."""
        d = self.ndim
        return np.asarray(index, dtype=np.float64) @ self.affine[:d, :d].T + self.affine[:d, d]

    def world_to_index(self, points: Num[ndarray, "*n d"]) -> Float[ndarray, "*n d"]:
        """Map world points, mm, to voxel indices (fractions)."""
        d = self.ndim
        return np.asarray(points, dtype=np.float64) @ self.inverse_affine[:d, :d].T + self.inverse_affine[:d, d]

    def contains(self, points: Num[ndarray, "*n d"]) -> np.ndarray:
        """Tell for each world point whether it is inside the field of view, as ITK tests it.

        Inside means a continuous index in ``[-0.5, N - 0.5)`` along every axis.
        """
        index = self.world_to_index(points)
        return np.asarray(((index >= -0.5) & (index < np.array(self.shape) - 0.5)).all(axis=-1))

    def matrix_to(self, other: Grid) -> Float[ndarray, "h h"]:
        """Return the matrix that takes voxel indices of this grid to those of ``other`` at the same world point."""
        return other.inverse_affine @ self.affine

    def corners(self) -> Float[ndarray, "n d"]:
        """World positions of the corner voxel centres, ``(2^D, D)``."""
        ends = [(0, n - 1) for n in self.shape]
        return self.index_to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, self.ndim))

    def resized(self, shape: tuple[int, ...]) -> Grid:
        """Return a grid with another number of voxels over the same field of view (the outer voxel edges stay).

        >>> Grid((4, 4), np.diag([1.0, 1.0, 1.0])).resized((2, 2)).origin
        array([0.5, 0.5])
        """
        d = self.ndim
        factor = np.array(self.shape) / np.array(shape)
        step = np.eye(d + 1)
        step[:d, :d] = np.diag(factor)
        step[:d, d] = (factor - 1) / 2
        return Grid(tuple(shape), self.affine @ step)

    def is_close(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether both grids have the same shape and all corners within ``tolerance_mm`` of each other."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __str__(self) -> str:
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing)
        return f"{' x '.join(map(str, self.shape))} voxels of {spacing} mm, {self.axis_codes}"
