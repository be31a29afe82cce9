"""LTA files against nitransforms, FreeSurfer's definition of its geometry, and nibabel's tkregister matrix."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io import read_transform, write_transform
from verimorph.io.transforms.freesurfer import from_surface


def geometry(grid: Grid) -> str:
    """A volume info block as FreeSurfer writes it: directions, and the world place of voxel N/2."""
    middle = grid.index_to_world(np.array(grid.shape) / 2)
    rows = "\n".join(
        f"{key}   = {' '.join(f'{v:.15e}' for v in values)}"
        for key, values in zip(("xras", "yras", "zras", "cras"), (*grid.direction.T, middle), strict=True)
    )
    return (
        f"valid = 1  # volume info valid\nfilename = some.mgz\nvolume = {' '.join(map(str, grid.shape))}\n"
        f"voxelsize = {' '.join(f'{v:.15e}' for v in grid.spacing)}\n{rows}\n"
    )


def lta(kind: int, matrix: np.ndarray, moving: Grid, fixed: Grid) -> str:
    rows = "\n".join(" ".join(f"{v:.15e}" for v in row) for row in matrix)
    return (
        f"# transform file\n# created by somebody\n\ntype      = {kind} # NAME\nnxforms   = 1\n"
        f"mean      = 0.0000 0.0000 0.0000\nsigma     = 1.0000\n1 4 4\n{rows}\n"
        f"src volume info\n{geometry(moving)}dst volume info\n{geometry(fixed)}subject bert\nfscale 0.15\n"
    )


def test_known_shift_of_every_type(fixed, moving, points, tmp_path):
    """The shift carries the moving image by (3, -2, 1) mm, so fixed points look back by as much."""
    shift = np.eye(4)
    shift[:3, 3] = [3, -2, 1]
    world = {
        1: shift,
        0: fixed.inverse_affine @ shift @ moving.affine,
        14: np.linalg.inv(from_surface(fixed)) @ shift @ from_surface(moving),
    }
    for kind, matrix in world.items():
        (tmp_path / f"{kind}.lta").write_text(lta(kind, matrix, moving, fixed))
        found = read_transform(tmp_path / f"{kind}.lta")
        np.testing.assert_allclose(found.map_points(points), points - [3, -2, 1], atol=1e-6)


def test_surface_frame_equals_nibabels(fixed):
    """nibabel knows FreeSurfer's tkregister matrix of an MGH header."""
    header = nib.MGHImage(np.zeros(fixed.shape, np.uint8), fixed.affine).header
    expected = fixed.affine @ np.linalg.inv(header.get_vox2ras_tkr())
    np.testing.assert_allclose(from_surface(fixed), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [0, 1])
def test_reading_equals_nitransforms(fixed, moving, linear, points, tmp_path, kind):
    module = pytest.importorskip("nitransforms.linear")
    forward = np.linalg.inv(linear.matrix)
    matrix = forward if kind == 1 else fixed.inverse_affine @ forward @ moving.affine
    (tmp_path / "t.lta").write_text(lta(kind, matrix, moving, fixed))
    theirs = module.load(tmp_path / "t.lta", fmt="fs")
    np.testing.assert_allclose(read_transform(tmp_path / "t.lta").map_points(points), theirs.map(points), atol=2e-3)
    np.testing.assert_allclose(read_transform(tmp_path / "t.lta").matrix, linear.matrix, atol=1e-9)


def test_written_file_is_read_by_nitransforms_and_says_which_image_is_which(fixed, moving, linear, points, tmp_path):
    module = pytest.importorskip("nitransforms.linear")
    path = write_transform(linear, tmp_path / "t.lta", fixed=fixed, moving=moving)
    np.testing.assert_allclose(module.load(path, fmt="fs").map(points), linear.map_points(points), atol=1e-3)
    np.testing.assert_allclose(read_transform(path).matrix, linear.matrix, atol=1e-9)
    text = path.read_text()
    source, target = text.split("src volume info")[1].split("dst volume info")
    assert f"volume = {' '.join(map(str, moving.shape))}" in source
    assert f"volume = {' '.join(map(str, fixed.shape))}" in target


def test_geometry_may_come_from_the_images(fixed, moving, linear, tmp_path):
    matrix = fixed.inverse_affine @ np.linalg.inv(linear.matrix) @ moving.affine
    text = lta(0, matrix, moving, fixed).replace("valid = 1  # volume info valid", "valid = 0  # volume info invalid")
    (tmp_path / "t.lta").write_text(text)
    with pytest.raises(InputError, match="--fixed and --moving"):
        read_transform(tmp_path / "t.lta")
    found = read_transform(tmp_path / "t.lta", fixed=fixed, moving=moving)
    np.testing.assert_allclose(found.matrix, linear.matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("type      = 1", "type      = 21", "type 21"),
        ("nxforms   = 1", "nxforms   = 2", "2 transforms"),
        ("1 4 4", "1 3 3", "not a readable LTA"),
    ],
)
def test_what_cannot_be_read_is_named(fixed, moving, tmp_path, before, after, message):
    (tmp_path / "t.lta").write_text(lta(1, np.eye(4), moving, fixed).replace(before, after))
    with pytest.raises(InputError, match=message):
        read_transform(tmp_path / "t.lta")


def test_fields_are_refused(rough_field, tmp_path):
    with pytest.raises(InputError, match="linear transforms only"):
        write_transform(rough_field, tmp_path / "t.lta")
