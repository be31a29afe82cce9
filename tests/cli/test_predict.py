"""``verimorph predict`` and ``verimorph export``: pairs, lists, splits, images, submissions, refusals."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.errors import OptionError
from verimorph.methods import method
from verimorph.methods.card import Card, Label, TrainingData
from verimorph.methods.checkpoint import save_model

SMALL = {"encoder": (4, 4), "decoder": (4, 4), "tail": (4,)}


def save(folder: Path, name: str = "voxelmorph", *, seed: int = 0, **card: object) -> Path:
    """A small model whose last layer is not zero."""
    torch.manual_seed(seed)
    settings = card.pop("settings", SMALL)
    described = Card(
        method=name,
        settings=settings,
        preparation={"shape": [32, 32, 28], "spacing_mm": 1.5, **card.pop("preparation", {})},
        training_data=TrainingData(name="phantoms"),
        **card,
    )
    module = method(name).model(ndim=described.ndim, channels=described.channels, **settings)
    with torch.no_grad():
        list(module.parameters())[-2].normal_(std=0.3)
    save_model(folder, module, described)
    return folder


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


@pytest.fixture
def table(tmp_path, pair):
    """Three lines: two good pairs (one each way), and one whose image is missing."""
    file = tmp_path / "pairs.csv"
    lines = ["case,fixed,moving,fixed_labels,moving_labels,split"]
    lines += ["there,fixed.nii.gz,moving.nii.gz,fixed_labels.nii.gz,moving_labels.nii.gz,validation"]
    lines += ["lost,fixed.nii.gz,gone.nii.gz,,,validation"]
    lines += ["back,moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz,train"]
    file.write_text("\n".join(lines) + "\n")
    return file


def hash_of(model: Path) -> str:
    return json.loads((model / "card.json").read_text())["weights_sha256"][:12]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_one_pair_is_written_as_register_writes_it(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    out = tmp_path / "out"
    outcome = verimorph("predict", model, "-f", fixed, "-m", moving, "-o", out, "--save-grid", "--save-field")
    assert outcome.code == 0, outcome.err
    names = {file.name for file in out.iterdir()}
    assert names == {
        *("moved.nii.gz", "transform.h5", "inverse.h5", "jacobian.nii.gz", "metrics.json", "provenance.json"),
        *("report.html", "grid.nii.gz", "field.nii.gz"),
    }
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["model"]["method"] == "voxelmorph"
    assert provenance["model"]["weights_sha256"] == json.loads((model / "card.json").read_text())["weights_sha256"]
    # ITK reads the moving image where the grid says, by either file.
    reference, image = sitk.ReadImage(str(fixed)), sitk.ReadImage(str(moving))
    moved = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "moved.nii.gz")))
    for file in ("transform.h5", "field.nii.gz"):
        if file == "transform.h5":
            transform = sitk.ReadTransform(str(out / file))
        else:
            vectors = sitk.Cast(sitk.ReadImage(str(out / file)), sitk.sitkVectorFloat64)
            transform = sitk.DisplacementFieldTransform(vectors)
        theirs = sitk.GetArrayFromImage(sitk.Resample(image, reference, transform))
        assert np.percentile(np.abs(theirs - moved), 99) < 1.0  # of 900
    grid = np.asarray(nib.load(out / "grid.nii.gz").dataobj)
    from scipy import ndimage

    read = ndimage.map_coordinates(np.asarray(nib.load(moving).dataobj), np.moveaxis(grid, -1, 0), order=1)
    inner = (slice(3, -3),) * 3
    assert np.percentile(np.abs(read - moved.T)[inner], 99) < 1.0
    assert np.abs(grid - np.moveaxis(np.indices(grid.shape[:-1]), 0, -1)).max() > 0.2


def test_a_list_goes_on_after_a_failure_and_resumes(verimorph, model, table, tmp_path):
    out = tmp_path / "out"
    outcome = verimorph("predict", model, "--pairs", table, "-o", out, "--save-moved")
    assert outcome.code == 2
    assert "failed: lost: " in outcome.err
    assert "1 of 3 pairs failed" in outcome.err
    found = {row["case"]: row for row in rows(out / "pairs.csv")}
    assert [found[name]["status"] for name in ("there", "lost", "back")] == ["ok", "failed", "ok"]
    row = found["there"]
    assert 0 < float(row["dice"]) < 1
    assert 0 < float(row["dice_before"]) < 1
    assert float(row["dice"]) == pytest.approx((float(row["dice_1"]) + float(row["dice_3"])) / 2, abs=0.2)
    assert float(row["seconds"]) > 0
    moved = out / "there" / "moved.nii.gz"
    assert (out / "there" / "moved_labels.nii.gz").exists()
    before = moved.stat().st_mtime_ns
    outcome = verimorph("predict", model, "--pairs", table, "-o", out, "--save-moved")
    assert "2 pairs were there already" in outcome.out
    assert moved.stat().st_mtime_ns == before
    assert rows(out / "pairs.csv")[0] == row
    # Another model's result does not count.
    other = save(tmp_path / "other", seed=1)
    outcome = verimorph("predict", other, "--pairs", table, "-o", out, "--save-moved", "--split", "val")
    assert "there already" not in outcome.out
    assert moved.stat().st_mtime_ns != before
    # A table is of one model: of the pair of the other split the result stays, and its line does not.
    assert "holds results of another model, or made in another way (back)" in outcome.err
    assert (out / "back" / "transform.h5").is_file()
    assert [(row["case"], row["model"]) for row in rows(out / "pairs.csv")] == [("there", hash_of(other)), ("lost", "")]
    words = ("predict", other, "--pairs", table, "-o", out)
    lone = tmp_path / "lone.csv"
    lone.write_text("fixed,moving\nnothing.nii.gz,nothing.nii.gz\n")
    outcome = verimorph("predict", other, "--pairs", lone, "-o", tmp_path / "none")
    assert outcome.err.endswith("error: 1 of 1 pair failed\n")
    assert "Results" not in outcome.out
    assert verimorph(*words, "--split", "train").code == 0
    assert {row["model"] for row in rows(out / "pairs.csv")} == {hash_of(other)}
    # Of the same model line and folder stay, as long as both are there.
    verimorph(*words, "--split", "val")
    assert [row["case"] for row in rows(out / "pairs.csv")] == ["there", "lost", "back"]
    shutil.rmtree(out / "back")
    verimorph(*words, "--split", "val")
    assert [row["case"] for row in rows(out / "pairs.csv")] == ["there", "lost"]


@pytest.mark.parametrize("more", [("--tile", "16x16x16"), ("--seed", 3), ("--start", "centres"), ("--refine", 1)])
def test_what_was_made_in_another_way_is_done_again(verimorph, model, table, tmp_path, more):
    words = ("predict", model, "--pairs", table, "-o", tmp_path / "out", "--train")
    assert verimorph(*words).code == 0
    assert "there already" not in verimorph(*words, *more).out
    assert "there already" in verimorph(*words, *more).out
    provenance = json.loads((tmp_path / "out" / "back" / "provenance.json").read_text())
    assert provenance["seed"] == (3 if "--seed" in more else 0)


def test_a_result_of_other_files_is_set_aside_when_its_pair_fails(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    listing, out = tmp_path / "list.csv", tmp_path / "out"
    listing.write_text(f"case,fixed,moving\none_0001,{fixed.name},{moving.name}\n")
    assert verimorph("predict", model, "--pairs", listing, "-o", out).code == 0
    assert (out / "one_0001" / "transform.h5").is_file()
    # A file that cannot be read just now says nothing against what was made of it.
    moving.rename(tmp_path / "elsewhere")
    assert verimorph("predict", model, "--pairs", listing, "-o", out).code == 2
    assert (out / "one_0001" / "transform.h5").is_file()
    moving.write_bytes(b"damaged")
    assert verimorph("predict", model, "--pairs", listing, "-o", out).code == 2
    assert not (out / "one_0001").exists()
    assert (out / "one_0001.outdated" / "transform.h5").is_file()
    assert [row["status"] for row in rows(out / "pairs.csv")] == ["failed"]


@pytest.fixture
def predicted(verimorph, model, pair, tmp_path):
    """The words of a run, the folder of its one result, and that result's record."""
    listing, out = tmp_path / "list.csv", tmp_path / "out"
    listing.write_text(f"case,fixed,moving\none,{pair[0].name},{pair[1].name}\n")
    words = ("predict", model, "--pairs", listing, "-o", out)
    assert verimorph(*words).code == 0
    return words, out / "one", out / "one" / "provenance.json"


def test_a_result_made_in_another_way_is_set_aside_when_its_pair_fails(verimorph, predicted, pair):
    words, result, _ = predicted
    pair[1].unlink()
    assert verimorph(*words, "--seed", 3).code == 2
    assert not result.exists()
    assert (result.with_name("one.outdated") / "transform.h5").is_file()


def test_want_of_memory_sets_nothing_aside(verimorph, predicted, pair, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    words, result, _ = predicted
    pair[1].write_bytes(pair[0].read_bytes())
    monkeypatch.setattr("verimorph.predict.many.predict_pair", fail)
    assert verimorph(*words, "--seed", 3).code == 2
    assert (result / "transform.h5").is_file()


def test_hashes_of_earlier_versions_say_nothing_against_a_result(verimorph, predicted, pair):
    words, result, record = predicted
    told = json.loads(record.read_text())
    del told["settings"]["tile"]
    told["settings"]["files_sha256"] = dict.fromkeys(told["settings"]["files_sha256"], "0" * 64)
    record.write_text(json.dumps(told))
    pair[1].write_bytes(b"damaged")
    assert verimorph(*words).code == 2
    assert (result / "transform.h5").is_file()


def test_a_model_is_known_by_its_weights(verimorph, predicted, model):
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps(card | {"licence": "MIT", "verimorph": "0.0.1"}))
    assert "there already" in verimorph(*predicted[0]).out


def test_what_register_wrote_stays_when_a_pair_of_its_name_fails(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    listing, out = tmp_path / "list.csv", tmp_path / "out"
    listing.write_text(f"case,fixed,moving\none,{fixed.name},{moving.name}\n")
    words = ("register", "-f", fixed, "-m", moving, "-o", out / "one", "-t", "rigid", "--no-report")
    assert verimorph(*words).code == 0
    moving.write_bytes(b"damaged")
    assert verimorph("predict", model, "--pairs", listing, "-o", out).code == 2
    assert (out / "one" / "transform.h5").is_file()


def test_a_prediction_leaves_nothing_of_the_one_before(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    out = tmp_path / "out"
    assert verimorph("predict", model, "-f", fixed, "-m", moving, "-o", out, "--save-field").code == 0
    (out / "error_mm.nii.gz").write_bytes(b"of the run before")
    (out / "mine.txt").write_text("kept")
    assert verimorph("predict", model, "-f", fixed, "-m", moving, "-o", out, "--no-report").code == 0
    left = {file.name for file in out.iterdir()}
    assert {"mine.txt", "transform.h5"} <= left
    assert not left & {"error_mm.nii.gz", "field.nii.gz", "report.html"}


def test_each_pair_of_a_list_says_how_sure_it_is(verimorph, model, table, tmp_path):
    out = tmp_path / "out"
    words = ("predict", model, "--pairs", table, "-o", out, "--train", "--uncertainty")
    outcome = verimorph(*words)
    assert outcome.code == 0, outcome.err
    assert "verdicts of 1:" in outcome.out
    row = rows(out / "pairs.csv")[0]
    held = json.loads((out / "back" / "metrics.json").read_text())
    assert row["verdict"] == held["verdict"]["verdict"]
    assert float(row["bound_median_mm"]) == pytest.approx(held["uncertainty"]["median_mm"], rel=1e-4)
    file = out / "back" / "error_mm.nii.gz"
    assert np.asarray(nib.load(file).dataobj).min() > 0
    assert (out / "back" / "label_uncertainty.nii.gz").exists()
    assert "1 pair was there already" in verimorph(*words).out
    before = file.stat().st_mtime_ns
    assert "there already" not in verimorph(*words, "--level", 0.5).out
    assert file.stat().st_mtime_ns != before
    # Broken or not is for --strict to say.
    assert verimorph(*words, "--level", 0.5, "--strict").code == (3 if row["verdict"] == "fail" else 0)


def test_evaluate_finds_what_predict_wrote(verimorph, model, table, tmp_path):
    out = tmp_path / "out"
    assert verimorph("predict", model, "--pairs", table, "-o", out, "--train").code == 0
    from verimorph.evaluate.cases import find_results, read_task

    found, extra = find_results(out, read_task(table))
    assert list(found) == ["back"]
    assert not extra
    good = table.with_name("good.csv")
    good.write_text(
        "".join(line + "\n" for line in table.read_text().splitlines() if not line.startswith(("lost", "there")))
    )
    scored = verimorph("evaluate", "--pairs", good, out, "-o", tmp_path / "scores", "--fast")
    assert scored.code == 0, scored.err


def test_refinement_raises_the_overlap(verimorph, model, table, tmp_path):
    scores = []
    for more in ([], ["--refine", 15]):
        out = tmp_path / f"out{len(more)}"
        assert verimorph("predict", model, "--pairs", table, "-o", out, "--train", *more).code == 0
        scores.append(float(rows(out / "pairs.csv")[0]["dice"]))
    assert scores[1] > scores[0]
    assert "seconds_refine" in rows(out / "pairs.csv")[0]


def test_submission_is_read_as_the_same_transform(verimorph, model, tmp_path, pair):
    from verimorph.io import read_image, read_transform

    fixed, moving = (file.rename(file.with_name(f"Head_000{k}_0000.nii.gz")) for k, file in enumerate(pair, start=1))
    out = tmp_path / "out"
    words = ("predict", model, "-f", fixed, "-m", moving, "-o", out, "--no-report", "--save-submission")
    assert verimorph(*words, "learn2reg").code == 0
    file = out / "submission" / "disp_0001_0000_0002_0000.nii.gz"
    grids = {"fixed": read_image(fixed).grid, "moving": read_image(moving).grid}
    points = grids["fixed"].index_to_world(np.array([[10.0, 12, 9], [7, 15, 12]]))
    written = read_transform(file, format="learn2reg", **grids).map_points(points)
    np.testing.assert_allclose(written, read_transform(out / "transform.h5").map_points(points), atol=1e-3)
    verimorph(*words, "learn2reg-2020").assert_user_error("belongs to no task of Learn2Reg 2020")
    verimorph(*words, "learn2reg2020").assert_user_error("did you mean 'learn2reg-2020'")


@pytest.fixture
def segmenter(tmp_path):
    """A segmentation model of three classes."""
    labels = [Label(value=0, name="background"), Label(value=4, name="a"), Label(value=300, name="b")]
    settings = {"classes": 3, "channel_multiplication": 1}
    return save(tmp_path / "segmenter", "estienne-segmentation", task="segmentation", settings=settings, labels=labels)


def listed(folder: Path, name: str, pair: tuple[Path, Path], file: str = "list.csv") -> Path:
    """A list of one pair."""
    table = folder / file
    table.write_text(f"case,fixed,moving\n{name},{pair[0]},{pair[1]}\n")
    return table


def test_results_of_pairs_never_take_the_place_of_files(verimorph, model, pair, tmp_path):
    study = tmp_path / "study"
    own = study / "patient01"
    own.mkdir(parents=True)
    scans = [Path(shutil.copy(file, own)) for file in pair]
    notes = tmp_path / "victim" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    words = ("predict", model, "-o", study, "--pairs")
    verimorph(*words, listed(tmp_path, "patient01", scans)).assert_user_error("patient01: holds an input")
    verimorph(*words, listed(tmp_path, "patient01", pair)).assert_user_error("no provenance.json")
    for name in ("../victim", ".", "a\\b", "pairs.csv"):
        verimorph(*words, listed(tmp_path, name, pair)).assert_user_error(f"case '{name}'", "rename")
    verimorph(*words, listed(study, "new", pair, "pairs.csv")).assert_user_error("is no table of results")
    assert notes.read_text() == "mine"
    assert {file.name for file in own.iterdir()} == {file.name for file in scans}
    assert "new" in (study / "pairs.csv").read_text()
    assert not (study / "new").exists()


def test_results_of_one_pair_never_take_the_place_of_its_images(verimorph, model, pair, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    moving = Path(shutil.copy(pair[1], work / "moved.nii.gz"))
    before = moving.read_bytes()
    words = ("predict", model, "-f", pair[0], "-m", moving, "--no-report", "-o")
    verimorph(*words, work).assert_user_error("moved.nii.gz: is an input")
    assert moving.read_bytes() == before
    assert [file.name for file in work.iterdir()] == ["moved.nii.gz"]
    moving.write_bytes(b"no image")  # said before anything is read
    verimorph(*words, work).assert_user_error("moved.nii.gz: is an input")
    moving.write_bytes(before)
    assert verimorph(*words, tmp_path / "out").code == 0


def test_label_maps_never_take_the_place_of_images(verimorph, segmenter, pair, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    scan = Path(shutil.copy(pair[0], scans / "scan.nii.gz"))
    before = scan.read_bytes()
    verimorph("predict", segmenter, "--folder", scans, "-o", scans).assert_user_error("scan.nii.gz: is an input")
    verimorph("predict", segmenter, "--image", scan, "-o", scans).assert_user_error("scan.nii.gz: is an input")
    assert scan.read_bytes() == before
    (out := tmp_path / "out").mkdir()
    (out / "settings.json").write_text('{"mine": 1}')
    verimorph("predict", segmenter, "--image", scan, "-o", out).assert_user_error("settings.json: is of no earlier run")


def test_what_changed_since_is_done_again(verimorph, model, segmenter, pair, table, tmp_path):
    out, labels = tmp_path / "out", tmp_path / "labels"
    words = ("predict", model, "--pairs", table, "-o", out, "--train")
    single = ("predict", segmenter, "--image", pair[0], "-o", labels)
    for command in (words, single):
        assert verimorph(*command).code == 0
        assert "there already" in verimorph(*command).out
    dice = rows(out / "pairs.csv")[0]["dice"]
    file = tmp_path / "fixed_labels.nii.gz"
    found = nib.load(file)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(found.dataobj), 3, 0), found.affine), file)
    assert "there already" not in verimorph(*words).out
    assert rows(out / "pairs.csv")[0]["dice"] != dice
    assert "there already" in verimorph(*single).out
    shutil.copy(pair[1], pair[0])
    assert "there already" not in verimorph(*single).out


def test_submission_names_are_checked_before_anything_is_predicted(verimorph, model, pair, tmp_path):
    out = tmp_path / "out"
    words = ("predict", model, "-o", out, "--save-submission", "learn2reg")
    verimorph(*words, "-f", pair[0], "-m", pair[1]).assert_user_error("numbers of the subjects")
    one, two = (file.rename(file.with_name(f"Head_000{k}_0000.nii.gz")) for k, file in enumerate(pair, start=1))
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(two, again)
    listing = tmp_path / "list.csv"
    listing.write_text(f"case,fixed,moving\na,{one},{two}\nb,{one},{again / two.name}\n")
    verimorph(*words, "--pairs", listing).assert_user_error("both come to disp_0001_0000_0002_0000.nii.gz")
    assert not out.exists()


def test_options_that_cannot_act_are_refused(verimorph, model, segmenter, pair, table, tmp_path):
    fixed, moving = pair
    out = tmp_path / "out"
    one = ("predict", model, "-f", fixed, "-m", moving, "-o", out)
    many = ("predict", model, "--pairs", table, "-o", out)
    single = ("predict", segmenter, "--image", fixed, "-o", out)
    verimorph(*one, "--similarity", "mi").assert_user_error("--similarity is for the refinement; give --refine")
    verimorph(*one, "--regularity", "bending").assert_user_error("--regularity is for the refinement")
    verimorph(*one, "--largest", "all").assert_user_error("--largest is of label maps")
    verimorph(*one, "--keep-true").assert_user_error("--keep-true is of label maps")
    verimorph(*one, "--data", tmp_path).assert_user_error("--data is", "give --pairs")
    verimorph(*many, "--fixed-labels", fixed).assert_user_error("--fixed-labels is of one pair")
    verimorph(*one, "--fixed-labels", fixed).assert_user_error("--fixed-labels is compared", "give --moving-labels")
    for more in (
        ("--refine", 3),
        ("--seed", 1),
        ("--start", "affine"),
        ("--save-submission", "learn2reg"),
        ("--save-field",),
    ):
        verimorph(*single, *more).assert_user_error(f"{more[0]} is of registrations")
    verimorph(*single, "--largest", "4,9").assert_user_error("draws no label 9; its labels are 4, 300")
    verimorph(*single, "--tile", "16x16").assert_user_error("--tile has 2 sides")
    verimorph(*one, "--tile", "0x0x0").assert_user_error("--tile is '0x0x0'")
    verimorph("export", model, "-o", tmp_path / "n.pt", "--shape", "0x0x0").assert_user_error("--shape is '0x0x0'")
    flat = tmp_path / "flat.tfm"
    sitk.WriteTransform(sitk.AffineTransform(2), str(flat))
    verimorph(*one, "--start", flat).assert_user_error("is 2-D, the model is 3-D")
    assert not out.exists()
    assert verimorph(*many, "--train").code == 0
    assert "there already" not in verimorph(*many, "--train", "--save-all", "--no-report").out
    assert {"moved.nii.gz", "inverse.h5", "jacobian.nii.gz"} <= {file.name for file in (out / "back").iterdir()}
    assert not (out / "back" / "report.html").exists()
    assert "there already" in verimorph(*many, "--train", "--save-all", "--no-report").out


def test_distances_are_in_the_units_of_the_list(verimorph, model, pair, tmp_path):
    stored = nib.load(pair[0])
    middle = stored.affine[:3] @ [*(n / 2 for n in stored.shape), 1]
    lines = [",".join(f"{x:.3f}" for x in middle + shift) for shift in (0, 2)]
    (tmp_path / "points.csv").write_text("\n".join(["x_ras_mm,y_ras_mm,z_ras_mm", *lines]) + "\n")
    listing, out = tmp_path / "list.csv", tmp_path / "out"
    line = f"{pair[0]},{pair[1]},points.csv,points.csv"
    listing.write_text(
        f"case,fixed,moving,fixed_landmarks,moving_landmarks,units\na,{line},voxel\nb,{line},mm\n", encoding="utf-8"
    )
    outcome = verimorph("predict", model, "--pairs", listing, "-o", out)
    assert outcome.code == 0, outcome.err
    voxel, mm = rows(out / "pairs.csv")
    assert voxel["tre_mean_voxel"] == mm["tre_mean_mm"] != ""
    assert voxel["tre_mean_mm"] == mm["tre_mean_voxel"] == ""
    assert json.loads((out / "a" / "metrics.json").read_text())["unit"] == "voxel"
    listing.write_text(listing.read_text().replace("voxel", "mm"))  # what was measured in another unit is done again
    assert "1 pair was there already" in verimorph("predict", model, "--pairs", listing, "-o", out).out
    assert [set(row) & {"tre_mean_voxel", "tre_mean_mm"} for row in rows(out / "pairs.csv")] == 2 * [{"tre_mean_mm"}]


def test_header_names_may_have_spaces(verimorph, model, pair, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text(f"case, fixed, moving\na,{pair[0]},{pair[1]}\n")
    assert verimorph("predict", model, "--pairs", listing, "-o", tmp_path / "out").code == 0


def test_a_split_is_found_by_its_own_name_first(tmp_path):
    from verimorph.predict.jobs import jobs_of_table

    pairs = [{"fixed": "imagesTr/L_0001_0000.nii.gz", "moving": "imagesTr/L_0002_0000.nii.gz"}]
    file = tmp_path / "LUMIR_dataset.json"
    for name in ("validation", "registration_val"):
        file.write_text(json.dumps({name: pairs}))
        assert [job.name for job in jobs_of_table(file, split="val")] == ["0001_0000-0002_0000"]
    with pytest.raises(OptionError, match="no list of pairs 'registration_test'"):
        jobs_of_table(file, split="test")


def test_threads_of_each_nesting_are_read(monkeypatch):
    from verimorph.cli.runtime import set_threads

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    for text, count in (("2,1", 2), ("", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert set_threads(None) == (count or len(os.sched_getaffinity(0)))


def test_segmentation_restores_ids_and_puts_true_labels_back(verimorph, segmenter, tmp_path, pair):
    fixed, moving = pair
    out = tmp_path / "labels"
    outcome = verimorph("predict", segmenter, "--image", fixed, "-o", out)
    assert outcome.code == 0, outcome.err
    found = nib.load(out / "fixed.nii.gz")
    assert np.allclose(found.affine, nib.load(fixed).affine)
    assert found.get_data_dtype() == np.int16
    assert set(np.unique(found.dataobj)) <= {0, 4, 300}
    assert len(np.unique(found.dataobj)) > 1
    outcome = verimorph("predict", segmenter, "--image", fixed, "-o", tmp_path / "tiled", "--tile", "32x32x32")
    assert outcome.code == 0, outcome.err
    tiled = np.asarray(nib.load(tmp_path / "tiled" / "fixed.nii.gz").dataobj)
    assert (tiled == np.asarray(found.dataobj)).mean() > 0.9
    verimorph("predict", segmenter, "-f", fixed, "-m", moving, "-o", out).assert_user_error("is a segmentation model")
    verimorph("predict", segmenter, "--image", fixed, "-o", out, "--keep-true").assert_user_error("--dataset")


def test_refusals_are_one_line(verimorph, model, pair, tmp_path, monkeypatch):
    fixed, moving = pair
    out = tmp_path / "out"
    words = ("-f", fixed, "-m", moving, "-o", out)
    verimorph("predict", tmp_path / "nowhere", *words).assert_user_error("no such folder")
    verimorph("predict", "voxelmorph", *words).assert_user_error("'voxelmorph' is a method", "train it first")
    verimorph("predict", model, "-o", out).assert_user_error("give one of")
    verimorph("predict", model, "-f", fixed, "-o", out).assert_user_error("--moving is missing")
    verimorph("predict", model, *words, "--refine", 0).assert_user_error("--refine is 0")
    verimorph("predict", model, *words, "--val").assert_user_error("--pairs or --dataset")
    verimorph("predict", model, "--dataset", "ixii", "--root", tmp_path, "-o", out).assert_user_error("'ixi'")
    monkeypatch.delenv("VERIMORPH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)  # beside which no data lie
    verimorph("predict", model, "--dataset", "ixi", "-o", out).assert_user_error("VERIMORPH_DATA is not set", "--root")
    monkeypatch.setenv("VERIMORPH_DATA", str(tmp_path))
    verimorph("predict", model, "--dataset", "ixi", "-o", out).assert_user_error("say with --root")
    verimorph("predict", model, *words, "--start", "affin").assert_user_error("did you mean 'affine'")
    verimorph("predict", model, *words, "--device", "cuda:77").assert_user_error("verimorph doctor")
    verimorph("predict", model, "--folder", tmp_path, "-o", out).assert_user_error("is a registration model")
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4)), flat)
    verimorph("predict", model, "-f", flat, "-m", moving, "-o", out).assert_user_error("nothing to align")
    thin = tmp_path / "thin.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 2)).astype(np.float32), np.eye(4)), thin)
    verimorph("predict", model, "-f", thin, "-m", moving, "-o", out).assert_user_error("stride 4", "needs 4 or more")
    verimorph("predict", model, "-f", fixed, "-f", fixed, "-m", moving, "-o", out).assert_user_error("2 are given")
    assert not out.exists()


def test_remedies_are_of_this_command(verimorph, model, pair, tmp_path, monkeypatch):
    fixed, moving = pair
    stored = nib.load(moving)
    voxels = np.asarray(stored.dataobj, dtype=np.float32)
    nib.save(nib.Nifti1Image(np.stack([0 * voxels, voxels], -1), stored.affine), tmp_path / "series.nii.gz")
    words = ("predict", model, "-f", fixed, "-o", tmp_path / "out", "--no-report", "-m")
    verimorph(*words, tmp_path / "series.nii.gz").assert_user_error("--volume 0 to 1")
    (tmp_path / "list.csv").write_text("fixed,moving\nfixed.nii.gz,series.nii.gz\n")
    listing = ("predict", model, "--pairs", tmp_path / "list.csv", "-o", tmp_path / "many")
    assert "as a file of its own" in verimorph(*listing).err
    verimorph(*listing, "--volume", 1).assert_user_error("--volume", "one pair")
    voxels[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(voxels, stored.affine), tmp_path / "nan.nii.gz")
    outcome = verimorph(*words, tmp_path / "nan.nii.gz")
    outcome.assert_user_error("replace them first")
    assert "--nan-value" not in outcome.err

    def full(*_args, **_more):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("verimorph.predict.pair.predict_pair", full)
        outcome = verimorph(*words, moving)
    outcome.assert_user_error("not enough memory", "--tile")
    assert "--quality" not in outcome.err


def test_one_volume_of_a_series_is_predicted(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    series = []
    for file in pair:
        stored = nib.load(file)
        voxels = np.asarray(stored.dataobj)
        series.append(tmp_path / f"series_{file.name}")
        nib.save(nib.Nifti1Image(np.stack([0 * voxels, voxels], -1), stored.affine), series[-1])
    one, other = tmp_path / "one", tmp_path / "other"
    assert verimorph("predict", model, "-f", fixed, "-m", moving, "-o", one, "--no-report").code == 0
    words = ("-f", series[0], "-m", series[1], "--volume", 1, "-o", other, "--no-report")
    assert verimorph("predict", model, *words).code == 0
    moved = [np.asarray(nib.load(folder / "moved.nii.gz").dataobj) for folder in (one, other)]
    np.testing.assert_allclose(*moved, atol=1e-3)


def test_a_card_that_lies_is_found_out(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    words = ("-f", fixed, "-m", moving, "-o", tmp_path / "out")
    text = (model / "card.json").read_text()
    for before, after, said in (
        ('"voxelmorph"', '"lku-net"', "cannot be built"),
        ('"ndim": 3', '"ndim": 2', "weights"),
        ('"spacing_mm": 1.5', '"spacing": 1.5', "no setting 'spacing'"),
        ('"method"', '"methud"', "no model card"),
    ):
        (model / "card.json").write_text(text.replace(before, after, 1))
        verimorph("predict", model, *words).assert_user_error(said)
    (model / "card.json").write_text(text)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    verimorph("predict", model, *words).assert_user_error("sha-256 differs")


@pytest.fixture
def unchecked():
    """No checks of shapes at run time: while a graph is traced, sizes are tensors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".pt2"])
def test_export_gives_the_same_field(verimorph, unchecked, model, tmp_path, suffix):
    file = tmp_path / f"network{suffix}"
    outcome = verimorph("export", model, "-o", file, "--shape", "16x12x8")
    assert outcome.code == 0, outcome.err
    assert "largest difference from the model" in outcome.out
    from verimorph.methods.checkpoint import load_model

    module, _ = load_model(model)
    images = [torch.rand(1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(k)) for k in (5, 6)]
    with torch.no_grad():
        expected = module(fixed=images[0], moving=images[1])["field"]
    assert float(expected.abs().max()) > 0.05
    if suffix == ".pt":
        found = torch.jit.load(str(file))(*images)
    elif suffix == ".pt2":
        found = torch.export.load(str(file)).module()(*images)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == ["fixed", "moving"]
        values = session.run(["field"], {"fixed": images[0].numpy(), "moving": images[1].numpy()})
        found = torch.from_numpy(values[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_export_on_a_full_disk_is_one_line(verimorph, unchecked, model, tmp_path, monkeypatch, suffix):
    file = tmp_path / "out" / f"network{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr("verimorph.io.safe.free_space", lambda _: 100)
        outcome = verimorph("export", model, "-o", file, "--shape", "16x12x8")
        outcome.assert_user_error("needs about", "free some space")
    assert not file.parent.exists()
    if suffix == ".onnx":
        return

    def full(self, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    verimorph("export", model, "-o", file, "--shape", "16x12x8").assert_user_error("the disk is full")
    assert not file.parent.exists() or not list(file.parent.iterdir())


def test_export_refuses_what_differs_and_what_does_not_fit(verimorph, unchecked, model, tmp_path):
    file = tmp_path / "network.pt"
    verimorph("export", model, "-o", file, "--shape", "16x12x9").assert_user_error("try --shape 16x12x12")
    verimorph("export", model, "-o", file, "--shape", "16x12").assert_user_error("has 2 sides")
    verimorph("export", model, "-o", tmp_path / "network.bin").assert_user_error("--format")
    verimorph("export", model, "-o", file, "--format", "onx").assert_user_error("did you mean 'onnx'")
    verimorph("export", model, "-o", file, "--shape", "16x12x8", "--tolerance", "-1").assert_user_error(
        "differs from the model", "nothing is kept"
    )
    assert not file.exists()


def test_prediction_starts_without_the_training_packages(model, pair, tmp_path):
    fixed, moving = pair
    words = ["predict", str(model), "-f", str(fixed), "-m", str(moving), "-o", str(tmp_path / "out"), "--no-report"]
    code = (
        "import sys\nfrom verimorph.cli import run\n"
        f"code = run({words!r})\n"
        "heavy = [name for name in ('monai', 'lightning_fabric', 'onnx', 'matplotlib') if name in sys.modules]\n"
        "print(heavy, code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
