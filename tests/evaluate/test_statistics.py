"""Bootstrap, Holm and the paired test against closed forms, SciPy and textbook examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from verimorph.evaluate.statistics import (
    bootstrap_interval,
    compare_methods,
    compare_paired,
    direction,
    holm,
    summarise,
)


def test_bootstrap_interval_is_near_the_normal_one_and_the_same_every_time(random):
    values = random.normal(5.0, 2.0, 200)
    low, high = bootstrap_interval(values)
    error = stats.sem(values)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)


def test_bootstrap_interval_agrees_with_scipy(random):
    values = random.gamma(2.0, 1.0, 40)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), theirs, atol=0.03)


def test_summary_counts_missing_cases_and_uses_the_sample_deviation():
    found = summarise(np.array([1.0, 2.0, 4.0, np.nan]))
    assert (found["n"], found["n_missing"]) == (3, 1)
    assert found["std"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert found["median"] == 2.0
    assert np.isnan(summarise(np.array([np.nan]))["mean"])
    assert np.isnan(summarise(np.array([1.0]))["std"])


def test_holm_equals_the_textbook_and_leaves_missing_tests_out():
    np.testing.assert_allclose(holm(np.array([0.01, 0.02, 0.04, 0.03])), [0.04, 0.06, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, np.nan, 0.9])), [1.0, np.nan, 1.0])
    assert holm(np.array([])).size == 0


def test_paired_test_equals_scipy_and_effect_has_its_sign(random):
    first = random.normal(0.7, 0.1, 15)
    second = first + random.normal(0.02, 0.03, 15)
    found = compare_paired(first, second)
    theirs = stats.wilcoxon(second, first)
    assert found["p_value"] == pytest.approx(theirs.pvalue)
    ranks = stats.rankdata(np.abs(second - first))
    positive = ranks[second > first].sum()
    assert found["effect_size"] == pytest.approx(2 * positive / ranks.sum() - 1)
    assert compare_paired(second, first)["effect_size"] == pytest.approx(-found["effect_size"])
    assert compare_paired(first, first + 1.0)["effect_size"] == 1.0


def test_only_cases_of_both_methods_are_paired():
    first = np.array([1.0, 2.0, np.nan, 4.0, np.inf])
    second = np.array([1.5, 2.5, 3.5, np.nan, 5.0])
    found = compare_paired(first, second)
    assert (found["n"], found["mean_difference"]) == (2, 0.5)
    assert compare_paired(first, first)["p_value"] == 1.0


def test_five_pairs_cannot_reach_five_per_cent():
    found = compare_paired(np.zeros(5), np.arange(1.0, 6.0))
    assert found["p_value"] == found["smallest_possible_p"] == pytest.approx(0.0625)


def test_better_follows_the_direction_of_the_measure():
    assert [direction(m) for m in ("dice", "surface_dice_1mm", "hd95_mm", "folding_percent")] == [1, 1, -1, -1]
    assert direction("volume_similarity") == 0
    low = np.linspace(0.1, 0.3, 12)
    table = {
        "dice": {"a": low, "b": low + 0.5},
        "hd95_mm": {"a": low, "b": low + 0.5},
        "volume_similarity": {"a": low, "b": low},
    }
    rows = {row["measure"]: row for row in compare_methods(table)}
    assert rows["dice"]["better"] == "b"
    assert rows["hd95_mm"]["better"] == "a"
    assert "volume_similarity" not in rows


def test_holm_is_applied_within_a_measure(random):
    base = random.normal(size=20)
    table = {"dice": {name: base + 0.1 * n * random.random(20) for n, name in enumerate("abc")}}
    rows = compare_methods(table)
    assert len(rows) == 3
    np.testing.assert_allclose([r["p_holm"] for r in rows], holm(np.array([r["p_value"] for r in rows])))
