"""Displacement fields of ITK and ANTs against SimpleITK's own reader."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError
from verimorph.io import read_transform, write_transform
from verimorph.transform import identity

both_sizes = pytest.mark.parametrize("ndim", [2, 3])
suffixes = pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])


def simpleitk_field(path) -> sitk.DisplacementFieldTransform:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@both_sizes
@suffixes
def test_simpleitk_reads_our_field(rough_field, points, by_simpleitk, tmp_path, suffix):
    path = write_transform(rough_field, tmp_path / f"1Warp{suffix}")
    expected = rough_field.map_points(points)
    np.testing.assert_allclose(by_simpleitk(simpleitk_field(path), points), expected, atol=1e-3)
    np.testing.assert_allclose(read_transform(path).map_points(points), expected, atol=1e-3)


@both_sizes
@suffixes
def test_we_read_simpleitks_field(fixed, points, random, by_simpleitk, tmp_path, suffix):
    d = fixed.ndim
    flip = np.diag([-1.0, -1, 1][:d])
    image = sitk.GetImageFromArray(random.normal(size=(*fixed.shape[::-1], d)), isVector=True)
    image.SetOrigin((flip @ fixed.origin).tolist())
    image.SetSpacing(fixed.spacing.tolist())
    image.SetDirection((flip @ fixed.direction).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"w{suffix}"))
    found = read_transform(tmp_path / f"w{suffix}")
    assert found.grid.is_close(fixed)
    oracle = sitk.DisplacementFieldTransform(image)
    np.testing.assert_allclose(found.map_points(points), by_simpleitk(oracle, points), atol=1e-3)


def test_known_shift_is_stored_as_lps_vectors_in_five_axes(shift, world_shift, fixed, tmp_path):
    image = nib.load(write_transform(shift, tmp_path / "1Warp.nii.gz"))
    assert image.shape == (*fixed.shape, 1, 3)
    assert image.header["intent_code"] == 1007
    np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata()[3, 4, 5, 0], world_shift * [-1, -1, 1], atol=1e-5)


def test_whole_transform_is_sampled_linear_part_included(result, fixed, by_simpleitk, random, tmp_path):
    path = write_transform(result, tmp_path / "whole.nii.gz")
    centres = fixed.index_to_world(random.integers(1, np.array(fixed.shape) - 1, (200, 3)))
    np.testing.assert_allclose(by_simpleitk(simpleitk_field(path), centres), result.map_points(centres), atol=1e-3)


def test_a_matrix_needs_a_grid(fixed, tmp_path):
    with pytest.raises(InputError, match="--fixed"):
        write_transform(identity(3), tmp_path / "w.nii.gz")
    assert read_transform(write_transform(identity(3), tmp_path / "w.nii.gz", fixed=fixed)).grid.shape == fixed.shape


def test_files_that_are_no_field_are_refused(fixed, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(fixed.shape, np.float32), fixed.affine), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match="not a displacement field"):
        read_transform(tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((*fixed.shape, 1, 3), np.float32), fixed.affine), tmp_path / "bare.nii.gz")
    with pytest.raises(InputError, match="--from"):
        read_transform(tmp_path / "bare.nii.gz")
    with pytest.raises(InputError, match="intent"):
        read_transform(tmp_path / "bare.nii.gz", format="itk-field")
    sitk.WriteImage(sitk.Image(5, 5, 5, sitk.sitkUInt8), str(tmp_path / "scalar.nrrd"))
    with pytest.raises(InputError, match="values a voxel"):
        read_transform(tmp_path / "scalar.nrrd")


@suffixes
def test_nan_in_a_field_is_refused(rough_field, tmp_path, suffix):
    rough_field.displacement[0, 1, 3, 3, 3] = float("nan")
    path = write_transform(rough_field, tmp_path / f"nan{suffix}")
    with pytest.raises(InputError, match="NaN"):
        read_transform(path)
