"""Vector fields in NIfTI: arrays in and out, no meaning. Which frame the vectors live in, each format knows itself."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.transforms.common import finite


def load_vectors(path: Path, format: str) -> tuple[ndarray, Grid, nib.Nifti1Header]:
    """Read a field as vectors ``(*shape, D)``, with its grid and header.

    The file has shape ``(X, Y, Z, 1, 3)`` or ``(X, Y, Z, 3)``, in 2-D ``(X, Y, 1, 1, 2)`` or ``(X, Y, 1, 2)``.
    """
    header = load_header(path)
    shape = header.shape
    components = shape[-1] if len(shape) in (4, 5) else 0
    if components not in (2, 3) or (len(shape) == 5 and shape[3] != 1) or (components == 2 and shape[2] != 1):
        raise InputError(
            f"{path}: has shape {shape}; a displacement field of the {format} format has (X, Y, Z, 1, 3) or "
            "(X, Y, Z, 3), in 2-D (X, Y, 1, 1, 2)"
        )
    try:
        values = np.asanyarray(header.dataobj, dtype=np.float32)
    except (OSError, EOFError, zlib.error, ValueError):
        raise InputError(f"{path}: is cut short or damaged; copy it again") from None
    values = values[..., 0, :] if len(shape) == 5 else values
    affine, spatial = header.affine, shape[:3]
    if components == 2:
        values, affine, spatial = values[:, :, 0, :], affine[np.ix_([0, 1, 3], [0, 1, 3])], shape[:2]
    try:
        grid = Grid(spatial, affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return finite(values, path), grid, header.header


def load_header(path: Path) -> nib.Nifti1Image:
    """Open a NIfTI file without reading its voxels."""
    try:
        return nib.load(path, mmap=False)  # type: ignore[return-value]
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, zlib.error):
        raise InputError(f"{path}: not a readable NIfTI file; check or copy it again") from None


def save_vectors(vectors: ndarray, grid: Grid, path: Path, *, intent: str | int, flat: bool = False) -> None:
    """Write vectors ``(*shape, D)`` as 5-D NIfTI, or with ``flat`` as 4-D; float32, sform and qform set to the grid."""
    save(path, five_d(vectors, flat), grid, intent=intent)


def five_d(vectors: ndarray, flat: bool = False) -> ndarray:
    """Give vectors ``(*shape, D)`` the axes NIfTI wants: ``(X, Y, Z, 1, D)``, or ``(X, Y, Z, D)`` with ``flat``."""
    d = vectors.shape[-1]
    new = 3 - d + (0 if flat else 1)
    return vectors[(slice(None),) * d + (None,) * new]


def save(path: Path, values: ndarray, grid: Grid, *, intent: str | int, name: str = "", parameter: float = 0.0) -> None:
    """Write an array with intent code, name and first parameter; the affine of a 2-D grid is embedded at S = 0."""
    affine = grid.affine
    if grid.ndim == 2:
        affine = np.eye(4)
        affine[np.ix_([0, 1, 3], [0, 1, 3])] = grid.affine
    image = nib.Nifti1Image(values, affine)
    image.header.set_intent(intent, name=name, allow_unknown=True)
    image.header["intent_p1"] = parameter
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    nib.save(image, path)
