"""Bounds that hold: split-conformal quantiles of an error over its predicted scale, per group (Mondrian).

For calibration cases with voxels of error e and predicted scale s, the score is ``r = e / s``. The bound of a new voxel
at level q is ``s Q_q(r)``. Cases, not voxels, are exchangeable (voxels of one image resemble each other), so each case
weighs the same whatever its size, and the new case is given the weight of one more case whose scores are infinite:

    Q_q = smallest r with  sum over cases of (share of voxels with a score <= r) >= q (n + 1)

Expected coverage of a new exchangeable case is then at least q. Vovk, Gammerman and Shafer, Algorithmic Learning in a
Random World, 2005; Papadopoulos et al., Inductive confidence machines for regression, 2002; Dunn, Wasserman and Ramdas,
Distribution-free prediction sets for two-layer hierarchical models, JASA 2022 (cases with many points each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from numpy import ndarray

from verimorph.errors import OptionError


def conformal_quantile(
    scores: Sequence[Float[ndarray, " _"]],
    level: float,
    *,
    weights: Sequence[float] | None = None,
    corrected: bool = True,
) -> float:
    """Quantile of scores over cases of equal weight, with the correction for the number of cases.

    Parameters
    ----------
    scores
        One array a case; empty ones are left out.
    level
        Coverage that is asked for, above 0 and below 1.
    weights
        Of the cases relative to each other (such as one over the number of cases of the same set); default equal.
    corrected
        Give the new case its weight at infinity. Without, coverage is right up to a term of order 1 / n, and no more is
        guaranteed.

    Returns
    -------
    float
        Infinite where too few cases are there for the level: ``n < q / (1 - q)``.

    Examples
    --------
    >>> conformal_quantile([np.arange(1.0, 11.0)] * 9, 0.9)
    10.0
    >>> conformal_quantile([np.arange(1.0, 11.0)] * 8, 0.9)
    inf
    """
    if not 0 < level < 1:
        raise OptionError(f"level is {level:g}; give a share above 0 and below 1, such as 0.9")
    kept = [(s, 1.0 if weights is None else float(weights[i])) for i, s in enumerate(scores) if len(s)]
    if not kept:
        return math.inf
    total = sum(w for _, w in kept)
    # The new case has the mean weight of the others.
    wanted = level * (total + total / len(kept)) if corrected else level * total
    values = np.concatenate([s for s, _ in kept])
    shares = np.concatenate([np.full(len(s), w / len(s)) for s, w in kept])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(shares[order])
    place = int(np.searchsorted(reached, wanted * (1 - 1e-12)))
    return float(values[order[place]]) if place < len(order) else math.inf


def mondrian_quantiles(
    scores: Sequence[Float[ndarray, " _"]],
    groups: Sequence[Num[ndarray, " _"]],
    levels: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    corrected: bool = True,
) -> dict[int, dict[float, float]]:
    """Quantiles of every group by itself: ``groups`` names the group of every score.

    Raises
    ------
    OptionError
        If scores and groups do not match.
    """
    for s, g in zip(scores, groups, strict=True):
        if len(s) != len(g):
            raise OptionError(f"{len(s)} scores but {len(g)} groups; give one group for every score")
    names = sorted({int(v) for g in groups for v in np.unique(g)})
    return {
        name: {
            level: conformal_quantile(
                [s[g == name] for s, g in zip(scores, groups, strict=True)], level, weights=weights, corrected=corrected
            )
            for level in levels
        }
        for name in names
    }
