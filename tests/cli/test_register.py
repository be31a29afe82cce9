"""``verimorph register`` from files to files: what is written, what is printed, and stopping it half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

WRITTEN = {
    "moved.nii.gz",
    "transform.h5",
    "inverse.h5",
    "jacobian.nii.gz",
    "metrics.json",
    "provenance.json",
    "report.html",
}


@pytest.fixture
def align(verimorph, pair, tmp_path):
    """Run ``verimorph register`` on the small pair, quickly, without report unless asked."""

    def invoke(*more: object, report: bool = False):
        words = ["register", "-f", pair[0], "-m", pair[1], "-o", tmp_path / "out", "-q", "fast", "-j", 1]
        return verimorph(*words, *([] if report else ["--no-report"]), *more)

    return invoke


def error_against(moved: Path, fixed: Path) -> float:
    one, other = (np.asanyarray(nib.load(path).dataobj, dtype=float) for path in (moved, fixed))
    return float(np.abs(one - other).mean())


def test_whole_job_writes_everything(align, pair, tmp_path):
    out = tmp_path / "out"
    outcome = align(
        *("--fixed-labels", tmp_path / "fixed_labels.nii.gz", "--moving-labels", tmp_path / "moving_labels.nii.gz"),
        "--both",
        report=True,
    )
    assert outcome.code == 0, outcome.err
    names = {path.name for path in out.iterdir()}
    assert names >= WRITTEN | {"moved_labels.nii.gz"}
    assert not [name for name in names if name.startswith(".")]
    assert error_against(out / "moved.nii.gz", pair[0]) < 0.2 * error_against(pair[1], pair[0])
    labels = nib.load(out / "moved_labels.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert set(np.unique(np.asanyarray(labels.dataobj))) == {0, 1, 3}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["labels"]["mean"]["dice"] > metrics["labels"]["identity"]["mean"]["dice"]
    assert "Dice" in outcome.out
    assert "report.html" in outcome.out
    assert any("fixed" in name and "moving" in name for name in names), f"--both wrote nothing: {names}"


def test_provenance_says_what_was_done(align, pair, tmp_path):
    import hashlib

    assert align("-t", "rigid", "--seed", 3).code == 0
    text = (tmp_path / "out" / "provenance.json").read_text()
    json.loads(text)
    for path in pair:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    for word in ('"seed": 3', "rigid", "torch", "numpy", "timings", "peak_memory"):
        assert word in text


def test_written_transform_resamples_to_the_moved_image(align, pair, tmp_path):
    assert align().code == 0
    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in pair)
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0))
    moved = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "moved.nii.gz")))
    assert np.abs(moved - expected).max() < 0.01 * expected.max()


@pytest.mark.parametrize("transform", ["rigid", "similarity", "affine"])
def test_linear_transforms_undo_a_shift(align, pair, tmp_path, transform):
    assert align("-t", transform).code == 0
    found = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    middle = np.array([-20 + 11 * 1.5, 10 + 12 * 1.5, 5 + 10 * 2.0])
    moved = np.array(found.TransformPoint((middle * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    assert np.allclose(moved - middle, [3.0, 0, 0], atol=0.3)  # the head lies two voxels of 1.5 mm further


@pytest.mark.parametrize("words", [("--strict",), ("--level", 0.9), ("--calibration", "general")])
@pytest.mark.parametrize("command", [("register",), ("predict", "voxelmorph")])
def test_options_of_an_uncertainty_that_is_not_asked_for_are_refused(command, words, pair, tmp_path, verimorph):
    outcome = verimorph(*command, "-f", pair[0], "-m", pair[1], "-o", tmp_path / "out", *words)
    assert outcome.code == 2
    assert f"{words[0]} is about the uncertainty; give --uncertainty too" in outcome.err
    assert not (tmp_path / "out").exists()


def test_starts_from_landmarks_and_from_a_transform_file(align, pair, tmp_path, verimorph):
    frame = "x_ras_mm,y_ras_mm,z_ras_mm"
    corners = np.array([[-5.0, 20, 15], [5, 25, 15], [-5, 30, 20], [0, 22, 30]])
    for name, points in (("fixed", corners), ("moving", corners + [3.0, 0, 0])):
        lines = [frame, *(",".join(map(str, point)) for point in points)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    words = ["--fixed-landmarks", tmp_path / "fixed.csv", "--moving-landmarks", tmp_path / "moving.csv"]
    outcome = align("-t", "rigid", "--initial", "landmarks", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["landmarks"]["tre_mm"]
    assert metrics["identity"]["mean"] == pytest.approx(3.0, abs=1e-6)
    assert metrics["initial"]["mean"] == pytest.approx(0.0, abs=1e-6)

    first = tmp_path / "out" / "transform.h5"
    again = ["register", "-f", pair[0], "-m", pair[1], "-o", tmp_path / "again", "-q", "fast", "--no-report", "-j", 1]
    assert verimorph(*again, "--stages", "deformable", "--initial", first, *words).code == 0
    provenance = json.loads((tmp_path / "again" / "provenance.json").read_text())
    assert provenance["settings"]["started_from"] == "file"
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())["landmarks"]["tre_mm"]
    assert metrics["initial"]["mean"] < 0.5


def test_masks_decide_where_images_are_compared(align, pair, tmp_path):
    # A bright lesion in one image only; with it masked out the head is aligned as if it were not there.
    image = nib.load(pair[0])
    voxels = np.array(image.dataobj)
    voxels[4:10, 8:16, 6:14] = 3000
    nib.save(nib.Nifti1Image(voxels, image.affine), pair[0])
    mask = np.ones(voxels.shape, np.uint8)
    mask[3:11, 7:17, 5:15] = 0
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    assert align("-t", "rigid", "--fixed-mask", tmp_path / "mask.nii.gz", "--similarity", "mse").code == 0
    found = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    middle = np.array([-3.5, 28.0, 25.0])
    moved = np.array(found.TransformPoint((middle * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    assert np.allclose(moved - middle, [3.0, 0, 0], atol=0.3)


def test_ants_names(align, tmp_path):
    assert align("--output-style", "ants").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    for ending in ("0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz"):
        assert any(name.endswith(ending) for name in names), f"no {ending} in {names}"


def test_no_result_takes_the_place_of_an_input(verimorph, pair, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    own = folder / "moved.nii.gz"
    own.write_bytes(pair[1].read_bytes())
    done = verimorph("register", "-f", pair[0], "-m", own, "-o", folder)
    assert done.code == 2
    assert "is an input" in done.err
    assert own.read_bytes() == pair[1].read_bytes()
    assert [file.name for file in folder.iterdir()] == ["moved.nii.gz"]


def test_frozen_axis_stays(align, tmp_path):
    assert align("--restrict", "1x1x0", "--stages", "deformable", "--initial", "identity").code == 0
    found = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    for point in ([2.0, -25.0, 20.0], [5.0, -30.0, 30.0]):
        assert abs(found.TransformPoint(point)[2] - point[2]) < 1e-3


def test_dry_run_says_much_and_writes_nothing(align, tmp_path):
    outcome = align("--dry-run")
    assert outcome.code == 0
    for word in ("affine", "deformable", "memory", "GB", "s"):
        assert word in outcome.out
    assert not (tmp_path / "out").exists()


def test_quiet_where_nobody_looks(align):
    outcome = align("-t", "rigid")
    assert outcome.err == ""


def test_verbose_prints_iterations(align):
    outcome = align("-t", "rigid", "-v")
    assert "iteration" in outcome.err
    assert "settings" in outcome.out


def test_images_far_apart_are_a_warning_and_still_aligned(align, pair, tmp_path):
    image = nib.load(pair[1])
    affine = image.affine.copy()
    affine[:3, 3] += 300
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), pair[1])
    outcome = align("-t", "rigid")
    assert outcome.code == 0, outcome.err
    assert "warning: " in outcome.err
    assert "overlap" in outcome.err
    assert error_against(tmp_path / "out" / "moved.nii.gz", pair[0]) < 10


def test_two_dimensions(verimorph, pair, tmp_path):
    files = []
    for path in pair:
        voxels = np.asanyarray(nib.load(path).dataobj)[:, :, 10]
        files.append(tmp_path / f"{path.name.split('.')[0]}.png")
        sitk.WriteImage(sitk.GetImageFromArray((voxels.T / 5).astype(np.uint8)), str(files[-1]))
    outcome = verimorph("register", "-f", files[0], "-m", files[1], "-o", tmp_path / "out", "-q", "fast", "--no-report")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "transform.h5").exists()


def test_chosen_volume_of_a_series(verimorph, pair, tmp_path):
    image = nib.load(pair[0])
    voxels = np.asanyarray(image.dataobj)
    series = np.stack([np.zeros_like(voxels), voxels], -1)
    nib.save(nib.Nifti1Image(series, image.affine), tmp_path / "series.nii.gz")
    words = ["-f", tmp_path / "series.nii.gz", "-m", pair[1], "-o", tmp_path / "out", "-t", "rigid", "--no-report"]
    assert verimorph("register", *words, "--fixed-volume", 1).code == 0
    assert error_against(tmp_path / "out" / "moved.nii.gz", pair[0]) < 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_leaves_nothing_behind(pair, tmp_path, number, code):
    out = tmp_path / "out"
    words = ["register", "-f", pair[0], "-m", pair[1], "-o", out, "-v", "-j", 1, "--iterations", "100000x100000x100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "verimorph", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:  # wait until it works
        if "iteration" in line:
            break
    started = time.monotonic()
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - started < 10
    assert "Traceback" not in errors
    assert not out.exists()
    with pytest.raises(ProcessLookupError):  # nobody is left in its process group
        os.killpg(process.pid, 0)
