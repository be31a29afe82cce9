"""The calibration suite: cases are kept and read again, folds do not see their own, the command learns and judges."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from scipy import stats

from verimorph.cli import run
from verimorph.errors import InputError, OptionError
from verimorph.image import Image
from verimorph.io import write_image
from verimorph.uncertainty import bound
from verimorph.uncertainty.bound import calibrate, read_calibration, write_calibration
from verimorph.uncertainty.cases import FOLDS, Points, apart, deal, is_pairs, parted
from verimorph.uncertainty.scale import FLOOR, Fits, Scale, fit_scale, steps_for, with_pairs
from verimorph.uncertainty.suite import (
    Case,
    _alike,
    _surface,
    check,
    collect,
    cross_validated,
    digest,
    images_of,
    measure_pair,
    read_case,
    write_case,
)

NAMES = ("forward 1", "backward 1", "stretch")


def case(number: int, kind: str = "toy", factor: float = 1.0) -> Case:
    random = np.random.default_rng(number)
    x = np.exp(random.standard_normal((500, 3)))
    error = factor * x[:, 0] * np.linalg.norm(random.standard_normal((500, 3)), axis=1)
    points = Points(NAMES, x, error, random.random(500) < 0.7, kind, (*(1.0,) * 7, 0.0))
    return Case(f"{kind}-image{number}-0", points, x[:, 1], 1.0)


def test_a_case_is_read_as_it_was_kept(tmp_path: Path) -> None:
    one = case(1)
    write_case(one, tmp_path / "toy-image1-0.npz")
    again = read_case(tmp_path / "toy-image1-0.npz")
    assert again.name == one.name
    assert again.points.names == NAMES
    assert again.points.traits == one.points.traits
    assert np.allclose(again.points.error, one.points.error, rtol=1e-6)
    with np.load(tmp_path / "toy-image1-0.npz") as held:
        np.savez(tmp_path / "old.npz", **{key: held[key] for key in held if key != "format"})
    with pytest.raises(InputError, match=r"earlier version.*measured anew"):
        read_case(tmp_path / "old.npz")
    whole = (tmp_path / "toy-image1-0.npz").read_bytes()
    for damaged in (b"no", b"", whole[:500], whole[:-500], whole[:900] + bytes(300) + whole[1200:]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="measured anew"):
            read_case(tmp_path / "bad.npz")


def test_held_out_cases_are_covered() -> None:
    cases = [case(k) for k in range(24)]
    scale = fit_scale([c.points for c in cases], networks=1, steps=200)
    (row,) = cross_validated(cases, scale=scale)
    assert row.cases == 24
    for level, covered in row.coverage.items():
        assert float(level) - 0.03 < covered < float(level) + 0.07
    assert row.spearman > 0.5
    assert row.ause < row.ause_spread


def test_a_bound_that_is_too_small_shows() -> None:
    points = [case(k).points for k in range(20)]
    held = calibrate(points, name="toy", calibrated_for="", scale=fit_scale(points, networks=1, steps=200))
    (row,) = check([case(k, factor=4.0) for k in range(30, 34)], held)
    assert row.coverage["0.9"] < 0.5
    levels = np.array([float(level) for level in row.coverage])
    assert row.ece == pytest.approx(np.abs(np.array(list(row.coverage.values())) - levels).mean())
    (right,) = check([case(k) for k in range(30, 34)], held)
    assert right.ence < 0.35 < 1.5 < row.ence, "errors four times as large are three times too large"
    assert row.pooled == pytest.approx(right.pooled / 4, rel=0.15)
    assert row.own == pytest.approx(right.own, rel=0.1), "as sharp whatever the size that was guessed"
    assert right.own == pytest.approx(right.sharpness, rel=0.15)
    assert row.uce > 10 * right.uce


def test_the_expected_square_is_that_of_a_normal_logarithm() -> None:
    scale = fit_scale([case(k).points for k in range(4)], networks=1, steps=50)
    one = case(9).points
    m, s = scale(one.evidence[:1], one.foreground[:1])
    drawn = np.exp(m + s * np.random.default_rng(0).standard_normal(400_000))
    expected = scale.root_mean_square(one.evidence[:1], one.foreground[:1])
    assert np.sqrt((drawn**2).mean()) == pytest.approx(float(expected[0]), rel=0.05)


def test_patterns_name_kinds(tmp_path: Path, head: Image) -> None:
    for name in ("a", "b"):
        write_image(head, tmp_path / f"{name}.nii.gz")
    found = images_of([f"ball={tmp_path}/*.nii.gz"])
    assert [(kind, file.name) for kind, file in found] == [("ball", "a.nii.gz"), ("ball", "b.nii.gz")]
    with pytest.raises(InputError, match="no file fits"):
        images_of([f"{tmp_path}/*.mha"])
    (tmp_path / "sub=1").mkdir()
    write_image(head, tmp_path / "sub=1" / "c.nii.gz")
    for pattern, kind in ((f"{tmp_path}/sub=1/*.nii.gz", "images"), (f"ball={tmp_path}/sub=1/*.nii.gz", "ball")):
        assert images_of([pattern]) == [(kind, tmp_path / "sub=1" / "c.nii.gz")]
    for kind in ("any", "pairs", "ball-pairs", "a/b", ""):
        with pytest.raises(InputError, match="cannot name a kind"):
            images_of([f"{kind}={tmp_path}/*.nii.gz"])


def test_images_that_cannot_teach_are_named(tmp_path: Path, head: Image) -> None:
    holes = head.array.copy()
    holes[3, 3, 3] = np.nan
    for name, values, told in (("holes", holes, "1 NaN"), ("flat", np.ones_like(holes), "all voxels are 1")):
        write_image(head.with_array(values), tmp_path / f"{name}.nii.gz")
        with pytest.raises(InputError, match=rf"{name}.*{told}"):
            collect([("ball", tmp_path / f"{name}.nii.gz")], cases=1, folder=tmp_path / "cases")


def test_a_level_out_of_reach_has_no_coverage() -> None:
    cases = [case(k) for k in range(4)]
    points = [one.points for one in cases]
    held = calibrate(points, name="few", calibrated_for="", scale=fit_scale(points, networks=1, steps=50))
    row = check(cases, held)[0]
    assert held.reach() < 0.9
    assert np.isfinite(row.coverage["0.5"])
    assert all(np.isnan(row.coverage[level]) for level in ("0.9", "0.95"))
    assert np.isnan([row.sharpness, row.pooled, row.background]).all()
    assert np.isfinite([row.spearman, row.ause, row.ece]).all()


def test_few_cases_of_two_kinds_are_learned_from() -> None:
    points = [replace(case(k, kind).points, images=(f"{kind}{k}",)) for k in range(2) for kind in ("a", "b")]
    held = calibrate(points, name="few", calibrated_for="", steps=20)
    assert held.cases == {"a": 2, "b": 2}


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


@pytest.fixture
def quick_fit(monkeypatch) -> None:
    def quick(some, **_):
        return fit_scale(some, networks=1, steps=20)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", quick)


def kept(folder: Path, kind: str, *images: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    for k, own in enumerate(images):
        one = case(k, kind=kind)
        write_case(replace(one, points=replace(one.points, images=own)), folder / f"{one.name}.npz")


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


def test_pairs_alone_bound_pairs(tmp_path: Path) -> None:
    """Beside the sizes of another calibration; the bound is no absurd one however few they are."""
    cases, new = [case(k).points for k in range(8)], [pair(k) for k in range(60, 72)]
    base = with_pairs(fit_scale(cases, networks=1, steps=200), [*cases, *(pair(k) for k in range(40, 50))])
    for count in (4, 12, 20):
        level, points = 0.9, [pair(k) for k in range(count)]
        held = calibrate(points, name="pairs", calibrated_for="", scale=base)
        held = read_calibration(write_calibration(held, tmp_path / "pairs.json"))
        assert held.reach() >= level
        assert held.kind_of(new[0].traits) == "pairs"
        bounds = [held.bound(p.evidence, p.foreground, level, "pairs") for p in new]
        within = [np.mean(p.error <= bound) for p, bound in zip(new, bounds, strict=True)]
        assert np.mean(within) > level - 0.05
        ratio = np.median(np.concatenate(bounds)) / np.median(np.concatenate([p.error for p in new]))
        assert ratio < 8
    with pytest.raises(OptionError, match="there are 3 pairs of real scans and nothing else; 4 are the fewest"):
        calibrate(points[:3], name="pairs", calibrated_for="", scale=base)
    with pytest.raises(OptionError, match="alone do not say"):
        calibrate(points, name="pairs", calibrated_for="")


def test_a_fold_must_leave_two_cases() -> None:
    cases = [replace(case(k).points, images=(image,)) for k, image in enumerate("aabb")]
    assert parted(cases, [0, 0, 1, 1], 2)
    assert not parted(cases[:3], [0, 0, 1], 2)
    assert parted(cases[1:3], [0, 1], 1)  # of two cases there is one other
    assert not parted(cases, [0, 0, 0, 0], 2)


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


def test_slices_are_not_judged_by_a_calibration_of_volumes() -> None:
    cases = [case(k) for k in range(10)]
    points = [one.points for one in cases]
    held = calibrate(points, name="held", calibrated_for="", scale=fit_scale(points, networks=1, steps=20))
    slices = replace(cases[3], points=replace(cases[3].points, ndim=2))
    with pytest.raises(OptionError, match="toy-image3-0 is 2-D, calibration 'held' 3-D"):
        check([*cases, slices], held)


def test_a_mixture_of_slices_and_volumes_is_refused_before_any_is_measured(tmp_path: Path, capsys) -> None:
    for name, shape in (("flat", (20, 20)), ("deep", (20, 20, 20))):
        random = np.random.default_rng(0).random(shape).astype(np.float32)
        write_image(Image.from_array(random), tmp_path / f"{name}.nii.gz")
    words = [str(tmp_path / "*.nii.gz"), "-o", str(tmp_path / "c.json"), "--keep", str(tmp_path / "cases")]
    assert run(["calibrate", *words]) == 2
    assert "flat.nii.gz is 2-D and deep.nii.gz 3-D" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "cases").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "it lacks what one holds"),
        ("{}", "or something else"),
        ("{", "is no calibration"),
        (None, "folder"),
    ],
)
def test_what_is_no_calibration_is_refused_in_words(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "mine.json"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(InputError, match=told):
        read_calibration(path)


def test_the_kind_may_be_said(tmp_path: Path) -> None:
    held = read_calibration("general: cardiac-pairs", ndim=3)
    told = read_calibration("general", ndim=3)
    row = told.traits["brain"][0]
    assert told.kind_of(row) == "brain"
    assert held.kind_of(row) == held.kind == "cardiac-pairs"
    assert held.quantiles == told.quantiles
    with pytest.raises(InputError, match=r"no bound of its own for 'cardiac-pair'; it has .*cardiac-pairs"):
        read_calibration("general:cardiac-pair", ndim=3)
    with pytest.raises(InputError, match="for 'lung-mr-pairs', of which it knows 2 cases only"):
        read_calibration("general:lung-mr-pairs", ndim=3)
    assert held.digest == told.digest  # it is the same one
    assert read_calibration("general:slice-pairs", ndim=2).kind == "slice-pairs"
    with pytest.raises(InputError, match="no calibration 'genral'"):
        read_calibration("genral:brain", ndim=3)
    path = write_calibration(replace(told, name="mine"), tmp_path / "general")
    assert read_calibration(str(path)).name == "mine", "a path is no name"
    path = write_calibration(told, tmp_path / "of: mine.json")
    assert read_calibration(str(path), ndim=3).kind is None
    assert read_calibration(f"{path}:brain", ndim=3).kind == "brain"


def test_a_folder_of_cases_that_is_not_there_is_told_as_such(tmp_path: Path, capsys) -> None:
    assert run(["calibrate", "--keep", str(tmp_path / "none"), "-o", str(tmp_path / "c.json")]) == 2
    assert "there is no such folder" in capsys.readouterr().err.replace("\n", " ")


def test_what_cannot_be_said_is_explained(tmp_path: Path, capsys, quick_fit) -> None:
    kept(tmp_path / "cases", "toy", *((f"toy {k}",) for k in range(6)))
    assert run(["calibrate", "--keep", str(tmp_path / "cases"), "-o", str(tmp_path / "mine.json")]) == 0
    assert "-: no bound of that level" in capsys.readouterr().out


def test_many_pairs_carry_the_correction_for_their_number() -> None:
    """Of n exchangeable pairs the quantile at the level times (n + 1) / n; of few, as they are: every level has one."""
    cases = [case(k).points for k in range(20)]
    scale = fit_scale(cases, networks=1, steps=100)
    for count, share in ((20, 21 / 20), (19, 20 / 19), (18, 1.0)):
        pairs = [case(k, kind="toy-pairs", factor=3.0).points for k in range(40, 40 + count)]
        held = calibrate([*cases, *pairs], name="both", calibrated_for="", scale=scale)
        scores = np.concatenate([scale.scores(one)[one.foreground] for one in pairs])
        for level in (0.5, 0.8, 0.9, 0.95):
            expected = np.quantile(scores, min(level * share, 1.0))
            assert held.quantile(level, True, "pairs") == pytest.approx(expected, abs=0.03), level


def pair(number: int, factor: float = 3.0, kind: str = "toy-pairs") -> Points:
    """Two people: the images differ so much that all evidence is large; errors follow the third map alone."""
    random = np.random.default_rng(number)
    x = np.exp(2 + random.standard_normal((600, 3)))
    error = factor * np.sqrt(x[:, 2]) * np.abs(random.standard_normal(600))
    images = (f"a{number}", f"b{number}")
    return Points(NAMES, x, error, np.ones(600, bool), kind, (*(1.0,) * 6, 3.0, 1.0), images)


def test_the_size_of_errors_of_two_scans_is_learned_from_them() -> None:
    cases = [case(k).points for k in range(8)]
    pairs = [pair(k) for k in range(20, 32)]
    scale = with_pairs(fit_scale(cases, networks=1, steps=200), [*cases, *pairs])
    *weights, _ = scale.pairs
    assert weights[2] > 4 * max(abs(weights[0]), abs(weights[1]))
    held = calibrate([*cases, *pairs], name="both", calibrated_for="", scale=scale)
    new = [pair(k) for k in range(60, 72)]
    for level in (0.5, 0.8, 0.9):
        within = [np.mean(p.error <= held.bound(p.evidence, p.foreground, level, "toy-pairs")) for p in new]
        assert np.mean(within) == pytest.approx(level, abs=0.03)
    # What known deformations say of such evidence has wider bounds for the same coverage.
    blind = replace(scale, pairs=())
    without = calibrate([*cases, *pairs], name="both", calibrated_for="", scale=blind)
    widths = [
        np.median([np.median(c.bound(p.evidence, p.foreground, 0.9, "toy-pairs")) for p in new])
        for c in (held, without)
    ]
    assert widths[0] < 0.7 * widths[1]


def test_two_scans_alike_are_bounded_by_what_deformations_say() -> None:
    """One person scanned twice: evidence is small, and the bound is a multiple of that of known deformations."""
    cases = [case(k).points for k in range(8)]
    scale = with_pairs(fit_scale(cases, networks=1, steps=300), [*cases, *(pair(k) for k in range(20, 32))])
    x = np.exp(np.random.default_rng(5).normal(-1.5, 0.4, (500, 3)))
    m, s = scale(x, np.ones(500, bool))
    g = scale.of_pairs(x, np.ones(500, bool))
    assert np.median(m + s - g) < 0.1
    far = np.exp(np.random.default_rng(5).normal(2, 0.4, (500, 3)))
    m, s = scale(far, np.ones(500, bool))
    assert np.median(m + s - scale.of_pairs(far, np.ones(500, bool))) > 0.1


def test_the_size_of_pairs_is_that_of_a_t_distribution(monkeypatch) -> None:
    """What is minimised against SciPy's density, and its gradient against differences."""
    from scipy.optimize import check_grad, minimize

    seen = []

    def watched(loss, start, **options):
        random = np.random.default_rng(0)
        for _ in range(3):
            at = 0.3 * random.standard_normal(len(start))
            value, gradient = loss(at)
            away = check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], at, epsilon=1e-6)
            seen.append((at, value, away / np.linalg.norm(gradient)))
        for far in (-500.0, 500.0):  # as a line search may try
            value, gradient = loss(np.full(len(start), far))
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()
        return minimize(loss, start, **options)

    monkeypatch.setattr("verimorph.uncertainty.scale.minimize", watched)
    cases, pairs = [case(k).points for k in range(4)], [pair(k) for k in range(20, 24)]
    scale = fit_scale(cases, networks=1, steps=50)
    with_pairs(scale, [*cases, *pairs])
    assert len(seen) == 3
    assert max(away for *_, away in seen) < 1e-4
    for at, value, _ in seen:
        own = replace(scale, pairs=tuple(at))
        sizes = [np.exp(own.of_pairs(p.evidence, p.foreground)) for p in pairs]
        ratios = np.concatenate([(p.error + FLOOR) / g for p, g in zip(pairs, sizes, strict=True)])
        density = stats.t.logpdf(ratios, 3) - stats.t.logpdf(0, 3) - np.log(np.concatenate(sizes))
        assert value == pytest.approx(-density.mean() + 0.02 * np.sum(at[:-1] ** 2), rel=1e-5)


def test_no_pair_is_scored_by_a_size_that_saw_an_image_of_it(monkeypatch) -> None:
    """And each by one that learned from pairs, as the one in use has."""
    known = [replace(case(k).points, images=(f"image {k}",)) for k in range(8)]
    names = "abcdefgh"
    pairs = [replace(pair(20 + k), images=(names[k], names[(k + 1) % 8])) for k in range(8)]
    pairs += [replace(pair(40 + k, kind=f"other{k}-pairs"), images=(f"x{k}", f"y{k}")) for k in range(3)]
    seen, scored = [], []

    def learn(own, points):
        found = with_pairs(own, points)
        seen.append((found.pairs, {image for p in points if is_pairs(p.kind) for image in p.images}))
        return found

    def scores(self, points):
        if is_pairs(points.kind):
            scored.append((self.pairs, set(points.images)))
        return np.zeros(len(points.error))

    def quick(some, **_):
        return fit_scale(some, networks=1, steps=20)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", quick)
    monkeypatch.setattr("verimorph.uncertainty.bound.with_pairs", learn)
    monkeypatch.setattr(Scale, "scores", scores)
    held = calibrate([*known, *pairs], name="both", calibrated_for="")
    assert len(scored) == len(pairs)
    learned = dict(seen)
    for weights, images in scored:
        assert weights
        assert learned[weights]
        assert learned[weights].isdisjoint(images)
    assert learned[held.scale.pairs] == {image for p in pairs for image in p.images}


@pytest.mark.parametrize("kinds", [("a", "b", "c", "d"), ("a", "a", "b", "c"), ("a",) * 5])
def test_few_pairs_are_scored_as_they_are_used(kinds: tuple[str, ...]) -> None:
    """One pair a kind, or a few: each held out by itself, so that others are left to learn a size from."""
    known = [replace(case(k).points, images=(f"image {k}",)) for k in range(8)]
    pairs = [pair(20 + k, kind=f"{kind}-pairs") for k, kind in enumerate(kinds)]
    points, dealt = bound._parted([*known, *pairs], deal([*known, *pairs], FOLDS))
    for number in range(8, len(points)):
        left = apart(points, [own == dealt[number] for own in dealt])
        assert sum(is_pairs(p.kind) for p in left) >= 3


def test_single_images_of_several_kinds_are_held_out_one_by_one() -> None:
    points = [replace(case(k, kind=kind).points, images=(kind,)) for k, kind in enumerate("abc")]
    points, dealt = bound._parted(points, deal(points, FOLDS))
    assert len(set(dealt)) == 3


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


def test_labels_that_come_and_go_say_nothing() -> None:
    fixed, moving = (np.zeros((20, 20), np.uint8) for _ in range(2))
    fixed[:4], moving[:6] = 1, 1
    fixed[8:10], moving[8:15] = 2, 2  # more than three times as much
    fixed[12] = 3  # not in the other
    moving[18] = 4
    images = [Image.from_array(labels) for labels in (fixed, moving)]
    assert _alike(*images) == [1]
    # By what they cover, not by how many voxels that takes.
    finer = Image.from_array(moving.repeat(2, 0).repeat(2, 1), np.diag([0.5, 0.5, 1.0]))
    assert _alike(images[0], finer) == [1]
    other = Image.from_array(np.full((20, 20), 7, np.uint8))
    with pytest.raises(InputError, match="no label of which"):
        measure_pair(
            fixed=images[0], moving=images[0], fixed_labels=images[0], moving_labels=other, kind="x", name="x", seed=0
        )


@pytest.mark.parametrize("ndim", [2, 3])
def test_packaged_calibrations_know_pairs(ndim: int) -> None:
    held = read_calibration("general", ndim=ndim)
    assert sum(count for kind, count in held.cases.items() if is_pairs(kind)) > 40
    assert len(held.scale.pairs) == len(held.scale.names) + 1


def test_pairs_that_share_an_atlas_are_held_out_one_by_one() -> None:
    """Known deformations of other images keep their folds of images."""
    known = [replace(case(k).points, images=(f"image {k % 6}",)) for k in range(12)]
    pairs = [replace(pair(k), images=("atlas", f"b{k}")) for k in range(20, 26)]
    points = [*known, *pairs]
    dealt = deal(points, FOLDS)
    assert parted(known, dealt[:12], 2)
    assert not parted(pairs, dealt[12:], 3)
    found, folds = bound._parted(points, dealt)
    assert [p.images for p in found[:12]] == [p.images for p in known]
    assert list(folds[:12]) == list(dealt[:12])
    assert all(p.images == () for p in found[12:])
    assert len(set(folds[12:])) == 6
    assert set(folds[12:]).isdisjoint(folds[:12])


def test_no_case_teaches_what_judges_an_image_of_it() -> None:
    def one(number: int, kind: str, *images: str) -> Points:
        return replace(case(number, kind=kind).points, images=images)

    known = [one(k, "toy", "abcde"[k % 5]) for k in range(10)] + [one(k, "other", "xyz"[k % 3]) for k in range(6)]
    pairs = [one(20, "toy-pairs", "a", "b"), one(21, "toy-pairs", "b", "c"), one(22, "toy-pairs", "d", "e")]
    points = [*known, *pairs]
    dealt = deal(points, 5)
    assert all(first == second for first, second in zip(dealt[:5], dealt[5:10], strict=True))
    assert sorted(dealt[:5]) == [0, 1, 2, 3, 4]  # every fold has something of every kind that has so many images
    assert dealt[16:] == [5, 6, 7]  # pairs have folds of their own
    for fold in range(8):
        held = [own == fold for own in dealt]
        for of_pairs in (False, True):
            mine = [(p, out) for p, out in zip(points, held, strict=True) if is_pairs(p.kind) == of_pairs]
            images = {image for p, out in mine if out for image in p.images}
            rest = [p for p in apart(points, held) if is_pairs(p.kind) == of_pairs]
            assert rest
            assert all(images.isdisjoint(p.images) for p in rest)
            assert len(rest) == sum(images.isdisjoint(p.images) for p, _ in mine)
    assert len(set(deal([one(k, "toy") for k in range(4)], 4))) == 4


def test_equal_names_of_unequal_images_are_not_confused(tmp_path: Path) -> None:
    for folder, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t1.nii.gz").write_bytes(content)
    first, second, third = (digest(tmp_path / folder / "t1.nii.gz") for folder in "abc")
    assert first == third != second
    assert digest(tmp_path / "a") == first
    assert digest(tmp_path / "a" / "t1.nii.gz") == hashlib.blake2b(b"one", digest_size=4).hexdigest()  # of kept cases


def test_where_the_image_ends_is_no_surface() -> None:
    inside = np.zeros((6, 8, 8), bool)
    inside[:4, 2:6, 2:6] = True
    surface = _surface(inside)
    assert not surface[0, 3:5, 3:5].any()
    assert surface[3, 2:6, 2:6].all()
    assert surface[0, 2, 2:6].all()
    one_slice = inside[:1]
    assert int(_surface(one_slice).sum()) == 12


def test_pairs_reach_as_far_as_they_are_many() -> None:
    cases = [case(k).points for k in range(5)] + [case(k, kind="toy-pairs").points for k in range(20, 26)]
    held = calibrate(cases, name="few", calibrated_for="", scale=fit_scale(cases, networks=1, steps=50))
    assert held.reach() < 0.9 < held.reach("pairs")  # five deformations say nothing of 90 %
    with pytest.raises(OptionError, match="reaches"):
        held.check(0.9)
    held.check(0.9, "pairs")
    (row,) = check([case(30, kind="toy-pairs")], held)
    assert row.coverage["0.9"] > 0.6


def test_nested_folds_are_fitted_once_and_see_none_of_their_images(monkeypatch) -> None:
    cases = [case(k) for k in range(12)]
    cases = [replace(c, points=replace(c.points, images=(f"image {k}",))) for k, c in enumerate(cases)]
    points = [c.points for c in cases]
    seen: list[frozenset[str]] = []

    def fit(some, **_):
        seen.append(frozenset(p.images[0] for p in some))
        return fit_scale(some, networks=1, steps=1)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", fit)
    told: list[tuple[str, int, int]] = []
    fits = Fits(count=56, tell=lambda *words: told.append(words))
    calibrate(points, name="toy", calibrated_for="", fits=fits)
    cross_validated(cases, fits=fits)
    # Ten folds of twelve images: without each, of all, without every two; none twice.
    dealt = deal(points, FOLDS)
    without = {
        frozenset(p.images[0] for p, fold in zip(points, dealt, strict=True) if fold not in (a, b))
        for a in range(FOLDS)
        for b in range(FOLDS)
    }
    assert len(seen) == len(set(seen)) == 10 + 1 + 45
    assert set(seen) == without | {frozenset(p.images[0] for p in points)}
    assert told == [("learning", begun, 56) for begun in range(56)]


def test_few_cases_are_not_learned_by_heart() -> None:
    """Of 24 cases of 11 000 voxels a thousand steps were best, of 200 as many as there is time for."""
    one = Points(NAMES, np.ones((11_000, 3)), np.ones(11_000), np.ones(11_000, bool), "toy")
    pair = replace(one, kind="toy-pairs")

    def steps(count: int, *more: Points) -> int:
        return steps_for([*[one] * count, *more])

    assert steps(1) == 1000
    assert 1000 < steps(24) < 1400
    assert steps(24) == steps(24, pair), "pairs teach no sizes"
    assert steps(200) == 8000
    seen = []

    def fit(some, *, steps, stop):
        seen.append(steps)
        return fit_scale(some, networks=1, steps=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("verimorph.uncertainty.scale.fit_scale", fit)
        patch.setattr(bound, "steps_for", lambda some: 100 * len(some))
        calibrate([replace(case(k).points, images=(f"image {k}",)) for k in range(12)], name="toy", calibrated_for="")
    assert seen == [1200] * 11, "without a fold as with it"


def test_a_kind_left_out_teaches_nothing_of_itself(monkeypatch) -> None:
    factors = {"one": 1.0, "two": 1.0, "three": 100.0}
    cases = [case(10 * n + k, kind=kind, factor=factors[kind]) for n, kind in enumerate(factors) for k in range(6)]
    cases = [replace(c, points=replace(c.points, images=(c.name,))) for c in cases]
    seen: list[frozenset[str]] = []

    def fit(some, **_):
        seen.append(frozenset(p.images[0] for p in some))
        return fit_scale(some, networks=1, steps=1)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", fit)
    rows = {row.kind: row for row in cross_validated(cases, by="kind")}
    assert rows["three"].coverage["0.9"] < 0.1 < 0.8 < rows["two"].coverage["0.9"], "errors a hundred times as large"
    # For each kind one fit of all others, and one without each of half as many folds as there are of images.
    points = [c.points for c in cases]
    wanted = set()
    for kind in factors:
        others = [p for p in points if p.kind != kind]
        dealt = deal(others, FOLDS // 2)
        wanted |= {
            frozenset(p.images[0] for p, own in zip(others, dealt, strict=True) if own != fold)
            for fold in (*range(FOLDS // 2), None)
        }
    assert len(seen) == len(wanted) == 3 * (FOLDS // 2 + 1)
    assert set(seen) == wanted


def test_fits_beside_each_other_are_those_one_after_the_other(monkeypatch) -> None:
    cases = [case(k).points for k in range(4)]
    sets = [cases[:2], cases[2:], cases[1:], cases[:2]]
    wanted = [fit_scale(some, steps=30) for some in sets]
    met, threads = Barrier(2, timeout=60), torch.get_num_threads()

    def fit(some, **more):
        assert torch.get_num_threads() == 1
        if len(some) == 2:
            met.wait()  # for another: one after the other they would never meet
        return fit_scale(some, **more)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", fit)
    try:
        torch.set_num_threads(3)
        assert Fits()(sets, steps=30) == wanted
        assert torch.get_num_threads() == 3, "as many as before"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("failing", [0, 1])
def test_fits_end_when_one_fails(monkeypatch, failing: int) -> None:
    cases = [case(k).points for k in range(3)]
    begun, ended = Event(), Event()

    def fit(some, *, stop, **_):
        if some[0] is cases[failing]:
            begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        try:
            fit_scale(some, steps=10**9, stop=stop)
        finally:
            ended.set()

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", fit)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            Fits()([[one] for one in cases], steps=1)
        assert ended.is_set()
    finally:
        torch.set_num_threads(threads)


def test_the_same_evidence_is_fitted_once() -> None:
    """Whatever objects hold it."""
    fits = Fits()
    one = [replace(case(k).points, kind="toy") for k in range(3)]
    first = fits([one], steps=1)
    assert fits([[replace(p) for p in one]], steps=1)[0] is first[0]
    assert fits([[*one, replace(case(9).points, kind="toy-pairs")]], steps=1)[0] is first[0], "pairs teach no sizes"
    assert fits([one], steps=2)[0] is not first[0]
    assert fits([[replace(p, error=p.error.copy()) for p in one]], steps=1)[0] is not first[0], "other errors"


def test_the_scale_is_the_mean_of_its_networks() -> None:
    """Against the formula, written out in float64."""
    points = [case(k).points for k in range(3)]
    scale, one = fit_scale(points, networks=2, steps=20), case(9).points
    logs = np.log(one.evidence + FLOOR)
    z = np.clip((logs - np.array(scale.mean)) / np.array(scale.deviation), -3.5, 3.5)
    total = np.zeros((len(z), 2))
    for net in scale.networks:
        x = np.c_[z, one.foreground]
        for number, (weight, offset) in enumerate(net):
            x = x / (1 + np.exp(-x)) if number else x
            x = x @ np.array(weight).T + np.array(offset)
        total += x / 2
    m, s = scale(one.evidence, one.foreground)
    assert np.allclose(m, total[:, 0], atol=1e-5)
    assert np.allclose(s, np.exp(np.clip(total[:, 1], -2, 1)), rtol=1e-5)


def test_threads_are_counted_before_torch_is_loaded(tmp_path: Path) -> None:
    words = ["calibrate", "--keep", str(tmp_path), "-o", str(tmp_path / "c.json"), "-j", "1"]
    code = f"from verimorph.cli import run; run({words}); import torch; print(torch.get_num_threads())"
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=free)
    assert "holds no case" in done.stderr
    assert done.stdout.split() == ["1"], done.stderr


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("mean", [0.0]),
        ("mean", [float("nan")] * 30),
        ("deviation", [0.0] * 30),
        ("names", ["stretch"]),
        ("networks", []),
        ("pairs", [0.0] * 3),
        ("pairs", [float("nan")] * 31),
    ],
)
def test_a_damaged_calibration_is_refused_before_the_work(tmp_path: Path, part: str, value: list) -> None:
    held = json.loads((bound.CALIBRATIONS / "general.json").read_text())
    read_calibration("general")
    held["scale"][part] = value
    (tmp_path / "damaged.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match="is no calibration"):
        read_calibration(tmp_path / "damaged.json")
    held = json.loads((bound.CALIBRATIONS / "general.json").read_text())
    held["scale"]["networks"][1][2][0][5].pop()
    (tmp_path / "damaged.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match="is no calibration"):
        read_calibration(tmp_path / "damaged.json")
