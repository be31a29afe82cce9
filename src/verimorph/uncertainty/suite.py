"""The calibration suite: known deformations of real images, registered, looked at, and compared with the truth.

One case is one image and one seed. What is kept of a case are some thousand voxels with their evidence and their true
error, in a small file, so that a suite that was stopped goes on, and calibrations can be learned anew in seconds.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from verimorph.errors import InputError, OptionError, VerimorphError
from verimorph.image import Image
from verimorph.uncertainty.assess import on_evidence, traits
from verimorph.uncertainty.bound import ANY, LEAST, LEVELS, Calibration, calibrate
from verimorph.uncertainty.cases import FOLDS, PAIRS, Points, apart, deal, is_pairs
from verimorph.uncertainty.evidence import gather
from verimorph.uncertainty.known import KnownPair, foreground, known_pair
from verimorph.uncertainty.metrics import (
    ause,
    expected_normalised_calibration_error,
    sharpness,
    spearman,
    uncertainty_calibration_error,
)
from verimorph.uncertainty.scale import FLOOR, Fits, Scale, steps_for

KEPT, KEPT_PAIRS = 5, 6
"""Format of kept cases, and of pairs of real scans. Before 4 all had noise and were read linearly, and two maps were
not measured; before 5 nor were shifts and their errors; before 6 only the largest labels of pairs were used."""
INSIDE, OUTSIDE = 8000, 3000
"""Voxels kept of a case, in the anatomy and around it."""


@dataclass(frozen=True, eq=False)
class Case:
    """Points of one case, and the spread of the looks alone to compare with."""

    name: str
    points: Points
    spread: Float[ndarray, " n"]
    unit_mm: float


def measure_known(pair: KnownPair, *, kind: str, name: str, seed: int, images: tuple[str, ...] = ()) -> Case:
    """Register a pair with a known answer by the defaults, and measure evidence and true error."""
    from verimorph.registration import register

    found = register(fixed=pair.fixed, moving=pair.moving)
    evidence = gather(fixed=pair.fixed, moving=pair.moving, transform=found.transform)
    grid = evidence.grid
    points = grid.index_to_world(np.argwhere(np.ones(grid.shape, bool)))
    index = np.rint(pair.fixed.grid.world_to_index(points)).astype(int)
    index = np.clip(index, 0, np.array(pair.fixed.grid.shape) - 1)
    inside = pair.foreground[tuple(index.T)]
    random = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            random.choice(where, min(count, len(where)), replace=False)
            for where, count in ((np.flatnonzero(inside), INSIDE), (np.flatnonzero(~inside), OUTSIDE))
            if len(where)
        ]
    )
    here = points[chosen]
    error = np.linalg.norm(found.transform.map_points(here) - pair.truth.map_points(here), axis=1) / evidence.unit_mm
    columns = np.stack([one.cpu().numpy().reshape(-1)[chosen] for one in evidence.maps.values()], axis=1)
    spread = evidence.spread.cpu().numpy().reshape(-1)[chosen]
    near = inside.reshape(grid.shape)
    own = traits(pair.fixed, pair.moving, evidence, near, share=float(near.mean()))
    held = Points(tuple(evidence.maps), columns, error, inside[chosen], kind, own, images, grid.ndim)
    return Case(name, held, spread, evidence.unit_mm)


UNLIKE = 3.0
"""Times as much of a label in one image of a pair as in the other, from which on its surfaces say nothing of where its
points went: a slice cuts a structure that another hardly meets, a field of view ends in a kidney. A heart that ejects
six tenths of its blood is within."""


def measure_pair(
    *,
    fixed: Image,
    moving: Image,
    fixed_labels: Image,
    moving_labels: Image,
    kind: str,
    name: str,
    seed: int,
    images: tuple[str, ...] = (),
) -> Case:
    """Register two real scans, and take the error from their labels: how far surfaces end up apart.

    At a voxel on the surface of a label the distance d to the moved label's surface is the part of the error across
    it, one of D components; ``sqrt(D) d`` stands for its length. Distances between voxels come in steps, and a surface
    lies anywhere within its voxel: up to half a voxel is added at random, either way. What two readers would draw
    differently is in it, so it errs on the long side; labels of which one image has ``UNLIKE`` times as much as the
    other are left out.
    """
    from verimorph.registration import register

    alike = _alike(fixed_labels, moving_labels)
    if not alike:
        raise InputError(
            f"{name}: there is no label of which {fixed_labels.name} and {moving_labels.name} have about as much; give "
            "labels of the same structures"
        )
    found = register(fixed=fixed, moving=moving, fixed_labels=fixed_labels, moving_labels=moving_labels)
    evidence = gather(fixed=fixed, moving=moving, transform=found.transform)
    assert found.moved_labels is not None
    own, moved = fixed_labels.array, found.moved_labels.array
    places, distances = [], []
    for value in alike:
        both = np.argwhere((own == value) | (moved == value))
        box = tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(both.min(0), both.max(0), strict=True))
        here, there = _surface(own[box] == value), _surface(moved[box] == value)
        if not here.any() or not there.any():
            continue
        away = ndimage.distance_transform_edt(~there, sampling=fixed.grid.spacing)
        at = np.argwhere(here)
        places.append(at + [s.start for s in box])
        distances.append(away[tuple(at.T)])
    if not places:
        raise InputError(f"{name}: no label is left in view once the moving image is registered; leave the pair out")
    points = fixed.grid.index_to_world(np.concatenate(places))
    random = np.random.default_rng(seed)
    away_units = np.concatenate(distances) / evidence.unit_mm
    error = math.sqrt(fixed.grid.ndim) * np.abs(away_units + random.uniform(-0.5, 0.5, len(points)))
    chosen = random.permutation(len(points))[:INSIDE]
    index = np.rint(evidence.grid.world_to_index(points[chosen])).astype(int)
    index = tuple(np.clip(index, 0, np.array(evidence.grid.shape) - 1).T)
    columns = np.stack([one.cpu().numpy()[index] for one in evidence.maps.values()], axis=1)
    near = on_evidence(foreground(fixed), evidence.grid)
    held = Points(
        tuple(evidence.maps),
        columns,
        error[chosen],
        np.ones(len(chosen), bool),
        kind,
        traits(fixed, moving, evidence, near, share=float(near.mean())),
        images,
        fixed.grid.ndim,
    )
    return Case(name, held, evidence.spread.cpu().numpy()[index], evidence.unit_mm)


def _alike(fixed: Image, moving: Image) -> list[int]:
    """Labels of which neither image has ``UNLIKE`` times as much as the other, by volume (area in 2-D)."""
    amounts = []
    for labels in (fixed, moving):
        values, counts = np.unique(labels.array[labels.array > 0], return_counts=True)
        amounts.append(dict(zip(values.tolist(), (counts * labels.grid.voxel_volume).tolist(), strict=True)))
    here, there = amounts
    return [value for value, amount in here.items() if 1 / UNLIKE < there.get(value, 0.0) / amount < UNLIKE]


def _surface(inside: Bool[ndarray, "*space"]) -> Bool[ndarray, "*space"]:
    """Voxels of a label that touch what is not of it. Where the image ends, nobody has drawn anything."""
    return inside & ~ndimage.binary_erosion(inside, border_value=1)


def digest(*files: Path) -> str:
    """Eight hexadecimal digits of what images hold: equal names do not make equal images."""
    from verimorph.io.images import content_hash

    return content_hash(*files, new=lambda: hashlib.blake2b(digest_size=4))


@dataclass(frozen=True)
class RealPair:
    """A pair of real scans with labels, as a list names it."""

    kind: str
    files: Mapping[str, Path]


def pairs_of(table: Path) -> list[RealPair]:
    """The pairs of a CSV (kind, fixed, moving, fixed_labels, moving_labels), relative to VERIMORPH_DATA.

    Raises
    ------
    InputError
        If it lists none, or a row lacks something, names what is not there, a pair once more, or one scan twice.
    """
    from verimorph.io.pairs import read_table

    rows = read_table(table)[0]
    if not rows:
        raise InputError(f"{table}: lists no pair; give one a row, below the names of the columns")
    root = Path(os.environ.get("VERIMORPH_DATA", str(table.parent)))
    out: list[RealPair] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, start=1):
        place = f"{table}, row {number}"
        keys = ("fixed", "moving", "fixed_labels", "moving_labels")
        if missing := [key for key in ("kind", *keys) if not row.get(key)]:
            raise InputError(f"{place}: {', '.join(missing)} missing; a pair needs labels and a kind")
        _check_kind(row["kind"], f"{place}: ")
        files = {key: root / row[key] for key in keys}
        if absent := [str(file) for file in files.values() if not file.exists()]:
            raise InputError(f"{place}: {', '.join(absent)} not found")
        scans = (digest(files["fixed"]), digest(files["moving"]))
        if scans[0] == scans[1]:
            raise InputError(f"{place}: the two scans are one and the same; a pair is of two")
        if seen.setdefault(scans, number) != number:
            raise InputError(f"{place}: is the pair of row {seen[scans]} once more, which would count it twice")
        out.append(RealPair(row["kind"], files))
    return out


def collect_pairs(
    pairs: Sequence[RealPair], *, folder: str | os.PathLike, tell: Callable[[str, int, int], None] | None = None
) -> list[Case]:
    """Measure pairs of real scans; what the folder holds already is read, not measured anew."""
    from verimorph.io import read_image
    from verimorph.io.safe import require_writable

    folder = Path(folder)
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for number, pair in enumerate(pairs):
        stems = [pair.files[key].name.split(".")[0] for key in ("fixed", "moving")]
        kind = f"{pair.kind}-{PAIRS}"
        name = f"{kind}-{stems[0]}-{stems[1]}-{digest(*pair.files.values())}"
        if tell is not None:
            tell(name, number, len(pairs))
        path = folder / f"{name}.npz"
        if not path.is_file():
            images = {key: read_image(file) for key, file in pair.files.items()}
            hashes = (digest(pair.files["fixed"]), digest(pair.files["moving"]))
            write_case(measure_pair(**images, kind=kind, name=name, seed=number, images=hashes), path)
        out.append(read_case(path))
    return out


def dimension_of(files: Sequence[Path]) -> int:
    """2 or 3, of all these images; only headers are read.

    Raises
    ------
    OptionError
        If some are 2-D and some 3-D.
    """
    from verimorph.io import read_image

    by_number = {read_image(file).grid.ndim: file for file in dict.fromkeys(files)}
    if len(by_number) > 1:
        flat, deep = by_number[2], by_number[3]
        raise OptionError(f"{flat.name} is 2-D and {deep.name} 3-D; each need a calibration of their own")
    return next(iter(by_number))


def _check_kind(kind: str, place: str = "") -> None:
    if re.fullmatch(r"[A-Za-z0-9][\w-]*", kind) is None or kind == ANY or is_pairs(kind):
        raise InputError(
            f"{place}'{kind}' cannot name a kind of images: letters, digits, - and _; 'any', and names that end in "
            f"'{PAIRS}', have a meaning of their own"
        )


def images_of(patterns: Sequence[str]) -> list[tuple[str, Path]]:
    """``KIND=PATTERN`` or ``PATTERN`` (kind: ``images``), as kinds and files in order.

    Raises
    ------
    InputError
        If a pattern fits no file.
    """
    out = []
    for text in patterns:
        kind, pattern = "images", text
        files = _matching(text)
        if not files and "=" in text:  # a path may have the sign in it
            kind, _, pattern = text.partition("=")
            files = _matching(pattern)
        if not files:
            raise InputError(f"no file fits '{pattern}'; give images, or KIND=PATTERN in quotes")
        _check_kind(kind)
        out += [(kind, file) for file in files]
    return out


def _matching(pattern: str) -> list[Path]:
    return [Path(file) for file in sorted(glob.glob(os.path.expanduser(pattern)))]


def collect(
    images: Sequence[tuple[str, Path]],
    *,
    cases: int,
    folder: str | os.PathLike,
    seed: int = 0,
    tell: Callable[[str, int, int], None] | None = None,
) -> list[Case]:
    """Measure so many cases of every kind, images in turn; what the folder holds already is read, not measured anew."""
    from verimorph.io import read_image
    from verimorph.io.safe import require_writable
    from verimorph.io.validate import check_finite, check_not_constant

    folder = Path(folder)
    require_writable(folder)
    jobs = []
    for kind in dict.fromkeys(kind for kind, _ in images):
        files = [file for own, file in images if own == kind]
        jobs += [(kind, files[k % len(files)], seed + k) for k in range(cases)]
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for number, (kind, file, own_seed) in enumerate(jobs):
        own = digest(file)
        name = f"{kind}-{file.name.split('.')[0]}-{own}-{own_seed}"
        if tell is not None:
            tell(name, number, len(jobs))
        path = folder / f"{name}.npz"
        if path.is_file():
            out.append(read_case(path))
            continue
        image = read_image(file)
        check_finite(image, "image", remedy="leave it out")
        check_not_constant(image, "image")
        pair = known_pair(image, seed=own_seed)
        case = measure_known(pair, kind=kind, name=name, seed=own_seed, images=(own,))
        write_case(case, path)
        out.append(case)
    return out


def _kept(kind: str) -> int:
    return KEPT_PAIRS if is_pairs(kind) else KEPT


def write_case(case: Case, path: Path) -> None:
    """Keep a case, whole or not at all."""
    from verimorph.io.safe import replacing

    p = case.points
    with replacing(path) as beside, open(beside, "wb") as stream:
        np.savez_compressed(
            stream,
            names=np.array(p.names),
            evidence=p.evidence.astype(np.float32),
            error=p.error.astype(np.float32),
            foreground=p.foreground,
            kind=np.array(p.kind),
            traits=np.array(p.traits),
            images=np.array(p.images, dtype=str),
            ndim=np.array(p.ndim),
            spread=case.spread.astype(np.float32),
            unit_mm=np.array(case.unit_mm),
            format=np.array(_kept(p.kind)),
        )


def read_case(path: Path) -> Case:
    """Read what :func:`write_case` kept."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if "format" not in held or int(held["format"]) != _kept(str(held["kind"])):
                raise ValueError("of an earlier version")
            points = Points(
                tuple(str(name) for name in held["names"]),
                held["evidence"].astype(np.float64),
                held["error"].astype(np.float64),
                held["foreground"],
                str(held["kind"]),
                tuple(held["traits"].tolist()),
                tuple(str(image) for image in held["images"]),
                int(held["ndim"]),
            )
            return Case(path.stem, points, held["spread"], float(held["unit_mm"]))
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: is no case of a calibration suite ({error}); remove it, it is measured anew"
        ) from None


@dataclass(frozen=True)
class Check:
    """A calibration judged on cases it has not seen.

    Attributes
    ----------
    kind, cases
        Of images; how many.
    coverage
        By level: share of foreground voxels whose error is within the bound, mean over cases; NaN, here and below,
        where the calibration does not reach.
    background
        The same for the rest of the image, at 0.9.
    sharpness, pooled, own
        Median bound at 0.9 over median error, foreground: mean of the ratios of the cases; of the voxels of all cases
        together; and the first with a bound of the same shape that covers just 0.9 of each case, as if it were known
        how well the size of its errors was guessed: what is left is chance, and what the evidence does not tell. Not a
        number for pairs of real scans, of whose errors one component is seen.
    ece
        Mean over the levels of how far the coverage is off, 0 to 1.
    uce, ence
        Of the predicted mean squared error, all cases together: in squared units, and relative to its root; not a
        number for pairs of real scans, whose bound has no spread.
    spearman, ause, ause_spread
        Rank correlation with the error; area between sparsification curve and that of the oracle, of the bound and of
        the spread of the looks alone.
    """

    kind: str
    cases: int
    coverage: dict[str, float]
    background: float
    sharpness: float
    own: float
    spearman: float
    ause: float
    ause_spread: float
    pooled: float
    ece: float
    uce: float
    ence: float


def check(cases: Sequence[Case], calibration: Calibration | Callable[[Case], Calibration]) -> list[Check]:
    """Judge a calibration on cases, or for each case the one that a function gives (cross-validation)."""
    rows: dict[str, list[tuple[list[float], float, float, float, float, float, float]]] = {}
    voxels: dict[str, list[Float[ndarray, "3 n"]]] = {}
    for case in cases:
        held = calibration if isinstance(calibration, Calibration) else calibration(case)
        p = case.points
        if p.ndim != held.ndim:
            raise OptionError(f"{case.name} is {p.ndim}-D, calibration '{held.name}' {held.ndim}-D; judge them apart")
        inside = p.foreground
        evidence = p.evidence[:, [p.names.index(name) for name in held.scale.names]]
        error = p.error
        kind = held.kind_of(p.traits)
        # A calibration of few cases does not reach every level: there is no such bound, and nothing to say of it.
        none = np.full(len(error), np.nan)
        reached = [q for q in LEVELS if q <= held.reach(kind)]
        bounds = dict.fromkeys(LEVELS, none)
        bounds |= dict(zip(reached, held.bounds(evidence, inside, reached, kind), strict=True))
        within = [float((error <= bounds[q])[inside].mean()) if q in reached else math.nan for q in LEVELS]
        bound, known = bounds[0.9], 0.9 in reached
        outside = float((error <= bound)[~inside].mean()) if known and (~inside).any() else np.nan
        real = is_pairs(kind)
        size = np.exp(held.scale.of_pairs(evidence, inside)) if real else held.scale.root_mean_square(evidence, inside)
        voxels.setdefault(p.kind, []).append(np.stack([error, bound, size])[:, inside])
        rows.setdefault(p.kind, []).append(
            (
                within,
                outside,
                sharpness(error[inside], bound[inside]),
                _own_ratio(held.scale, p, evidence),
                spearman(error[inside], (bound if known else size)[inside]),
                ause(error[inside], (bound if known else size)[inside]),
                ause(error[inside], case.spread[inside]),
            )
        )
    out = []
    for kind, found in rows.items():
        coverage = np.array([_mean_of_known(own) for own in zip(*(row[0] for row in found), strict=True)])
        table = np.array([row[1:] for row in found], dtype=float)
        # Pairs have no voxels around the anatomy.
        rest = [_mean_of_known(column) for column in table.T]
        errors, bounds, sizes = np.concatenate(voxels[kind], axis=1)
        known = not is_pairs(kind)
        out.append(
            Check(
                kind,
                len(found),
                {f"{q:g}": float(c) for q, c in zip(LEVELS, coverage, strict=True)},
                *rest,
                pooled=sharpness(errors, bounds),
                ece=_mean_of_known(np.abs(coverage - np.array(LEVELS))),
                uce=uncertainty_calibration_error(errors**2, sizes**2, binning="mass") if known else math.nan,
                ence=expected_normalised_calibration_error(errors, sizes) if known else math.nan,
            )
        )
    return out


def _own_ratio(scale: Scale, points: Points, evidence: Float[ndarray, "n k"], level: float = 0.9) -> float:
    """Median bound over median error of a bound that covers just this share of the anatomy of the case itself."""
    inside = points.foreground
    if is_pairs(points.kind) or not inside.any():
        return math.nan
    m, s = scale(evidence[inside], inside[inside])
    error = points.error[inside]
    own = np.quantile((np.log(error + FLOOR) - m) / s, level)
    return sharpness(error, np.maximum(np.exp(m + s * own) - FLOOR, LEAST))


def _mean_of_known(values: Sequence[float] | Float[ndarray, " n"]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else math.nan


def dealt_by(points: Sequence[Points], by: str) -> list[int]:
    """Fold of every case: of images, or of kinds; pairs of real scans are of the kind of their images."""
    if by == "image":
        return deal(points, FOLDS)
    kinds = [p.kind.removesuffix(f"-{PAIRS}") for p in points]
    order = list(dict.fromkeys(kinds))
    return [order.index(kind) for kind in kinds]


def cross_validated(
    cases: Sequence[Case], *, by: str = "image", scale: Scale | None = None, fits: Fits | None = None
) -> list[Check]:
    """Every case judged by a calibration that saw none of its images (``by="image"``) or, with ``"kind"``, its kind.

    Of a pair of real scans known deformations of its images may have been seen.

    ``fits`` learns the scales; one that has been used for the calibration of the same cases saves a part of the work.
    """
    points = [case.points for case in cases]
    fits = fits or Fits()
    # By images as the whole is learned; what is left without a kind by itself.
    steps = steps_for(points) if by == "image" else None
    dealt = dealt_by(points, by)
    fold_of = {id(p): fold for p, fold in zip(points, dealt, strict=True)}
    made: dict[int, Calibration] = {}

    def without(case: Case) -> Calibration:
        fold = fold_of[id(case.points)]
        if fold not in made:
            others = apart(points, [own == fold for own in dealt])
            if len(others) < 2:
                raise VerimorphError("nothing is left to calibrate on when a case is held out; give more cases")
            # The same folds inside: what is learned without folds a and b serves both. Whole kinds share none; half as
            # many folds do there.
            inner = deal(others, FOLDS // 2) if by == "kind" else [fold_of[id(p)] for p in others]
            made[fold] = calibrate(
                others, name="held out", calibrated_for="", scale=scale, dealt=inner, steps=steps, fits=fits
            )
        return made[fold]

    return check(cases, without)
