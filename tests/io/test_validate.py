"""What cannot be registered is refused with one line; what is doubtful is warned of; the rest passes in silence."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from verimorph.errors import InputError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import Points
from verimorph.io import validate as check


def image(voxels, grid=None, name="a.nii") -> Image:
    return Image.from_array(voxels, grid, name=name)


@pytest.fixture
def brain(oblique_grid, random) -> Image:
    grid = oblique_grid(3)
    return image(random.normal(size=grid.shape).astype(np.float32), grid, "brain.nii")


def shifted(grid: Grid, millimetres: float) -> Grid:
    affine = grid.affine.copy()
    affine[0, 3] += millimetres
    return Grid(grid.shape, affine)


def test_a_sound_pair_passes_without_a_word(brain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.check_pair(brain, brain)
        check.check_mask(image((brain.array > 0).astype(np.uint8), brain.grid), brain, "fixed mask")
        check.check_labels(image(np.rint(np.abs(brain.array) * 9), brain.grid), brain, "fixed labels")
        points = Points(brain.grid.corners())
        check.check_landmarks(points, points, brain, brain.grid)


@pytest.mark.parametrize(
    ("bad", "says"), [([np.nan], "1 NaN"), ([np.inf], "1 infinite"), ([np.nan, -np.inf], "1 NaN and 1 infinite")]
)
def test_voxels_that_are_not_finite_are_counted_and_placed(brain, bad, says):
    voxels = brain.array.copy()
    voxels[3, 2, 1 : 1 + len(bad)] = bad
    with pytest.raises(
        InputError, match=rf"moving image bad.nii: {says} of 1287 voxels, the first at index \(3, 2, 1\)"
    ):
        check.check_pair(brain, image(voxels, brain.grid, "bad.nii"))


def test_a_constant_image_is_refused(brain):
    with pytest.raises(InputError, match=r"fixed image flat\.nii: all voxels are 7"):
        check.check_pair(image(np.full((4, 4, 4), 7, np.int16), name="flat.nii"), brain)


def test_2d_with_3d_is_refused(brain):
    with pytest.raises(
        InputError, match=r"fixed image a\.nii is 2-D and moving image brain\.nii is 3-D.*slice of brain\.nii"
    ):
        check.check_pair(image(np.eye(5)), brain)


def test_a_mask_on_another_grid_is_refused_and_rounding_is_not(brain):
    ones = np.ones(brain.grid.shape, np.uint8)
    check.check_mask(image(ones, shifted(brain.grid, 0.01)), brain, "fixed mask")
    with pytest.raises(InputError, match=r"fixed mask m\.nii: is on another grid, its corners are up to 5 mm away"):
        check.check_mask(image(ones, shifted(brain.grid, 5), "m.nii"), brain, "fixed mask")
    with pytest.raises(InputError, match="it has 3 x 3 x 3 voxels instead of the 13 x 11 x 9"):
        check.check_mask(image(np.ones((3, 3, 3))), brain, "fixed mask")


def test_an_empty_mask_is_refused(brain):
    with pytest.raises(InputError, match=r"moving mask a\.nii: is empty"):
        check.check_mask(image(np.zeros(brain.grid.shape, np.uint8), brain.grid), brain, "moving mask")


def test_a_mask_with_nothing_to_compare_inside_is_refused(brain):
    inside = np.zeros(brain.grid.shape, np.uint8)
    middle = tuple(n // 2 for n in inside.shape)
    inside[middle] = 1
    with pytest.raises(InputError, match=r"fixed mask a\.nii: holds one voxel, too few"):
        check.check_mask(image(inside, brain.grid), brain, "fixed mask")
    inside[tuple(slice(n, n + 4) for n in middle)] = 1
    check.check_mask(image(inside, brain.grid), brain, "fixed mask")
    with pytest.raises(InputError, match=r"fixed mask a\.nii: .* has one value \(3\) all over it"):
        check.check_mask(image(inside, brain.grid), image(np.full(brain.grid.shape, 3.0), brain.grid), "fixed mask")


def test_labels_are_whole_numbers_and_there_are_some(brain):
    with pytest.raises(InputError, match="holds whole numbers, it has"):
        check.check_labels(brain, brain, "fixed labels")
    with pytest.raises(InputError, match="holds no label"):
        check.check_labels(image(np.zeros(brain.grid.shape), brain.grid), brain, "fixed labels")


def test_landmark_lists_have_the_same_length_and_the_dimension_of_the_image(brain):
    points = Points(brain.grid.corners(), name="p.csv")
    with pytest.raises(InputError, match=r"p\.csv have 8 points, moving landmarks q\.csv 7"):
        check.check_landmarks(points, Points(points.coordinates[:7], name="q.csv"), brain, brain)
    with pytest.raises(InputError, match="are 2-D, the image 3-D"):
        check.check_points(Points(np.zeros((3, 2))), brain, "fixed landmarks")


def test_landmarks_outside_the_image_are_named(brain):
    points = Points(np.r_[brain.grid.corners(), [[1e4, 0, 0]]], tuple("abcdefghi"))
    with pytest.warns(VerimorphWarning, match=r"1 of 9 points lie outside the image \(i\)"):
        check.check_landmarks(points, points, brain, brain)


def test_overlap_is_told_in_the_world(oblique_grid):
    grid = oblique_grid(3)
    assert check.check_overlap(grid, grid)
    assert check.check_overlap(grid, shifted(grid, grid.extent.min() / 2))
    assert not check.check_overlap(grid, shifted(grid, 300))
    tiny = Grid((3, 3, 3), np.diag([0.1, 0.1, 0.1, 1]))
    middle = tiny.affine.copy()
    middle[:3, 3] = grid.centre + 0.37
    assert check.check_overlap(Grid((3, 3, 3), middle), grid)
    assert check.check_overlap(grid, Grid((3, 3, 3), middle))


def test_landmarks_all_outside_the_image_are_refused(brain):
    with pytest.raises(InputError, match=r"all 8 points lie outside the image"):
        check.check_points(Points(brain.grid.corners() + 1e4), brain, "fixed landmarks")
