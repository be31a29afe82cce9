"""NIfTI and MGH: voxels, types and places agree with nibabel and SimpleITK, both ways."""

from __future__ import annotations

import gzip
import itertools
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from verimorph.errors import InputError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import as_image, read_image, write_image

TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
LPS = np.array([-1.0, -1.0, 1.0])


def itk_points(path, index: np.ndarray) -> np.ndarray:
    """World points of voxel indices as SimpleITK reads the file, in RAS."""
    image = sitk.ReadImage(str(path))
    found = [image.TransformContinuousIndexToPhysicalPoint(one.tolist()) for one in index.astype(float)]
    return np.array(found) * LPS[: index.shape[1]]


def orientation_grids():
    """All 48 orientations of a grid of three different shapes and spacings."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.diag([0.0, 0.0, 0.0, 1.0])
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                affine[world, axis] = sign * (0.8, 1.1, 2.5)[axis]
            affine[:3, 3] = (-20, 11, 37)
            yield Grid((5, 4, 3), affine)


def test_all_48_orientations_come_back_and_agree_with_simpleitk(tmp_path, random):
    for number, grid in enumerate(orientation_grids()):
        voxels = random.integers(-99, 99, grid.shape).astype(np.int16)
        path = write_image(Image.from_array(voxels, grid), tmp_path / f"{number}.nii")
        again = read_image(path)
        assert again.grid.axis_codes == grid.axis_codes
        np.testing.assert_allclose(again.grid.affine, grid.affine, atol=1e-5)
        np.testing.assert_array_equal(again.array, voxels)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in grid.shape])))
        np.testing.assert_allclose(itk_points(path, corners), grid.index_to_world(corners), atol=1e-4)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, voxels)


@given(
    ndim=st.sampled_from([2, 3]),
    seed=st.integers(0, 10**6),
    flip=st.booleans(),
    kind=st.sampled_from(TYPES),
    suffix=st.sampled_from([".nii", ".nii.gz", ".hdr", ".mgz", ".nrrd", ".mha", ".mhd", ".nhdr"]),
)
def test_an_oblique_image_of_any_type_comes_back_from_any_format(
    oblique_grid, tmp_path_factory, ndim, seed, flip, kind, suffix
):
    grid = oblique_grid(ndim, seed=seed, flip=flip, shape=(5, 4, 3)[:ndim])
    voxels = np.random.default_rng(seed).integers(0, 120, grid.shape).astype(kind)
    path = tmp_path_factory.mktemp("round") / f"image{suffix}"
    write_image(Image.from_array(voxels, grid), path)
    again = read_image(path)
    assert again.grid.shape == grid.shape
    np.testing.assert_allclose(again.grid.corners(), grid.corners(), atol=2e-4)
    np.testing.assert_array_equal(again.array, voxels)
    if suffix != ".mgz":  # MGH has four types only; values are kept, see below
        assert again.dtype == voxels.dtype
        assert again.array.dtype == voxels.dtype


@pytest.mark.parametrize("ndim", [2, 3])
def test_sform_and_qform_are_written_equal_with_codes(tmp_path, oblique_grid, ndim):
    grid = oblique_grid(ndim)
    write_image(Image.from_array(np.ones(grid.shape, np.float32), grid), tmp_path / "a.nii.gz")
    header = nib.load(tmp_path / "a.nii.gz").header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 1
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_data_shape() == grid.shape


def test_a_sheared_grid_is_written_as_sform_alone(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    write_image(Image.from_array(np.ones((3, 4, 5), np.uint8), affine), tmp_path / "a.nii")
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").grid.affine, affine, atol=1e-6)


@pytest.mark.parametrize(("kind", "stored"), [("bool", "uint8"), ("float16", "float32")])
def test_types_nifti_lacks_are_widened(tmp_path, kind, stored):
    voxels = (np.arange(24) % 2).reshape(2, 3, 4).astype(kind)
    again = read_image(write_image(Image.from_array(voxels), tmp_path / "a.nii"))
    assert again.dtype == stored
    np.testing.assert_array_equal(again.array, voxels)


@pytest.mark.parametrize(
    ("kind", "low", "high", "stored"),
    [("int8", -5, 5, "int16"), ("uint16", 0, 60000, "int32"), ("int64", 0, 200, "uint8"), ("float64", 0, 1, "float32")],
)
def test_mgh_takes_the_narrowest_type_that_holds_the_values(tmp_path, kind, low, high, stored):
    voxels = np.linspace(low, high, 24).reshape(2, 3, 4).astype(kind)
    again = read_image(write_image(Image.from_array(voxels), tmp_path / "a.mgz"))
    assert again.array.dtype == stored
    np.testing.assert_array_equal(again.array, voxels.astype(stored))
    with pytest.raises(InputError, match="32 bits"):
        write_image(Image.from_array(np.array([[[0, 2**40], [1, 1]], [[0, 0], [0, 0]]])), tmp_path / "b.mgz")
    assert not (tmp_path / "b.mgz").exists()


@pytest.mark.parametrize("suffix", [".nii.gz", ".hdr"])
def test_scaled_integers_become_float32_with_slope_and_intercept(tmp_path, suffix):
    voxels = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    kind = nib.Nifti1Pair if suffix == ".hdr" else nib.Nifti1Image
    made = kind(voxels, np.eye(4))
    made.header.set_slope_inter(0.25, -1024)
    nib.save(made, tmp_path / f"a{suffix}")
    stored = nib.load(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert image.dtype == image.array.dtype == np.float32
    np.testing.assert_allclose(image.array, stored.get_fdata(), rtol=1e-6)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{suffix}"))).T
    np.testing.assert_allclose(image.array, itk, rtol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.AnalyzeImage])
@pytest.mark.parametrize("compressed", [".hdr", ".img"])
def test_one_file_of_a_pair_may_be_compressed(tmp_path, kind, compressed):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(kind(voxels, np.diag([2.0, 2, 2, 1])), tmp_path / "whole.hdr")
    whole = read_image(tmp_path / "whole.hdr")
    for end in (".hdr", ".img"):
        content = (tmp_path / f"whole{end}").read_bytes()
        if end == compressed:
            (tmp_path / f"a.b{end}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / f"a.b{end}").write_bytes(content)
    for file in sorted(tmp_path.glob("a.b.*")):
        image = read_image(file)
        np.testing.assert_array_equal(image.array, whole.array)
        np.testing.assert_array_equal(image.grid.affine, whole.grid.affine)


@pytest.mark.parametrize("ends", [(".HDR", ".img"), (".hdr", ".IMG.gz"), (".HDR.GZ", ".IMG")])
def test_files_of_a_pair_may_be_spelled_in_any_case(tmp_path, ends):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Pair(voxels, np.eye(4)), tmp_path / "whole.hdr")
    for end in ends:
        content = (tmp_path / f"whole{end.lower().removesuffix('.gz')}").read_bytes()
        (tmp_path / f"q{end}").write_bytes(gzip.compress(content) if end.lower().endswith(".gz") else content)
    for end in ends:
        np.testing.assert_array_equal(read_image(tmp_path / f"q{end}").array, voxels)


def test_big_endian_files_give_native_voxels(tmp_path):
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4), header), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").header.endianness == ">"
    image = read_image(tmp_path / "a.nii")
    assert image.array.dtype == np.dtype("int16")
    assert image.array.dtype.isnative
    np.testing.assert_array_equal(image.array, voxels)


def test_one_volume_of_a_series_is_read_as_nibabel_slices_it(tmp_path, random):
    voxels = random.integers(0, 99, (4, 5, 6, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1])), tmp_path / "series.nii.gz")
    for number in range(3):
        image = read_image(tmp_path / "series.nii.gz", volume=number)
        assert image.grid.shape == (4, 5, 6)
        np.testing.assert_array_equal(image.array, voxels[..., number])
    in_memory = as_image(nib.Nifti1Image(voxels, np.eye(4)), volume=2)
    np.testing.assert_array_equal(in_memory.array, voxels[..., 2])


def test_axes_of_size_one_beyond_the_third_are_dropped(tmp_path, random):
    voxels = random.integers(0, 99, (4, 5, 6, 1, 1)).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array, voxels[..., 0, 0])


def test_files_in_micrometres_are_read_in_millimetres_as_itk_does(tmp_path):
    made = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([50.0, 60.0, 70.0, 1.0]))
    made.header.set_xyzt_units("micron")
    nib.save(made, tmp_path / "a.nii")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").grid.spacing, [0.05, 0.06, 0.07], rtol=1e-6)
    np.testing.assert_allclose(sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing(), [0.05, 0.06, 0.07], rtol=1e-5)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_volume_of_one_slice_is_a_2d_image_with_true_lengths_and_angles(tmp_path, oblique_grid, random, across):
    shape = [6, 5, 4]
    shape[across] = 1
    grid = oblique_grid(3, shape=(6, 5, 4))
    voxels = random.integers(0, 99, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, grid.affine), tmp_path / "slice.nii")
    image = read_image(tmp_path / "slice.nii")
    np.testing.assert_array_equal(image.array, voxels.squeeze())
    kept = [axis for axis in range(3) if axis != across]
    whole = grid.affine[:3, kept]
    np.testing.assert_allclose(image.grid.affine[:2, :2].T @ image.grid.affine[:2, :2], whole.T @ whole, atol=1e-5)


@pytest.mark.parametrize(("plane", "world"), [("axial", (0, 1)), ("coronal", (0, 2)), ("sagittal", (1, 2))])
def test_a_slice_along_the_anatomical_axes_keeps_its_coordinates(plane, world):
    affine = np.zeros((4, 4))
    across = ({0, 1, 2} - set(world)).pop()
    for axis, row in enumerate((*world, across)):
        affine[row, axis] = (-1.5, 2.0, 3.0)[axis]
    affine[:, 3] = (10, 20, 30, 1)
    image = as_image((np.zeros((7, 8, 1)), affine))
    index = np.array([3.0, 5.0])
    whole = affine @ [3, 5, 0, 1]
    np.testing.assert_allclose(image.grid.index_to_world(index), whole[list(world)], atol=1e-12)


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_reading_and_writing_five_million_voxels_is_quick(tmp_path, kind):
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (180, 180, 155)], indexing="ij", sparse=True)
    noise = np.random.default_rng(0).normal(0, 5, (180, 180, 155))
    inside = sum(axis**2 for axis in axes) < 0.8
    voxels = np.where(inside, 500 + 300 * np.cos(5 * axes[0]) + noise, 0).astype(kind)
    start = time.perf_counter()
    write_image(Image.from_array(voxels), tmp_path / "a.nii.gz")
    written = time.perf_counter()
    read_image(tmp_path / "a.nii.gz").array  # noqa: B018
    read = time.perf_counter()
    assert written - start < 4, "a few tenths of a second on an idle machine"
    assert read - written < 2, "a tenth of a second on an idle machine"


def test_the_header_is_read_at_once_and_the_voxels_later(tmp_path):
    path = write_image(Image.from_array(np.ones((4, 5, 6), np.int16)), tmp_path / "a.nii.gz")
    image = read_image(path)
    assert image.dtype == np.int16
    assert "array" not in vars(image)


def test_forms_that_disagree_give_a_warning_and_the_sform(tmp_path):
    made = nib.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4))
    made.set_sform(np.diag([1.0, 1.0, 2.0, 1.0]), code=1)
    made.set_qform(np.eye(4), code=1)
    nib.save(made, tmp_path / "a.nii")
    with pytest.warns(VerimorphWarning, match=r"disagree by up to 9 mm; the sform is used"):
        image = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(image.grid.spacing, [1, 1, 2])


def test_the_qform_is_used_where_there_is_no_sform(tmp_path, oblique_grid):
    grid = oblique_grid(3)
    made = nib.Nifti1Image(np.zeros(grid.shape, np.uint8), np.eye(4))
    made.set_sform(None, code=0)
    made.set_qform(grid.affine, code=1)
    nib.save(made, tmp_path / "a.nii")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").grid.corners(), grid.corners(), atol=1e-3)


def test_real_images_lie_where_simpleitk_puts_them(data_folder):
    for path in sorted(data_folder.glob("*/*.nii.gz"))[::60]:
        image = read_image(path)
        index = np.array([[0] * image.grid.ndim, [n // 3 for n in image.grid.shape]])
        np.testing.assert_allclose(image.grid.index_to_world(index), itk_points(path, index), atol=1e-3)
        assert image.array.dtype == image.dtype
