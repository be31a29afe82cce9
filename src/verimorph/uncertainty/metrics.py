"""How good an uncertainty is, measured against known errors: coverage, calibration, ranking.

Pure functions of arrays. Errors and uncertainties are of any shape, the same for both, and are read as flat lists; an
entry that is NaN in either is left out. A measure that is not defined (no entry, a constant, one class only) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from scipy import integrate, stats

from verimorph.errors import InputError

Binning = Literal["width", "mass"]
"""Bins of equal width over the range of the values, or of equally many values."""

#: Bins of UCE (Laves et al. 2020), reliability diagrams and ENCE.
BINS = 15
_MISSING = float("nan")


# --- does a bound hold ------------------------------------------------------------------------------------------------


def coverage(errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."]) -> float:
    """Share of errors that are at most their bound: ``mean(e_i <= b_i)``, in [0, 1]; should be the level of the bound.

    >>> coverage(np.array([1.0, 2.0, 3.0, 9.0]), np.array([2.0, 2.0, 4.0, 8.0]))
    0.75
    """
    e, b = _flat(errors, bounds)
    return float((e <= b).mean()) if e.size else _MISSING


def coverage_interval(covered: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a coverage, for *independent* cases (landmarks of different places, pairs).

    Neighbouring voxels are not independent; there it would be far too narrow. ``covered`` of ``n`` held.

    >>> low, high = coverage_interval(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.555, 0.997)
    """
    if n == 0:
        return _MISSING, _MISSING
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, covered, n - covered + 1)) if covered > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, covered + 1, n - covered)) if covered < n else 1.0
    return low, high


def coverage_curve(errors: Shaped[ndarray, "..."], bounds: Sequence[Shaped[ndarray, "..."]]) -> Float[ndarray, " k"]:
    """Coverage of the bounds at several levels, one array of bounds a level; the diagonal over the levels is right."""
    return np.array([coverage(errors, one) for one in bounds], dtype=float)


def gaussian_coverage_curve(
    errors: Shaped[ndarray, "..."],
    standard_deviation: Shaped[ndarray, "..."],
    levels: Shaped[ndarray, " k"],
    *,
    dimensions: int = 1,
) -> Float[ndarray, " k"]:
    """Coverage that a standard deviation would have if errors were Gaussian around zero with it.

    ``|e| <= s chi_D^-1(level) / sqrt(D)``: with ``D = 1`` the central interval of a normal distribution; for lengths of
    ``D``-dimensional displacements ``s^2`` is the trace of their covariance, taken as the same along every axis.

    Parameters
    ----------
    errors
        Absolute errors, in the unit of ``standard_deviation``.
    standard_deviation
        Predicted spread.
    levels
        Levels in (0, 1).
    dimensions
        Number of axes that an error is the length over.
    """
    e, s = _flat(errors, standard_deviation)
    factors = stats.chi.ppf(np.asarray(levels, float), dimensions) / math.sqrt(dimensions)
    return np.array([float((e <= k * s).mean()) if e.size else _MISSING for k in factors])


def scaled_coverage_curve(
    errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."], factors: Shaped[ndarray, " k"]
) -> Float[ndarray, " k"]:
    """Coverage of the bounds multiplied by each of some factors: how close a bound is to too small and to too large."""
    ratio = np.sort(_ratio(*_flat(errors, bounds)))
    if ratio.size == 0:
        return np.full(len(factors), np.nan)
    return np.searchsorted(ratio, np.asarray(factors, float), side="right") / ratio.size


def factor_for_level(errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."], level: float) -> float:
    """Smallest factor with which the bounds would cover ``level`` of these errors; 1 is right, below 1 is too careful.

    The ``ceil(level n)``-th smallest of ``e_i / b_i``: the empirical quantile that is reached, never interpolated.
    """
    _require_level(level)
    ratio = np.sort(_ratio(*_flat(errors, bounds)))
    if ratio.size == 0:
        return _MISSING
    return float(ratio[max(0, math.ceil(level * ratio.size - 1e-9) - 1)])


def sharpness(errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."]) -> float:
    """Median bound over median error: what the certainty costs. NaN where the median error is 0.

    A bound on Gaussian errors of one size in three dimensions at 90 % that knows nothing but the size has 1.63.
    """
    e, b = _flat(errors, bounds)
    middle = float(np.median(e)) if e.size else 0.0
    return float(np.median(b)) / middle if middle > 0 else _MISSING


def group_coverage(
    errors: Shaped[ndarray, "..."],
    bounds: Shaped[ndarray, "..."],
    groups: Shaped[ndarray, "..."],
    *,
    level: float,
) -> list[dict[str, Any]]:
    """Coverage within each group (region, label, set): a bound that holds overall may fail in one of them.

    Mondrian conformal prediction (Vovk et al. 2003) promises the level in every group on its own; this table checks it.

    Parameters
    ----------
    errors, bounds
        In one unit.
    groups
        Whole number a value, e.g. a label map.
    level
        Level of the bound.

    Returns
    -------
    One row a group, in rising order: ``group``, ``n``, ``coverage``, ``gap`` (coverage minus level),
    ``factor_for_level``, ``median_bound``, ``median_error``, ``sharpness``.
    """
    _require_level(level)
    if np.shape(groups) != np.shape(errors):
        raise InputError(f"groups have shape {np.shape(groups)}, errors {np.shape(errors)}; they must be equal")
    e, b, g = (np.ravel(values) for values in (errors, bounds, groups))
    order = np.argsort(g, kind="stable")
    names, starts = np.unique(g[order], return_index=True)
    rows = []
    for name, members in zip(names, np.split(order, starts[1:]), strict=True):
        own_e, own_b = _flat(e[members], b[members])
        held = coverage(own_e, own_b)
        rows.append(
            {
                "group": int(name),
                "n": int(own_e.size),
                "coverage": held,
                "gap": held - level,
                "factor_for_level": factor_for_level(own_e, own_b, level),
                "median_bound": float(np.median(own_b)) if own_b.size else _MISSING,
                "median_error": float(np.median(own_e)) if own_e.size else _MISSING,
                "sharpness": sharpness(own_e, own_b),
            }
        )
    return rows


@dataclass(frozen=True)
class Reliability:
    """Values gathered in bins of what was predicted; only bins that hold something.

    Parameters
    ----------
    predicted
        Mean of the prediction in each bin.
    observed
        What came of it: share of right labels, level-quantile of the errors, mean error.
    counts
        How many values each bin holds.
    """

    predicted: Float[ndarray, " b"]
    observed: Float[ndarray, " b"]
    counts: Int[ndarray, " b"]

    @property
    def gap(self) -> float:
        """``sum_b (n_b / n) |observed_b - predicted_b|``, in the unit of both."""
        total = self.counts.sum()
        return float((self.counts * np.abs(self.observed - self.predicted)).sum() / total) if total else _MISSING

    @property
    def largest_gap(self) -> float:
        """``max_b |observed_b - predicted_b|``."""
        return float(np.abs(self.observed - self.predicted).max()) if self.counts.size else _MISSING


def bound_reliability(
    errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."], *, level: float, bins: int = BINS
) -> Reliability:
    """Reliability diagram of a bound: in bins of equally many bounds, the level-quantile of the errors.

    On the diagonal the bound is right wherever it is small and wherever it is large; above it, it promises too much.
    """
    _require_level(level)
    e, b = _flat(errors, bounds)
    found = [(float(b[m].mean()), float(np.quantile(e[m], level)), len(m)) for m in _bins(b, bins, "mass")]
    return _reliability(found)


def conditional_coverage_gap(
    errors: Shaped[ndarray, "..."], bounds: Shaped[ndarray, "..."], *, level: float, bins: int = BINS
) -> float:
    """Mean distance of the coverage from the level over bins of equally many bounds, in [0, 1].

    0 where the level is kept at places called certain and at places called uncertain alike; overall coverage alone
    cannot tell.
    """
    _require_level(level)
    e, b = _flat(errors, bounds)
    members = list(_bins(b, bins, "mass"))
    if not members:
        return _MISSING
    gaps = np.array([abs(float((e[m] <= b[m]).mean()) - level) for m in members])
    return float(np.average(gaps, weights=[len(m) for m in members]))


# --- are probabilities of labels right --------------------------------------------------------------------------------


def reliability(
    confidences: Shaped[ndarray, "..."],
    correct: Shaped[ndarray, "..."],
    *,
    bins: int = BINS,
    binning: Binning = "width",
) -> Reliability:
    """Reliability diagram of probabilities: share of hits over mean confidence, in right-closed bins of [0, 1].

    Guo et al., On calibration of modern neural networks, ICML 2017.

    Parameters
    ----------
    confidences
        Predicted probabilities in [0, 1].
    correct
        Whether each came true (0 or 1).
    bins, binning
        Number of bins; equal ``width`` over [0, 1] or equal ``mass``.
    """
    p, hit = _flat(confidences, correct)
    found = [(float(p[m].mean()), float(hit[m].mean()), len(m)) for m in _bins(p, bins, binning, limits=(0.0, 1.0))]
    return _reliability(found)


def expected_calibration_error(
    confidences: Shaped[ndarray, "..."],
    correct: Shaped[ndarray, "..."],
    *,
    bins: int = BINS,
    binning: Binning = "width",
) -> float:
    """ECE: ``sum_b (n_b / n) |accuracy_b - confidence_b|``, in [0, 1], 0 is best.

    Naeini et al., AAAI 2015. With ``binning="mass"`` the adaptive form (ACE).

    >>> round(expected_calibration_error(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), bins=10), 6)
    0.35
    """
    return reliability(confidences, correct, bins=bins, binning=binning).gap


def label_calibration_error(
    probabilities: Float[ndarray, "c *space"],
    labels: Shaped[ndarray, "*space"],
    *,
    bins: int = BINS,
    classwise: bool = False,
    foreground_only: bool = False,
    mask: Bool[ndarray, "*space"] | None = None,
) -> float:
    """ECE of a label map: of the confidence of the most probable label, or class by class.

    Top label: confidence ``max_c p_c``, hit ``argmax_c p_c = y``. Classwise (SCE, Nixon et al. 2019): for each class
    the ECE of ``p_c`` against ``y = c``, then the mean over classes that occur in truth or prediction.

    Parameters
    ----------
    probabilities
        One channel a class, summing to 1; class c is label c, class 0 the background.
    labels
        True labels.
    bins
        Number of equal-width bins.
    classwise
        Whether classes are judged one by one.
    foreground_only
        Leave out voxels that are background in truth and prediction (in a volume they swamp everything else), and
        class 0 of the classwise mean. Choosing by the truth keeps misses and drops right background, so even right
        probabilities do not reach 0: for comparisons only. A ``mask`` that does not follow the truth has no such bias.
    mask
        Further restriction to these voxels.
    """
    p, y = _label_pairs(probabilities, labels, mask)
    best = p.argmax(0)
    if foreground_only:
        kept = (best > 0) | (y > 0)
        p, y, best = p[:, kept], y[kept], best[kept]
    if not classwise:
        return expected_calibration_error(p.max(0) if y.size else p[0], best == y, bins=bins)
    classes = [c for c in range(int(foreground_only), len(p)) if (y == c).any() or (best == c).any()]
    return (
        float(np.mean([expected_calibration_error(p[c], y == c, bins=bins) for c in classes])) if classes else _MISSING
    )


def brier_score(
    probabilities: Float[ndarray, "c *space"],
    labels: Shaped[ndarray, "*space"],
    *,
    mask: Bool[ndarray, "*space"] | None = None,
) -> float:
    """Brier score: ``mean_i sum_c (p_ic - [y_i = c])^2``, from 0 (best) to 2; a proper score.

    The single-channel form of two classes is half of it. Brier 1950.
    """
    p, y = _label_pairs(probabilities, labels, mask)
    if y.size == 0:
        return _MISSING
    own = np.take_along_axis(p, y[None], axis=0)[0]
    return float(((p**2).sum(0) - 2 * own + 1).mean())


def negative_log_likelihood(
    probabilities: Float[ndarray, "c *space"],
    labels: Shaped[ndarray, "*space"],
    *,
    mask: Bool[ndarray, "*space"] | None = None,
    smallest: float = 1e-12,
) -> float:
    """NLL: ``-mean_i ln p_i,y_i``, nats, 0 is best; probabilities below ``smallest`` count as that. A proper score."""
    p, y = _label_pairs(probabilities, labels, mask)
    if y.size == 0:
        return _MISSING
    return float(-np.log(np.clip(np.take_along_axis(p, y[None], axis=0)[0], smallest, None)).mean())


# --- is the amount of an uncertainty right ----------------------------------------------------------------------------


def uncertainty_calibration_error(
    errors: Shaped[ndarray, "..."],
    uncertainty: Shaped[ndarray, "..."],
    *,
    bins: int = BINS,
    binning: Binning = "width",
) -> float:
    """UCE: ``sum_b (n_b / n) |mean error_b - mean uncertainty_b|``, in their common unit, 0 is best.

    Both must mean the same thing: squared errors and variances (mm^2), or label errors and probabilities of one. Bins
    run from the smallest to the largest uncertainty. Laves et al., MIDL 2020; their code leaves the smallest value out
    of the first bin, here it is in.
    """
    e, u = _flat(errors, uncertainty)
    found = [(float(u[m].mean()), float(e[m].mean()), len(m)) for m in _bins(u, bins, binning)]
    return _reliability(found).gap


def expected_normalised_calibration_error(
    errors: Shaped[ndarray, "..."], standard_deviation: Shaped[ndarray, "..."], *, bins: int = BINS
) -> float:
    """ENCE: ``mean_b |RMV_b - RMSE_b| / RMV_b`` over bins of equally many values; no unit, 0 is best.

    RMV is the root of the mean variance, RMSE that of the mean squared error. Bins without any predicted variance have
    no ratio and are left out. Levi et al., Sensors 22(15):5540, 2022.
    """
    e, s = _flat(errors, standard_deviation)
    ratios = []
    for members in _bins(s, bins, "mass"):
        predicted = math.sqrt(float(np.mean(s[members] ** 2)))
        if predicted > 0:
            ratios.append(abs(predicted - math.sqrt(float(np.mean(e[members] ** 2)))) / predicted)
    return float(np.mean(ratios)) if ratios else _MISSING


# --- does an uncertainty point at the errors --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sparsification:
    """Mean error of what is left when the most uncertain part is taken out, over the mean error of all.

    Parameters
    ----------
    removed
        Share taken out, 0 to 1.
    by_uncertainty
        Taken out by falling uncertainty.
    oracle
        Taken out by falling true error: no order does better. Taking out at random leaves 1.
    """

    removed: Float[ndarray, " k"]
    by_uncertainty: Float[ndarray, " k"]
    oracle: Float[ndarray, " k"]

    @property
    def ause(self) -> float:
        """Area between the curve and the oracle; 0 is best."""
        return float(integrate.trapezoid(self.by_uncertainty - self.oracle, self.removed))

    @property
    def aurg(self) -> float:
        """Area between taking out at random and the curve; 0 is no better than chance, below 0 is worse."""
        return float(integrate.trapezoid(1.0 - self.by_uncertainty, self.removed))


def sparsification(
    errors: Shaped[ndarray, "..."], uncertainty: Shaped[ndarray, "..."], *, steps: int = 100, seed: int = 0
) -> Sparsification:
    """Sparsification curve: remove by falling uncertainty, look at the mean error of the rest (Ilg et al., ECCV 2018).

    Both curves are divided by the mean error of all. Equal uncertainties are ordered at random, so that a constant map
    is worth what chance is. At the right end one step's share is kept rather than nothing.

    Parameters
    ----------
    errors
        True errors, at least 0, of any unit.
    uncertainty
        What orders them; only its order matters.
    steps
        Number of steps from nothing to everything taken out.
    seed
        For the order of ties.
    """
    e, u = _flat(errors, uncertainty)
    removed = np.linspace(0.0, 1.0, steps + 1)
    if e.size == 0 or e.mean() == 0:
        missing = np.full(steps + 1, np.nan)
        return Sparsification(removed, missing, missing)
    kept = np.maximum(np.ceil((1 - removed) * e.size - 1e-9), math.ceil(e.size / steps)).astype(int)

    def remaining(order: ndarray) -> ndarray:
        return np.cumsum(e[order])[kept - 1] / kept / e.mean()

    return Sparsification(removed, remaining(_certain_first(u, seed)), remaining(np.argsort(e, kind="stable")))


def ause(errors: Shaped[ndarray, "..."], uncertainty: Shaped[ndarray, "..."], *, seed: int = 0) -> float:
    """Area under the sparsification error curve: `Sparsification.ause`; 0 is best, no unit."""
    return sparsification(errors, uncertainty, seed=seed).ause


def aurg(errors: Shaped[ndarray, "..."], uncertainty: Shaped[ndarray, "..."], *, seed: int = 0) -> float:
    """Area under the random gain curve: `Sparsification.aurg`; larger is better, no unit."""
    return sparsification(errors, uncertainty, seed=seed).aurg


def risk_coverage_area(errors: Shaped[ndarray, "..."], uncertainty: Shaped[ndarray, "..."], *, seed: int = 0) -> float:
    """AURC: mean over k of the mean error of the k most certain; in the unit of the errors, lower is better.

    Geifman and El-Yaniv, NeurIPS 2017. With 0/1 errors it is the area under error rate over coverage. Ties as in
    `sparsification`.
    """
    e, u = _flat(errors, uncertainty)
    if e.size == 0:
        return _MISSING
    return float((np.cumsum(e[_certain_first(u, seed)]) / np.arange(1, e.size + 1)).mean())


def pearson(first: Shaped[ndarray, "..."], second: Shaped[ndarray, "..."]) -> float:
    """Pearson's correlation, in [-1, 1]; NaN where one of the two is constant."""
    a, b = _flat(first, second)
    if a.size < 2 or a.min() == a.max() or b.min() == b.max():
        return _MISSING
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(float(a @ b) / scale, -1, 1)) if scale > 0 else _MISSING


def spearman(first: Shaped[ndarray, "..."], second: Shaped[ndarray, "..."]) -> float:
    """Spearman's rank correlation (ties share their mean rank), in [-1, 1]; NaN where one of the two is constant."""
    a, b = _flat(first, second)
    return pearson(stats.rankdata(a), stats.rankdata(b)) if a.size else _MISSING


def auroc(uncertainty: Shaped[ndarray, "..."], wrong: Shaped[ndarray, "..."]) -> float:
    """Chance that a wrong place is called more uncertain than a right one (ties count half): 1 is best, 0.5 is chance.

    The Mann-Whitney form of the area under the ROC curve. NaN unless there are both.

    Parameters
    ----------
    uncertainty
        What is to tell them apart.
    wrong
        True where the error is above a threshold, or the label is wrong.
    """
    u, w = _flat(uncertainty, wrong)
    bad = w > 0
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if n_bad == 0 or n_good == 0:
        return _MISSING
    ranks = stats.rankdata(u)
    return float((ranks[bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def auprc(uncertainty: Shaped[ndarray, "..."], wrong: Shaped[ndarray, "..."]) -> float:
    """Average precision: ``sum_k (R_k - R_k-1) P_k`` over falling uncertainty; chance is the share of wrong places.

    Precision P, recall R; equal uncertainties enter together. NaN unless there are both right and wrong places.
    """
    u, w = _flat(uncertainty, wrong)
    bad = (w > 0).astype(float)
    if bad.size == 0 or bad.min() == bad.max():
        return _MISSING
    order = np.argsort(-u, kind="stable")
    hits = np.cumsum(bad[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(u[order])), u.size - 1)
    precision, recall = hits[last_of_tie] / (last_of_tie + 1), hits[last_of_tie] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


# --- parts ------------------------------------------------------------------------------------------------------------


def _flat(first: ndarray, second: ndarray) -> tuple[ndarray, ndarray]:
    """Both as float64 lists without the entries that are NaN in either."""
    if np.shape(first) != np.shape(second):
        raise InputError(f"arrays of shapes {np.shape(first)} and {np.shape(second)} cannot be compared value by value")
    a, b = np.asarray(first, float).ravel(), np.asarray(second, float).ravel()
    known = ~(np.isnan(a) | np.isnan(b))
    return (a, b) if known.all() else (a[known], b[known])


def _ratio(errors: ndarray, bounds: ndarray) -> ndarray:
    """Errors over bounds; no error at a bound of 0 is covered by any factor, an error there by none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0.0, errors / bounds)


def _bins(
    values: ndarray, bins: int, binning: Binning, *, limits: tuple[float, float] | None = None
) -> Iterator[Int[ndarray, " n"]]:
    """Members of each bin that has any. Bins are closed on the right, the first on both sides."""
    if bins < 1:
        raise InputError(f"{bins} bins; give 1 or more")
    if values.size == 0:
        return
    if binning == "mass":
        order = np.argsort(values, kind="stable")
        yield from (members for members in np.array_split(order, bins) if members.size)
        return
    low, high = limits or (float(values.min()), float(values.max()))
    edges = np.linspace(low, high, bins + 1)[1:-1]
    number = np.searchsorted(edges, values, side="left")
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order])) + 1
    yield from np.split(order, starts)


def _reliability(found: list[tuple[float, float, int]]) -> Reliability:
    predicted, observed, counts = zip(*found, strict=True) if found else ((), (), ())
    return Reliability(np.array(predicted, float), np.array(observed, float), np.array(counts, int))


def _certain_first(uncertainty: ndarray, seed: int) -> ndarray:
    """Order by rising uncertainty, ties at random."""
    shuffled = np.random.default_rng(seed).permutation(uncertainty.size)
    return shuffled[np.argsort(uncertainty[shuffled], kind="stable")]


def _label_pairs(probabilities: ndarray, labels: ndarray, mask: ndarray | None) -> tuple[ndarray, ndarray]:
    """Probabilities ``(c, n)`` and labels ``(n,)`` of the voxels that count."""
    p, y = np.asarray(probabilities, float), np.asarray(labels).astype(np.int64)
    if p.shape[1:] != y.shape:
        raise InputError(f"probabilities of {p.shape[1:]} voxels, labels of {y.shape}; both must be on one grid")
    p, y = p.reshape(len(p), -1), y.ravel()
    if mask is not None:
        p, y = p[:, mask.ravel()], y[mask.ravel()]
    if y.size and not 0 <= y.min() <= y.max() < len(p):
        raise InputError(f"labels run from {y.min()} to {y.max()}, probabilities are for classes 0 to {len(p) - 1}")
    return p, y


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"the level of a bound is {level}; it must lie between 0 and 1, e.g. 0.9")
