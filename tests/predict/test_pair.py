"""A prediction is a registration like any other: the same files, the same numbers, and the solver goes on from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import OptionError
from verimorph.io import Points, read_transform, write_image
from verimorph.predict.pair import predict_pair
from verimorph.predict.refine import refinement_recipe
from verimorph.predict.registrar import Registrar


@pytest.fixture
def registrar(tiny, preparation):
    return Registrar(tiny(flow=True, size=0.6), preparation())


def labels_of(image):
    return image.with_array((image.array > 40).astype(np.uint8) + (image.array > 70), name="labels")


def test_files_are_those_of_a_registration(registrar, oblique_pair, tmp_path):
    fixed, moving = oblique_pair()
    points = Points(fixed.grid.index_to_world(np.array([[8.0, 8, 6], [12, 9, 5]])))
    others = Points(points.coordinates + moving.grid.centre - fixed.grid.centre)
    result = predict_pair(
        registrar,
        fixed=fixed,
        moving=moving,
        fixed_labels=labels_of(fixed),
        moving_labels=labels_of(moving),
        fixed_landmarks=points,
        moving_landmarks=others,
    )
    result.save(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("moved.nii.gz", "transform.h5", "inverse.h5", "jacobian.nii.gz", "moved_labels.nii.gz"),
        *("moved_landmarks.csv", "metrics.json", "provenance.json", "report.html"),
    }
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 < metrics["labels"]["mean"]["dice"] <= 1
    assert metrics["inverse_residual_voxels"]["mean"] < 0.05
    write_image(moving, tmp_path / "moving.nii.gz")
    theirs = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "moving.nii.gz")),
        sitk.ReadImage(str(tmp_path / "out" / "moved.nii.gz")),
        sitk.ReadTransform(str(tmp_path / "out" / "transform.h5")),
    )
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "moved.nii.gz")))
    assert np.percentile(np.abs(sitk.GetArrayFromImage(theirs) - ours), 99) < 0.05
    there, back = (read_transform(tmp_path / "out" / name) for name in ("transform.h5", "inverse.h5"))
    inner = points.coordinates
    assert np.abs(back.map_points(there.map_points(inner)) - inner).max() < 0.2


def test_refinement_lowers_the_objective_and_starts_from_the_prediction(registrar, oblique_pair):
    fixed, moving = oblique_pair()
    plain = predict_pair(registrar, fixed=fixed, moving=moving)
    seen = []
    refined = predict_pair(
        registrar, fixed=fixed, moving=moving, refinement=refinement_recipe(12, levels=(1,)), progress=seen.append
    )
    values = [step.value for step in refined.history]
    assert values[-1] < values[0] - 0.01
    assert seen
    inside = fixed.array > 20

    def difference(result):
        return float(np.abs(result.moved.array - fixed.array)[inside].mean())

    assert difference(refined) < difference(plain)
    # The linear part is the prediction's own, and one iteration changes its field by a step at most.
    np.testing.assert_array_equal(refined.transform.parts[1].matrix, plain.transform.parts[1].matrix)
    once = predict_pair(registrar, fixed=fixed, moving=moving, refinement=refinement_recipe(1, levels=(1,)))
    change = once.transform.parts[0].displacement - plain.transform.parts[0].displacement
    assert 0 < float(change.abs().max()) < 1.2
    assert refined.settings["refinement"]["iterations"] == [12]
    assert refined.inversion.mean_residual < 0.05


def test_refinement_settings():
    recipe = refinement_recipe(10, similarity="mse")
    assert (recipe.levels, recipe.iterations, recipe.stages) == ((2, 1), (5, 10), ("deformable",))
    recipe = refinement_recipe((100, 70, 10))
    assert (recipe.levels, recipe.iterations) == ((4, 2, 1), (100, 70, 10))
    assert refinement_recipe((10,)).iterations == (5, 10)
    for nothing in (0, (0,), (0, 0)):
        with pytest.raises(OptionError, match="--refine is 0"):
            refinement_recipe(nothing)
    with pytest.raises(OptionError, match="differ in number"):
        refinement_recipe((20, 10), levels=(4, 2, 1))
    with pytest.raises(OptionError, match="lncc"):
        refinement_recipe(5, similarity="lnc")
