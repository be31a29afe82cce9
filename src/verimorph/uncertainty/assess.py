"""How sure one registration is: a bound of its error in millimetres, what that does to labels, a verdict.

>>> result = register(fixed="a.nii.gz", moving="b.nii.gz", uncertainty=True)  # doctest: +SKIP
>>> result.uncertainty.error_mm  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from scipy import sparse, stats
from torch import Tensor

from verimorph import field as fields
from verimorph import pipeline
from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import Composite, DisplacementField, Transform, parts_of
from verimorph.uncertainty.bound import ANY, LEVELS, Calibration, read_calibration, traits_of
from verimorph.uncertainty.cases import PAIRS, is_pairs
from verimorph.uncertainty.evidence import Evidence, gather
from verimorph.uncertainty.known import foreground
from verimorph.uncertainty.reference import by_defaults, distance_between, reference_of
from verimorph.uncertainty.sampler import Draw
from verimorph.uncertainty.verdict import Verdict, is_linear, judge, pair_facts

if TYPE_CHECKING:
    from verimorph.registration import Registration

VERDICT_LEVEL = 0.9
"""Level of the bound that the way to a reference is compared with: a verdict is the same at every level asked for."""
DRAWS = 16
"""Draws of the calibrated field for labels and volumes."""
HIDDEN = 0.05
"""Share of a label that a mask may hide: of more, an interval of its volume would be too narrow."""
COHERENCE = 3.0
"""How far errors hang together, voxels of the evidence grid: standard deviation of the smoothing of the draws."""


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What is known about the error of one registration.

    Attributes
    ----------
    error_mm
        Bound of the error at every voxel of the fixed image, mm: the distance between where the transform sends the
        voxel and where it should, at most this for a share ``level`` of voxels, over images like those of the
        calibration. NaN where a mask kept the images from being compared: nothing is known there.
    level
        That share.
    displacement_std
        Standard deviation of the displacement over the result itself and the two quick registrations that look forward
        again, mm. Not calibrated: disagreement, not error.
    label_uncertainty
        Entropy of the moved label over draws of the calibrated error, nats; NaN as ``error_mm``; None without labels.
    volumes
        Of each moved label: ``volume_ml`` and the interval ``low_ml`` to ``high_ml`` at ``level`` (2-D: of a slice of
        1 mm). Labels of which a mask hides more than a twentieth are left out.
    calibration, calibration_hash, calibrated_for
        Name of the calibration set, digits that tell it from others of the name, and in plain words for which images it
        holds.
    verdict, reasons, probability
        ``pass``, ``review`` or ``fail``; why, in one line; probability that the registration is broken (None: not
        known).
    facts
        What the verdict was drawn from.
    foreground
        Where the anatomy is that was compared, on the fixed grid.
    reference_away_mm
        Where the result was not made by the defaults: how far it ends from one that was, median over the anatomy, mm;
        that is in the bound (:mod:`verimorph.uncertainty.reference`).
    seconds
        What it cost.
    """

    error_mm: Image
    level: float
    displacement_std: Image
    label_uncertainty: Image | None
    volumes: dict[int, dict[str, float]]
    calibration: str
    calibration_hash: str
    calibrated_for: str
    verdict: str
    reasons: str
    probability: float | None
    facts: dict[str, float] = field(default_factory=dict)
    foreground: Bool[ndarray, "*space"] | None = None
    reference_away_mm: float | None = None
    seconds: float = 0.0

    @property
    def maps(self) -> dict[str, Image]:
        """Names of files and what belongs there: bound, spread and, with labels, their uncertainty."""
        found = {"error_mm.nii.gz": self.error_mm, "displacement_std.nii.gz": self.displacement_std}
        return found if self.label_uncertainty is None else found | {"label_uncertainty.nii.gz": self.label_uncertainty}

    def summary(self) -> dict[str, Any]:
        """JSON-able: what ``metrics.json`` holds under ``uncertainty``; the bound is summed up over the anatomy."""
        values = self.error_mm.array if self.foreground is None else self.error_mm.array[self.foreground]
        found: dict[str, Any] = {
            "level": self.level,
            "calibration": self.calibration,
            "calibration_hash": self.calibration_hash,
            "calibrated_for": self.calibrated_for,
            "median_mm": float(np.median(values)),
            "p95_mm": float(np.percentile(values, 95)),
            "seconds": round(self.seconds, 3),
        }
        if self.reference_away_mm is not None:
            found["reference_away_mm"] = self.reference_away_mm
        if self.volumes:
            found["volumes"] = {str(label): dict(row) for label, row in self.volumes.items()}
        return found

    def verdict_summary(self) -> dict[str, Any]:
        """JSON-able: what ``metrics.json`` holds under ``verdict``."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "probability": self.probability,
            # A fact that could not be measured is left out: JSON has no such number.
            "facts": {name: round(value, 4) for name, value in self.facts.items() if math.isfinite(value)},
        }


def assess(
    registration: Registration,
    *,
    level: float = 0.9,
    calibration: str | PathLike | Calibration = "general",
    seed: int | None = None,
) -> Uncertainty:
    """Say how sure a registration is. It may come from the engine, from a network or from anywhere.

    What was not made by the defaults of the engine is compared with a registration that was, made here for the purpose:
    :mod:`verimorph.uncertainty.reference`.

    Parameters
    ----------
    level
        Share of voxels for which the bound is to hold.
    calibration
        Name of a packaged calibration, a file of ``verimorph calibrate``, or one in memory.

    Raises
    ------
    OptionError, InputError
        For a level out of reach of the calibration, or a calibration that is not there.
    """
    import time

    begun = time.perf_counter()
    grid = registration.fixed.grid
    held = read_calibration(calibration, ndim=grid.ndim)
    held.check(level)
    seed = int(registration.settings.get("seed") or 0) if seed is None else seed
    found = _bounded(registration, held, level, seed)
    evidence, seen = found.evidence, found.compared
    error = np.where(seen, _upsampled(found.bounds[level] * evidence.unit_mm, grid), np.float32(np.nan))
    spread = _upsampled(evidence.spread * evidence.unit_mm, grid)
    labels = None
    volumes: dict[int, dict[str, float]] = {}
    if registration.moving_labels is not None:
        sampler = CalibratedSampler(registration.transform, evidence, found.bounds)
        entropy, volumes = _label_uncertainty(registration, sampler, level, seed, seen)
        values = np.where(seen, _upsampled(torch.from_numpy(entropy), grid), np.float32(np.nan))
        labels = Image.from_array(values, grid, name="label_uncertainty")
    facts = pair_facts(registration, evidence, found.near, whole=found.whole)
    verdict = _verdict(registration, facts, found, held)
    return Uncertainty(
        Image.from_array(error, grid, name="error_mm"),
        level,
        Image.from_array(spread, grid, name="displacement_std"),
        labels,
        volumes,
        held.name if found.kind == ANY and held.kind is None else f"{held.name}: {found.kind}",
        held.digest,
        _words_for(held, found),
        verdict.verdict,
        verdict.reasons,
        verdict.probability,
        facts,
        found.inside,
        None if found.away is None else float(found.away[torch.from_numpy(found.near)].median()) * evidence.unit_mm,
        time.perf_counter() - begun,
    )


def calibrated_sampler(
    registration: Registration,
    *,
    level: float = 0.9,
    calibration: str | PathLike | Calibration = "general",
    seed: int = 0,
) -> CalibratedSampler:
    """Draws of what the transform of a registration may be, from whatever it came: errors of the size of its bound."""
    held = read_calibration(calibration, ndim=registration.fixed.grid.ndim)
    found = _bounded(registration, held, level, seed)
    return CalibratedSampler(registration.transform, found.evidence, found.bounds)


@dataclass(frozen=True, eq=False)
class _Bounded:
    """The bound of a registration and what it was drawn from.

    Attributes
    ----------
    evidence
        About the registration itself.
    compared, whole, inside
        On the fixed grid: where the masks let the images be compared; the anatomy; what of it is there.
    near
        ``inside`` on the evidence grid.
    kind, alike
        Of images the pair is taken for, and that it is told to be by the images; they differ where one was asked for.
    bounds
        By level, units of the evidence; the level asked for, and what of ``LEVELS`` the calibration reaches.
    away
        How far from a reference by the defaults, units; None where it is one itself.
    usual
        Bound of that reference at ``VERDICT_LEVEL`` (lower where the calibration does not reach it), units; None too.
    """

    evidence: Evidence
    compared: Bool[ndarray, "*space"]
    whole: Bool[ndarray, "*space"]
    inside: Bool[ndarray, "*space"]
    near: Bool[ndarray, "*space"]
    kind: str
    alike: str
    bounds: dict[float, Float[Tensor, "*space"]]
    away: Float[Tensor, "*space"] | None
    usual: Float[Tensor, "*space"] | None


def _bounded(registration: Registration, held: Calibration, level: float, seed: int) -> _Bounded:
    direct = by_defaults(registration.settings)
    reference = registration if direct else reference_of(registration, seed)
    evidence = _looked(registration, seed)
    learned_from = evidence if direct else _looked(reference, seed)
    compared = _compared(registration)
    if not direct and (compared & _compared(reference)).any():  # nothing is known of the reference elsewhere
        compared &= _compared(reference)
    whole = foreground(registration.fixed)
    inside = whole & compared if (whole & compared).any() else compared
    near = on_evidence(inside, evidence.grid)
    # The kind is that of the image, however much of it a mask leaves.
    share = float(on_evidence(whole, evidence.grid).mean())
    own = traits(registration.fixed, registration.moving, learned_from, near, share=share)
    kind, alike = held.kind_of(own), replace(held, kind=None).kind_of(own)
    held.check(level, kind)
    usual = min(VERDICT_LEVEL, held.reach(kind))
    levels = {level, usual, *(q for q in LEVELS if q <= held.reach(kind))}
    bounds = _bound_maps(learned_from, near, held, levels, kind)
    if direct:
        return _Bounded(evidence, compared, whole, inside, near, kind, alike, bounds, None, None)
    away = distance_between(registration.transform, reference.transform, evidence.grid) / evidence.unit_mm
    longer = {q: bound + away for q, bound in bounds.items()}
    return _Bounded(evidence, compared, whole, inside, near, kind, alike, longer, away, bounds[usual])


def _looked(registration: Registration, seed: int) -> Evidence:
    """Evidence about a registration."""
    return gather(
        fixed=registration.fixed,
        moving=registration.moving,
        transform=registration.transform,
        fixed_mask=registration.fixed_mask,
        moving_mask=registration.moving_mask,
        recipe=replace(pipeline.recipe_of(registration.settings), seed=seed),
    )


def _compared(registration: Registration) -> Bool[ndarray, "*space"]:
    """Voxels of the fixed image that the masks let take part; of the fixed mask alone if they do not meet."""
    grid = registration.fixed.grid
    seen = np.ones(grid.shape, bool) if registration.fixed_mask is None else registration.fixed_mask.array > 0
    if registration.moving_mask is None:
        return seen
    there = registration.transform.resample(registration.moving_mask, grid, interpolation="nearest").array > 0
    return seen & there if (seen & there).any() else seen


def _verdict(registration: Registration, facts: dict[str, float], found: _Bounded, held: Calibration) -> Verdict:
    """The verdict by the facts, and what it cannot say of results that are not like those it was learned on."""
    verdict = judge(facts, held)
    if verdict.verdict == "fail" and is_linear(registration.transform):
        # Verdicts are learned on deformable results; looks deform, and so differ from a sound rigid one.
        why = f"verdicts are learned on deformable registrations, this one is linear; {verdict.reasons}"
        return Verdict("review", verdict.probability, why)
    where = torch.from_numpy(found.near)
    if verdict.verdict == "pass" and found.away is not None and found.usual is not None:
        away, own = float(found.away[where].median()), float(found.usual[where].median())
        if away > own:
            unit = found.evidence.unit_mm
            why = (
                f"a registration by the defaults ends {away * unit:.2g} mm away (median), "
                f"more than its own bound of {own * unit:.2g} mm"
            )
            return Verdict("review", verdict.probability, why)
    return verdict


def _words_for(held: Calibration, found: _Bounded) -> str:
    """For which images the bound was checked; whether this image is one of them, and this registration one of those."""
    words = _words_for_kind(held, found.kind, found.alike)
    if found.away is None:
        return words
    return f"{words}; this result was not made by the defaults: its bound is that of one that was, plus the way to it"


def _words_for_kind(held: Calibration, kind: str, alike: str) -> str:
    if held.cases and all(is_pairs(own) for own in held.cases):
        count = sum(held.cases.values())
        return f"{held.calibrated_for}; it was learned on {count} pairs of real scans, and all are taken for such"
    if held.kind is not None:
        names = {ANY: "all kinds of known deformations together", PAIRS: "all pairs of real scans together"}
        asked = f"the bound is that of {names.get(kind, kind)}, as was asked for"
        told = "" if alike == kind else f"; by the images it would be that of {names.get(alike, alike)}"
        return f"{held.calibrated_for}; {asked}{told}"
    if len(held.cases) < 2:
        foreign = "; this image does not resemble the images of the calibration" if kind == ANY and held.traits else ""
        return held.calibrated_for + foreign
    if kind == ANY:
        return f"{held.calibrated_for}; this image resembles none of these kinds, so the bound is that of all together"
    if kind == PAIRS:
        also = "these are two scans that differ, of no kind of pair among these: the bound is that of all such pairs"
        return f"{held.calibrated_for}; {also}"
    words = f"{held.calibrated_for}; of these, this pair resembles {kind} ({held.cases[kind]} cases)"
    return words if kind in held.quantiles else f"{words}, too few for a bound of their own: it is that of all together"


def on_evidence(inside: Bool[ndarray, "*space"], grid: Grid) -> Bool[ndarray, "*space"]:
    """A mask on the evidence grid: at least half of the voxel."""
    tensor = torch.from_numpy(inside.astype(np.float32))[None, None]
    return (fields.resize(tensor, grid.shape)[0, 0] > 0.5).numpy()


def traits(
    fixed: Image, moving: Image, evidence: Evidence, near: Bool[ndarray, "*space"], *, share: float
) -> tuple[float, ...]:
    """What a calibration tells kinds of images apart by; ``share`` is that of the whole anatomy in the fixed image."""
    where = torch.from_numpy(near if near.any() else ~near)
    wanted = ("texture", "contrast 4", "backward 1")
    medians = {name: float(evidence.maps[name].cpu()[where].median()) for name in wanted}
    return traits_of(
        voxels=fixed.grid.size,
        unit_mm=evidence.unit_mm,
        spacing=fixed.grid.spacing.tolist(),
        share=share,
        medians=medians,
        two_grids=not fixed.grid.is_close(moving.grid, tolerance_mm=1e-3),
    )


def _bound_maps(
    evidence: Evidence, near: ndarray, held: Calibration, levels: Collection[float], kind: str
) -> dict[float, Float[Tensor, "*space"]]:
    columns = np.stack([evidence.maps[name].cpu().numpy().reshape(-1) for name in held.scale.names], axis=1)
    bounds = held.bounds(columns, near.reshape(-1), list(levels), kind)
    shape = evidence.grid.shape
    # Nothing in the image is farther off than the image is large, however little a calibration of few cases knows.
    largest = float(np.linalg.norm(np.array(shape) * evidence.grid.spacing)) / evidence.unit_mm
    bounds = [np.minimum(bound, largest) for bound in bounds]
    return {q: torch.from_numpy(b.astype(np.float32).reshape(shape)) for q, b in zip(levels, bounds, strict=True)}


def _upsampled(values: Tensor, grid: Grid) -> Float[ndarray, "*space"]:
    return fields.resize(values[None, None].float().cpu(), grid.shape)[0, 0].numpy().astype(np.float32)


class CalibratedSampler:
    """Draws of what the transform may be: the result, after smooth random errors of the calibrated size.

    ``t(x + e(x))`` with ``e(x) = B(x, F(|g(x)|)) g(x) / |g(x)|``; g is white noise smoothed by a Gaussian of
    ``COHERENCE`` voxels and brought to unit variance in every component, F the distribution of its length (chi, d
    degrees of freedom) and B the bound by its level: |e| keeps within each of the bounds with the probability that it
    promises. Between them, and from 0 to the lowest, B is linear in the length of g; above the highest it is in
    proportion to it.

    Parameters
    ----------
    bounds
        By level, units of the evidence.
    """

    def __init__(
        self, transform: Transform, evidence: Evidence, bounds: Mapping[float, Float[Tensor, "*space"]]
    ) -> None:
        self.transform, self.grid = transform, evidence.grid
        levels = sorted(bounds)
        self.lengths = [0.0, *(math.sqrt(float(stats.chi2.ppf(level, self.grid.ndim))) for level in levels)]
        held = [bounds[level] * evidence.unit_mm for level in levels]
        self.bounds_mm = [torch.zeros_like(held[0]), *held]

    def draw(self, generator: torch.Generator) -> Float[Tensor, "1 d *space"]:
        """One error, voxels of the evidence grid."""
        d = self.grid.ndim
        noise = torch.randn(1, d, *self.grid.shape, generator=generator)
        finest = float(self.grid.spacing.min())
        smooth = fields.gaussian_smooth(noise, [COHERENCE * finest / float(s) for s in self.grid.spacing])
        smooth /= smooth.std().clamp_min(1e-12)
        spacing = torch.tensor(self.grid.spacing, dtype=torch.float32)
        length = smooth.square().sum(1, keepdim=True).sqrt()  # several times as fast as the norm along a dimension
        return smooth * self._growth(length) / spacing.view(1, d, *[1] * d)

    def _growth(self, length: Float[Tensor, "1 1 *space"]) -> Float[Tensor, "1 1 *space"]:
        """How long the error is over how long the normal vector is, mm."""
        whole = self.bounds_mm[-1] / self.lengths[-1] * length
        pieces = zip(pairwise(self.lengths), pairwise(self.bounds_mm), strict=True)
        for (low, high), (below, above) in reversed(list(pieces)):
            inside = below + (above - below) * ((length - low) / (high - low))
            whole = torch.where(length < high, inside, whole)
        return whole / length.clamp_min(1e-6)

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """The same as transforms, one at a time."""
        random = generator or torch.Generator().manual_seed(0)
        for _ in range(n):
            error = DisplacementField(self.grid, self.draw(random))
            yield Draw(Composite([error, *parts_of(self.transform)]), {})


def _label_uncertainty(
    registration: Registration,
    sampler: CalibratedSampler,
    level: float,
    seed: int,
    compared: Bool[ndarray, "*space"],
) -> tuple[Float[ndarray, "*space"], dict[int, dict[str, float]]]:
    """Entropy of the hard labels over draws on the evidence grid, and intervals of the volumes."""
    from verimorph.uncertainty.evidence import as_field

    labels = registration.moving_labels
    assert labels is not None
    assert registration.moved_labels is not None
    values, flat = _numbered(labels.array)
    if len(values) > 30_000:
        raise OptionError(f"the moving labels have {len(values)} values; is this a label map?")
    index = torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float32))[None, None]  # files are read transposed
    background = int(np.searchsorted(values, 0)) if 0 in values else -1
    grid = sampler.grid
    matrix, u = as_field(registration.transform, registration.fixed.grid, grid)
    voxel = labels.grid.inverse_affine @ matrix @ grid.affine
    random = torch.Generator().manual_seed(seed)
    moved, at = _numbered(registration.moved_labels.array)
    share = _shares(at, moved, grid)
    drawn, sizes = [], []
    for _ in range(DRAWS):
        error = sampler.draw(random)
        there = fields.compose(u, error.contiguous()).contiguous()
        found = fields.warp(index, there, matrix=voxel, mode="nearest", background=background)
        drawn.append(found[0, 0].numpy().astype(np.int16))
        # What lies at y came from near y - e(y): a label grows by the volume change of that map, summed over it.
        # Counting the drawn labels themselves would add the noise of counting, more than the rest where one is small.
        change = fields.jacobian_determinant(-error).clamp_min(0).numpy().reshape(-1)
        sizes.append(share @ change)
    # Each draw's share of draws that agree with it; the mean of its logarithm is the entropy.
    entropy = np.zeros(grid.shape, np.float32)
    for one in drawn:
        agreeing = np.zeros(grid.shape, np.float32)
        for other in drawn:
            agreeing += one == other
        entropy -= np.log(agreeing / DRAWS) / DRAWS
    ml = registration.fixed.grid.voxel_volume / 1000
    counts = np.asarray(share.sum(1)).ravel()
    deviation = np.std(sizes, axis=0, ddof=1)
    z = float(stats.norm.ppf(0.5 + level / 2))
    hidden = np.bincount(at.reshape(-1), weights=~compared.reshape(-1)) / np.bincount(at.reshape(-1))
    volumes = {
        int(value): {
            "volume_ml": count * ml,
            "low_ml": max(count - z * away, 0.0) * ml,
            "high_ml": (count + z * away) * ml,
        }
        for value, count, away, out in zip(moved.tolist(), counts.tolist(), deviation.tolist(), hidden, strict=True)
        if value != 0 and out <= HIDDEN
    }
    return entropy, volumes


def _numbered(labels: Shaped[ndarray, "*space"]) -> tuple[Shaped[ndarray, " k"], Int[ndarray, "*space"]]:
    """Values that occur, in order, and the place of every voxel's among them: ``np.unique``, by a table if it is small.

    Sorting millions of voxels takes longer than all draws.
    """
    whole = labels.size > 0 and labels.dtype.kind in "iu"
    low, high = (int(labels.min()), int(labels.max())) if whole else (0, 0)
    if not whole or high - low > 1 << 20 or high > np.iinfo(np.int64).max:
        values, places = np.unique(labels, return_inverse=True)
        return values, places.reshape(labels.shape)
    offsets = labels.astype(np.int64) - low
    there = np.bincount(offsets.reshape(-1)) > 0
    return (np.flatnonzero(there) + low).astype(labels.dtype), (np.cumsum(there) - 1)[offsets]


def _shares(index: Int[ndarray, "*space"], values: Shaped[ndarray, " k"], grid: Grid) -> sparse.csr_matrix:
    """How many voxels of each of the values (but 0) lie in each voxel of a grid over the same box."""
    cells = np.zeros((1,) * index.ndim, np.int64)
    for axis, (n, m) in enumerate(zip(index.shape, grid.shape, strict=True)):
        place = ((np.arange(n) + 0.5) * m / n).astype(np.int64)
        cells = cells * m + place.reshape([-1 if a == axis else 1 for a in range(index.ndim)])
    inside = (values != 0)[index]
    entries = np.ones(int(inside.sum())), (index[inside], np.broadcast_to(cells, index.shape)[inside])
    return sparse.csr_matrix(entries, shape=(len(values), grid.size))
