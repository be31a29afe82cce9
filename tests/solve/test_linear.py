"""Linear solver: the gradient is the derivative, known maps are found again, frozen axes stay."""

import numpy as np
import pytest
import torch
from tests.solve.phantom import centred_grid, linear_pair, point_error, turn

from verimorph.solve import make_level, make_measure, solve_linear
from verimorph.solve.linear import LinearModel, LinearObjective


def pair(ndim: int, truth: np.ndarray, n: int = 28):
    grid = centred_grid((n,) * ndim, 100 / n)
    fixed, moving = linear_pair(grid, centred_grid((n + 3,) * ndim, 110 / n), truth)
    return make_level(fixed=fixed, moving=moving, shrink=1, spacing_mm=0.1)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("measure", ["lncc", "mse", "mi"])
def test_gradient_is_the_derivative_of_the_value(ndim, kind, measure):
    truth = turn((4.0,) if ndim == 2 else (3.0, -2.0, 4.0), (1.5, -2.0, 1.0)[:ndim])
    level = pair(ndim, truth)
    objective = LinearObjective(level, make_measure(measure))
    model = LinearModel(kind, level.fixed.grid)
    theta = 0.3 * np.random.default_rng(1).normal(size=model.size)
    start = np.eye(ndim + 1)
    _, slope = objective.value_and_slope(start @ model.increment(theta))
    analytic = model.gradient(start, theta, slope)
    numeric = np.empty_like(analytic)
    for k in range(model.size):
        # A wide step: values are float32, and linear interpolation has kinks that a short one would see.
        ahead, behind = theta.copy(), theta.copy()
        ahead[k] += 0.05
        behind[k] -= 0.05
        values = [objective.value_and_slope(start @ model.increment(t))[0] for t in (ahead, behind)]
        numeric[k] = (values[0] - values[1]) / 0.1
    assert np.linalg.norm(analytic - numeric) < 0.05 * np.linalg.norm(numeric)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("kind", "scale"), [("rigid", 1.0), ("similarity", 1.07), ("affine", 0.93)])
def test_known_map_is_found_again(ndim, kind, scale):
    truth = turn((8.0,) if ndim == 2 else (6.0, -5.0, 8.0), (4.0, -3.0, 2.0)[:ndim], scale)
    level = pair(ndim, truth, n=40)
    matrix = np.eye(ndim + 1)
    for step in ["rigid", kind]:
        matrix, value = solve_linear(
            level=level, measure=make_measure("lncc"), start=matrix, kind=step, iterations=60, tolerance=1e-7
        )
    # A tenth of a voxel: the lattices differ, and linear interpolation blurs where voxels do not coincide.
    assert point_error(matrix, truth, level.fixed.grid) < 0.25
    assert value < LinearObjective(level, make_measure("lncc")).value_and_slope(np.eye(ndim + 1))[0]


def test_rigid_increments_are_rotations_and_similarity_scales_evenly():
    grid = centred_grid((10, 12, 14), 2.0)
    rng = np.random.default_rng(0)
    for kind in ("rigid", "similarity"):
        model = LinearModel(kind, grid)
        linear = model.increment(20 * rng.normal(size=model.size))[:3, :3]
        product = linear.T @ linear
        np.testing.assert_allclose(product, product[0, 0] * np.eye(3), atol=1e-12)
        assert np.linalg.det(linear) > 0
        if kind == "rigid":
            assert product[0, 0] == pytest.approx(1)


def test_frozen_axis_keeps_its_coordinate():
    truth = turn((0.0, 0.0, 8.0), (3.0, -2.0, 4.0))
    level = pair(3, truth)
    for kind in ("rigid", "affine"):
        matrix, _ = solve_linear(
            level=level,
            measure=make_measure("lncc"),
            start=np.eye(4),
            kind=kind,
            iterations=20,
            free_axes=(True, True, False),
        )
        np.testing.assert_allclose(matrix[2], [0, 0, 1, 0], atol=1e-12)
        assert abs(matrix[0, 3]) > 0.5


def test_same_bits_twice():
    level = pair(3, turn((5.0, 0.0, 3.0), (2.0, 1.0, 0.0)))
    found = [
        solve_linear(level=level, measure=make_measure("lncc"), start=np.eye(4), kind="affine", iterations=8)[0]
        for _ in range(2)
    ]
    assert np.array_equal(*found)


def test_moving_mask_hides_what_it_hides():
    """A bright block that only the moving image has does not pull a masked registration."""
    truth = turn((4.0, -3.0, 5.0), (3.0, 2.0, -2.0))
    level = pair(3, truth)
    spoiled = level.moving.tensor.clone()
    spoiled[..., 4:12, 4:12, 4:20] = 1.5
    keep = torch.ones_like(spoiled)
    keep[..., 2:14, 2:14, 2:22] = 0
    errors = {}
    for name, mask in (("masked", keep), ("bare", None)):
        moving = type(level.moving)(spoiled, level.moving.grid, mask)
        changed = type(level)(level.fixed, moving, 1)
        matrix, _ = solve_linear(
            level=changed, measure=make_measure("lncc"), start=np.eye(4), kind="rigid", iterations=40
        )
        errors[name] = point_error(matrix, truth, level.fixed.grid)
    assert errors["masked"] < 0.4
    assert errors["masked"] < errors["bare"]


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_descriptors_of_a_thin_stack_find_a_shift(slices):
    """One or two slices leave no room for neighbours across: the border is repeated there."""
    grid = centred_grid((40, 40, slices), 2.5)
    truth = np.eye(4)
    truth[:2, 3] = (3.0, -2.0)
    fixed, moving = linear_pair(grid, grid, truth)
    level = make_level(fixed=fixed, moving=moving, shrink=1, spacing_mm=0.1)
    free = (True, True, False)
    found, _ = solve_linear(
        level=level, measure=make_measure("mind"), start=np.eye(4), kind="rigid", iterations=60, free_axes=free
    )
    assert np.abs(found - truth)[:2, 3].max() < 0.5
