"""ITK transform files through SimpleITK: ``.h5``, ``.tfm``, ``.txt``, ``.xfm`` and the affine ``.mat`` of ANTs.

ITK works in LPS millimetres and maps fixed to moving points, as we do. In a composite the part that was added **last**
is applied **first** to a point. This module is the only place that knows both for these files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.io.itk import reason
from verimorph.io.transforms.common import dense_grid, finite, matrix_of
from verimorph.transform import Affine, Composite, Dense, DisplacementField, Spline, Transform, chain, parts_of
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement

LINEAR_SUFFIXES = (".mat",)
TEXT_SUFFIXES = (".tfm", ".txt", ".xfm")


def lps(ndim: int) -> Float[ndarray, "d d"]:
    """The matrix that turns RAS vectors into LPS vectors, and back."""
    return np.diag([-1.0, -1.0, 1.0][:ndim])


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read any ITK transform file. A composite becomes a :class:`Composite` in the order in which parts act."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        found = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable ITK transform ({reason(error)})") from None
    return from_simpleitk(found, path)


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write a transform for ITK, SimpleITK, ANTs and 3D Slicer.

    ``.h5`` holds anything: linear parts and splines as they are, fields and velocities as displacement fields. The text
    formats refuse dense fields, ``.mat`` (ANTs) everything but one matrix.
    """
    import SimpleITK as sitk

    suffix = path.suffix.lower()
    if suffix in LINEAR_SUFFIXES:
        transform = Affine(matrix_of(transform, "ANTs .mat"))
    parts = parts_of(transform)
    if suffix in TEXT_SUFFIXES and any(not isinstance(part, Affine | Spline) for part in parts):
        raise InputError(f"{path.name}: a dense field does not belong in a text file; write .h5 or .nii.gz instead")
    if any(not _native(part) for part in parts):
        where = dense_grid(transform, fixed, grid, "ITK")
        transform = DisplacementField(where, transform.displacement_on(where))
    made = to_simpleitk(transform)
    try:
        sitk.WriteTransform(made, str(path))
    except RuntimeError as error:
        raise OSError(f"{path.name}: {reason(error)}") from error


def from_simpleitk(source: Any, path: Path | str = "SimpleITK transform") -> Transform:
    """Make a transform of a SimpleITK transform.

    Linear ones of any class are read off at the origin and the unit vectors, which is exact for them.
    """
    source = source.Downcast()
    name = source.GetName()
    d = source.GetDimension()
    # A class SimpleITK has no name for (MatrixOffsetTransformBase) it shows as a composite of itself, without end:
    # such a one is read off below.
    if name == "CompositeTransform" and not (source.GetNumberOfTransforms() == 1 and source.IsLinear()):
        count = source.GetNumberOfTransforms()
        if count == 0:
            raise InputError(f"{path}: is an empty composite transform")
        return chain([from_simpleitk(source.GetNthTransform(n), path) for n in reversed(range(count))])
    if name == "DisplacementFieldTransform":
        return field_from_simpleitk(source.GetDisplacementField(), path)
    if name == "BSplineTransform":
        return _spline(source, d, path)
    if not source.IsLinear():
        raise InputError(f"{path}: transforms of the class {name} are not supported")
    origin = np.array(source.TransformPoint([0.0] * d))
    linear = np.stack([np.array(source.TransformPoint(axis)) - origin for axis in np.eye(d).tolist()], axis=1)
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = lps(d) @ linear @ lps(d), lps(d) @ origin
    return Affine(matrix)


def field_from_simpleitk(image: Any, path: Path | str) -> DisplacementField:
    """Make a displacement field of a SimpleITK vector image of LPS millimetres."""
    import SimpleITK as sitk

    d = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() != d:
        raise InputError(
            f"{path}: holds {image.GetNumberOfComponentsPerPixel()} values a voxel, a {d}-D displacement field has {d}"
        )
    affine = np.eye(d + 1)
    axes = np.array(image.GetDirection()).reshape(d, d) * np.array(image.GetSpacing())
    affine[:d, :d], affine[:d, d] = lps(d) @ axes, lps(d) @ np.array(image.GetOrigin())
    vectors = sitk.GetArrayViewFromImage(image)
    vectors = finite(vectors.transpose(*range(d - 1, -1, -1), d), Path(path))
    return DisplacementField(Grid(image.GetSize(), affine), displacement_from_vectors(vectors, axes))


def to_simpleitk(transform: Transform) -> Any:
    """Make a SimpleITK transform of matrices, fields, velocities (as fields), splines and chains of them."""
    import SimpleITK as sitk

    d = transform.ndim
    if isinstance(transform, Composite):
        made = sitk.CompositeTransform(d)
        for part in reversed(transform.parts):
            made.AddTransform(to_simpleitk(part))
        return made
    if isinstance(transform, Affine):
        linear = lps(d) @ transform.linear @ lps(d)
        return sitk.AffineTransform(linear.ravel().tolist(), (lps(d) @ transform.translation).tolist())
    if isinstance(transform, Spline):
        return _to_spline(transform)
    if not isinstance(transform, Dense):
        raise InputError(f"ITK has no class for a {transform.kind} transform; sample it on a grid first")
    return sitk.DisplacementFieldTransform(vector_image(transform.displacement, transform.grid))


def _native(part: Transform) -> bool:
    """Whether ITK has a class for a part."""
    return isinstance(part, Affine | Spline | Dense)


def vector_image(displacement: Float[Tensor, "1 d *space"], grid: Grid, dtype: type = np.float64) -> Any:
    """SimpleITK image of displacement vectors, LPS mm."""
    import SimpleITK as sitk

    d = grid.ndim
    vectors = vectors_from_displacement(displacement, lps(d) @ grid.affine[:d, :d], dtype)
    image = sitk.GetImageFromArray(vectors.transpose(*range(d - 1, -1, -1), d), isVector=True)
    image.SetOrigin((lps(d) @ grid.origin).tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((lps(d) @ grid.direction).ravel().tolist())
    return image


def _spline(source: Any, d: int, path: Path | str) -> Spline:
    """Control points of an ITK B-spline: fixed parameters are size, origin, spacing, direction of the lattice."""
    if source.GetOrder() != 3:
        raise InputError(f"{path}: holds a B-spline of order {source.GetOrder()}, only order 3 (cubic) is supported")
    numbers = np.array(source.GetFixedParameters())
    size, origin, spacing, direction = np.split(numbers, [d, 2 * d, 3 * d])
    shape = tuple(int(n) for n in size)
    affine = np.eye(d + 1)
    affine[:d, :d], affine[:d, d] = lps(d) @ (direction.reshape(d, d) * spacing), lps(d) @ origin
    stored = np.array(source.GetParameters()).reshape(d, *shape[::-1])
    coefficients = np.einsum("ij,j...->i...", lps(d), stored.transpose(0, *range(d, 0, -1)))
    return Spline(Grid(shape, affine), torch.from_numpy(np.ascontiguousarray(coefficients))[None])


def _to_spline(transform: Spline) -> Any:
    import SimpleITK as sitk

    d, grid = transform.ndim, transform.grid
    made = sitk.BSplineTransform(d, 3)
    geometry = [*grid.shape, *(lps(d) @ grid.origin), *grid.spacing, *(lps(d) @ grid.direction).ravel()]
    made.SetFixedParameters([float(v) for v in geometry])
    vectors = np.einsum("ij,j...->i...", lps(d), transform.coefficients[0].detach().cpu().double().numpy())
    made.SetParameters(vectors.transpose(0, *range(d, 0, -1)).ravel().tolist())
    return made
