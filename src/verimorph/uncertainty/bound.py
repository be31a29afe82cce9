"""From evidence to millimetres: a predicted size of the error and its spread, and quantiles that make a bound of it.

The model is a regression of the logarithm of known errors on logarithms of the evidence, normal in the logarithm,

    log(e + e0) ~ N(m(z, inside), s(z, inside)^2),   z_k = (log(x_k + e0) - mean_k) / deviation_k, cut at +-3.5

with m and log s the means over a few small networks (three hidden layers of 64 sigmoid linear units), each kind of
image weighing the same. It has no knowledge of anatomy, and lengths are in voxels of the fixed image, so it carries
from one kind of image to another. What it gets wrong is taken up by the conformal quantiles Q of the scores
``(log(e + e0) - m) / s``: of images that resemble a kind of the calibration set, that kind's; of others, those of all
kinds together. The bound is

    exp(m + s Q) - e0

What two real scans differ by has nothing to do with s: their scores are ``log(e + e0) - m``, and their bound is the
larger of that of known deformations and

    exp(m + Q) - e0

Seitzer et al., On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks, ICLR 2022
(the likelihood, its terms weighed by the standard deviation); Lei et al., Distribution-free predictive inference for
regression, JASA 2018 (locally weighted conformal scores).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import linear, silu

from verimorph.errors import InputError, OptionError, VerimorphError, nearest
from verimorph.field.backend import using_threads
from verimorph.uncertainty.conformal import mondrian_quantiles

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels that a calibration holds quantiles for; between them the logarithm of the quantile is interpolated."""
FOREGROUND, BACKGROUND = 1, 0
FLOOR = 0.02
"""Added to lengths before the logarithm, voxels: below a fiftieth of a voxel differences mean nothing."""
LEAST = 1e-3
"""No bound is smaller, voxels."""
SPREADS = (-2.0, 1.0)
"""Between which the logarithm of the spread is kept."""
HIDDEN = (64, 64, 64)
"""Units of the hidden layers. Size and number of steps were chosen on the cases of the packaged calibration, images
held out: two layers of 48 that see a third as many points lose 0.08 of the log likelihood and have bounds a fifteenth
wider; twice as many units, layers or steps gain 0.01 at most."""
BATCH, STEP_LENGTH, DECAY, PIECE = 1024, 1e-2, 1e-2, 100_000
FORMAT = 4
"""Of calibrations. Before 2 the traits of a pair had its mismatch where the way back is now; before 3
nothing said whether images were 2-D or 3-D; before 4 the units were hyperbolic tangents."""
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
    images
        What tells the images of the case from others, such as hashes: of cases that share one, none teaches what judges
        another. Empty: shares none.
    ndim
        Of the images, 2 or 3.
    """

    names: tuple[str, ...]
    evidence: Float[ndarray, "n k"]
    error: Float[ndarray, " n"]
    foreground: Bool[ndarray, " n"]
    kind: str
    traits: tuple[float, ...] = ()
    images: tuple[str, ...] = ()
    ndim: int = 3


Layer = tuple[list[list[float]], list[float]]
"""Weights, one row an output, and offsets."""


@dataclass(frozen=True)
class Scale:
    """Predicted size of the error, in units, from evidence, and how far off it may be."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    networks: tuple[tuple[Layer, ...], ...]

    def __call__(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """m and s: mean and standard deviation of ``log(e + e0)``."""
        out = np.empty((len(evidence), 2))
        nets = [[(_float32(w), _float32(b)) for w, b in net] for net in self.networks]
        for start in range(0, len(out), PIECE):
            piece = slice(start, start + PIECE)
            out[piece] = self._outputs(evidence[piece], foreground[piece], nets)
        return out[:, 0], np.exp(np.clip(out[:, 1], *SPREADS))

    def root_mean_square(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]
    ) -> Float[ndarray, " n"]:
        """Root of the expected squared error, units: ``exp(m + s^2)``, that of a normal logarithm, e0 left in."""
        m, s = self(evidence, foreground)
        return np.exp(m + s**2)

    @torch.no_grad()
    def _outputs(self, evidence: ndarray, foreground: ndarray, nets: list[list[tuple[Tensor, Tensor]]]) -> ndarray:
        z = torch.from_numpy(_inputs(_logarithms(evidence), foreground, np.array(self.mean), np.array(self.deviation)))
        total = torch.zeros(len(z), 2, dtype=torch.float64, device="cpu")
        for net in nets:
            x = z
            for weight, offset in net[:-1]:
                x = silu(linear(x, weight, offset), inplace=True)
            total += linear(x, *net[-1])
        return (total / len(nets)).numpy()

    def scores(self, points: Points) -> Float[ndarray, " n"]:
        """``(log(e + e0) - m) / s`` of known errors; without s of pairs of real scans."""
        m, s = self(_columns(points, self.names), points.foreground)
        away = np.log(points.error + FLOOR) - m
        return away if is_pairs(points.kind) else away / s


def _float32(values: Sequence) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _logarithms(evidence: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    return np.log(np.asarray(evidence, dtype=np.float64) + FLOOR)


def _inputs(logs: ndarray, foreground: ndarray, mean: ndarray, deviation: ndarray) -> Float[ndarray, "n c"]:
    z = np.clip((logs - mean) / deviation, -3.5, 3.5)
    return np.concatenate([z, foreground[:, None]], axis=1).astype(np.float32)


def fit_scale(
    points: Sequence[Points],
    *,
    names: Sequence[str] | None = None,
    networks: int = 3,
    steps: int | None = None,
    stop: Event | None = None,
) -> Scale:
    """Fit the regression by weighted likelihood; every kind of image weighs the same, and every case within a kind.

    Parameters
    ----------
    names
        Which evidence to use; default all.
    networks
        How many, from different random weights; their outputs are averaged.
    steps
        Of Adam with decoupled decay, on 1024 random points each; the step length rises over the first fiftieth and
        falls to nothing. Default: :func:`steps_for` these cases.
    stop
        Ends the fit early, without a result.
    """
    steps = steps_for(points) if steps is None else steps
    points = _with_sizes(points)
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
    del logs  # twice the size of z
    sizes = [z.shape[1], *HIDDEN, 2]
    random = torch.Generator().manual_seed(0)
    # All networks at once: one batched product a layer. Weights start uniform within one over the root of the inputs.
    layers = []
    for inputs, outputs in pairwise(sizes):
        reach = 1 / math.sqrt(inputs)
        drawn = [
            torch.rand(networks, n, outputs, generator=random, dtype=torch.float32, device="cpu") for n in (inputs, 1)
        ]
        layers.append(tuple(((2 * reach) * one - reach).requires_grad_() for one in drawn))
    with torch.enable_grad():
        optimiser = torch.optim.AdamW([p for layer in layers for p in layer], STEP_LENGTH, weight_decay=DECAY)
        for k in range(steps):
            if stop is not None and stop.is_set():
                raise VerimorphError("the fit was stopped")
            optimiser.param_groups[0]["lr"] = STEP_LENGTH * min(1.0, 50 * (k + 1) / steps) * (1 - k / steps)
            at = torch.randint(0, len(y), (BATCH,), generator=random)
            x = z[at].expand(networks, -1, -1)
            for number, (w, b) in enumerate(layers):
                x = torch.baddbmm(b, x if number == 0 else silu(x), w)
            log_s = x[..., 1].clamp(*SPREADS)
            # Times the root of the variance, held: where much is unsure the mean is still fitted (Seitzer et al. 2022).
            share_of = weight[at] * log_s.detach().exp()
            loss = (share_of * ((x[..., 0] - y[at]).square() * (-2 * log_s).exp() / 2 + log_s)).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    found = tuple(
        tuple((_digits(w[m].T.tolist()), _digits(b[m].tolist())[0]) for w, b in layers) for m in range(networks)
    )
    return Scale(chosen, tuple(mean.tolist()), tuple(deviation.tolist()), found)


PASSES, FEWEST_STEPS, MOST_STEPS = 4.6, 1000, 8000
"""Of 24 hearts a thousand steps, about five passes, teach most: of hearts not learned from the mean negative log
likelihood is 0.20 then, 0.73 after two thousand and 1.2 after four; 12 brains and 20 abdomens are alike."""


def steps_for(points: Sequence[Points]) -> int:
    """Steps of about five passes over these cases, within limits: what sees few cases often learns them by heart."""
    count = sum(len(p.error) for p in _with_sizes(points))
    return round(min(max(PASSES * count / BATCH, FEWEST_STEPS), MOST_STEPS))


def _with_sizes(points: Sequence[Points]) -> list[Points]:
    """Those to learn sizes of errors from: all but pairs of real scans, where there are others.

    Pairs know a part of their error, to half a voxel: enough for quantiles, too coarse to learn sizes.
    """
    return [p for p in points if not is_pairs(p.kind)] or list(points)


class Fits:
    """`fit_scale` of many sets of cases, a core each, and once for the same cases.

    Nested cross-validation asks for nearly each set twice. ``tell`` is called with a name, the number of fits begun
    before and ``count``, those expected in all.
    """

    def __init__(self, *, count: int = 0, tell: Callable[[str, int, int], None] | None = None) -> None:
        self._held: dict[tuple, tuple[list[Points], Scale]] = {}
        self._count, self._tell = count, tell
        self._begun, self._lock = 0, Lock()

    def __call__(self, sets: Sequence[Sequence[Points]], *, steps: int) -> list[Scale]:
        """The scales of these sets, of so many steps each.

        Products this small gain nothing from a second thread: torch has one until all are done, the whole process.
        """
        asked = [_with_sizes(points) for points in sets]
        keys = [
            (steps, *((p.kind, *(id(a) for a in (p.evidence, p.error, p.foreground))) for p in used)) for used in asked
        ]
        # Cases are held beside their fit, so that no others take over the identities.
        new = {key: used for key, used in zip(keys, asked, strict=True) if key not in self._held}
        stop, threads = Event(), torch.get_num_threads()

        def fit(used: list[Points]) -> Scale:
            with self._lock:
                if self._tell is not None:
                    self._tell("learning", self._begun, max(self._count, self._begun + 1))
                self._begun += 1
            return fit_scale(used, steps=steps, stop=stop)

        with using_threads(1), ThreadPoolExecutor(min(threads, BESIDE)) as pool:
            running = {pool.submit(fit, used): key for key, used in new.items()}
            try:
                for one in as_completed(running):
                    self._held[running[one]] = new[running[one]], one.result()
            finally:
                stop.set()  # where one failed, or someone wants to stop, the others need not end
                pool.shutdown(cancel_futures=True)
        return [self._held[key][1] for key in keys]


BESIDE = 4
"""Fits at a time at most: each holds a copy of the evidence."""


def _digits(rows: list[list[float]]) -> list[list[float]]:
    """Five digits are enough, and make the file a third as long."""
    return [[float(f"{value:.5g}") for value in row] for row in rows]


FOLDS = 10
"""Sets of images for cross-fitting and cross-validation."""


def deal(points: Sequence[Points], folds: int) -> list[int]:
    """Fold of every case: images are dealt in turn, kind by kind; a case goes with the first of its images.

    What is held out together is less than what :func:`apart` leaves out: a pair of images of two folds teaches neither.
    """
    order: dict[str, dict[str, int]] = {}
    out = []
    for number, p in enumerate(points):
        dealt = order.setdefault(p.kind.removesuffix(f"-{PAIRS}"), {})
        image = p.images[0] if p.images else f"case {number}"
        out.append(dealt.setdefault(image, len(dealt)) % folds)
    return out


def apart(points: Sequence[Points], held: Sequence[bool]) -> list[Points]:
    """The cases that are not held out and share no image with any that is."""
    taken = {image for p, out in zip(points, held, strict=True) if out for image in p.images}
    return [p for p, out in zip(points, held, strict=True) if not out and taken.isdisjoint(p.images)]


def parted(points: Sequence[Points], dealt: Sequence[int]) -> bool:
    """Whether every fold leaves enough cases apart from it to learn from, two; of two cases, one."""
    left = [len(apart(points, [own == fold for own in dealt])) for fold in set(dealt)]
    return min(left, default=0) >= min(2, len(points) - 1)


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
logarithm of how far off the way back ends, and 1 if the two images lie on different grids: two scans differ by more
than one scan and its deformed copy, and so do errors."""
PAIRS = "pairs"
"""Ends the name of a kind whose cases are pairs of real scans, their errors taken from the surfaces of labels; by
itself: all of these together."""


def is_pairs(kind: str) -> bool:
    """Whether a kind stands for pairs of real scans."""
    return kind == PAIRS or kind.endswith(f"-{PAIRS}")


FARTHER = 0.6
"""By how much the logarithm of how far off the way back ends must exceed that of all known deformations of a kind.

Of the packaged calibration no known deformation exceeds the others, its image held out, by more than 0.36 (but for
single ones of kinds with few images: a head by 0.58, a template by 0.65, lung CT by 0.73, three of a spine by 0.98 to
1.8), and no brain or abdomen of two people by less than 0.76; hippocampi of two people exceed them by 0.1 to 0.5 and
hearts at two phases not at all, so these are told by their grids only. What still differs after alignment tells less.
"""


def traits_of(
    *,
    voxels: int,
    unit_mm: float,
    spacing: Sequence[float],
    share: float,
    medians: Mapping[str, float],
    two_grids: bool,
) -> tuple[float, ...]:
    """Traits of a pair, in the order of ``TRAITS``, how far off the way back ends, and whether there are two grids.

    ``medians`` are those of its evidence over the anatomy.
    """
    return (
        math.log(voxels),
        math.log(unit_mm),
        math.log(max(spacing) / min(spacing)),
        share,
        math.log(medians["texture"] + 1e-3),
        math.log(medians["contrast 4"] + 1e-2),
        math.log(medians["backward 1"] + FLOOR),
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
        Predicted size of the error and its spread.
    quantiles
        Of the scores, by kind of image (``any``: all of them), region (``foreground``, ``background``) and level.
    cases
        How many, by kind.
    traits
        Of every case, by kind: where a new image is told to belong.
    verdict
        Weights of the verdict, see :mod:`verimorph.uncertainty.verdict`; None where it was not learned.
    ndim
        Of its images, 2 or 3: errors in a plane say nothing of those in space.
    format
        What its parts mean: ``FORMAT``.
    """

    name: str
    calibrated_for: str
    scale: Scale
    quantiles: Mapping[str, Mapping[str, Mapping[str, float]]]
    cases: Mapping[str, int] = field(default_factory=dict)
    traits: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    ndim: int = 3
    format: int = FORMAT

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all of it: two calibrations of one name may differ."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def kind_of(self, traits: Sequence[float]) -> str:
        """The kind whose nearest case differs least, or ``any`` if none is near (root mean square above 1.5).

        Pairs on different grids, or whose way back ends farther off than in all known deformations of the kind (of all
        kinds, if none is near), are two real scans: they have the quantiles of such pairs of the kind, or of all such
        pairs.
        """
        tolerance = np.array(list(TRAITS.values()))
        count = len(tolerance)
        known = {kind: rows for kind, rows in self.traits.items() if len(rows) and not is_pairs(kind)}
        nearest_of = {
            kind: min(
                float(np.sqrt(np.mean(((np.array(row[:count]) - np.array(traits[:count])) / tolerance) ** 2)))
                for row in rows
            )
            for kind, rows in known.items()
        }
        best = min(nearest_of, key=lambda kind: nearest_of[kind], default=ANY)
        if nearest_of.get(best, math.inf) > 1.5:
            best = ANY
        like = known[best] if best in known else [row for rows in known.values() for row in rows]
        farthest = max((row[count] for row in like), default=math.inf)
        if PAIRS not in self.quantiles or not (traits[count + 1] > 0 or traits[count] > farthest + FARTHER):
            return best
        return f"{best}-{PAIRS}" if f"{best}-{PAIRS}" in self.quantiles else PAIRS

    def reach(self, kind: str = ANY) -> float:
        """Highest level that a bound can be given for, in both regions."""
        return min(max(float(q) for q in self._table(k, region)) for k in self._parts(kind) for region in (True, False))

    def check(self, level: float, kind: str = ANY) -> None:
        """Refuse a level that a bound cannot be given for."""
        for part in self._parts(kind):
            for region in (True, False):
                self.quantile(level, region, part)

    def _parts(self, kind: str) -> tuple[str, ...]:
        """Kinds whose quantiles make the bound: of pairs of real scans, known deformations of that kind first."""
        base = ANY if kind == PAIRS else kind.removesuffix(f"-{PAIRS}")
        return (base, kind) if is_pairs(kind) and kind in self.quantiles else (base,)

    def quantile(self, level: float, foreground: bool, kind: str = ANY) -> float:
        """Quantile of the scores at a level; between the levels held, linear in ``-log(1 - level)``."""
        table = self._table(kind, foreground)
        known = np.array(sorted(float(q) for q in table))
        if not known[0] <= level <= known[-1]:
            raise OptionError(f"level is {level:g}; this calibration reaches from {known[0]:g} to {known[-1]:g}")
        values = np.array([table[f"{q:g}"] for q in known])
        return float(np.interp(-math.log1p(-level), -np.log1p(-known), values))

    def _table(self, kind: str, foreground: bool) -> Mapping[str, float]:
        return self.quantiles.get(kind, self.quantiles[ANY])["foreground" if foreground else "background"]

    def bound(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"], level: float, kind: str = ANY
    ) -> Float[ndarray, " n"]:
        """Bound of the error at a level, units; ``evidence`` in the order of ``scale.names``."""
        m, s = self.scale(evidence, foreground)

        def of(kind: str, spread: Float[ndarray, " n"] | float) -> Float[ndarray, " n"]:
            at = np.where(foreground, self.quantile(level, True, kind), self.quantile(level, False, kind))
            return np.exp(m + spread * at)

        base, *pairs = self._parts(kind)
        bound = of(base, s)
        for own in pairs:
            # Drawn surfaces are known to half a voxel, which says little about small errors; two scans are at least as
            # hard to align as one and its deformed copy.
            bound = np.maximum(bound, of(own, 1.0))
        return np.maximum(bound - FLOOR, LEAST)


def calibrate(
    points: Sequence[Points],
    *,
    name: str,
    calibrated_for: str,
    scale: Scale | None = None,
    dealt: Sequence[int] | None = None,
    steps: int | None = None,
    fits: Fits | None = None,
) -> Calibration:
    """Learn the scale and its quantiles from cases with known error.

    The scores whose quantiles are taken come from scales that did not see the images of the case (cross-fitting over
    ``FOLDS`` sets of images, or over the folds in ``dealt``); a ``scale`` that is given was learned elsewhere and is
    used as it is. Where cases share their images (all of one; pairs with one atlas), so that a fold leaves too few to
    learn from, they are held out one by one, and what is learned is about these images. With few folds those scales
    have seen much less than the one that is used, and bounds are wider than they need be. All have the same number of
    ``steps``, default what suits all the cases: what is learned without a fold is learned as the whole is. ``fits``
    holds those that others ask for, too.

    Quantiles over all kinds, and those over all pairs of real scans where there are ``CORRECTED_PAIRS``, carry the
    correction for the number of cases, which guarantees coverage for exchangeable ones (of few pairs the largest scores
    make the highest level, and it is wide). Those of one kind do not where it has fewer than ``GUARANTEED`` cases: with
    so few, the correction would ask for the largest score; their coverage is right in expectation up to a term of the
    order of one over the number of cases.

    Barber et al., Predictive inference with the jackknife+, Annals of Statistics 2021, on scores out of folds.
    """
    if len({p.ndim for p in points}) > 1:
        raise OptionError("there are 2-D and 3-D images; each need a calibration of their own")
    if all(is_pairs(p.kind) for p in points):
        # With nothing else to learn from, they are what every image is judged by.
        points = [replace(p, kind=p.kind.removesuffix(f"-{PAIRS}").replace(PAIRS, "images")) for p in points]
    held = [scale] * len(points)
    if scale is None:
        if len(points) < 2:
            raise OptionError(f"{len(points)} case is too few to calibrate on; give at least 2, better 20")
        dealt = deal(points, FOLDS) if dealt is None else dealt
        if not parted(points, dealt):
            points = [replace(p, images=()) for p in points]
            dealt = [number % FOLDS for number in range(len(points))]
        folds = sorted(set(dealt))
        sets = [*(apart(points, [own == fold for own in dealt]) for fold in folds), points]
        *fitted, scale = (fits or Fits())(sets, steps=steps or steps_for(points))
        held = [fitted[folds.index(own)] for own in dealt]
    scores = []
    for p, s in zip(points, held, strict=True):
        assert s is not None
        scores.append(s.scores(p))
    kinds = sorted({p.kind for p in points})
    known = [i for i, p in enumerate(points) if not is_pairs(p.kind)] or list(range(len(points)))
    quantiles = {ANY: _regions([points[i] for i in known], [scores[i] for i in known], corrected=True)}
    for kind in kinds:
        own = [i for i, p in enumerate(points) if p.kind == kind]
        if len(kinds) > 1 and len(own) >= FEWEST:
            found = _regions([points[i] for i in own], [scores[i] for i in own], corrected=len(own) >= GUARANTEED)
            quantiles[kind] = found
    real = [i for i, p in enumerate(points) if is_pairs(p.kind)]
    if len(real) >= FEWEST:
        quantiles[PAIRS] = _regions(
            [points[i] for i in real], [scores[i] for i in real], corrected=len(real) >= CORRECTED_PAIRS
        )
    counts = {kind: sum(p.kind == kind for p in points) for kind in kinds}
    traits = {kind: [list(p.traits) for p in points if p.kind == kind and p.traits] for kind in kinds}
    return Calibration(name, calibrated_for, scale, quantiles, counts, traits, ndim=points[0].ndim)


FEWEST, GUARANTEED = 4, 30
"""Cases of a kind for quantiles of its own; and for those to carry the correction that guarantees their coverage."""
CORRECTED_PAIRS = 19
"""Pairs of real scans for the quantiles of all of them to carry it: of fewer, the highest level would have none."""


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


def read_calibration(name: str | os.PathLike | Calibration = "general", *, ndim: int | None = None) -> Calibration:
    """Read a packaged calibration by its name, or a file; one in memory is given back as it is.

    Parameters
    ----------
    ndim
        Of the images it is wanted for: of packaged ones, that of this name for these is taken.

    Raises
    ------
    InputError
        If there is none of that name, or the file is no calibration.
    OptionError
        If it is one of images of other dimension.
    """
    found = name if isinstance(name, Calibration) else _read(name, ndim or 3)
    if ndim is not None and found.ndim != ndim:
        raise OptionError(
            f"calibration '{found.name}' was learned on {found.ndim}-D images, these are {ndim}-D; "
            "'verimorph calibrate' learns one for them"
        )
    return found


def _read(name: str | os.PathLike, ndim: int) -> Calibration:
    from verimorph.uncertainty.evidence import MAPS

    ending = "" if ndim == 3 or str(name).endswith(f"-{ndim}d") else f"-{ndim}d"
    path = CALIBRATIONS / f"{name}{ending}.json"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in CALIBRATIONS.glob("*.json") if not p.stem.endswith("-2d"))
        raise InputError(f"no calibration '{name}'{nearest(str(name), known)} (or give a file)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held = {key: tuple(value) for key, value in content.pop("scale").items()}
        held["networks"] = tuple(tuple((w, b) for w, b in net) for net in held["networks"])
        scale = Scale(**held)
        if any(len(net[-1][1]) != 2 for net in scale.networks):
            raise ValueError("of an earlier version, without a spread")
        if content.get("format") != FORMAT:
            raise ValueError("of another version")
        if unknown := [own for own in scale.names if own not in MAPS]:
            raise ValueError(f"it asks for evidence that is not gathered: {', '.join(unknown)}")
        _check_numbers(scale)
        found = Calibration(scale=scale, **content)
        found.reach()
        return found
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: is no calibration ({error}); 'verimorph calibrate' writes one") from None


def _check_numbers(scale: Scale) -> None:
    """Refuse a scale whose parts do not fit together, or that holds what is no number."""
    sizes = len(scale.names)
    if not scale.networks or not len(scale.mean) == len(scale.deviation) == sizes:
        raise ValueError("its parts do not fit together")
    if not np.isfinite(scale.mean).all() or not (np.array(scale.deviation) > 0).all():
        raise ValueError("it holds what is no number, or a deviation that is not above 0")
    for net in scale.networks:
        inputs = sizes + 1
        for weight, offset in net:
            if np.shape(weight) != (len(offset), inputs):
                raise ValueError("its parts do not fit together")
            if not np.isfinite(weight).all() or not np.isfinite(offset).all():
                raise ValueError("it holds what is no number")
            inputs = len(offset)
