"""From evidence to millimetres: a predicted scale of the error, and the quantiles that make a bound of it.

The scale is a regression of the logarithm of known errors on logarithms of the evidence,

    log(e + e0) ~ mean over m of f_m(z, inside),      z_k = (log(x_k + e0) - mean_k) / deviation_k, cut at +-3.5

with a few small networks f_m (two hidden layers of 48 units), each kind of image weighing the same. It has no knowledge
of anatomy, and lengths are in voxels of the fixed image, so it carries from one kind of image to another. What it gets
wrong is taken up by the conformal quantiles: of images that resemble a kind of the calibration set, that kind's; of
others, those of all kinds together.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from verimorph.errors import InputError, OptionError, nearest
from verimorph.uncertainty.conformal import mondrian_quantiles

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels that a calibration holds quantiles for; between them the logarithm of the quantile is interpolated."""
FOREGROUND, BACKGROUND = 1, 0
FLOOR = 0.02
"""Added to lengths before the logarithm, voxels: below a fiftieth of a voxel differences mean nothing."""
UNITS, BATCH, STEP_LENGTH, PIECE = 48, 1024, 5e-3, 200_000
ANY = "any"
"""Stands for images that resemble none of the kinds of a calibration."""
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
    traits
        Of the image as a whole, by which kinds are told apart: :func:`traits_of`.
    """

    names: tuple[str, ...]
    evidence: Float[ndarray, "n k"]
    error: Float[ndarray, " n"]
    foreground: Bool[ndarray, " n"]
    kind: str
    traits: tuple[float, ...] = ()


Layer = tuple[list[list[float]], list[float]]
"""Weights, one row an output, and offsets."""


@dataclass(frozen=True)
class Scale:
    """Predicted size of the error, in units, from evidence."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    networks: tuple[tuple[Layer, ...], ...]

    def __call__(self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]) -> Float[ndarray, " n"]:
        """``exp`` of the regression."""
        out = np.empty(len(evidence))
        nets = [[(np.array(w, np.float32).T, np.array(b, np.float32)) for w, b in net] for net in self.networks]
        for start in range(0, len(out), PIECE):
            piece = slice(start, start + PIECE)
            out[piece] = self._log(evidence[piece], foreground[piece], nets)
        return np.exp(out)

    def _log(self, evidence: ndarray, foreground: ndarray, nets: list[list[tuple[ndarray, ndarray]]]) -> ndarray:
        z = _inputs(_logarithms(evidence), foreground, np.array(self.mean), np.array(self.deviation))
        total = np.zeros(len(z))
        for net in nets:
            x = z
            for weight, offset in net[:-1]:
                x = np.tanh(x @ weight + offset)
            total += (x @ net[-1][0] + net[-1][1])[:, 0]
        return total / len(nets)


def _logarithms(evidence: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    return np.log(np.asarray(evidence, dtype=np.float64) + FLOOR)


def _inputs(logs: ndarray, foreground: ndarray, mean: ndarray, deviation: ndarray) -> Float[ndarray, "n c"]:
    z = np.clip((logs - mean) / deviation, -3.5, 3.5)
    return np.concatenate([z, foreground[:, None]], axis=1).astype(np.float32)


def fit_scale(
    points: Sequence[Points], *, names: Sequence[str] | None = None, networks: int = 3, steps: int = 2500
) -> Scale:
    """Fit the regression by weighted least squares; every kind of image weighs the same, and every case within a kind.

    Parameters
    ----------
    names
        Which evidence to use; default all.
    networks
        How many, from different random weights; their outputs are averaged.
    steps
        Of Adam with decoupled decay, on 1024 random points each; the step length falls to nothing.
    """
    # Pairs of real scans know a part of their error, to half a voxel: enough for quantiles, too coarse to learn sizes.
    points = [p for p in points if not p.kind.endswith(PAIRS)] or points
    if not points:
        raise OptionError("no cases to calibrate on; give at least one")
    chosen = tuple(names or points[0].names)
    logs = np.concatenate([_logarithms(_columns(p, chosen)) for p in points])
    inside = np.concatenate([p.foreground for p in points])
    wanted = np.log(np.concatenate([p.error for p in points]) + FLOOR)
    share = np.concatenate(
        [np.full(len(p.error), w / max(len(p.error), 1)) for p, w in zip(points, case_weights(points), strict=True)]
    )
    share /= share.sum()
    mean = share @ logs
    deviation = np.sqrt(np.maximum(share @ (logs - mean) ** 2, 1e-6))
    z = torch.from_numpy(_inputs(logs, inside, mean, deviation))
    y = torch.from_numpy(wanted.astype(np.float32))
    weight = torch.from_numpy((share * len(share)).astype(np.float32))
    sizes = [z.shape[1], UNITS, UNITS, 1]
    random = torch.Generator().manual_seed(0)
    # All networks at once: one batched product a layer. Weights start uniform within one over the root of the inputs.
    layers = []
    for inputs, outputs in pairwise(sizes):
        reach = 1 / math.sqrt(inputs)
        drawn = [torch.rand(networks, n, outputs, generator=random) for n in (inputs, 1)]
        layers.append(tuple(((2 * reach) * one - reach).requires_grad_() for one in drawn))
    with torch.enable_grad():
        optimiser = torch.optim.AdamW([p for layer in layers for p in layer], STEP_LENGTH, weight_decay=0.03)
        for k in range(steps):
            optimiser.param_groups[0]["lr"] = STEP_LENGTH * (1 - k / steps)
            at = torch.randint(0, len(y), (BATCH,), generator=random)
            x = z[at].expand(networks, -1, -1)
            for number, (w, b) in enumerate(layers):
                x = torch.baddbmm(b, x if number == 0 else x.tanh(), w)
            loss = (weight[at] * (x[..., 0] - y[at]).square()).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    found = tuple(
        tuple((_digits(w[m].T.tolist()), _digits(b[m].tolist())[0]) for w, b in layers) for m in range(networks)
    )
    return Scale(chosen, tuple(mean.tolist()), tuple(deviation.tolist()), found)


def _digits(rows: list[list[float]]) -> list[list[float]]:
    """Five digits are enough, and make the file a third as long."""
    return [[float(f"{value:.5g}") for value in row] for row in rows]


def case_weights(points: Sequence[Points]) -> list[float]:
    """One over the number of cases of the same kind."""
    kinds = [p.kind for p in points]
    return [1 / kinds.count(kind) for kind in kinds]


def _columns(points: Points, names: Sequence[str]) -> Float[ndarray, "n k"]:
    missing = [name for name in names if name not in points.names]
    if missing:
        raise InputError(f"evidence lacks {', '.join(missing)}; it has {', '.join(points.names)}")
    return points.evidence[:, [points.names.index(name) for name in names]]


TRAITS = {
    "log voxels": 0.7,
    "log voxel size": 0.35,
    "log anisotropy": 0.35,
    "share of anatomy": 0.15,
    "log texture": 0.6,
    "log contrast": 0.4,
}
"""What kinds of images are told apart by, and by how much of each images of one kind may differ. After them stand the
logarithm of the coarse mismatch, and 1 if the two images lie on different grids: two scans differ by more than one scan
and its deformed copy, and so do errors."""
PAIRS = "pairs"
"""Ends the name of a kind whose cases are pairs of real scans, their errors taken from the surfaces of labels; by
itself: all of these together."""
MORE_MISMATCH = 0.35
"""By how much the logarithm of the mismatch must exceed that of all known deformations of a kind."""


def traits_of(
    *,
    voxels: int,
    unit_mm: float,
    spacing: Sequence[float],
    share: float,
    medians: Mapping[str, float],
    two_grids: bool,
) -> tuple[float, ...]:
    """Traits of a pair, in the order of ``TRAITS``, its mismatch, and whether its images lie on different grids.

    ``medians`` are those of its evidence over the anatomy.
    """
    return (
        math.log(voxels),
        math.log(unit_mm),
        math.log(max(spacing) / min(spacing)),
        share,
        math.log(medians["texture"] + 1e-3),
        math.log(medians["contrast 4"] + 1e-2),
        math.log(medians["mismatch 4"] + 1e-2),
        float(two_grids),
    )


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
        By kind of image (``any``: all of them), region (``foreground``, ``background``) and level.
    cases
        How many, by kind.
    traits
        Of every case, by kind: where a new image is told to belong.
    verdict
        Weights of the verdict, see :mod:`verimorph.uncertainty.verdict`; None where it was not learned.
    """

    name: str
    calibrated_for: str
    scale: Scale
    quantiles: Mapping[str, Mapping[str, Mapping[str, float]]]
    cases: Mapping[str, int] = field(default_factory=dict)
    traits: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None

    def kind_of(self, traits: Sequence[float]) -> str:
        """The kind whose nearest case differs least, or ``any`` if none is near (root mean square above 1.5).

        Of a kind, pairs on different grids, or that match worse than all of its known deformations, are two real scans:
        they have the quantiles of such pairs of the kind, or of all such pairs.
        """
        tolerance = np.array(list(TRAITS.values()))
        count = len(tolerance)
        nearest_of = {
            kind: min(
                float(np.sqrt(np.mean(((np.array(row[:count]) - np.array(traits[:count])) / tolerance) ** 2)))
                for row in rows
            )
            for kind, rows in self.traits.items()
            if len(rows) and not kind.endswith(PAIRS)
        }
        best = min(nearest_of, key=lambda kind: nearest_of[kind], default=ANY)
        if nearest_of.get(best, math.inf) > 1.5:
            return ANY
        worse = traits[count] > max(row[count] for row in self.traits[best]) + MORE_MISMATCH
        if PAIRS in self.quantiles and (worse or traits[count + 1] > 0):
            return f"{best}-{PAIRS}" if f"{best}-{PAIRS}" in self.quantiles else PAIRS
        return best

    def reach(self, kind: str = ANY) -> float:
        """Highest level that quantiles are held for."""
        return max(float(q) for q in self._table(kind, True))

    def factor(self, level: float, foreground: bool, kind: str = ANY) -> float:
        """Bound over scale at a level; between the levels held, linear in ``-log(1 - level)`` and the logarithm."""
        table = self._table(kind, foreground)
        known = np.array(sorted(float(q) for q in table))
        if not known[0] <= level <= known[-1]:
            raise OptionError(f"level is {level:g}; this calibration reaches from {known[0]:g} to {known[-1]:g}")
        values = np.array([table[f"{q:g}"] for q in known])
        at = np.interp(-math.log1p(-level), -np.log1p(-known), np.log(values))
        return float(np.exp(at))

    def _table(self, kind: str, foreground: bool) -> Mapping[str, float]:
        return self.quantiles.get(kind, self.quantiles[ANY])["foreground" if foreground else "background"]

    def bound(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"], level: float, kind: str = ANY
    ) -> Float[ndarray, " n"]:
        """Bound of the error at a level, units."""
        factors = np.where(foreground, self.factor(level, True, kind), self.factor(level, False, kind))
        return self.scale(evidence, foreground) * factors


def calibrate(
    points: Sequence[Points], *, name: str, calibrated_for: str, scale: Scale | None = None, folds: int = 5
) -> Calibration:
    """Learn the scale and its quantiles from cases with known error.

    The scores whose quantiles are taken come from scales that did not see the case (cross-fitting over ``folds``
    disjoint sets of cases); a ``scale`` that is given was learned elsewhere and is used as it is. Quantiles over all
    kinds carry the correction for the number of cases, which guarantees coverage for exchangeable ones. Those of one
    kind do not where it has fewer than ``GUARANTEED`` cases: with so few, the correction would ask for the largest
    score; their coverage is right in expectation up to a term of the order of one over the number of cases.

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
    scores = []
    for p, s in zip(points, held, strict=True):
        assert s is not None
        scores.append(p.error / s(_columns(p, s.names), p.foreground))
    kinds = sorted({p.kind for p in points})
    known = [i for i, p in enumerate(points) if not p.kind.endswith(PAIRS)] or list(range(len(points)))
    quantiles = {ANY: _regions([points[i] for i in known], [scores[i] for i in known], corrected=True)}
    for kind in kinds:
        own = [i for i, p in enumerate(points) if p.kind == kind]
        if len(kinds) > 1 and len(own) >= FEWEST:
            found = _regions([points[i] for i in own], [scores[i] for i in own], corrected=len(own) >= GUARANTEED)
            quantiles[kind] = found
    real = [i for i, p in enumerate(points) if p.kind.endswith(PAIRS)]
    if len(real) >= FEWEST:
        quantiles[PAIRS] = _regions([points[i] for i in real], [scores[i] for i in real], corrected=False)
    if len(known) < len(points):
        # Drawn surfaces are known to half a voxel, which says little about small errors; two scans are at least as hard
        # to align as one and its deformed copy.
        for kind in [name for name in quantiles if name.endswith(PAIRS)]:
            copies = quantiles.get(kind.removesuffix(f"-{PAIRS}"), quantiles[ANY]) if kind != PAIRS else quantiles[ANY]
            quantiles[kind] = _at_least(quantiles[kind], copies)
    counts = {kind: sum(p.kind == kind for p in points) for kind in kinds}
    traits = {kind: [list(p.traits) for p in points if p.kind == kind and p.traits] for kind in kinds}
    return Calibration(name, calibrated_for, scale, quantiles, counts, traits)


def _at_least(table: dict[str, dict[str, float]], least: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {
        region: {level: max(value, least[region].get(level, value)) for level, value in levels.items()}
        for region, levels in table.items()
    }


FEWEST, GUARANTEED = 4, 30
"""Cases of a kind for quantiles of its own; and for those to carry the correction that guarantees their coverage."""


def _regions(points: Sequence[Points], scores: Sequence[ndarray], *, corrected: bool) -> dict[str, dict[str, float]]:
    groups = [p.foreground.astype(int) for p in points]
    found = mondrian_quantiles(scores, groups, LEVELS, weights=case_weights(points), corrected=corrected)
    anywhere = found[FOREGROUND]
    regions = {"foreground": anywhere, "background": found.get(BACKGROUND, anywhere)}
    return {
        region: {f"{level:g}": value for level, value in table.items() if math.isfinite(value)}
        for region, table in regions.items()
    }


def write_calibration(calibration: Calibration, path: str | os.PathLike) -> Path:
    """Write it as JSON, whole or not at all."""
    from verimorph.io.safe import replacing

    with replacing(path) as beside:
        beside.write_text(json.dumps(asdict(calibration)) + "\n", encoding="utf-8")
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
        held = {key: tuple(value) for key, value in content.pop("scale").items()}
        held["networks"] = tuple(tuple((w, b) for w, b in net) for net in held["networks"])
        scale = Scale(**held)
        found = Calibration(scale=scale, **content)
        found.reach()
        return found
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: is no calibration ({error}); 'verimorph calibrate' writes one") from None
