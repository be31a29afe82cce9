"""Synthetic pairs with a known map: a smooth random body without symmetries, resampled exactly by its formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from verimorph.grid import Grid
from verimorph.solve import Volume


def body(ndim: int, *, seed: int = 0, radius_mm: float = 40.0) -> Callable[[np.ndarray], np.ndarray]:
    """Return an intensity as a function of world points: an asymmetric ellipsoid with structure inside, 0 far away."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=radius_mm / 2.2, size=(160, ndim))
    widths = rng.uniform(0.06, 0.2, 160) * radius_mm
    heights = rng.uniform(-0.8, 0.8, 160)
    axes = radius_mm * np.array([1.0, 0.8, 0.62][:ndim])

    def intensity(points: np.ndarray) -> np.ndarray:
        # A rim with an end: an exponential tail looks the same at every scale, and would hide the scale from lncc.
        inside = np.clip((1.06 - np.linalg.norm(points / axes, axis=-1)) / 0.12, 0, 1)
        value = np.full(points.shape[:-1], 0.5)
        for centre, width, height in zip(centres, widths, heights, strict=True):
            value += height * np.exp(-((points - centre) ** 2).sum(-1) / (2 * width**2))
        return np.clip(value, 0.05, 1.6) / 1.6 * inside

    return intensity


def world_points(grid: Grid) -> np.ndarray:
    """World position of every voxel, ``(*shape, D)``."""
    axes = [np.arange(n) for n in grid.shape]
    return grid.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(float))


def centred_grid(shape: tuple[int, ...], spacing: float) -> Grid:
    """A grid of equal spacing whose middle is the world's origin."""
    d = len(shape)
    affine = np.diag([spacing] * d + [1.0])
    affine[:d, d] = -spacing * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def volume(grid: Grid, values: np.ndarray) -> Volume:
    """Voxels as the solvers take them."""
    return Volume(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None], grid)


def linear_pair(fixed: Grid, moving: Grid, truth: np.ndarray, **settings: float) -> tuple[Volume, Volume]:
    """A pair related exactly by a world matrix: ``moving(truth @ x) = fixed(x)``."""
    intensity = body(fixed.ndim, **settings)  # type: ignore[arg-type]
    back = np.linalg.inv(truth)
    d = fixed.ndim
    points = world_points(moving) @ back[:d, :d].T + back[:d, d]
    return volume(fixed, intensity(world_points(fixed))), volume(moving, intensity(points))


def turn(angles_degrees: tuple[float, ...], shift: tuple[float, ...], scale: float = 1.0) -> np.ndarray:
    """World matrix from Euler angles (one in 2-D), a shift and a scale, about the world's origin."""
    from scipy.spatial.transform import Rotation

    d = len(shift)
    matrix = np.eye(d + 1)
    if d == 2:
        c, s = np.cos(np.radians(angles_degrees[0])), np.sin(np.radians(angles_degrees[0]))
        matrix[:2, :2] = [[c, -s], [s, c]]
    else:
        matrix[:3, :3] = Rotation.from_euler("xyz", angles_degrees, degrees=True).as_matrix()
    matrix[:d, :d] *= scale
    matrix[:d, d] = shift
    return matrix


def point_error(found: np.ndarray, truth: np.ndarray, grid: Grid, *, radius_mm: float = 40.0) -> float:
    """Mean distance between where two matrices send the points of the body, mm."""
    points = world_points(grid).reshape(-1, grid.ndim)
    points = points[np.linalg.norm(points, axis=1) < radius_mm]
    difference = (found - truth)[: grid.ndim]
    return float(np.linalg.norm(points @ difference[:, :-1].T + difference[:, -1], axis=1).mean())
