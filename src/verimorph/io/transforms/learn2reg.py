"""Learn2Reg displacement fields: voxels, no geometry.

The vector d at fixed voxel i says that the moving voxel is ``i + d``, with channels along the array axes. Both grids
are needed to know where that is in the world: the transform is the field d on the fixed grid, then the matrix that
takes the world of a fixed voxel to the world of the moving voxel of the same number.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.transforms.common import finite, required
from verimorph.io.transforms.nifti_fields import five_d, load_header, save
from verimorph.transform import Affine, DisplacementField, Transform, chain
from verimorph.transform.dense import displacement_on
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement

FORMAT = "Learn2Reg"

_MILLIMETRES = (1006, 1007)  # NIfTI intents of displacements and vectors; the challenge's own files have none


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read ``(X, Y, Z, 3)`` or ``(3, X, Y, Z)`` from ``.npz``, ``.npy`` or NIfTI; half-size ``.npz`` are enlarged.

    Half-size fields (the file form of the first challenges: every second voxel, vectors in voxels of full size) are
    brought to full size by quadratic splines between the corner voxels, as the challenge's evaluation does.
    """
    fixed = required(fixed, "fixed", FORMAT, 3 if fixed is None else fixed.ndim)
    moving = required(moving, "moving", FORMAT, fixed.ndim)
    d = fixed.ndim
    values = np.squeeze(_load(path))
    half = tuple(n // 2 for n in fixed.shape)
    if values.shape in ((d, *fixed.shape), (d, *half)) and values.shape[:-1] != fixed.shape:
        values = np.moveaxis(values, 0, -1)
    if values.shape == (*half, d) and half != fixed.shape:
        values = _enlarged(values, fixed.shape)
    if values.shape != (*fixed.shape, d):
        raise InputError(
            f"{path}: has shape {values.shape}; a field on the fixed image has {(*fixed.shape, d)}; "
            "is --fixed the image it was made for?"
        )
    field = DisplacementField(fixed, displacement_from_vectors(finite(values, path), np.eye(d)))
    return chain([field, Affine(moving.affine @ fixed.inverse_affine)])


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write ``(X, Y, Z, 3)`` float32 on the fixed grid, to ``.npz`` (key ``arr_0``), ``.npy`` or NIfTI."""
    fixed = required(fixed or grid, "fixed", FORMAT, transform.ndim)
    moving = required(moving, "moving", FORMAT, transform.ndim)
    # From moving voxels to the world of the fixed voxels of the same number: what the field alone has to do.
    renumbered = transform.then(Affine(fixed.affine @ moving.inverse_affine))
    values = vectors_from_displacement(displacement_on(renumbered, fixed), np.eye(fixed.ndim))
    if path.name.lower().endswith(".npz"):
        np.savez_compressed(path, values)
    elif path.name.lower().endswith(".npy"):
        np.save(path, values)
    else:
        save(path, five_d(values, flat=True), fixed, intent="none")


def _load(path: Path) -> ndarray:
    name = path.name.lower()
    try:
        if name.endswith(".npz"):
            with np.load(path) as archive:
                if len(archive.files) != 1:
                    raise InputError(f"{path}: holds {len(archive.files)} arrays, one is expected")
                return archive[archive.files[0]]
        if name.endswith(".npy"):
            return np.load(path)
        image = load_header(path)
        if image.header["intent_code"] in _MILLIMETRES:
            raise InputError(
                f"{path}: is marked as a vector image in millimetres, as ITK and ANTs write them, not voxels; "
                "make a Learn2Reg field of it with 'verimorph convert --to learn2reg --fixed FILE --moving FILE'"
            )
        return np.asanyarray(image.dataobj, dtype=np.float32)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a readable array; copy it again") from None


def _enlarged(values: ndarray, shape: tuple[int, ...]) -> ndarray:
    from scipy import ndimage

    factors = [n / m for n, m in zip(shape, values.shape[:-1], strict=True)]
    channels = [ndimage.zoom(values[..., k].astype(np.float32), factors, order=2) for k in range(values.shape[-1])]
    return np.stack(channels, axis=-1)
