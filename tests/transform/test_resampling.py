"""Resampling against SimpleITK through a transform that the test builds for itself."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import Composite, DisplacementField, identity, looks_like_labels, rigid
from verimorph.transform.resampling import to_type
from verimorph.transform.voting import read_nearest, read_vote


def flip(d: int) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0][:d])


def to_sitk(array: np.ndarray, grid: Grid, vector: bool = False) -> sitk.Image:
    d = grid.ndim
    axes = (*range(d - 1, -1, -1), d) if vector else tuple(range(d - 1, -1, -1))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    image.SetOrigin((flip(d) @ grid.origin).tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((flip(d) @ grid.direction).ravel().tolist())
    return image


def oracle_transform(result: Composite) -> sitk.Transform:
    """The composite in LPS, built from its definition: a voxel i goes to the world point of i + u(i)."""
    field, linear = result.parts
    grid, d = field.grid, field.ndim
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    u = np.moveaxis(field.displacement[0].double().numpy(), 0, -1)
    vectors = (grid.index_to_world(index + u) - grid.index_to_world(index)) @ flip(d)
    out = sitk.CompositeTransform(d)
    out.AddTransform(
        sitk.AffineTransform(
            (flip(d) @ linear.linear @ flip(d)).ravel().tolist(), (flip(d) @ linear.translation).tolist()
        )
    )
    out.AddTransform(sitk.DisplacementFieldTransform(to_sitk(vectors, grid, vector=True)))
    return out


def by_simpleitk(image: Image, reference: Grid, result: Composite, interpolator: int, background=0.0) -> np.ndarray:
    template = to_sitk(np.zeros(reference.shape, np.uint8), reference)
    moved = sitk.Resample(
        to_sitk(image.array, image.grid), template, oracle_transform(result), interpolator, background
    )
    return sitk.GetArrayFromImage(moved).T


@pytest.fixture
def intensities(moving, random) -> Image:
    return Image.from_array(random.normal(size=moving.shape).astype(np.float32) + 5, moving)


@pytest.fixture
def labels(moving, random) -> Image:
    coarse = random.integers(0, 9, [n // 3 + 1 for n in moving.shape])
    for axis in range(moving.ndim):
        coarse = coarse.repeat(3, axis)
    ids = np.array([0, 1, 2, 7, 41, 1001, 70_000, 16_777_217, 2_000_000_011], dtype=np.int64)
    return Image.from_array(ids[coarse][tuple(slice(n) for n in moving.shape)], moving)


@pytest.mark.parametrize("path", ["one pass", "point by point"])
@pytest.mark.parametrize("background", [0.0, -7.5])
def test_linear_equals_simpleitk_edges_included(fixed, result, intensities, path, background, monkeypatch):
    if path == "point by point":
        monkeypatch.setattr("verimorph.transform.resampling.field_then_matrix", lambda *_: None)
    moved = result.resample(intensities, fixed, background=background).array
    expected = by_simpleitk(intensities, fixed, result, sitk.sitkLinear, background)
    assert (expected == background).any()
    # Inside or outside may round differently within 1e-4 voxel of the rim: no voxel of this pair does.
    np.testing.assert_allclose(moved, expected, atol=2e-3)
    assert moved.dtype == np.float32


def test_linear_equals_simpleitk_on_a_grid_that_is_not_the_fields(fixed, moving, result, intensities):
    other = Grid(tuple(n + 4 for n in moving.shape), moving.affine)
    moved = result.resample(intensities, other).array
    np.testing.assert_allclose(moved, by_simpleitk(intensities, other, result, sitk.sitkLinear), atol=2e-3)


def test_nearest_equals_simpleitk(fixed, result, labels):
    moved = result.resample(labels, fixed, interpolation="nearest")
    expected = by_simpleitk(labels, fixed, result, sitk.sitkNearestNeighbor)
    assert moved.dtype == np.int64
    assert (moved.array != expected).mean() <= 0.001  # ties in the last digit of a coordinate
    assert set(np.unique(moved.array)) <= set(np.unique(labels.array))


def test_label_votes_equal_simpleitk(fixed, result, labels):
    moved = result.resample(labels, fixed, interpolation="labels")
    expected = by_simpleitk(labels, fixed, result, sitk.sitkLabelLinear)
    assert (moved.array != expected).mean() <= 0.002
    assert 2_000_000_011 in moved.array
    nearest = result.resample(labels, fixed, interpolation="nearest")
    assert (moved.array != nearest.array).any()


def test_vote_is_the_argmax_of_interpolated_indicators(random):
    array = random.integers(0, 5, (6, 7, 5))
    index = random.uniform(0, 4, (500, 3))
    from scipy import ndimage

    indicators = np.stack([ndimage.map_coordinates((array == k).astype(float), index.T, order=1) for k in range(5)])
    np.testing.assert_array_equal(read_vote(array, index.T), indicators.argmax(axis=0))


def test_cubic_equals_simpleitk_edges_included(fixed, result, intensities):
    moved = result.resample(intensities, fixed, interpolation="cubic", background=-2.0).array
    expected = by_simpleitk(intensities, fixed, result, sitk.sitkBSpline, -2.0)
    np.testing.assert_allclose(moved, expected, atol=5e-3)
    assert np.abs(moved - result.resample(intensities, fixed, background=-2.0).array).max() > 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic", "labels"])
def test_type_of_voxels_is_kept(fixed, moving, result, random, dtype, interpolation):
    image = Image.from_array((random.uniform(0, 200, moving.shape) > 100).astype(dtype), moving)
    assert result.resample(image, fixed, interpolation=interpolation).dtype == np.dtype(dtype)


def test_interpolated_integers_are_rounded_and_clipped():
    np.testing.assert_array_equal(
        to_type(np.array([-3.0, 0.4, 0.6, 254.7, 300.0]), np.dtype(np.uint8)), [0, 0, 1, 255, 255]
    )
    assert to_type(np.array([3e9], np.float32), np.dtype(np.int32))[0] > 2_147_483_000
    assert to_type(np.array([1e30]), np.dtype(np.int64))[0] > 9.2e18


def test_large_integers_are_interpolated_exactly():
    grid = Grid((4, 4, 4))
    image = Image.from_array(np.full(grid.shape, 2_000_000_011, np.int64), grid)
    for interpolation in ("linear", "nearest", "labels"):
        moved = rigid(translation=[0.3, 0.2, 0.1]).resample(image, grid, interpolation=interpolation)
        assert (moved.array == 2_000_000_011).all()


def test_identity_changes_nothing(fixed, ndim, random):
    image = Image.from_array(random.integers(0, 255, fixed.shape).astype(np.int16), fixed)
    for interpolation in ("linear", "nearest", "cubic", "labels"):
        moved = identity(ndim).resample(image, fixed, interpolation=interpolation)
        np.testing.assert_array_equal(moved.array, image.array)


def test_inside_ends_half_a_voxel_beyond_the_centres():
    array = np.array([10, 20, 30])[:, None].repeat(3, 1)
    index = np.array([[-0.51, 1], [-0.5, 1], [2.49, 1], [2.5, 1]]).T
    np.testing.assert_array_equal(read_nearest(array, index, -1), [-1, 10, 30, -1])
    np.testing.assert_array_equal(read_vote(array, index, -1), [-1, 10, 30, -1])


def test_one_pass_needs_no_second_field(fixed, result, intensities, monkeypatch):
    from verimorph import field

    calls = []
    monkeypatch.setattr(field, "warp", lambda *a, _warp=field.warp, **k: calls.append(k) or _warp(*a, **k))
    monkeypatch.setattr(field, "compose", None)
    result.resample(intensities, fixed)
    assert len(calls) == 1
    assert calls[0]["matrix"] is not None


def test_unknown_interpolation_names_the_nearest(fixed, result, intensities):
    with pytest.raises(OptionError, match="did you mean 'nearest'"):
        result.resample(intensities, fixed, interpolation="nearst")


def test_field_may_lie_on_another_grid_than_the_reference(fixed, moving, smooth_field, intensities, linear):
    """The same map through a finer reference: voxels that coincide get the same value."""
    transform = Composite([smooth_field(fixed), linear])
    step = np.diag([*[0.5] * fixed.ndim, 1.0])
    fine = Grid(tuple(2 * n - 1 for n in fixed.shape), fixed.affine @ step)
    coarse, dense = transform.resample(intensities, fixed).array, transform.resample(intensities, fine).array
    np.testing.assert_allclose(dense[(slice(None, None, 2),) * fixed.ndim], coarse, atol=2e-3)


def test_labels_are_told_from_intensities(random):
    patches = random.integers(0, 100, (6, 6, 6)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    assert looks_like_labels(patches.astype(np.int16))
    assert looks_like_labels(patches.astype(np.float32))
    assert not looks_like_labels(patches + 0.5)
    assert not looks_like_labels(random.integers(0, 255, (20, 20, 20)).astype(np.uint8))
    assert not looks_like_labels(random.integers(0, 255, (20, 20, 20)).astype(np.float32))
    assert not looks_like_labels(random.normal(size=(9, 9)))
    marks = np.zeros((30, 30), np.float64)
    marks[random.integers(0, 30, 12), random.integers(0, 30, 12)] = np.arange(12)
    assert looks_like_labels(marks)
    assert looks_like_labels(np.eye(5, dtype=bool))


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "labels"),
    [
        ("brain_t1_oasis/1000_labels.nii.gz", True),
        ("brain_t1_oasis/1000_t1_brain.nii.gz", False),
        ("hippocampus_mr/hippocampus_003_labels.nii.gz", True),
        ("hippocampus_mr/hippocampus_003_image.nii.gz", False),
        ("spine_multimodal/t2s_greymatter.nii.gz", True),
        ("brain_histology_mr_2d/bigbrain_016_histology_raw.png", False),
        ("lung_ct_pair/fixed_baseline.nii.gz", False),
        ("lung_mr_proton/subject0004_lobes.nii.gz", True),
    ],
)
def test_labels_are_told_from_intensities_in_real_files(data_folder, file, labels):
    from verimorph.io import read_image

    if not (data_folder / file).exists():
        pytest.skip(f"no {file}")
    assert looks_like_labels(read_image(data_folder / file).array) is labels


def test_fields_on_a_device_or_with_gradients_still_resample(fixed, intensities, ndim):
    u = torch.zeros(1, ndim, *fixed.shape, requires_grad=True)
    moved = DisplacementField(fixed, u).resample(intensities, fixed)
    np.testing.assert_allclose(moved.array, identity(ndim).resample(intensities, fixed).array, atol=1e-4)
