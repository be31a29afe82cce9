"""Grid: index and world are inverse to each other, agree with ITK and nibabel, and resizing keeps the field of view."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from verimorph.errors import InputError
from verimorph.grid import Grid

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(axes, sides, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product((0, 1), repeat=3)
]


def itk_image(grid: Grid) -> sitk.Image:
    """The grid as ITK sees it, built here by hand: LPS = diag(-1, -1, 1) RAS."""
    flip = np.diag([-1.0, -1.0, 1.0][: grid.ndim])
    image = sitk.Image(list(grid.shape), sitk.sitkUInt8)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin((flip @ grid.origin).tolist())
    image.SetDirection((flip @ grid.direction).ravel().tolist())
    return image


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_index_to_world_agrees_with_itk(oblique_grid, random, ndim, flip):
    grid = oblique_grid(ndim, seed=3, flip=flip)
    image, sign = itk_image(grid), np.array([-1.0, -1.0, 1.0])[:ndim]
    for index in random.uniform(-5, 15, (20, ndim)):
        point = np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist())) * sign
        np.testing.assert_allclose(grid.index_to_world(index), point, atol=1e-9)
        np.testing.assert_allclose(grid.world_to_index(point), index, atol=1e-9)


def test_all_48_orientations_have_their_axis_codes():
    assert len(set(ORIENTATIONS)) == 48
    towards = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    for codes in ORIENTATIONS:
        affine = np.diag([0.0, 0.0, 0.0, 1.0])
        for axis, code in enumerate(codes):
            world, sign = towards[code]
            affine[world, axis] = sign * (axis + 1.0)
        assert Grid((4, 5, 6), affine).axis_codes == codes


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    resized=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 50),
)
def test_resizing_keeps_the_outer_edges(oblique_grid, shape, resized, seed):
    grid = oblique_grid(3, shape=shape, seed=seed)
    small = grid.resized(resized)
    for end in (0, 1):
        before = grid.index_to_world(np.array(shape) * end - 0.5)
        after = small.index_to_world(np.array(resized) * end - 0.5)
        np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(small.extent, grid.extent)
    np.testing.assert_allclose(small.direction, grid.direction, atol=1e-12)


def test_inside_is_tested_as_itk_does(oblique_grid, random):
    grid = oblique_grid(3, shape=(4, 5, 3))
    index = np.concatenate([random.uniform(-1.2, 5.2, (300, 3)), [[-0.499, 0, 0], [3.499, 0, 0], [3.501, 0, 0]]])
    image = itk_image(grid) + 1
    line = sitk.Image([len(index), 1, 1], sitk.sitkVectorFloat64)  # a field whose pixel i leads to point i
    for number, point in enumerate(grid.index_to_world(index) * [-1, -1, 1]):
        line[number, 0, 0] = (point - [number, 0, 0]).tolist()
    found = sitk.Resample(image, sitk.Image([len(index), 1, 1], sitk.sitkUInt8), sitk.DisplacementFieldTransform(line))
    expected = sitk.GetArrayFromImage(found).ravel().astype(bool)
    assert 0 < expected.sum() < len(index)
    assert grid.contains(grid.index_to_world(index)).tolist() == expected.tolist()


def test_matrix_to_composes_index_maps(oblique_grid, random):
    one, other = oblique_grid(3, seed=1), oblique_grid(3, seed=2)
    index = random.uniform(0, 9, (7, 3))
    through = np.c_[index, np.ones(7)] @ one.matrix_to(other).T
    np.testing.assert_allclose(through[:, :3], other.world_to_index(one.index_to_world(index)), atol=1e-9)


def test_voxel_volume_is_the_product_of_spacings_when_axes_are_perpendicular(oblique_grid):
    grid = oblique_grid(3)
    assert grid.voxel_volume == pytest.approx(np.prod(grid.spacing))
    assert grid.size == np.prod(grid.shape)


def test_centre_is_the_mean_of_the_corners(oblique_grid):
    for ndim in (2, 3):
        grid = oblique_grid(ndim)
        assert grid.corners().shape == (2**ndim, ndim)
        np.testing.assert_allclose(grid.corners().mean(axis=0), grid.centre)


@pytest.mark.parametrize(
    ("shape", "affine", "says"),
    [
        ((4, 4, 4), np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        ((4, 4, 4), np.array([[1, 2, 0, 0], [2, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        ((4, 4, 4), np.diag([1.0, np.nan, 1.0, 1.0]), "NaN"),
        ((4, 4, 4), np.eye(3), "4x4"),
        ((4, 4, 4, 2), np.eye(5), "2 or 3 axes"),
        ((4, 0, 4), np.eye(4), "at least one voxel"),
    ],
)
def test_a_grid_that_is_none_is_refused(shape, affine, says):
    with pytest.raises(InputError, match=says):
        Grid(shape, affine)


def test_grids_compare_by_value_and_by_corner_distance(oblique_grid):
    grid = oblique_grid(3)
    moved = grid.affine.copy()
    moved[0, 3] += 5e-4
    assert grid == Grid(grid.shape, grid.affine.copy())
    assert hash(grid) == hash(Grid(grid.shape, grid.affine.copy()))
    assert grid != Grid(grid.shape, moved)
    assert grid.is_close(Grid(grid.shape, moved))
    moved[0, 3] += 0.1
    assert not grid.is_close(Grid(grid.shape, moved))
