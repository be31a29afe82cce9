"""Robustness "30": three published numbers that share a name. Each has its own function, and none is called just "30".

===============================  =====================================================================================
`robust30_quantile`              30 % or 70 % quantile of the per-case means (Learn2Reg evaluation script)
`robust30_hardest_entries`       mean over the hardest 30 % of all (case, label) entries (Learn2Reg ranking, labels)
`robust30_hardest_landmarks`     mean over the 30 hardest landmarks of a case, "TRE30" (Learn2Reg ranking, lung CT)
===============================  =====================================================================================

For the last two, hardness is fixed before any method is looked at: by the score without registration. So all
methods are judged on the same entries.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from verimorph.errors import InputError, OptionError

TURNED_SINCE_2024 = ("tre", "sdlogj")
"""Measures for which the script has taken the 70 % quantile since August 2024. HD95 is not among them, although
lower is better there too: its 30 % quantile is the easy tail."""


def robust30_quantile(case_means: Shaped[ndarray, " cases"], *, measure: str, version: str = "2024") -> float:
    """Quantile of the per-case means as the Learn2Reg evaluation script reports it under the name "30".

    Parameters
    ----------
    case_means
        One mean a case. NaN cases make the result NaN, as in the script.
    measure
        ``"dice"``, ``"hd95"``, ``"tre"`` or ``"sdlogj"``.
    version
        ``"original"``: the 30 % quantile of every measure. ``"2024"`` (since August 2024): 70 % for TRE and SDlogJ.
    """
    if version not in ("2024", "original"):
        raise OptionError(f"unknown version {version!r} of the robustness quantile; use '2024' or 'original'")
    level = 0.7 if version == "2024" and measure.lower() in TURNED_SINCE_2024 else 0.3
    return float(np.quantile(np.asarray(case_means, float), level))


def robust30_hardest_entries(
    scores: Shaped[ndarray, "..."],
    initial_scores: Shaped[ndarray, "..."],
    *,
    higher_is_better: bool = True,
    share: float = 0.3,
) -> float:
    """Mean over the hardest share of all (case, label) entries, hardness from the scores without registration.

    Entries that are NaN in either table are left out before the share is taken. The number of entries is rounded down,
    and is at least one. Ties go to the earlier entry.

    Raises
    ------
    InputError
        If the tables differ in shape or hold no entry.
    """
    score, initial = np.asarray(scores, float).ravel(), np.asarray(initial_scores, float).ravel()
    if np.shape(scores) != np.shape(initial_scores):
        raise InputError(f"scores {np.shape(scores)} and initial scores {np.shape(initial_scores)} differ in shape")
    kept = ~(np.isnan(score) | np.isnan(initial))
    if not kept.any():
        raise InputError("no (case, label) entry has both a score and an initial score")
    score, initial = score[kept], initial[kept]
    order = np.argsort(initial if higher_is_better else -initial, kind="stable")
    return float(score[order[: max(1, int(share * len(score)))]].mean())


def robust30_hardest_landmarks(
    errors: Shaped[ndarray, "..."], initial_errors: Shaped[ndarray, "..."], *, count: int = 30
) -> float:
    """Mean error of the ``count`` landmarks of one case that were farthest off before registration (TRE30), in mm.

    Raises
    ------
    InputError
        If the two lists differ in length, or there are fewer than ``count`` landmarks.
    """
    error, initial = np.asarray(errors, float), np.asarray(initial_errors, float)
    if error.shape != initial.shape:
        raise InputError(f"{error.size} errors and {initial.size} initial errors; they must be of the same landmarks")
    if error.size < count:
        raise InputError(f"TRE30 takes the {count} hardest landmarks of a case, this one has {error.size}")
    return float(error[np.argsort(-initial, kind="stable")[:count]].mean())
