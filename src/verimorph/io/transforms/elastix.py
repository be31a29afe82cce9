"""elastix ``TransformParameters.txt``: linear transforms, B-splines, deformation fields, and chains of them.

LPS millimetres, fixed to moving, as in ITK, whose classes do the arithmetic. The file named as initial transform acts
first on a point (``HowToCombineTransforms "Compose"``). Direction matrices are written column by column.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.errors import InputError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.io.transforms import itk, itk_field
from verimorph.io.transforms.common import dense_grid, read_text
from verimorph.transform import Affine, Spline, Transform, chain

_ENTRY = re.compile(r'^\s*\(\s*(\w+)((?:\s+(?:"[^"]*"|[^\s"()]+))*)\s*\)')
_VALUE = re.compile(r'"([^"]*)"|([^\s"]+)')
_NONE = ("", "NoInitialTransform")
_SPLINES = ("BSplineTransform", "RecursiveBSplineTransform")


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read a file and the chain of initial transforms it names (looked for beside it if not where it says)."""
    return _read(path, [])


def _read(path: Path, seen: list[Path]) -> Transform:
    if path.resolve() in seen:
        raise InputError(f"{path}: its initial transforms go round in a circle")
    settings = parse(read_text(path))
    if "Transform" not in settings:
        raise InputError(f"{path}: is not an elastix transform parameter file (no entry (Transform ...))")
    own = _single(settings, path)
    initial = settings.get(
        "InitialTransformParameterFileName", settings.get("InitialTransformParametersFileName", [""])
    )
    if initial[0] in _NONE:
        return own
    how = settings.get("HowToCombineTransforms", ["Compose"])[0]
    if how != "Compose":
        raise InputError(f"{path}: combines transforms by '{how}', only 'Compose' is supported")
    return chain([_read(_beside(path, initial[0]), [*seen, path.resolve()]), own])


def parse(text: str) -> dict[str, list[str]]:
    """Read ``(Key value value ...)`` lines; quotes are taken off, ``//`` begins a comment."""
    out: dict[str, list[str]] = {}
    for line in text.splitlines():
        entry = _ENTRY.match(line)
        if entry and not line.lstrip().startswith("//"):
            out[entry[1]] = [quoted or bare for quoted, bare in _VALUE.findall(entry[2])]
    return out


def _beside(path: Path, name: str) -> Path:
    for candidate in (Path(name), path.parent / name, path.parent / re.split(r"[\\/]", name)[-1]):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: the file it refers to, {name}, is neither there nor beside it")


def _single(settings: dict[str, list[str]], path: Path) -> Transform:
    import SimpleITK as sitk

    kind = settings["Transform"][0]
    try:
        d = int(settings["FixedImageDimension"][0])
        if kind == "DeformationFieldTransform":
            if settings.get("DeformationFieldInterpolationOrder", ["0"])[0] == "0":
                message = f"{path}: asks for nearest-neighbour reading of its field; it is read linearly here"
                warnings.warn(message, VerimorphWarning, stacklevel=4)
            return itk_field.read(_beside(path, settings["DeformationFieldFileName"][0]))
        numbers = [float(v) for v in settings["TransformParameters"]]
        if kind in _SPLINES:
            made = _spline(sitk, settings, d, path)
        elif kind == "TranslationTransform":
            made = sitk.TranslationTransform(d)
        elif kind in ("EulerTransform", "SimilarityTransform", "AffineTransform"):
            made = _centred(sitk, kind, settings, d)
        else:
            raise InputError(f"{path}: elastix transforms of the class {kind} are not supported")
        if len(numbers) != made.GetNumberOfParameters():
            raise InputError(
                f"{path}: has {len(numbers)} parameters, a {kind} of this kind has {made.GetNumberOfParameters()}"
            )
        made.SetParameters(numbers)
    except KeyError as error:
        raise InputError(f"{path}: lacks the entry ({error.args[0]} ...)") from None
    except (ValueError, RuntimeError):
        raise InputError(f"{path}: has entries that are not the numbers expected") from None
    return itk.from_simpleitk(made, path)


def _centred(sitk: Any, kind: str, settings: dict[str, list[str]], d: int) -> Any:
    classes = {
        ("EulerTransform", 2): "Euler2DTransform",
        ("EulerTransform", 3): "Euler3DTransform",
        ("SimilarityTransform", 2): "Similarity2DTransform",
        ("SimilarityTransform", 3): "Similarity3DTransform",
    }
    made = sitk.AffineTransform(d) if kind == "AffineTransform" else getattr(sitk, classes[kind, d])()
    made.SetCenter([float(v) for v in settings["CenterOfRotationPoint"]])
    if kind == "EulerTransform" and d == 3:
        made.SetComputeZYX(settings.get("ComputeZYX", ["false"])[0] == "true")
    return made


def _spline(sitk: Any, settings: dict[str, list[str]], d: int, path: Path) -> Any:
    if int(settings.get("BSplineTransformSplineOrder", ["3"])[0]) != 3:
        raise InputError(f"{path}: holds a B-spline of another order than 3, which is not supported")
    if settings.get("UseCyclicTransform", ["false"])[0] == "true":
        raise InputError(f"{path}: holds a cyclic B-spline, which is not supported")
    size, spacing, origin = (
        np.array(settings[key], dtype=np.float64) for key in ("GridSize", "GridSpacing", "GridOrigin")
    )
    default = [str(v) for v in np.eye(d).ravel()]
    direction = np.array(settings.get("GridDirection", default), dtype=np.float64).reshape(d, d).T
    start = np.array(settings.get("GridIndex", ["0"] * d), dtype=np.float64)
    origin = origin + direction @ (spacing * start)
    made = sitk.BSplineTransform(d, 3)
    made.SetFixedParameters([*size, *origin, *spacing, *direction.ravel()])
    return made


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write an affine or B-spline file; any other transform as a deformation field beside it (``NAME.field.mha``).

    The image geometry that transformix resamples onto is that of ``fixed`` or ``grid`` or, without them, of the field.
    """
    d = transform.ndim
    where = grid or fixed
    own: dict[str, list[Any]]
    numbers: tuple[float, ...] = ()
    if isinstance(transform, Affine):
        numbers = itk.to_simpleitk(transform).GetParameters()
        own = {"Transform": ["AffineTransform"], "CenterOfRotationPoint": [0.0] * d}
    elif isinstance(transform, Spline):
        made = itk.to_simpleitk(transform)
        numbers = made.GetParameters()
        size, origin, spacing, direction = np.split(np.array(made.GetFixedParameters()), [d, 2 * d, 3 * d])
        own = {
            "Transform": ["BSplineTransform"],
            "GridSize": [int(n) for n in size],
            "GridIndex": [0] * d,
            "GridSpacing": spacing.tolist(),
            "GridOrigin": origin.tolist(),
            "GridDirection": direction.reshape(d, d).T.ravel().tolist(),
            "BSplineTransformSplineOrder": [3],
            "UseCyclicTransform": ["false"],
        }
    else:
        where = dense_grid(transform, fixed, grid, "elastix")
        beside = path.with_name(f"{path.stem}.field.mha")
        itk_field.write(transform, beside, grid=where)
        own = {
            "Transform": ["DeformationFieldTransform"],
            "DeformationFieldFileName": [beside.name],
            "DeformationFieldInterpolationOrder": [1],
        }
    entries: dict[str, list[Any]] = {
        **own,
        "NumberOfParameters": [len(numbers)],
        "TransformParameters": list(numbers),
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": [d],
        "MovingImageDimension": [d],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        **(_image_entries(where) if where is not None else {}),
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": [0],
        "ResultImageFormat": ["nii.gz"],
        "ResultImagePixelType": ["float"],
        "CompressResultImage": ["true"],
    }
    lines = [f"({key} {' '.join(_text(v) for v in values)})" for key, values in entries.items() if values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _image_entries(grid: Grid) -> dict[str, list[Any]]:
    flip = itk.lps(grid.ndim)
    return {
        "Size": list(grid.shape),
        "Index": [0] * grid.ndim,
        "Spacing": grid.spacing.tolist(),
        "Origin": (flip @ grid.origin).tolist(),
        "Direction": (flip @ grid.direction).T.ravel().tolist(),
        "UseDirectionCosines": ["true"],
    }


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:.17g}" if isinstance(value, float) else str(value)
