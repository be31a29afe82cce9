"""``verimorph train`` and ``verimorph methods``: a run from the command line, its resume, and mistakes in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from verimorph.methods import METHODS
from verimorph.methods.card import Card, TrainingData
from verimorph.methods.results import read_results
from verimorph.train.recipe import read_recipe

SMALL = (
    "--shape", "16x16x8", "--spacing", "2", "--set", "model={encoder: [4, 4], decoder: [4, 4], tail: [4]}",
    "--set", "objective=mse+diffusion:weight=0.01", "--set", "tensorboard=false", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, bright):
    """Three images in a folder."""
    for number in range(3):
        image = np.roll(bright, number, axis=0)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / f"scan{number}.nii.gz")
    return tmp_path


def test_a_method_is_trained_on_a_folder_and_goes_on(verimorph, folder, tmp_path):
    run = tmp_path / "run"
    done = verimorph("train", "voxelmorph", "--folder", folder, *SMALL, "--steps", 2, "-o", run)
    assert done.code == 0, done.err
    assert "3 images" in done.err
    assert done.out.splitlines()[-1] == f"model: {run / 'model'}"
    assert Card.from_json((run / "model" / "card.json").read_bytes()).steps == 2
    again = verimorph("train", "voxelmorph", "--folder", folder, *SMALL, "--steps", 2, "-o", run)
    again.assert_user_error("holds a run already", "--resume")
    before = (run / "recipe.yaml").read_text(encoding="utf-8")
    for change, said in (
        ("optimiser.weight_decay=0.5", "another optimiser.weight_decay;"),
        ("ema=0.9", "another ema;"),
    ):
        refused = verimorph("train", "-o", run, "--resume", "--set", change, "--device", "cpu")
        assert refused.code == 2
        assert said in refused.err.splitlines()[-1]
        assert "Traceback" not in refused.err
        assert (run / "recipe.yaml").read_text(encoding="utf-8") == before
    nothing = verimorph("train", "-o", run, "--resume", "--device", "cpu")
    assert nothing.code == 0, nothing.err
    assert nothing.out.startswith("2 steps, nothing is left to do; ask for more steps")
    fewer = verimorph("train", "-o", run, "--resume", "--steps", 1, "--device", "cpu")
    assert fewer.code == 2
    assert fewer.err.endswith("its run is at step 2 already and the recipe ends at 1; ask for as many steps or more\n")
    more = verimorph("train", "-o", run, "--resume", "--steps", 3, "--device", "cpu")
    assert more.code == 0, more.err
    with open(run / "log.csv", encoding="utf-8") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2", "3"]
    assert (run / "recipe.yaml").read_text(encoding="utf-8").startswith("# verimorph ")


def test_commands_that_people_copy_are_whole(verimorph, folder, monkeypatch):
    """Of the first page and of the help: nothing but the user's own list is missing."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "pairs.csv").write_text("fixed,moving\nscan0.nii.gz,scan1.nii.gz\nscan1.nii.gz,scan2.nii.gz\n")
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"verimorph (train .*--pairs .*)", page + verimorph("train", "--help").out)
    assert len(shown) == 3
    for words in map(str.split, shown):
        done = verimorph(*words, "--dry-run")
        assert done.code == 0, (words, done.err)


def test_the_size_of_the_grid_is_asked_for(verimorph, folder):
    verimorph("train", "voxelmorph", "--folder", folder, "--dry-run").assert_user_error("shape is missing", "--shape")


def test_a_dry_run_shows_and_writes_nothing(verimorph, folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    shown = verimorph("train", "voxelmorph", "--folder", folder, *SMALL, "--dry-run", "--set", "optimiser.lr=3e-4")
    assert shown.code == 0, shown.err
    assert "parameters" in shown.err
    assert "lr: 0.0003" in shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_trained_is_said_in_one_line(verimorph, folder, tmp_path):
    listing = tmp_path / "pairs.csv"
    listing.write_text("fixed,moving,split\nscan0.nii.gz,scan1.nii.gz,train\nscan1.nii.gz,scan2.nii.gz,validation\n")
    parts = "parts=[{match: features, turns: 1}, {match: head, turns: 1, objective: pearson+tv}]"
    words = ("--pairs", listing, "--shape", "16x16x16", "--dry-run", "--set", parts, "--set", "objective=mse+mse+tv")
    shown = verimorph("train", "voxelmorph", *words, "--validation", "val", "--device", "cpu")
    assert shown.code == 0, shown.err
    assert shown.err.rstrip().endswith("steps; mse + tv + pearson")
    words = ("--shape", "16x16x16", "--dry-run", "--set", "data.synthetic={kind: shapes}")
    shown = verimorph("train", "voxelmorph", *words, "--device", "cpu")
    assert "synthetic images of random shapes, 16x16x16, batch" in shown.err


@pytest.mark.parametrize("listed", [False, True])
def test_a_segmentation_method_takes_images_one_by_one(verimorph, folder, tmp_path, listed):
    for image in sorted(folder.glob("scan*.nii.gz")):
        found = nibabel.load(image)
        labels = (np.asarray(found.dataobj) > 300).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, found.affine), folder / image.name.replace("scan", "labels"))
    source = ("--folder", folder, "--images", "scan{id}.nii.gz", "--labels", "labels{id}.nii.gz")
    if listed:
        table = tmp_path / "pairs.csv"
        names = "scan0.nii.gz,scan1.nii.gz,labels0.nii.gz,labels1.nii.gz"
        table.write_text(f"fixed,moving,fixed_labels,moving_labels\n{names}\n")
        source = ("--pairs", table)
    words = ("--shape", "16x16x16", "--set", "model.channel_multiplication=1", "--steps", 1, "--device", "cpu")
    done = verimorph("train", "estienne-segmentation", *source, *words, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert f"{2 if listed else 3} images" in done.err
    assert Card.from_json((tmp_path / "run" / "model" / "card.json").read_bytes()).task == "segmentation"


@pytest.mark.parametrize("paired", [False, True])
def test_a_learn2reg_file_is_trained_on(verimorph, folder, tmp_path, paired):
    images = sorted(file.name for file in folder.glob("*.nii.gz"))
    (tmp_path / "imagesTr").mkdir()
    for k, image in enumerate(images):
        shutil.copy(folder / image, tmp_path / "imagesTr" / f"T_{k:04}_0000.nii.gz")
    names = [f"./imagesTr/T_{k:04}_0000.nii.gz" for k in range(len(images))]
    told = {"name": "T", "training": [{"image": name} for name in names]}
    if paired:
        told["training_paired_images"] = [{"fixed": names[0], "moving": names[1]}]
    file = tmp_path / "T_dataset.json"
    file.write_text(json.dumps(told))
    words = ("train", "voxelmorph", "--pairs", file, "--shape", "16x16x16", "--dry-run", "--device", "cpu")
    outcome = verimorph(*words)
    assert outcome.code == 0, outcome.err
    assert f"learn2reg: {file}" in outcome.out
    assert ("kind: listed" in outcome.out) == paired
    elsewhere = tmp_path / "lists" / "T_dataset.json"
    elsewhere.parent.mkdir()
    file.rename(elsewhere)
    outcome = verimorph(*words[:3], elsewhere, *words[4:], "--root", tmp_path)
    assert outcome.code == 0, outcome.err
    assert f"root: {tmp_path}" in outcome.out
    verimorph(*words[:3], elsewhere, *words[4:]).assert_user_error("files are missing")


def test_the_recipe_says_what_the_command_line_did(verimorph, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").write_text("fixed,moving\nscan0.nii.gz,scan1.nii.gz\n")
    run, shape = tmp_path / "run", SMALL[:2]
    words = ("train", "voxelmorph", "--pairs", "pairs.csv", *shape, *SMALL[4:])
    done = verimorph(*words, "--steps", 1, "--precision", "bf16-mixed", "-o", run)
    assert done.code == 0, done.err
    assert "each image's own size" in done.err
    assert "holds" in done.err  # 16 x 16 x 8 of 24 x 24 x 20 voxels
    recipe = read_recipe(run / "recipe.yaml")
    assert recipe.precision == "bf16-mixed"
    assert recipe.data["csv"] == str(tmp_path / "pairs.csv")
    assert recipe.data["preparation"]["spacing_mm"] is None
    assert Card.from_json((run / "model" / "card.json").read_bytes()).preparation["spacing_mm"] is None
    monkeypatch.chdir("/")
    assert verimorph("train", "-o", run, "--resume", "--steps", 2, "--device", "cpu").code == 0
    assert read_recipe(run / "recipe.yaml").precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["voxelmorf", "--pairs", "p.csv"], "did you mean 'voxelmorph'"),
        (["voxelmorph"], "say what 'voxelmorph' is trained on"),
        ([], "say what to train"),
        (["--resume", "-o", "x"], "x: holds no run to go on with"),
        (
            ["voxelmorph", "--folder", "here", "-j", "1", "--set", "optimiser.momentum=0.9"],
            "'adam' has no setting 'momentum'",
        ),
        (["voxelmorph", "--pairs", "p.csv", "--folder", "f"], "two sources"),
        (["nothing.yaml", "-o", "x"], "no such recipe"),
        (["voxelmorph", "--folder", "here", "-o", "x", "--set", "stesp=3"], "did you mean 'steps'"),
        (["voxelmorph", "--dataset", "hippocampus", "-o", "x"], "did you mean"),
        (["voxelmorph", "--folder", "here", "--device", "gpu"], "--device cannot be 'gpu'"),
        (["voxelmorph", "--folder", "here", "--precision", "bf17"], "precision: input should be"),
        (["voxelmorph", "--pairs", "p.csv", "--labels", "{id}.nii"], "--labels says which files of a folder"),
        (["voxelmorph", "--dataset", "ixi", "--images", "{id}.nii"], "--images says which files of a folder"),
        (["voxelmorph", "--folder", "here", "--root", "there"], "--root"),
        (["voxelmorph", "--folder", "here", "--shape", "0x8x8"], "--shape is '0x8x8'"),
    ],
)
def test_mistakes_are_one_line(verimorph, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    verimorph("train", *words).assert_user_error(said)
    assert not list(tmp_path.iterdir())


def test_methods_lists_all_with_their_citation(verimorph):
    listed = json.loads(verimorph("methods", "--json").out)
    assert [one["name"] for one in listed] == list(METHODS)
    assert all(one["citation"]["year"] > 2000 for one in listed)
    shown = verimorph("methods").out
    assert all(name in shown for name in METHODS)
    one = verimorph("methods", "transmorph").out
    for words in ("Chen", "10.1016/j.media.2022.102615", "verimorph[train]", "bspline", "Our figures"):
        assert words in one
    verimorph("methods", "transmorf").assert_user_error("did you mean 'transmorph'")


@pytest.mark.parametrize("words", [(), ("estienne",)])
def test_nothing_of_a_list_of_methods_is_cut_off(verimorph, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    shown = verimorph("methods", *words).out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    table = shown[shown.find("Variants") :] if words else shown  # sentences before it are left to the terminal
    assert max(map(len, table.splitlines())) <= 80
    for name in METHODS if not words else ("hippocampus-pretrained", "pretrained-noisy-labels"):
        assert name in shown


def test_figures_come_from_predictions_alone(verimorph, tmp_path):
    model, predictions, table = tmp_path / "model", tmp_path / "predictions", tmp_path / "results.json"
    for made in (model, predictions):
        made.mkdir()
    card = Card(method="modet", training_data=TrainingData(name="scans"), steps=7, weights_sha256="a" * 64)
    (model / "card.json").write_text(card.to_json(), encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"")
    rows = "case,status,model,dice,dice_before\na,ok,aaaaaaaaaaaa,0.8,0.5\nb,{},aaaaaaaaaaaa,0.6,0.4\n"
    (predictions / "pairs.csv").write_text(rows.format("failed"), encoding="utf-8")
    words = ("methods", "--record", predictions, "--model", model, "--data", "scans", "--results", table)
    verimorph(*words).assert_user_error("b was not predicted")
    (predictions / "pairs.csv").write_text(rows.format("ok"), encoding="utf-8")
    for _ in range(2):  # the second takes the place of the first
        kept = verimorph(*words, "--title", "all labels")
        assert kept.out == f"modet on scans: Dice 0.7, 2 pairs; kept in {table}\n", kept.err
    (row,) = read_results(table)
    assert row.measures == pytest.approx({"dice": 0.7, "dice_before": 0.45})
    assert (row.method, row.pairs, row.steps, row.weights_sha256) == ("modet", 2, 7, "a" * 64)
    assert "0.700" in verimorph("methods", "--results", table).out
    verimorph("methods", "--record", predictions).assert_user_error("--model", "--data")
    verimorph("methods", "modet", "--title", "all labels").assert_user_error("--title is of figures to keep")
    verimorph("methods", "modet", *words[1:]).assert_user_error("NAME is of what is shown")
    verimorph("methods", "--results", tmp_path / "none.json").assert_user_error("there is no such file")
