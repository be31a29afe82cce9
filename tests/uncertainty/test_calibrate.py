"""``verimorph calibrate``, from kept cases and from lists."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.uncertainty.toy_cases import case, kept

from verimorph.cli import run
from verimorph.image import Image
from verimorph.io import write_image
from verimorph.uncertainty.bound import calibrate, read_calibration, write_calibration
from verimorph.uncertainty.scale import fit_scale
from verimorph.uncertainty.suite import write_case


def test_the_command_learns_from_kept_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cases"
    folder.mkdir()
    for k in range(10):
        one = case(k)
        write_case(one, folder / f"{one.name}.npz")
    points = [case(k).points for k in range(20, 30)]
    base = calibrate(points, name="base", calibrated_for="", scale=fit_scale(points, networks=1, steps=100))
    write_calibration(base, tmp_path / "base.json")
    learn = ["calibrate", "--keep", str(folder), "-o", str(tmp_path / "mine.json"), "--for", "toys"]
    assert run([*learn, "--base", str(tmp_path / "base.json")]) == 0
    assert "every image judged without itself" in capsys.readouterr().out
    held = read_calibration(tmp_path / "mine.json")
    assert (held.name, held.calibrated_for, held.cases) == ("mine", "toys", {"toy": 10})
    assert held.verdict == read_calibration("general").verdict  # else 'register --strict' would never say fail


def test_a_calibration_of_slices_has_the_verdict_of_slices(tmp_path: Path, quick_fit: None) -> None:
    folder = tmp_path / "cases"
    folder.mkdir()
    for k in range(4):
        one = case(k)
        write_case(replace(one, points=replace(one.points, ndim=2)), folder / f"{one.name}.npz")
    assert run(["calibrate", "--keep", str(folder), "-o", str(tmp_path / "mine.json"), "--for", "toys"]) == 0
    held = read_calibration(tmp_path / "mine.json")
    assert held.verdict == read_calibration("general", ndim=2).verdict != read_calibration("general").verdict


@pytest.mark.parametrize(
    "pairs",
    [[(f"image {k}", "atlas") for k in range(6)], [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")]],
    ids=["one atlas", "a ring of four"],
)
def test_pairs_that_share_their_images_are_learned_from(tmp_path: Path, capsys, quick_fit, pairs) -> None:
    kept(tmp_path / "cases", "toy-pairs", *pairs)
    words = ["calibrate", "--keep", str(tmp_path / "cases"), "-o", str(tmp_path / "mine.json")]
    assert run(words) == 2
    assert "alone do not say how small errors are" in " ".join(capsys.readouterr().err.split())
    base = calibrate([case(k).points for k in range(8)], name="base", calibrated_for="", steps=50)
    assert run([*words, "--base", str(write_calibration(base, tmp_path / "base.json"))]) == 0
    told = capsys.readouterr()
    assert "how the bound does on other images is not known" in " ".join(told.err.split())
    assert "judged without itself" not in told.out  # nothing was apart from what it would be judged by
    held = read_calibration(tmp_path / "mine.json")
    assert held.cases == {"toy-pairs": len(pairs)}
    assert held.kind == "pairs"


def test_pairs_of_a_kind_are_no_kind_of_their_own(tmp_path: Path, capsys, quick_fit) -> None:
    folder = tmp_path / "cases"
    kept(folder, "toy", *((f"toy {k}",) for k in range(3)))
    kept(folder, "toy-pairs", *((f"fixed {k}", f"moving {k}") for k in range(3)))
    learn = ["calibrate", "--keep", str(folder), "-o", str(tmp_path / "mine.json"), "--by-kind"]
    assert run(learn) == 2
    assert "here is toy;" in capsys.readouterr().err
    assert not (tmp_path / "mine.json").exists()
    kept(folder, "other", *((f"other {k}",) for k in range(3)))
    assert run(learn) == 0
    assert "every kind judged without itself" in capsys.readouterr().out


def test_a_calibration_takes_no_image_s_place(tmp_path: Path, head: Image, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "scan.nii.gz"
    write_image(head, image)
    before = image.read_bytes()
    for output, told in ((image, "is an input"), (tmp_path, "is a folder"), ("/proc/x.json", "cannot be written")):
        assert run(["calibrate", str(image), "-n", "2", "-o", str(output)]) == 2
        error = capsys.readouterr().err
        assert told in error.replace("\n", " ")
        assert "Traceback" not in error
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.nii.gz"], "either -o FILE"),
        (["-o", "a.json"], "no images are given"),
        (["none/*.nii.gz", "-o", "a.json"], "no file fits"),
        (["none/*.nii.gz", "--check", "genral"], "no calibration 'genral'"),
        (["x.nii.gz", "--check", "general", "--for", "toys", "--by-kind"], "--by-kind and --for are of a calibration"),
        (["x.nii.gz", "--check", "general", "--base", "general", "--name", "mine"], "--base and --name are"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["toy,a,b,a,b", "toy,a,b,a,d"], "pairs.csv, row 2: d not found"),
        (["toy,a,b,a,b", "toy,b,a,b,a", "toy,a,b,a,b"], "row 3: is the pair of row 1 once more"),
        (["toy,a,c,a,c"], "row 1: the two scans are one and the same"),
        (["../../toy,a,b,a,b"], "row 1: '../../toy' cannot name a kind"),
        (["toy-pairs,a,b,a,b"], "row 1: 'toy-pairs' cannot name a kind"),
        (["toy,a,b,,b"], "row 1: fixed_labels missing"),
        ([], "pairs.csv: lists no pair"),
    ],
)
def test_a_list_is_read_to_its_end_before_work_begins(tmp_path: Path, capsys, monkeypatch, rows, told) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(name).write_text(name.replace("c", "a"))  # by what they hold, not by their names
    Path("pairs.csv").write_text("\n".join(["kind,fixed,moving,fixed_labels,moving_labels", *rows, ""]))
    monkeypatch.delenv("VERIMORPH_DATA", raising=False)
    for words in (["--check", "general"], ["-o", "a.json", "--by-kind"]):
        assert run(["calibrate", "--pairs", "pairs.csv", *words]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert told in error
        assert "Traceback" not in error
    assert not list(tmp_path.glob("*.cases"))


def test_what_cannot_be_is_refused_before_images_are_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERIMORPH_DATA", raising=False)
    for number in range(4):
        random = np.random.default_rng(number).random((12, 12, 12)).astype(np.float32)
        write_image(Image.from_array(random), Path(f"{number}.nii.gz"))
    lines = [f"toy,{k}.nii.gz,{k + 1}.nii.gz,{k}.nii.gz,{k + 1}.nii.gz" for k in range(3)]
    Path("pairs.csv").write_text("\n".join(["kind,fixed,moving,fixed_labels,moving_labels", *lines, ""]))
    for words, told in (
        (["-o", "a.json", "--base", "general"], "lists 3 of the 4 pairs that are the fewest"),
        (["-o", "a.json"], "alone do not say how small errors are"),
        (["--check", "general:nonsense"], "no bound of its own for 'nonsense'; it has abdomen,"),
        (["--check", "general-2d"], "'general-2d' was learned on 2-D images, these are 3-D"),
        (["-o", "a.json", "--base", "general:brain"], "a kind has no meaning there"),
    ):
        assert run(["calibrate", "--pairs", "pairs.csv", *words]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.cases"))


def test_a_mixture_of_slices_and_volumes_is_refused_before_any_is_measured(tmp_path: Path, capsys) -> None:
    for name, shape in (("flat", (20, 20)), ("deep", (20, 20, 20))):
        random = np.random.default_rng(0).random(shape).astype(np.float32)
        write_image(Image.from_array(random), tmp_path / f"{name}.nii.gz")
    words = [str(tmp_path / "*.nii.gz"), "-o", str(tmp_path / "c.json"), "--keep", str(tmp_path / "cases")]
    assert run(["calibrate", *words]) == 2
    assert "flat.nii.gz is 2-D and deep.nii.gz 3-D" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "cases").exists()


def test_a_folder_of_cases_that_is_not_there_is_told_as_such(tmp_path: Path, capsys) -> None:
    assert run(["calibrate", "--keep", str(tmp_path / "none"), "-o", str(tmp_path / "c.json")]) == 2
    assert "there is no such folder" in capsys.readouterr().err.replace("\n", " ")


def test_what_cannot_be_said_is_explained(tmp_path: Path, capsys, quick_fit) -> None:
    kept(tmp_path / "cases", "toy", *((f"toy {k}",) for k in range(6)))
    assert run(["calibrate", "--keep", str(tmp_path / "cases"), "-o", str(tmp_path / "mine.json")]) == 0
    assert "-: no bound of that level" in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, 5])
def test_pairs_that_are_too_few_are_told_of(tmp_path: Path, capsys, quick_fit, count: int) -> None:
    """A row of theirs would show the bound of known deformations, which is not theirs."""
    folder = tmp_path / "cases"
    kept(folder, "toy", *((f"toy {k}",) for k in range(12)))
    kept(folder, "toy-pairs", *(("atlas", f"moving {k}") for k in range(count)))
    assert run(["calibrate", "--keep", str(folder), "-o", str(tmp_path / "mine.json")]) == 0
    shown = capsys.readouterr()
    told = " ".join(shown.err.split())
    assert ("4 are the fewest" if count == 2 else "bound of pairs of real scans was not judged") in told
    assert "toy-pairs" not in shown.out


def test_threads_are_counted_before_torch_is_loaded(tmp_path: Path) -> None:
    words = ["calibrate", "--keep", str(tmp_path), "-o", str(tmp_path / "c.json"), "-j", "1"]
    code = f"from verimorph.cli import run; run({words}); import torch; print(torch.get_num_threads())"
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=free)
    assert "holds no case" in done.stderr
    assert done.stdout.split() == ["1"], done.stderr
