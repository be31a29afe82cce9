"""Which results of a cohort stand out from the rest: a verdict looks at one pair, this at all of them together.

For each fact of the verdict, and for the logarithm of the median bound (where all are of one level), a result is
compared with the others by

    z = (fact - median) / max(1.4826 MAD, 0.05)

MAD the median absolute deviation; 1.4826 makes it the standard deviation of a normal variable, and 0.05 keeps equal
results from standing out by nothing. More of a fact speaks against a registration, so only positive z count. A result
stands out where its largest z exceeds the point that a normal variable exceeds as seldom as 3.5, taken from Student's t
with 0.6 (n - 1) degrees of freedom: in small cohorts chance reaches far. With 0.6, chance alone makes about 0.6 % of
the results of normal facts stand out, whether there are 8 of them or 100.

Iglewicz and Hoaglin, How to detect and handle outliers, 1993.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from verimorph.uncertainty.verdict import WORDS

FEWEST = 8
"""Results below which nothing stands out: what is usual is not known from fewer."""
NORMAL_POINT, FREEDOM, LEAST_DEVIATION = 3.5, 0.6, 0.05
_BOUND = "bound"
_WORST = ("fail", "review", "pass")


@dataclass(frozen=True)
class Standing:
    """One result among the others.

    Attributes
    ----------
    name, verdict, probability
        As its ``metrics.json`` has them; ``probability`` of being broken.
    median_mm
        Median of the error bound over the anatomy.
    distance
        Largest z; NaN in cohorts that are too small.
    stands_out
        Whether that is more than chance.
    reason
        What differs from the rest, in words; empty if nothing does.
    """

    name: str
    verdict: str
    probability: float
    median_mm: float
    distance: float
    stands_out: bool
    reason: str


def cohort(results: Mapping[str, Mapping[str, Any]]) -> list[Standing]:
    """Compare results with each other; the worst first.

    Parameters
    ----------
    results
        By name what `verimorph.uncertainty.maps.facts_of_result` reads: ``uncertainty`` and ``verdict``.

    Returns
    -------
    list of Standing
        Ordered by verdict, then those that stand out, then by the probability of being broken.
    """
    facts = {name: (one.get("verdict") or {}).get("facts", {}) for name, one in results.items()}
    # Those without facts come last and are not compared; they do not keep the others from it.
    names = sorted(results, key=lambda name: not facts[name])
    compared = [name for name in names if facts[name]]
    shared = [k for k in WORDS if all(k in facts[name] for name in compared)]
    columns = [[float(facts[name][k]) for name in compared] for k in shared]
    medians = np.array([(results[name].get("uncertainty") or {}).get("median_mm", math.nan) for name in names], float)
    count = len(compared)
    levels = {(results[name].get("uncertainty") or {}).get("level") for name in compared}
    if np.isfinite(medians[:count]).all() and len(levels) == 1:  # that of another level is of another size
        shared, columns = [*shared, _BOUND], [*columns, np.log(np.maximum(medians[:count], 1e-6)).tolist()]
    z = np.full((len(names), len(shared)), math.nan)
    if count >= FEWEST and shared:
        table = np.array(columns).T
        middle = np.median(table, 0)
        deviation = np.maximum(1.4826 * np.median(np.abs(table - middle), 0), LEAST_DEVIATION)
        z[:count] = (table - middle) / deviation
    out = []
    for number, name in enumerate(names):
        verdict = results[name].get("verdict") or {}
        known = bool(z.shape[1]) and bool(np.isfinite(z[number]).all())
        worst = int(np.argmax(z[number])) if known else 0
        distance = float(z[number, worst]) if known else math.nan
        stands_out = known and distance > threshold(count)
        out.append(
            Standing(
                name,
                str(verdict.get("verdict", "review")),
                _probability(verdict),
                float(medians[number]),
                distance,
                stands_out,
                _words(shared[worst], verdict.get("facts", {})) if stands_out else "",
            )
        )
    order = {verdict: number for number, verdict in enumerate(_WORST)}
    return sorted(out, key=lambda one: (order.get(one.verdict, 1), not one.stands_out, -np.nan_to_num(one.probability)))


def _probability(verdict: Mapping[str, Any]) -> float:
    found = verdict.get("probability")
    return math.nan if found is None else float(found)


def threshold(count: int) -> float:
    """What z must exceed in a cohort of ``count`` results.

    >>> round(threshold(10), 1), round(threshold(1000), 1)
    (7.5, 3.5)
    """
    rare = stats.norm.sf(NORMAL_POINT)
    return float(stats.t.isf(rare, max(FREEDOM * (count - 1), 1.0)))


def _words(fact: str, facts: Mapping[str, float]) -> str:
    if fact == _BOUND:
        return "the error bound is larger than the others'"
    away = f"{math.exp(facts.get('forward', 0.0)) - 0.02:.1f} voxels"
    return f"more than in the others: {WORDS[fact].format(away=away)}"
