"""Rigid, similarity and affine alignment by quasi-Newton descent on a dense measure.

Unknowns are increments of a matrix about the centre of the fixed image, in the frame of its axes, scaled so that one
unit moves a typical voxel by about one millimetre (what ITK calls scales from physical shift). The gradient is exact:
the measure's gradient with respect to the moved image, times the image gradient, summed against voxel coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.field import voxel_index, warp, warp_with_gradient
from verimorph.grid import Grid
from verimorph.solve.measure import Measure
from verimorph.solve.pyramid import Level, Volume

LinearKind = Literal["translation", "rigid", "similarity", "affine"]


class LinearModel:
    """The matrices of one kind near a given one: ``T(theta) = T0 @ increment(theta)``.

    Parameters
    ----------
    kind
        Degrees of freedom.
    grid
        The fixed grid: its centre is the fixed point of rotations, its axes are the frame, its size the scale.
    free_axes
        False freezes an axis of the fixed image: points keep their coordinate along it.
    """

    def __init__(self, kind: LinearKind, grid: Grid, free_axes: Sequence[bool] | None = None) -> None:
        self.kind, self.ndim = kind, grid.ndim
        d = self.ndim
        free = np.ones(d, dtype=bool) if free_axes is None else np.array(free_axes, dtype=bool)
        frame = np.eye(d + 1)
        frame[:d, :d], frame[:d, d] = grid.direction, grid.centre
        self._frame, self._frame_inverse = frame, np.linalg.inv(frame)
        # Root mean square distance of voxels from the centre: a unit of shape change moves points by about 1 mm.
        self.radius_mm = float(np.sqrt((grid.extent**2).sum() / 12))
        generators = []
        for axis in np.flatnonzero(free).tolist():
            generators.append(self._entry(axis, d))
        for i in range(d):
            for j in range(d):
                if kind == "affine" and free[i]:
                    generators.append(self._entry(i, j) / self.radius_mm)
                if kind in ("rigid", "similarity") and i < j and free[i] and free[j]:
                    generators.append((self._entry(i, j) - self._entry(j, i)) / self.radius_mm)
        if kind == "similarity":
            generators.append(
                np.sum([self._entry(i, i) for i in np.flatnonzero(free).tolist()], axis=0) / self.radius_mm
            )
        self._generators = np.array(generators)

    def _entry(self, row: int, column: int) -> np.ndarray:
        matrix = np.zeros((self.ndim + 1, self.ndim + 1))
        matrix[row, column] = 1.0
        return matrix

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self._generators)

    def increment(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "h h"]:
        """Return the matrix for the parameters, in world coordinates."""
        return self._frame @ self._local(theta) @ self._frame_inverse

    def _local(self, theta: np.ndarray) -> np.ndarray:
        """The increment in the frame of the fixed axes, about the fixed centre."""
        d = self.ndim
        tangent = (theta @ self._generators.reshape(self.size, -1)).reshape(d + 1, d + 1)
        if self.kind == "affine":
            return np.eye(d + 1) + tangent
        local = np.eye(d + 1)
        skew = (tangent[:d, :d] - tangent[:d, :d].T) / 2
        stretch = np.exp(np.diag(tangent)[:d])
        local[:d, :d] = stretch[:, None] * _rotation(skew)
        local[:d, d] = tangent[:d, d]
        return local

    def gradient(self, start: np.ndarray, theta: np.ndarray, slope: Float[ndarray, "h h"]) -> Float[ndarray, " p"]:
        """Chain rule: derivative by the parameters from the derivative by the matrix ``start @ increment(theta)``.

        Affine increments are linear in theta. Rotations are differentiated by central differences of the small matrix
        (no image is involved; exact to 1e-9).
        """
        pulled = (start @ self._frame).T @ slope @ self._frame_inverse.T
        if self.kind == "affine":
            return np.tensordot(self._generators, pulled, 2)
        step = 1e-4
        out = np.empty(len(theta))
        for k in range(len(theta)):
            ahead, behind = theta.copy(), theta.copy()
            ahead[k] += step
            behind[k] -= step
            out[k] = float(((self._local(ahead) - self._local(behind)) * pulled).sum()) / (2 * step)
        return out


def _rotation(skew: np.ndarray) -> np.ndarray:
    """Matrix exponential of a skew-symmetric 2x2 or 3x3 matrix."""
    if len(skew) == 2:
        cosine, sine = np.cos(skew[1, 0]), np.sin(skew[1, 0])
        return np.array([[cosine, -sine], [sine, cosine]])
    # Rodrigues; for tiny angles its quotients become their limits 1 and 1/2.
    angle = float(np.sqrt(skew[2, 1] ** 2 + skew[0, 2] ** 2 + skew[1, 0] ** 2))
    first, second = (1.0, 0.5) if angle < 1e-8 else (np.sin(angle) / angle, (1 - np.cos(angle)) / angle**2)
    return np.eye(3) + first * skew + second * (skew @ skew)


class LinearObjective:
    """A measure as a function of the world matrix, at one level."""

    def __init__(self, level: Level, measure: Measure) -> None:
        self.level, self.measure = level, measure
        self.prepared = None if level.moving.mask is not None else measure.prepare(level.fixed)
        self.channels = measure.channels(level.moving)
        grid = level.fixed.grid
        tensor = level.fixed.tensor
        self._still = torch.zeros(1, grid.ndim, *grid.shape, device=tensor.device, dtype=tensor.dtype)
        self.voxels = grid.size
        if self.prepared is None:
            self._smaller_mask = _smaller_mask(level)
            # What a voxel is worth where nothing corresponds.
            nothing = torch.zeros(*self.channels.shape[:2], *grid.shape, device=tensor.device, dtype=tensor.dtype)
            self._unlike = measure.prepare(level.fixed).value_and_gradient(nothing)[0]

    def value_and_slope(self, matrix: Float[ndarray, "h h"]) -> tuple[float, Float[ndarray, "h h"]]:
        """Return the value and its derivative with respect to the entries of the fixed-to-moving world matrix."""
        fixed, moving = self.level.fixed.grid, self.level.moving.grid
        index_map = moving.inverse_affine @ matrix @ fixed.affine
        pairs = [
            warp_with_gradient(self.channels[:, c : c + 1], self._still, matrix=index_map)
            for c in range(self.channels.shape[1])
        ]
        moved = pairs[0][0] if len(pairs) == 1 else torch.cat([value for value, _ in pairs], dim=1)
        share = 1.0
        prepared = self.prepared
        if prepared is None:
            both = masked_by_moving(self.level, self._still, index_map)
            assert both.mask is not None
            # A mean over what the masks share rewards sharing little: a sliver can always be made to match.
            share = min(1.0, float(both.mask.sum()) / self._smaller_mask)
            prepared = self.measure.prepare(both)
        value, force = prepared.value_and_gradient(moved)
        if share < 1:
            value, force = share * value + (1 - share) * self._unlike, force * share
        d = fixed.ndim
        moments = np.zeros((d, d + 1))
        for c, (_, gradient) in enumerate(pairs):
            moments += _moments(gradient * force[:, c : c + 1])
        slope = np.zeros((d + 1, d + 1))
        # The image gradient came with respect to a shift of the fixed index; the map's own derivative undoes that.
        slope[:d] = np.linalg.inv(index_map[:d, :d]).T @ moments
        return value, moving.inverse_affine.T @ slope @ fixed.affine.T


def _smaller_mask(level: Level) -> float:
    """Voxels of the fixed grid that the smaller of the two masks would fill; a missing one fills its image."""
    sizes = []
    for volume in (level.fixed, level.moving):
        voxels = float(volume.grid.size) if volume.mask is None else float(volume.mask.sum())
        sizes.append(voxels * float(np.prod(volume.grid.spacing)))
    return max(min(sizes) / float(np.prod(level.fixed.grid.spacing)), 1.0)


def masked_by_moving(level: Level, displacement: Tensor, index_map: Float[ndarray, "h h"]) -> Volume:
    """Return the fixed volume, masked where the moving mask arrives through a map as well as by its own."""
    mask = level.moving.mask
    assert mask is not None
    arrived = (warp(mask, displacement, matrix=index_map) > 0.5).to(displacement.dtype)
    return Volume(
        level.fixed.tensor, level.fixed.grid, arrived if level.fixed.mask is None else arrived * level.fixed.mask
    )


def _moments(force: Float[Tensor, "1 d *space"]) -> Float[ndarray, "d h"]:
    """Sums of a vector field against the voxel coordinates and 1."""
    d = force.shape[1]
    out = np.zeros((d, d + 1))
    for axis, n in enumerate(force.shape[2:]):
        others = [2 + k for k in range(d) if k != axis]
        along = force[0].sum([k - 1 for k in others], dtype=torch.float64).cpu().numpy()
        out[:, axis] = along @ np.arange(n)
        out[:, d] = along.sum(1)
    return out


def solve_linear(
    *,
    level: Level,
    measure: Measure,
    start: Float[ndarray, "h h"],
    kind: LinearKind,
    iterations: int,
    free_axes: Sequence[bool] | None = None,
    tolerance: float = 1e-5,
    record: Callable[[int, float], None] | None = None,
    objective: LinearObjective | None = None,
) -> tuple[Float[ndarray, "h h"], float]:
    """Minimise a measure over the matrices of one kind by L-BFGS.

    Parameters
    ----------
    level
        The pair at one resolution.
    start
        World matrix, fixed to moving (RAS+ mm), homogeneous.
    iterations
        Quasi-Newton iterations at most.
    tolerance
        Stop when the relative change of the value falls below it.
    record
        Called with the number of the evaluation and its value.
    objective
        The same measure on the same level, where it has been made before.

    Returns
    -------
    matrix, value
        The best matrix found and its value.
    """
    objective = objective or LinearObjective(level, measure)
    model = LinearModel(kind, level.fixed.grid, free_axes)
    if model.size == 0:
        return start, objective.value_and_slope(start)[0]
    count = 0

    def evaluate(theta: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal count
        value, slope = objective.value_and_slope(start @ model.increment(theta))
        if record is not None:
            record(count, value)
        count += 1
        return value, model.gradient(start, theta, slope)

    from scipy.optimize import minimize  # a fifth of the start-up of whatever uses this room but fits nothing linear

    options = {"maxiter": iterations, "ftol": tolerance, "gtol": 1e-9, "maxls": 10}
    found = minimize(evaluate, np.zeros(model.size), jac=True, method="L-BFGS-B", options=options)
    return start @ model.increment(found.x), float(found.fun)


def centre_of_mass(tensor: Float[Tensor, "1 1 *space"], grid: Grid) -> Float[ndarray, " d"]:
    """World position of the intensity-weighted centre (the grid's centre where all is zero)."""
    weights = tensor[0, 0].double()
    total = float(weights.sum())
    if total <= 0:
        return grid.centre
    index = [
        float(weights.sum([k for k in range(grid.ndim) if k != axis]).cpu() @ torch.arange(n, dtype=torch.float64))
        for axis, n in enumerate(grid.shape)
    ]
    return grid.index_to_world(np.array(index) / total)


def principal_axes(tensor: Float[Tensor, "1 1 *space"], grid: Grid) -> Float[ndarray, "d d"]:
    """Directions of the second moments of intensity in the world, one a column, largest first, right-handed."""
    weights = tensor[0].double().cpu().flatten()
    index = voxel_index(grid.shape, dtype=torch.float64)[0].flatten(1).numpy().T
    points = grid.index_to_world(index)
    centre = centre_of_mass(tensor, grid)
    spread = ((points - centre) * weights.numpy()[:, None]).T @ (points - centre)
    _, vectors = np.linalg.eigh(spread)
    axes = vectors[:, ::-1].copy()
    if np.linalg.det(axes) < 0:
        axes[:, -1] *= -1
    return axes
