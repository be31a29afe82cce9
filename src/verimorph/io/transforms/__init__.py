"""Transforms from files and to files: which module reads which file.

Every format has one module, the only place that knows its frame and direction; what comes out maps fixed to moving
world points, RAS+ mm, whatever the file says. What a file does not say is asked for, never guessed.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from verimorph.errors import InputError, OptionError, nearest

if TYPE_CHECKING:
    from verimorph.grid import Grid
    from verimorph.image import Image
    from verimorph.transform import Transform

__all__ = ["FORMATS", "Format", "detect_format", "read_transform", "write_transform"]


class Format(NamedTuple):
    """One row of the table of formats. ``module`` has ``read`` and ``write`` and is imported when needed."""

    module: str
    suffixes: tuple[str, ...]
    """Suffixes it can be written with; the first format of the table that has a suffix is the default for it."""
    holds: str
    frame: str
    """Frame of the numbers in the file."""
    needs: str = ""
    """Images it cannot be interpreted without."""


NIFTI = (".nii.gz", ".nii")

FORMATS: dict[str, Format] = {
    "itk": Format(
        "itk", (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm"), "everything; .mat one matrix (ANTs)", "LPS mm"
    ),
    "itk-field": Format("itk_field", (*NIFTI, ".nrrd", ".mha", ".mhd"), "one displacement field (ANTs Warp)", "LPS mm"),
    "learn2reg": Format(
        "learn2reg", (".npz", ".npy", *NIFTI), "one displacement field", "voxels of both images", "fixed and moving"
    ),
    "niftyreg": Format("niftyreg", (".txt", *NIFTI), "one matrix; one displacement field or spline", "RAS mm"),
    "elastix": Format("elastix", (".txt",), "one matrix, spline or displacement field", "LPS mm"),
    "fsl": Format("fsl", (".mat", ".txt", *NIFTI), "FLIRT matrix; FNIRT field", "FSL mm", "fixed and moving"),
    "freesurfer": Format("freesurfer", (".lta",), "one matrix", "RAS mm, moving to fixed"),
    "afni": Format("afni", (".1d",), "one matrix", "LPS mm", "fixed and moving, if oblique"),
    "x5": Format("x5", (".x5",), "everything, as matrices and displacement fields (draft)", "RAS mm"),
}
"""Every format by name. Detection: by suffix, and by content where a suffix is shared (:func:`detect_format`)."""


def read_transform(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    fixed: Grid | Image | str | os.PathLike | None = None,
    moving: Grid | Image | str | os.PathLike | None = None,
) -> Transform:
    """Read a transform file.

    Parameters
    ----------
    path
        The file.
    format
        A name from :data:`FORMATS`; default: found from suffix and content.
    fixed, moving
        The images (or their grids, or paths) the transform belongs to; needed by formats that say so in the table.

    Returns
    -------
    Transform
        Fixed to moving, world RAS+ mm.

    Raises
    ------
    InputError
        If the file is missing, damaged, not a transform, or needs an image that was not given.
    OptionError
        If the format is unknown.
    MissingExtraError
        If the format needs an optional package.
    """
    from verimorph.io.transforms.common import as_grid

    file = Path(path)
    if not file.exists():
        raise InputError(f"{file}: no such file; check the path of the transform")
    if file.is_dir():
        raise InputError(f"{file}: is a folder, a transform file is needed")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: is empty (0 bytes); copy or write it again")
    module = _module(format or detect_format(file))
    return module.read(file, fixed=as_grid(fixed, "fixed image"), moving=as_grid(moving, "moving image"))


def write_transform(
    transform: Transform,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    fixed: Grid | Image | str | os.PathLike | None = None,
    moving: Grid | Image | str | os.PathLike | None = None,
    grid: Grid | Image | str | os.PathLike | None = None,
) -> Path:
    """Write a transform, whole or not at all.

    Parameters
    ----------
    transform
        Any transform. What a format cannot hold is refused; a format of dense fields gets the whole transform sampled.
    path
        Where to. The suffix chooses the format unless ``format`` does.
    format
        A name from :data:`FORMATS`.
    fixed, moving
        The images it belongs to, for formats that need them.
    grid
        Grid of a dense field; default that of the first field in the transform, or that of ``fixed``.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        If the format cannot hold the transform, or needs an image that was not given.
    OptionError
        If the format or suffix is unknown.
    """
    from verimorph.io.safe import replacing
    from verimorph.io.transforms.common import as_grid

    target = Path(path)
    name = format or _format_for_writing(target)
    module = _module(name)
    if suffix_of(target) not in FORMATS[name].suffixes:
        raise OptionError(f"{target}: the {name} format is written with the suffix {', '.join(FORMATS[name].suffixes)}")
    grids = {
        "fixed": as_grid(fixed, "fixed image"),
        "moving": as_grid(moving, "moving image"),
        "grid": as_grid(grid, "grid image"),
    }
    with replacing(target) as beside:
        module.write(transform, beside, **grids)
    return target


def suffix_of(path: Path) -> str:
    """Suffix in lower case, ``.nii.gz`` taken whole."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def detect_format(path: Path) -> str:
    """Name the format of a file from its suffix, and from its first bytes or its header where that is not enough.

    Raises
    ------
    InputError
        If it cannot be told: a bare 4x4 matrix may be of FSL or NiftyReg, a field without intent of FSL or Learn2Reg,
        and each means another map.
    """
    suffix = suffix_of(path)
    holders = [name for name, row in FORMATS.items() if suffix in row.suffixes]
    if not holders:
        known = ", ".join(sorted({suffix for row in FORMATS.values() for suffix in row.suffixes}))
        raise InputError(f"{path}: unknown transform suffix '{suffix}'; name the format (--from) or use one of {known}")
    if len(holders) == 1:
        return holders[0]
    if suffix in NIFTI:
        return _nifti_format(path)
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"#Insight Transform File"):
        return "itk"
    if b"\0" in start and suffix == ".mat":
        return "itk"
    if b"(Transform " in start or b"(TransformParameters" in start:
        return "elastix"
    if b"\0" not in start and len(start.split()) == 16:
        raise InputError(
            f"{path}: is a bare 4x4 matrix, which FSL and NiftyReg read differently; name its format "
            "(--from fsl or --from niftyreg; greedy writes the same as niftyreg)"
        )
    raise InputError(f"{path}: not a transform file that can be recognised; name its format (--from)")


def _nifti_format(path: Path) -> str:
    from verimorph.io.transforms.nifti_fields import load_header

    image = load_header(path)
    code, name = int(image.header["intent_code"]), image.header.get_intent()[2]
    if name == "NREG_TRANS":
        return "niftyreg"
    if 2006 <= code <= 2009:
        return "fsl"
    if code == 1007 and len(image.shape) == 5:
        return "itk-field"
    if len(image.shape) in (4, 5) and image.shape[-1] in (2, 3):
        raise InputError(
            f"{path}: a field whose header does not say what its vectors mean; name its format "
            "(--from fsl, learn2reg or itk-field)"
        )
    raise InputError(f"{path}: is an image of shape {image.shape}, not a displacement field; to resample it, use -i")


def _format_for_writing(path: Path) -> str:
    suffix = suffix_of(path)
    for name, row in FORMATS.items():
        if suffix in row.suffixes:
            return name
    known = {suffix for row in FORMATS.values() for suffix in row.suffixes}
    raise OptionError(f"{path}: unknown transform suffix '{suffix}'{nearest(suffix, known)}")


def _module(format: str) -> Any:
    if format not in FORMATS:
        raise OptionError(f"unknown transform format '{format}'{nearest(format, FORMATS)}")
    return import_module(f"verimorph.io.transforms.{FORMATS[format].module}")
