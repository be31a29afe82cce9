"""NIfTI-1 and -2 (single files and pairs) and FreeSurfer MGH/MGZ, through nibabel. Their world is RAS+ already."""

from __future__ import annotations

import gzip
import os
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.filename_parser import types_filenames
from nibabel.spatialimages import HeaderDataError

from verimorph.errors import InputError, VerimorphWarning
from verimorph.image import Image
from verimorph.io.planes import embedded, volume_grid

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgh", ".mgz")

_PAIR = re.compile(r"(?i)(.+)\.(hdr|img)(\.gz)?")
_SOUGHT = ((("header", ".hdr"), ("image", ".img")), (".gz", ".bz2"))
_DAMAGED = (EOFError, zlib.error, OSError, ValueError, ImageFileError)
_MGH_TYPES = (np.uint8, np.int16, np.int32, np.float32)


def read(path: Path, *, volume: int | None = None) -> Image:
    """Read the header now and the voxels when first needed.

    Voxels keep their stored type unless the header scales them (``scl_slope``, ``scl_inter``), which gives float32.
    The voxel-to-world matrix is the sform where its code is above 0, else the qform.
    """
    try:
        found = _load(path)
    except FileNotFoundError as error:  # of a pair one file can be missing
        raise InputError(f"{path}: its other file {error.filename} is missing; keep pairs together") from None
    except (HeaderDataError, *_DAMAGED) as error:
        raise InputError(f"{path}: not a readable image ({_short(error)}); check or copy the file again") from None
    return from_nibabel(found, volume=volume, name=path.name, where=str(path), path=path)


def pair(path: Path) -> dict[str, Path]:
    """Header (``hdr``) and voxels (``img``) where a file is one of two, either compressed, spelled in any case.

    Of several other files the one spelled most as this is, which is what nibabel looks for.
    """
    found = _PAIR.fullmatch(path.name)
    if found is None:
        return {}
    stem, kind, packed = found.groups()
    there = [
        (bool(other[3]) != bool(packed), other[2].islower() != kind.islower(), other[0])
        for other in map(_PAIR.fullmatch, os.listdir(path.parent))
        if other is not None and other[1] == stem and other[2].lower() != kind.lower()
    ]
    if not there:
        return {}
    other = path.with_name(min(there)[2])
    return {"hdr": path, "img": other} if kind.lower() == "hdr" else {"hdr": other, "img": path}


def _load(path: Path) -> Any:
    """Load a file by nibabel, and a pair of two spellings (one file alone compressed), which nibabel does not find."""
    found = pair(path)
    if found and {file.name for file in found.values()} != set(types_filenames(path.name, *_SOUGHT).values()):
        kinds = (kind for kind in nib.imageclasses.all_image_classes if kind.path_maybe_image(found["hdr"])[0])
        matrix = path.with_name(_PAIR.sub(r"\1.mat", path.name))
        parts = {"header": found["hdr"], "image": found["img"], "mat": matrix}
        files = {part: nib.FileHolder(str(file)) for part, file in parts.items()}
        return next(kinds, nib.AnalyzeImage).from_file_map(files, mmap=False)  # type: ignore[call-arg]
    return nib.load(path, **({} if path.name.lower().endswith((".mgh", ".mgz")) else {"mmap": False}))


def from_nibabel(
    image: Any, *, volume: int | None = None, name: str = "image", where: str | None = None, path: Path | None = None
) -> Image:
    """Make an :class:`Image` of a nibabel image, whether it has a file or not; voxels are read when first needed."""
    where = where or name
    affine = _affine(image, where)
    stored = np.dtype(image.get_data_dtype())
    if stored.names:
        raise InputError(
            f"{where}: is a colour (RGB) image, one value a voxel is needed; take one channel or the grey value first, "
            "e.g. mrconvert or nibabel: image.dataobj[:]['R']"
        )
    if stored.kind not in "buif":
        raise InputError(f"{where}: holds {stored} voxels; convert them to real numbers first (magnitude or phase)")
    shape, select = choose_volume(tuple(int(n) for n in image.shape), volume, where)
    grid, plane = volume_grid(shape, affine, where)
    load, dtype = _loader(image, stored, select, plane, where)
    return Image(grid, load, name, path, stored_dtype=dtype)


def write(image: Image, path: Path) -> None:
    """Write voxels in their type and the grid as both sform and qform (code 1), or as the MGH direction cosines.

    A sheared grid, which a qform cannot hold, is written as sform alone. ``.gz`` is compressed at level 1: quicker
    than the default and a few per cent larger.
    """
    voxels, affine = image.array, embedded(image.grid.affine)
    suffix = path.name.lower()
    if suffix.endswith((".mgh", ".mgz")):
        nib.save(nib.MGHImage(_fit_mgh(voxels, path), affine), path)  # type: ignore[reportArgumentType]
        return
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    voxels = voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels
    pair = ".hdr" in suffix or ".img" in suffix
    kinds = (nib.Nifti1Pair, nib.Nifti2Pair) if pair else (nib.Nifti1Image, nib.Nifti2Image)
    made = kinds[max(voxels.shape) > 32767](voxels, affine, dtype=voxels.dtype)
    made.header.set_xyzt_units("mm")
    made.set_sform(affine, code=1)
    made.set_qform(affine, code=1)
    if np.abs(made.get_qform() - affine).max() > 1e-3 * max(1.0, np.abs(affine).max()):
        made.set_qform(None, code=0)
    nib.save(made, path)


def several_volumes(where: str, count: int) -> str:
    """The line that asks for one volume of a series."""
    return (
        f"{where}: has {count} volumes; choose one with --volume 0 to {count - 1} (volume= in Python); "
        "lists and data sets need it as a file of its own"
    )


def choose_volume(shape: tuple[int, ...], volume: int | None, where: str) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Return the spatial shape and the index into a stored array that picks one volume of a series.

    Axes of size 1 beyond the third are dropped. ``volume`` counts from 0; it may be 0 for an image of one volume.
    """
    spatial, rest = shape[:3], shape[3:]
    many = [n for n in rest if n > 1]
    if not many:
        if volume not in (None, 0):
            raise InputError(f"{where}: has one volume, volume {volume} was asked for; leave out --volume")
        return spatial, (slice(None),) * len(spatial) + (0,) * len(rest)
    if len(rest) == 2 and rest[0] == 1:
        raise InputError(
            f"{where}: holds vectors of {rest[1]} components (a displacement field?), an image is needed; "
            "give a field as a transform"
        )
    if len(many) > 1:
        raise InputError(f"{where}: has {len(shape)} axes (shape {shape}); split it into images of one volume first")
    count = many[0]
    if volume is None:
        raise InputError(several_volumes(where, count))
    if not -count <= volume < count:
        raise InputError(f"{where}: has {count} volumes, volume {volume} was asked for; choose 0 to {count - 1}")
    return spatial, (slice(None),) * len(spatial) + tuple(volume % count if n > 1 else 0 for n in rest)


def _loader(
    image: Any, stored: np.dtype, select: tuple[Any, ...], plane: tuple[Any, ...], where: str
) -> tuple[Callable[[], np.ndarray], np.dtype]:
    """Return what loads the voxels, and the type that they will have."""
    proxy, file = image.dataobj, None
    slope, inter = getattr(proxy, "slope", 1.0), getattr(proxy, "inter", 0.0)
    scaled = (slope, inter) != (1.0, 0.0)
    if nib.is_proxy(proxy):
        # A proxy without scaling: its slices come in the stored type, and only the chosen volume is read.
        proxy = ArrayProxy(proxy.file_like, (proxy.shape, proxy.dtype, proxy.offset), mmap=False)
        file = proxy.file_like if isinstance(proxy.file_like, str | os.PathLike) else None
    dtype = np.dtype(np.float32) if scaled else _native(stored)
    volume_only = any(n > 1 for n in image.shape[3:])

    def load() -> np.ndarray:
        try:
            if volume_only:
                voxels = np.asanyarray(proxy[select])
            elif file is not None and str(file).lower().endswith((".gz", ".mgz")):
                voxels = _read_compressed(proxy, file)[select]
            else:
                voxels = np.asanyarray(proxy)[select]
        except FileNotFoundError as error:
            raise InputError(
                f"{where}: the file of its voxels, {error.filename}, is missing; keep pairs together"
            ) from None
        except _DAMAGED as error:
            raise InputError(f"{where}: is cut short or damaged ({_short(error)}); copy or download it again") from None
        voxels = voxels[plane].astype(_native(voxels.dtype), copy=False)
        if scaled:
            wide = np.float64 if voxels.dtype.itemsize > 2 else np.float32  # integers over 2^24 need the wider product
            voxels = (voxels.astype(wide) * wide(slope) + wide(inter)).astype(np.float32)
        return voxels

    return load, dtype


def _read_compressed(proxy: Any, file: str | os.PathLike) -> np.ndarray:
    """Read a whole gzip file; unlike a read of just the voxels this comes to its check sum and finds damage."""
    with gzip.open(file, "rb") as opened:
        content = bytearray(opened.read())  # writable, which torch asks of arrays it shares
    count = int(np.prod(proxy.shape))
    return np.frombuffer(content, proxy.dtype, count, proxy.offset).reshape(proxy.shape, order="F")


def _affine(image: Any, where: str) -> np.ndarray:
    """Return the voxel-to-world matrix in RAS+ mm, after checking what the header says about it."""
    header = image.header
    if image.affine is None:
        raise InputError(f"{where}: has no voxel-to-world affine; give it one (nibabel: set_sform(affine, 1))")
    if not isinstance(header, nib.Nifti1Header):
        return np.asarray(image.affine, dtype=np.float64)
    _check_spacing(image, where)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    from_file = image.get_filename() is not None
    if from_file and not (sform or qform):
        raise InputError(
            f"{where}: its header has no voxel-to-world affine (sform and qform codes are 0), so left and right are "
            "unknown; set one, e.g. in nibabel: image.set_sform(image.affine, 1)"
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if sform and qform:
        _compare_forms(image, where)
    # nibabel hands the numbers through; files whose unit is metre or micrometre are read in mm, as ITK does.
    unit = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine if unit == 1.0 else np.diag([unit, unit, unit, 1.0]) @ affine


def _check_spacing(image: Any, where: str) -> None:
    """Refuse pixdim entries that nibabel would mend in silence: it makes negative ones positive."""
    header = image.header
    holder = image.file_map.get("header", image.file_map.get("image"))
    if image.get_filename() is not None and holder is not None:
        with holder.get_prepare_fileobj("rb") as opened:
            header = type(header).from_fileobj(opened, check=False)
    for axis, (n, step) in enumerate(zip(header["dim"][1:4], header["pixdim"][1:4], strict=True)):
        if axis < int(header["dim"][0]) and n > 1 and not step > 0:
            raise InputError(f"{where}: the header gives a voxel size of {step:g} mm along axis {axis}; repair pixdim")


def _compare_forms(image: Any, where: str) -> None:
    """Warn where sform and qform place a corner more than a tenth of a voxel apart."""
    shape = np.array((*image.shape[:3], 1, 1, 1)[:3])
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    sform, qform = image.get_sform(), image.get_qform()
    apart = apply_affine(sform, corners) - apply_affine(qform, corners)
    largest = float(np.linalg.norm(apart, axis=1).max())
    voxel = np.linalg.norm(qform[:3, :3], axis=0).min()
    if not largest <= 0.1 * voxel:
        warnings.warn(
            f"{where}: sform and qform disagree by up to {largest:.3g} mm; the sform is used "
            "(tools built on ITK may use the qform); make them equal if that is wrong",
            VerimorphWarning,
            stacklevel=2,
        )


def _fit_mgh(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Return the voxels in the narrowest of MGH's four types that holds all their values."""
    if voxels.dtype in _MGH_TYPES:
        return voxels
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32)
    low, high = (int(voxels.min()), int(voxels.max())) if voxels.size else (0, 0)
    for kind in (np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return voxels.astype(kind)
    raise InputError(f"{path}: MGH holds integers of at most 32 bits, the image reaches {high}; write .nii.gz instead")


def _native(dtype: np.dtype) -> np.dtype:
    return np.dtype(dtype).newbyteorder("=")


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__
