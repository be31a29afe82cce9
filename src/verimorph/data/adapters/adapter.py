"""What a file of this folder says about its data set, and what several of them share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.data.cases import Case, Dataset, Pair, read_learn2reg, require_files
from verimorph.errors import InputError, OptionError, nearest


@dataclass(frozen=True)
class Adapter:
    """One data set.

    Attributes
    ----------
    read
        Makes the :class:`Dataset` of the folder; keyword arguments are the options of the set.
    obtain, licence
        One line each.
    preparation
        Settings of :class:`verimorph.data.preparation.Preparation` that suit the set.
    """

    name: str
    summary: str
    obtain: str
    licence: str
    read: Callable[..., Dataset]
    preparation: Mapping[str, Any] = field(default_factory=dict)

    def dataset(self, root: str | Path, **options: Any) -> Dataset:
        """Return the set in a folder; every file is checked to be there.

        Raises
        ------
        OptionError
            For an option the set does not have.
        InputError
            If the folder or files are missing; all of them are listed, and how to obtain the set.
        """
        known = [name for name in inspect.signature(self.read).parameters if name != "root"]
        for name in options:
            if name not in known:
                raise OptionError(f"data set {self.name} has no option '{name}'{nearest(name, known)}")
        folder = Path(root)
        if not folder.is_dir():
            raise InputError(f"data set {self.name}: {folder}: no such folder; {self.obtain}")
        try:
            made = self.read(folder, **options)
        except InputError as error:
            text = str(error)
            raise InputError(text if self.obtain in text else f"{text}; {self.obtain}") from None
        made = replace(
            made,
            name=self.name,
            preparation={**self.preparation, **made.preparation},
            obtain=self.obtain,
            licence=made.licence or self.licence,
        )
        made.require_files()
        return made


@cache
def packaged_split(name: str) -> dict[str, Any]:
    """Return a split file that comes with the package (ids as in the file names)."""
    text = resources.files("verimorph.data").joinpath("splits", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def splits_of(name: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[Pair, ...]]]:
    """Splits and lists of pairs of a packaged split file."""
    content = packaged_split(name)
    splits = {key: tuple(ids) for key, ids in content["splits"].items()}
    pairs = {key: tuple((fixed, moving) for fixed, moving in listed) for key, listed in content["pairs"].items()}
    return splits, pairs


def learn2reg(
    root: Path,
    file: str,
    *,
    label_names: Mapping[int, str] | None = None,
    swaps: tuple[tuple[int, int], ...] = (),
) -> Dataset:
    """Read a Learn2Reg task from its folder, or from a folder above it.

    Images to test on come as an archive of their own in some years: where none of them is there, they are left out.
    """
    task = root / file.removesuffix("_dataset.json")
    found = (task if (task / file).is_file() and not (root / file).is_file() else folder_with(root, file)) / file
    require_files([found], file.removesuffix("_dataset.json"))
    made = _without_absent_test(read_learn2reg(found))
    return replace(made, label_names=label_names or made.label_names, swaps=swaps)


def _without_absent_test(made: Dataset) -> Dataset:
    kept = {id for split in ("train", "validation") for id in made.splits.get(split, ())}
    only = [id for id in made.splits.get("test", ()) if id not in kept]
    if not kept or not only or any(file.exists() for id in only for file in made.case(id).files):
        return made
    gone = set(only)
    splits = {name: tuple(id for id in ids if id not in gone) for name, ids in made.splits.items()}
    pairs = {name: tuple(pair for pair in listed if not gone & set(pair)) for name, listed in made.pairs.items()}
    return replace(
        made,
        cases=tuple(case for case in made.cases if case.id not in gone),
        splits={name: ids for name, ids in splits.items() if ids},
        pairs={name: listed for name, listed in pairs.items() if listed},
    )


def folder_with(root: Path, pattern: str) -> Path:
    """Return the folder where a name fits a pattern: this one, or the one up to two below it that an archive made.

    Where there is none it is ``root``.

    Raises
    ------
    InputError
        If several folders hold such a name.
    """
    for above in ("", "*/", "*/*/"):
        holders = sorted({found.parent for found in root.glob(above + pattern)})
        if len(holders) > 1:
            raise InputError(f"{root}: {holders[0]} and {holders[1]} both hold {pattern}; give one of them")
        if holders:
            return holders[0]
    return root


def proportional_splits(
    ids: Sequence[str], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """Deal ids out at random (seeded, over their sorted list) where a set has no published split.

    >>> proportional_splits(["a", "b", "c", "d"], {"train": 0.5, "test": 0.5})
    {'train': ('a', 'c'), 'test': ('b', 'd')}
    """
    ordered = [sorted(ids)[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    ends = np.rint(np.cumsum(list(shares.values())) / sum(shares.values()) * len(ids)).astype(int)
    starts = [0, *ends[:-1]]
    return {name: tuple(sorted(ordered[a:b])) for name, a, b in zip(shares, starts, ends, strict=True)}


def splits_by_subject(cases: Sequence[Case], shares: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Deal subjects out as :func:`proportional_splits` does; all cases of a subject are in one split."""
    dealt = proportional_splits(sorted({case.subject for case in cases}), shares)
    splits = {name: tuple(case.id for case in cases if case.subject in set(ids)) for name, ids in dealt.items()}
    return {name: ids for name, ids in splits.items() if ids}


def within_subject(cases: Sequence[Case]) -> tuple[Pair, ...]:
    """Ordered pairs of the first and the second case of every subject that has two."""
    by_subject: dict[str, list[str]] = {}
    for case in cases:
        by_subject.setdefault(case.subject, []).append(case.id)
    return tuple((ids[0], ids[1]) for ids in by_subject.values() if len(ids) > 1)
