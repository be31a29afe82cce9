"""A free-form deformation: cubic B-splines over a lattice of control points."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as attribute

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import NoInverseError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.composite import chain
from verimorph.transform.displacement import check_field
from verimorph.transform.inversion import NumericalInverse
from verimorph.transform.protocol import Transform


@dataclass(frozen=True, eq=False)
class Spline:
    """``x -> x + sum_k c_k B3(i(x) - k)``, B3 the tensor-product cubic B-spline, ``i(x)`` the control-point index of x.

    Outside the region where all ``4^D`` control points exist (index in ``[1, N - 2]`` along every axis) the
    displacement is zero, as in ITK.

    Parameters
    ----------
    grid
        The control points.
    coefficients
        c, ``(1, D, *grid.shape)``, world vectors in RAS+ mm (the one dense quantity that is not in voxels: the
        coefficients are parameters, not a field).

    References
    ----------
    Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 18(8), 1999.
    """

    grid: Grid
    coefficients: Float[Tensor, "1 d *control"] = attribute(repr=False)

    def __post_init__(self) -> None:
        check_field(self.grid, self.coefficients, "set of spline coefficients")

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.grid.ndim

    @property
    def kind(self) -> str:
        """``"spline"``."""
        return "spline"

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Evaluate the spline at world points, in float64."""
        from scipy import ndimage

        points = np.asarray(points, dtype=np.float64)
        index = self.grid.world_to_index(points)
        # A point on the upper edge of the region is inside; 1e-9 forgives the rounding of the matrix product.
        inside = ((index >= 1 - 1e-9) & (index <= np.array(self.grid.shape) - 2 + 1e-9)).all(axis=1)
        coefficients = self.coefficients[0].detach().cpu().double().numpy()
        moved = points.copy()
        for d in range(self.ndim):
            moved[inside, d] += ndimage.map_coordinates(coefficients[d], index[inside].T, order=3, prefilter=False)
        return moved

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form on any grid, in voxels of that grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> NumericalInverse:
        """Return the inverse, evaluated point by point.

        Raises
        ------
        NoInverseError
            If the spline folds, looked at with two samples between control points.
        """
        folded = int((field.jacobian_determinant(dense.displacement_on(self, self.fine_grid(2))) <= 0).sum())
        if folded:
            raise NoInverseError(f"the spline folds (at {folded} sample points of its lattice) and has no inverse")
        return NumericalInverse(self)

    def fine_grid(self, factor: int) -> Grid:
        """Grid over the valid region with ``factor`` samples for each control-point spacing."""
        d = self.ndim
        step = np.eye(d + 1)
        step[:d, :d] /= factor
        step[:d, d] = 1.0
        return Grid(tuple(max(2, (n - 3) * factor + 1) for n in self.grid.shape), self.grid.affine @ step)

    def then(self, after: Transform) -> Transform:
        """Return this map followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Change of volume, from the dense form on ``grid``."""
        return dense.jacobian_determinant(self, grid)
