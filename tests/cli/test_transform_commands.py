"""``apply``, ``convert`` and ``explain`` from the command line, on files."""

from __future__ import annotations

import ast
import json
import shlex

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.explain import how_to_apply
from verimorph.grid import Grid
from verimorph.io import Points, read_points, read_transform, write_points, write_transform
from verimorph.transform import Composite, DisplacementField, rigid


@pytest.fixture
def transform(pair) -> Composite:
    """The truth of `pair`, a shift of two voxels (3 mm) along x, and a small bump."""
    image = nib.load(pair[0])
    grid = Grid(image.shape, image.affine)
    axes = np.meshgrid(*[np.linspace(0, np.pi, n) for n in grid.shape], indexing="ij")
    u = np.zeros((1, 3, *grid.shape), np.float32)
    u[0, 1] = 0.8 * np.prod([np.sin(a) for a in axes], axis=0)
    return Composite([DisplacementField(grid, torch.from_numpy(u)), rigid(translation=[3.0, 0, 0])])


@pytest.fixture
def file(transform, tmp_path):
    return write_transform(transform, tmp_path / "transform.h5")


def test_apply_equals_simpleitk(verimorph, pair, file, tmp_path):
    fixed, moving = pair
    done = verimorph("apply", "-i", moving, "-t", file, "-r", fixed, "-o", tmp_path / "moved.nii.gz")
    assert done.code == 0, done.err
    assert "moving -> fixed" in done.out
    assert "interpolation linear" in done.out
    assert "RAS" in done.out
    theirs = sitk.Resample(
        sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed)), sitk.ReadTransform(str(file)), 2, 0.0
    )
    ours = nib.load(tmp_path / "moved.nii.gz")
    np.testing.assert_allclose(ours.get_fdata(), sitk.GetArrayFromImage(theirs).T, atol=0.05)
    np.testing.assert_allclose(ours.affine, nib.load(fixed).affine, atol=1e-5)


def test_apply_keeps_labels_labels(verimorph, pair, file, tmp_path):
    labels = pair[1].with_name("moving_labels.nii.gz")
    out = tmp_path / "labels.nii.gz"
    done = verimorph("apply", "-i", labels, "-t", file, "-r", pair[0], "-o", out)
    assert done.code == 0, done.err
    assert "nearest (a label map" in done.out
    assert nib.load(out).get_data_dtype() == np.uint8
    assert set(np.unique(nib.load(out).dataobj)) == set(np.unique(nib.load(labels).dataobj)) != {0}
    assert verimorph("apply", "-i", labels, "-t", file, "-r", pair[0], "-o", out, "-n", "labels").code == 0


def test_apply_carries_points_by_the_inverse_and_back(verimorph, transform, file, tmp_path, random):
    marks = Points(transform.parts[0].grid.index_to_world(random.uniform(5, 14, (20, 3))))
    write_points(marks, tmp_path / "marks.csv")
    done = verimorph("apply", "-i", tmp_path / "marks.csv", "-t", file, "-o", tmp_path / "out.fcsv")
    assert done.code == 0, done.err
    assert "20 points carried moving -> fixed by the inverse transform" in done.out
    carried = read_points(tmp_path / "out.fcsv").coordinates
    np.testing.assert_allclose(transform.map_points(carried), marks.coordinates, atol=0.01)
    back = verimorph("apply", "-i", tmp_path / "out.fcsv", "-t", file, "-o", tmp_path / "back.csv", "--inverse")
    assert "fixed -> moving by the transform itself" in back.out
    np.testing.assert_allclose(read_points(tmp_path / "back.csv").coordinates, marks.coordinates, atol=0.01)


def test_apply_in_the_order_of_ants(verimorph, transform, pair, tmp_path):
    warp = write_transform(transform.parts[0], tmp_path / "1Warp.nii.gz")
    affine = write_transform(transform.parts[1], tmp_path / "0GenericAffine.mat")
    whole = write_transform(transform, tmp_path / "t.h5")
    arguments = ["apply", "-i", pair[1], "-r", pair[0], "-o"]
    assert verimorph(*arguments, tmp_path / "a.nii.gz", "-t", warp, "-t", affine).code == 0
    assert verimorph(*arguments, tmp_path / "b.nii.gz", "-t", whole).code == 0
    one, two = (nib.load(tmp_path / name).get_fdata() for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_allclose(one, two, atol=0.05)


def test_apply_inverse_carries_the_fixed_image(verimorph, pair, file, transform, tmp_path):
    fixed, moving = pair
    out = tmp_path / "fixed_in_moving.nii.gz"
    assert verimorph("apply", "-i", fixed, "-t", file, "-r", moving, "-o", out, "--inverse").code == 0
    carried, target = nib.load(out).get_fdata(), nib.load(moving).get_fdata()
    assert np.corrcoef(carried.ravel(), target.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "none.h5", "-r", "FIXED"], "none.h5"),
        (["-t", "FIXED", "-r", "FIXED"], "not a displacement field"),
        (["-t", "TRANSFORM", "-r", "FIXED", "-n", "linaer"], "did you mean 'linear'"),
        (["-t", "TRANSFORM", "-r", "FIXED", "--inverse", "--from", "itkk"], "did you mean 'itk'"),
    ],
)
def test_apply_names_mistakes(verimorph, pair, file, tmp_path, words, message):
    places = {"FIXED": pair[0], "TRANSFORM": file}
    words = [places.get(word, word) for word in words]
    verimorph("apply", "-i", pair[1], "-o", tmp_path / "out.nii.gz", *words).assert_user_error(message)
    assert not (tmp_path / "out.nii.gz").exists()


def test_convert_keeps_the_map(verimorph, transform, pair, file, tmp_path, random):
    points = transform.parts[0].grid.index_to_world(random.integers(3, 15, (50, 3)))
    for name, more in {
        "w.nii.gz": [],
        "n.nii.gz": ["--to", "niftyreg"],
        "d.npz": ["--fixed", pair[0], "--moving", pair[1]],
        "t.x5": [],
    }.items():
        done = verimorph("convert", file, tmp_path / name, *more)
        assert done.code == 0, done.err
        found = read_transform(tmp_path / name, fixed=pair[0], moving=pair[1]).map_points(points)
        np.testing.assert_allclose(found, transform.map_points(points), atol=1e-3)


def test_convert_composes_and_inverts(verimorph, transform, tmp_path, random):
    field, shift = transform.parts
    first, second = write_transform(field, tmp_path / "a.nii.gz"), write_transform(shift, tmp_path / "b.tfm")
    points = field.grid.index_to_world(random.uniform(4, 14, (50, 3)))
    assert verimorph("convert", "-t", first, "-t", second, tmp_path / "both.h5").code == 0
    np.testing.assert_allclose(
        read_transform(tmp_path / "both.h5").map_points(points), transform.map_points(points), atol=1e-3
    )
    assert verimorph("convert", tmp_path / "both.h5", tmp_path / "back.h5", "--inverse").code == 0
    back = read_transform(tmp_path / "back.h5")
    np.testing.assert_allclose(back.map_points(transform.map_points(points)), points, atol=0.05)
    assert [part.kind for part in back.parts] == ["translation", "displacement"]


def test_convert_names_mistakes(verimorph, file, tmp_path):
    verimorph("convert", file).assert_user_error("IN and OUT")
    verimorph("convert", file, tmp_path / "t.h6").assert_user_error("suffix")
    verimorph("convert", file, tmp_path / "t.mat").assert_user_error("linear transforms only")
    verimorph("convert", file, tmp_path / "t.lta", "--to", "freesurfr").assert_user_error("did you mean 'freesurfer'")
    assert not list(tmp_path.glob("t.*"))


def test_explain_tells_what_is_true(verimorph, file, transform):
    facts = json.loads(verimorph("explain", file, "--json").out)
    assert facts["kind"] == "composite"
    assert [part["kind"] for part in facts["parts"]] == ["displacement", "translation"]
    grid = transform.parts[0].grid
    assert facts["parts"][0]["grid"]["shape"] == list(grid.shape)
    centres = grid.index_to_world(
        np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    )
    length = np.linalg.norm(transform.map_points(centres) - centres, axis=1)
    assert facts["whole"]["largest_displacement_mm"] == pytest.approx(length.max(), rel=1e-4)
    assert facts["whole"]["mean_displacement_mm"] == pytest.approx(length.mean(), rel=1e-4)
    assert facts["whole"]["folded_voxels"] == 0
    assert facts["form"] == "forward"


def test_explain_speaks_plainly(verimorph, file, tmp_path, transform):
    text = verimorph("explain", file).out
    for words in ("composite", "moving to fixed", "RAS mm", "LPS mm", "acts first", "no folding", "antsApplyTransforms",
                  "sitk.Resample", f"verimorph apply -i MOVING.nii.gz -t {file}"):  # fmt: skip
        assert words in text, words
    inverse = write_transform(transform.inverse(), tmp_path / "inverse.h5")
    assert "the form of an inverse" in " ".join(verimorph("explain", inverse).out.split())
    turn = write_transform(rigid(rotation=[0, 0, np.radians(30)]), tmp_path / "turn.lta")
    words = verimorph("explain", turn).out
    assert "rotation 30.00 degrees about (0.00, 0.00, 1.00)" in words
    assert "moving to fixed" in words


@pytest.mark.parametrize("format", ["itk", "itk-field", "fsl"])
def test_what_is_to_be_copied_bears_any_file_name(format):
    name = 'my scan\'s "best"; x/transform.h5'
    ways = dict(how_to_apply(name, format, linear=False))
    for way in ways.keys() & {"verimorph", "labels", "points", "back", "ANTs", "other tools"}:
        assert name in shlex.split(ways[way], comments=True), way
    if "SimpleITK" in ways:
        named = [node.value for node in ast.walk(ast.parse(ways["SimpleITK"])) if isinstance(node, ast.Constant)]
        assert name in named


def test_explain_says_when_a_field_folds(verimorph, transform, tmp_path):
    field = transform.parts[0]
    folded = write_transform(DisplacementField(field.grid, field.displacement * 30), tmp_path / "f.nii.gz")
    assert "FOLDS at" in verimorph("explain", folded).out
    out = tmp_path / "inverse.h5"
    verimorph("convert", folded, out, "--inverse").assert_user_error("folds", "cannot be inverted")
    assert not out.exists()
