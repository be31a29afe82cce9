"""What the transform formats share: guards, and the choice of a grid for formats that need a dense field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.transform import Dense, Linear, Transform, parts_of


def as_grid(thing: Any, role: str) -> Grid | None:
    """Return the grid of an image, path or grid; None stays None. ``role`` is what messages call it."""
    if thing is None or isinstance(thing, Grid):
        return thing
    from verimorph.io.images import as_image

    return as_image(thing, name=role if not isinstance(thing, str | Path) else None).grid


def matrix_of(transform: Transform, format: str, instead: str = ".h5") -> Float[ndarray, "h h"]:
    """World matrix of a linear transform; anything else is refused with the format that could hold it."""
    if not isinstance(transform, Linear):
        raise InputError(
            f"the {format} format holds linear transforms only, this one is {_a(transform.kind)}; "
            f"write {instead} instead"
        )
    return transform.matrix


def only_3d(transform: Transform, format: str) -> None:
    """Refuse 2-D transforms in formats that know three axes only."""
    if transform.ndim != 3:
        raise InputError(f"the {format} format holds 3-D transforms only, this one is 2-D; write .h5 or .tfm instead")


def required(grid: Grid | None, role: str, format: str, ndim: int = 3) -> Grid:
    """Return a grid the format cannot do without, or say which option gives it."""
    if grid is None:
        raise InputError(
            f"the {format} format is relative to the voxels of the {role} image; give that image (--{role} IMAGE)"
        )
    if grid.ndim != ndim:
        raise InputError(f"the {role} image has {grid.ndim} axes, the {format} transform {ndim}")
    return grid


def dense_grid(transform: Transform, fixed: Grid | None, grid: Grid | None, format: str) -> Grid:
    """Grid on which a dense format samples the transform: the given one, that of its first field, or the fixed one."""
    first = parts_of(transform)[0]
    own = first.grid if isinstance(first, Dense) else None
    chosen = grid or own or fixed
    if chosen is None:
        raise InputError(
            f"the {format} format needs a grid to write a dense field on, which a {transform.kind} transform does not "
            "have; give the fixed image (--fixed IMAGE)"
        )
    return chosen


def voxel_centres(grid: Grid) -> Float[ndarray, "*space d"]:
    """World position of every voxel, RAS mm."""
    return grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def read_text(path: Path) -> str:
    """Text of a small file, or a line that says it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file; name its format (--from) if the suffix misleads") from None


def text_matrix(path: Path, text: str | None = None) -> Float[ndarray, "4 4"]:
    """Read four lines of four numbers."""
    lines = [line.split("#")[0].split() for line in (text or read_text(path)).splitlines()]
    lines = [line for line in lines if line]
    try:
        matrix = np.array(lines, dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise InputError(f"{path}: is not four lines of four numbers")
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1], rtol=0, atol=1e-6):
        raise InputError(f"{path}: is not a homogeneous matrix (last line 0 0 0 1, all numbers finite)")
    return matrix


def write_matrix(path: Path, matrix: Float[ndarray, "h h"]) -> None:
    """Write a matrix as text, every digit of float64."""
    path.write_text("".join(" ".join(f"{v:.17g}" for v in row) + "\n" for row in matrix), encoding="utf-8")


def finite(values: ndarray, path: Path) -> ndarray:
    """Refuse a field with NaN or infinite vectors."""
    for k in range(values.shape[-1]):
        if not np.isfinite(values[..., k]).all():
            raise InputError(f"{path}: the field has NaN or infinite vectors; mend it or write it again")
    return values


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} transform"
