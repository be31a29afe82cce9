"""Cases with known error that a calibration is learned from: their points, and which teach what judges others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from numpy import ndarray

from verimorph.errors import InputError

PAIRS = "pairs"
"""Ends the name of a kind whose cases are pairs of real scans, their errors taken from the surfaces of labels; by
itself: all of these together."""


def is_pairs(kind: str) -> bool:
    """Whether a kind stands for pairs of real scans."""
    return kind == PAIRS or kind.endswith(f"-{PAIRS}")


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
        another (known deformations and pairs of real scans apart: :func:`apart`). Empty: shares none.
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


FOLDS, PAIR_FOLDS = 10, 15
"""Sets of images for cross-fitting and cross-validation; and of pairs of real scans, which share their images with more
of each other."""


def deal(points: Sequence[Points], folds: int) -> list[int]:
    """Fold of every case: images are dealt in turn, kind by kind; pairs of real scans by themselves, to further folds.

    What is held out together is less than what :func:`apart` leaves out: of two pairs that share an image, in two
    folds, neither teaches what judges the other.
    """
    order: dict[str, dict[str, int]] = {}
    out = []
    for number, p in enumerate(points):
        dealt = order.setdefault(p.kind, {})
        alone = is_pairs(p.kind) or not p.images
        place = dealt.setdefault(f"case {number}" if alone else p.images[0], len(dealt))
        out.append(folds + place % PAIR_FOLDS if is_pairs(p.kind) else place % folds)
    return out


def apart(points: Sequence[Points], held: Sequence[bool]) -> list[Points]:
    """The cases that are not held out and share no image with any that is.

    Known deformations and pairs of real scans teach different things, so that each leaves out its own only.
    """
    taken = {(is_pairs(p.kind), image) for p, out in zip(points, held, strict=True) if out for image in p.images}
    return [
        p
        for p, out in zip(points, held, strict=True)
        if not out and taken.isdisjoint((is_pairs(p.kind), image) for image in p.images)
    ]


def parted(points: Sequence[Points], dealt: Sequence[int], fewest: int) -> bool:
    """Whether every fold leaves so many cases apart from it."""
    left = [len(apart(points, [own == fold for own in dealt])) for fold in set(dealt)]
    return min(left, default=fewest) >= fewest


def case_weights(points: Sequence[Points]) -> list[float]:
    """One over the number of cases of the same kind."""
    kinds = [p.kind for p in points]
    return [1 / kinds.count(kind) for kind in kinds]


def columns(points: Points, names: Sequence[str]) -> Float[ndarray, "n k"]:
    missing = [name for name in names if name not in points.names]
    if missing:
        raise InputError(f"evidence lacks {', '.join(missing)}; it has {', '.join(points.names)}")
    return points.evidence[:, [points.names.index(name) for name in names]]
