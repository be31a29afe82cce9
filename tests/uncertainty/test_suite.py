"""The calibration suite: cases are kept and read again, folds do not see their own, the command learns and judges."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.uncertainty.toy_cases import NAMES, case

from verimorph.errors import InputError, OptionError
from verimorph.image import Image
from verimorph.io import write_image
from verimorph.uncertainty.bound import calibrate
from verimorph.uncertainty.cases import FOLDS, deal
from verimorph.uncertainty.scale import Fits, fit_scale
from verimorph.uncertainty.suite import (
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


def test_slices_are_not_judged_by_a_calibration_of_volumes() -> None:
    cases = [case(k) for k in range(10)]
    points = [one.points for one in cases]
    held = calibrate(points, name="held", calibrated_for="", scale=fit_scale(points, networks=1, steps=20))
    slices = replace(cases[3], points=replace(cases[3].points, ndim=2))
    with pytest.raises(OptionError, match="toy-image3-0 is 2-D, calibration 'held' 3-D"):
        check([*cases, slices], held)


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
