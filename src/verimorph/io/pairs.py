"""Lists of pairs as files: a CSV with a line a pair, and the dataset JSON of Learn2Reg. Nothing of a pair is opened.

The only reader of either: what trains, predicts and scores takes the same files.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from verimorph.errors import InputError, OptionError, nearest

NAMES = ("case", "pair", "name", "id")
"""Columns that may name a pair."""
UNITS = ("mm", "voxel")
SPLITS = {"val": "validation"}
"""What the options call a split -> what data sets call it, where these differ."""
_LISTS = {"validation": "registration_val", "test": "registration_test", "train": "training_paired_images"}
_FILES = (
    *("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask"),
    *("fixed_landmarks", "moving_landmarks", "landmarks"),
)
_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".npz", ".npy", ".pkl", ".png", ".tif")


@dataclass(frozen=True)
class Row:
    """One line of a list of pairs; what it leaves open is None or empty.

    Attributes
    ----------
    line
        In the file, from 1.
    fixed_landmarks, moving_landmarks
        Files; ``file::prefix`` where one table has both lists.
    split
        ``train`` where the column is there and the line leaves it open; empty without the column.
    unit
        ``mm``, or ``voxel`` where the images have no known voxel size.
    """

    line: int
    name: str = ""
    fixed: Path | None = None
    moving: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_landmarks: str | None = None
    moving_landmarks: str | None = None
    fixed_subject: str = ""
    moving_subject: str = ""
    cohort: str = ""
    split: str = ""
    unit: str = "mm"


def names_of_split(split: str) -> tuple[str, ...]:
    """What a list may call a split that is asked for: as asked, as data sets do, as Learn2Reg does.

    >>> names_of_split("val")
    ('val', 'validation', 'registration_val')
    """
    whole = SPLITS.get(split, split)
    return tuple(dict.fromkeys([split, whole, _LISTS.get(whole, whole)]))


def start_of(file: Path, data: str | Path | None) -> Path:
    """Folder that relative names in a list start from: ``data``, by default that of the list.

    Raises
    ------
    InputError
        If it is no folder.
    """
    root = file.parent if data is None else Path(data)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that the names in {file} start from")
    return root


def read_rows(file: Path, *, data: str | Path | None = None, split: str | None = None) -> tuple[list[Row], list[str]]:
    """Read a CSV of pairs: its lines, and the names of its columns.

    Columns that are used where there: ``fixed``, ``moving``, ``fixed_labels``, ``moving_labels``, ``fixed_mask``,
    ``moving_mask``, ``landmarks`` (one table with columns ``fixed_x_...`` and ``moving_x_...``) or ``fixed_landmarks``
    and ``moving_landmarks``, ``fixed_subject``, ``moving_subject``, ``cohort``, ``split``, ``units``, and a name in
    ``case``, ``pair``, ``name`` or ``id``. Others are passed over.

    Parameters
    ----------
    data
        Folder that relative names start from; default: that of the file. A line of which it does not hold all files may
        have them all beside the list, unless that is so of every line.
    split
        Only the lines of this split (`names_of_split`); others are not looked at.

    Raises
    ------
    InputError
        If the file cannot be read, or names no pair, or none of the split; or if ``data`` is no folder.
    OptionError
        For units that are neither mm nor voxel, and a split where there is no such column.
    """
    numbered, columns = _read_lines(file)
    if not numbered:
        raise InputError(f"{file}: names no pair; add a line below the header")
    root = start_of(file, data)
    title = next((name for name in NAMES if name in columns), "")
    if split is not None:
        if "split" not in columns:
            raise OptionError(f"{file}: has no column 'split', and pairs of the split '{split}' are asked for")
        names = names_of_split(split)
        numbered = [(number, line) for number, line in numbered if _split(line) in names]
        if not numbered:
            raise InputError(f"{file}: no pair is of the split '{split}'")
    # A folder that holds the files of no line is the wrong one: what lies beside the list must not hide that.
    there = [data is not None and _holds(root, line) for _, line in numbered]
    starts = [
        file.parent if any(there) and not here and _holds(file.parent, line) else root
        for here, (_, line) in zip(there, numbered, strict=True)
    ]
    return [_row(file, start, *one, title) for start, one in zip(starts, numbered, strict=True)], columns


def _split(line: dict[str, str]) -> str:
    return line.get("split", "").strip() or ("train" if "split" in line else "")


def _holds(folder: Path, line: dict[str, str]) -> bool:
    """Whether all files of a line are there; ``::`` ends the name of a file."""
    names = (line.get(column, "").strip().partition("::")[0] for column in _FILES)
    return all((folder / name).exists() for name in names if name)


def _row(file: Path, root: Path, number: int, line: dict[str, str], title: str) -> Row:
    def text(column: str) -> str:
        return line.get(column, "").strip()

    def place(column: str) -> Path | None:
        return root / text(column) if text(column) else None

    def landmarks(side: str) -> str | None:
        own, both = place(f"{side}_landmarks"), place("landmarks")
        return str(own) if own else f"{both}::{side}" if both else None

    unit = text("units") or UNITS[0]
    if unit not in UNITS:
        raise OptionError(f"{file}: line {number} has units '{unit}'{nearest(unit, UNITS)}")
    kinds = ("", "_labels", "_mask")
    return Row(
        number,
        text(title),
        **{f"{side}{kind}": place(f"{side}{kind}") for side in ("fixed", "moving") for kind in kinds},  # type: ignore[arg-type]
        fixed_landmarks=landmarks("fixed"),
        moving_landmarks=landmarks("moving"),
        fixed_subject=text("fixed_subject"),
        moving_subject=text("moving_subject"),
        cohort=text("cohort"),
        split=_split(line),
        unit=unit,
    )


def read_table(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and column names of a CSV file; what a short row leaves out is empty."""
    numbered, columns = _read_lines(file)
    return [line for _, line in numbered], columns


def _read_lines(file: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Rows of a CSV file, each with its number in the file, and the names of its columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            # A space after a comma is no part of a column's name.
            columns = [column.strip() for column in next(reader, [])]
            rows = [(reader.line_num, values) for values in reader if values]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a readable CSV ({error})") from None
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"{file}: two columns are called '{twice}'; rename or remove one")
    lines = [(n, dict(zip_longest(columns, values[: len(columns)], fillvalue=""))) for n, values in rows]
    return lines, columns


def read_learn2reg_lists(file: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What a Learn2Reg dataset or evaluation JSON holds, and its lists of pairs by name, for `learn2reg_pairs`.

    Raises
    ------
    InputError
        If the file is missing or no such file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; give the <TASK>_dataset.json of a Learn2Reg task") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a Learn2Reg dataset file, which is a JSON object with lists of pairs")
    lists = {
        key: listed
        for key, listed in content.items()
        if isinstance(listed, list) and listed and all(_is_pair(entry) for entry in listed)
    }
    return content, lists


def learn2reg_pairs(file: Path, key: str, listed: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs (fixed, moving) of one list of a Learn2Reg JSON.

    Raises
    ------
    InputError
        If a pair is not of two paths.
    """
    for number, pair in enumerate(listed, start=1):
        for role in ("fixed", "moving"):
            if not isinstance(pair[role], str) or not pair[role]:
                raise InputError(
                    f"{file}: {key}: {role} of pair {number} is {pair[role]!r}; give the path of an image, as text"
                )
    return [(pair["fixed"], pair["moving"]) for pair in listed]


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, dict) and {"fixed", "moving"} <= set(entry)


def learn2reg_place(image: Path, kind: str, suffix: str | None = None) -> Path:
    """Where a Learn2Reg task has what belongs to an image, such as its ``labels``: ``imagesTr`` -> ``labelsTr``."""
    name = image.name if suffix is None else stem(image) + suffix
    return image.parent.with_name(image.parent.name.replace("images", kind)) / name


def stem(path: str | Path) -> str:
    """Name of a file without the suffix of an image.

    >>> stem("scans/a.b.nii.gz")
    'a.b'
    """
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in _SUFFIXES if name.lower().endswith(suffix)), Path(path).stem)


__all__ = [
    *("NAMES", "SPLITS", "UNITS", "Row", "learn2reg_pairs", "learn2reg_place", "names_of_split"),
    *("read_learn2reg_lists", "read_rows", "read_table", "start_of", "stem"),
]
