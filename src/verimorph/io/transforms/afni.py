"""AFNI affine matrices (``.aff12.1D``), through nitransforms.

Twelve numbers row by row, base (fixed) to source (moving), in AFNI's "DICOM" frame (LPS). AFNI ignores the tilt of
oblique images when it computes a matrix; nitransforms puts it back, for which it needs the images.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import numpy as np

from verimorph.errors import InputError, MissingExtraError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.io.transforms.common import matrix_of, only_3d, read_text
from verimorph.transform import Affine, Transform

FORMAT = "AFNI"


def _library() -> ModuleType:
    try:
        from nitransforms.io import afni
    except ImportError:
        raise MissingExtraError("nitransforms", "formats", "reading and writing AFNI matrices") from None
    return afni


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Affine:
    """Read the first matrix of a file of one."""
    library = _library()
    text = read_text(path)
    rows = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    numbers = " ".join(rows).split()
    if len(numbers) != 12:
        raise InputError(f"{path}: holds {len(numbers)} numbers, an AFNI affine has 12 (one matrix a file)")
    try:
        found = library.AFNILinearTransform.from_string(" ".join(numbers))
    except (library.TransformFileError, ValueError):
        raise InputError(f"{path}: is not a readable AFNI matrix") from None
    if fixed is None or moving is None:
        warnings.warn(
            f"{path}: AFNI matrices ignore the tilt of oblique images; if yours are oblique, give both "
            "(--fixed and --moving IMAGE)",
            VerimorphWarning,
            stacklevel=2,
        )
    return Affine(found.to_ras(reference=_image(fixed), moving=_image(moving)))


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write one matrix with every digit of float64 (nitransforms' own text keeps six)."""
    only_3d(transform, FORMAT)
    matrix = matrix_of(transform, FORMAT)
    made = _library().AFNILinearTransform.from_ras(matrix, reference=_image(fixed), moving=_image(moving))
    numbers = np.asarray(made.structarr["parameters"])[:3].ravel()
    text = "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n" + " ".join(f"{v:.17g}" for v in numbers) + "\n"
    path.write_text(text, encoding="utf-8")


def _image(grid: Grid | None) -> object:
    """What nitransforms takes for an image: it reads nothing but its affine and shape."""
    if grid is None:
        return None
    import nibabel as nib

    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), grid.shape), grid.affine)
