"""Inverse consistency and endpoint error on transforms whose error is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.errors import InputError
from verimorph.evaluate import endpoint_error, inverse_consistency_error, lattice_points
from verimorph.grid import Grid
from verimorph.transform import Affine, Composite, DisplacementField, VelocityField


def translation(*shift):
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, -1] = shift
    return Affine(matrix)


def test_lattice_is_centred_regular_and_bounded():
    grid = Grid((20, 30, 10), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert len(lattice_points(grid, max_points=None)) == grid.size
    points = lattice_points(grid, max_points=200)
    assert 20 < len(points) <= 300
    np.testing.assert_allclose((points.min(0) + points.max(0)) / 2, grid.centre, atol=3.0)
    mask = np.zeros(grid.shape)
    mask[3, 4, 5] = 1
    np.testing.assert_array_equal(lattice_points(grid, mask=mask, max_points=10), [[3.0, 8.0, 15.0]])
    with pytest.raises(InputError, match="empty"):
        lattice_points(grid, mask=np.zeros(grid.shape))


def test_exact_inverse_has_no_error_and_leaving_points_are_counted(oblique_grid):
    grid = oblique_grid(3)
    step = grid.direction[:, 0] * grid.spacing[0] * 3  # three voxels along axis 0
    there, back = translation(*step), translation(*-step)
    found = inverse_consistency_error(there, back, fixed_grid=grid, moving_grid=grid, max_points=None)
    for way in ("forward", "backward"):
        assert found[way]["max"] == pytest.approx(0.0, abs=1e-9)
        assert found[way]["excluded_fraction"] == pytest.approx(3 / grid.shape[0])
        assert found[way]["n"] == grid.size - 3 * grid.size // grid.shape[0]


def test_wrong_inverse_is_off_by_twice_the_shift_in_mm():
    grid = Grid((20, 20), np.diag([3.0, 1.0, 1.0]))
    shift = translation(3.0, 4.0)
    found = inverse_consistency_error(shift, shift, fixed_grid=grid, moving_grid=grid)
    assert found["forward"]["mean"] == pytest.approx(10.0)
    assert found["backward"]["p95"] == pytest.approx(10.0)


def test_velocity_and_its_reverse_agree_and_points_off_the_field_are_left_out(random):
    grid = Grid((16, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
    i, j, k = np.indices(grid.shape, dtype=float)
    velocity = np.stack([np.sin(j / 5), np.cos(k / 6), np.sin(i / 5 + k / 7)])
    there = VelocityField(grid, torch.tensor(velocity[None], dtype=torch.float32))
    found = inverse_consistency_error(there, there.inverse(), fixed_grid=grid, moving_grid=grid, max_points=None)
    identity = translation(0.0, 0.0, 0.0)
    without = inverse_consistency_error(there, identity, fixed_grid=grid, moving_grid=grid, max_points=None)
    assert found["forward"]["p95"] < 0.05 * without["forward"]["p95"]
    assert 0 < found["forward"]["excluded_fraction"] < 0.5


def test_points_that_leave_the_field_of_the_inverse_inside_a_composite_are_excluded():
    wide, narrow = Grid((40, 9, 9)), Grid((20, 9, 9))
    affine = translation(10.0, 0.0, 0.0)
    still = torch.zeros(1, 3, 20, 9, 9)
    there = Composite([DisplacementField(narrow, still), affine])
    back = Composite([translation(-10.0, 0.0, 0.0), DisplacementField(narrow, still)])
    found = inverse_consistency_error(there, back, fixed_grid=narrow, moving_grid=wide, max_points=None)
    assert found["forward"]["excluded_fraction"] == 0.0
    # of the 40 planes of the moving grid, 20 come back into the narrow field
    assert found["backward"]["excluded_fraction"] == pytest.approx(0.5)


def test_endpoint_error_is_the_distance_between_two_transforms():
    grid = Grid((5, 6, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    errors = endpoint_error(translation(1.0, 2.0, 2.0), translation(0.0, 0.0, 0.0), grid=grid)
    assert errors.shape == (grid.size,)
    np.testing.assert_allclose(errors, 3.0)
    mask = np.zeros(grid.shape)
    mask[:2] = 1
    assert len(endpoint_error(translation(1.0, 0.0, 0.0), translation(0.0, 0.0, 0.0), grid=grid, mask=mask)) == 84
