"""``verimorph evaluate``: what it prints and writes, and one line for each mistake."""

from __future__ import annotations

import csv
import importlib
import json

import nibabel as nib
import numpy as np
import pytest

from verimorph.cli.runtime import available_threads
from verimorph.io import write_transform
from verimorph.transform import Affine

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])


def save(path, voxels, affine=AFFINE):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def cube(shift=0, size=6):
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[5 + shift : 5 + shift + size, 5:11, 5:11] = 1
    voxels[5 + shift : 7 + shift, 14:16, 14:16] = 2
    return voxels


def translation(x):
    matrix = np.eye(4)
    matrix[0, 3] = x
    return Affine(matrix)


@pytest.fixture
def labels(tmp_path):
    return save(tmp_path / "fixed.nii.gz", cube()), save(tmp_path / "moving.nii.gz", cube(2))


@pytest.fixture
def cohort(tmp_path):
    """Three pairs, the moving labels two voxels (4 mm) along axis 0; a method that is right and one that is not."""
    rows = []
    for n in range(3):
        save(tmp_path / f"f{n}.nii.gz", cube(0, 6 + n))
        save(tmp_path / f"m{n}.nii.gz", cube(2, 6 + n))
        rows.append({"case": f"p{n}", "fixed_labels": f"f{n}.nii.gz", "moving_labels": f"m{n}.nii.gz"})
    with (tmp_path / "pairs.csv").open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for method, shift in (("right", 4.0), ("left", -4.0)):
        (tmp_path / method).mkdir()
        for n in range(3):
            write_transform(translation(shift), tmp_path / method / f"p{n}.tfm")
    return tmp_path


def test_two_label_maps_are_scored_in_millimetres(verimorph, labels):
    outcome = verimorph("evaluate", "-f", labels[0], "-m", labels[1], "--json", "-")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["labels"]["per_label"]["1"]["dice"] == pytest.approx(2 / 3)
    assert found["labels"]["per_label"]["2"]["dice"] == 0.0
    assert found["labels"]["per_label"]["1"]["hd100_mm"] == pytest.approx(4.0)
    assert "nan" not in outcome.out.lower()


def test_table_names_measures_units_and_labels(verimorph, labels):
    outcome = verimorph("evaluate", "-f", labels[0], "-m", labels[1], "--per-label")
    assert outcome.code == 0, outcome.err
    for words in ("Labels, 2 in both images", "Hausdorff distance, 95 % (mm)", "Per label", "Surface Dice within 1 mm"):
        assert words in outcome.out


def test_transform_moves_labels_and_landmarks_and_is_itself_measured(verimorph, labels, tmp_path):
    transform = write_transform(translation(4.0), tmp_path / "t.tfm")
    inverse = write_transform(translation(-4.0), tmp_path / "i.tfm")
    (tmp_path / "points.csv").write_text(
        "name,fixed_x_ras_mm,fixed_y_ras_mm,fixed_z_ras_mm,moving_x_ras_mm,moving_y_ras_mm,moving_z_ras_mm\n"
        "a,10,8,8,14,8,8\nb,12,8,8,16,8,9\n"
    )
    outcome = verimorph(
        *("evaluate", "-f", labels[0], "--moving-labels", labels[1], "-t", transform, "--inverse", inverse),
        *("--fixed-landmarks", tmp_path / "points.csv", "--moving-landmarks", tmp_path / "points.csv"),
        *("--json", tmp_path / "out.json"),
    )
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["labels"]["mean"]["dice"] == 1.0
    assert found["labels"]["mean"]["assd_mm"] == 0.0
    assert found["landmarks"]["tre_mm"]["registered"]["mean"] == pytest.approx(0.5)
    assert found["landmarks"]["tre_mm"]["identity"]["max"] == pytest.approx(np.hypot(4, 1))
    assert found["jacobian"]["folding_percent"] == 0
    assert found["non_diffeomorphic"]["voxels"] == 0
    assert found["inverse_consistency_mm"]["forward"]["max"] == pytest.approx(0, abs=1e-6)
    assert found["inverse_consistency_mm"]["forward"]["excluded_fraction"] == pytest.approx(0.1)
    for words in ("Inverse consistency (mm)", "non-diffeomorphic volume", "Landmark error, 2 landmarks (mm)"):
        assert words in outcome.out


def test_several_transforms_act_on_a_fixed_point_from_first_to_last(verimorph, labels, tmp_path):
    stretch = write_transform(Affine(np.diag([2.0, 1.0, 1.0, 1.0])), tmp_path / "stretch.tfm")
    shift = write_transform(translation(3.0), tmp_path / "shift.tfm")
    (tmp_path / "a.csv").write_text("x_ras_mm,y_ras_mm,z_ras_mm\n10,0,0\n")
    (tmp_path / "b.csv").write_text("x_ras_mm,y_ras_mm,z_ras_mm\n23,0,0\n")
    points = ("--fixed-landmarks", tmp_path / "a.csv", "--moving-landmarks", tmp_path / "b.csv", "--json", "-")
    found = json.loads(verimorph("evaluate", "-t", stretch, "-t", shift, *points).out)
    assert found["landmarks"]["tre_mm"]["registered"]["mean"] == pytest.approx(0, abs=1e-9)
    other = json.loads(verimorph("evaluate", "-t", shift, "-t", stretch, *points).out)
    assert other["landmarks"]["tre_mm"]["registered"]["mean"] == pytest.approx(3.0)


def test_label_lost_or_in_one_image_only_is_named(verimorph, tmp_path):
    fixed, moved = cube(), cube()
    fixed[0, 0, 0], moved[0, 0, 0] = 7, 9
    a, b = save(tmp_path / "a.nii.gz", fixed), save(tmp_path / "b.nii.gz", moved)
    outcome = verimorph("evaluate", "-f", a, "-m", b, "--fast")
    assert "only in the fixed image, not scored (1): 7" in outcome.out
    assert "only in the moving image, not scored (1): 9" in outcome.out
    before = save(tmp_path / "c.nii.gz", fixed)
    outcome = verimorph("evaluate", "-f", a, "-m", b, "--moving-labels", before, "--fast")
    assert "lost by the registration (Dice 0, no distance) (1): 7" in outcome.out


def test_two_dimensional_labels(verimorph, tmp_path):
    from PIL import Image

    for name, shift in (("a", 0), ("b", 3)):
        voxels = np.zeros((30, 40), np.uint8)
        voxels[10:20, 10 + shift : 25 + shift] = 1
        Image.fromarray(voxels).save(tmp_path / f"{name}.png")
    outcome = verimorph("evaluate", "-f", tmp_path / "a.png", "-m", tmp_path / "b.png", "--json", "-")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["labels"]["mean"]
    assert found["dice"] == pytest.approx(12 / 15)
    assert found["hd100_mm"] == 3.0


def test_many_pairs_write_tables_json_and_page(verimorph, cohort):
    out = cohort / "scores"
    outcome = verimorph(
        "evaluate", "--pairs", cohort / "pairs.csv", cohort / "right", f"wrong={cohort / 'left'}", "-o", out
    )
    assert outcome.code == 0, outcome.err
    names = {"pairs.csv", "labels.csv", "summary.csv", "comparison.csv", "results.json", "report.html"}
    assert names <= {path.name for path in out.iterdir()}
    with (out / "pairs.csv").open() as opened:
        rows = {(row["method"], row["case"]): row for row in csv.DictReader(opened)}
    assert len(rows) == 9
    assert float(rows["right", "p0"]["dice"]) == 1.0
    assert float(rows["wrong", "p0"]["dice"]) < float(rows["identity", "p0"]["dice"]) < 1.0
    document = json.loads((out / "results.json").read_text())
    assert document["mode"] == "honest"
    assert {row["method"] for row in document["summary"]} == {"identity", "right", "wrong"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "right" in outcome.out


def test_scores_never_take_the_place_of_results_or_inputs(verimorph, cohort):
    pairs = (cohort / "pairs.csv").read_bytes()
    words = ("evaluate", "--pairs", cohort / "pairs.csv", cohort / "right", "--fast", "-o")
    before = {path: path.read_bytes() for path in (cohort / "right").rglob("*") if path.is_file()}
    verimorph(*words, cohort / "right" / "..").assert_user_error("pairs.csv: is an input")
    verimorph(*words, cohort / "left" / ".." / "right").assert_user_error("is a folder of results that is scored")
    assert (cohort / "pairs.csv").read_bytes() == pairs
    assert {path: path.read_bytes() for path in (cohort / "right").rglob("*") if path.is_file()} == before


def test_challenge_mode_has_its_own_measures(verimorph, cohort):
    outcome = verimorph(
        "evaluate", "--pairs", cohort / "pairs.csv", cohort / "right", "--mode", "challenge", "--json", "-"
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    measures = {row["measure"] for row in document["summary"]}
    assert measures == {"sdlogj_plus3", "num_foldings", "dice", "hd95_voxel"}
    identity = [r for r in document["pairs"] if r["method"] == "identity"]
    assert identity[0]["hd95_voxel"] == 2.0  # voxels; 4 mm


def test_missing_extra_and_broken_results_are_named_and_counted(verimorph, cohort):
    (cohort / "left" / "p1.tfm").unlink()
    (cohort / "left" / "p2.tfm").write_text("not a transform")
    (cohort / "left" / "p9.tfm").write_text("no such pair")
    outcome = verimorph("evaluate", "--pairs", cohort / "pairs.csv", cohort / "left", "--fast", "--json", "-")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["problem_counts"] == {"extra file": 1, "missing result": 1, "unusable result": 1}
    named = {(p["kind"], p["case"]) for p in document["problems"]}
    assert {("missing result", "p1"), ("unusable result", "p2"), ("extra file", "")} <= named
    status = {row["case"]: row["status"] for row in document["pairs"] if row["method"] == "left"}
    assert status == {"p0": "ok", "p1": "missing", "p2": "failed"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ("nothing to measure",)),
        (["-f", "{fixed}"], ("-m",)),
        (["-m", "{fixed}"], ("-f",)),
        (["-f", "{fixed}", "--moving-labels", "{fixed}"], ("-t",)),
        (["-f", "{fixed}", "-m", "nowhere.nii.gz"], ("nowhere.nii.gz", "no such file")),
        (["nowhere"], ("no such folder",)),
        (["--fixed-landmarks", "a.csv"], ("--moving-landmarks",)),
        (["-f", "{fixed}", "-m", "{other}"], ("not on the grid",)),
        (["-f", "{fixed}", "-m", "{fixed}", "--mode", "challenge"], ("--pairs",)),
        (["-f", "{fixed}", "-m", "{fixed}", "--mode", "honset"], ("did you mean 'honest'",)),
        (["-f", "{fixed}", "-m", "{fixed}", "--labels", "one"], ("--labels",)),
        (["-f", "{fixed}", "-m", "{fixed}", "--tolerance", "0"], ("--tolerance",)),
        (["--pairs", "nowhere.csv", "x"], ("nowhere.csv",)),
        (["--pairs", "{fixed}", "-f", "{fixed}"], ("table",)),
        (
            ["-f", "{fixed}", "-m", "{fixed}", "--split", "val", "--no-identity"],
            ("--split and --no-identity are of a",),
        ),
        (["-f", "{fixed}", "-m", "{fixed}", "--data", "/no/such"], ("--data is of a list of pairs; give --pairs",)),
        (["--pairs", "{fixed}", "x", "--per-label"], ("--per-label is of one pair", "labels.csv")),
        (["--pairs", "{fixed}", "x", "--mode", "challenge", "--fast"], ("--fast is of --mode honest",)),
        (["-f", "{fixed}", "-m", "{fixed}", "--level", "0.9"], ("--level is about the uncertainty",)),
    ],
)
def test_mistakes_get_one_line(verimorph, tmp_path, words, said):
    fixed, other = save(tmp_path / "fixed.nii.gz", cube()), save(tmp_path / "other.nii.gz", cube()[:-1])
    outcome = verimorph("evaluate", *[word.format(fixed=fixed, other=other) for word in words])
    outcome.assert_user_error(*said)


def test_the_environment_says_how_many_threads_unless_the_command_does(verimorph, labels, monkeypatch):
    more = available_threads() + 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, str(more))
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(more))
    asked = []
    module = importlib.import_module("verimorph.evaluate.score")  # the room has a function of this name
    monkeypatch.setattr(module, "score", lambda **how: asked.append(how["threads"]) or {})
    for words in ([], ["-j", more + 1]):
        verimorph("evaluate", "-f", labels[0], "-m", labels[1], "--json", "-", *words)
    assert asked == [more, more + 1]


def test_folder_without_any_usable_result_is_a_mistake(verimorph, cohort):
    (cohort / "empty").mkdir()
    outcome = verimorph("evaluate", "--pairs", cohort / "pairs.csv", cohort / "empty", "--fast")
    outcome.assert_user_error("not one of the 3 pairs", "p0/transform.h5")
    outcome = verimorph("evaluate", "--pairs", cohort / "pairs.csv", "--data", cohort / "empty", cohort / "right")
    outcome.assert_user_error("--data")


def test_result_folder_of_register_is_understood(verimorph, labels, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_transform(translation(4.0), folder / "transform.h5")
    write_transform(translation(-4.0), folder / "inverse.h5")
    save(folder / "moved_labels.nii.gz", cube())
    save(folder / "jacobian.nii.gz", np.ones((20, 20, 20), np.float32))
    inputs = {"fixed_labels": {"path": str(labels[0])}, "moving_labels": {"path": str(labels[1])}}
    (folder / "provenance.json").write_text(json.dumps({"inputs": inputs}))
    outcome = verimorph("evaluate", folder, "--json", "-")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["labels"]["mean"]["dice"] == 1.0
    assert found["jacobian"]["mean"] == 1.0
    assert found["inverse_consistency_mm"]["backward"]["max"] == pytest.approx(0, abs=1e-6)
    (folder / "provenance.json").unlink()
    without = json.loads(verimorph("evaluate", folder, "--json", "-").out)
    assert "labels" not in without
    assert without["jacobian"]["folding_percent"] == 0
