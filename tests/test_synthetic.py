"""Known deformations: invertible, as strong as asked, and not of the solver's family."""

import numpy as np
import pytest
import torch
from scipy import stats

from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.synthetic import (
    bias_field,
    change_contrast,
    noise_deformation,
    preimage,
    random_affine,
    random_deformation,
    random_transform,
    rician_noise,
    scan,
)


@pytest.fixture(scope="module", params=[2, 3])
def grid(request) -> Grid:
    affine = np.diag([3.0, 3.5, 4.0][: request.param] + [1.0])
    affine[:-1, -1] = -50
    return Grid((40, 36, 30)[: request.param], affine)


@pytest.fixture(scope="module")
def bend(grid):
    return random_deformation(grid, mean_mm=5.0, seed=3)


def every_point(grid: Grid) -> np.ndarray:
    return grid.index_to_world(np.argwhere(np.ones(grid.shape, bool)))


def test_mean_displacement_is_what_was_asked_for(grid, bend):
    points = every_point(grid)
    assert np.linalg.norm(bend.map_points(points) - points, axis=1).mean() == pytest.approx(5.0, rel=0.01)


def test_determinants_by_finite_differences_are_positive(grid, bend):
    points = every_point(grid)[::7]
    step = 0.02
    columns = [
        (bend.map_points(points + step * axis) - bend.map_points(points - step * axis)) / (2 * step)
        for axis in np.eye(grid.ndim)
    ]
    determinants = np.linalg.det(np.stack(columns, -1))
    assert determinants.min() > 0.05
    assert determinants.std() > 0.03


def test_preimage_is_exact(grid, bend):
    points = every_point(grid)[::5]
    np.testing.assert_allclose(bend.map_points(preimage(bend, points)), points, atol=1e-3)


def test_stored_inverse_undoes_it_to_a_fraction_of_a_node(grid, bend):
    points = every_point(grid)[::5]
    away = np.linalg.norm(bend.map_points(bend.inverse().map_points(points)) - points, axis=1)
    assert away.mean() < 0.05
    assert away.max() < 1.0


def test_far_away_nothing_moves(grid, bend):
    corner = bend.grid.corners()
    np.testing.assert_array_equal(bend.map_points(corner), corner)


def test_seed_decides(grid):
    one, two, other = (random_deformation(grid, mean_mm=2.0, seed=s).displacement for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_only_the_mask_counts(grid):
    mask = np.zeros(grid.shape, bool)
    mask[tuple(slice(2, 12) for _ in grid.shape)] = True
    made = random_deformation(grid, mean_mm=3.0, mask=mask, radii_mm=(40.0,), weights=(1.0,), seed=1)
    points = grid.index_to_world(np.argwhere(mask))
    assert np.linalg.norm(made.map_points(points) - points, axis=1).mean() == pytest.approx(3.0, rel=0.02)
    far = every_point(grid)[-1:]
    np.testing.assert_array_equal(made.map_points(far), far)


def test_too_much_motion_is_refused(grid):
    with pytest.raises(OptionError, match="cannot be made invertible"):
        random_deformation(grid, mean_mm=80.0, radii_mm=(30.0,), weights=(1.0,))


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_has_the_angle_and_scale_that_were_asked_for(ndim):
    centre = np.array([10.0, -20.0, 30.0])[:ndim]
    made = random_affine(centre, rotation_degrees=15.0, scale_percent=10.0, translation_mm=7.0, seed=5)
    found = made.decompose()
    assert found.rotation_degrees == pytest.approx(15.0, abs=1e-6)
    assert max(found.scales) == pytest.approx(1.1)
    assert min(found.scales) >= 1 / 1.1 - 1e-9
    assert np.linalg.norm(made.map_points(centre[None])[0] - centre) == pytest.approx(7.0)


def test_transform_is_bend_then_affine(grid):
    made = random_transform(grid, mean_mm=2.0, seed=4)
    points = every_point(grid)[::11]
    bend, linear = made.parts
    np.testing.assert_allclose(made.map_points(points), linear.map_points(bend.map_points(points)))


def test_contrast_keeps_or_folds_the_order_of_tissues():
    values = np.linspace(0, 200, 500)
    kept = change_contrast(values, gamma=0.6)
    assert (np.diff(kept[: int(0.99 * 500)]) > 0).all()
    folded = change_contrast(values, gamma=1.0, fold=0.6)
    assert folded[250] > folded[-1]
    assert kept[0] == folded[0] == 0
    with pytest.raises(OptionError):
        change_contrast(values, gamma=0.0)


def test_bias_is_smooth_and_bounded():
    bias = bias_field((20, 22, 24), strength=0.3, seed=1)
    assert np.exp(-0.3) - 1e-6 <= bias.min() < 0.9
    assert 1.1 < bias.max() <= np.exp(0.3) + 1e-6
    assert max(np.abs(np.diff(bias, axis=a)).max() for a in range(3)) < 0.15


def test_noise_is_rician():
    noisy = rician_noise(np.full(200_000, 2.0), sigma=1.0, seed=2)
    expected = stats.rice(b=2.0, scale=1.0)
    assert noisy.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert noisy.std() == pytest.approx(expected.std(), abs=0.01)


def test_scan_is_an_integer_image_on_the_same_grid(grid, random):
    image = Image.from_array(random.uniform(0, 100, grid.shape).astype(np.float32), grid)
    made = scan(image, seed=1)
    assert made.grid == grid
    assert made.dtype == np.int16
    np.testing.assert_array_equal(made.array, scan(image, seed=1).array)


def test_smoothed_noise_is_as_strong_at_the_border_as_in_the_middle(grid):
    points = every_point(grid)
    lengths = []
    for seed in range(6):
        bend = noise_deformation(grid, mean_mm=1.0, width_mm=6.0, seed=seed)
        lengths.append(np.linalg.norm(bend.map_points(points) - points, axis=1).reshape(grid.shape))
        assert lengths[-1].mean() == pytest.approx(1.0, rel=0.05)
        assert float(bend.jacobian_determinant(bend.grid).min()) > 0.15
    rim, middle = (np.mean([length[at] for length in lengths]) for at in (0, grid.shape[0] // 2))
    assert 0.6 < rim / middle < 1.7
    again = noise_deformation(grid, mean_mm=1.0, width_mm=6.0, seed=5)
    assert torch.equal(again.displacement, bend.displacement)


def test_smoothed_noise_that_would_fold_is_made_weaker(grid):
    points = every_point(grid)
    bend = noise_deformation(grid, mean_mm=50.0, width_mm=4.0)
    assert 0 < np.linalg.norm(bend.map_points(points) - points, axis=1).mean() < 40
    assert float(bend.jacobian_determinant(bend.grid).min()) > 0


def test_smoothed_noise_needs_somewhere_to_be(grid):
    with pytest.raises(OptionError, match="mask is empty"):
        noise_deformation(grid, mean_mm=1.0, width_mm=6.0, mask=np.zeros(grid.shape, bool))
