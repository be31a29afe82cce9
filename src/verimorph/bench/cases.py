"""What is registered with what, and how the outcome is scored: one line of a CSV file a case.

Columns (only the first four are required; file names are relative to the data folder, or to the CSV file):

==================  ===================================================================================================
case                name, unique in the list, best ``set.pair``
set                 cases of one set share a table and a panel of the figure
fixed, moving       images
fixed_labels, ...   ``fixed_labels``, ``moving_labels``: Dice over labels present in both
fixed_mask, ...     ``fixed_mask``, ``moving_mask``: handed to engines that take masks
landmarks           one CSV with ``fixed_x_lps_mm .. moving_z_lps_mm`` (or ``ras``): mean landmark error
region              mask in a space from which ``region_to_fixed`` and ``region_to_moving`` (one or more ITK transform
                    files, separated by blanks, the first acting first on a point) lead to the two images: mean
                    distance between the engine's map and the reference, over the mask
kind                ``deformable``, ``affine`` or ``rigid`` (default deformable)
contrast            ``same`` (default) or ``different``: engines that need to be told how the images relate are told
start               what the identity row is: ``header`` (default), ``centre`` of the grids, ``centre-of-mass``
clip                two numbers: intensities are clipped to them for every engine
units               ``mm`` (default) or ``voxel``: no millimetre figures where the voxel size is unknown
==================  ===================================================================================================
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from verimorph.errors import InputError, OptionError, nearest

KINDS = {"deformable": "deformable", "deform": "deformable", "affine": "affine", "rigid": "rigid"}
CONTRASTS = ("same", "different")
STARTS = ("header", "centre", "centre-of-mass")
UNITS = ("mm", "voxel")
_FILES = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "landmarks", "region")
_COLUMNS = {"case", "set", "dim", *_FILES, "region_to_fixed", "region_to_moving", "kind"}
_COLUMNS |= {"contrast", "start", "clip", "units"}


@dataclass(frozen=True)
class Case:
    """One pair, with absolute paths and what to score it by (see the table above)."""

    name: str
    set: str
    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    landmarks: Path | None = None
    region: Path | None = None
    region_to_fixed: tuple[Path, ...] = ()
    region_to_moving: tuple[Path, ...] = ()
    kind: str = "deformable"
    contrast: str = "same"
    start: str = "header"
    clip: tuple[float, float] | None = None
    units: str = "mm"

    @property
    def files(self) -> list[Path]:
        """Every file the case needs."""
        return [
            *(path for name in _FILES if (path := getattr(self, name)) is not None),
            *self.region_to_fixed,
            *self.region_to_moving,
        ]

    @property
    def missing(self) -> list[Path]:
        """Files the case needs and the disk has not."""
        return [path for path in self.files if not path.exists()]

    @property
    def measure(self) -> str:
        """What the table of the set shows: ``dice``, ``landmark_error`` or ``reference_error``."""
        if self.landmarks is not None:
            return "landmark_error"
        return "reference_error" if self.region is not None else "dice"


def read_cases(path: str | Path, *, data: str | Path) -> list[Case]:
    """Read a case list.

    Parameters
    ----------
    path
        CSV file with the columns above.
    data
        Folder that relative file names start from; a name that is not there is tried beside the CSV file.

    Raises
    ------
    InputError
        If the list is not readable, has an unknown column, no case, a name twice, or a value that cannot be used.
    """
    file = Path(path)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as a case list ({error}); give a CSV file") from error
    for needed in ("case", "set", "fixed", "moving"):
        if needed not in columns:
            raise InputError(f"{file}: has no column '{needed}'; a case list needs case, set, fixed and moving")
    for column in columns:
        if column not in _COLUMNS:
            raise InputError(f"{file}: unknown column '{column}'{nearest(column, _COLUMNS)}")
    cases = [_case(row, file, number, Path(data)) for number, row in enumerate(rows, start=2)]
    names = [case.name for case in cases]
    if not cases:
        raise InputError(f"{file}: holds no case; add a line below the header")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file}: case '{name}' stands there more than once; give each its own name")
    return cases


def find_cases(wanted: list[str], *, data: str | Path, lists: str | Path) -> list[Case]:
    """Return the cases that ``wanted`` asks for, in its order, each once.

    Each word is a CSV file, the name of a list in the folder ``lists`` (``quick`` is ``lists/quick.csv``), a case of
    any of those lists, or ``LIST:CASE``.

    Raises
    ------
    OptionError
        If a word is none of these; the nearest one is named.
    """
    folder = Path(lists)
    known = {file.stem: file for file in sorted(folder.glob("*.csv"))}
    found: dict[str, Case] = {}
    for word in wanted:
        if word.endswith(".csv"):
            chosen = read_cases(word, data=data)
        elif word in known:
            chosen = read_cases(known[word], data=data)
        else:
            chosen = [_one_case(word, known, data)]
        for case in chosen:
            found.setdefault(case.name, case)
    return list(found.values())


def _one_case(word: str, known: dict[str, Path], data: str | Path) -> Case:
    title, _, name = word.partition(":") if ":" in word else ("", "", word)
    files = [known[title]] if title in known else list(known.values())
    names: list[str] = []
    for file in files:
        for case in read_cases(file, data=data):
            if case.name == name:
                return case
            names.append(case.name)
    if not known:
        raise OptionError(f"no case lists found to look '{word}' up in; give a CSV file or --lists FOLDER")
    raise OptionError(f"--cases: '{word}' is no case list and no case{nearest(word, [*known, *names])}")


def _case(row: dict[str, str], file: Path, line: int, data: Path) -> Case:
    value = {key: (text or "").strip() for key, text in row.items() if key}

    def path(text: str) -> Path:
        candidate = data / text
        return candidate if candidate.exists() or not (file.parent / text).exists() else file.parent / text

    def one_of(column: str, known: dict[str, str] | tuple[str, ...], default: str) -> str:
        text = value.get(column) or default
        if text not in known:
            raise InputError(f"{file}, line {line}: {column} cannot be '{text}'{nearest(text, known)}")
        return known[text] if isinstance(known, dict) else text

    for needed in ("case", "set", "fixed", "moving"):
        if not value.get(needed):
            raise InputError(f"{file}, line {line}: '{needed}' is empty; fill it in")
    clip = None
    if value.get("clip"):
        try:
            low, high = (float(number) for number in value["clip"].split())
        except ValueError:
            raise InputError(f"{file}, line {line}: clip is '{value['clip']}'; write two numbers") from None
        clip = (low, high)
    case = Case(
        name=value["case"],
        set=value["set"],
        **{name: path(value[name]) if value.get(name) else None for name in _FILES},  # type: ignore[arg-type]
        region_to_fixed=tuple(path(part) for part in value.get("region_to_fixed", "").split()),
        region_to_moving=tuple(path(part) for part in value.get("region_to_moving", "").split()),
        kind=one_of("kind", KINDS, "deformable"),
        contrast=one_of("contrast", CONTRASTS, "same"),
        start=one_of("start", STARTS, "header"),
        clip=clip,
        units=one_of("units", UNITS, "mm"),
    )
    if (case.fixed_labels is None) != (case.moving_labels is None):
        raise InputError(f"{file}, line {line}: only one of the two label maps is given; give both or none")
    if case.fixed_labels is None and case.landmarks is None and case.region is None:
        raise InputError(f"{file}, line {line}: nothing to score '{case.name}' by; give labels, landmarks or a region")
    return case
