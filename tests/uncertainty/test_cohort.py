"""What stands out in a cohort: planted outliers are found and named, chance hardly makes any."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verimorph.uncertainty.cohort import FEWEST, cohort
from verimorph.uncertainty.verdict import WORDS


def results(count: int, random: np.random.Generator, scale: float = 0.3) -> dict[str, dict]:
    """A cohort of sound results whose facts are normal."""
    return {
        f"pair {k}": {
            "verdict": {
                "verdict": "pass",
                "probability": 0.1,
                "facts": dict(zip(WORDS, (scale * random.standard_normal(len(WORDS))).tolist(), strict=True)),
            },
            "uncertainty": {"median_mm": float(np.exp(scale * random.standard_normal()))},
        }
        for k in range(count)
    }


@pytest.mark.parametrize("count", [8, 15, 40])
def test_chance_makes_few_results_stand_out(count):
    random = np.random.default_rng(count)
    cohorts = 1200 // count
    found = sum(one.stands_out for _ in range(cohorts) for one in cohort(results(count, random)))
    assert found <= 0.015 * count * cohorts


@pytest.mark.parametrize("count", [8, 15, 40])
@pytest.mark.parametrize("fact", ["mirror", "backward"])
def test_a_result_unlike_the_others_is_found_and_named(count, fact):
    some = results(count, np.random.default_rng(1))
    some["pair 3"]["verdict"]["facts"][fact] = 6.0  # twenty standard deviations
    first = cohort(some)[0]
    assert (first.name, first.stands_out) == ("pair 3", True)
    assert WORDS[fact].split("{")[0] in first.reason
    # The good side of a fact is no fault.
    some["pair 3"]["verdict"]["facts"][fact] = -6.0
    assert not any(one.stands_out for one in cohort(some) if one.name == "pair 3")


def test_a_large_bound_stands_out_by_itself():
    some = results(12, np.random.default_rng(2))
    some["pair 5"]["uncertainty"]["median_mm"] = 50.0
    first = cohort(some)[0]
    assert (first.name, first.stands_out) == ("pair 5", True)
    assert "bound" in first.reason


def test_bounds_of_different_levels_are_not_compared():
    some = results(12, np.random.default_rng(2))
    for one in some.values():
        one["uncertainty"]["level"] = 0.5
    some["pair 5"]["uncertainty"] |= {"median_mm": 50.0, "level": 0.95}
    assert not any(one.stands_out for one in cohort(some))


def test_small_cohorts_are_listed_and_not_compared():
    some = results(FEWEST - 1, np.random.default_rng(3))
    some["pair 0"]["verdict"] |= {"verdict": "fail", "probability": 0.99}
    some["pair 1"]["verdict"]["facts"]["mirror"] = 100.0
    found = cohort(some)
    assert found[0].name == "pair 0"
    assert not any(one.stands_out for one in found)
    assert all(math.isnan(one.distance) for one in found)


def test_equal_results_do_not_stand_out_by_nothing():
    some = results(10, np.random.default_rng(4), scale=0.0)
    some["pair 2"]["verdict"]["facts"]["mismatch"] = 0.01
    assert not any(one.stands_out for one in cohort(some))


def test_a_result_without_facts_does_not_keep_the_others_from_comparison():
    some = results(12, np.random.default_rng(4))
    some["pair 3"]["verdict"]["facts"]["mirror"] = 6.0
    some["broken"] = {"verdict": {"verdict": "review", "probability": 0.5}}
    found = {one.name: one for one in cohort(some)}
    assert found["pair 3"].stands_out
    assert math.isnan(found["broken"].distance)
    assert len(found) == 13
