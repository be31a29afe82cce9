"""Pairs with a known answer: the truth explains the images, the anatomy is found, seeds repeat."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from verimorph.image import Image
from verimorph.uncertainty.known import KnownPair, foreground, known_pair


def test_the_anatomy_is_the_ball(head: Image) -> None:
    ball = head.array > 0
    inside = foreground(head)
    assert 2 * (inside & ball).sum() / (inside.sum() + ball.sum()) > 0.95


def test_the_fixed_image_is_the_moving_one_read_through_the_truth(head: Image, pair: KnownPair) -> None:
    read = pair.truth.resample(pair.moving, pair.fixed.grid).array
    inside = pair.foreground
    # Contrast and brightness differ, so order is compared and not values.
    ranks = [ndimage.gaussian_filter(v, 1)[inside].argsort().argsort() for v in (read, pair.fixed.array)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    unmoved = [ndimage.gaussian_filter(v, 1)[inside].argsort().argsort() for v in (head.array, pair.fixed.array)]
    assert np.corrcoef(*unmoved)[0, 1] < np.corrcoef(*ranks)[0, 1] - 0.08


def test_equal_seeds_equal_pairs(head: Image) -> None:
    first, second, other = (known_pair(head, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.fixed.array, second.fixed.array)
    points = head.grid.index_to_world(np.argwhere(first.foreground)[:50])
    assert np.array_equal(first.truth.map_points(points), second.truth.map_points(points))
    assert not np.allclose(first.truth.map_points(points), other.truth.map_points(points))
