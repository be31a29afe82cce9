"""Lists of pairs as files: a CSV with a line a pair, and the dataset JSON of Learn2Reg. Nothing of a pair is opened.

The only reader of either: what trains, predicts and scores takes the same files.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verimorph.errors import InputError, OptionError, nearest

NAMES = ("case", "pair", "name", "id")
"""Columns that may name a pair."""
UNITS = ("mm", "voxel")
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


def read_rows(file: Path, *, data: str | Path | None = None) -> tuple[list[Row], list[str]]:
    """Read a CSV of pairs: its lines, and the names of its columns.

    Columns that are used where there: ``fixed``, ``moving``, ``fixed_labels``, ``moving_labels``, ``fixed_mask``,
    ``moving_mask``, ``landmarks`` (one table with columns ``fixed_x_...`` and ``moving_x_...``) or ``fixed_landmarks``
    and ``moving_landmarks``, ``fixed_subject``, ``moving_subject``, ``cohort``, ``split``, ``units``, and a name in
    ``case``, ``pair``, ``name`` or ``id``. Others are passed over.

    Parameters
    ----------
    data
        Folder that relative names start from; default: that of the file. A name not there is tried beside the file.

    Raises
    ------
    InputError
        If the file cannot be read or names no pair.
    OptionError
        For units that are neither mm nor voxel.
    """
    lines, columns = read_table(file)
    if not lines:
        raise InputError(f"{file}: names no pair; add a line below the header")
    root = file.parent if data is None else Path(data)
    title = next((name for name in NAMES if name in columns), "")
    return [_row(file, root, number, line, title) for number, line in enumerate(lines, start=2)], columns


def _row(file: Path, root: Path, number: int, line: dict[str, str], title: str) -> Row:
    def text(column: str) -> str:
        return (line.get(column) or "").strip()

    def place(column: str) -> Path | None:
        name = text(column)
        if not name:
            return None
        beside = file.parent / name
        return beside if not (root / name).exists() and beside.exists() else root / name

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
        split=text("split") or ("train" if "split" in line else ""),
        unit=unit,
    )


def read_table(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and column names of a CSV file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            # A space after a comma is no part of a column's name.
            columns = [column.strip() for column in reader.fieldnames or ()]
            rows = [dict(zip(columns, row.values(), strict=False)) for row in reader]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a readable CSV ({error})") from None
    return rows, columns


def read_learn2reg_lists(file: Path) -> tuple[dict[str, Any], dict[str, list[tuple[str, str]]]]:
    """What a Learn2Reg dataset or evaluation JSON holds, and its lists of pairs (fixed, moving) by name.

    Raises
    ------
    InputError
        If the file is missing or no such file, or a pair is not of two paths.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; give the <TASK>_dataset.json of a Learn2Reg task") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a Learn2Reg dataset file, which is a JSON object with lists of pairs")
    lists: dict[str, list[tuple[str, str]]] = {}
    for key, listed in content.items():
        if not isinstance(listed, list) or not listed or not all(_is_pair(entry) for entry in listed):
            continue
        for number, pair in enumerate(listed, start=1):
            for role in ("fixed", "moving"):
                if not isinstance(pair[role], str) or not pair[role]:
                    raise InputError(
                        f"{file}: {key}: {role} of pair {number} is {pair[role]!r}; give the path of an image, as text"
                    )
        lists[key] = [(pair["fixed"], pair["moving"]) for pair in listed]
    return content, lists


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


__all__ = ["NAMES", "UNITS", "Row", "learn2reg_place", "read_learn2reg_lists", "read_rows", "read_table", "stem"]
