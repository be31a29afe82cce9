"""From evidence to millimetres: a predicted scale of the error, and the quantiles that make a bound of it.

The scale is a regression of the logarithm of known errors on logarithms of the evidence,

    log(e + e0) ~ w0 + sum_k w_k z_k + v_k z_k^2,      z_k = (log(x_k + x0_k) - m_k) / s_k

with ridge penalty, each case weighing the same. It has no knowledge of anatomy, and lengths are in voxels of the fixed
image, so it carries from one kind of image to another; what it gets wrong is taken up by the conformal quantiles.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from verimorph.errors import InputError, OptionError, nearest
from verimorph.uncertainty.conformal import mondrian_quantiles

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels that a calibration holds quantiles for; between them the logarithm of the quantile is interpolated."""
FOREGROUND, BACKGROUND = 1, 0
FLOOR = 0.02
"""Added to lengths before the logarithm, voxels: below a fiftieth of a voxel differences mean nothing."""
CALIBRATIONS = Path(__file__).with_name("calibrations")


@dataclass(frozen=True, eq=False)
class Points:
    """Evidence at some voxels of one registration with known error.

    Attributes
    ----------
    evidence
        ``(n, k)``, columns named by ``names``.
    error
        Distance to the truth, in units (mean voxels of the fixed image).
    foreground
        Whether the voxel is in the anatomy.
    kind
        Of images, such as ``brain``: calibration gives every kind the same weight.
    """

    names: tuple[str, ...]
    evidence: Float[ndarray, "n k"]
    error: Float[ndarray, " n"]
    foreground: Bool[ndarray, " n"]
    kind: str


@dataclass(frozen=True)
class Scale:
    """Predicted size of the error, in units, from evidence."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    """w0, then w, then v."""

    def __call__(self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]) -> Float[ndarray, " n"]:
        """``exp`` of the regression."""
        z = (_logarithms(evidence) - np.array(self.mean)) / np.array(self.deviation)
        return np.exp(_design(np.clip(z, -3.5, 3.5), foreground) @ np.array(self.weights))


def _logarithms(evidence: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    return np.log(np.asarray(evidence, dtype=np.float64) + FLOOR)


def _design(z: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]) -> Float[ndarray, "n c"]:
    return np.concatenate([np.ones((len(z), 1)), foreground[:, None].astype(float), z, z**2 - 1], axis=1)


def fit_scale(points: Sequence[Points], *, names: Sequence[str] | None = None, ridge: float = 1e-2) -> Scale:
    """Fit the regression; every kind of image weighs the same, and every case within a kind.

    Parameters
    ----------
    names
        Which evidence to use; default all.
    ridge
        Penalty on the weights relative to the mean square of the columns.
    """
    if not points:
        raise OptionError("no cases to calibrate on; give at least one")
    chosen = tuple(names or points[0].names)
    logs = [_logarithms(_columns(p, chosen)) for p in points]
    shares = np.concatenate(
        [np.full(len(p.error), w / max(len(p.error), 1)) for p, w in zip(points, case_weights(points), strict=True)]
    )
    shares /= shares.sum()
    pooled = np.concatenate(logs)
    mean = shares @ pooled
    deviation = np.sqrt(np.maximum(shares @ (pooled - mean) ** 2, 1e-6))
    x = _design(np.clip((pooled - mean) / deviation, -3.5, 3.5), np.concatenate([p.foreground for p in points]))
    y = np.log(np.concatenate([p.error for p in points]) + FLOOR)
    gram = x.T @ (shares[:, None] * x)
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0
    weights = np.linalg.solve(gram + penalty, x.T @ (shares * y))
    return Scale(chosen, tuple(mean.tolist()), tuple(deviation.tolist()), tuple(weights.tolist()))


def case_weights(points: Sequence[Points]) -> list[float]:
    """One over the number of cases of the same kind."""
    kinds = [p.kind for p in points]
    return [1 / kinds.count(kind) for kind in kinds]


def _columns(points: Points, names: Sequence[str]) -> Float[ndarray, "n k"]:
    missing = [name for name in names if name not in points.names]
    if missing:
        raise InputError(f"evidence lacks {', '.join(missing)}; it has {', '.join(points.names)}")
    return points.evidence[:, [points.names.index(name) for name in names]]


@dataclass(frozen=True)
class Calibration:
    """What turns evidence into a bound: the scale, its quantiles, and what both were learned on.

    Attributes
    ----------
    name
        Under which it is chosen.
    calibrated_for
        In plain words: for which images the bound was checked.
    scale
        Predicted size of the error.
    quantiles
        By region (``foreground``, ``background``) and level.
    cases
        How many, by kind of image.
    verdict
        Weights of the verdict, see :mod:`verimorph.uncertainty.verdict`; None where it was not learned.
    """

    name: str
    calibrated_for: str
    scale: Scale
    quantiles: Mapping[str, Mapping[str, float]]
    cases: Mapping[str, int] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None

    def factor(self, level: float, foreground: bool) -> float:
        """Bound over scale at a level; between the levels held, linear in ``-log(1 - level)`` and the logarithm."""
        table = self.quantiles["foreground" if foreground else "background"]
        known = np.array(sorted(float(q) for q in table))
        if not known[0] <= level <= known[-1]:
            raise OptionError(f"level is {level:g}; this calibration reaches from {known[0]:g} to {known[-1]:g}")
        values = np.array([table[f"{q:g}"] for q in known])
        at = np.interp(-math.log1p(-level), -np.log1p(-known), np.log(values))
        return float(np.exp(at))

    def bound(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"], level: float
    ) -> Float[ndarray, " n"]:
        """Bound of the error at a level, units."""
        factors = np.where(foreground, self.factor(level, True), self.factor(level, False))
        return self.scale(evidence, foreground) * factors


def calibrate(
    points: Sequence[Points], *, name: str, calibrated_for: str, scale: Scale | None = None, folds: int = 5
) -> Calibration:
    """Learn the scale and its quantiles from cases with known error.

    The scores whose quantiles are taken come from scales that did not see the case (cross-fitting over ``folds``
    disjoint sets of cases); a ``scale`` that is given was learned elsewhere and is used as it is.

    Barber et al., Predictive inference with the jackknife+, Annals of Statistics 2021, on scores out of folds.
    """
    folds = min(folds, len(points))
    held = [scale] * len(points)
    if scale is None:
        if folds < 2:
            raise OptionError(f"{len(points)} case is too few to calibrate on; give at least 2, better 20")
        for fold in range(folds):
            fitted = fit_scale([p for i, p in enumerate(points) if i % folds != fold])
            for i in range(fold, len(points), folds):
                held[i] = fitted
        scale = fit_scale(points)
    scores, groups = [], []
    for p, s in zip(points, held, strict=True):
        assert s is not None
        scores.append(p.error / s(_columns(p, s.names), p.foreground))
        groups.append(p.foreground.astype(int))
    found = mondrian_quantiles(scores, groups, LEVELS, weights=case_weights(points))
    anywhere = found[FOREGROUND]
    regions = {"foreground": anywhere, "background": found.get(BACKGROUND, anywhere)}
    quantiles = {
        region: {f"{level:g}": value for level, value in table.items() if math.isfinite(value)}
        for region, table in regions.items()
    }
    kinds = [p.kind for p in points]
    return Calibration(name, calibrated_for, scale, quantiles, {kind: kinds.count(kind) for kind in sorted(set(kinds))})


def write_calibration(calibration: Calibration, path: str | os.PathLike) -> Path:
    """Write it as JSON, whole or not at all."""
    from verimorph.io.safe import replacing

    with replacing(path) as beside:
        beside.write_text(json.dumps(asdict(calibration), indent=1) + "\n", encoding="utf-8")
    return Path(path)


def read_calibration(name: str | os.PathLike | Calibration = "general") -> Calibration:
    """Read a packaged calibration by its name, or a file; one in memory is given back as it is.

    Raises
    ------
    InputError
        If there is none of that name, or the file is no calibration.
    """
    if isinstance(name, Calibration):
        return name
    known = sorted(p.stem for p in CALIBRATIONS.glob("*.json"))
    path = CALIBRATIONS / f"{name}.json"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise InputError(
            f"no calibration '{name}'{nearest(str(name), known)}; there are {', '.join(known)}, or give a file"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scale = Scale(**{key: tuple(value) for key, value in content.pop("scale").items()})
        return Calibration(scale=scale, **content)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is no calibration ({error}); 'verimorph calibrate' writes one") from None
