"""Each image that cannot be used gets one line: what is wrong, where, what to do."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError
from verimorph.io import as_image, read_image

NOISE = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)


def nifti_bytes(image: nib.Nifti1Image) -> bytearray:
    return bytearray(image.to_bytes())


def refused(path, says: str, **options) -> str:
    """Read header and voxels; return the message after checking that it is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options).array  # noqa: B018
    line = str(caught.value)
    assert says in line
    assert str(path) in line
    assert "\n" not in line
    return line


def test_a_missing_file(tmp_path):
    refused(tmp_path / "none.nii.gz", "no such file")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    refused(tmp_path / "a.nii.gz", "is empty")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha", ".png", ".tif", ".dcm", ".txt", ""])
def test_a_file_that_is_no_image(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("these are words, not voxels " * 40)
    refused(tmp_path / f"a{suffix}", "image")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha"])
def test_a_file_cut_short(tmp_path, suffix, kept):
    whole = tmp_path / f"whole{suffix}"
    if suffix in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(NOISE), str(whole), useCompression=True)
    else:
        nib.save((nib.MGHImage if "mg" in suffix else nib.Nifti1Image)(NOISE, np.eye(4)), whole)
    content = whole.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: int(len(content) * kept)])
    refused(tmp_path / f"cut{suffix}", "again")


def test_a_damaged_gzip(tmp_path):
    content = bytearray(gzip.compress(nifti_bytes(nib.Nifti1Image(NOISE, np.eye(4)))))
    content[3000:3100] = bytes(100)
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", "cut short or damaged")


def test_half_a_pair(tmp_path):
    nib.save(nib.Nifti1Pair(NOISE, np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match="is missing; keep pairs together"):
        read_image(tmp_path / "a.hdr").array  # noqa: B018


def test_a_colour_picture(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    for suffix in (".png", ".tif", ".jpg", ".bmp", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / f"a{suffix}"))
        refused(tmp_path / f"a{suffix}", "colour (RGB) image, one value a pixel is needed; convert it to grey")


def test_a_colour_volume(tmp_path):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), kind), np.eye(4)), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "colour (RGB)")


def test_complex_voxels(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "real numbers")


def test_several_volumes_without_a_choice(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "has 3 volumes; choose one with --volume 0 to 2")
    refused(tmp_path / "a.nii.gz", "volume 3 was asked for", volume=3)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "b.nii.gz")
    refused(tmp_path / "b.nii.gz", "has one volume, volume 2 was asked for", volume=2)


def test_a_displacement_field_given_as_an_image(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1, 3), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "vectors of 3 components")


def test_a_singular_affine(tmp_path):
    made = nib.Nifti1Image(NOISE, np.eye(4))
    made.header["srow_y"] = made.header["srow_x"]
    made.header["sform_code"] = 1
    content = nifti_bytes(nib.Nifti1Image(NOISE, np.eye(4)))
    content[296:312] = content[280:296]  # srow_y := srow_x
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "singular")


def test_an_affine_that_is_not_finite(tmp_path):
    content = nifti_bytes(nib.Nifti1Image(NOISE, np.eye(4)))
    content[296:300] = np.float32(np.nan).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "NaN or infinite")


def test_a_missing_affine(tmp_path):
    nib.save(nib.Nifti1Image(NOISE, None), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "has no voxel-to-world affine")
    with pytest.raises(InputError, match="has no voxel-to-world affine"):
        as_image(nib.Nifti1Image(NOISE, None))


@pytest.mark.parametrize("step", [0.0, -2.0, np.nan])
def test_zero_negative_or_missing_spacing(tmp_path, step):
    content = nifti_bytes(nib.Nifti1Image(NOISE, np.eye(4)))
    content[84:88] = np.float32(step).tobytes()  # pixdim[2]
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", f"voxel size of {step:g} mm along axis 1")


def test_zero_spacing_in_other_formats(tmp_path):
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nElementSpacing = 1 0 1\nDimSize = 2 2 2\n"
        b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(8)
    )
    refused(tmp_path / "a.mha", "a.mha")
    made = nib.MGHImage(NOISE, np.eye(4)).to_bytes()
    content = bytearray(made)
    content[30:34] = np.array(0, ">f4").tobytes()  # delta[0]
    (tmp_path / "a.mgh").write_bytes(content)
    refused(tmp_path / "a.mgh", "a.mgh")


def test_one_row_of_voxels(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((9, 1, 1), np.uint8), np.eye(4)), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "single row")


def test_a_series_named_for_a_file(tmp_path):
    nib.save(nib.Nifti1Image(NOISE, np.eye(4)), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "is a file", series="1.2")
