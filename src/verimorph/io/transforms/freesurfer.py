"""FreeSurfer LTA files.

An LTA maps the *source* (moving) to the *destination* (fixed) image: the inverse of what resampling needs. Type 0 is
voxel to voxel, type 1 scanner RAS to scanner RAS, type 14 (register.dat) the RAS of FreeSurfer's surfaces, in which the
middle of a volume is the origin. The file carries the geometry of both images. Written here because the reader at hand
knows neither type 14 nor which of the two geometries is which.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.transforms.common import matrix_of, only_3d, read_text
from verimorph.transform import Affine, Transform

FORMAT = "FreeSurfer LTA"
VOXELS, SCANNER, REGISTER_DAT = 0, 1, 14


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Affine:
    """Read one linear transform; ``fixed`` and ``moving`` serve where the file's geometry is marked invalid."""
    lines = [line.split("#")[0].strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    values = _settings(lines)
    try:
        kind, count = int(values["type"]), int(values.get("nxforms", "1"))
        start = next(n for n, line in enumerate(lines) if line.split() == ["1", "4", "4"])
        matrix = np.array([line.split() for line in lines[start + 1 : start + 5]], dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError
    except (KeyError, ValueError, StopIteration):
        raise InputError(f"{path}: is not a readable LTA file (type, nxforms and a 4x4 matrix are needed)") from None
    if count != 1:
        raise InputError(f"{path}: holds {count} transforms, one is expected")
    if kind == SCANNER:
        forward = matrix
    elif kind in (VOXELS, REGISTER_DAT):
        source = _geometry(lines, "src", path) or moving
        target = _geometry(lines, "dst", path) or fixed
        if source is None or target is None:
            raise InputError(f"{path}: has no valid geometry of both images; give them (--fixed and --moving IMAGE)")
        if kind == VOXELS:
            forward = target.affine @ matrix @ source.inverse_affine
        else:
            forward = from_surface(target) @ matrix @ np.linalg.inv(from_surface(source))
    else:
        raise InputError(f"{path}: LTA type {kind} is not supported (0, 1 and 14 are); convert with: lta_convert")
    return Affine(forward).inverse()


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write type 1 (scanner RAS), with the geometry of the images that were given."""
    only_3d(transform, FORMAT)
    forward = Affine(matrix_of(transform, FORMAT)).inverse().matrix
    lines = [
        "# transform file written by verimorph",
        f"type      = {SCANNER} # LINEAR_RAS_TO_RAS",
        "nxforms   = 1",
        "mean      = 0.0000 0.0000 0.0000",
        "sigma     = 1.0000",
        "1 4 4",
        *(" ".join(f"{v:.15e}" for v in row) for row in forward),
        "src volume info",
        *_geometry_lines(moving),
        "dst volume info",
        *_geometry_lines(fixed),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_surface(grid: Grid) -> Float[ndarray, "4 4"]:
    """Matrix from FreeSurfer's surface RAS (tkregister) of an image to its scanner RAS.

    Surface RAS turns voxels by a fixed pattern, x = -i, y = k, z = -j in millimetres, about voxel N/2 as the origin.
    """
    x, y, z = grid.spacing
    half = np.array(grid.shape) / 2
    surface = np.eye(4)
    surface[:3, :3] = [[-x, 0, 0], [0, 0, z], [0, -y, 0]]
    surface[:3, 3] = -surface[:3, :3] @ half
    return grid.affine @ np.linalg.inv(surface)


def _settings(lines: list[str]) -> dict[str, str]:
    """``key = value`` lines before the geometry."""
    out: dict[str, str] = {}
    for line in lines:
        if line.endswith("volume info"):
            break
        key, found, value = line.partition("=")
        if found:
            out[key.strip()] = value.strip()
    return out


def _geometry(lines: list[str], which: str, path: Path) -> Grid | None:
    """Grid of the source or destination block: shape, voxel size, directions, and c_ras = world of voxel N/2."""
    try:
        start = lines.index(f"{which} volume info")
    except ValueError:
        return None
    block: dict[str, str] = {}
    for line in lines[start + 1 :]:
        if line.endswith("volume info"):
            break
        key, found, value = line.partition("=")
        if not found:
            break
        block[key.strip()] = value.strip()
    if not block.get("valid", "0").startswith("1"):
        return None
    try:
        shape = tuple(int(n) for n in block["volume"].split())
        size = np.array(block["voxelsize"].split(), dtype=np.float64)
        axes = np.array([block[key].split() for key in ("xras", "yras", "zras")], dtype=np.float64).T
        middle = np.array(block["cras"].split(), dtype=np.float64)
        affine = np.eye(4)
        affine[:3, :3] = axes * size
        affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2)
    except (KeyError, ValueError):
        raise InputError(f"{path}: the {which} volume info is damaged") from None
    return Grid(shape, affine)


def _geometry_lines(grid: Grid | None) -> list[str]:
    if grid is None:
        grid, valid = Grid((256, 256, 256)), "0  # volume info invalid"
    else:
        valid = "1  # volume info valid"
    middle = grid.index_to_world(np.array(grid.shape) / 2)
    rows = {
        "xras  ": grid.direction[:, 0],
        "yras  ": grid.direction[:, 1],
        "zras  ": grid.direction[:, 2],
        "cras  ": middle,
    }
    return [
        f"valid = {valid}",
        "filename = none",
        f"volume = {grid.shape[0]} {grid.shape[1]} {grid.shape[2]}",
        "voxelsize = " + " ".join(f"{v:.15e}" for v in grid.spacing),
        *(f"{key} = " + " ".join(f"{v:.15e}" for v in row) for key, row in rows.items()),
    ]
