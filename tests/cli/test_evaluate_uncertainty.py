"""``verimorph evaluate --uncertainty``: a bound beside a known transform, landmarks and labels; one line a mistake."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import write_image, write_transform
from verimorph.transform import Affine, DisplacementField
from verimorph.uncertainty import metrics

SHAPE, SPACING = (24, 22, 20), (1.0, 1.5, 2.0)
GRID = Grid(SHAPE, np.array([[1.0, 0, 0, -10], [0, 1.5, 0, 5], [0, 0, 2.0, 7], [0, 0, 0, 1]]))


@pytest.fixture
def out(tmp_path):
    """A result folder: the true map is a shift of 2 mm, the found one errs by a smooth field, the bound is near it."""
    random = np.random.default_rng(0)
    field = np.stack([ndimage.gaussian_filter(random.normal(size=SHAPE), 2.0) for _ in range(3)])
    field *= (0.8 / np.linalg.norm(field * np.reshape(SPACING, (3, 1, 1, 1)), axis=0).mean()).astype(np.float32)
    error = np.linalg.norm(field * np.reshape(SPACING, (3, 1, 1, 1)), axis=0)
    shift = np.eye(4)
    shift[0, 3] = 2.0
    found = DisplacementField(GRID, torch.from_numpy(field[None].astype(np.float32)))
    folder = tmp_path / "out"
    folder.mkdir()
    write_transform(found.then(Affine(shift)), folder / "transform.h5")
    write_transform(Affine(shift), tmp_path / "truth.tfm")
    bound = error * random.uniform(0.9, 1.9, SHAPE)  # holds at nine tenths
    labels = np.zeros(SHAPE, np.int16)
    labels[4:12, 4:16, 4:14] = 1
    labels[13:20, 6:16, 6:14] = 2
    moved = np.roll(labels, 1, 0)
    entropy = ndimage.gaussian_filter((ndimage.morphological_gradient(moved, 3) > 0).astype(float), 0.7)
    for name, values in (
        ("out/error_mm", bound.astype(np.float32)),
        ("out/displacement_std", (error * random.uniform(0, 1, SHAPE)).astype(np.float32)),
        ("out/label_uncertainty", entropy.astype(np.float32)),
        ("out/moved_labels", moved),
        ("labels", labels),
        ("fixed", (100.0 * (labels > 0) + random.normal(size=SHAPE)).astype(np.float32)),
    ):
        write_image(Image.from_array(values, GRID), tmp_path / f"{name}.nii.gz")
    metrics_json = {
        "uncertainty": {"level": 0.9, "calibration": "six heads", "calibrated_for": "T1 brains", "median_mm": 1.0}
    }
    (folder / "metrics.json").write_text(json.dumps(metrics_json))
    return folder, error, bound


@pytest.fixture
def landmarks(out, tmp_path):
    """Fixed landmarks on voxel centres and their true partners; the last lies outside the image."""
    _, error, bound = out
    index = np.array([[5, 5, 5], [10, 12, 9], [20, 8, 14], [3, 15, 4], [90, 90, 90]])
    fixed = GRID.index_to_world(index)
    rows = [",".join(map(str, [f"p{n}", *point, point[0] + 2.0, *point[1:]])) for n, point in enumerate(fixed.tolist())]
    header = "name," + ",".join(f"{side}_{axis}_ras_mm" for side in ("fixed", "moving") for axis in "xyz")
    file = tmp_path / "points.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    at = tuple(index[:-1].T)
    return file, error[at], bound[at]


def test_bound_beside_a_known_transform(verimorph, out, tmp_path):
    folder, error, bound = out
    outcome = verimorph("evaluate", "--uncertainty", folder, "--truth", tmp_path / "truth.tfm", "--json", "-")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    found = document["transform"]
    assert (document["level"], document["level_from"]) == (0.9, "metrics.json")
    assert document["calibrated_for"] == "T1 brains"
    assert (found["n"], found["where"]) == (error.size, "every voxel")
    assert found["coverage"] == pytest.approx(metrics.coverage(error, bound), abs=2e-3)
    assert found["error_mm"]["median"] == pytest.approx(np.median(error), rel=1e-3)
    assert found["bound_mm"]["median"] == pytest.approx(np.median(bound), rel=1e-4)
    assert found["ranking"]["bound"]["spearman"] == pytest.approx(metrics.spearman(error, bound), abs=1e-3)
    assert found["ranking"]["bound"]["ause"] < found["ranking"]["displacement_std"]["ause"]
    assert "regions" not in found
    assert "nan" not in outcome.out.lower()


def test_regions_and_the_mask_say_where(verimorph, out, tmp_path):
    folder, error, bound = out
    labels = np.zeros(SHAPE, bool)
    labels[4:12, 4:16, 4:14] = True
    command = ("evaluate", "--uncertainty", folder, "--truth", tmp_path / "truth.tfm", "--json", "-")
    with_labels = json.loads(verimorph(*command, "-f", tmp_path / "labels.nii.gz").out)["transform"]
    assert with_labels["where"].startswith("labels of labels")
    first = with_labels["regions"][0]
    assert (first["group"], first["n"]) == (1, labels.sum())
    assert first["coverage"] == pytest.approx(metrics.coverage(error[labels], bound[labels]), abs=5e-3)
    only = json.loads(verimorph(*command, "-f", tmp_path / "labels.nii.gz", "--labels", "2").out)["transform"]
    assert [row["group"] for row in only["regions"]] == [2]
    anatomy = json.loads(verimorph(*command, "--fixed", tmp_path / "fixed.nii.gz").out)["transform"]
    assert anatomy["where"].startswith("anatomy of fixed")
    assert anatomy["n"] < error.size
    mask = write_image(Image.from_array(labels.astype(np.uint8), GRID), tmp_path / "mask.nii.gz")
    masked = json.loads(verimorph(*command, "-x", mask).out)["transform"]
    assert (masked["n"], masked["where"].partition(" ")[0]) == (labels.sum(), "mask")


def test_landmarks_read_the_bound_where_they_lie(verimorph, out, landmarks):
    file, error, bound = landmarks
    points = ("--fixed-landmarks", file, "--moving-landmarks", file)
    outcome = verimorph("evaluate", "--uncertainty", out[0], *points, "--per-label", "--json", "-")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["landmarks"]
    assert [row["name"] for row in found["per_landmark"]] == ["p0", "p1", "p2", "p3"]
    assert [row["error_mm"] for row in found["per_landmark"]] == pytest.approx(error.tolist(), rel=1e-3)
    assert [row["bound_mm"] for row in found["per_landmark"]] == pytest.approx(bound.tolist(), rel=1e-4)
    assert found["outside"] == 1
    low, high = metrics.coverage_interval(int((error <= bound).sum()), 4)
    assert found["coverage_interval"] == pytest.approx([low, high])
    table = verimorph("evaluate", "--uncertainty", out[0], *points, "--per-label").out
    assert "Error bound at 4 landmarks" in table
    assert "outside the map, left out: 1" in table


def test_labels_beside_their_uncertainty(verimorph, out, tmp_path):
    outcome = verimorph("evaluate", "--uncertainty", out[0], "-f", tmp_path / "labels.nii.gz", "--json", "-")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert "transform" not in document
    assert document["labels"]["n_labels"] == 2
    assert document["labels"]["band"]["auroc"] > 0.6
    # labels that are nowhere are not counted, and are no result by themselves
    command = ("evaluate", "--uncertainty", out[0], "-f", tmp_path / "labels.nii.gz", "--json", "-", "--labels")
    assert json.loads(verimorph(*command, "1,9").out)["labels"]["n_labels"] == 1
    verimorph(*command, "9").assert_user_error("holds label 9")
    # the map alone, with the moved labels as an option
    alone = tmp_path / "alone"
    alone.mkdir()
    (out[0] / "label_uncertainty.nii.gz").rename(alone / "label_uncertainty.nii.gz")
    given = ("-f", tmp_path / "labels.nii.gz", "-m", out[0] / "moved_labels.nii.gz", "--json", "-")
    again = json.loads(verimorph("evaluate", "--uncertainty", alone / "label_uncertainty.nii.gz", *given).out)
    assert again["labels"] == document["labels"]


def test_everything_at_once_is_printed_and_drawn(verimorph, out, landmarks, tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("label,name\n1,liver\n2,spleen\n")
    outcome = verimorph(
        *("evaluate", "--uncertainty", out[0], "--truth", tmp_path / "truth.tfm", "-f", tmp_path / "labels.nii.gz"),
        *("--fixed-landmarks", landmarks[0], "--moving-landmarks", landmarks[0], "--label-names", names),
        *("--per-label", "-o", tmp_path / "sure", "--large-error", "1"),
    )
    assert outcome.code == 0, outcome.err
    for words in (
        "At 90 of 100 voxels the true error is at most the bound there",
        "calibrated on: six heads",
        "error within the bound, 90 % promised",
        "displacement spread",
        "AUROC > 1 mm",
        "1 liver",
        "Label uncertainty, 2 labels",
        "JSON and pictures in",
    ):
        assert words in outcome.out, words
    written = {file.name for file in (tmp_path / "sure").iterdir()}
    pictures = {"coverage", "reliability", "sparsification", "regions", "landmarks"}
    pictures |= {"label_reliability", "label_sparsification", "labels"}
    assert written == {"uncertainty.json"} | {f"{name}.png" for name in pictures}
    document = json.loads((tmp_path / "sure" / "uncertainty.json").read_text())
    assert document["transform"]["large_error_mm"] == 1.0


def test_map_alone_needs_its_transform_and_takes_the_level(verimorph, out, tmp_path):
    folder, _, _ = out
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "error_mm.nii.gz").rename(alone / "bound.nii.gz")
    command = ("evaluate", "--uncertainty", alone / "bound.nii.gz", "--truth", tmp_path / "truth.tfm")
    verimorph(*command).assert_user_error("-t")
    outcome = verimorph(*command, "-t", folder / "transform.h5", "--json", "-")
    assert json.loads(outcome.out)["level_from"] == "default"
    at_half = verimorph(*command, "-t", folder / "transform.h5", "--level", "0.5", "--json", "-")
    document = json.loads(at_half.out)
    assert (document["level"], document["level_from"]) == (0.5, "--level")
    assert document["transform"]["factor_for_level"] < json.loads(outcome.out)["transform"]["factor_for_level"]


def test_a_map_of_others_is_judged_by_itself(verimorph, out, tmp_path):
    folder, _, _ = out
    (folder / "error_mm.nii.gz").rename(folder / "theirs.nii.gz")
    command = ("evaluate", "--uncertainty", folder / "theirs.nii.gz", "--truth", tmp_path / "truth.tfm", "--level", 0.8)
    document = json.loads(verimorph(*command, "-f", tmp_path / "labels.nii.gz", "--json", "-").out)
    assert (document["level"], document["level_from"], document["calibration"]) == (0.8, "--level", None)
    # Neither the spread nor the label uncertainty beside it is theirs.
    assert set(document["maps"]) == {"bound"}
    assert "labels" not in document
    said = verimorph(*command).out
    assert "80 of 100 voxels" in said
    assert "calibration set" not in said  # none is known


def test_maps_of_an_earlier_registration_are_not_judged(verimorph, out, tmp_path):
    folder, _, _ = out
    (folder / "metrics.json").write_text(json.dumps({"calibrated": False}))
    truth = ("--truth", tmp_path / "truth.tfm")
    verimorph("evaluate", "--uncertainty", folder, *truth).assert_user_error("belong to another registration")


def test_what_is_judged_is_kept(verimorph, out, tmp_path):
    folder, _, _ = out
    before = (folder / "error_mm.nii.gz").read_bytes()
    truth = ("--truth", tmp_path / "truth.tfm")
    for target in (folder / "error_mm.nii.gz", tmp_path / "truth.tfm"):
        verimorph("evaluate", "--uncertainty", folder, *truth, "--json", target).assert_user_error("is an input")
    assert (folder / "error_mm.nii.gz").read_bytes() == before


def test_mistakes_are_one_line(verimorph, out, tmp_path):
    folder, _, bound = out
    truth = ("--truth", tmp_path / "truth.tfm")
    verimorph("evaluate", folder, *truth).assert_user_error("give --uncertainty too")
    verimorph("evaluate", "--uncertainty", *truth).assert_user_error("give its folder")
    verimorph("evaluate", "--uncertainty", folder, folder, *truth).assert_user_error("one result")
    verimorph("evaluate", "--uncertainty", tmp_path / "nowhere", *truth).assert_user_error("no such file or folder")
    verimorph("evaluate", "--uncertainty", tmp_path, *truth).assert_user_error("register with --uncertainty")
    verimorph("evaluate", "--uncertainty", folder).assert_user_error("nothing to compare", "--truth")
    verimorph("evaluate", "--uncertainty", folder, *truth, "--level", "90").assert_user_error("between 0 and 1")
    verimorph("evaluate", "--uncertainty", folder, *truth, "--level", "0.5").assert_user_error("leave out --level")
    verimorph("evaluate", "--uncertainty", folder, *truth, "--large-error", "0").assert_user_error("above 0")
    verimorph("evaluate", "--uncertainty", folder, *truth, "--large-error", "nan").assert_user_error("above 0")
    for words in (["--fast"], ["--tolerance", "2"]):
        verimorph("evaluate", "--uncertainty", folder, *truth, *words).assert_user_error("does not measure", words[0])
    verimorph("evaluate", "--uncertainty", folder, *truth, "--inverse", "i.h5").assert_user_error("leave it out")
    verimorph("evaluate", "--uncertainty", folder, "--pairs", "p.csv").assert_user_error("without --pairs")
    verimorph("evaluate", "--uncertainty", folder, "--fixed-landmarks", "a.csv").assert_user_error("partner list")
    flat = write_transform(Affine(np.eye(3)), tmp_path / "flat.tfm")
    verimorph("evaluate", "--uncertainty", folder, "--truth", flat).assert_user_error("2-D")
    write_image(Image.from_array(-bound.astype(np.float32), GRID), folder / "error_mm.nii.gz")
    verimorph("evaluate", "--uncertainty", folder, *truth).assert_user_error("below 0")
    small = Image.from_array(np.ones((9, 9, 9), np.float32))
    write_image(small, folder / "error_mm.nii.gz")
    verimorph("evaluate", "--uncertainty", folder, *truth).assert_user_error("another grid")
    (folder / "metrics.json").write_text('{"uncertainty": {"level": "90 %"}}')
    for words in ([], ["--level", "0.9"]):
        verimorph("evaluate", "--uncertainty", folder, *truth, *words).assert_user_error("90 % (metrics.json)")
    (folder / "metrics.json").write_text("{")
    verimorph("evaluate", "--uncertainty", folder, *truth).assert_user_error("damaged")


def test_landmarks_in_another_frame_are_noticed(verimorph, out, tmp_path):
    file = tmp_path / "far.csv"
    file.write_text("x_ras_mm,y_ras_mm,z_ras_mm\n500,500,500\n")
    points = ("--fixed-landmarks", file, "--moving-landmarks", file)
    verimorph("evaluate", "--uncertainty", out[0], *points).assert_user_error("another frame")
