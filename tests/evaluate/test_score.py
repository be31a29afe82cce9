"""The metrics dictionary of one registration: what is in it, and what is left out of its means."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from verimorph.errors import InputError
from verimorph.evaluate import score, score_labels, without_nan
from verimorph.evaluate.score import flat_measures
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import Points
from verimorph.transform import Affine, DisplacementField


def translation(*shift):
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, -1] = shift
    return Affine(matrix)


@pytest.fixture
def images(oblique_grid):
    grid = oblique_grid(3, shape=(16, 14, 12))
    voxels = np.zeros(grid.shape, np.int16)
    voxels[4:10, 4:9, 4:8] = 10
    voxels[11:14, 4:9, 4:8] = 20
    return grid, Image.from_array(voxels, grid)


def test_nothing_given_measures_nothing():
    assert score() == {"mode": "honest", "unit": "mm"}


def test_everything_given_is_measured_and_json_able(images):
    grid, fixed = images
    shift = grid.direction[:, 0] * grid.spacing[0] * 2
    moving = fixed.with_array(np.roll(fixed.array, 2, axis=0))
    points = Points(grid.index_to_world(np.array([[5.0, 5.0, 5.0], [8.0, 8.0, 6.0]])))
    moved_points = Points(points.coordinates + shift)
    found = score(
        fixed_labels=fixed,
        moving_labels=moving,
        fixed_landmarks=points,
        moving_landmarks=moved_points,
        transform=translation(*shift),
        inverse=translation(*-shift),
        initial=translation(0.0, 0.0, 0.0),
    )
    json.dumps(found, allow_nan=False)
    assert found["labels"]["mean"]["dice"] == 1.0
    assert found["labels"]["initial"]["mean"]["dice"] < 0.7
    assert found["landmarks"]["tre_mm"]["registered"]["max"] == pytest.approx(0, abs=1e-9)
    assert found["landmarks"]["tre_mm"]["initial"]["mean"] == pytest.approx(2 * grid.spacing[0])
    assert found["landmarks"]["tre_mm"]["per_landmark"][1]["name"] == "2"
    assert found["jacobian"]["sd_log_jacobian"] == pytest.approx(0, abs=1e-6)
    assert found["non_diffeomorphic"]["mm3"] == 0
    assert found["inverse_consistency_mm"]["forward"]["max"] == pytest.approx(0, abs=1e-9)
    row = flat_measures(found)
    assert row["dice"] == 1.0
    assert row["tre_mean_mm"] == pytest.approx(0, abs=1e-9)
    assert {"hd95_mm", "assd_mm", "folding_percent", "ndv_percent", "inverse_consistency_forward_mean_mm"} <= set(row)


def test_distances_are_in_millimetres_of_an_anisotropic_grid(images):
    grid, fixed = images
    moved = fixed.with_array(np.roll(fixed.array, 1, axis=2))
    found = score_labels(fixed, moved)
    assert found["per_label"][10]["hd100_mm"] == pytest.approx(grid.spacing[2])
    in_voxels = score_labels(fixed, moved, unit="voxel")
    assert "hd100_voxel" in in_voxels["per_label"][10]


def test_labels_of_one_image_only_are_named_and_do_not_enter_the_mean(images):
    _, fixed = images
    moved = fixed.array.copy()
    moved[moved == 20] = 30
    found = score_labels(fixed, fixed.with_array(moved))
    assert found["labels_not_in_both"] == {"fixed_only": [20], "moving_only": [30]}
    assert found["mean"]["dice"] == 1.0
    assert found["n_labels"] == 1
    assert np.isnan(found["per_label"][20]["dice"])


def test_label_that_registration_lost_has_dice_zero_and_no_distance(images):
    _, fixed = images
    moved = np.where(fixed.array == 20, 0, fixed.array)
    found = score_labels(fixed, fixed.with_array(moved), moving_labels=fixed)
    assert found["labels_lost"] == [20]
    assert found["mean"]["dice"] == 0.5
    assert np.isnan(found["per_label"][20]["hd95_mm"])
    assert found["mean"]["hd95_mm"] == 0.0


def test_folds_of_a_field_are_counted_with_and_without_mask():
    grid = Grid((9, 9, 9), np.diag([2.0, 1.0, 1.0, 1.0]))
    field = torch.zeros(1, 3, 9, 9, 9)
    field[0, 2, 4, 4, 4] = 3.0
    transform = DisplacementField(grid, field)
    found = score(transform=transform, fixed_grid=grid)
    assert found["non_diffeomorphic"]["voxels"] == pytest.approx(5 / 3, rel=1e-5)
    assert found["non_diffeomorphic"]["mm3"] == pytest.approx(10 / 3, rel=1e-5)
    mask = np.zeros(grid.shape, np.uint8)
    mask[:2] = 1
    masked = score(transform=transform, fixed_grid=grid, mask=Image.from_array(mask, grid))
    assert masked["non_diffeomorphic"]["voxels"] == 0
    assert masked["jacobian"]["voxels"] == 2 * 81


def test_maps_on_different_grids_are_refused(images):
    grid, fixed = images
    other = Image.from_array(fixed.array, Grid(grid.shape, np.diag([1.0, 1.0, 1.0, 1.0])), name="other.nii.gz")
    with pytest.raises(InputError, match=r"other.nii.gz .* not on the grid"):
        score_labels(fixed, other)


def test_missing_numbers_become_null():
    assert without_nan({1: [np.float64("nan"), np.inf, np.int64(3)]}) == {"1": [None, None, 3]}
