"""The public function: every kind of input, starts that carry over, the same bits in two processes."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from tests.solve.phantom import body, centred_grid, world_points

import verimorph
from verimorph import pipeline, registration
from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import write_transform
from verimorph.io.itk import to_simpleitk
from verimorph.transform import Affine, Composite, DisplacementField

ROLES = ("mask", "labels", "landmarks")
NOTHING_MORE = {f"{side}_{role}": None for side in ("fixed", "moving") for role in ROLES}


def shifted_pair(shift_mm=(4.0, -3.0, 2.0)) -> tuple[Image, Image]:
    """``moving(x + shift) = fixed(x)``, a little bent, on different oblique grids."""
    intensity = body(3)
    fixed = centred_grid((30, 32, 28), 3.5)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    moving = Grid((33, 30, 27), turned @ centred_grid((33, 30, 27), 3.6).affine @ np.diag([1, 1, 1.1, 1]))
    points = world_points(moving) - np.array(shift_mm)
    bent = points + 2.0 * np.sin(points[..., [1, 2, 0]] / 25)
    one = (1000 * intensity(world_points(fixed))).astype(np.int16)
    other = (1000 * intensity(bent)).astype(np.int16)
    return Image.from_array(one, fixed, name="fixed"), Image.from_array(other, moving, name="moving")


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    return shifted_pair()


@pytest.fixture(scope="module")
def result(pair):
    fixed, moving = pair
    return verimorph.register(fixed=fixed, moving=moving, quality="fast")


def test_every_kind_of_input_gives_the_same_result(pair, result):
    fixed, _ = pair
    corners = fixed.grid.corners()
    kinds = {
        "nibabel": [nib.Nifti1Image(image.array, image.grid.affine) for image in pair],
        "SimpleITK": [to_simpleitk(image) for image in pair],
        "array and affine": [(image.array, image.grid.affine) for image in pair],
    }
    for name, (one, other) in kinds.items():
        again = verimorph.register(fixed=one, moving=other, quality="fast")
        difference = again.transform.map_points(corners) - result.transform.map_points(corners)
        assert np.abs(difference).max() < 1e-3, name
        np.testing.assert_allclose(again.moved.array, result.moved.array, atol=2)


def test_moved_keeps_its_type_and_lies_on_the_fixed_grid(pair, result):
    assert result.moved.array.dtype == np.int16
    assert result.moved.grid.is_close(pair[0].grid)


def test_saved_transform_in_simpleitk_gives_the_moved_image(pair, result, tmp_path):
    result.save(tmp_path, report=False)
    fixed, moving = (to_simpleitk(image) for image in pair)
    forward = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    again = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, forward, sitk.sitkLinear, 0.0)).T
    assert np.abs(again.astype(int) - result.moved.array).max() <= 1
    back = sitk.ReadTransform(str(tmp_path / "inverse.h5"))
    points = pair[0].grid.index_to_world(np.array([[12.0, 14, 13], [18, 15, 12], [15, 20, 16]]))
    lps = np.array([-1, -1, 1])
    for point in points:
        there = np.array(forward.TransformPoint((point * lps).tolist()))
        assert np.linalg.norm(np.array(back.TransformPoint(there.tolist())) * lps - point) < 0.2


def test_metrics_and_provenance_are_plain_json(result):
    for values in (result.metrics, result.provenance, result.settings):
        assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert result.metrics["calibrated"] is False


def test_result_is_field_then_matrix_and_does_not_fold(result):
    field, matrix = result.transform.parts
    assert isinstance(field, DisplacementField)
    assert isinstance(matrix, Affine)
    assert result.jacobian.array.min() > 0


def test_a_result_as_start_goes_on_where_it_stopped(pair, result, tmp_path):
    result.save(tmp_path, report=False)
    fixed, moving = pair
    kept = verimorph.register(
        fixed=fixed, moving=moving, initial=tmp_path / "transform.h5", levels=(1,), iterations=(0,)
    )
    corners = fixed.grid.index_to_world(np.array([[10.0, 10, 10], [20, 12, 15], [15, 20, 20]]))
    np.testing.assert_allclose(kept.transform.map_points(corners), result.transform.map_points(corners), atol=0.02)
    assert [step.stage for step in kept.history] == []


def test_initial_accepts_transforms_and_matrices(pair):
    fixed, moving = pair
    shift = np.eye(4)
    shift[:3, 3] = [4, -3, 2]
    for start in (shift, Affine(shift), Composite([Affine(shift)])):
        found = verimorph.register(fixed=fixed, moving=moving, initial=start, transform="rigid", quality="fast")
        np.testing.assert_allclose(found.initial.map_points(np.zeros((1, 3))), [[4, -3, 2]], atol=1e-6)


def test_progress_rises_to_the_end_and_names_stages(pair):
    fixed, moving = pair
    events = []
    verimorph.register(fixed=fixed, moving=moving, quality="fast", progress=events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert 0.9 < fractions[-1] < 1
    assert list(dict.fromkeys(event.stage for event in events)) == ["start", "rigid", "affine", "deformable"]


def test_stages_contradicting_the_transform_are_refused(pair):
    fixed, moving = pair
    with pytest.raises(OptionError, match="deformable"):
        verimorph.register(fixed=fixed, moving=moving, transform="rigid", stages=("deformable",))
    with pytest.raises(OptionError, match="did you mean 'balanced'"):
        verimorph.register(fixed=fixed, moving=moving, quality="balance")


@pytest.mark.parametrize("stages", [("affine", "rigid"), ("rigid", "rigid"), ("deformable", "rigid", "affine")])
def test_stages_out_of_order_or_twice_are_refused(stages):
    """They would run in the fixed order, which is not what was asked for."""
    with pytest.raises(OptionError, match=r"cannot be run in that order.*rigid"):
        pipeline.make_recipe(stages=stages)


def holed(image: Image) -> Image:
    """The image with one voxel in fifty NaN and one infinite, in floating point."""
    voxels = image.array.astype(np.float32)
    voxels.flat[::50] = np.nan
    voxels.flat[7] = -np.inf
    return image.with_array(voxels)


def test_nan_value_takes_the_place_of_nan(pair, result):
    fixed, moving = pair
    filled = holed(moving)
    with pytest.raises(InputError, match="--nan-value NUMBER"):
        verimorph.register(fixed=fixed, moving=filled, quality="fast")
    with pytest.warns(VerimorphWarning, match=r"moving image moving: 536 of 26730 voxels .* replaced by 3"):
        found = verimorph.register(fixed=fixed, moving=filled, quality="fast", nan_value=3)
    expected = np.where(np.isfinite(filled.array), filled.array, 3)
    np.testing.assert_array_equal(found.moving.array, expected)
    assert found.moved.array.dtype == np.float32
    assert np.isfinite(found.moved.array).all()
    assert found.settings["nan_value"] == 3
    known = verimorph.register(fixed=fixed, moving=moving.with_array(expected), quality="fast")
    assert np.array_equal(found.moved.array, known.moved.array)


def test_nan_value_leaves_whole_images_alone_and_must_be_a_number(pair):
    fixed, moving = pair
    given = registration.Inputs.read(fixed=fixed, moving=moving, nan_value=0.0, **NOTHING_MORE)
    assert given.fixed is fixed
    assert given.moving is moving
    with pytest.raises(OptionError, match="nan_value is nan"):
        registration.Inputs.read(fixed=fixed, moving=moving, nan_value=float("nan"), **NOTHING_MORE)


def test_only_the_deformable_stage(pair):
    fixed, moving = pair
    found = verimorph.register(fixed=fixed, moving=moving, stages=("deformable",), initial="header", quality="fast")
    np.testing.assert_array_equal(found.transform.parts[-1].matrix, np.eye(4))


_CHILD = """
import hashlib, sys
from tests.test_registration import shifted_pair
import verimorph
fixed, moving = shifted_pair()
found = verimorph.register(fixed=fixed, moving=moving, quality="fast", threads=2)
print(hashlib.sha256(found.transform.parts[0].displacement.numpy().tobytes()).hexdigest())
"""


def test_two_processes_give_the_same_bits():
    digests = {
        subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert len(digests) == 1
    assert len(digests.pop()) == len(hashlib.sha256().hexdigest())


def test_plan_names_the_same_work(pair):
    fixed, moving = pair
    plan = registration.plan(fixed=fixed, moving=moving, quality="fast")
    assert [step.level for step in plan.steps if step.stage == "deformable"] == [4, 2]
    assert plan.memory_bytes > 0


@pytest.mark.parametrize("similarity", ["lncc", "mse", "mi"])
def test_masks_that_hardly_meet_do_not_drive_the_images_apart(similarity: str) -> None:
    """Both masks, and a header that is off by most of an organ: sharing nothing must not count as alike."""
    from scipy import ndimage

    random = np.random.default_rng(5)
    shape = (40, 36, 44)
    texture = ndimage.gaussian_filter(random.standard_normal(shape), 3.0).astype(np.float32)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    organ = np.sqrt(((index - np.array([20, 18, 22]).reshape(3, 1, 1, 1)) ** 2).sum(0)) < 11
    values = np.where(organ, 1 + texture / np.abs(texture).max(), 0.2).astype(np.float32)
    shifted = np.diag([2.0, 2.0, 2.0, 1.0])
    shifted[2, 3] = 34.0
    grids = [Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])), Grid(shape, shifted)]
    images = [Image.from_array(values, grid) for grid in grids]
    masks = [Image.from_array(ndimage.binary_dilation(organ, iterations=1).astype(np.uint8), grid) for grid in grids]
    found = verimorph.register(
        fixed=images[0],
        moving=images[1],
        fixed_mask=masks[0],
        moving_mask=masks[1],
        transform="affine",
        similarity=similarity,
    )
    points = grids[0].index_to_world(np.argwhere(organ)[::50])
    truth = points + np.array([0.0, 0.0, 34.0])
    assert np.linalg.norm(found.transform.map_points(points) - truth, axis=1).mean() < 0.5


def test_nothing_of_an_earlier_registration_is_left(pair, result, tmp_path):
    result.save(tmp_path, both=True, report=False)
    (tmp_path / "notes.txt").write_text("mine")
    for stale in ("error_mm.nii.gz", "label_uncertainty.nii.gz", "report.html"):
        (tmp_path / stale).write_bytes(b"of the run before")
    result.save(tmp_path, report=False)
    left = {file.name for file in tmp_path.iterdir()}
    assert "notes.txt" in left
    assert not left & {*("error_mm.nii.gz", "label_uncertainty.nii.gz", "report.html", "fixed_in_moving_space.nii.gz")}
    assert {"moved.nii.gz", "transform.h5", "metrics.json"} <= left


def test_the_warps_of_a_deformable_result_do_not_stay_beside_a_linear_one(result, tmp_path):
    """ANTs would apply them: it takes what has the names, and they are of another registration."""
    result.save(tmp_path, style="ants", report=False)
    assert (tmp_path / "ants_1Warp.nii.gz").is_file()
    linear = replace(result, transform=result.transform.parts[1], inverse=result.inverse.parts[0], inversion=None)
    linear.save(tmp_path, style="ants", report=False)
    left = {file.name for file in tmp_path.glob("ants_*")}
    assert left == {"ants_0GenericAffine.mat", "ants_Warped.nii.gz"}


def test_no_result_removes_the_file_it_started_from(pair, result, tmp_path):
    result.save(tmp_path, style="ants", report=False)
    affine, field = tmp_path / "ants_0GenericAffine.mat", tmp_path / "field.nii.gz"
    write_transform(result.transform, field, format="itk-field", grid=pair[0].grid)  # as a prediction does
    fixed, moving = pair
    again = verimorph.register(fixed=fixed, moving=moving, initial=affine, transform="rigid", quality="fast")
    for start, one in ((affine, again), (field, replace(again, initial_file=field))):
        with pytest.raises(InputError, match=f"{start.name}: is an input"):
            one.save(tmp_path)
        assert start.is_file()


def test_what_could_not_be_measured_is_null(result, tmp_path):
    one = replace(result, settings=result.settings | {"share": math.inf})
    one.__dict__["metrics"] = {"bound": {"median_mm": math.nan}}
    one.save(tmp_path, report=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"bound": {"median_mm": None}}
    assert json.loads((tmp_path / "provenance.json").read_text())["settings"]["share"] is None


def test_files_of_others_are_not_taken_for_an_earlier_result(result, tmp_path):
    for name in ("report.html", "ants_0GenericAffine.mat", "error_mm.nii.gz"):
        (tmp_path / name).write_text("mine")
    result.save(tmp_path, report=False)
    assert {name for name in os.listdir(tmp_path) if (tmp_path / name).read_bytes() == b"mine"} == {
        *("report.html", "ants_0GenericAffine.mat", "error_mm.nii.gz")
    }
