"""From evidence to millimetres: a predicted size of the error and its spread, and quantiles that make a bound of it.

What `verimorph.uncertainty.scale` predicts of the logarithm of an error (mean m, standard deviation s) is wrong by
something; that is taken up by the conformal quantiles Q of the scores ``(log(e + e0) - m) / s``: of images that
resemble a kind of the calibration set, that kind's; of others, those of all kinds together. The bound is

    exp(m + s Q) - e0

Two real scans have a size g of their own, scores ``log(e + e0) - g``, and the bound

    exp(g + Q) - e0

Lei et al., Distribution-free predictive inference for regression, JASA 2018 (locally weighted conformal scores).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from verimorph.errors import InputError, OptionError, nearest
from verimorph.uncertainty.cases import FOLDS, PAIR_FOLDS, PAIRS, Points, apart, case_weights, deal, is_pairs, parted
from verimorph.uncertainty.conformal import mondrian_quantiles
from verimorph.uncertainty.scale import FLOOR, Fits, Scale, steps_for, with_pairs

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels that a calibration holds quantiles for; between them the logarithm of the quantile is interpolated."""
FOREGROUND, BACKGROUND = 1, 0
LEAST = 1e-3
"""No bound is smaller, voxels."""
FORMAT = 5
"""Of calibrations. Before 2 the traits of a pair had its mismatch where the way back is now; before 3
nothing said whether images were 2-D or 3-D; before 4 the units were hyperbolic tangents; before 5 two
real scans had no size of error of their own."""
ANY = "any"
"""Stands for images that resemble none of the kinds of a calibration."""
CALIBRATIONS = Path(__file__).with_name("calibrations")

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
FARTHER = 0.6
"""By how much the logarithm of how far off the way back ends must exceed that of all known deformations of a kind.

Of the packaged calibration no known deformation exceeds the others, its image held out, by more than 0.36 (but for
single ones of kinds with few images: a head by 0.58, a template by 0.65, lung CT by 0.73, three of a spine by 0.98 to
1.8), and no brain or abdomen of two people by less than 0.76; hippocampi of two people exceed them by 0.1 to 0.8 and
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
    kind
        Of images that every pair is taken for; None: told from the pair itself. One that was learned on pairs of real
        scans alone takes all for such.
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
    kind: str | None = None

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all of it: two calibrations of one name may differ."""
        content = asdict(self) | {"kind": None}  # whatever images are taken for, it is this one
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def kind_of(self, traits: Sequence[float]) -> str:
        """The kind whose nearest case differs least, or ``any`` if none is near (root mean square above 1.5).

        Pairs on different grids, or whose way back ends farther off than in all known deformations of the kind (of all
        kinds, if none is near), are two real scans: they have the quantiles of such pairs of the kind, or of all such
        pairs.
        """
        if self.kind is not None:
            return self.kind
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
        return min(max(float(q) for q in self._table(kind, region)) for region in (True, False))

    def check(self, level: float, kind: str | None = None) -> None:
        """Refuse a level that a bound cannot be given for, of images of a kind (default: that they are taken for)."""
        kind = kind or self.kind or ANY
        for region in (True, False):
            self.quantile(level, region, kind)

    def quantile(self, level: float, foreground: bool, kind: str = ANY) -> float:
        """Quantile of the scores at a level; between the levels held, linear in ``-log(1 - level)``."""
        table = self._table(kind, foreground)
        known = np.array(sorted(float(q) for q in table))
        if not known[0] <= level <= known[-1]:
            reached = f"from {known[0]:g} to {known[-1]:g}" if len(known) > 1 else f"{known[0]:g}"
            raise OptionError(f"level is {level:g}; give one that this calibration reaches, {reached}")
        values = np.array([table[f"{q:g}"] for q in known])
        return float(np.interp(-math.log1p(-level), -np.log1p(-known), values))

    def _table(self, kind: str, foreground: bool) -> Mapping[str, float]:
        return self.quantiles.get(kind, self.quantiles[ANY])["foreground" if foreground else "background"]

    def bound(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"], level: float, kind: str = ANY
    ) -> Float[ndarray, " n"]:
        """Bound of the error at a level, units; ``evidence`` in the order of ``scale.names``."""
        return self.bounds(evidence, foreground, [level], kind)[0]

    def bounds(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"], levels: Sequence[float], kind: str = ANY
    ) -> list[Float[ndarray, " n"]]:
        """Those at several levels, for little more than the one at one."""
        real = is_pairs(kind) and kind in self.quantiles
        m, s = (self.scale.of_pairs(evidence, foreground), 1.0) if real else self.scale(evidence, foreground)
        quantiles = [[self.quantile(level, inside, kind) for inside in (False, True)] for level in levels]
        at = foreground.astype(int)
        return [np.maximum(np.exp(m + s * np.array(q)[at]) - FLOOR, LEAST) for q in quantiles]


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
    ``FOLDS`` sets of images, and of pairs over ``PAIR_FOLDS``, or over the folds in ``dealt``); a ``scale`` that is
    given was learned elsewhere and is used as it is. Of pairs it is their own size that did not see their images; m and
    s may have seen known deformations of them. Where cases share their images (all of one; pairs with one atlas), so
    that a fold leaves too few to learn from, they are held out one by one, and what is learned is about these images.
    With few folds those scales have seen much less than the one that is used, and bounds are wider than they need be.
    All have the same number of ``steps``, default what suits all the cases: what is learned without a fold is learned
    as the whole is. ``fits`` holds those that others ask for, too.

    Pairs of real scans alone take a ``scale``, and what is learned takes all for such pairs.

    Quantiles over all kinds, and those over all pairs of real scans where there are ``CORRECTED_PAIRS``, carry the
    correction for the number of cases, which guarantees coverage for exchangeable ones (of few pairs the largest scores
    make the highest level, and it is wide). Those of one kind do not where it has fewer than ``GUARANTEED`` cases: with
    so few, the correction would ask for the largest score; their coverage is right in expectation up to a term of the
    order of one over the number of cases.

    Barber et al., Predictive inference with the jackknife+, Annals of Statistics 2021, on scores out of folds.
    """
    if len({p.ndim for p in points}) > 1:
        raise OptionError("there are 2-D and 3-D images; each need a calibration of their own")
    alone = all(is_pairs(p.kind) for p in points)
    if alone and scale is None:
        raise OptionError(PAIRS_ALONE)
    if alone and len(points) < FEWEST:
        raise OptionError(f"there are {len(points)} pairs of real scans and nothing else; {FEWEST} are the fewest")
    held = [scale] * len(points)
    if scale is None:
        if (known := sum(not is_pairs(p.kind) for p in points)) < 2:
            raise OptionError(f"{known} case is too few to calibrate on; give at least 2, better 20")
        dealt = deal(points, FOLDS) if dealt is None else dealt
        points, dealt = _parted(points, dealt)
        folds = sorted(set(dealt))
        sets = [*(apart(points, [own == fold for own in dealt]) for fold in folds), points]
        *fitted, scale = (fits or Fits())(sets, steps=steps or steps_for(points))
        if sum(is_pairs(p.kind) for p in points) >= FEWEST:
            scale = with_pairs(scale, points)
            with_them = {own for own, p in zip(dealt, points, strict=True) if is_pairs(p.kind)}
            fitted = [
                with_pairs(one, own) if fold in with_them else one
                for fold, one, own in zip(folds, fitted, sets[:-1], strict=True)
            ]
        held = [fitted[folds.index(own)] for own in dealt]
    scores = []
    for p, s in zip(points, held, strict=True):
        assert s is not None
        scores.append(s.scores(p))
    kinds = sorted({p.kind for p in points})
    most = [i for i, p in enumerate(points) if alone or not is_pairs(p.kind)]
    many = not alone or len(points) >= CORRECTED_PAIRS
    quantiles = {ANY: _regions([points[i] for i in most], [scores[i] for i in most], corrected=many)}
    for kind in kinds:
        own = [i for i, p in enumerate(points) if p.kind == kind]
        if len(kinds) > 1 and len(own) >= FEWEST:
            found = _regions([points[i] for i in own], [scores[i] for i in own], corrected=len(own) >= GUARANTEED)
            quantiles[kind] = found
    real = [i for i, p in enumerate(points) if is_pairs(p.kind)]
    if alone:
        quantiles[PAIRS] = quantiles[ANY]
    elif len(real) >= FEWEST:
        quantiles[PAIRS] = _regions(
            [points[i] for i in real], [scores[i] for i in real], corrected=len(real) >= CORRECTED_PAIRS
        )
    counts = {kind: sum(p.kind == kind for p in points) for kind in kinds}
    traits = {kind: [list(p.traits) for p in points if p.kind == kind and p.traits] for kind in kinds}
    kind = PAIRS if alone else None
    return Calibration(name, calibrated_for, scale, quantiles, counts, traits, ndim=points[0].ndim, kind=kind)


FEWEST, GUARANTEED = 4, 30
"""Cases of a kind for quantiles of its own; and for those to carry the correction that guarantees their coverage."""
PAIRS_ALONE = (
    "pairs of real scans alone do not say how small errors are; name images to deform, too, or with --base a "
    "calibration whose sizes of error are to be used, such as general"
)
CORRECTED_PAIRS = 19
"""Pairs of real scans for the quantiles of all of them to carry it: of fewer, the highest level would have none."""


def _parted(points: Sequence[Points], dealt: Sequence[int]) -> tuple[list[Points], list[int]]:
    """Known deformations, and pairs, in folds that leave enough to learn from: by images, else one by one."""
    points, dealt = list(points), list(dealt)
    for of_pairs, fewest in ((False, 2), (True, FEWEST - 1)):
        places = [i for i, p in enumerate(points) if is_pairs(p.kind) == of_pairs]
        if parted([points[i] for i in places], [dealt[i] for i in places], min(fewest, len(places) - 1)):
            continue
        further = 1 + max(dealt)
        for number, i in enumerate(places):
            points[i] = replace(points[i], images=())
            dealt[i] = further + number % (PAIR_FOLDS if of_pairs else FOLDS)
    return points, dealt


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
    name
        ``NAME:KIND`` or ``FILE:KIND`` takes all images for those of a kind, such as ``general:cardiac-pairs``, instead
        of telling it from them.
    ndim
        Of the images it is wanted for: of packaged ones, that of this name for these is taken.

    Raises
    ------
    InputError
        If there is none of that name, or the file is no calibration, or it knows no such kind.
    OptionError
        If it is one of images of other dimension.
    """
    if isinstance(name, Calibration):
        found = name
    else:
        name, kind = _parsed(name)
        found = _read(name, ndim or 3)
        found = found if kind is None else replace(found, kind=kind)
    if ndim is not None and found.ndim != ndim:
        raise OptionError(
            f"calibration '{found.name}' was learned on {found.ndim}-D images, these are {ndim}-D; "
            "'verimorph calibrate' learns one for them"
        )
    # Of a packaged one it takes the dimension to know which is meant.
    if ndim is not None and found.kind is not None and found.kind not in found.quantiles:
        few = f", of which it knows {found.cases[found.kind]} cases only" if found.kind in found.cases else ""
        known = ", ".join(sorted(found.quantiles))
        raise InputError(f"calibration '{found.name}' has no bound of its own for '{found.kind}'{few}; it has {known}")
    return found


def _parsed(name: str | os.PathLike) -> tuple[str | os.PathLike, str | None]:
    """Name or file, and kind; a file may have a colon in its name."""
    if isinstance(name, str) and ":" in name and not Path(name).exists():
        name, _, kind = name.rpartition(":")
        return name, kind.strip()
    return name, None


def _read(name: str | os.PathLike, ndim: int) -> Calibration:
    from verimorph.uncertainty.evidence import MAPS

    ending = "" if ndim == 3 or str(name).endswith(f"-{ndim}d") else f"-{ndim}d"
    path = CALIBRATIONS / f"{name}{ending}.json"
    if not path.is_file() or Path(name).name != str(name):
        path = Path(name)
    if not str(name):
        raise InputError("the name of the calibration is empty; give a name or a file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the calibration, a file of 'verimorph calibrate'")
    if not path.is_file():
        known = sorted(p.stem for p in CALIBRATIONS.glob("*.json") if not p.stem.endswith("-2d"))
        raise InputError(f"no calibration '{name}'{nearest(str(name), known)} (or give a file)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError("of another version, or something else")
        held = {key: tuple(value) for key, value in content.pop("scale").items()}
        held["networks"] = tuple(tuple((w, b) for w, b in net) for net in held["networks"])
        scale = Scale(**held)
        if unknown := [own for own in scale.names if own not in MAPS]:
            raise ValueError(f"it asks for evidence that is not gathered: {', '.join(unknown)}")
        _check_numbers(scale)
        found = Calibration(scale=scale, **content)
        found.reach()
        return found
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        # Of the wrong things in it only ours, and those of JSON, are told in words for people.
        why = str(error) if isinstance(error, ValueError) else "it lacks what one holds"
        raise InputError(f"{path}: is no calibration ({why}); 'verimorph calibrate' writes one") from None


def _check_numbers(scale: Scale) -> None:
    """Refuse a scale whose parts do not fit together, or that holds what is no number."""
    sizes = len(scale.names)
    if not scale.networks or not len(scale.mean) == len(scale.deviation) == sizes:
        raise ValueError("its parts do not fit together")
    if len(scale.pairs) not in (0, sizes + 1):
        raise ValueError("its parts do not fit together")
    if not np.isfinite((*scale.mean, *scale.pairs)).all() or not (np.array(scale.deviation) > 0).all():
        raise ValueError("it holds what is no number, or a deviation that is not above 0")
    for net in scale.networks:
        inputs = sizes + 1
        for weight, offset in net:
            if np.shape(weight) != (len(offset), inputs):
                raise ValueError("its parts do not fit together")
            if not np.isfinite(weight).all() or not np.isfinite(offset).all():
                raise ValueError("it holds what is no number")
            inputs = len(offset)
        if inputs != 2:
            raise ValueError("its parts do not fit together")
