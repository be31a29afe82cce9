"""What a calibration is learned from, what it promises, and how it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.uncertainty.toy_cases import case, real_pair

from verimorph.errors import InputError, OptionError
from verimorph.uncertainty import bound
from verimorph.uncertainty.bound import calibrate, read_calibration, write_calibration
from verimorph.uncertainty.cases import FOLDS, Points, apart, deal, is_pairs, parted
from verimorph.uncertainty.scale import Scale, fit_scale, with_pairs
from verimorph.uncertainty.suite import check


def test_few_cases_of_two_kinds_are_learned_from() -> None:
    points = [replace(case(k, kind).points, images=(f"{kind}{k}",)) for k in range(2) for kind in ("a", "b")]
    held = calibrate(points, name="few", calibrated_for="", steps=20)
    assert held.cases == {"a": 2, "b": 2}


def test_pairs_alone_bound_pairs(tmp_path: Path) -> None:
    """Beside the sizes of another calibration; the bound is no absurd one however few they are."""
    cases, new = [case(k).points for k in range(8)], [real_pair(k) for k in range(60, 72)]
    base = with_pairs(fit_scale(cases, networks=1, steps=200), [*cases, *(real_pair(k) for k in range(40, 50))])
    for count in (4, 12, 20):
        level, points = 0.9, [real_pair(k) for k in range(count)]
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


def test_no_pair_is_scored_by_a_size_that_saw_an_image_of_it(monkeypatch) -> None:
    """And each by one that learned from pairs, as the one in use has."""
    known = [replace(case(k).points, images=(f"image {k}",)) for k in range(8)]
    names = "abcdefgh"
    pairs = [replace(real_pair(20 + k), images=(names[k], names[(k + 1) % 8])) for k in range(8)]
    pairs += [replace(real_pair(40 + k, kind=f"other{k}-pairs"), images=(f"x{k}", f"y{k}")) for k in range(3)]
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
    pairs = [real_pair(20 + k, kind=f"{kind}-pairs") for k, kind in enumerate(kinds)]
    points, dealt = bound._parted([*known, *pairs], deal([*known, *pairs], FOLDS))
    for number in range(8, len(points)):
        left = apart(points, [own == dealt[number] for own in dealt])
        assert sum(is_pairs(p.kind) for p in left) >= 3


def test_single_images_of_several_kinds_are_held_out_one_by_one() -> None:
    points = [replace(case(k, kind=kind).points, images=(kind,)) for k, kind in enumerate("abc")]
    points, dealt = bound._parted(points, deal(points, FOLDS))
    assert len(set(dealt)) == 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_packaged_calibrations_know_pairs(ndim: int) -> None:
    held = read_calibration("general", ndim=ndim)
    assert sum(count for kind, count in held.cases.items() if is_pairs(kind)) > 40
    assert len(held.scale.pairs) == len(held.scale.names) + 1


def test_pairs_that_share_an_atlas_are_held_out_one_by_one() -> None:
    """Known deformations of other images keep their folds of images."""
    known = [replace(case(k).points, images=(f"image {k % 6}",)) for k in range(12)]
    pairs = [replace(real_pair(k), images=("atlas", f"b{k}")) for k in range(20, 26)]
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


def test_pairs_reach_as_far_as_they_are_many() -> None:
    cases = [case(k).points for k in range(5)] + [case(k, kind="toy-pairs").points for k in range(20, 26)]
    held = calibrate(cases, name="few", calibrated_for="", scale=fit_scale(cases, networks=1, steps=50))
    assert held.reach() < 0.9 < held.reach("pairs")  # five deformations say nothing of 90 %
    with pytest.raises(OptionError, match="reaches"):
        held.check(0.9)
    held.check(0.9, "pairs")
    (row,) = check([case(30, kind="toy-pairs")], held)
    assert row.coverage["0.9"] > 0.6


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
