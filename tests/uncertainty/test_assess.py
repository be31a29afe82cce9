"""Evidence finds what is wrong where it is wrong; a bound, labels and a verdict come of it, in files and in metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.registration import Registration, register
from verimorph.transform import Affine, Composite, DisplacementField, parts_of
from verimorph.uncertainty.assess import (
    CalibratedSampler,
    Uncertainty,
    _label_uncertainty,
    _numbered,
    assess,
    calibrated_sampler,
    on_evidence,
)
from verimorph.uncertainty.bound import (
    FARTHER,
    LEVELS,
    Calibration,
    calibrate,
    read_calibration,
    write_calibration,
)
from verimorph.uncertainty.cases import Points
from verimorph.uncertainty.evidence import LOOKS, Evidence, as_field, gather
from verimorph.uncertainty.evidence import MAPS as ALL_MAPS
from verimorph.uncertainty.known import KnownPair, anatomy, foreground, known_pair
from verimorph.uncertainty.scale import fit_scale
from verimorph.uncertainty.verdict import WORDS, _has_sides, is_linear, judge, learn_verdict, pair_facts

MAPS = ("forward 1", "backward 1", "mismatch 1.5")


@pytest.fixture(scope="module")
def result(pair: KnownPair) -> Registration:
    labels = pair.moving.with_array(
        np.where(pair.moving.array > 120, 2, np.where(pair.moving.array > 40, 1, 0)).astype(np.uint8)
    )
    return register(
        fixed=pair.fixed, moving=pair.moving, moving_labels=labels, levels=(4, 2, 1), iterations=(40, 30, 10)
    )


@pytest.fixture(scope="module")
def evidence(result: Registration) -> Evidence:
    return gather(fixed=result.fixed, moving=result.moving, transform=result.transform)


def synthetic(random: np.random.Generator, kind: str, n: int = 400, k: int = 3) -> Points:
    """Errors that follow the first column, with normal components: a scale can be learned exactly."""
    x = np.exp(random.standard_normal((n, k)))
    error = x[:, 0] * np.linalg.norm(random.standard_normal((n, 3)), axis=1)
    return Points(MAPS, x, error, random.random(n) < 0.7, kind)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    random = np.random.default_rng(0)
    facts = [{"forward": random.normal(-2), "overlap": random.normal(0.1, 0.02)} for _ in range(40)]
    facts += [{"forward": random.normal(2), "overlap": random.normal(0.5, 0.1)} for _ in range(40)]
    points = [synthetic(random, "toy") for _ in range(30)]
    scale = fit_scale([synthetic(random, "toy") for _ in range(10)], networks=2, steps=300)
    held = calibrate(points, name="toy", calibrated_for="toys", scale=scale)
    return replace(held, verdict=learn_verdict(facts, [False] * 40 + [True] * 40))


@pytest.fixture(scope="module")
def sure(result: Registration, calibration: Calibration) -> Uncertainty:
    return assess(result, calibration=calibration)


def test_a_place_that_was_spoilt_stands_out(result: Registration, evidence: Evidence) -> None:
    grid = result.fixed.grid
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"))
    away = np.sqrt(((index - np.array([20, 22, 18]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    push = torch.zeros(1, 3, *grid.shape)
    push[0, 0] = torch.from_numpy(3 * np.exp(-((away / 4) ** 2))).float()
    spoilt = Composite([DisplacementField(grid, push), *parts_of(result.transform)])
    seen = gather(fixed=result.fixed, moving=result.moving, transform=spoilt)
    for name in ("forward 1", "backward 1"):
        before, after = evidence.maps[name], seen.maps[name]
        assert float(after[20, 22, 18]) > float(before[20, 22, 18]) + 2  # of 3 voxels
        assert abs(float(after[8, 22, 18]) - float(before[8, 22, 18])) < 0.7


def test_same_seed_same_evidence(result: Registration, evidence: Evidence) -> None:
    again = gather(fixed=result.fixed, moving=result.moving, transform=result.transform)
    assert all(torch.equal(again.maps[name], evidence.maps[name]) for name in evidence.maps)


def test_any_transform_is_taken(result: Registration, evidence: Evidence) -> None:
    """Not only a field on the fixed grid before a matrix. The same map written another way is taken apart into another
    matrix and field, which are the same map; looks that begin from there see what the others see."""
    still = DisplacementField(result.moving.grid, torch.zeros(1, 3, *result.moving.grid.shape))
    other = Composite([*parts_of(result.transform), still])
    matrix, u = as_field(other, result.fixed.grid, evidence.grid)
    places = np.argwhere(np.ones(evidence.grid.shape, bool))
    moved = evidence.grid.index_to_world(places + u[0].reshape(3, -1).T.numpy()) @ matrix[:3, :3].T + matrix[:3, 3]
    same = result.transform.map_points(evidence.grid.index_to_world(places))
    assert np.abs(moved - same).max() < 0.01
    seen = gather(fixed=result.fixed, moving=result.moving, transform=other)
    inside = evidence.maps["contrast 4"] > 0.05
    apart = {
        name: (seen.maps[name] - evidence.maps[name]).abs()[inside].median() for name in ("mismatch 1.5", "forward 1")
    }
    assert float(apart["mismatch 1.5"]) < 1e-3
    # Another matrix is knocked to another start: the look differs by less than it lies away.
    assert float(apart["forward 1"]) < 0.5 * float(evidence.maps["forward 1"][inside].median())


def test_scale_and_bound_hold_on_new_cases(calibration: Calibration) -> None:
    random = np.random.default_rng(9)
    new = [synthetic(random, "toy") for _ in range(60)]
    assert (
        np.corrcoef(calibration.scale(new[0].evidence, new[0].foreground)[0], np.log(new[0].evidence[:, 0]))[0, 1]
        > 0.95
    )
    for level in (0.5, 0.8, 0.9, 0.85):
        covered = np.mean([(p.error <= calibration.bound(p.evidence, p.foreground, level)).mean() for p in new])
        assert level - 0.03 < covered < level + 0.06


def test_every_kind_weighs_the_same() -> None:
    random = np.random.default_rng(1)
    many = [synthetic(random, "many") for _ in range(30)]
    few = [replace(p, error=10 * p.error, kind="few") for p in (synthetic(random, "few") for _ in range(3))]
    scale = fit_scale([*many, *few], networks=2, steps=300)
    alone = fit_scale(many, networks=2, steps=300)
    p = many[0]
    ratio = np.median(scale(p.evidence, p.foreground)[0] - alone(p.evidence, p.foreground)[0])
    assert ratio == pytest.approx(np.log(10) / 2, abs=0.2)


def test_an_image_finds_its_kind_or_none() -> None:
    random = np.random.default_rng(1)
    large, small = (16.0, 0.0, 0.0, 0.3, -3.5, -1.5, -4.0, 0.0), (11.0, 0.0, 0.0, 0.9, -3.3, -1.5, -2.0, 0.0)
    cases = [replace(synthetic(random, "large"), traits=large) for _ in range(5)]
    cases += [replace(p, error=5 * p.error, traits=small) for p in (synthetic(random, "small") for _ in range(5))]
    held = calibrate(cases, name="two", calibrated_for="two kinds", scale=fit_scale(cases, networks=1, steps=100))
    assert held.kind_of(large) == "large"
    assert held.kind_of((11.3, 0.1, 0.0, 0.85, -3.3, -1.6, -2.1, 0.0)) == "small"
    assert held.kind_of((9.0, 2.0, 3.0, 0.1, 0.0, 0.0, -2.0, 0.0)) == "any"
    one = cases[0]
    small, large = (held.bound(one.evidence, one.foreground, 0.8, kind) for kind in ("small", "large"))
    assert np.median(small / large) > 2
    # All kinds together carry the correction for few cases, a kind of its own with few does not.
    assert held.reach("small") == 0.95
    assert held.reach() == 0.9


def test_two_scans_are_told_from_a_scan_and_its_copy() -> None:
    random = np.random.default_rng(1)
    own, strange = (16.0, 0.0, 0.0, 0.3, -3.5, -1.5), (9.0, 2.0, 3.0, 0.1, 0.0, 0.0)
    cases = [replace(synthetic(random, "brain"), traits=(*own, -1.0 - k, 0.0)) for k in range(5)]
    scale = fit_scale(cases, networks=1, steps=50)
    assert calibrate(cases, name="no pairs", calibrated_for="", scale=scale).kind_of((*own, 2.0, 1.0)) == "brain"
    cases += [replace(synthetic(random, "brain-pairs"), traits=(*own, 1.0, 1.0)) for _ in range(4)]
    cases += [replace(synthetic(random, "lung-pairs"), traits=(*own, 1.0, 1.0)) for _ in range(4)]
    held = calibrate(cases, name="pairs", calibrated_for="", scale=scale)
    for traits, grids, kind in ((own, 0.0, "brain"), (own, 1.0, "brain-pairs"), (strange, 1.0, "pairs")):
        assert held.kind_of((*traits, -1.0, grids)) == kind
    # One grid: of all known deformations the way back ends nowhere farther off than a logarithm of -1.
    assert held.kind_of((*own, -1.0 + 0.9 * FARTHER, 0.0)) == "brain"
    assert held.kind_of((*own, -1.0 + 1.1 * FARTHER, 0.0)) == "brain-pairs"
    assert held.kind_of((*strange, -1.0 + 0.9 * FARTHER, 0.0)) == "any"
    assert held.kind_of((*strange, -1.0 + 1.1 * FARTHER, 0.0)) == "pairs"


def test_what_comes_of_it(sure: Uncertainty, result: Registration) -> None:
    grid = result.fixed.grid
    assert sure.error_mm.grid == grid
    assert sure.displacement_std.grid == grid
    assert float(sure.error_mm.array.min()) > 0
    assert sure.verdict in ("pass", "review", "fail")
    assert 0 <= sure.probability <= 1
    assert sure.label_uncertainty is not None
    assert (
        0 <= float(sure.label_uncertainty.array.min()) <= float(sure.label_uncertainty.array.max()) <= np.log(3) + 1e-5
    )
    assert set(sure.volumes) == {1, 2}
    for row in sure.volumes.values():
        assert row["low_ml"] < row["volume_ml"] < row["high_ml"]


def test_volumes_vary_as_the_drawn_labels_do(result: Registration, evidence: Evidence) -> None:
    """The interval against counting labels drawn on a fine grid; and a bound of nothing leaves nothing open."""
    grid = result.fixed.grid
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"))
    middle = (np.array(grid.shape) - 1).reshape(3, 1, 1, 1) / 2
    ball = np.sqrt(((index - middle) ** 2).sum(0)) < 9
    labels = Image.from_array(ball.astype(np.uint8) + 4 * (index == middle.round()).all(0).astype(np.uint8), grid)
    still = replace(result, transform=Affine(np.eye(4)), moving_labels=labels)
    widths = {}
    for bound in (1e-6, 1.5):
        sampler = CalibratedSampler(still.transform, evidence, {0.9: torch.full(evidence.grid.shape, bound)})
        _, volumes = _label_uncertainty(still, sampler, 0.9, 0, np.ones(grid.shape, bool))
        assert set(volumes) == {1, 5}
        assert volumes[1]["volume_ml"] == pytest.approx(float((ball.sum() - 1) * grid.voxel_volume / 1000))
        assert all(row["low_ml"] < row["volume_ml"] < row["high_ml"] for row in volumes.values())
        widths[bound] = (volumes[1]["high_ml"] - volumes[1]["low_ml"]) / volumes[1]["volume_ml"]
    assert widths[1e-6] < 1e-4
    fine = Grid(tuple(2 * n for n in grid.shape), grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0]))
    draws = sampler.draws(40, torch.Generator().manual_seed(1))
    counts = [float((one.transform.resample(labels, fine, interpolation="nearest").array > 0).sum()) for one in draws]
    counted = 2 * 1.645 * float(np.std(counts, ddof=1) / np.mean(counts))
    assert widths[1.5] == pytest.approx(counted, rel=0.5)


def test_the_bound_of_any_registration_gives_draws(result: Registration, calibration: Calibration) -> None:
    sampler = calibrated_sampler(result, calibration=calibration)
    points = result.fixed.grid.index_to_world(np.argwhere(foreground(result.fixed))[::50])
    first, again = (
        [d.transform.map_points(points) for d in sampler.draws(3, torch.Generator().manual_seed(2))] for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert np.linalg.norm(first[0] - first[1], axis=1).mean() > 0.01
    assert np.linalg.norm(np.mean(first, 0) - result.transform.map_points(points), axis=1).mean() < 5


def test_masks_bound_what_is_looked_at(result: Registration, calibration: Calibration) -> None:
    mask = np.zeros(result.fixed.grid.shape, np.uint8)
    mask[10:30, 10:34, 10:30] = 1
    image = result.fixed.with_array(mask)
    inside = anatomy(result.fixed, image)
    assert inside.any()
    assert not (inside & (mask == 0)).any()
    assert (anatomy(result.fixed, None) == foreground(result.fixed)).all()
    found = assess(replace(result, fixed_mask=image, moving_labels=None), calibration=calibration)
    assert found.foreground is not None
    assert (found.foreground == inside).all()


def test_a_linear_result_is_told_by_its_transform(result: Registration) -> None:
    assert is_linear(Affine(np.eye(4)))
    assert is_linear(Composite([Affine(np.eye(4)), Affine(np.diag([1.1, 1, 1, 1]))]))
    assert not is_linear(result.transform)


def test_facts_that_could_not_be_measured_never_pass(calibration: Calibration) -> None:
    assert judge({"forward": float("nan"), "overlap": 0.1}, calibration).verdict == "review"


def test_labels_are_uncertain_at_their_borders_only(sure: Uncertainty, result: Registration) -> None:
    from scipy import ndimage

    assert sure.label_uncertainty is not None
    assert result.moved_labels is not None
    labels = result.moved_labels.array
    border = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    far = ndimage.distance_transform_edt(~border) * 2.0 > 3 * float(np.percentile(sure.error_mm.array, 95))
    entropy = sure.label_uncertainty.array
    assert entropy[border].mean() > 5 * max(entropy[far].mean() if far.any() else 0.0, 0.01)


def test_draws_keep_within_the_bound(result: Registration, evidence: Evidence) -> None:
    bounds = {0.5: 0.3, 0.9: 1.5, 0.8: 0.9}  # voxels: many small errors and some large ones, as pairs of people have
    shape = evidence.grid.shape
    sampler = CalibratedSampler(result.transform, evidence, {q: torch.full(shape, b) for q, b in bounds.items()})
    points = evidence.grid.index_to_world(np.argwhere(np.ones(shape, bool))[::37])
    here = result.transform.map_points(points)
    lengths = np.concatenate(
        [
            np.linalg.norm(draw.transform.map_points(points) - here, axis=1)
            for draw in sampler.draws(30, torch.Generator().manual_seed(0))
        ]
    )
    # Errors of the fixed grid are stretched by the transform, by little.
    for level, bound in bounds.items():
        assert (lengths <= bound * evidence.unit_mm).mean() == pytest.approx(level, abs=0.04), level
    assert (lengths > 1.6 * evidence.unit_mm).any()


def test_files_and_metrics(result: Registration, calibration: Calibration, tmp_path: Path) -> None:
    file = write_calibration(calibration, tmp_path / "toy.json")
    result.assess(calibration=file, level=0.8)
    result.save(tmp_path / "out", report=False)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"error_mm.nii.gz", "displacement_std.nii.gz", "label_uncertainty.nii.gz"} <= names
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["calibrated"] is True
    assert metrics["uncertainty"]["level"] == 0.8
    assert metrics["uncertainty"]["calibration"] == "toy"
    assert metrics["verdict"]["verdict"] in ("pass", "review", "fail")
    assert metrics["verdict"]["reasons"]


def test_calibrations_are_read_as_written_or_refused(calibration: Calibration, tmp_path: Path) -> None:
    file = write_calibration(calibration, tmp_path / "toy.json")
    again = read_calibration(file)
    p = synthetic(np.random.default_rng(2), "toy")
    for level in LEVELS:
        assert np.allclose(
            again.bound(p.evidence, p.foreground, level), calibration.bound(p.evidence, p.foreground, level)
        )
    with pytest.raises(OptionError, match="reaches, from"):
        again.check(0.999)
    with pytest.raises(InputError, match="no calibration 'genral'"):
        read_calibration("genral")
    with pytest.raises(InputError) as raised:
        read_calibration("something")
    assert str(raised.value) == "no calibration 'something'; known: general (or give a file)"
    bare = json.loads(file.read_text())
    bare["scale"]["networks"] = [[]]
    for name, content in (("other", {"a": 1}), ("bare", bare)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="is no calibration"):
            read_calibration(tmp_path / f"{name}.json")
    old = json.loads(file.read_text())
    del old["format"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="of another version"):
        read_calibration(tmp_path / "old.json")
    strange = json.loads(file.read_text())
    strange["scale"]["names"][0] = "nosuch"
    (tmp_path / "strange.json").write_text(json.dumps(strange))
    with pytest.raises(InputError, match="evidence that is not gathered: nosuch"):
        read_calibration(tmp_path / "strange.json")


def test_all_evidence_is_named(evidence: Evidence) -> None:
    assert tuple(evidence.maps) == ALL_MAPS


def test_verdicts_follow_their_facts(calibration: Calibration) -> None:
    good = judge({"forward": -2.0, "overlap": 0.1}, calibration)
    bad = judge({"forward": 2.0, "overlap": 0.5}, calibration)
    assert (good.verdict, bad.verdict) == ("pass", "fail")
    assert good.probability < 0.1 < 0.9 < bad.probability
    assert "outlines" in bad.reasons or "second registration" in bad.reasons
    assert judge({"forward": 0.0}, replace(calibration, verdict=None)).verdict == "review"


def test_a_fact_that_could_not_be_measured_says_nothing(calibration: Calibration) -> None:
    assert calibration.verdict is not None
    mean = dict(zip(calibration.verdict["names"], calibration.verdict["mean"], strict=True))
    without = judge({"forward": 2.0}, calibration)
    assert without == judge({"forward": 2.0, "overlap": mean["overlap"]}, calibration)
    assert without.probability < judge({"forward": 2.0, "overlap": 0.5}, calibration).probability


def test_left_and_right_are_told_where_there_are_two_sides(head: Image) -> None:
    assert _has_sides(head)
    sagittal = Grid((1, 44, 36), head.grid.affine)
    assert not _has_sides(Image.from_array(head.array[:1], sagittal))
    assert _has_sides(Image.from_array(head.array[:, :1], Grid((40, 1, 36), head.grid.affine)))
    turned = Grid((44, 40, 36), head.grid.affine[:, [1, 0, 2, 3]])
    assert not _has_sides(Image.from_array(head.array.swapaxes(0, 1)[:, :1], Grid((44, 1, 36), turned.affine)))
    assert not _has_sides(Image.from_array(head.array[:, :, 18], Grid((40, 44), np.diag([2.0, 2.0, 1.0]))))


def test_reasons_say_which_way_left_and_right_fit() -> None:
    held = read_calibration("general")
    facts = dict.fromkeys(WORDS, -9.0)
    assert "fit better when exchanged" in judge(facts | {"mirror": 4.0}, held).reasons
    assert "fit nearly as well when exchanged" in judge(facts | {"mirror": -0.01, "scale": 9.0}, held).reasons


def test_a_registration_without_it_says_so(result: Registration, head: Image) -> None:
    other = replace(result, uncertainty=None)
    assert other.metrics["calibrated"] is False
    assert "verdict" not in other.metrics


def test_a_start_the_wrong_way_round_is_found_by_another_start(result: Registration) -> None:
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    centre = result.fixed.grid.centre
    turned[:3, 3] = centre - turned[:3, :3] @ centre
    wrong = register(
        fixed=result.fixed, moving=result.moving, initial=Affine(turned), stages=("deformable",), iterations=(10,)
    )
    facts = []
    for one in (result, wrong):
        seen = gather(fixed=one.fixed, moving=one.moving, transform=one.transform, looks=LOOKS[:2])
        facts.append(pair_facts(one, seen, on_evidence(foreground(one.fixed), seen.grid)))
    assert facts[0]["restart"] < 0.5
    assert facts[1]["restart"] > 2


def test_left_and_right_exchanged_are_told_though_the_sides_are_much_alike(head: Image) -> None:
    """As in a brain: what tells a side from the other is a tenth of the texture, and the shape is symmetric."""
    texture = head.array
    alike = head.with_array((texture + texture[::-1]) / 2 + 0.1 * texture)
    pair = known_pair(alike, seed=4)
    found = []
    for moving in (pair.moving, pair.moving.with_array(np.ascontiguousarray(pair.moving.array[::-1]))):
        one = register(fixed=pair.fixed, moving=moving, levels=(4, 2), iterations=(30, 20))
        seen = gather(fixed=one.fixed, moving=one.moving, transform=one.transform, looks=LOOKS[:2])
        found.append(pair_facts(one, seen, on_evidence(foreground(one.fixed), seen.grid))["mirror"])
    assert found[0] < -0.5
    assert found[1] > 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64, np.float32])
def test_labels_are_numbered_as_numpy_does(dtype: type) -> None:
    random = np.random.default_rng(0)
    some = [0, 3, 17, 200] if np.dtype(dtype).kind == "u" else [-5, 0, 3, 120]
    wide = [[3, 2**40], [np.iinfo(dtype).max - 7, np.iinfo(dtype).max]] if np.dtype(dtype).itemsize == 8 else [[7]]
    for values in (some, some[2:], *wide):
        labels = np.asfortranarray(random.choice(np.array(values, dtype), (9, 8, 7)))
        found, places = _numbered(labels)
        wanted, where = np.unique(labels, return_inverse=True)
        assert found.dtype == labels.dtype
        assert np.array_equal(found, wanted)
        assert np.array_equal(places, where.reshape(labels.shape))
