"""Images from files and to files: which reader takes which file, and what counts as an image."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verimorph.errors import InputError, ResourceError
from verimorph.image import Image
from verimorph.io import dicom, itk, nifti
from verimorph.io.planes import embedded, volume_grid
from verimorph.io.safe import disk_full_message, free_space, replacing

WRITABLE = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh", *itk.SUFFIXES)


def read_image(path: str | os.PathLike, *, volume: int | None = None, series: str | None = None) -> Image:
    """Read an image file or DICOM folder: its header at once, its voxels when first needed.

    NIfTI-1 and -2 (``.nii``, ``.nii.gz``, pairs), MGH and MGZ, NRRD, MetaImage, DICOM, PNG, TIFF, JPEG, BMP. Voxels
    keep their stored type; a header that scales them gives float32. A volume of one slice is a 2-D image
    (:func:`verimorph.io.planes.volume_grid` says where it then lies).

    Parameters
    ----------
    path
        The file, or the folder of a DICOM series; ``folder::UID`` names one series of several.
    volume
        Which volume of a 4-D image, counted from 0.
    series
        SeriesInstanceUID of the DICOM series to read, or its unique last characters.

    Returns
    -------
    Image
        On a grid in RAS+ mm, whatever frame the format uses.

    Raises
    ------
    InputError
        If the file is missing, damaged, no image, of colour, of several volumes with none chosen, or has no usable
        place in the world (no or a singular matrix, zero or negative spacing).

    Warns
    -----
    VerimorphWarning
        If the two matrices of a NIfTI header disagree; the sform is used.
    """
    text = os.fspath(path)
    if "::" in text and not Path(text).exists():
        text, _, series = text.rpartition("::")
    file = Path(text)
    if file.is_dir():
        return dicom.read(file, volume=volume, series=series)
    if not file.exists():
        raise InputError(f"{file}: no such file; check the path (from {Path.cwd()})" if not file.is_absolute() else
                         f"{file}: no such file; check the path")  # fmt: skip
    if series is not None:
        raise InputError(f"{file}: is a file, a series can be chosen only from a DICOM folder; leave out ::{series}")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: is empty (0 bytes); copy or download it again")
    if file.name.lower().endswith(nifti.SUFFIXES):
        return nifti.read(file, volume=volume)
    return itk.read(file, volume=volume)


def files_of(path: str | os.PathLike) -> list[Path]:
    """The files that an image is read from: of a folder (DICOM) all below it, of a header also those of its voxels."""
    place = Path(path)
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.is_file())
    beside: list[str] = []
    if place.suffix.lower() in (".mhd", ".nhdr"):  # a line of the header names the file, or there is a list of lines
        lines = place.read_bytes().decode("latin-1").splitlines()
        beside = [re.sub(r"(?i)^(ElementDataFile *=|data ?file *:)", "", line).strip() for line in lines]
    else:
        beside = [file.name for file in nifti.pair(place).values() if file != place]
    # os.path says no where a Path raises: of a header with its voxels in it, most lines can be no names.
    return [place, *(place.parent / name for name in beside if os.path.isfile(place.parent / name))]


def content_hash(*paths: str | os.PathLike, new: Callable[[], Any] = hashlib.sha256) -> str:
    """Hexadecimal hash of what images hold: all bytes of all their files, one after the other."""
    found = new()
    for file in (file for path in paths for file in files_of(path)):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: found)
    return found.hexdigest()


def write_images(images: Mapping[str, Image], folder: str | os.PathLike) -> None:
    """Write several images beside each other, names with suffixes to images; compressing takes most of the time.

    As many at a time as torch has threads. Raises what :func:`write_image` does; each image is written whole or not at
    all, and those that could be written stay.
    """
    place = Path(folder)
    if not images:
        return
    with ThreadPoolExecutor(min(len(images), torch.get_num_threads())) as pool:
        # All results are asked for: what one could not write is raised.
        list(pool.map(lambda name: write_image(images[name], place / name), images))


def write_image(image: Image, path: str | os.PathLike) -> Path:
    """Write an image in the format that the suffix names, whole or not at all; its voxels keep their type.

    NIfTI files get the grid as sform and qform. Types a format cannot hold are refused, except bool (written as uint8),
    float16 (as float32) and integers in MGH (the narrowest type that holds all values).

    Parameters
    ----------
    image
        What to write.
    path
        ``.nii.gz``, ``.nii``, ``.hdr``/``.img``, ``.mgz``, ``.mgh``, ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``; 2-D also
        ``.png``, ``.tif``, ``.jpg``, ``.bmp`` (which hold no place in the world).

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        If the suffix is unknown, the format cannot hold the image, or the place cannot be written to.
    ResourceError
        If the disk is full.
    """
    target = Path(path)
    suffix = next((known for known in WRITABLE if target.name.lower().endswith(known)), None)
    if suffix is None:
        raise InputError(f"{target}: unknown image suffix; use one of {', '.join(WRITABLE)}")
    image.array  # noqa: B018 - a damaged source must show before anything is begun
    with replacing(target) as beside:
        try:
            (nifti if suffix in nifti.SUFFIXES else itk).write(image, beside)
        except InputError:
            raise
        except OSError as error:
            # ITK does not say why a write failed: a disk with no room left is the common reason.
            if error.errno is None and free_space(target) < 4096 + image.array.nbytes // 100:
                raise ResourceError(disk_full_message(target)) from error
            if error.errno is None:
                raise InputError(f"{target}: cannot be written ({error}); choose another format or output") from error
            raise
    return target


def as_image(thing: Any, *, volume: int | None = None, name: str | None = None) -> Image:
    """Make an :class:`~verimorph.image.Image` of whatever holds one.

    Parameters
    ----------
    thing
        A path, an ``Image``, a nibabel or SimpleITK image, ``(array, affine)`` with a voxel-to-world matrix in RAS+ mm
        (3x3 in 2-D, 4x4 in 3-D) or a :class:`~verimorph.grid.Grid`, or a bare array or tensor, which then has unit
        spacing and origin 0. Tensors may carry leading batch and channel axes of size 1.
    volume
        Which volume of a 4-D image, from 0.
    name
        What messages call it.

    Raises
    ------
    InputError
        If it is none of these, or cannot be used (see :func:`read_image`).

    Examples
    --------
    >>> as_image(np.zeros((4, 5, 6))).grid.spacing
    array([1., 1., 1.])
    """
    if isinstance(thing, Image):
        return thing
    if isinstance(thing, str | os.PathLike):
        return read_image(thing, volume=volume)
    if type(thing).__module__.partition(".")[0] == "SimpleITK":
        return itk.from_simpleitk(thing, volume=volume, name=name or "SimpleITK image")
    if hasattr(thing, "dataobj") and hasattr(thing, "affine"):
        file = thing.get_filename()
        return nifti.from_nibabel(thing, volume=volume, name=name or (Path(file).name if file else "nibabel image"))
    if isinstance(thing, tuple) and len(thing) == 2:
        return _from_array(thing[0], thing[1], name or "array")
    if isinstance(thing, np.ndarray | Tensor):
        return _from_array(thing, getattr(thing, "affine", None), name or "array")
    raise InputError(
        f"{name or 'image'}: a {type(thing).__name__} is not an image; give a path, a nibabel or SimpleITK image, "
        "or (array, affine)"
    )


def _from_array(array: Any, where: Any, name: str) -> Image:
    voxels = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    while voxels.ndim > 3 and voxels.shape[0] == 1:
        voxels = voxels[0]
    if voxels.dtype.kind not in "buif":
        raise InputError(f"{name}: holds {voxels.dtype} values, an image of real numbers is needed")
    if isinstance(where, Tensor):
        where = where.detach().cpu().numpy()
    if where is None or not isinstance(where, list | np.ndarray):
        return Image.from_array(voxels, where, name=name)
    affine = np.asarray(where, dtype=np.float64)
    if affine.shape == (4, 4) and voxels.ndim in (2, 3):
        grid, plane = volume_grid(voxels.shape, embedded(affine), name)
        return Image.from_array(voxels[plane], grid, name=name)
    return Image.from_array(voxels, affine, name=name)
