"""Oblique, anisotropic grids and a map between them, in which any mistake of frame, order or direction shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.grid import Grid
from verimorph.transform import Affine, Composite, DisplacementField, similarity


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def ndim(request) -> int:
    return request.param


@pytest.fixture
def fixed(ndim, oblique_grid) -> Grid:
    return oblique_grid(ndim, (23, 19, 14)[:ndim], seed=1)


@pytest.fixture
def moving(ndim, fixed) -> Grid:
    """Left-handed, of other spacing and direction, over about the same place as ``fixed``."""
    turn = np.array([[0.96, -0.28, 0.0], [-0.28, -0.96, 0.0], [0.0, 0.0, 1.0]])[:ndim, :ndim]
    shape = (25, 22, 17)[:ndim]
    affine = np.eye(ndim + 1)
    affine[:ndim, :ndim] = fixed.direction @ turn * np.array([1.0, 1.1, 1.7])[:ndim]
    affine[:ndim, ndim] = fixed.centre - affine[:ndim, :ndim] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@pytest.fixture
def smooth_field():
    """Factory of smooth displacements that vanish at the rim: ``smooth_field(grid, voxels)``."""

    def make(grid: Grid, voxels: float = 1.0, seed: int = 0) -> DisplacementField:
        random = np.random.default_rng(seed)
        axes = np.meshgrid(*[np.linspace(0, 1, n) for n in grid.shape], indexing="ij")
        window = np.prod([np.sin(np.pi * axis) for axis in axes], axis=0)
        phases = random.uniform(0, 2 * np.pi, (grid.ndim, grid.ndim))
        waves = [sum(np.sin(3 * axis + phase) for axis, phase in zip(axes, row, strict=True)) for row in phases]
        u = np.stack([voxels * window * wave / grid.ndim for wave in waves]).astype(np.float32)
        return DisplacementField(grid, torch.from_numpy(u)[None])

    return make


@pytest.fixture
def linear(ndim, fixed) -> Affine:
    rotation = 0.2 if ndim == 2 else [0.1, -0.15, 0.2]
    return similarity(rotation=rotation, scale=1.08, translation=[2.0, -1.5, 1.0][:ndim], centre=fixed.centre)


@pytest.fixture
def result(fixed, smooth_field, linear) -> Composite:
    """What a registration returns: a field on the fixed grid, then a linear map."""
    return Composite([smooth_field(fixed), linear])


@pytest.fixture
def points(fixed, random) -> np.ndarray:
    """World points in and somewhat around the fixed grid."""
    return fixed.index_to_world(random.uniform(-3, np.array(fixed.shape) + 2, (400, fixed.ndim)))
