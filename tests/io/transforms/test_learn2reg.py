"""Learn2Reg fields: moved by ``map_coordinates`` as the challenge does it, against our resampling."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io import read_transform, write_transform


def challenge_warp(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Resampling with voxel vectors, no geometry."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in field.shape[:-1]], indexing="ij"), -1) + field
    return ndimage.map_coordinates(image, np.moveaxis(index, -1, 0), order=1, mode="nearest")


def inside(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in field.shape[:-1]], indexing="ij"), -1) + field
    return ((index >= -0.49) & (index < np.array(shape) - 0.51)).all(-1)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".nii.gz"])
def test_reading_moves_images_as_the_challenge_does(fixed, moving, random, tmp_path, suffix):
    field = (random.normal(size=(*fixed.shape, 3)) * 0.7 + 1).astype(np.float32)
    path = tmp_path / f"disp{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, np.moveaxis(field, -1, 0))
    elif suffix == ".npy":
        np.save(path, field)
    else:
        nib.save(nib.Nifti1Image(field, np.eye(4)), path)
    image = Image.from_array(random.normal(size=moving.shape).astype(np.float32), moving)
    transform = read_transform(path, format="learn2reg", fixed=fixed, moving=moving)
    moved = transform.resample(image, fixed).array
    where = inside(field, moving.shape)
    np.testing.assert_allclose(moved[where], challenge_warp(image.array, field)[where], atol=1e-3)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".nii.gz"])
def test_writing_moves_images_as_we_do(result, fixed, moving, random, tmp_path, suffix):
    path = write_transform(result, tmp_path / f"d{suffix}", format="learn2reg", fixed=fixed, moving=moving)
    field = (
        np.load(path)["arr_0"]
        if suffix == ".npz"
        else np.load(path)
        if suffix == ".npy"
        else nib.load(path).get_fdata()
    )
    assert field.shape == (*fixed.shape, 3)
    image = Image.from_array(random.normal(size=moving.shape).astype(np.float32), moving)
    where = inside(field, moving.shape)
    assert where.mean() > 0.2
    moved = result.resample(image, fixed).array
    np.testing.assert_allclose(challenge_warp(image.array, field)[where], moved[where], atol=2e-3)


def test_known_shift_between_grids_of_different_geometry(fixed, moving, tmp_path):
    """Voxel i goes to the world place of moving voxel i + d, wherever the two images are."""
    shift = np.array([1.0, -2.0, 0.5])
    np.save(tmp_path / "d.npy", np.broadcast_to(shift, (*fixed.shape, 3)))
    transform = read_transform(tmp_path / "d.npy", fixed=fixed, moving=moving, format="learn2reg")
    index = np.array([[4, 5, 6], [0, 0, 0], [10, 3, 2]])
    np.testing.assert_allclose(
        transform.map_points(fixed.index_to_world(index)), moving.index_to_world(index + shift), atol=1e-4
    )


def test_half_size_fields_are_enlarged_as_the_challenge_does(moving, tmp_path, oblique_grid):
    fixed = oblique_grid(3, (16, 14, 12))
    ramp = np.stack(np.meshgrid(*[np.linspace(-1, 1, n // 2) for n in fixed.shape], indexing="ij")).astype(np.float16)
    np.savez_compressed(tmp_path / "half.npz", ramp)
    transform = read_transform(tmp_path / "half.npz", fixed=fixed, moving=moving)
    expected = np.stack([ndimage.zoom(c.astype(np.float32), 2, order=2) for c in ramp])
    np.testing.assert_allclose(transform.parts[0].displacement[0], expected, atol=1e-5)


def test_missing_images_and_wrong_shapes_are_named(fixed, moving, tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((3, 4, 5, 3)))
    with pytest.raises(InputError, match="--fixed"):
        read_transform(tmp_path / "d.npy")
    with pytest.raises(InputError, match="--moving"):
        read_transform(tmp_path / "d.npy", fixed=fixed)
    with pytest.raises(InputError, match="made for"):
        read_transform(tmp_path / "d.npy", fixed=fixed, moving=moving)


def test_two_dimensions(oblique_grid, tmp_path):
    fixed, moving = oblique_grid(2, seed=1), oblique_grid(2, seed=2)
    np.save(tmp_path / "d.npy", np.broadcast_to([1.0, 2.0], (*fixed.shape, 2)))
    transform = read_transform(tmp_path / "d.npy", fixed=fixed, moving=moving)
    np.testing.assert_allclose(
        transform.map_points(fixed.index_to_world(np.array([[3, 4]]))),
        moving.index_to_world(np.array([[4, 6]])),
        atol=1e-4,
    )


def test_vector_images_in_millimetres_are_refused_not_misread(fixed, moving, tmp_path):
    """ITK's field has the same shape but for an axis of one: read as voxels it would score as a bad registration."""
    image = sitk.Image([int(n) for n in fixed.shape], sitk.sitkVectorFloat32, fixed.ndim)
    sitk.WriteImage(image, str(tmp_path / "disp_0001_0002.nii.gz"))
    with pytest.raises(InputError, match="millimetres"):
        read_transform(tmp_path / "disp_0001_0002.nii.gz", format="learn2reg", fixed=fixed, moving=moving)
