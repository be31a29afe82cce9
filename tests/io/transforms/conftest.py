"""A pair of oblique, anisotropic grids of opposite handedness, and transforms between them for files to carry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.grid import Grid
from verimorph.transform import Affine, Composite, DisplacementField, Spline, similarity

VOXEL_SHIFT = np.array([1.5, -2.0, 0.5])
"""The known shift, voxels of the fixed grid."""


@pytest.fixture
def ndim() -> int:
    """3; a test for both sizes parametrises it: ``@pytest.mark.parametrize("ndim", [2, 3])``."""
    return 3


@pytest.fixture
def fixed(ndim, oblique_grid) -> Grid:
    return oblique_grid(ndim, (17, 15, 12)[:ndim], seed=1)


@pytest.fixture
def moving(ndim, fixed) -> Grid:
    turn = np.array([[0.96, -0.28, 0.0], [-0.28, -0.96, 0.0], [0.0, 0.0, 1.0]])[:ndim, :ndim]
    shape = (19, 16, 13)[:ndim]
    affine = np.eye(ndim + 1)
    affine[:ndim, :ndim] = fixed.direction @ turn * np.array([1.0, 1.1, 1.7])[:ndim]
    affine[:ndim, ndim] = fixed.centre - affine[:ndim, :ndim] @ (np.array(shape) - 1) / 2 + 1.7
    return Grid(shape, affine)


@pytest.fixture
def linear(ndim, fixed) -> Affine:
    rotation = 0.2 if ndim == 2 else [0.1, -0.15, 0.2]
    return similarity(rotation=rotation, scale=1.08, translation=[2.0, -1.5, 1.0][:ndim], centre=fixed.centre)


@pytest.fixture
def rough_field(ndim, fixed) -> DisplacementField:
    """Random vectors, different at every voxel: axis order and component order cannot be mistaken unnoticed."""
    random = np.random.default_rng(5)
    u = random.normal(size=(1, ndim, *fixed.shape)).astype(np.float32)
    return DisplacementField(fixed, torch.from_numpy(u))


@pytest.fixture
def shift(ndim, fixed) -> DisplacementField:
    """The known shift as a field."""
    u = torch.zeros(1, ndim, *fixed.shape)
    for d in range(ndim):
        u[:, d] = VOXEL_SHIFT[d]
    return DisplacementField(fixed, u)


@pytest.fixture
def world_shift(ndim, fixed) -> np.ndarray:
    """The known shift in the world, RAS mm: steps along the axes of the oblique grid."""
    return sum(VOXEL_SHIFT[d] * fixed.spacing[d] * fixed.direction[:, d] for d in range(ndim))


@pytest.fixture
def result(rough_field, linear) -> Composite:
    return Composite([rough_field, linear])


@pytest.fixture
def spline(ndim, fixed) -> Spline:
    lattice = Grid((9, 8, 7)[:ndim], fixed.affine @ np.diag([*[2.6] * ndim, 1.0]))
    random = np.random.default_rng(6)
    return Spline(lattice, torch.from_numpy(random.normal(size=(1, ndim, *lattice.shape)) * 0.5))


@pytest.fixture
def points(fixed, random) -> np.ndarray:
    """A thousand world points inside the fixed grid, clear of its rim."""
    return fixed.index_to_world(random.uniform(0.01, np.array(fixed.shape) - 1.01, (1000, fixed.ndim)))


@pytest.fixture
def by_simpleitk():
    """Map RAS points through a SimpleITK transform (LPS): the oracle of every ITK format."""

    def carry(transform, points: np.ndarray) -> np.ndarray:
        flip = np.array([-1.0, -1.0, 1.0])[: points.shape[1]]
        return np.array([transform.TransformPoint((p * flip).tolist()) for p in points]) * flip

    return carry
