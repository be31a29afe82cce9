"""Displacement fields as ITK and ANTs write them: 5-D NIfTI with vector intent, NRRD and MetaImage vector images.

A vector is what to add to a fixed point to get the moving point, in LPS millimetres, on the grid of the header. In
NIfTI the header matrix is RAS but the vectors are LPS; this module is the only place that knows it.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.itk import reason
from verimorph.io.transforms.common import dense_grid
from verimorph.io.transforms.itk import field_from_simpleitk, lps, vector_image
from verimorph.io.transforms.nifti_fields import load_vectors, save_vectors
from verimorph.transform import DisplacementField, Transform
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> DisplacementField:
    """Read a displacement field (``1Warp.nii.gz`` and relatives)."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        vectors, grid, header = load_vectors(path, "ITK")
        if header["intent_code"] != nib.nifti1.intent_codes.code["vector"]:
            raise InputError(
                f"{path}: has no vector intent (code 1007), so it is not an ITK displacement field; "
                "name its format (--from fsl, learn2reg or niftyreg)"
            )
        d = grid.ndim
        return DisplacementField(grid, displacement_from_vectors(vectors, lps(d) @ grid.affine[:d, :d]))
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable displacement field ({reason(error)})") from None
    return field_from_simpleitk(image, path)


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write the whole transform, linear parts included, as one displacement field in float32."""
    where = dense_grid(transform, fixed, grid, "ITK displacement field")
    displacement = transform.displacement_on(where)
    d = where.ndim
    if path.name.lower().endswith((".nii", ".nii.gz")):
        vectors = vectors_from_displacement(displacement, lps(d) @ where.affine[:d, :d])
        save_vectors(vectors, where, path, intent="vector")
        return
    import SimpleITK as sitk

    try:
        sitk.WriteImage(
            vector_image(displacement, where, np.float32), str(path), useCompression=True, compressionLevel=1
        )
    except RuntimeError as error:
        raise OSError(f"{path.name}: {reason(error)}") from error
