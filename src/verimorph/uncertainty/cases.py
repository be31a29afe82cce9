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


def columns(points: Points, names: Sequence[str]) -> Float[ndarray, "n k"]:
    missing = [name for name in names if name not in points.names]
    if missing:
        raise InputError(f"evidence lacks {', '.join(missing)}; it has {', '.join(points.names)}")
    return points.evidence[:, [points.names.index(name) for name in names]]
