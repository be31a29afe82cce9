"""Coverage that is promised is kept: on exchangeable cases, per group, with few cases and with many."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verimorph.errors import OptionError
from verimorph.uncertainty.conformal import conformal_quantile, mondrian_quantiles


def cases(random: np.random.Generator, n: int) -> list[np.ndarray]:
    """Cases that differ in the size of their scores, and hold different numbers of them."""
    return [
        random.gamma(2.0, size=random.integers(200, 800)) * np.exp(0.3 * random.standard_normal()) for _ in range(n)
    ]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_new_cases_are_covered_on_average(level: float) -> None:
    random = np.random.default_rng(3)
    covered = []
    for _ in range(150):
        bound = conformal_quantile(cases(random, 30), level)
        covered.append(np.mean([(new <= bound).mean() for new in cases(random, 4)]))
    # At least the level in expectation, and not more than the correction for 30 cases gives away.
    assert level - 0.01 <= np.mean(covered) <= level + 0.045


def test_a_case_of_many_voxels_weighs_as_much_as_one_of_few() -> None:
    small, large = np.full(10, 1.0), np.full(100_000, 5.0)
    # 9 of 10 cases are small: the quantile at 0.7 of cases is theirs, whatever the number of voxels.
    assert conformal_quantile([small] * 9 + [large], 0.7) == 1.0


def test_too_few_cases_promise_nothing() -> None:
    assert math.isinf(conformal_quantile([np.ones(5)] * 8, 0.9))
    assert conformal_quantile([np.ones(5)] * 9, 0.9) == 1.0


def test_groups_have_their_own_quantiles() -> None:
    scores = [np.r_[np.full(50, 1.0), np.full(50, 3.0)]] * 20
    groups = [np.r_[np.zeros(50), np.ones(50)]] * 20
    found = mondrian_quantiles(scores, groups, (0.5, 0.9))
    assert found == {0: {0.5: 1.0, 0.9: 1.0}, 1: {0.5: 3.0, 0.9: 3.0}}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="level"):
        conformal_quantile([np.ones(3)], 1.0)
    with pytest.raises(OptionError, match="groups"):
        mondrian_quantiles([np.ones(3)], [np.ones(2)], (0.9,))
