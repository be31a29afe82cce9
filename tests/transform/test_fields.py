"""Displacement, velocity, spline and composite: points, dense form, inverse, Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from verimorph.errors import InputError, NoInverseError
from verimorph.grid import Grid
from verimorph.transform import (
    Affine,
    Composite,
    DisplacementField,
    NumericalInverse,
    Spline,
    Transform,
    VelocityField,
    chain,
    identity,
    map_points_back,
)


def interior(grid: Grid, random, count=300, margin=3.0) -> np.ndarray:
    return grid.index_to_world(random.uniform(margin, np.array(grid.shape) - 1 - margin, (count, grid.ndim)))


def test_field_moves_points_by_linear_interpolation_and_leaves_those_outside(fixed, smooth_field, points):
    transform = smooth_field(fixed, 2.0)
    index = fixed.world_to_index(points)
    u = transform.displacement[0].double().numpy()
    moved = np.stack([ndimage.map_coordinates(c, index.T, order=1, mode="nearest") for c in u], axis=1) + index
    inside = fixed.contains(points)
    assert 50 < inside.sum() < len(points)
    expected = np.where(inside[:, None], fixed.index_to_world(moved), points)
    np.testing.assert_allclose(transform.map_points(points), expected, atol=1e-4)


def test_composite_order_matters_and_is_first_to_last(fixed, smooth_field, linear, points):
    field = smooth_field(fixed, 2.0)
    right, swapped = Composite([field, linear]), Composite([linear, field])
    np.testing.assert_allclose(right.map_points(points), linear.map_points(field.map_points(points)))
    assert np.abs(right.map_points(points) - swapped.map_points(points)).max() > 0.5
    np.testing.assert_array_equal(field.then(linear).map_points(points), right.map_points(points))


def test_composite_unpacks_and_multiplies_matrices(linear, ndim):
    nested = Composite([Composite([linear, linear]), identity(ndim), linear.inverse()])
    assert len(nested.parts) == 1
    np.testing.assert_allclose(nested.parts[0].matrix, linear.matrix, atol=1e-9)
    assert chain([linear, linear.inverse()]).kind == "identity"


def test_an_identity_is_kept_in_a_composite_and_left_out_of_a_chain(fixed, smooth_field, ndim):
    """Who builds field and matrix finds both again; who chains what came along gets no ballast."""
    field = smooth_field(fixed)
    assert [part.kind for part in Composite([field, identity(ndim)]).parts] == ["displacement", "identity"]
    assert chain([field, identity(ndim)]) is field


def test_dense_form_agrees_with_points_on_every_grid(fixed, moving, result):
    other = fixed.resized(tuple(n - 3 for n in fixed.shape))
    for grid in (fixed, moving, other):
        u = result.displacement_on(grid)
        assert u.dtype == torch.float32
        assert u.shape == (1, grid.ndim, *grid.shape)
        index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, grid.ndim)
        landed = grid.index_to_world(index + u[0].reshape(grid.ndim, -1).T.double().numpy())
        np.testing.assert_allclose(landed, result.map_points(grid.index_to_world(index)), atol=2e-4)


def test_dense_form_in_one_expression_equals_evaluation_point_by_point(fixed, result, monkeypatch):
    from verimorph.transform import dense

    quick = result.displacement_on(fixed)
    monkeypatch.setattr(dense, "field_then_matrix", lambda *_: None)
    torch.testing.assert_close(result.displacement_on(fixed), quick, atol=1e-4, rtol=0)


def test_jacobian_is_the_true_change_of_volume(fixed, result, ndim, random):
    where = interior(fixed, random, 50)
    index = np.rint(fixed.world_to_index(where))
    # Central differences over one voxel to each side, in world coordinates: the definition.
    columns = []
    for axis in range(ndim):
        step = np.eye(ndim)[axis]
        ahead, behind = (result.map_points(fixed.index_to_world(index + s * step)) for s in (1, -1))
        columns.append((ahead - behind) / 2)
    expected = np.linalg.det(np.stack(columns, -1)) / np.linalg.det(fixed.affine[:ndim, :ndim])
    found = result.jacobian_determinant(fixed)[0].numpy()[tuple(index.astype(int).T)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.ptp(found) > 0.05


def test_jacobian_of_a_general_chain_agrees_with_that_of_its_known_form(fixed, result, ndim, monkeypatch):
    from verimorph.transform import dense

    quick = result.jacobian_determinant(fixed)
    monkeypatch.setattr(dense, "field_then_matrix", lambda *_: None)
    torch.testing.assert_close(result.jacobian_determinant(fixed), quick, atol=1e-3, rtol=0)


def test_inverse_composes_to_identity(fixed, result, random):
    points = interior(fixed, random)
    back = result.inverse()
    assert [part.kind for part in back.parts][1] == "displacement"
    there = result.map_points(points)
    np.testing.assert_allclose(back.map_points(there), points, atol=0.05)
    assert result.inverse().parts[1].inverse_residual[1] < 0.05


def test_stored_inverse_is_used_and_swaps_back(fixed, smooth_field):
    forward, backward = smooth_field(fixed, 0.5).displacement, smooth_field(fixed, 0.5, seed=3).displacement
    transform = DisplacementField(fixed, forward, backward)
    assert transform.inverse().displacement is backward
    assert transform.inverse().inverse().displacement is forward


def test_folded_field_is_refused_with_its_size(fixed, smooth_field):
    with pytest.raises(NoInverseError, match=r"folds at \d+ voxels.*residual"):
        smooth_field(fixed, 40.0).inverse()


def test_points_travel_back_exactly(fixed, result, random):
    points = interior(fixed, random)
    np.testing.assert_allclose(map_points_back(result, result.map_points(points)), points, atol=5e-3)


def test_velocity_inverts_by_sign(fixed, smooth_field, random):
    transform = VelocityField(fixed, smooth_field(fixed, 1.5).displacement)
    assert isinstance(transform, Transform)
    points = interior(fixed, random)
    moved = transform.map_points(points)
    assert np.abs(moved - points).max() > 0.5
    np.testing.assert_allclose(transform.inverse().map_points(moved), points, atol=0.05)
    torch.testing.assert_close(transform.inverse().velocity, -transform.velocity)


def test_constant_velocity_is_a_translation():
    grid = Grid((21, 21, 21))
    velocity = torch.zeros(1, 3, *grid.shape)
    velocity[:, 0] = 2.0
    found = VelocityField(grid, velocity).map_points(np.array([[8.0, 9.0, 10.0]]))
    np.testing.assert_allclose(found, [[10.0, 9.0, 10.0]], atol=1e-5)


def spline_pair(grid: Grid, random) -> tuple[Spline, sitk.Transform]:
    d = grid.ndim
    oracle = sitk.BSplineTransform(d, 3)
    flip = np.diag([-1.0, -1.0, 1.0][:d])
    oracle.SetFixedParameters(
        [*map(float, grid.shape), *(flip @ grid.origin), *grid.spacing, *(flip @ grid.direction).ravel()]
    )
    coefficients = random.normal(size=(d, *grid.shape)) * 0.4
    stored = np.stack([flip[k, k] * coefficients[k] for k in range(d)])
    oracle.SetParameters(np.concatenate([c.ravel(order="F") for c in stored]).tolist())
    return Spline(grid, torch.from_numpy(coefficients)[None]), oracle


def test_spline_equals_simpleitk_inside_and_outside(ndim, oblique_grid, random):
    lattice = oblique_grid(ndim, (8, 9, 7)[:ndim], seed=4)
    made, oracle = spline_pair(lattice, random)
    points = lattice.index_to_world(random.uniform(-1, np.array(lattice.shape), (1000, ndim)))
    flip = np.array([-1.0, -1.0, 1.0][:ndim])
    expected = np.array([oracle.TransformPoint((p * flip).tolist()) for p in points]) * flip
    moved = made.map_points(points)
    assert 0.05 < (np.abs(moved - points).max(axis=1) == 0).mean() < 0.95
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_spline_inverse_is_exact_to_its_tolerance(ndim, oblique_grid, random):
    lattice = oblique_grid(ndim, (9, 9, 8)[:ndim], seed=4)
    made, _ = spline_pair(lattice, random)
    points = interior(lattice, random, 100, margin=2.5)
    back = made.inverse()
    assert isinstance(back, NumericalInverse)
    assert back.inverse() is made
    np.testing.assert_allclose(made.map_points(back.map_points(points)), points, atol=2e-3)


def test_folded_spline_is_refused(ndim, oblique_grid, random):
    lattice = oblique_grid(ndim, seed=4)
    coefficients = torch.from_numpy(random.normal(size=(1, ndim, *lattice.shape)) * 20)
    with pytest.raises(NoInverseError, match="folds"):
        Spline(lattice, coefficients).inverse()


def test_shapes_and_dimensions_that_do_not_fit_are_refused(fixed, ndim):
    with pytest.raises(InputError, match="shape"):
        DisplacementField(fixed, torch.zeros(1, ndim, *[n + 1 for n in fixed.shape]))
    with pytest.raises(InputError, match="cannot chain"):
        Composite([identity(2), identity(3)])
    with pytest.raises(InputError, match="cannot be used"):
        identity(5 - ndim).displacement_on(fixed)


def test_no_points_stay_no_points(fixed, result):
    assert result.map_points(np.empty((0, fixed.ndim))).shape == (0, fixed.ndim)
    assert Affine(np.eye(4)).map_points(np.empty((0, 3))).shape == (0, 3)
