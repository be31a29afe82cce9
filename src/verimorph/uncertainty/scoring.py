"""An uncertainty beside the truth: every number and curve that ``verimorph evaluate --uncertainty`` reports.

Arrays in, plain dictionaries out; reading files, drawing and printing happen elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from numpy import ndarray
from scipy import ndimage

from verimorph.evaluate.landmarks import summarise_errors
from verimorph.evaluate.overlap import label_values
from verimorph.uncertainty import metrics

#: An error above this is called large, mm.
LARGE_ERROR_MM = 2.0
#: Width of the band around a structure in which its label uncertainty is judged, mm.
BAND_MM = 5.0
_FACTORS = np.linspace(0.0, 3.0, 121)
_LEVELS = np.linspace(0.05, 0.95, 19)
#: Ranks of more voxels than this tell nothing new; a regular part of them is taken.
_MOST_RANKED = 500_000


def score_bound(
    errors_mm: Shaped[ndarray, "..."],
    bounds_mm: Shaped[ndarray, "..."],
    *,
    level: float,
    spread_mm: Shaped[ndarray, "..."] | None = None,
    groups: Shaped[ndarray, "..."] | None = None,
    large_error_mm: float = LARGE_ERROR_MM,
    dimensions: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Score an error bound, and the spread of displacements beside it, against true errors.

    Parameters
    ----------
    errors_mm
        True errors: distance between where the result and the truth send a point.
    bounds_mm
        Bound at each of those points.
    level
        Share of points at which the bound is meant to hold.
    spread_mm
        Standard deviation of the displacement (root of the trace of its covariance), for comparison.
    groups
        Label or region of each point, for a table of regions.
    large_error_mm
        Errors above this are to be found (AUROC, average precision).
    dimensions
        Axes of the images, for what a Gaussian of the spread would promise.
    seed
        For the order of ties.

    Returns
    -------
    dict
        ``n``, ``level``, ``coverage``, ``factor_for_level``, ``conditional_coverage_gap``, ``sharpness``, ``error_mm``
        and ``bound_mm`` (summaries), ``large_error_mm``, ``large_error_percent``, ``ranking`` (``bound`` and, where
        given, ``displacement_std``: AUSE, AURG, Spearman, Pearson, AUROC, average precision, risk-coverage area),
        ``displacement_std`` (UCE in mm^2, ENCE), ``regions`` and ``curves``.
    """
    errors, bounds = np.ravel(errors_mm).astype(float), np.ravel(bounds_mm).astype(float)
    spread = None if spread_mm is None else np.ravel(spread_mm).astype(float)
    known = ~(np.isnan(errors) | np.isnan(bounds))
    if spread is not None:
        known &= ~np.isnan(spread)
    members = None if groups is None else np.ravel(groups)[known]
    n_missing = int((~known).sum())
    errors, bounds, spread = errors[known], bounds[known], None if spread is None else spread[known]
    guesses = {"bound": bounds} | ({} if spread is None else {"displacement_std": spread})
    lines = metrics.bound_reliability(errors, bounds, level=level)
    curves: dict[str, Any] = {
        "scaled": {"factor": _FACTORS, "coverage": metrics.scaled_coverage_curve(errors, bounds, _FACTORS)},
        "reliability": {"bound_mm": lines.predicted, "error_mm": lines.observed, "n": lines.counts},
        "sparsification": _sparsification(errors, guesses, seed),
    }
    found: dict[str, Any] = {
        "n": int(errors.size),
        "n_missing": n_missing,
        "level": level,
        "coverage": metrics.coverage(errors, bounds),
        "factor_for_level": metrics.factor_for_level(errors, bounds, level),
        "conditional_coverage_gap": metrics.conditional_coverage_gap(errors, bounds, level=level),
        "sharpness": metrics.sharpness(errors, bounds),
        "error_mm": summarise_errors(errors),
        "bound_mm": summarise_errors(bounds),
        "large_error_mm": large_error_mm,
        "large_error_percent": 100 * float((errors > large_error_mm).mean()) if errors.size else float("nan"),
        "ranking": {name: rank(errors, guess, errors > large_error_mm, seed) for name, guess in guesses.items()},
    }
    if spread is not None:
        found["displacement_std"] = {
            "uce_mm2": metrics.uncertainty_calibration_error(errors**2, spread**2),
            "uce_equal_mass_mm2": metrics.uncertainty_calibration_error(errors**2, spread**2, binning="mass"),
            "ence": metrics.expected_normalised_calibration_error(errors, spread),
        }
        promised = metrics.gaussian_coverage_curve(errors, spread, _LEVELS, dimensions=dimensions)
        curves["gaussian"] = {"level": _LEVELS, "coverage": promised}
    if members is not None:
        found["regions"] = metrics.group_coverage(errors, bounds, members, level=level)
    return _plain(found | {"curves": curves})


def score_label_uncertainty(
    fixed_labels: Integer[ndarray, "*space"],
    moved_labels: Integer[ndarray, "*space"],
    uncertainty: Float[ndarray, "*space"],
    *,
    spacing: Sequence[float] | Float[ndarray, " d"],
    labels: Iterable[int] | None = None,
    band_mm: float = BAND_MM,
    mask: Bool[ndarray, "*space"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score an uncertainty of moved labels against where they are wrong.

    The error is hard: 1 where the moved label is not the fixed one, else 0. Over a whole volume correlations are mostly
    about background, so everything is also given in the band: voxels within ``band_mm`` of a structure in either map.
    For one label the error is whether the voxel is wrongly in or out of it, in the band of that label.

    Parameters
    ----------
    fixed_labels, moved_labels
        Whole numbers on the fixed grid; 0 is background.
    uncertainty
        Entropy of the moved labels, nats, or any other number that is larger where they are less sure.
    spacing
        Voxel size, mm.
    labels
        Labels to score; default all but 0 in either map. Others count as background.
    band_mm
        Width of the band.
    mask
        Only these voxels.
    seed
        For the order of ties.

    Returns
    -------
    dict
        ``error`` and ``uncertainty`` in words, ``band_mm``, ``whole`` and ``band`` (``n``, ``wrong_percent``,
        ``mean_uncertainty`` and the ranking), ``per_label`` (the same for each label) and ``curves`` of the band.
    """
    wanted = sorted(
        {int(n) for n in labels} if labels is not None else {*label_values(fixed_labels), *label_values(moved_labels)}
    )
    inside = np.ones(fixed_labels.shape, bool) if mask is None else mask
    known = np.isfinite(uncertainty)
    n_missing = int((inside & ~known).sum())
    inside = inside & known
    fixed, moved = (np.where(np.isin(values, wanted), values, 0) for values in (fixed_labels, moved_labels))
    wrong = fixed != moved
    rows = []
    band = np.zeros(fixed.shape, bool)
    for label in wanted:
        is_fixed, is_moved = fixed == label, moved == label
        box = _box(is_fixed | is_moved, spacing, band_mm)
        if box is None:
            continue
        near = inside[box] & (_distance(is_fixed[box] | is_moved[box], spacing) <= band_mm)
        band[box] |= near
        own = (is_fixed != is_moved)[box][near]
        rows.append({"label": label} | _rank_labels(own, uncertainty[box][near], seed))
    own, guess = _thin(wrong[band]), _thin(uncertainty[band])
    top = max(float(guess.max(initial=0)), 1e-12)
    steps = metrics.reliability(guess / top, own, bins=10)
    return _plain(
        {
            "n_labels": len(rows),
            "n_missing": n_missing,
            "error": "hard: the moved label is not the fixed one",
            "uncertainty": "entropy of the moved labels, nats",
            "band_mm": band_mm,
            "whole": _rank_labels(wrong[inside], uncertainty[inside], seed),
            "band": _rank_labels(wrong[band], uncertainty[band], seed),
            "per_label": rows,
            "curves": {
                "sparsification": _sparsification(own.astype(float), {"label_uncertainty": guess}, seed),
                "reliability": {
                    "uncertainty": steps.predicted * top,
                    "wrong_percent": 100 * steps.observed,
                    "n": steps.counts,
                },
            },
        }
    )


def rank(
    errors: Shaped[ndarray, "..."], uncertainty: Shaped[ndarray, "..."], wrong: Shaped[ndarray, "..."], seed: int = 0
) -> dict[str, float]:
    """How well an uncertainty orders errors: all measures of order of `verimorph.uncertainty.metrics`."""
    e, u, w = (_thin(np.ravel(values)) for values in (errors, uncertainty, wrong))
    curve = metrics.sparsification(e, u, seed=seed)
    return {
        "ause": curve.ause,
        "aurg": curve.aurg,
        "spearman": metrics.spearman(e, u),
        "pearson": metrics.pearson(e, u),
        "auroc": metrics.auroc(u, w),
        "average_precision": metrics.auprc(u, w),
        "risk_coverage_area": metrics.risk_coverage_area(e, u, seed=seed),
    }


def _rank_labels(wrong: ndarray, uncertainty: ndarray, seed: int) -> dict[str, float]:
    known = wrong.size > 0
    return {
        "n": int(wrong.size),
        "wrong_percent": 100 * float(wrong.mean()) if known else float("nan"),
        "mean_uncertainty": float(uncertainty.mean()) if known else float("nan"),
        **rank(wrong.astype(float), uncertainty, wrong, seed),
    }


def _sparsification(errors: ndarray, guesses: dict[str, ndarray], seed: int) -> dict[str, ndarray]:
    curves = {name: metrics.sparsification(errors, guess, seed=seed) for name, guess in guesses.items()}
    first = next(iter(curves.values()))
    return {
        "removed": first.removed,
        "oracle": first.oracle,
        **{name: curve.by_uncertainty for name, curve in curves.items()},
    }


def _thin(values: ndarray) -> ndarray:
    """Every k-th value, where there are too many to rank."""
    return values[:: max(1, -(-values.size // _MOST_RANKED))]


def _box(inside: ndarray, spacing: Sequence[float] | ndarray, margin_mm: float) -> tuple[slice, ...] | None:
    """Bounding box with a margin; ``None`` where nothing is inside."""
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return None
    margins = [int(np.ceil(margin_mm / s)) + 1 for s in spacing]
    return tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(found[0], margins, strict=True))


def _distance(inside: ndarray, spacing: Sequence[float] | ndarray) -> ndarray:
    """Distance to the nearest voxel inside, mm."""
    return np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing))


def _plain(value: Any) -> Any:
    """Arrays as lists: what a JSON file and a picture are made from."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, ndarray | np.generic) else value
