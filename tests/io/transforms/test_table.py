"""The table of formats: detection, defaults, and one transform through all of them."""

from __future__ import annotations

import numpy as np
import pytest

from verimorph.errors import InputError, OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_transform, write_transform
from verimorph.io.transforms import FORMATS, detect_format

FIELDS = ["itk", "itk-field", "learn2reg", "niftyreg", "elastix", "fsl", "x5"]
LINEAR = [*[name for name in FIELDS if name != "itk-field"], "freesurfer", "afni"]
SUFFIX = {"learn2reg": ".npz", "elastix": ".txt", "fsl": ".nii.gz", "niftyreg": ".nii.gz", "itk-field": ".nii.gz"}


def test_every_format_is_in_this_test():
    assert set(FORMATS) == {*FIELDS, *LINEAR}


@pytest.mark.parametrize("format", FIELDS)
def test_a_registration_survives_every_format(format, result, fixed, moving, random, tmp_path):
    suffix = SUFFIX.get(format, FORMATS[format].suffixes[0])
    path = write_transform(result, tmp_path / f"t{suffix}", format=format, fixed=fixed, moving=moving)
    assert detect_format(path) == format
    back = read_transform(path, fixed=fixed, moving=moving)
    centres = fixed.index_to_world(random.integers(0, fixed.shape, (500, 3)))
    np.testing.assert_allclose(back.map_points(centres), result.map_points(centres), atol=1e-3)


@pytest.mark.parametrize("format", LINEAR)
def test_a_matrix_survives_every_format(format, linear, fixed, moving, random, tmp_path):
    suffix = ".npz" if format == "learn2reg" else next(s for s in FORMATS[format].suffixes if s[:4] != ".nii")
    path = write_transform(linear, tmp_path / f"t{suffix}", format=format, fixed=fixed, moving=moving)
    back = read_transform(path, format=format, fixed=fixed, moving=moving)
    centres = fixed.index_to_world(random.integers(0, fixed.shape, (200, 3)))
    np.testing.assert_allclose(back.map_points(centres), linear.map_points(centres), atol=1e-3)
    if format != "learn2reg":
        np.testing.assert_allclose(back.matrix, linear.matrix, atol=1e-6)


def test_hints_may_be_images_paths_or_grids(linear, fixed, moving, tmp_path):
    from verimorph.io import write_image

    image = Image.from_array(np.zeros(moving.shape, np.uint8), moving)
    file = write_image(Image.from_array(np.zeros(fixed.shape, np.uint8), fixed), tmp_path / "fixed.nii.gz")
    path = write_transform(linear, tmp_path / "t.mat", format="fsl", fixed=file, moving=image)
    back = read_transform(path, format="fsl", fixed=fixed, moving=moving)
    np.testing.assert_allclose(back.matrix, linear.matrix, atol=1e-3)  # a header holds single precision


def test_default_format_of_a_suffix_is_itks_where_itk_has_one(linear, tmp_path):
    for suffix in (".txt", ".mat", ".tfm", ".h5"):
        assert detect_format(write_transform(linear, tmp_path / f"t{suffix}")) == "itk"


def test_bad_names_are_answered_with_the_nearest(linear, tmp_path):
    with pytest.raises(OptionError, match="did you mean 'niftyreg'"):
        write_transform(linear, tmp_path / "t.txt", format="niftreg")
    with pytest.raises(OptionError, match="suffix"):
        write_transform(linear, tmp_path / "t.foo")
    with pytest.raises(OptionError, match=r"\.lta"):
        write_transform(linear, tmp_path / "t.h5", format="freesurfer")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_transform_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_transform(tmp_path / "none.h5")
    with pytest.raises(InputError, match="folder"):
        read_transform(tmp_path)
    (tmp_path / "empty.h5").touch()
    with pytest.raises(InputError, match="empty"):
        read_transform(tmp_path / "empty.h5")
    (tmp_path / "poem.txt").write_text("roses are red")
    with pytest.raises(InputError, match="--from"):
        read_transform(tmp_path / "poem.txt")
    (tmp_path / "t.docx").write_text("x")
    with pytest.raises(InputError, match="unknown transform suffix"):
        read_transform(tmp_path / "t.docx")


def test_three_dimensional_formats_refuse_two(tmp_path):
    flat = rigid_2d()
    for suffix in (".lta", ".1D", ".x5"):
        with pytest.raises(InputError, match="3-D transforms only"):
            write_transform(flat, tmp_path / f"t{suffix}", fixed=Grid((4, 4)), moving=Grid((4, 4)))


def rigid_2d():
    from verimorph.transform import rigid

    return rigid(rotation=0.1, translation=[1.0, 2.0])


def test_a_failed_write_leaves_the_old_file(linear, result, tmp_path):
    path = write_transform(linear, tmp_path / "t.mat")
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_transform(result, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.mat"]
