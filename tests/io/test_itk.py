"""NRRD, MetaImage and pictures: ITK's LPS world becomes RAS, voxels and types as SimpleITK reads them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io import as_image, read_image, write_image
from verimorph.io.itk import reason, to_simpleitk

RAS = np.array([-1.0, -1.0, 1.0])


def itk_image(shape: tuple[int, ...], seed: int = 0) -> sitk.Image:
    """An oblique image made by SimpleITK alone."""
    random, d = np.random.default_rng(seed), len(shape)
    rotation = np.linalg.qr(random.normal(size=(d, d)))[0]
    rotation[:, 0] *= np.sign(np.linalg.det(rotation))
    image = sitk.GetImageFromArray(random.integers(0, 200, shape[::-1]).astype(np.int16))
    image.SetSpacing([0.7, 1.4, 3.1][:d])
    image.SetOrigin([12.0, -34.0, 56.0][:d])
    image.SetDirection(rotation.ravel().tolist())
    return image


def assert_same(ours: Image, theirs: sitk.Image) -> None:
    """Same voxels, and the same world point for the same index."""
    d = ours.grid.ndim
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs).T)
    for index in ([0] * d, [n - 1 for n in ours.grid.shape], [1] + [0] * (d - 1)):
        point = np.array(theirs.TransformIndexToPhysicalPoint(index)) * RAS[:d]
        np.testing.assert_allclose(ours.grid.index_to_world(np.array(index)), point, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
def test_files_written_by_simpleitk_are_read_as_it_reads_them(tmp_path, suffix, shape):
    theirs = itk_image(shape)
    sitk.WriteImage(theirs, str(tmp_path / f"a{suffix}"))
    ours = read_image(tmp_path / f"a{suffix}")
    assert ours.array.dtype == np.int16
    assert_same(ours, theirs)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii.gz"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_files_written_here_are_read_by_simpleitk(tmp_path, oblique_grid, random, suffix, ndim):
    grid = oblique_grid(ndim, seed=4, flip=True)
    image = Image.from_array(random.integers(0, 99, grid.shape).astype(np.uint16), grid)
    path = write_image(image, tmp_path / f"a{suffix}")
    assert_same(image, sitk.ReadImage(str(path)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_simpleitk_images_go_both_ways_in_memory(ndim):
    theirs = itk_image((6, 5, 4)[:ndim], seed=2)
    ours = as_image(theirs)
    assert_same(ours, theirs)
    back = to_simpleitk(ours)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(back.GetDirection(), theirs.GetDirection(), atol=1e-12)
    np.testing.assert_allclose(back.GetOrigin(), theirs.GetOrigin(), atol=1e-12)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_the_first_index_of_a_png_is_the_column(tmp_path, kind):
    voxels = np.arange(20, dtype=kind).reshape(5, 4)  # 5 columns, 4 rows
    path = write_image(Image.from_array(voxels), tmp_path / "a.png")
    assert sitk.ReadImage(str(path)).GetSize() == (5, 4)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, voxels)
    assert image.array.dtype == kind
    np.testing.assert_array_equal(image.grid.spacing, [1, 1])
    np.testing.assert_array_equal(image.grid.index_to_world(np.array([3, 2])), [-3, -2])
    assert_same(image, sitk.ReadImage(str(path)))


@pytest.mark.parametrize(("suffix", "kind"), [(".tif", "float32"), (".tif", "uint16"), (".bmp", "uint8")])
def test_pictures_keep_their_type(tmp_path, random, suffix, kind):
    voxels = random.integers(0, 250, (7, 6)).astype(kind)
    image = read_image(write_image(Image.from_array(voxels), tmp_path / f"a{suffix}"))
    assert image.array.dtype == kind
    np.testing.assert_array_equal(image.array, voxels)


def test_types_and_shapes_a_format_cannot_hold_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(InputError, match=r"\.png cannot hold float32"):
        write_image(Image.from_array(np.zeros((4, 4), np.float32)), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"\.png holds 2-D"):
        write_image(Image.from_array(np.zeros((4, 4, 4), np.uint8)), tmp_path / "a.png")
    with pytest.raises(InputError, match="not perpendicular"):
        write_image(
            Image.from_array(np.zeros((4, 4)), np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])), tmp_path / "a.mha"
        )
    with pytest.raises(InputError, match="unknown image suffix"):
        write_image(Image.from_array(np.zeros((4, 4))), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_one_volume_of_a_4d_file_is_read(tmp_path, random):
    voxels = random.integers(0, 99, (3, 4, 5, 6)).astype(np.int16)  # t, z, y, x
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=False), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(voxels, 0, -1), isVector=True), str(tmp_path / "vector.nrrd"))
    for name in ("a.nrrd", "vector.nrrd"):
        for volume in range(3):
            image = read_image(tmp_path / name, volume=volume)
            np.testing.assert_array_equal(image.array, voxels[volume].T)
        with pytest.raises(InputError, match="has 3 volumes; choose one with --volume 0 to 2"):
            read_image(tmp_path / name)


def test_real_pictures_are_read_as_simpleitk_reads_them(data_folder):
    for path in sorted(data_folder.glob("brain_histology_mr_2d/*.png"))[::90]:
        assert_same(read_image(path), sitk.ReadImage(str(path)))


def test_arrays_tensors_and_images_are_images(oblique_grid, random):
    grid = oblique_grid(3)
    voxels = random.normal(size=grid.shape).astype(np.float32)
    image = as_image((voxels, grid.affine))
    assert image.grid == grid
    assert as_image(image) is image
    assert as_image((voxels, grid)).grid is grid
    assert as_image((torch.from_numpy(voxels), torch.from_numpy(grid.affine.copy()))).grid == grid
    np.testing.assert_array_equal(as_image(torch.from_numpy(voxels)[None, None]).array, voxels)
    np.testing.assert_array_equal(as_image(voxels[..., 0]).grid.affine, np.eye(3))
    for thing in (3, None, b"ab", np.zeros(3, complex)):
        with pytest.raises(InputError):
            as_image(thing)


def test_messages_hold_no_address():
    assert reason(RuntimeError("sitk::ERROR: TransformFileReaderTemplate(0x5599e9b88200): Could not")) == "Could not"
