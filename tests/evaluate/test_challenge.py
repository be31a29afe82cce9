"""The challenge mode against the golden values, an independent transcription of its definitions, and its quirks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from verimorph.errors import InputError
from verimorph.evaluate import challenge, folding_percent, sd_log_jacobian
from verimorph.grid import Grid


@pytest.fixture(scope="module")
def golden_field():
    i, j, k = np.indices((16, 16, 16), dtype=float)
    return np.stack(
        [0.3 * np.sin(0.4 * i) * np.cos(0.3 * j), 0.2 * np.cos(0.5 * j + 0.2 * k), 0.25 * np.sin(0.3 * k + 0.1 * i)], -1
    )


def test_golden_determinants_and_sdlogj(golden_field):
    determinant = challenge.jacobian_determinant(golden_field)
    assert determinant.shape == (12, 12, 12)
    assert determinant.min() == pytest.approx(0.7749037614, abs=1e-9)
    assert determinant.max() == pytest.approx(1.2268667688, abs=1e-9)
    assert determinant.mean() == pytest.approx(0.9761337067, abs=1e-9)
    assert challenge.sd_log_jacobian_plus_3(golden_field) == pytest.approx(0.0217000826, abs=1e-9)
    assert sd_log_jacobian(determinant) == pytest.approx(0.0891655386, abs=1e-9)


def test_determinant_equals_correlation_with_the_central_difference_kernel(random):
    field = random.normal(size=(9, 8, 10, 3))
    rows = []
    for axis in range(3):
        kernel = np.array([-0.5, 0, 0.5]).reshape([3 if a == axis else 1 for a in range(3)])
        rows.append([ndimage.correlate(field[..., c], kernel, mode="constant")[2:-2, 2:-2, 2:-2] for c in range(3)])
    expected = np.linalg.det(np.moveaxis(np.array(rows), (0, 1), (-2, -1)) + np.eye(3))
    np.testing.assert_allclose(challenge.jacobian_determinant(field), expected, atol=1e-12)


def test_sdlogj_keeps_folds_above_minus_three_and_the_fold_count_is_always_zero():
    field = np.zeros((12, 12, 12, 3))
    field[..., 0] = (-1.5 * np.indices((12, 12, 12))[0]).astype(float)  # det J = -0.5 everywhere: all folded
    scored = challenge.challenge_score(field)
    assert scored["num_foldings"]["mean"] == 0.0
    assert scored["sdlogj"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert folding_percent(challenge.jacobian_determinant(field)) == 100.0


def test_mask_limits_sdlogj_to_its_voxels(golden_field, random):
    mask = random.random((16, 16, 16)) < 0.3
    inner = (slice(2, -2),) * 3
    expected = np.ma.MaskedArray(
        np.log(np.clip(challenge.jacobian_determinant(golden_field) + 3, 1e-9, 1e9)), ~mask[inner]
    ).std()
    assert challenge.sd_log_jacobian_plus_3(golden_field, mask) == pytest.approx(float(expected))


def test_tre_uses_cubic_spline_and_moving_spacing(golden_field, random):
    fixed = random.uniform(2, 13, (15, 3))
    carried = np.stack(
        [ndimage.map_coordinates(golden_field[..., c], fixed.T, order=3, mode="constant") for c in range(3)], 1
    )
    moving = fixed + carried + np.array([1.0, 0.0, 0.0])
    errors = challenge.target_registration_error(fixed, moving, golden_field, moving_spacing=(2.5, 1.0, 1.0))
    np.testing.assert_allclose(errors, 2.5)
    linear = np.stack([ndimage.map_coordinates(golden_field[..., c], fixed.T, order=1) for c in range(3)], 1)
    assert np.abs(linear - carried).max() > 1e-4  # the order matters


def test_labels_are_nan_when_absent_before_and_zero_or_infinite_when_lost():
    fixed, moving = np.zeros((10, 10, 10), int), np.zeros((10, 10, 10), int)
    fixed[1:4, 1:4, 1:4] = moving[1:4, 1:4, 1:4] = 1
    fixed[6:8, 6:8, 6:8] = 2  # absent from moving
    fixed[1, 8, 8] = moving[8, 8, 1] = 3
    field = np.zeros((10, 10, 10, 3))
    scored = challenge.challenge_score(field, fixed_labels=fixed, moving_labels=moving, labels=[1, 2, 3])
    assert scored["dice"]["detailed"][0] == 1.0
    assert math.isnan(scored["dice"]["detailed"][1])
    assert scored["dice"]["detailed"][2] == 0.0
    assert scored["dice"]["mean"] == 0.5
    gone = np.zeros((10, 10, 10, 3))
    gone[..., 0] = 50.0
    lost = challenge.challenge_score(gone, fixed_labels=fixed, moving_labels=moving, labels=[1, 3])
    assert lost["dice"]["mean"] == 0.0
    assert lost["hd95"]["mean"] == math.inf


def test_hd95_is_in_voxels_whatever_the_voxel_size():
    fixed = np.zeros((12, 12, 12), int)
    fixed[3:7, 3:7, 3:7] = 1
    field = np.zeros((12, 12, 12, 3))
    field[..., 0] = -2.0
    scored = challenge.challenge_score(field, fixed_labels=fixed, moving_labels=fixed, moving_spacing=(5.0, 5.0, 5.0))
    assert scored["hd95"]["mean"] == 2.0


def test_voxel_displacement_goes_from_fixed_to_moving_voxels():
    from verimorph.transform import Affine

    fixed, moving = Grid((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0])), Grid((8, 9, 9), np.diag([1.0, 1.0, 4.0, 1.0]))
    shift = np.eye(4)
    shift[2, 3] = 8.0
    field = challenge.voxel_displacement(Affine(shift), fixed_grid=fixed, moving_grid=moving)
    np.testing.assert_allclose(field[1, 2, 3], [2 - 1, 4 - 2, (6 + 8) / 4 - 3], atol=1e-6)


def test_warp_equals_map_coordinates_of_order_zero(golden_field, random):
    moving = random.integers(0, 9, (16, 16, 16)).astype(np.int16)
    identity = np.meshgrid(*[np.arange(16)] * 3, indexing="ij")
    expected = ndimage.map_coordinates(moving, identity + 4 * golden_field.transpose(3, 0, 1, 2), order=0)
    np.testing.assert_array_equal(challenge.warp_labels(moving, 4 * golden_field), expected)


def test_aggregate_names_the_thirty_by_the_script_version():
    cases = [{"tre": {"mean": float(n), "detailed": []}, "dice": {"mean": n / 10, "detailed": []}} for n in range(11)]
    now, before = challenge.aggregate(cases), challenge.aggregate(cases, version="original")
    assert now["tre"]["30"] == pytest.approx(7.0)
    assert before["tre"]["30"] == pytest.approx(3.0)
    assert now["dice"] == before["dice"]
    assert now["tre"]["std"] == pytest.approx(np.std(range(11)))


def test_other_shapes_are_refused(golden_field):
    with pytest.raises(InputError, match="3-D fields"):
        challenge.challenge_score(np.zeros((4, 4, 2)))
    with pytest.raises(InputError, match="fixed labels"):
        challenge.challenge_score(golden_field, fixed_labels=np.ones((4, 4, 4)), moving_labels=np.ones((4, 4, 4)))
