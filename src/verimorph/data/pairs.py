"""Which images are registered with which, and when: item n of an endless stream, from a seed and n alone.

Nothing remembers anything between items, so a run that is resumed at a step, or shared by several workers, draws the
same pairs as one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from verimorph.data.cases import Case, Pair
from verimorph.errors import OptionError, nearest

KINDS = ("inter", "intra", "atlas", "listed", "single")

# Numbers that keep the random streams of one seed apart.
_ORDER, _PARTNER, _AUGMENT = 1, 2, 3


@runtime_checkable
class Sampler(Protocol):
    """Gives a pair for every position of an epoch."""

    @property
    def size(self) -> int:
        """Pairs of an epoch."""
        ...

    def draw(self, position: int, random: np.random.Generator) -> Pair:
        """Return (fixed, moving) at a position."""
        ...


@dataclass(frozen=True)
class InterSubject:
    """Every image once an epoch as the moving one; the fixed one at random among those it may meet.

    That is Estienne's scheme; there the partner may be the image itself, here only if ``itself``.
    """

    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    group_of: tuple[int, ...]
    itself: bool = False

    @classmethod
    def of(cls, cases: Sequence[Case], *, within_cohort: bool = True, itself: bool = False) -> InterSubject:
        """Find who may meet whom: another subject, of the same cohort if ``within_cohort``.

        Raises
        ------
        OptionError
            If some image has no partner.
        """
        cohorts = [case.cohort if within_cohort else "" for case in cases]
        names = sorted(set(cohorts))
        groups = tuple(tuple(i for i, cohort in enumerate(cohorts) if cohort == name) for name in names)
        # A case without a subject is a subject of its own; the blank keeps such names from meeting real ones.
        subjects = tuple(case.subject or f" {case.id}" for case in cases)
        alike = Counter(zip(cohorts, subjects, strict=True))
        members = Counter(cohorts)
        lonely = [case.id for case, cohort, subject in zip(cases, cohorts, subjects, strict=True)
                  if not itself and members[cohort] == alike[cohort, subject]]  # fmt: skip
        if lonely or not cases:
            raise OptionError(
                f"pairs between subjects: no partner for {', '.join(lonely[:5]) or 'an empty split'}; "
                "give a larger split, or within_cohort: false"
            )
        order = tuple(names.index(cohort) for cohort in cohorts)
        return cls(tuple(case.id for case in cases), subjects, groups, order, itself)

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.ids)

    def draw(self, position: int, random: np.random.Generator) -> Pair:
        """Return (random partner, image at the position)."""
        group = self.groups[self.group_of[position]]
        while True:
            other = group[int(random.integers(len(group)))]
            if (other == position and self.itself) or self.subjects[other] != self.subjects[position]:
                return self.ids[other], self.ids[position]


@dataclass(frozen=True)
class Listed:
    """Each pair of a list once an epoch."""

    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise OptionError("the list of pairs is empty; name another list, split or kind of pairs")

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def draw(self, position: int, random: np.random.Generator) -> Pair:
        """Return the pair at the position."""
        return self.pairs[position]


def atlas_pairs(ids: Sequence[str], atlas: str) -> Listed:
    """Pairs with the atlas moving and each image fixed: what atlas-based segmentation trains on."""
    return Listed(tuple((id, atlas) for id in ids if id != atlas))


def intra_subject_pairs(cases: Sequence[Case]) -> Listed:
    """All ordered pairs of two images of one subject.

    Raises
    ------
    OptionError
        If no subject has two images.
    """
    pairs = tuple((a.id, b.id) for a in cases for b in cases if a.id != b.id and a.subject and a.subject == b.subject)
    if not pairs:
        raise OptionError("pairs within subjects: no subject of the split has two images; choose kind: inter")
    return Listed(pairs)


def single_images(ids: Sequence[str]) -> Listed:
    """Each image once an epoch, with itself: for models of one image."""
    return Listed(tuple((id, id) for id in ids))


@dataclass(frozen=True)
class PairStream:
    """The endless stream of pairs: ``stream(n)`` is the n-th, ``n = epoch * size + position``.

    Parameters
    ----------
    sampler
        What an epoch consists of; its order is drawn anew for each epoch.
    seed
        Equal seeds give equal streams.
    bidirectional
        Swap fixed and moving with probability one half.
    """

    sampler: Sampler
    seed: int = 0
    bidirectional: bool = False
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, n: int) -> Pair:
        """Return (fixed, moving) of item n."""
        epoch, place = divmod(n, self.sampler.size)
        random = np.random.default_rng([self.seed, _PARTNER, n])
        fixed, moving = self.sampler.draw(int(self._order(epoch)[place]), random)
        if self.bidirectional and random.random() < 0.5:
            return moving, fixed
        return fixed, moving

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.sampler.size)
        return self._orders[epoch]


def augmentation_random(seed: int, n: int) -> np.random.Generator:
    """Return the source of random numbers of item n, apart from that which draws pairs."""
    return np.random.default_rng([seed, _AUGMENT, n])


def make_sampler(
    kind: str,
    cases: Sequence[Case],
    *,
    listed: Sequence[Pair] = (),
    atlas: str | None = None,
    within_cohort: bool = True,
    itself: bool = False,
) -> Sampler:
    """Return a sampler by the name of its kind: ``inter``, ``intra``, ``atlas``, ``listed`` or ``single``."""
    if kind not in KINDS:
        raise OptionError(f"unknown kind of pairs '{kind}'{nearest(kind, KINDS)}")
    if (kind == "atlas") != (atlas is not None):
        raise OptionError("pairs: kind 'atlas' needs an atlas (the id of a case); no other kind has one")
    ids = [case.id for case in cases]
    if kind == "inter":
        return InterSubject.of(cases, within_cohort=within_cohort, itself=itself)
    if kind == "intra":
        return intra_subject_pairs(cases)
    if kind == "atlas":
        return atlas_pairs(ids, str(atlas))
    return single_images(ids) if kind == "single" else Listed(tuple(listed))
