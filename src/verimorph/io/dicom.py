"""A folder that holds a DICOM series, through SimpleITK's GDCM. The only place that knows DICOM's LPS patient frame."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from verimorph.errors import InputError, VerimorphWarning
from verimorph.image import Image
from verimorph.io.itk import reason
from verimorph.io.nifti import several_volumes
from verimorph.io.planes import volume_grid

_TAGS = {"position": "0020|0032", "orientation": "0020|0037", "spacing": "0028|0030", "samples": "0028|0002"}


def read(folder: Path, *, volume: int | None = None, series: str | None = None) -> Image:
    """Read the headers of a DICOM series now and its voxels when first needed.

    Slices are sorted along their normal by ImagePositionPatient; values are rescaled (Hounsfield units for CT). The
    matrix is built from ImageOrientationPatient, PixelSpacing and the positions of the first and last slice.

    Parameters
    ----------
    folder
        A folder with the files of one series, or of several with ``series`` naming one.
    volume
        Which volume, from 0, where a series has several slices at each position (dynamic, diffusion).
    series
        SeriesInstanceUID, or the last characters of it that are unique.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    chosen = _choose_series(folder, series)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), chosen)
    where = f"{folder} (series {chosen})"
    headers = [_header(file, where) for file in files]
    files, affine, shape = _stack(files, headers, volume, where)
    grid, plane = volume_grid(shape, affine, where)

    def load() -> np.ndarray:
        try:
            voxels = sitk.GetArrayFromImage(sitk.ReadImage(files)).T
        except RuntimeError as error:
            raise InputError(f"{where}: is cut short or damaged ({reason(error)}); export it again") from None
        voxels = voxels.astype(np.float32) if voxels.dtype == np.float64 else voxels
        return voxels.reshape(shape, order="F")[plane]

    return Image(grid, load, folder.name, folder)


def _choose_series(folder: Path, series: str | None) -> str:
    """Return the UID of the one series in the folder, or of the one asked for."""
    import SimpleITK as sitk

    known = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not known:
        raise InputError(
            f"{folder}: a folder without DICOM files; give an image file or the folder of one DICOM series"
        )
    if series is None and len(known) == 1:
        return known[0]
    matches = [uid for uid in known if series and uid.endswith(series)]
    if len(matches) == 1:
        return matches[0]
    listed = "; ".join(_describe(folder, uid) for uid in known)
    asked = "" if series is None else f", none or several end in {series!r}"
    raise InputError(f"{folder}: holds {len(known)} DICOM series{asked} [{listed}]; choose one as {folder}::UID")


def _describe(folder: Path, uid: str) -> str:
    import SimpleITK as sitk

    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
    reader = sitk.ImageFileReader()
    reader.SetFileName(files[0])
    reader.ReadImageInformation()
    words = [reader.GetMetaData(tag).strip() for tag in ("0008|0060", "0008|103e") if reader.HasMetaDataKey(tag)]
    return f"{uid}: {' '.join([*words, f'{len(files)} files'])}"


def _header(file: str, where: str) -> dict[str, np.ndarray | tuple[int, ...]]:
    """Read position, orientation, pixel spacing and size of one file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{where}: {Path(file).name} cannot be read ({reason(error)}); export it again") from None
    found: dict[str, np.ndarray | tuple[int, ...]] = {"size": tuple(reader.GetSize())}
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{where}: {Path(file).name} is a colour image; choose a series of grey values")
    for name in ("position", "orientation", "spacing"):
        tag = _TAGS[name]
        if not reader.HasMetaDataKey(tag):
            # Enhanced (multi-frame) files keep these in nested groups, which ITK has already read.
            direction = np.array(reader.GetDirection()).reshape(len(reader.GetSize()), -1)
            if len(direction) != 3 or reader.GetSize()[2] == 1:
                raise InputError(
                    f"{where}: {Path(file).name} has no {name} tag ({tag}); it cannot be placed in the world"
                )
            spacing = np.array(reader.GetSpacing())
            found |= {"position": np.array(reader.GetOrigin()), "orientation": direction[:, :2].T.ravel()}
            found |= {"spacing": spacing[1::-1], "step": direction[:, 2] * spacing[2]}
            return found
        found[name] = np.array([float(part) for part in reader.GetMetaData(tag).split("\\")])
    return found


def _stack(
    files: tuple[str, ...], headers: list[dict], volume: int | None, where: str
) -> tuple[list[str], np.ndarray, tuple[int, ...]]:
    """Sort the slices, pick one volume, check that they are evenly spaced; return files, matrix (RAS mm) and shape."""
    first = headers[0]
    along_row, along_column = first["orientation"][:3], first["orientation"][3:]
    normal = np.cross(along_row, along_column)
    for file, header in zip(files, headers, strict=True):
        if header["size"] != first["size"] or np.abs(header["orientation"] - first["orientation"]).max() > 1e-3:
            raise InputError(
                f"{where}: {Path(file).name} has another size or orientation than the first slice; a localiser?"
            )
    places: dict[float, list[int]] = defaultdict(list)
    for number, header in enumerate(headers):
        places[round(float(header["position"] @ normal), 2)].append(number)
    count = len(next(iter(places.values())))
    if any(len(numbers) != count for numbers in places.values()):
        raise InputError(
            f"{where}: slices are missing or doubled (positions hold different numbers of files); export it again"
        )
    if count > 1 and volume is None:
        raise InputError(several_volumes(where, count))
    if volume is not None and not -count <= volume < count:
        raise InputError(f"{where}: has {count} volumes, volume {volume} was asked for; choose 0 to {count - 1}")
    order = [places[place][volume or 0] for place in sorted(places)]
    positions = np.stack([headers[number]["position"] for number in order])
    if len(order) == 1:
        step = first.get("step", normal)
    else:
        step = (positions[-1] - positions[0]) / (len(order) - 1)
        gaps = np.diff(positions @ normal)
        if gaps.max() - gaps.min() > 0.05 * np.median(gaps):
            raise InputError(
                f"{where}: slices are not evenly spaced (gaps of {gaps.min():.3g} to {gaps.max():.3g} mm), some may be "
                "missing; export the series again or resample it to one spacing"
            )
        if np.linalg.norm(np.cross(step, normal)) > 0.01 * np.linalg.norm(step):
            warnings.warn(f"{where}: slices are tilted (gantry); the grid is sheared", VerimorphWarning, stacklevel=2)
    rows, columns = first["spacing"][:2]  # PixelSpacing: distance between rows, then between columns
    lps = np.eye(4)
    lps[:3, :4] = np.stack([along_row * columns, along_column * rows, step, positions[0]], axis=1)
    width, height, *rest = first["size"]
    depth = len(order) if len(order) > 1 else (*rest, 1)[0]
    return [files[number] for number in order], np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, (width, height, depth)
