"""NiftyReg files against their definition, built with nibabel."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError
from verimorph.io import read_transform, write_transform

both_sizes = pytest.mark.parametrize("ndim", [2, 3])


def voxel_centres(grid) -> np.ndarray:
    return grid.index_to_world(np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1))


def write_kind(path, vectors, affine, kind) -> None:
    image = nib.Nifti1Image(vectors.astype(np.float32), affine)
    image.header.set_intent(1007, name="NREG_TRANS")
    image.header["intent_p1"] = kind
    nib.save(image, path)


def test_affine_text_maps_reference_to_floating_in_ras(linear, points, tmp_path):
    np.savetxt(tmp_path / "affine.txt", linear.matrix)
    found = read_transform(tmp_path / "affine.txt", format="niftyreg")
    np.testing.assert_allclose(found.map_points(points), linear.map_points(points), atol=1e-9)
    written = write_transform(linear, tmp_path / "out.txt", format="niftyreg")
    np.testing.assert_array_equal(np.loadtxt(written), linear.matrix)


@pytest.mark.parametrize("kind", [0, 1])
def test_known_shift_as_positions_and_as_displacements(fixed, world_shift, points, tmp_path, kind):
    vectors = np.broadcast_to(world_shift, (*fixed.shape, 3)) + (voxel_centres(fixed) if kind == 0 else 0)
    write_kind(tmp_path / "t.nii.gz", vectors[..., None, :], fixed.affine, kind)
    np.testing.assert_allclose(
        read_transform(tmp_path / "t.nii.gz").map_points(points), points + world_shift, atol=1e-3
    )


@both_sizes
def test_written_field_adds_ras_displacements(result, fixed, random, tmp_path):
    image = nib.load(write_transform(result, tmp_path / "t.nii.gz", format="niftyreg"))
    assert image.header.get_intent()[2] == "NREG_TRANS"
    assert image.header["intent_p1"] == 1
    stored = image.get_fdata()[..., 0, :].reshape(*fixed.shape, fixed.ndim)
    centres = voxel_centres(fixed)
    landed = result.map_points(centres.reshape(-1, fixed.ndim)).reshape(centres.shape)
    np.testing.assert_allclose(centres + stored, landed, atol=1e-3)
    back = read_transform(tmp_path / "t.nii.gz")
    np.testing.assert_allclose(
        back.map_points(centres.reshape(-1, fixed.ndim)), landed.reshape(-1, fixed.ndim), atol=1e-3
    )


@both_sizes
def test_cubic_spline_grid_equals_the_same_spline_of_itk(spline, points, ndim, tmp_path):
    """Control points hold positions; the spline of a linear function is that function."""
    path = write_transform(spline, tmp_path / "cpp.nii.gz", format="niftyreg")
    stored = nib.load(path).get_fdata()[..., 0, :].reshape(*spline.grid.shape, ndim)
    lattice = voxel_centres(spline.grid)
    flip = np.array([-1.0, -1, 1][:ndim])
    oracle = sitk.BSplineTransform(ndim, 3)
    direction = (np.diag(flip) @ spline.grid.direction).ravel()
    oracle.SetFixedParameters(
        [*map(float, spline.grid.shape), *(flip * spline.grid.origin), *spline.grid.spacing, *direction]
    )
    shifts = (stored - lattice) * flip
    oracle.SetParameters(np.concatenate([shifts[..., k].ravel(order="F") for k in range(ndim)]).tolist())
    expected = np.array([oracle.TransformPoint((p * flip).tolist()) for p in points]) * flip
    found = read_transform(path)
    assert found.kind == "spline"
    assert np.abs(expected - points).max() > 0.3
    np.testing.assert_allclose(found.map_points(points), expected, atol=1e-3)


@pytest.mark.parametrize("kind", [3, 4, 5, 6])
def test_velocities_are_refused_with_the_way_out(fixed, tmp_path, kind):
    write_kind(tmp_path / "v.nii.gz", np.zeros((*fixed.shape, 1, 3)), fixed.affine, kind)
    with pytest.raises(InputError, match="reg_transform"):
        read_transform(tmp_path / "v.nii.gz")


def test_spline_with_a_hidden_matrix_is_refused(fixed, tmp_path):
    image = nib.Nifti1Image(np.zeros((*fixed.shape, 1, 3), np.float32), fixed.affine)
    image.header.set_intent(1007, name="NREG_TRANS")
    image.header["intent_p1"] = 2
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, np.eye(4, dtype=np.float32).tobytes()))
    nib.save(image, tmp_path / "s.nii.gz")
    with pytest.raises(InputError, match="extensions"):
        read_transform(tmp_path / "s.nii.gz")


def test_other_vector_files_are_not_niftyregs(rough_field, tmp_path):
    path = write_transform(rough_field, tmp_path / "itk.nii.gz")
    with pytest.raises(InputError, match="NREG_TRANS"):
        read_transform(path, format="niftyreg")
