"""Where planes cut and how they lie on the screen."""

import nibabel as nib
import numpy as np
import pytest
import torch

from verimorph.grid import Grid
from verimorph.report.view import planes_through, tilt_degrees


def stored(codes: str, values: np.ndarray) -> tuple[torch.Tensor, Grid]:
    """The same voxels in the world, stored along other axes."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = -20, -30, -40
    turned = nib.Nifti1Image(values, affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
    )
    array = np.ascontiguousarray(turned.get_fdata(), dtype=np.float32)
    return torch.from_numpy(array)[None, None], Grid(array.shape, turned.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "SAL"])
def test_letters_name_the_side_where_the_anatomy_is(codes):
    values = np.zeros((20, 22, 18), np.float32)
    values[16:, 9:13, 7:11] = 1  # patient right
    values[8:12, 18:, 7:11] = 2  # anterior
    values[8:12, 9:13, 15:] = 3  # superior
    tensor, grid = stored(codes, values)
    axial, coronal, sagittal = planes_through(grid, grid.centre)
    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    for plane, found in (
        (axial, {1: "left", 2: "top"}),
        (coronal, {1: "left", 3: "top"}),
        (sagittal, {2: "left", 3: "top"}),
    ):
        picture = plane.values(tensor, grid, mode="nearest")
        for value, side in found.items():
            rows, columns = np.nonzero(picture == value)
            position, count = (columns, picture.shape[1]) if side == "left" else (rows, picture.shape[0])
            assert len(rows), (plane.name, value)
            assert position.max() < 0.3 * count, (plane.name, side)


@pytest.mark.parametrize("codes", ["LPS", "PSR", "SAL"])
def test_pictures_do_not_depend_on_how_voxels_are_stored(codes, random):
    values = random.normal(size=(20, 22, 18)).astype(np.float32)
    reference, reference_grid = stored("RAS", values)
    other, other_grid = stored(codes, values)
    point = reference_grid.index_to_world(np.array([7.0, 12.0, 5.0]))
    for one, two in zip(planes_through(reference_grid, point), planes_through(other_grid, point), strict=True):
        first, second = one.values(reference, reference_grid), two.values(other, other_grid)
        np.testing.assert_allclose(first, second, atol=1e-4)
        assert one.position == two.position


def test_pixels_are_square_in_millimetres():
    grid = Grid((60, 64, 10), np.diag([1.5, 1.5, 8.0, 1.0]))
    for plane in planes_through(grid, grid.centre):
        rows, columns = plane.shape
        height, width = grid.extent[plane.down], grid.extent[plane.right]
        assert height / rows == pytest.approx(width / columns, rel=0.02)
        assert height / rows == pytest.approx(plane.pixel_mm, rel=0.02)


def test_pixel_of_inverts_world(oblique_grid):
    for plane in planes_through(oblique_grid(), oblique_grid().centre):
        rows, columns = plane.shape
        found = plane.pixel_of(plane.world.reshape(-1, 3)).reshape(rows, columns, 2)
        np.testing.assert_allclose(found[..., 0], np.broadcast_to(np.arange(columns), (rows, columns)), atol=1e-9)
        np.testing.assert_allclose(found[..., 1], np.broadcast_to(np.arange(rows)[:, None], (rows, columns)), atol=1e-9)


def test_picture_files_are_shown_as_stored(random):
    values = random.normal(size=(30, 20)).astype(np.float32)
    grid = Grid((30, 20))
    (plane,) = planes_through(grid, grid.centre)
    picture = plane.values(torch.from_numpy(values)[None, None], grid)
    assert picture[0, 0] == pytest.approx(values[0, 0])
    assert picture[0, -1] == pytest.approx(values[-1, 0])
    assert picture[-1, 0] == pytest.approx(values[0, -1])
    (upright,) = planes_through(grid, grid.centre, as_stored=False)
    picture = upright.values(torch.from_numpy(values)[None, None], grid)
    assert picture[0, 0] == pytest.approx(values[-1, -1])  # top: largest y; left: largest x


def test_tilt_is_the_angle_to_the_world():
    turn = np.eye(4)
    angle = np.radians(12)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert tilt_degrees(Grid((4, 4, 4), turn)) == pytest.approx(12)
