"""Measures of an uncertainty: golden numbers, laws, and agreement with independent code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from verimorph.errors import InputError
from verimorph.uncertainty import metrics as m


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def gaussian(random):
    """Displacement errors in three dimensions with a known spread a voxel, mm: lengths, and root of the trace."""
    spread = random.uniform(0.3, 3.0, 60_000)
    error = np.linalg.norm(random.normal(size=(60_000, 3)) * spread[:, None] / np.sqrt(3), axis=1)
    return error, spread


# --- golden numbers of the reference document -------------------------------------------------------------------------

CONFIDENCES = np.array([0.9, 0.8, 0.7, 0.6])
OUTCOMES = np.array([1, 1, 0, 1])


def test_golden_ece_with_right_closed_bins():
    assert m.expected_calibration_error(CONFIDENCES, OUTCOMES, bins=10) == pytest.approx(0.35)
    assert m.reliability(CONFIDENCES, OUTCOMES, bins=10).largest_gap == pytest.approx(0.7)


def test_golden_brier_is_twice_the_single_channel_form():
    both = np.stack([1 - CONFIDENCES, CONFIDENCES])
    assert m.brier_score(both, OUTCOMES) == pytest.approx(2 * 0.175)


def test_nll_is_the_mean_surprise():
    both = np.stack([1 - CONFIDENCES, CONFIDENCES])
    assert m.negative_log_likelihood(both, OUTCOMES) == pytest.approx(-np.log([0.9, 0.8, 0.3, 0.6]).mean())
    certain_and_wrong = np.array([[1.0], [0.0]])
    assert m.negative_log_likelihood(certain_and_wrong, np.array([1])) == pytest.approx(-np.log(1e-12))


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_coverage_counts_what_is_at_most_the_bound():
    errors, bounds = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 1.0, np.inf, 1.0])
    assert m.coverage(errors, bounds) == pytest.approx(2 / 3)
    assert np.isnan(m.coverage(np.zeros(0), np.zeros(0)))


def test_clopper_pearson_is_scipys():
    for covered, n in ((0, 12), (7, 12), (12, 12)):
        theirs = stats.binomtest(covered, n).proportion_ci(0.9, method="exact")
        assert m.coverage_interval(covered, n, confidence=0.9) == pytest.approx((theirs.low, theirs.high))


def test_true_quantiles_cover_every_level(gaussian):
    error, spread = gaussian
    levels = np.array([0.2, 0.5, 0.8, 0.9, 0.95])
    bounds = [spread * stats.chi.ppf(level, 3) / np.sqrt(3) for level in levels]
    np.testing.assert_allclose(m.coverage_curve(error, bounds), levels, atol=0.01)
    np.testing.assert_allclose(m.gaussian_coverage_curve(error, spread, levels, dimensions=3), levels, atol=0.01)


def test_one_dimensional_gaussian_curve_uses_normal_quantiles(random):
    error = np.abs(random.normal(size=1000))
    ours = m.gaussian_coverage_curve(error, np.ones(1000), np.array([0.9]))
    assert ours[0] == pytest.approx((error <= stats.norm.ppf(0.95)).mean())


def test_scaled_by_its_factor_a_bound_covers_just_the_level(gaussian):
    error, spread = gaussian
    bound = 5.0 * spread
    factor = m.factor_for_level(error, bound, 0.9)
    assert factor < 1
    # one unit in the last place more: the product rounds
    assert m.coverage(error, np.nextafter(factor * bound, np.inf)) == pytest.approx(0.9, abs=1e-4)
    curve = m.scaled_coverage_curve(error, bound, np.array([0.0, factor, 1.0, 100.0]))
    np.testing.assert_allclose(curve, [0.0, 0.9, m.coverage(error, bound), 1.0], atol=1e-4)


def test_factor_at_bounds_of_zero():
    assert m.factor_for_level(np.array([0.0, 0.0]), np.zeros(2), 0.9) == 0.0
    assert m.factor_for_level(np.array([0.0, 1.0]), np.zeros(2), 0.9) == np.inf


def test_sharpness_of_the_best_constant_bound(gaussian):
    error = gaussian[0] / gaussian[1]
    bound = np.full(error.shape, stats.chi.ppf(0.9, 3) / np.sqrt(3))
    assert m.sharpness(error, bound) == pytest.approx(1.63, abs=0.02)
    assert np.isnan(m.sharpness(np.zeros(3), np.ones(3)))


def test_groups_hide_behind_the_overall_coverage(random):
    error = random.uniform(0, 1, 20_000)
    groups = np.repeat([3, 7], 10_000)
    bound = np.where(groups == 3, 0.8, 1.0)
    assert m.coverage(error, bound) == pytest.approx(0.9, abs=0.01)
    first, second = m.group_coverage(error, bound, groups, level=0.9)
    assert (first["group"], second["group"]) == (3, 7)
    assert first["coverage"] == pytest.approx(0.8, abs=0.01)
    assert first["gap"] == pytest.approx(-0.1, abs=0.01)
    assert first["factor_for_level"] == pytest.approx(0.9 / 0.8, abs=0.02)
    assert second["coverage"] == 1.0
    assert first["n"] + second["n"] == 20_000
    # a voxel's bound says nothing about which voxels are covered: the conditional gap sees it too
    assert m.conditional_coverage_gap(error, bound, level=0.9, bins=2) == pytest.approx(0.1, abs=0.01)


def test_bound_reliability_lies_on_the_diagonal_where_the_bound_is_the_quantile(gaussian):
    error, spread = gaussian
    bound = spread * stats.chi.ppf(0.9, 3) / np.sqrt(3)
    found = m.bound_reliability(error, bound, level=0.9, bins=10)
    np.testing.assert_allclose(found.observed, found.predicted, rtol=0.05)
    assert found.counts.sum() == error.size
    assert m.conditional_coverage_gap(error, bound, level=0.9) < 0.01
    flat = np.full(error.shape, np.quantile(error, 0.9))
    assert m.conditional_coverage_gap(error, np.where(spread > 1.5, flat, flat + 1e-9), level=0.9, bins=2) > 0.05


def test_levels_outside_the_unit_interval_are_refused():
    for call in (m.group_coverage, m.bound_reliability):
        args = (np.ones(2), np.ones(2)) + ((np.ones(2),) if call is m.group_coverage else ())
        with pytest.raises(InputError, match=r"0\.9"):
            call(*args, level=90)


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_calibrated_probabilities_have_little_ece(random):
    p = random.uniform(0, 1, 100_000)
    hit = random.uniform(size=p.size) < p
    for binning in ("width", "mass"):
        assert m.expected_calibration_error(p, hit, binning=binning) < 0.01
    assert m.expected_calibration_error(p**2, hit) > 0.1


def test_label_calibration_of_drawn_labels(random):
    logits = random.normal(size=(4, 40, 40, 40)) * 2
    p = np.exp(logits) / np.exp(logits).sum(0)
    drawn = (p.cumsum(0) < random.uniform(size=p.shape[1:])).sum(0).clip(0, 3)
    for classwise in (False, True):
        assert m.label_calibration_error(p, drawn, classwise=classwise) < 0.01
    sharp = p**3 / (p**3).sum(0)
    assert m.label_calibration_error(sharp, drawn) > 0.1


def test_background_swamps_the_error_unless_left_out():
    p = np.zeros((2, 1000))
    p[0], p[1] = 0.999, 0.001
    p[:, :10] = [[0.2], [0.8]]
    labels = np.zeros(1000, int)
    labels[:4] = 1
    assert m.label_calibration_error(p, labels) < 0.01
    assert m.label_calibration_error(p, labels, foreground_only=True) == pytest.approx(0.4)
    mask = np.zeros(1000, bool)
    mask[:10] = True
    assert m.label_calibration_error(p, labels, mask=mask) == pytest.approx(0.4)
    assert m.label_calibration_error(p, labels, mask=mask, classwise=True) == pytest.approx(0.4)


def test_labels_without_a_channel_are_refused():
    with pytest.raises(InputError, match="classes 0 to 1"):
        m.brier_score(np.full((2, 3), 0.5), np.array([0, 1, 2]))


# --- amounts ----------------------------------------------------------------------------------------------------------


def test_uce_takes_the_smallest_value_in(random):
    u = np.array([0.0, 0.5, 1.0])
    assert m.uncertainty_calibration_error(np.array([0.3, 0.5, 1.0]), u, bins=3) == pytest.approx(0.1)


def test_uce_of_right_variances_is_small_and_of_doubled_ones_is_their_mean(gaussian):
    error, spread = gaussian
    for binning in ("width", "mass"):
        right = m.uncertainty_calibration_error(error**2, spread**2, binning=binning)
        doubled = m.uncertainty_calibration_error(error**2, 2 * spread**2, binning=binning)
        assert right < 0.02 * (spread**2).mean()
        assert doubled == pytest.approx((spread**2).mean(), rel=0.02)


def test_ence_is_the_relative_excess_of_the_spread(gaussian):
    error, spread = gaussian
    assert m.expected_normalised_calibration_error(error, spread) < 0.02
    assert m.expected_normalised_calibration_error(error, 2 * spread) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(m.expected_normalised_calibration_error(error, np.zeros_like(error)))


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_perfect_uncertainty_has_no_ause(random):
    error = random.gamma(2.0, size=5000)
    assert m.ause(error, error) == 0.0
    assert m.ause(error, np.log(error)) == 0.0
    assert m.aurg(error, error) > 0.3


def test_random_uncertainty_is_worth_a_flat_line(random):
    error = random.uniform(size=50_000)
    # oracle: 1 - r, whose area is 1/2; the flat line has area 1
    for chance in (random.uniform(size=error.size), np.zeros(error.size)):
        assert m.ause(error, chance) == pytest.approx(0.5, abs=0.01)
        assert m.aurg(error, chance) == pytest.approx(0.0, abs=0.01)
    assert m.ause(error, -error) > 0.8
    assert m.aurg(error, -error) < -0.3


def test_areas_of_ranking_add_up(random):
    error = random.gamma(2.0, size=4000)
    guess = error + random.normal(size=error.size)
    curve = m.sparsification(error, guess)
    assert curve.ause + curve.aurg == pytest.approx(m.ause(error, np.zeros(4000)) + m.aurg(error, np.zeros(4000)))
    assert (curve.by_uncertainty[0], curve.oracle[0]) == (pytest.approx(1), pytest.approx(1))
    assert (np.diff(curve.oracle) <= 1e-12).all()
    # the area under the curve, brought back to mm, is the area of risk over coverage
    area = (1 - curve.aurg) * error.mean()
    assert m.risk_coverage_area(error, guess) == pytest.approx(area, rel=0.02)


def test_ties_do_not_follow_the_order_of_the_voxels():
    error = np.linspace(0, 1, 10_000)
    assert m.ause(error, np.zeros(10_000)) == pytest.approx(0.5, abs=0.02)
    assert m.ause(error, np.zeros(10_000), seed=1) != m.ause(error, np.zeros(10_000), seed=2)
    assert m.ause(error, np.zeros(10_000), seed=1) == m.ause(error, np.zeros(10_000), seed=1)


def test_no_error_leaves_nothing_to_rank():
    assert np.isnan(m.ause(np.zeros(10), np.arange(10)))
    assert m.risk_coverage_area(np.zeros(10), np.arange(10)) == 0.0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_correlations_are_scipys(pairs):
    a, b = (np.array(values, float) for values in zip(*pairs, strict=True))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(m.pearson(a, b))
        assert np.isnan(m.spearman(a, b))
        return
    assert m.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert m.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_areas_of_detection_are_scikit_learns(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    score, wrong = (np.array(values) for values in zip(*pairs, strict=True))
    if wrong.min() == wrong.max():
        assert np.isnan(m.auroc(score, wrong))
        assert np.isnan(m.auprc(score, wrong))
        return
    assert m.auroc(score, wrong) == pytest.approx(sklearn.roc_auc_score(wrong, score))
    assert m.auprc(score, wrong) == pytest.approx(sklearn.average_precision_score(wrong, score))


def test_reliability_and_brier_are_scikit_learns(random):
    calibration = pytest.importorskip("sklearn.calibration")
    metrics = pytest.importorskip("sklearn.metrics")
    p = random.uniform(size=3000)
    hit = (random.uniform(size=3000) < p**1.5).astype(int)
    observed, predicted = calibration.calibration_curve(hit, p, n_bins=12)
    ours = m.reliability(p, hit, bins=12)
    np.testing.assert_allclose(ours.observed, observed)
    np.testing.assert_allclose(ours.predicted, predicted)
    both = np.stack([1 - p, p])
    assert m.brier_score(both, hit) / 2 == pytest.approx(metrics.brier_score_loss(hit, p))
    assert m.negative_log_likelihood(both, hit) == pytest.approx(metrics.log_loss(hit, p))


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(InputError, match="cannot be compared"):
        m.coverage(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="groups"):
        m.group_coverage(np.ones(3), np.ones(3), np.ones(4), level=0.9)
