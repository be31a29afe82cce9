"""Inverting a map point by point, by Newton's method: exact to a tolerance, needs no grid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.errors import VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.composite import chain
from verimorph.transform.protocol import Linear, Transform, parts_of

_ITERATIONS = 30
_STEP_MM = 0.05
"""Half width of the central difference: small beside any voxel, large beside float32 rounding of a coordinate."""


def map_points_back(
    transform: Transform, points: Float[ndarray, "n d"], *, tolerance_mm: float = 1e-3
) -> Float[ndarray, "n d"]:
    """Find, for points of the moving image, the points of the fixed image that the transform sends there.

    Matrices are inverted; every other part by damped Newton steps ``x <- x - s J^-1 (phi(x) - y)`` with central
    differences for J, started from the fixed-point guess ``2 y - phi(y)``.

    Parameters
    ----------
    points
        World points of the moving image, ``(n, D)``, RAS+ mm.
    tolerance_mm
        Residual ``|phi(x) - y|`` to reach. Points that do not reach it (there the map folds, or jumps at the rim of its
        field) get the best estimate, and a :class:`VerimorphWarning` says how many there are and how far off.
    """
    points = np.asarray(points, dtype=np.float64)
    for part in reversed(parts_of(transform)):
        points = part.inverse().map_points(points) if isinstance(part, Linear) else _newton(part, points, tolerance_mm)
    return points


def _newton(transform: Transform, target: np.ndarray, tolerance: float) -> np.ndarray:
    """Solve ``phi(x) = target`` for every point; points that have converged are left alone."""
    estimate = 2 * target - transform.map_points(target)
    residual = transform.map_points(estimate) - target
    distance = np.linalg.norm(residual, axis=1)
    d = transform.ndim
    for _ in range(_ITERATIONS):
        active = np.flatnonzero(distance > tolerance)
        if active.size == 0:
            break
        here = estimate[active]
        probes = (here[:, None, None, :] + _STEP_MM * np.stack([np.eye(d), -np.eye(d)])[None]).reshape(-1, d)
        mapped = transform.map_points(probes).reshape(len(active), 2, d, d)
        jacobian = np.swapaxes((mapped[:, 0] - mapped[:, 1]) / (2 * _STEP_MM), 1, 2)
        # Where the Jacobian is close to singular or negative a plain residual step is safer than a Newton step.
        plain = np.linalg.det(jacobian) < 0.05
        jacobian[plain] = np.eye(d)
        full = np.linalg.solve(jacobian, residual[active, :, None])[..., 0]
        left = np.arange(len(active))
        for damping in (1.0, 0.5, 0.25, 0.1):
            trial = here[left] - damping * full[left]
            trial_residual = transform.map_points(trial) - target[active[left]]
            trial_distance = np.linalg.norm(trial_residual, axis=1)
            better = trial_distance < distance[active[left]]
            chosen = active[left[better]]
            estimate[chosen], residual[chosen] = trial[better], trial_residual[better]
            distance[chosen] = trial_distance[better]
            left = left[~better]
            if left.size == 0:
                break
        if left.size == len(active):
            break
    open_points = distance > 10 * tolerance
    if open_points.any():
        warnings.warn(
            f"{int(open_points.sum())} of {len(target)} points have no exact counterpart through the inverse "
            f"(largest residual {distance.max():.2g} mm): the map folds there, or they lie at the rim of its field",
            VerimorphWarning,
            stacklevel=3,
        )
    return estimate


@dataclass(frozen=True, eq=False)
class NumericalInverse:
    """The inverse of another transform, evaluated point by point (:func:`map_points_back`).

    For models whose inverse has no form of its own. Slower than a field; :meth:`displacement_on` makes one.

    Parameters
    ----------
    of
        The transform to invert.
    """

    of: Transform

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.of.ndim

    @property
    def kind(self) -> str:
        """``"inverse of ..."``."""
        return f"inverse of {self.of.kind}"

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Find the points that the other transform sends here."""
        return map_points_back(self.of, points)

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form on any grid, in voxels of that grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> Transform:
        """Return the transform this one inverts."""
        return self.of

    def then(self, after: Transform) -> Transform:
        """Return this map followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Change of volume, from the dense form on ``grid``."""
        return dense.jacobian_determinant(self, grid)
