"""Non-diffeomorphic volume and area: golden values, and laws of a certificate."""

from __future__ import annotations

import numpy as np
import pytest

from verimorph.errors import InputError
from verimorph.evaluate import non_diffeomorphic_volume


def central_folds(field):
    d = field.shape[0]
    gradient = np.stack([np.stack(np.gradient(c)) for c in field]) + np.eye(d).reshape(d, d, *[1] * d)
    inner = (Ellipsis, *[slice(1, -1)] * d)
    return int((np.linalg.det(np.moveaxis(gradient[inner], (0, 1), (-2, -1))) <= 0).sum())


def test_golden_area_of_a_centre_sent_to_a_corner():
    field = np.zeros((2, 3, 3))
    field[:, 1, 1] = (-1, 1)  # the centre (1, 1) goes to (0, 2)
    expected = np.zeros((3, 3))
    expected[1, 1] = 0.25
    found = non_diffeomorphic_volume(field)
    np.testing.assert_allclose(found.map, expected, atol=1e-12)
    assert found.percent == pytest.approx(100 * 0.25 / 9)
    assert central_folds(field) == 0


@pytest.mark.parametrize(("axis", "distance", "volume", "central"), [(0, 1.5, 1 / 3, 0), (2, 3.0, 5 / 3, 1)])
def test_golden_volume_of_a_displaced_centre(axis, distance, volume, central):
    field = np.zeros((3, 5, 5, 5))
    field[axis, 2, 2, 2] = distance
    found = non_diffeomorphic_volume(field, spacing=(2.0, 1.0, 0.5))
    assert found.voxels == pytest.approx(volume)
    assert found.mm == pytest.approx(volume * 1.0)
    assert non_diffeomorphic_volume(field, spacing=(2.0, 3.0, 0.5)).mm == pytest.approx(3 * volume)
    assert central_folds(field) == central


@pytest.mark.parametrize("shape", [(5, 5, 5), (6, 4)])
def test_identity_and_affine_maps_do_not_fold(shape):
    d = len(shape)
    field = np.zeros((d, *shape))
    assert non_diffeomorphic_volume(field).voxels == 0
    matrix = np.eye(d) + 0.2 * np.arange(d * d).reshape(d, d) / d**2
    affine = np.tensordot(matrix - np.eye(d), np.indices(shape), axes=1)
    assert non_diffeomorphic_volume(affine).voxels == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reflection_folds_one_voxel_volume_per_interior_voxel(axis):
    field = np.zeros((3, 6, 6, 6))
    field[axis] = 5 - 2 * np.indices((6, 6, 6))[axis]
    found = non_diffeomorphic_volume(field)
    np.testing.assert_allclose(found.map[1:-1, 1:-1, 1:-1], 1.0)


def test_checkerboard_that_central_differences_miss_is_found():
    field = np.zeros((3, 8, 8, 8))
    field[0] = 0.8 * (-1.0) ** np.indices((8, 8, 8)).sum(0)
    assert central_folds(field) == 0
    found = non_diffeomorphic_volume(field)
    assert found.percent > 1
    assert found.folding_voxels > 0


def test_positive_one_sided_determinants_imply_a_positive_central_one(random):
    """Proposition 5 of the paper, on random fields."""
    for scale in (0.1, 0.3, 0.6):
        field = scale * random.normal(size=(3, 9, 9, 9))
        found = non_diffeomorphic_volume(field)
        gradient = np.stack([np.stack(np.gradient(c)) for c in field]) + np.eye(3).reshape(3, 3, 1, 1, 1)
        central = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))[1:-1, 1:-1, 1:-1]
        no_fold = found.map[1:-1, 1:-1, 1:-1] == 0
        assert (central[no_fold] >= -1e-12).all()


def test_corner_tetrahedra_fill_half_of_each_cutting():
    """Signed volumes of the ten simplices of an affine map sum to what the formula normalises by."""
    field = np.zeros((3, 4, 4, 4))
    field += np.array([-2.0, 0, 0]).reshape(3, 1, 1, 1) * np.indices((4, 4, 4))[0]  # x -> -x, all determinants -1, -2
    assert non_diffeomorphic_volume(field).map[1, 1, 1] == pytest.approx((8 * 1 + 2 * 2) / 2 / 6)


def test_mask_selects_voxels_and_the_input_is_left_alone(random):
    field = random.normal(size=(1, 3, 6, 6, 6)).astype(np.float32)
    before = field.copy()
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    whole, part = non_diffeomorphic_volume(field), non_diffeomorphic_volume(field, mask=mask)
    np.testing.assert_array_equal(field, before)
    assert part.voxels == pytest.approx(whole.map[2:4, 2:4, 2:4].sum())
    assert part.percent == pytest.approx(100 * part.voxels / 8)


def test_slabs_do_not_change_the_result(random, monkeypatch):
    from verimorph.evaluate import diffeomorphism

    field = random.normal(size=(3, 11, 5, 6))
    whole = non_diffeomorphic_volume(field).map
    monkeypatch.setattr(diffeomorphism, "_SLAB_VOXELS", 1)
    np.testing.assert_array_equal(non_diffeomorphic_volume(field).map, whole)


def test_bad_shapes_are_refused():
    with pytest.raises(InputError, match="displacement field"):
        non_diffeomorphic_volume(np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="empty"):
        non_diffeomorphic_volume(np.zeros((2, 4, 4)), mask=np.zeros((4, 4)))
