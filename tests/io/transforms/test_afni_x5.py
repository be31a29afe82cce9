"""AFNI and X5, the formats that nitransforms reads and writes for us."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest

from verimorph.errors import InputError, MissingExtraError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.io import read_transform, write_transform
from verimorph.transform import rigid

pytest.importorskip("nitransforms")


def plain(shape=(12, 11, 10)) -> Grid:
    return Grid(shape, np.diag([-2.0, -2.0, 3.0, 1.0]))


def test_afni_known_shift_is_in_lps(tmp_path):
    """Base to source, DICOM frame: +x is to the left, +y to the back."""
    (tmp_path / "a.aff12.1D").write_text("# a matrix\n1 0 0 4  0 1 0 -3  0 0 1 2\n")
    found = read_transform(tmp_path / "a.aff12.1D", fixed=plain(), moving=plain())
    np.testing.assert_allclose(found.translation, [-4, 3, 2])


@pytest.mark.parametrize("oblique", [False, True])
def test_afni_equals_nitransforms(oblique, fixed, moving, points, tmp_path):
    from nitransforms import linear as theirs

    module_linear = rigid(rotation=[0.1, 0.2, -0.1], translation=[3.0, 2, -1])
    grids = (fixed, moving) if oblique else (plain(), plain((9, 8, 7)))
    path = write_transform(module_linear, tmp_path / "a.aff12.1D", fixed=grids[0], moving=grids[1])
    images = [nib.Nifti1Image(np.zeros(g.shape, np.uint8), g.affine) for g in grids]
    loaded = theirs.load(path, fmt="afni", reference=images[0], moving=images[1])
    np.testing.assert_allclose(loaded.map(points), module_linear.map_points(points), atol=1e-6)
    back = read_transform(path, fixed=grids[0], moving=grids[1])
    np.testing.assert_allclose(back.matrix, module_linear.matrix, atol=1e-9)


def test_afni_without_images_warns_of_tilt(tmp_path):
    (tmp_path / "a.1D").write_text("1 0 0 4  0 1 0 -3  0 0 1 2\n")
    with pytest.warns(VerimorphWarning, match="oblique"):
        read_transform(tmp_path / "a.1D")
    (tmp_path / "two.1D").write_text("1 0 0 4  0 1 0 -3  0 0 1 2\n1 0 0 4  0 1 0 -3  0 0 1 2\n")
    with pytest.raises(InputError, match="24 numbers"):
        read_transform(tmp_path / "two.1D")


def test_x5_matrix_is_read_by_nitransforms(linear, points, fixed, tmp_path):
    from nitransforms.linear import Affine

    path = write_transform(linear, tmp_path / "t.x5", fixed=fixed)
    theirs = Affine.from_filename(path, fmt="X5")
    np.testing.assert_allclose(theirs.map(points), linear.map_points(points), atol=1e-5)
    np.testing.assert_allclose(read_transform(path).matrix, linear.matrix)


def test_x5_field_and_chain_are_read_by_nitransforms(result, fixed, random, tmp_path):
    from nitransforms.manip import TransformChain
    from nitransforms.nonlinear import DenseFieldTransform

    centres = fixed.index_to_world(random.integers(1, np.array(fixed.shape) - 1, (200, 3)))
    field = result.parts[0]
    alone = DenseFieldTransform.from_filename(write_transform(field, tmp_path / "f.x5"), fmt="X5")
    np.testing.assert_allclose(alone.map(centres), field.map_points(centres), atol=1e-3)
    path = write_transform(result, tmp_path / "t.x5")
    both = TransformChain.from_filename(path, fmt="X5")
    # nitransforms reads fields at voxel centres and the chain in order: the field first, then the matrix.
    np.testing.assert_allclose(both.map(centres), result.map_points(centres), atol=1e-3)
    back = read_transform(path)
    assert [part.kind for part in back.parts] == ["displacement", "similarity"]
    np.testing.assert_allclose(back.map_points(centres), result.map_points(centres), atol=1e-3)


def test_x5_files_of_nitransforms_are_read(linear, points, tmp_path):
    from nitransforms.linear import Affine

    Affine(np.array(linear.matrix)).to_filename(tmp_path / "t.x5", fmt="X5")
    np.testing.assert_allclose(read_transform(tmp_path / "t.x5").map_points(points), linear.map_points(points))
    (tmp_path / "no.x5").write_text("nothing of the kind")
    with pytest.raises(InputError, match="X5"):
        read_transform(tmp_path / "no.x5")


@pytest.mark.parametrize("suffix", [".1D", ".x5"])
def test_a_missing_extra_says_what_to_install(linear, tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "nitransforms.io", None)
    with pytest.raises(MissingExtraError, match=r"verimorph\[formats\]"):
        write_transform(linear, tmp_path / f"t{suffix}")
