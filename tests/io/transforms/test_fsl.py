"""FSL matrices against nitransforms, FNIRT fields against the arithmetic of scaled voxels written out here."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io import read_transform, write_transform


def as_nifti(grid: Grid) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine)


def fsl_coordinates(grid: Grid, index: np.ndarray) -> np.ndarray:
    """Voxels times size, x from the other end where the determinant of the header is positive."""
    index = np.array(index, dtype=float)
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        index[..., 0] = grid.shape[0] - 1 - index[..., 0]
    return index * grid.spacing


@pytest.fixture(params=["fixed is right-handed", "moving is right-handed"])
def pair(request, fixed, moving) -> tuple[Grid, Grid]:
    assert np.linalg.det(fixed.affine) > 0 > np.linalg.det(moving.affine)
    return (fixed, moving) if request.param == "fixed is right-handed" else (moving, fixed)


def test_flirt_equals_nitransforms(pair, linear, points, tmp_path):
    linear_module = pytest.importorskip("nitransforms.linear")
    fixed, moving = pair
    path = write_transform(linear, tmp_path / "flirt.mat", format="fsl", fixed=fixed, moving=moving)
    theirs = linear_module.load(path, fmt="fsl", reference=as_nifti(fixed), moving=as_nifti(moving))
    np.testing.assert_allclose(theirs.map(points), linear.map_points(points), atol=1e-3)
    ours = read_transform(path, format="fsl", fixed=fixed, moving=moving)
    np.testing.assert_allclose(ours.map_points(points), linear.map_points(points), atol=1e-6)


def test_flirt_known_shift_in_scaled_voxels(pair, random, tmp_path):
    """FLIRT maps moving to reference: adding t sends the moving coordinate y - t to the reference coordinate y."""
    fixed, moving = pair
    shift = np.array([4.0, -3.0, 2.0])
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    np.savetxt(tmp_path / "shift.mat", matrix)
    transform = read_transform(tmp_path / "shift.mat", format="fsl", fixed=fixed, moving=moving)
    index = random.uniform(0, 10, (50, 3))
    found = moving.world_to_index(transform.map_points(fixed.index_to_world(index)))
    np.testing.assert_allclose(fsl_coordinates(moving, found) + shift, fsl_coordinates(fixed, index), atol=1e-9)


@pytest.mark.parametrize("absolute", [False, True])
def test_fnirt_field_known_shift(pair, tmp_path, absolute):
    """FNIRT: reference to moving coordinates, as a displacement or as the position itself."""
    fixed, moving = pair
    index = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij"), -1)
    reference = fsl_coordinates(fixed, index)
    shift = np.array([2.0, -1.0, 1.5])
    stored = (reference + shift if absolute else np.broadcast_to(shift, reference.shape)).astype(np.float32)
    image = nib.Nifti1Image(stored, fixed.affine)
    image.header.set_intent(2006, allow_unknown=True)
    nib.save(image, tmp_path / "warp.nii.gz")
    transform = read_transform(tmp_path / "warp.nii.gz", moving=moving)
    chosen = index.reshape(-1, 3)[::97]
    found = moving.world_to_index(transform.map_points(fixed.index_to_world(chosen)))
    np.testing.assert_allclose(fsl_coordinates(moving, found), fsl_coordinates(fixed, chosen) + shift, atol=1e-3)


def test_fnirt_field_that_we_write(result, fixed, moving, tmp_path):
    path = write_transform(result, tmp_path / "warp.nii.gz", format="fsl", moving=moving)
    image = nib.load(path)
    assert image.shape == (*fixed.shape, 3)
    assert image.header["intent_code"] == 2006
    index = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij"), -1).reshape(-1, 3)[::53]
    landed = fsl_coordinates(fixed, index) + image.get_fdata()[tuple(index.T)]
    expected = moving.world_to_index(result.map_points(fixed.index_to_world(index)))
    np.testing.assert_allclose(landed, fsl_coordinates(moving, expected), atol=1e-3)
    back = read_transform(path, moving=moving)
    centres = fixed.index_to_world(index)
    np.testing.assert_allclose(back.map_points(centres), result.map_points(centres), atol=1e-3)


def test_coefficients_are_refused_with_the_way_out(fixed, moving, tmp_path):
    image = nib.Nifti1Image(np.zeros((*fixed.shape, 3), np.float32), fixed.affine)
    image.header.set_intent(2007, allow_unknown=True)
    nib.save(image, tmp_path / "coef.nii.gz")
    with pytest.raises(InputError, match="fnirtfileutils"):
        read_transform(tmp_path / "coef.nii.gz", moving=moving)


def test_images_that_are_needed_are_asked_for(fixed, linear, tmp_path):
    np.savetxt(tmp_path / "flirt.mat", np.eye(4))
    with pytest.raises(InputError, match="--from fsl or --from niftyreg"):
        read_transform(tmp_path / "flirt.mat")
    with pytest.raises(InputError, match="--fixed"):
        read_transform(tmp_path / "flirt.mat", format="fsl")
    with pytest.raises(InputError, match="--moving"):
        read_transform(tmp_path / "flirt.mat", format="fsl", fixed=fixed)
    with pytest.raises(InputError, match="--fixed"):
        write_transform(linear, tmp_path / "out.mat", format="fsl")


@pytest.mark.parametrize("text", ["1 0 0 0\n0 1 0 0\n0 0 1 0\n", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 2\n", "a b\n"])
def test_text_that_is_no_matrix_is_refused(fixed, moving, tmp_path, text):
    (tmp_path / "m.mat").write_text(text)
    with pytest.raises(InputError, match=r"m\.mat"):
        read_transform(tmp_path / "m.mat", format="fsl", fixed=fixed, moving=moving)
