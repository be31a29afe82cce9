"""Landmarks in files, inside always world points in RAS+ mm. The file says its frame, nothing is guessed.

Formats: comma-separated columns that name their frame, 3D Slicer markups (FCSV and MRK.JSON).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.io.safe import replacing

SUFFIXES = (".csv", ".fcsv", ".mrk.json")

_COLUMN = re.compile(r"(?P<prefix>.*?)(?P<axis>[xyz])_(?P<frame>ras|lps)_mm", re.IGNORECASE)
_EXPECTED = "x_ras_mm,y_ras_mm,z_ras_mm or x_lps_mm,y_lps_mm,z_lps_mm (2-D: x and y only)"
_NAME_COLUMNS = ("name", "label", "id")
_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups"
_FLIP = {"ras": np.array([1.0, 1.0, 1.0]), "lps": np.array([-1.0, -1.0, 1.0])}


@dataclass(frozen=True, eq=False)
class Points:
    """Landmarks in the world.

    Parameters
    ----------
    coordinates
        World points in RAS+ mm, ``(n, D)`` with D = 2 or 3.
    names
        One name a point; default ``"1"``, ``"2"``, ...
    name
        What messages call the list; a file name where there is one.
    path
        File the points came from, if any (provenance).
    """

    coordinates: Float[ndarray, "n d"]
    names: tuple[str, ...] = ()
    name: str = "points"
    path: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        coordinates = np.array(self.coordinates, dtype=np.float64)
        if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
            raise InputError(f"{self.name}: points have shape {coordinates.shape}, (n, 2) or (n, 3) is needed")
        if not np.isfinite(coordinates).all():
            row = int(np.flatnonzero(~np.isfinite(coordinates).all(axis=1))[0])
            raise InputError(f"{self.name}: point {row + 1} is not finite; remove it or give its coordinates")
        names = tuple(str(item) for item in self.names) or tuple(str(i + 1) for i in range(len(coordinates)))
        if len(names) != len(coordinates):
            raise InputError(f"{self.name}: {len(coordinates)} points but {len(names)} names; give one name a point")
        object.__setattr__(self, "coordinates", coordinates)
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def ndim(self) -> int:
        """Number of coordinates of a point, 2 or 3."""
        return self.coordinates.shape[1]

    def with_coordinates(self, coordinates: Float[ndarray, "n d"]) -> Points:
        """Return the same landmarks, by name, at other places."""
        return Points(coordinates, self.names, self.name)


def read_points(path: str | os.PathLike, *, columns: str | None = None) -> Points:
    """Read landmarks.

    CSV needs a header line with columns ``x_ras_mm,y_ras_mm,z_ras_mm`` or ``x_lps_mm,y_lps_mm,z_lps_mm`` (2-D: x and y
    only); other columns are passed over, and ``name``, ``label`` or ``id`` gives the names. A table of two lists puts a
    prefix before the column names, e.g. ``fixed_x_lps_mm`` and ``moving_x_lps_mm``; ``columns="fixed"``, or a path that
    ends in ``::fixed``, picks one. FCSV and MRK.JSON say their frame in the file.

    Parameters
    ----------
    path
        ``.csv``, ``.fcsv`` or ``.mrk.json``.
    columns
        Prefix of the columns to use.

    Returns
    -------
    Points
        In RAS+ mm.

    Raises
    ------
    InputError
        If the file is missing or does not say unmistakably where its points are.
    """
    text = os.fspath(path)
    if "::" in text and not Path(text).exists():
        text, _, columns = text.rpartition("::")
    file = Path(text)
    if not file.is_file():
        raise InputError(f"{file}: no such landmark file; check the path")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{file}: not a readable text file ({error}); landmarks come as {', '.join(SUFFIXES)}"
        ) from None
    suffix = file.name.lower()
    if suffix.endswith(".fcsv"):
        coordinates, names = _parse_fcsv(content, file)
    elif suffix.endswith(".json"):
        coordinates, names = _parse_markups(content, file)
    elif suffix.endswith(".csv"):
        coordinates, names = _parse_csv(content, file, columns)
    else:
        raise InputError(f"{file}: unknown landmark suffix; use one of {', '.join(SUFFIXES)}")
    if not len(coordinates):
        raise InputError(f"{file}: holds no points; give at least one")
    return Points(coordinates, tuple(names), file.name, file)


def write_points(points: Points, path: str | os.PathLike, *, frame: str = "ras") -> Path:
    """Write landmarks as ``.csv``, ``.fcsv`` or ``.mrk.json``; the file says its frame.

    Parameters
    ----------
    points
        What to write.
    path
        The suffix names the format. Slicer's formats hold 3-D points only.
    frame
        ``"ras"`` or ``"lps"``: the frame the file is written in.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        If the suffix is unknown, 2-D points meet a 3-D format, or the place cannot be written to.
    """
    target = Path(path)
    if frame not in _FLIP:
        raise InputError(f"points: unknown frame {frame!r}; use 'ras' or 'lps'")
    suffix = next((known for known in SUFFIXES if target.name.lower().endswith(known)), None)
    if suffix is None:
        raise InputError(f"{target}: unknown landmark suffix; use one of {', '.join(SUFFIXES)}")
    if suffix != ".csv" and points.ndim == 2:
        raise InputError(f"{target}: {suffix} holds 3-D points, these are 2-D; write .csv")
    coordinates = points.coordinates * _FLIP[frame][: points.ndim]
    text = {".csv": _format_csv, ".fcsv": _format_fcsv, ".mrk.json": _format_markups}[suffix](
        coordinates, points.names, frame
    )
    with replacing(target) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
    return target


def as_points(thing: Any, *, columns: str | None = None, name: str | None = None) -> Points:
    """Make :class:`Points` of a path, ``Points``, or an array ``(n, D)`` of world points in RAS+ mm.

    ``columns`` is the prefix to look for in a CSV of two lists; a CSV without prefixes is read all the same.
    """
    if isinstance(thing, Points):
        return thing
    if isinstance(thing, str | os.PathLike):
        if columns is not None and "::" not in os.fspath(thing) and columns not in _prefixes(Path(thing)):
            columns = None
        return read_points(thing, columns=columns)
    if isinstance(thing, Sequence | ndarray):
        try:
            return Points(np.asarray(thing, dtype=np.float64), name=name or "points")
        except (TypeError, ValueError):
            pass
    raise InputError(
        f"{name or 'points'}: a {type(thing).__name__} is no landmark list; give a path or an (n, D) array"
    )


def _prefixes(file: Path) -> set[str]:
    """Prefixes of the coordinate columns of a CSV, ``""`` for columns without one."""
    if not file.name.lower().endswith(".csv") or not file.is_file():
        return set()
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        header = next(csv.reader(opened), [])
    return {found["prefix"].strip("_") for item in header if (found := _COLUMN.fullmatch(item.strip()))}


def _parse_csv(content: str, file: Path, columns: str | None) -> tuple[np.ndarray, list[str]]:
    rows = [row for row in csv.reader(io.StringIO(content)) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in rows[0]] if rows else []
    found: dict[tuple[str, str], dict[str, int]] = {}
    for number, title in enumerate(header):
        if match := _COLUMN.fullmatch(title):
            key = (match["prefix"].rstrip("_"), match["frame"].lower())
            if match["axis"].lower() in found.setdefault(key, {}):
                raise InputError(f"{file}: two columns are called {title}; rename one")
            found[key][match["axis"].lower()] = number
    if not found:
        raise InputError(
            f"{file}: its header is '{','.join(header)[:80]}', which names no frame; name the columns {_EXPECTED}"
        )
    prefixes = sorted({prefix for prefix, _ in found})
    if columns is None and len(prefixes) > 1 and "" not in prefixes:
        choices = " or ".join(f"{file.name}::{prefix}" for prefix in prefixes)
        raise InputError(f"{file}: holds several lists; choose one as {choices}")
    wanted = columns.rstrip("_") if columns is not None else ("" if "" in prefixes else prefixes[0])
    keys = [key for key in found if key[0] == wanted]
    if not keys:
        raise InputError(f"{file}: has no columns {wanted}_x_..._mm; its lists are {', '.join(map(repr, prefixes))}")
    if len(keys) > 1:
        raise InputError(f"{file}: gives {wanted or 'its'} points in RAS and in LPS; leave one of them")
    axes = found[keys[0]]
    if set(axes) not in ({"x", "y"}, {"x", "y", "z"}):
        raise InputError(
            f"{file}: has only the columns {', '.join(header[i] for i in axes.values())}; it needs {_EXPECTED}"
        )
    order = [axes[axis] for axis in "xyz"[: len(axes)]]
    titles = [title.lower() for title in header]
    name_column = next((titles.index(title) for title in _NAME_COLUMNS if title in titles), None)
    coordinates, names = [], []
    for line, row in enumerate(rows[1:], start=2):
        coordinates.append(_numbers([row[i] if i < len(row) else "" for i in order], file, line))
        names.append(row[name_column].strip() if name_column is not None and name_column < len(row) else str(line - 1))
    return np.array(coordinates).reshape(-1, len(order)) * _FLIP[keys[0][1]][: len(order)], names


def _parse_fcsv(content: str, file: Path) -> tuple[np.ndarray, list[str]]:
    """3D Slicer's fiducial list. Its ``CoordinateSystem`` is RAS, LPS, IJK or, before Slicer 4.11, 0, 1, 2."""
    frame, titles, coordinates, names = None, None, [], []
    for line, row in enumerate(csv.reader(io.StringIO(content)), start=1):
        text = ",".join(row).strip()
        if not text:
            continue
        if text.startswith("#"):
            key, _, value = text.lstrip("# ").partition("=")
            if key.strip().lower() == "coordinatesystem":
                frame = {"0": "ras", "1": "lps"}.get(value.strip(), value.strip().lower())
            elif key.strip().lower() == "columns":
                titles = [title.strip().lower() for title in value.split(",")]
            continue
        if frame not in _FLIP:
            raise InputError(
                f"{file}: its CoordinateSystem is {frame or 'missing'}; export it from Slicer as RAS or LPS"
            )
        columns = titles or ["id", "x", "y", "z"]
        if not {"x", "y", "z"} <= set(columns):
            raise InputError(f"{file}: its columns are {', '.join(columns)}; x, y and z are needed")
        cells = [row[columns.index(axis)] if columns.index(axis) < len(row) else "" for axis in "xyz"]
        coordinates.append(_numbers(cells, file, line))
        label = columns.index("label") if "label" in columns else columns.index("id") if "id" in columns else None
        names.append(row[label].strip() if label is not None and label < len(row) else "")
    names = [name or str(i + 1) for i, name in enumerate(names)]
    return np.array(coordinates).reshape(-1, 3) * _FLIP.get(frame or "ras", 1.0), names


def _parse_markups(content: str, file: Path) -> tuple[np.ndarray, list[str]]:
    """3D Slicer's markups schema 1: the control points that are defined, in the frame the list names."""
    try:
        lists = json.loads(content)["markups"]
        one = lists[0] if len(lists) < 2 else None
    except (ValueError, KeyError, TypeError, IndexError):
        raise InputError(
            f"{file}: not a 3D Slicer markups file; export the point list from Slicer as .mrk.json"
        ) from None
    if one is None:
        raise InputError(f"{file}: holds {len(lists)} point lists; save each to a file of its own")
    system = str(one.get("coordinateSystem", "missing"))
    frame = {"0": "ras", "1": "lps"}.get(system, system.lower())
    if frame not in _FLIP:
        raise InputError(f"{file}: its coordinateSystem is {system}; export it from Slicer as RAS or LPS")
    unit = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}.get(str(one.get("coordinateUnits", "mm")))
    if unit is None:
        raise InputError(f"{file}: its coordinateUnits are {one['coordinateUnits']}; export it in mm")
    coordinates, names = [], []
    for number, point in enumerate(one.get("controlPoints", []), start=1):
        if point.get("positionStatus", "defined") in ("undefined", "missing"):
            continue
        coordinates.append(_numbers(list(point.get("position") or [""] * 3), file, number, "control point"))
        names.append(str(point.get("label") or point.get("id") or number))
    return np.array(coordinates).reshape(-1, 3) * _FLIP[frame] * unit, names


def _numbers(cells: list[Any], file: Path, place: int, unit: str = "line") -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        raise InputError(
            f"{file}: {unit} {place} has no number for each coordinate ({cells}); repair or remove it"
        ) from None
    if not np.isfinite(values).all():
        raise InputError(f"{file}: {unit} {place} has a coordinate that is not finite ({cells}); repair or remove it")
    return values


def _format_csv(coordinates: np.ndarray, names: tuple[str, ...], frame: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", *[f"{axis}_{frame}_mm" for axis in "xyz"[: coordinates.shape[1]]]])
    writer.writerows([name, *map(_exact, point)] for name, point in zip(names, coordinates, strict=True))
    return out.getvalue()


def _format_fcsv(coordinates: np.ndarray, names: tuple[str, ...], frame: str) -> str:
    out = io.StringIO()
    out.write("# Markups fiducial file version = 4.11\n")
    out.write(f"# CoordinateSystem = {frame.upper()}\n")
    out.write("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n")
    writer = csv.writer(out, lineterminator="\n")
    for number, (name, point) in enumerate(zip(names, coordinates, strict=True), start=1):
        writer.writerow([str(number), *map(_exact, point), "0", "0", "0", "1", "1", "1", "0", name, "", ""])
    return out.getvalue()


def _format_markups(coordinates: np.ndarray, names: tuple[str, ...], frame: str) -> str:
    schema = f"{_SCHEMA}/Resources/Schema/markups-schema-v1.0.3.json#"
    points = [
        {"id": str(number), "label": name, "position": [float(value) for value in point], "positionStatus": "defined"}
        for number, (name, point) in enumerate(zip(names, coordinates, strict=True), start=1)
    ]
    markups = {"type": "Fiducial", "coordinateSystem": frame.upper(), "coordinateUnits": "mm", "controlPoints": points}
    return json.dumps({"@schema": schema, "markups": [markups]}, indent=1) + "\n"


def _exact(value: float) -> str:
    """Shortest text that reads back as the same number."""
    return repr(float(value))
