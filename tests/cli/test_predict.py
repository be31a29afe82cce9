"""``verimorph predict`` and ``verimorph export``: pairs, lists, splits, images, submissions, refusals."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import jaxtyping
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

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
    assert "were there already" not in outcome.out
    assert moved.stat().st_mtime_ns != before
    assert {row["case"] for row in rows(out / "pairs.csv")} == {"there", "lost"}


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
    assert "1 pairs were there already" in verimorph(*words).out
    before = file.stat().st_mtime_ns
    assert "were there already" not in verimorph(*words, "--level", 0.5).out
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


def test_segmentation_restores_ids_and_puts_true_labels_back(verimorph, tmp_path, pair):
    settings = {"classes": 3, "channel_multiplication": 1}
    labels = [Label(value=0, name="background"), Label(value=4, name="a"), Label(value=300, name="b")]
    segmenter = save(
        tmp_path / "segmenter", "estienne-segmentation", task="segmentation", settings=settings, labels=labels
    )
    fixed, moving = pair
    out = tmp_path / "labels"
    outcome = verimorph("predict", segmenter, "--image", fixed, "-o", out)
    assert outcome.code == 0, outcome.err
    found = nib.load(out / "fixed.nii.gz")
    assert np.allclose(found.affine, nib.load(fixed).affine)
    assert found.get_data_dtype() == np.int16
    assert set(np.unique(found.dataobj)) <= {0, 4, 300}
    assert len(np.unique(found.dataobj)) > 1
    verimorph("predict", segmenter, "-f", fixed, "-m", moving, "-o", out).assert_user_error("is a segmentation model")
    verimorph("predict", segmenter, "--image", fixed, "-o", out, "--keep-true").assert_user_error("--dataset")


def test_refusals_are_one_line(verimorph, model, pair, tmp_path):
    fixed, moving = pair
    out = tmp_path / "out"
    words = ("-f", fixed, "-m", moving, "-o", out)
    verimorph("predict", tmp_path / "nowhere", *words).assert_user_error("no such folder")
    verimorph("predict", model, "-o", out).assert_user_error("give one of")
    verimorph("predict", model, "-f", fixed, "-o", out).assert_user_error("--moving is missing")
    verimorph("predict", model, *words, "--refine", 0).assert_user_error("--refine is 0")
    verimorph("predict", model, *words, "--val").assert_user_error("--pairs or --dataset")
    verimorph("predict", model, "--dataset", "ixii", "--root", tmp_path, "-o", out).assert_user_error("'ixi'")
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
        (found,) = torch.jit.load(str(file))(*images)
    elif suffix == ".pt2":
        (found,) = torch.export.load(str(file)).module()(*images)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == ["fixed", "moving"]
        values = session.run(["field"], {"fixed": images[0].numpy(), "moving": images[1].numpy()})
        found = torch.from_numpy(values[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


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
