"""What every transform offers. Solvers, files, metrics and commands know transforms by this alone."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.grid import Grid
from verimorph.image import Image


@runtime_checkable
class Transform(Protocol):
    """A map from world points of the fixed image to world points of the moving image (RAS+ mm).

    It is the map that resampling needs: the moved image at a fixed point x is the moving image at ``map_points(x)``.
    Points drawn on the moving image travel the other way, through the inverse.
    """

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        ...

    @property
    def kind(self) -> str:
        """The model in one word, e.g. ``"rigid"``, ``"displacement"``, ``"composite"``."""
        ...

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Carry world points of the fixed image, mm, to world points of the moving image."""
        ...

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form of the whole transform on any grid, in voxels of that grid.

        ``u(i) = grid.world_to_index(map_points(grid.index_to_world(i))) - i``.
        """
        ...

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference`` in one interpolation; the type of its voxels stays."""
        ...

    def inverse(self) -> Transform:
        """Return the map from moving to fixed points.

        Raises
        ------
        NoInverseError
            Where there is none.
        """
        ...

    def then(self, after: Transform) -> Transform:
        """Return the map that sends a point through this transform first and through ``after`` second."""
        ...

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Local change of volume by the whole transform at every voxel of ``grid`` (1 = none, <= 0 = folded)."""
        ...


@runtime_checkable
class Linear(Transform, Protocol):
    """A transform that is one matrix."""

    @property
    def matrix(self) -> Float[ndarray, "h h"]:
        """Homogeneous world matrix, fixed to moving."""
        ...


@runtime_checkable
class Dense(Transform, Protocol):
    """A transform that is one displacement a voxel, whatever made it."""

    @property
    def grid(self) -> Grid:
        """Where the displacement is known."""
        ...

    @property
    def displacement(self) -> Float[Tensor, "1 d *space"]:
        """Voxels of ``grid``."""
        ...


def parts_of(transform: Transform) -> tuple[Transform, ...]:
    """The transforms that act one after the other; a transform that is no composite is its own only part."""
    return tuple(getattr(transform, "parts", (transform,)))
