"""Overlap measures against SciPy, SimpleITK and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.distance as reference
import SimpleITK as sitk

from verimorph.errors import InputError
from verimorph.evaluate import (
    count_overlap,
    dice_per_label,
    jaccard_per_label,
    label_values,
    volume_similarity_per_label,
)


@pytest.fixture
def maps(random):
    fixed = random.integers(0, 6, (12, 10, 8)).astype(np.int16)
    moved = np.where(random.random(fixed.shape) < 0.6, fixed, random.integers(0, 6, fixed.shape)).astype(np.uint8)
    return fixed, moved


@pytest.mark.parametrize("order", ["C", "F"])
def test_dice_and_jaccard_equal_scipy(maps, order):
    fixed, moved = np.asarray(maps[0], order=order), np.asarray(maps[1], order=order)
    dice, jaccard = dice_per_label(fixed, moved), jaccard_per_label(fixed, moved)
    assert list(dice) == [1, 2, 3, 4, 5]
    for label in dice:
        pair = (fixed == label).ravel(), (moved == label).ravel()
        assert dice[label] == pytest.approx(1 - reference.dice(*pair), abs=1e-12)
        assert jaccard[label] == pytest.approx(1 - reference.jaccard(*pair), abs=1e-12)


def test_maps_in_different_memory_orders_are_compared_voxel_by_voxel(maps):
    fixed, moved = maps
    assert dice_per_label(np.asfortranarray(fixed), np.ascontiguousarray(moved)) == dice_per_label(fixed, moved)


def test_volume_similarity_equals_simpleitk(maps):
    fixed, moved = maps
    measures = sitk.LabelOverlapMeasuresImageFilter()
    # ITK divides source minus target: the moved map is its source
    measures.Execute(sitk.GetImageFromArray(moved.astype(np.uint8)), sitk.GetImageFromArray(fixed.astype(np.uint8)))
    for label, value in volume_similarity_per_label(fixed, moved).items():
        assert value == pytest.approx(measures.GetVolumeSimilarity(label), abs=1e-12)


def test_dice_equals_monai(maps):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    fixed, moved = maps
    one_hot = [torch.from_numpy(np.stack([m == n for n in range(1, 6)])[None].astype(np.float32)) for m in maps]
    theirs = metrics.DiceMetric(include_background=True, reduction="none")(one_hot[1], one_hot[0])[0].numpy()
    np.testing.assert_allclose(list(dice_per_label(fixed, moved).values()), theirs, atol=1e-6)


def test_label_in_neither_map_is_nan_and_in_one_map_only_is_zero():
    fixed, moved = np.array([[1, 1], [2, 0]]), np.array([[1, 1], [0, 3]])
    dice = dice_per_label(fixed, moved, labels=[1, 2, 3, 9])
    assert (dice[1], dice[2], dice[3]) == (1.0, 0.0, 0.0)
    assert math.isnan(dice[9])
    assert volume_similarity_per_label(fixed, moved)[2] == -2.0
    assert volume_similarity_per_label(fixed, moved)[3] == 2.0


def test_large_negative_and_whole_floating_point_labels_are_counted():
    fixed = np.array([-4, 10_000_000, 10_000_000, 7, 0])
    moved = np.array([-4, 10_000_000, 0, 7, 7], dtype=np.float64)
    assert dice_per_label(fixed, moved) == pytest.approx({-4: 1.0, 7: 2 / 3, 10_000_000: 2 / 3})
    assert label_values(fixed) == [-4, 7, 10_000_000]


def test_counts_add_up_to_the_voxels(maps):
    counts = count_overlap(*maps, labels=range(6))
    assert counts.fixed.sum() == counts.moved.sum() == maps[0].size
    assert (counts.intersection <= np.minimum(counts.fixed, counts.moved)).all()


def test_interpolated_labels_are_refused():
    with pytest.raises(InputError, match="not a label map"):
        dice_per_label(np.array([0, 1]), np.array([0.0, 0.5]))


def test_maps_of_different_shape_are_refused():
    with pytest.raises(InputError, match="resample"):
        dice_per_label(np.zeros((3, 3), int), np.zeros((3, 4), int))
