"""Carrying: the right direction for images and for points, and the order of several transforms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.carry import apply, carry
from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import Points, read_image, write_points, write_transform
from verimorph.transform import Composite, DisplacementField, rigid


def spot(grid: Grid, index: tuple[int, ...]) -> Image:
    voxels = np.zeros(grid.shape, np.float32)
    voxels[index] = 1
    return Image.from_array(voxels, grid, name="spot")


def brightest(image: Image) -> np.ndarray:
    return image.grid.index_to_world(np.array(np.unravel_index(image.array.argmax(), image.grid.shape)))


@pytest.fixture
def grid() -> Grid:
    return Grid((20, 18, 16), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def transform(grid):
    """A smooth field and a turn; neither commutes with the other."""
    axes = np.meshgrid(*[np.linspace(0, np.pi, n) for n in grid.shape], indexing="ij")
    bump = np.prod([np.sin(a) for a in axes], axis=0)
    u = torch.from_numpy(np.stack([1.2 * bump, -0.8 * bump, 0.5 * bump]).astype(np.float32))[None]
    return Composite(
        [DisplacementField(grid, u), rigid(rotation=[0, 0, 0.15], translation=[2.0, -1, 0], centre=grid.centre)]
    )


def test_an_image_and_its_landmark_arrive_at_the_same_place(grid, transform):
    """The law of the room: points travel by the inverse of what images travel by."""
    moving = spot(grid, (9, 8, 7))
    mark = Points(brightest(moving)[None])
    moved, carried = apply(moving, transform=transform, reference=grid), apply(mark, transform=transform)
    assert np.linalg.norm(brightest(moved) - carried.coordinates[0]) < 2.0
    np.testing.assert_allclose(transform.map_points(carried.coordinates), mark.coordinates, atol=5e-3)
    assert np.linalg.norm(brightest(moved) - mark.coordinates[0]) > 2.0


def test_inverse_carries_from_fixed_to_moving(grid, transform):
    fixed = spot(grid, (9, 8, 7))
    mark = Points(brightest(fixed)[None])
    moved = apply(fixed, transform=transform, reference=grid, inverse=True)
    carried = apply(mark, transform=transform, inverse=True)
    np.testing.assert_allclose(carried.coordinates, transform.map_points(mark.coordinates))
    assert np.linalg.norm(brightest(moved) - carried.coordinates[0]) < 2.0


def test_there_and_back(grid, transform, random):
    marks = Points(grid.index_to_world(random.uniform(4, 11, (30, 3))), tuple(f"p{n}" for n in range(30)))
    back = apply(apply(marks, transform=transform), transform=transform, inverse=True)
    np.testing.assert_allclose(back.coordinates, marks.coordinates, atol=5e-3)
    assert back.names == marks.names


def test_a_list_acts_from_first_to_last_on_a_fixed_point(grid, transform, tmp_path):
    """As ``antsApplyTransforms -t 1Warp -t 0GenericAffine``; the other order must be told apart."""
    field, turn = transform.parts
    files = [write_transform(field, tmp_path / "1Warp.nii.gz"), write_transform(turn, tmp_path / "0GenericAffine.mat")]
    point = Points(grid.centre[None] + 3)
    expected = transform.map_points(point.coordinates)
    found = apply(point, transform=files, inverse=True).coordinates
    np.testing.assert_allclose(found, expected, atol=1e-3)
    swapped = apply(point, transform=files[::-1], inverse=True).coordinates
    assert np.abs(swapped - expected).max() > 0.1


def test_default_interpolation_depends_on_what_it_is(grid, transform, random):
    patches = random.integers(0, 9, (5, 5, 4)).repeat(4, 0).repeat(4, 1).repeat(4, 2)[:20, :18]
    labels = Image.from_array(patches.astype(np.int32), grid, name="labels")
    scan = Image.from_array(random.integers(0, 900, grid.shape).astype(np.int16), grid, name="scan")
    done = carry(labels, transform=transform, reference=grid)
    assert (done.interpolation, done.source, done.target) == ("nearest", "moving", "fixed")
    assert "label map" in done.reason
    assert carry(scan, transform=transform, reference=grid).interpolation == "linear"
    assert carry(labels, transform=transform, reference=grid, interpolation="labels").interpolation == "labels"
    assert done.result.dtype == np.int32


def test_reference_defaults_to_the_grid_of_the_first_field(grid, transform):
    assert apply(spot(grid, (5, 5, 5)), transform=transform).grid.is_close(grid)
    with pytest.raises(InputError, match="-r REFERENCE"):
        apply(spot(grid, (5, 5, 5)), transform=rigid(translation=[1.0, 0, 0]))
    with pytest.raises(InputError, match="the moving image"):
        apply(spot(grid, (5, 5, 5)), transform=transform, inverse=True)


def test_an_image_that_lands_outside_is_warned_about(grid):
    with pytest.warns(VerimorphWarning, match="background only"):
        apply(spot(grid, (5, 5, 5)), transform=rigid(translation=[500.0, 0, 0]), reference=grid)


def test_pictures_are_carried_as_simpleitk_carries_them(random, tmp_path):
    """PNG and TIFF have a world too: pixel (0, 0) at the origin, in ITK's frame."""
    fixed, moving = tmp_path / "fixed.png", tmp_path / "moving.tif"
    sitk.WriteImage(sitk.GetImageFromArray(random.integers(0, 255, (40, 50)).astype(np.uint8)), str(fixed))
    sitk.WriteImage(sitk.GetImageFromArray(random.normal(size=(44, 46)).astype(np.float32)), str(moving))
    grid = read_image(fixed).grid
    u = torch.from_numpy(random.normal(size=(1, 2, *grid.shape)).astype(np.float32))
    chain = Composite([DisplacementField(grid, u), rigid(rotation=0.1, translation=[3.0, -2], centre=grid.centre)])
    file = write_transform(chain, tmp_path / "transform.h5")
    theirs = sitk.Resample(
        sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed)), sitk.ReadTransform(str(file)), sitk.sitkLinear
    )
    ours = apply(moving, transform=file, reference=fixed)
    assert (ours.array != 0).mean() > 0.5
    np.testing.assert_allclose(ours.array, sitk.GetArrayFromImage(theirs).T, atol=1e-3)


def test_mistakes_are_named(grid, transform, tmp_path):
    with pytest.raises(InputError, match="2-D"):
        apply(Image.from_array(np.zeros((5, 5))), transform=transform, reference=grid)
    with pytest.raises(InputError, match="2-D points"):
        apply(Points(np.zeros((2, 2))), transform=transform)
    with pytest.raises(InputError, match="not a transform"):
        apply(spot(grid, (1, 1, 1)), transform=3.5, reference=grid)
    with pytest.raises(InputError, match="not a transform"):
        apply(spot(grid, (1, 1, 1)), transform=[], reference=grid)
    with pytest.raises(OptionError, match="not interpolated"):
        apply(write_points(Points(np.zeros((1, 3))), tmp_path / "p.csv"), transform=transform, interpolation="linear")


def test_public_name(grid):
    import verimorph

    assert verimorph.apply is apply
