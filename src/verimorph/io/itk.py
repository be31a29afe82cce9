"""NRRD, MetaImage and the 2-D picture formats through SimpleITK. The only place that knows their LPS world."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io.nifti import choose_volume
from verimorph.io.planes import embedded, volume_grid

VOLUMES = (".nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*VOLUMES, *PICTURES)

_PICTURE_TYPES = {".png": ("uint8", "uint16"), ".jpg": ("uint8",), ".jpeg": ("uint8",), ".bmp": ("uint8",)}
_TIFF_TYPES = ("uint8", "int8", "uint16", "int16", "float32")


def read(path: Path, *, volume: int | None = None) -> Image:
    """Read the header now and the voxels when first needed; their stored type is kept.

    Pictures have no place in the world: pixel (column, row) lies at LPS (column, row) times the spacing, thus at RAS
    (-column, -row), which is where ITK puts it. The spacing is 1 mm where the file has none.
    """
    import SimpleITK as sitk

    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable image ({reason(error)}); check or copy the file again") from None
    picture = path.name.lower().endswith(PICTURES)
    components = reader.GetNumberOfComponents()
    pixel = reader.GetPixelIDValue()
    size, affine = tuple(reader.GetSize()), world_matrix(reader)
    if path.name.lower().endswith(".bmp") and components == 3:
        return _grey_bitmap(path, reader)
    if components > 1 and (picture or (components in (3, 4) and pixel == sitk.sitkVectorUInt8)):
        raise InputError(_colour(path))
    where = str(path)
    stored = (*size, *(1,) * (3 - len(size)), components) if components > 1 else size
    shape, select = choose_volume(stored, volume, where)
    grid, plane = volume_grid(shape, affine, where)
    chosen = [item for item in select if item != slice(None)]

    def load() -> np.ndarray:
        import SimpleITK as sitk

        reader = _reader(path)
        if len(size) > 3:
            # Only the chosen volume is read: size 0 along an axis collapses it.
            reader.SetExtractSize([*size[:3], *[0 if n > 1 else 1 for n in size[3:]]])
            reader.SetExtractIndex([0, 0, 0, *[int(i) for i in chosen[: len(size) - 3]]])
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise InputError(f"{where}: is cut short or damaged ({reason(error)}); copy or download it again") from None
        voxels = sitk.GetArrayFromImage(image)
        if components > 1:
            voxels = voxels[..., chosen[-1]]
        return voxels.T.reshape(shape, order="F")[plane]

    return Image(grid, load, path.name, path)


def _grey_bitmap(path: Path, reader: Any) -> Image:
    """Read a BMP, whose grey values come as a palette that ITK expands to three equal channels."""
    import SimpleITK as sitk

    try:
        channels = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(f"{path}: is cut short or damaged ({reason(error)}); copy or download it again") from None
    if (channels != channels[..., :1]).any():
        raise InputError(_colour(path))
    voxels = channels[..., 0].T
    grid, _ = volume_grid(voxels.shape, world_matrix(reader), str(path))
    return Image(grid, lambda: voxels, path.name, path)


def _colour(path: Path) -> str:
    return (
        f"{path}: is a colour (RGB) image, one value a pixel is needed; convert it to grey first, "
        f"e.g. magick {path.name} -colorspace Gray grey.png"
    )


def from_simpleitk(image: Any, *, volume: int | None = None, name: str = "image") -> Image:
    """Make an :class:`Image` of a SimpleITK image; the voxels are copied when first needed."""
    import SimpleITK as sitk

    size, components = tuple(image.GetSize()), image.GetNumberOfComponentsPerPixel()
    if components > 1:
        raise InputError(f"{name}: has {components} values a voxel, one is needed; take one component or the magnitude")
    shape, select = choose_volume(size, volume, name)
    grid, plane = volume_grid(shape, world_matrix(image), name)
    return Image(grid, lambda: sitk.GetArrayFromImage(image).T[select][plane], name)


def to_simpleitk(image: Image) -> Any:
    """Return the image as a SimpleITK image of the same type in ITK's LPS world.

    Raises
    ------
    InputError
        If the grid is sheared, which ITK cannot hold.
    """
    import SimpleITK as sitk

    voxels = image.array.astype(np.uint8) if image.array.dtype == bool else image.array
    made = sitk.GetImageFromArray(voxels.astype(np.float32).T if voxels.dtype == np.float16 else voxels.T)
    origin, spacing, direction = itk_geometry(image.grid.affine, image.name)
    made.SetOrigin(origin)
    made.SetSpacing(spacing)
    made.SetDirection(direction)
    return made


def write(image: Image, path: Path) -> None:
    """Write in the format that the suffix names; MetaImage and NRRD are compressed, types are kept."""
    import SimpleITK as sitk

    suffix = path.suffix.lower()
    kind = "uint8" if image.dtype == bool else image.dtype.name
    if suffix in PICTURES:
        if image.grid.ndim != 2:
            raise InputError(
                f"{path.name}: {suffix} holds 2-D images, this one has 3 axes; write .nii.gz, .mha or .nrrd"
            )
        if kind not in _PICTURE_TYPES.get(suffix, _TIFF_TYPES):
            raise InputError(f"{path.name}: {suffix} cannot hold {kind} voxels; write .nii.gz, .mha or .nrrd (or .tif)")
    try:
        sitk.WriteImage(to_simpleitk(image), str(path), useCompression=suffix not in PICTURES, compressionLevel=1)
    except RuntimeError as error:
        raise OSError(f"{path.name}: {reason(error)}") from error


def world_matrix(source: Any) -> Float[ndarray, "4 4"]:
    """Voxel-to-world matrix, RAS+ mm, of anything with ITK's origin, spacing and direction (first three axes)."""
    spacing, origin = np.array(source.GetSpacing()), np.array(source.GetOrigin())
    d, all_axes = min(len(spacing), 3), len(spacing)
    direction = np.array(source.GetDirection()).reshape(all_axes, all_axes)[:d, :d]
    lps = np.eye(d + 1)
    lps[:d, :d], lps[:d, d] = direction * spacing[:d], origin[:d]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ embedded(lps)


def itk_geometry(affine: Float[ndarray, "h h"], name: str = "grid") -> tuple[list[float], list[float], list[float]]:
    """Return ITK's origin, spacing and direction (row by row, LPS) of a voxel-to-world matrix in RAS+ mm.

    Raises
    ------
    InputError
        If the axes are not perpendicular.
    """
    d = len(affine) - 1
    lps = np.diag([-1.0, -1.0, 1.0][:d]) @ affine[:d]
    spacing = np.linalg.norm(lps[:, :d], axis=0)
    direction = lps[:, :d] / spacing
    if np.abs(direction.T @ direction - np.eye(d)).max() > 1e-3:
        raise InputError(
            f"{name}: its axes are not perpendicular, which this format cannot hold; write .nii.gz instead"
        )
    # Headers store single precision; the nearest rotation is what ITK's own check for orthonormal directions needs.
    left, _, right = np.linalg.svd(direction)
    return lps[:, d].tolist(), spacing.tolist(), (left @ right).ravel().tolist()


def reason(error: BaseException) -> str:
    """Return the last meaningful line of ITK's many-line message, without the address of the object that says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "error" in line.lower() or "exception" in line.lower()), "")
    line = told.split("ERROR:")[-1].strip() or (lines[-1] if lines else type(error).__name__)
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", line)[:160]


def _reader(path: Path) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints to the terminal; what matters is raised
    reader = sitk.ImageFileReader()
    kind = reader.GetImageIOFromFileName(str(path))
    if not kind:
        raise InputError(f"{path}: not an image that can be read; give NIfTI, MGH, NRRD, MetaImage, DICOM, PNG or TIFF")
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    return reader
