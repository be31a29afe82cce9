"""Diffeomorphic alignment by composing small smooth steps, coarse to fine (greedy; Avants 2008, Joshi 2004).

One iteration at a level, field u in voxels of the level's fixed grid:

    g = - dE/dmoved * grad(moved)               force at every voxel, exact for the linear interpolant
    d = step * G_update(g) / max |G_update(g)|  smoothed (fluid), largest move of ``step`` voxels (at most 1)
    u = G_total( u o (id + d) )                 the step acts first on the point; smoothed a little (elastic)

Every factor is a diffeomorphism when ``step`` is below the smoothing length, and so is their composition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.field import (
    Inversion,
    compose,
    gaussian_smooth,
    invert,
    resize_displacement,
    unfold,
    warp,
    warp_with_gradient,
)
from verimorph.grid import Grid
from verimorph.solve.linear import masked_by_moving
from verimorph.solve.measure import Measure, Prepared
from verimorph.solve.progress import Recorder, has_converged
from verimorph.solve.pyramid import Level, Volume

STAGE = "deformable"


@dataclass(frozen=True)
class DeformableSettings:
    """How the field moves.

    Attributes
    ----------
    update_sigma, total_sigma
        Gaussian smoothing of each step and of the whole field, in units of the level's finest spacing (so that they are
        the same length along every axis in the world).
    step_voxels
        Largest move of one iteration, voxels of the level.
    symmetric
        Treat both images alike: each is deformed towards the middle.
    free_axes
        False freezes an axis of the fixed grid.
    convergence
        A level ends when the objective falls by less than this part of its drop, per iteration.
    """

    update_sigma: float = math.sqrt(3)
    total_sigma: float = 0.37
    step_voxels: float = 1.0
    symmetric: bool = False
    free_axes: tuple[bool, ...] | None = None
    convergence: float = 5e-4


@dataclass(frozen=True)
class DeformableResult:
    """A field on the fixed grid and its inverse, in voxels; the linear part is not in them."""

    displacement: Float[Tensor, "1 d *space"]
    inverse: Inversion


Regularity = Callable[[Float[Tensor, "1 d *space"], Grid], Float[Tensor, "1 d *space"]]
"""Gradient of a penalty with respect to the displacement."""


def solve_deformable(
    *,
    levels: Sequence[Callable[[], Level]],
    iterations: Sequence[int],
    measure: Measure,
    linear: Float[ndarray, "h h"],
    grid: Grid,
    settings: DeformableSettings,
    regularity: Regularity | None = None,
    start: Float[Tensor, "1 d *space"] | None = None,
    recorder: Recorder | None = None,
) -> DeformableResult:
    """Find the field that, followed by ``linear``, aligns the moving image to the fixed one.

    Parameters
    ----------
    levels
        Makers of the levels, coarse first (made one at a time: memory).
    iterations
        At most so many at each level.
    linear
        World matrix that follows the field, fixed to moving.
    grid
        The fixed grid; results live on it.
    regularity
        An additional penalty on the field, as its gradient.
    start
        A field to start from, on any grid with the same field of view.
    """
    run = _Symmetric if settings.symmetric else _OneDirectional
    solver = run(measure, linear, settings, regularity, start)
    recorder = recorder or Recorder()
    for make, count in zip(levels, iterations, strict=True):
        if count > 0:
            _run_level(solver, make(), count, settings, recorder)
    return solver.result(grid)


def _run_level(
    solver: _OneDirectional | _Symmetric, level: Level, count: int, settings: DeformableSettings, recorder: Recorder
) -> None:
    solver.enter(level)
    cost = float(level.fixed.grid.size)
    values: list[float] = []
    for k in range(count):
        values.append(solver.iterate())
        recorder.record(STAGE, level.shrink, k, count, values[-1], cost)
        if has_converged(values, threshold=settings.convergence):
            recorder.skip((count - k - 1) * cost)
            break


def _smoothing(grid: Grid, sigma: float) -> list[float]:
    """Sigma in voxels along each axis for a length of ``sigma`` finest voxels of the grid."""
    return [sigma * float(grid.spacing.min() / s) for s in grid.spacing]


class _Force:
    """Moved image and force on the field for one moving image at one level."""

    def __init__(self, measure: Measure, level: Level, linear: np.ndarray) -> None:
        self.measure, self.level = measure, level
        self.matrix = level.moving.grid.inverse_affine @ linear @ level.fixed.grid.affine
        self.channels = measure.channels(level.moving)
        self.prepared: Prepared | None = None if level.moving.mask is not None else measure.prepare(level.fixed)

    def __call__(self, displacement: Tensor) -> tuple[float, Tensor]:
        """Return the value of the measure and its gradient with respect to the displacement."""
        prepared = self.prepared or self.measure.prepare(masked_by_moving(self.level, displacement, self.matrix))
        count = self.channels.shape[1]
        if count == 1:
            moved, slope = warp_with_gradient(self.channels, displacement, matrix=self.matrix)
            value, residual = prepared.value_and_gradient(moved)
            return value, slope.mul_(residual)
        moved = warp(self.channels, displacement, matrix=self.matrix)
        value, residual = prepared.value_and_gradient(moved)
        force = torch.zeros_like(displacement)
        for c in range(count):
            _, slope = warp_with_gradient(self.channels[:, c : c + 1], displacement, matrix=self.matrix)
            force.addcmul_(slope, residual[:, c : c + 1])
        return value, force


class _Stride:
    """Length of the steps at one level: shorter after the objective rose, slowly longer again while it falls.

    Steps of a fixed length end in a zigzag around the optimum.
    """

    def __init__(self, longest: float) -> None:
        self.longest = self.length = longest
        self.before = math.inf

    def after(self, value: float) -> float:
        """Return the length of the next step, voxels, given the value just measured."""
        grown = self.length * 1.02 if value <= self.before else self.length * 0.8
        self.length = min(max(grown, 0.1 * self.longest), self.longest)
        self.before = value
        return self.length


def _step(force: Tensor, sigma: Sequence[float], length_voxels: float, settings: DeformableSettings) -> Tensor:
    """Turn a gradient into a smooth displacement against it whose largest vector has the given length."""
    step = gaussian_smooth(force, sigma, border="zero")
    if settings.free_axes is not None:
        for axis, free in enumerate(settings.free_axes):
            if not free:
                step[:, axis] = 0
    # Voxel by voxel, channel by channel: a reduction's order of summation may depend on threads and alignment.
    squared = sum(component.square() for component in step[0])
    length = math.sqrt(float(squared.amax()))
    return step.mul_(-length_voxels / length) if length > 0 else step


def _advance(field: Tensor, step: Tensor, sigma: Sequence[float]) -> Tensor:
    moved = compose(field, step)
    return gaussian_smooth(moved, sigma, border="zero") if any(sigma) else moved


class _OneDirectional:
    """One field, moving towards fixed."""

    def __init__(
        self,
        measure: Measure,
        linear: np.ndarray,
        settings: DeformableSettings,
        regularity: Regularity | None,
        start: Tensor | None,
    ) -> None:
        self.measure, self.linear, self.settings, self.regularity = measure, linear, settings, regularity
        self.field = start

    def enter(self, level: Level) -> None:
        self.grid = level.fixed.grid
        self.force = _Force(self.measure, level, self.linear)
        self.stride = _Stride(self.settings.step_voxels)
        self.update, self.total = (
            _smoothing(self.grid, s) for s in (self.settings.update_sigma, self.settings.total_sigma)
        )
        self.field = _on_grid(self.field, self.grid, level.fixed.tensor)

    def iterate(self) -> float:
        value, force = self.force(self.field)
        if self.regularity is not None:
            force += self.regularity(self.field, self.grid)
        step = _step(force, self.update, self.stride.after(value), self.settings)
        self.field = _advance(self.field, step, self.total)
        return value

    def result(self, grid: Grid) -> DeformableResult:
        displacement = unfold(_on_grid(self.field, grid, None))
        return DeformableResult(displacement, _invert_coarse_to_fine(displacement, grid))


class _Symmetric:
    """Two fields from a middle image; what is one image's part for one is the other's for the other (Avants 2008).

    The result is ``moving part o (fixed part)^-1``; its inverse is the same with the parts exchanged.
    """

    def __init__(
        self,
        measure: Measure,
        linear: np.ndarray,
        settings: DeformableSettings,
        regularity: Regularity | None,
        start: Tensor | None,
    ) -> None:
        self.measure, self.linear, self.settings, self.regularity = measure, linear, settings, regularity
        self.fields: list[Tensor | None] = [None, start]

    def enter(self, level: Level) -> None:
        self.grid = level.fixed.grid
        d = self.grid.ndim
        self.images = [self.measure.channels(level.fixed), self.measure.channels(level.moving)]
        self.volumes = [level.fixed, level.moving]
        self.stride = _Stride(self.settings.step_voxels)
        self.matrices = [np.eye(d + 1), level.moving.grid.inverse_affine @ self.linear @ self.grid.affine]
        self.update, self.total = (
            _smoothing(self.grid, s) for s in (self.settings.update_sigma, self.settings.total_sigma)
        )
        self.fields = [_on_grid(field, self.grid, level.fixed.tensor) for field in self.fields]

    def iterate(self) -> float:
        moved = [warp(v.tensor, u, matrix=m) for v, u, m in zip(self.volumes, self.fields, self.matrices, strict=True)]
        mask = self._mask()
        total, forces = 0.0, []
        for side in (0, 1):
            prepared = self.measure.prepare(Volume(moved[1 - side], self.grid, mask))
            image, field, matrix = self.images[side], self.fields[side], self.matrices[side]
            value, residual = prepared.value_and_gradient(warp(image, field, matrix=matrix))
            force = torch.zeros_like(field)
            for c in range(image.shape[1]):
                _, slope = warp_with_gradient(image[:, c : c + 1], field, matrix=matrix)
                force.addcmul_(slope, residual[:, c : c + 1])
            if self.regularity is not None:
                force += self.regularity(field, self.grid)
            total += value / 2
            forces.append(force)
        # Each side takes half the way, so that a step brings the images together by as much as a one-sided one.
        half = self.stride.after(total) / 2
        steps = [_step(force, self.update, half, self.settings) for force in forces]
        self.fields = [_advance(u, step, self.total) for u, step in zip(self.fields, steps, strict=True)]
        return total

    def _mask(self) -> Tensor | None:
        mask = None
        for volume, field, matrix in zip(self.volumes, self.fields, self.matrices, strict=True):
            if volume.mask is not None:
                arrived = (warp(volume.mask, field, matrix=matrix) > 0.5).to(volume.tensor.dtype)
                mask = arrived if mask is None else mask * arrived
        return mask

    def result(self, grid: Grid) -> DeformableResult:
        parts = [unfold(_on_grid(field, grid, None)) for field in self.fields]
        inverses = [_invert_coarse_to_fine(part, grid) for part in parts]
        forward = unfold(compose(parts[1], inverses[0].displacement))
        backward = compose(parts[0], inverses[1].displacement)
        refined = invert(forward, start=backward, iterations=40, tolerance=_TOLERANCE)
        return DeformableResult(forward, refined)


def _on_grid(field: Tensor | None, grid: Grid, like: Tensor | None) -> Tensor:
    if field is None:
        if like is None:
            return torch.zeros(1, grid.ndim, *grid.shape)
        return torch.zeros(1, grid.ndim, *grid.shape, device=like.device, dtype=like.dtype)
    return resize_displacement(field, grid.shape).contiguous()


_TOLERANCE = 2e-3


def _invert_coarse_to_fine(displacement: Tensor, grid: Grid) -> Inversion:
    """Invert at half size first: most of the fixed-point iterations then cost an eighth."""
    half = tuple(max(1, (n + 1) // 2) for n in grid.shape)
    start = None
    if min(grid.shape) >= 16:
        coarse = invert(resize_displacement(displacement, half).contiguous(), iterations=40, tolerance=_TOLERANCE)
        start = resize_displacement(coarse.displacement, grid.shape).contiguous()
    return invert(displacement, iterations=40, tolerance=_TOLERANCE, start=start)
