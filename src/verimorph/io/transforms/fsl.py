"""FSL: FLIRT matrices and FNIRT warp fields.

FSL's coordinates of an image are its voxel numbers times the voxel size, counted from the other end along x where the
voxel-to-world matrix has a positive determinant. A FLIRT matrix maps *moving to reference* coordinates, a FNIRT field
*reference to moving* ones; both mean nothing without the images. This module is the only place that knows all that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.transforms.common import dense_grid, matrix_of, only_3d, required, text_matrix, write_matrix
from verimorph.io.transforms.nifti_fields import load_vectors, save_vectors
from verimorph.transform import Affine, DisplacementField, Transform, chain
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement

FORMAT = "FSL"
FIELD_INTENT = 2006
_COEFFICIENT_INTENTS = (2007, 2008, 2009)


def scaled_voxels(grid: Grid) -> Float[ndarray, "4 4"]:
    """Matrix from voxel indices to FSL's coordinates: scaling, and x counted backwards in a right-handed image."""
    scaling = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine) > 0:
        scaling[0, 0] *= -1
        scaling[0, 3] = (grid.shape[0] - 1) * grid.spacing[0]
    return scaling


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read a FLIRT matrix (text) or a FNIRT field (NIfTI)."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _read_field(path, moving)
    flirt = text_matrix(path)
    fixed, moving = required(fixed, "fixed", FORMAT), required(moving, "moving", FORMAT)
    # world of fixed -> voxels -> FSL -> (inverse FLIRT) -> FSL of moving -> voxels -> world of moving
    to_fsl = scaled_voxels(fixed) @ fixed.inverse_affine
    from_fsl = moving.affine @ np.linalg.inv(scaled_voxels(moving))
    try:
        backward = np.linalg.inv(flirt)
    except np.linalg.LinAlgError:
        raise InputError(f"{path}: the matrix is singular") from None
    return Affine(from_fsl @ backward @ to_fsl)


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write a FLIRT matrix for a linear transform and a text suffix, a relative FNIRT field for NIfTI."""
    only_3d(transform, FORMAT)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _write_field(transform, path, dense_grid(transform, fixed, grid, "FNIRT"), required(moving, "moving", FORMAT))
        return
    matrix = matrix_of(transform, "FLIRT", ".nii.gz")
    fixed, moving = required(fixed, "fixed", FORMAT), required(moving, "moving", FORMAT)
    to_fsl = scaled_voxels(fixed) @ fixed.inverse_affine
    from_fsl = moving.affine @ np.linalg.inv(scaled_voxels(moving))
    write_matrix(path, np.linalg.inv(np.linalg.inv(from_fsl) @ matrix @ np.linalg.inv(to_fsl)))


def _read_field(path: Path, moving: Grid | None) -> Transform:
    vectors, reference, header = load_vectors(path, "FNIRT")
    if int(header["intent_code"]) in _COEFFICIENT_INTENTS:
        raise InputError(
            f"{path}: holds FNIRT coefficients, not a field; "
            "make a field of them with: fnirtfileutils -i IN -r FIXED -o OUT --withaff"
        )
    moving = required(moving, "moving", FORMAT)
    scale = scaled_voxels(reference)
    if is_absolute(vectors, reference):
        vectors = vectors.astype(np.float64) - _coordinates(reference)
    # S_ref (i + S_ref^-1 d) is where the voxel goes in FSL's coordinates of the moving image.
    field = DisplacementField(reference, displacement_from_vectors(vectors, scale[:3, :3]))
    return chain([field, Affine(_between(reference, moving))])


def _write_field(transform: Transform, path: Path, reference: Grid, moving: Grid) -> None:
    alone = transform.then(Affine(np.linalg.inv(_between(reference, moving))))
    scale = scaled_voxels(reference)[:3, :3]
    save_vectors(
        vectors_from_displacement(alone.displacement_on(reference), scale),
        reference,
        path,
        intent=FIELD_INTENT,
        flat=True,
    )


def _between(reference: Grid, moving: Grid) -> Float[ndarray, "4 4"]:
    """World of the reference to the world of the moving image at equal FSL coordinates."""
    return moving.affine @ np.linalg.inv(scaled_voxels(moving)) @ scaled_voxels(reference) @ reference.inverse_affine


def _coordinates(grid: Grid) -> Float[ndarray, "*space 3"]:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    scale = scaled_voxels(grid)
    return index @ scale[:3, :3].T + scale[:3, 3]


def is_absolute(vectors: ndarray, grid: Grid) -> bool:
    """Tell fields of positions from fields of displacements, which the file does not say.

    Positions vary across the image as coordinates do; taking the coordinates off a field of displacements makes it vary
    as much. The smaller sum of standard deviations tells.
    """
    spread = sum(float(vectors[..., k].std()) for k in range(3))
    coordinates = _coordinates(grid)
    return spread > sum(float((vectors[..., k] - coordinates[..., k]).std()) for k in range(3))
