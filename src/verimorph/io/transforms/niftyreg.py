"""NiftyReg: affine text files, deformation and displacement fields, cubic spline grids.

All map reference (fixed) to floating (moving) points in the NIfTI world, RAS mm: no frame to change. A *deformation*
holds positions, a *displacement* what to add; ``intent_p1`` beside the intent name ``NREG_TRANS`` says which.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.transforms.common import dense_grid, matrix_of, only_3d, text_matrix, voxel_centres, write_matrix
from verimorph.io.transforms.nifti_fields import five_d, load_header, load_vectors, save
from verimorph.transform import Affine, DisplacementField, Spline, Transform
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement

INTENT_NAME = "NREG_TRANS"
DEFORMATION, DISPLACEMENT, SPLINE = 0, 1, 2
_REFUSED = {
    3: "a deformation velocity field",
    4: "a displacement velocity field",
    5: "a spline velocity grid",
    6: "a linear spline grid",
}


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read an affine matrix (text), a field or a cubic spline grid (NIfTI)."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return Affine(text_matrix(path))
    kind = kind_of(path)
    vectors, grid, header = load_vectors(path, "NiftyReg")
    d = grid.ndim
    if kind == SPLINE:
        # Symmetric registrations keep half an affine in header extensions, which acts beside the spline.
        if header.extensions:
            raise InputError(
                f"{path}: is a spline grid with matrices in its header extensions; "
                "make a field of it with: reg_transform -ref FIXED -def IN OUT"
            )
        # Cubic splines reproduce linear functions, so coefficients that are positions are positions plus displacements.
        shifts = np.moveaxis(vectors.astype(np.float64) - voxel_centres(grid), -1, 0)
        return Spline(grid, torch.from_numpy(np.ascontiguousarray(shifts))[None])
    if kind == DEFORMATION:
        vectors = vectors.astype(np.float64) - voxel_centres(grid)
    return DisplacementField(grid, displacement_from_vectors(vectors, grid.affine[:d, :d]))


def kind_of(path: Path) -> int:
    """Which of NiftyReg's kinds a file is; a clear refusal of those that are velocities or linear splines."""
    header = load_header(path).header
    name = header.get_intent()[2]
    if name != INTENT_NAME:
        raise InputError(f"{path}: its intent name is '{name}', a NiftyReg transform says {INTENT_NAME}")
    kind = round(float(header["intent_p1"]))
    if kind in _REFUSED:
        raise InputError(
            f"{path}: is {_REFUSED[kind]}, which only NiftyReg integrates; "
            "make a field of it with: reg_transform -ref FIXED -def IN OUT"
        )
    if kind not in (DEFORMATION, DISPLACEMENT, SPLINE):
        raise InputError(f"{path}: NiftyReg transform of unknown kind {kind}")
    return kind


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write a matrix as text, a spline as its grid, anything else whole as a displacement field."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        only_3d(transform, "NiftyReg affine")
        write_matrix(path, matrix_of(transform, "NiftyReg affine", ".nii.gz"))
        return
    if isinstance(transform, Spline):
        where, kind = transform.grid, SPLINE
        shifts = np.moveaxis(transform.coefficients[0].detach().cpu().double().numpy(), 0, -1)
        vectors = shifts + voxel_centres(where)
    else:
        where, kind = dense_grid(transform, fixed, grid, "NiftyReg field"), DISPLACEMENT
        d = where.ndim
        vectors = vectors_from_displacement(transform.displacement_on(where), where.affine[:d, :d])
    values = five_d(vectors.astype(np.float32, copy=False))
    save(path, values, where, intent="vector", name=INTENT_NAME, parameter=float(kind))
