"""Pairs with a known answer: the truth explains the images, the anatomy is found, seeds repeat."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from verimorph.image import Image
from verimorph.transform import Affine, parts_of
from verimorph.uncertainty.known import KnownPair, _filled, foreground, known_pair


def test_the_anatomy_is_the_ball(head: Image) -> None:
    ball = head.array > 0
    inside = foreground(head)
    assert 2 * (inside & ball).sum() / (inside.sum() + ball.sum()) > 0.95


def moved_by(pair: KnownPair) -> np.ndarray:
    """How far the truth sends every voxel, mm."""
    grid = pair.fixed.grid
    points = grid.index_to_world(np.argwhere(np.ones(grid.shape, bool)))
    return np.linalg.norm(pair.truth.map_points(points) - points, axis=1).reshape(grid.shape)


@pytest.mark.parametrize("seed", range(6))
def test_the_fixed_image_is_the_moving_one_read_through_the_truth(head: Image, seed: int) -> None:
    pair = known_pair(head, seed=seed)
    read = pair.truth.resample(pair.moving, pair.fixed.grid).array
    inside = pair.foreground
    # Contrast and brightness differ, so order is compared and not values.
    ranks = [ndimage.gaussian_filter(v, 1)[inside].argsort().argsort() for v in (read, pair.fixed.array)]
    agreement = np.corrcoef(*ranks)[0, 1]
    assert agreement > 0.9
    moved = inside & (moved_by(pair) > 3)
    if moved.sum() > 200:
        still, shown = (ndimage.gaussian_filter(v, 1)[moved] for v in (head.array, pair.fixed.array))
        assert np.corrcoef(still.argsort().argsort(), shown.argsort().argsort())[0, 1] < agreement - 0.05


def test_one_of_four_is_a_copy_without_noise_read_linearly_or_by_splines(head: Image) -> None:
    """Its moving image is the image itself, and its fixed one the image read through the truth, value by value."""
    ways = set()
    for seed in (3, 7, 11, 15):
        pair = known_pair(head, seed=seed)
        assert np.allclose(pair.moving.array, head.array, atol=1e-3)
        away = {
            way: float(np.abs(pair.truth.resample(head, head.grid, interpolation=way).array - pair.fixed.array).max())
            for way in ("linear", "cubic")
        }
        assert min(away.values()) < 1e-2 < max(away.values()), away
        ways.add(min(away, key=lambda way: away[way]))
    assert ways == {"linear", "cubic"}
    noisy = known_pair(head, seed=4)
    assert np.abs(noisy.moving.array - head.array).max() > 1


def test_some_pairs_move_as_a_whole_and_some_in_a_part(head: Image) -> None:
    """A heart moves in a chest that does not; a bound that has never seen that is too small there."""
    shares = []
    for seed in range(0, 48, 4):  # odd ones are smoothed noise, which is everywhere
        moved = moved_by(known_pair(head, seed=seed))[foreground(head)]
        shares.append(float((moved > 0.25 * moved.max()).mean()))
    assert min(shares) < 0.25
    assert sum(share > 0.5 for share in shares) >= 4


def test_a_stack_of_few_slices_is_turned_within_its_plane() -> None:
    random = np.random.default_rng(0)
    values = ndimage.gaussian_filter(random.standard_normal((60, 60, 6)), 2.0)
    values[:8] = values[-8:] = values[:, :8] = values[:, -8:] = values.min()
    stack = Image.from_array(values.astype(np.float32))
    for seed in range(8):
        linear = parts_of(known_pair(stack, seed=seed).truth)[-1]
        assert isinstance(linear, Affine)
        tilt = linear.matrix[:2, 2] / linear.matrix[2, 2]
        assert np.abs(tilt).max() < 1e-6


def test_equal_seeds_equal_pairs(head: Image) -> None:
    first, second, other = (known_pair(head, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.fixed.array, second.fixed.array)
    points = head.grid.index_to_world(np.argwhere(first.foreground)[:50])
    assert np.array_equal(first.truth.map_points(points), second.truth.map_points(points))
    assert not np.allclose(first.truth.map_points(points), other.truth.map_points(points))


def test_holes_are_filled_as_scipy_fills_them() -> None:
    random = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.6, 0.8, 1.0):
        for shape in ((40, 30), (1, 9), (7, 1)):
            plane = random.random(shape) < share
            assert (_filled(plane) == ndimage.binary_fill_holes(plane)).all()
