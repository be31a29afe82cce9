"""Sizes of errors learned from evidence, and those of two scans."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from scipy import stats
from tests.uncertainty.toy_cases import NAMES, case, real_pair

from verimorph.uncertainty import bound
from verimorph.uncertainty.bound import calibrate
from verimorph.uncertainty.cases import Points
from verimorph.uncertainty.scale import FLOOR, Fits, fit_scale, steps_for, with_pairs


def test_the_expected_square_is_that_of_a_normal_logarithm() -> None:
    scale = fit_scale([case(k).points for k in range(4)], networks=1, steps=50)
    one = case(9).points
    m, s = scale(one.evidence[:1], one.foreground[:1])
    drawn = np.exp(m + s * np.random.default_rng(0).standard_normal(400_000))
    expected = scale.root_mean_square(one.evidence[:1], one.foreground[:1])
    assert np.sqrt((drawn**2).mean()) == pytest.approx(float(expected[0]), rel=0.05)


def test_the_size_of_errors_of_two_scans_is_learned_from_them() -> None:
    cases = [case(k).points for k in range(8)]
    pairs = [real_pair(k) for k in range(20, 32)]
    scale = with_pairs(fit_scale(cases, networks=1, steps=200), [*cases, *pairs])
    *weights, _ = scale.pairs
    assert weights[2] > 4 * max(abs(weights[0]), abs(weights[1]))
    held = calibrate([*cases, *pairs], name="both", calibrated_for="", scale=scale)
    new = [real_pair(k) for k in range(60, 72)]
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
    scale = with_pairs(fit_scale(cases, networks=1, steps=300), [*cases, *(real_pair(k) for k in range(20, 32))])
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
    cases, pairs = [case(k).points for k in range(4)], [real_pair(k) for k in range(20, 24)]
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
