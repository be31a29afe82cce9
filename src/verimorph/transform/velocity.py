"""A stationary velocity field."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as attribute
from functools import cached_property

from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.composite import chain
from verimorph.transform.displacement import check_field, map_through_field
from verimorph.transform.protocol import Transform


@dataclass(frozen=True, eq=False)
class VelocityField:
    """The flow of a velocity field that does not change, from time 0 to time 1: ``phi = exp(v)``.

    Smooth velocities give maps without folds, and the inverse is ``exp(-v)``: a change of sign.

    Parameters
    ----------
    grid
        Where the velocity is known.
    velocity
        v, ``(1, D, *shape)``, voxels of ``grid`` per unit of time.
    """

    grid: Grid
    velocity: Float[Tensor, "1 d *space"] = attribute(repr=False)

    def __post_init__(self) -> None:
        check_field(self.grid, self.velocity, "velocity")

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.grid.ndim

    @property
    def kind(self) -> str:
        """``"velocity"``."""
        return "velocity"

    @cached_property
    def displacement(self) -> Float[Tensor, "1 d *space"]:
        """Displacement of the flow at time 1, voxels (scaling and squaring, computed once)."""
        return field.exponentiate(self.velocity.detach())

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Let the points flow for one unit of time."""
        return map_through_field(self.grid, self.displacement, points)

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form on any grid, in voxels of that grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> VelocityField:
        """Return the flow backwards, exact in the model."""
        return VelocityField(self.grid, -self.velocity)

    def then(self, after: Transform) -> Transform:
        """Return this map followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Change of volume by the flow."""
        return dense.jacobian_determinant(self, grid)
