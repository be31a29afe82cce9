"""A DICOM folder: slices in order, Hounsfield units, the place that ITK gives it, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError, VerimorphWarning
from verimorph.io import read_image

UID = "1.2.826.0.1.3680043.2.1125.{}"
ROTATION = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.1, 1.0, 0.3], [0.2, -0.2, 1.0]]))[0]
ROTATION = ROTATION * np.sign(np.diag(ROTATION))
VOXELS = np.random.default_rng(1).integers(0, 2000, (6, 7, 5)).astype(np.int16)  # columns, rows, slices


def write_series(
    folder: Path, *, number: int = 1, voxels=VOXELS, steps=None, intercept: float = -1024.0, tilt=0.0, volumes: int = 1
) -> None:
    """Write one file a slice, in an order of names that is not their order in space."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    steps = np.arange(voxels.shape[2]) * 2.5 if steps is None else np.asarray(steps)
    for volume in range(volumes):
        for k, step in enumerate(steps):
            position = np.array([10.0, -20.0, 30.0]) + ROTATION @ [tilt * step, 0, step]
            image = sitk.GetImageFromArray((voxels[:, :, k % voxels.shape[2]] + volume).T[None])
            image.SetSpacing([0.8, 1.2, 2.5])
            image.SetMetaData("0008|0060", "CT")
            image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.2")
            image.SetMetaData("0008|103e", f"chest {number}")
            image.SetMetaData("0020|000d", UID.format(9))
            image.SetMetaData("0020|000e", UID.format(number))
            image.SetMetaData("0008|0018", UID.format(f"{number}.{volume}.{k}"))
            image.SetMetaData("0020|0013", str(volume * len(steps) + k + 1))
            image.SetMetaData("0020|0032", "\\".join(f"{value:.6f}" for value in position))
            image.SetMetaData("0020|0037", "\\".join(f"{value:.8f}" for value in ROTATION[:, :2].T.ravel()))
            image.SetMetaData("0028|1052", str(intercept))
            image.SetMetaData("0028|1053", "1")
            writer.SetFileName(str(folder / f"s{number}_{volume}_{(k * 3) % len(steps):02d}_{k}.dcm"))
            writer.Execute(image)


def test_a_series_is_sorted_and_placed_as_itk_does(tmp_path):
    write_series(tmp_path / "ct")
    image = read_image(tmp_path / "ct")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    theirs = sitk.ReadImage(names)
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(theirs).T)
    for index in ((0, 0, 0), (5, 0, 0), (0, 6, 0), (0, 0, 4)):
        point = np.array(theirs.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(image.grid.index_to_world(np.array(index)), point, atol=1e-3)
    np.testing.assert_allclose(image.grid.spacing, [0.8, 1.2, 2.5], atol=1e-4)


def test_values_are_rescaled_to_hounsfield_units(tmp_path):
    write_series(tmp_path / "ct", intercept=-1024)
    image = read_image(tmp_path / "ct")
    for file in (tmp_path / "ct").iterdir():
        header = sitk.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        intercept = float(header.GetMetaData("0028|1052"))
        size = int(header.GetMetaData("0028|0100")) // 8
        pixels = np.frombuffer(file.read_bytes()[-42 * size :], f"<u{size}").reshape(7, 6).T  # the pixels end the file
        place = np.array([float(part) for part in header.GetMetaData("0020|0032").split("\\")]) * [-1, -1, 1]
        k = round(float(image.grid.world_to_index(place)[2]))
        assert intercept == -1024
        np.testing.assert_array_equal(image.array[:, :, k], pixels.astype(int) - 1024)


def test_two_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path / "ct", number=1)
    write_series(tmp_path / "ct", number=2, voxels=VOXELS[:, :, :3])
    with pytest.raises(InputError, match=r"holds 2 DICOM series.*chest 1 5 files.*chest 2 3 files.*::UID"):
        read_image(tmp_path / "ct")
    assert read_image(f"{tmp_path / 'ct'}::{UID.format(2)}").grid.shape == (6, 7, 3)
    assert read_image(tmp_path / "ct", series=UID.format(1)).grid.shape == (6, 7, 5)
    with pytest.raises(InputError, match="none or several end in"):
        read_image(tmp_path / "ct", series="77777")


def test_a_missing_slice_is_refused(tmp_path):
    write_series(tmp_path / "ct", steps=[0, 2.5, 7.5, 10, 12.5])
    with pytest.raises(InputError, match=r"not evenly spaced \(gaps of 2.5 to 5 mm\)"):
        read_image(tmp_path / "ct")


def test_several_volumes_at_the_same_places_need_a_choice(tmp_path):
    write_series(tmp_path / "ct", volumes=2)
    with pytest.raises(InputError, match="has 2 volumes; choose one with --volume 0 to 1"):
        read_image(tmp_path / "ct")
    first, second = (read_image(tmp_path / "ct", volume=number).array.astype(int) for number in (0, 1))
    assert set(np.unique(np.abs(second - first))) == {1}
    with pytest.raises(InputError, match="choose 0 to 1"):
        read_image(tmp_path / "ct", volume=2)


def test_a_tilted_gantry_is_kept_as_shear_and_told(tmp_path):
    write_series(tmp_path / "ct", tilt=0.2)
    with pytest.warns(VerimorphWarning, match="tilted"):
        grid = read_image(tmp_path / "ct").grid
    step = grid.index_to_world(np.array([0, 0, 1])) - grid.index_to_world(np.array([0, 0, 0]))
    np.testing.assert_allclose(np.abs(step), np.abs(ROTATION @ [0.5, 0, 2.5]), atol=1e-4)


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(InputError, match="a folder without DICOM files"):
        read_image(tmp_path)
