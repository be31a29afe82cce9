"""elastix parameter files, written out here as elastix writes them, against the SimpleITK transforms they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError, VerimorphWarning
from verimorph.io import read_transform, write_transform
from verimorph.io.transforms.elastix import parse

both_sizes = pytest.mark.parametrize("ndim", [2, 3])


def parameter_file(path, kind, transform: sitk.Transform, centre=None, initial="NoInitialTransform", **more) -> None:
    entries = {
        "Transform": kind,
        "NumberOfParameters": transform.GetNumberOfParameters(),
        "TransformParameters": transform.GetParameters(),
        "InitialTransformParameterFileName": initial,
        "HowToCombineTransforms": "Compose",
        "FixedImageDimension": transform.GetDimension(),
        "MovingImageDimension": transform.GetDimension(),
        **({} if centre is None else {"CenterOfRotationPoint": centre}),
        **more,
    }

    def text(value):
        if isinstance(value, str):
            return f'"{value}"'
        return " ".join(f"{v!r}" for v in np.atleast_1d(value).tolist())

    lines = [f"({key} {text(value)})" for key, value in entries.items()]
    path.write_text('// a comment (Transform "Nothing")\n\n' + "\n".join(lines) + "\n")


def centred(ndim: int, kind: str) -> sitk.Transform:
    centre, shift = [5.0, -7.0, 11.0][:ndim], [1.0, 2.0, -3.0][:ndim]
    versor = [0.1, -0.2, 0.05, 0.97339]
    if kind == "EulerTransform":
        made = (
            sitk.Euler2DTransform(centre, 0.4, shift)
            if ndim == 2
            else sitk.Euler3DTransform(centre, 0.1, 0.2, 0.3, shift)
        )
    elif kind == "SimilarityTransform":
        made = (
            sitk.Similarity2DTransform(0.9, 0.4, shift, centre)
            if ndim == 2
            else sitk.Similarity3DTransform(1.2, versor, shift, centre)
        )
    else:
        made = sitk.AffineTransform(ndim)
        made.SetCenter(centre)
        made.SetTranslation(shift)
        made.Shear(0, 1, 0.2)
    return made


@both_sizes
@pytest.mark.parametrize("kind", ["EulerTransform", "SimilarityTransform", "AffineTransform"])
def test_linear_kinds(ndim, kind, points, by_simpleitk, tmp_path):
    oracle = centred(ndim, kind)
    parameter_file(tmp_path / "T.0.txt", kind, oracle, oracle.GetCenter())
    found = read_transform(tmp_path / "T.0.txt")
    np.testing.assert_allclose(found.map_points(points), by_simpleitk(oracle, points), atol=1e-6)


def test_euler_angles_in_the_other_order(points, by_simpleitk, tmp_path):
    oracle = centred(3, "EulerTransform")
    oracle.SetComputeZYX(True)
    parameter_file(tmp_path / "T.txt", "EulerTransform", oracle, oracle.GetCenter(), ComputeZYX="true")
    found = read_transform(tmp_path / "T.txt").map_points(points)
    np.testing.assert_allclose(found, by_simpleitk(oracle, points), atol=1e-6)
    oracle.SetComputeZYX(False)
    assert np.abs(found - by_simpleitk(oracle, points)).max() > 0.1


def spline_oracle(spline) -> tuple[sitk.Transform, dict]:
    d, grid = spline.ndim, spline.grid
    flip = np.diag([-1.0, -1, 1][:d])
    oracle = sitk.BSplineTransform(d, 3)
    direction = flip @ grid.direction
    oracle.SetFixedParameters([*map(float, grid.shape), *(flip @ grid.origin), *grid.spacing, *direction.ravel()])
    oracle.SetParameters(
        np.concatenate([(flip[k, k] * spline.coefficients[0, k].numpy()).ravel(order="F") for k in range(d)]).tolist()
    )
    entries = {
        "GridSize": grid.shape,
        "GridIndex": [0] * d,
        "GridSpacing": grid.spacing,
        "GridOrigin": flip @ grid.origin,
        "GridDirection": direction.T.ravel(),  # elastix writes direction cosines column by column
        "BSplineTransformSplineOrder": 3,
        "UseCyclicTransform": "false",
    }
    return oracle, entries


@both_sizes
def test_spline_on_an_oblique_lattice(spline, points, by_simpleitk, tmp_path):
    oracle, entries = spline_oracle(spline)
    parameter_file(tmp_path / "T.txt", "BSplineTransform", oracle, **entries)
    found = read_transform(tmp_path / "T.txt").map_points(points)
    assert np.abs(found - points).max() > 0.3
    np.testing.assert_allclose(found, by_simpleitk(oracle, points), atol=1e-4)


def test_initial_transform_acts_first_and_is_found_beside(spline, points, by_simpleitk, tmp_path):
    affine = centred(3, "AffineTransform")
    oracle, entries = spline_oracle(spline)
    parameter_file(tmp_path / "T.0.txt", "AffineTransform", affine, affine.GetCenter())
    parameter_file(tmp_path / "T.1.txt", "BSplineTransform", oracle, initial="/elsewhere/out/T.0.txt", **entries)
    found = read_transform(tmp_path / "T.1.txt").map_points(points)
    np.testing.assert_allclose(found, by_simpleitk(oracle, by_simpleitk(affine, points)), atol=1e-4)
    assert np.abs(found - by_simpleitk(affine, by_simpleitk(oracle, points))).max() > 0.1


@both_sizes
def test_affine_round_trip_and_known_entries(linear, points, fixed, tmp_path):
    path = write_transform(linear, tmp_path / "T.txt", format="elastix", fixed=fixed)
    np.testing.assert_allclose(read_transform(path).map_points(points), linear.map_points(points), atol=1e-9)
    entries = parse(path.read_text())
    assert entries["Transform"] == ["AffineTransform"]
    assert entries["Size"] == [str(n) for n in fixed.shape]


@both_sizes
def test_spline_round_trip(spline, points, tmp_path):
    path = write_transform(spline, tmp_path / "T.txt", format="elastix")
    np.testing.assert_allclose(read_transform(path).map_points(points), spline.map_points(points), atol=1e-9)


def test_field_is_written_beside_and_read_back(result, fixed, random, tmp_path):
    path = write_transform(result, tmp_path / "T.txt", format="elastix")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["T.field.mha", "T.txt"]
    centres = fixed.index_to_world(random.integers(0, fixed.shape, (100, 3)))
    np.testing.assert_allclose(read_transform(path).map_points(centres), result.map_points(centres), atol=1e-3)
    path.write_text(path.read_text().replace("InterpolationOrder 1", "InterpolationOrder 0"))
    with pytest.warns(VerimorphWarning, match="linearly"):
        read_transform(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("AffineTransform", "SplineKernelTransform", "not supported"),
        ("(CenterOfRotationPoint", "(Nothing", "CenterOfRotationPoint"),
        ('"Compose"', '"Add"', "Compose"),
        ("(TransformParameters ", "(TransformParameters 1.0 ", "13 parameters"),
        ("(TransformParameters ", "(TransformParameters x", "numbers"),
        ("NoInitialTransform", "missing.txt", "missing.txt"),
        ("NoInitialTransform", "T.txt", "circle"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, before, after, message):
    affine = centred(3, "AffineTransform")
    parameter_file(tmp_path / "T.txt", "AffineTransform", affine, affine.GetCenter())
    text = (tmp_path / "T.txt").read_text()
    if message == "Compose":
        parameter_file(tmp_path / "T.0.txt", "AffineTransform", affine, affine.GetCenter())
        text = text.replace("NoInitialTransform", "T.0.txt")
    (tmp_path / "T.txt").write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message):
        read_transform(tmp_path / "T.txt", format="elastix")
