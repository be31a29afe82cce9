"""Carrying images, labels and points through transforms: the right direction for each, in one interpolation.

A transform sends points of the fixed image to points of the moving image. An **image** is carried from moving to fixed
by it (every voxel of the result asks the transform where to read), **points** by its inverse. ``inverse=True`` carries
both the other way, from fixed to moving.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io.images import as_image
from verimorph.io.points import SUFFIXES as POINT_SUFFIXES
from verimorph.io.points import Points, read_points

if TYPE_CHECKING:
    from verimorph.transform import Transform


@dataclass(frozen=True)
class Carried:
    """What :func:`carry` did."""

    result: Image | Points
    source: str
    """Space the thing came from: ``"moving"`` or ``"fixed"``."""
    target: str
    interpolation: str | None
    """How voxels were read; None for points."""
    reason: str
    """Why that interpolation, or which direction of the transform points took."""


def apply(
    thing: Any,
    *,
    transform: Any,
    reference: Any = None,
    inverse: bool = False,
    interpolation: str | None = None,
    background: float = 0.0,
    volume: int | None = None,
) -> Image | Points:
    """Carry an image, a label map or points from moving to fixed space (with ``inverse`` from fixed to moving).

    Parameters
    ----------
    thing
        Image (path, ``Image``, nibabel, SimpleITK, ``(array, affine)``) or points (``.csv``, ``.fcsv``, ``.mrk.json``,
        ``Points``).
    transform
        A transform, a path, or a list of them. A list acts on a point of the **fixed** image from first to last, as the
        options of ``antsApplyTransforms`` do: ``["1Warp.nii.gz", "0GenericAffine.mat"]``.
    reference
        Image or grid to carry onto: the fixed image, with ``inverse`` the moving one. Not needed for points. Default:
        the grid of the field that acts first.
    interpolation
        ``linear``, ``nearest``, ``cubic`` or ``labels``. Default: ``nearest`` for label maps (whole numbers,
        few or in patches: :func:`verimorph.transform.looks_like_labels`), ``linear`` for everything else.
    background
        Value outside the image.
    volume
        Which volume of a 4-D image, from 0.

    Returns
    -------
    Image or Points
        Voxels keep their type; points keep their names.

    Raises
    ------
    InputError
        If something cannot be read, or the numbers of axes differ.
    NoInverseError
        If an inverse is needed and there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from verimorph.transform import rigid
    >>> shift = rigid(translation=[0.0, 0.0, 5.0])  # a fixed point is found 5 mm higher in the moving image
    >>> apply(Points(np.array([[1.0, 2.0, 3.0]])), transform=shift).coordinates
    array([[ 1.,  2., -2.]])
    """
    return carry(
        thing,
        transform=transform,
        reference=reference,
        inverse=inverse,
        interpolation=interpolation,
        background=background,
        volume=volume,
    ).result


def carry(
    thing: Any,
    *,
    transform: Any,
    reference: Any = None,
    inverse: bool = False,
    interpolation: str | None = None,
    background: float = 0.0,
    volume: int | None = None,
) -> Carried:
    """Do what :func:`apply` does and say how: the result with its direction and interpolation."""
    source, target = ("fixed", "moving") if inverse else ("moving", "fixed")
    if isinstance(thing, Points) or is_points_file(thing):
        points = thing if isinstance(thing, Points) else read_points(thing)
        if interpolation is not None:
            raise OptionError("points are not interpolated; leave the interpolation out")
        chain = load_transform(transform)
        carried = _points(points, chain, inverse)
        return Carried(carried, source, target, None, "the transform itself" if inverse else "the inverse transform")
    image = as_image(thing, volume=volume)
    where = None if reference is None else _grid(reference)
    fixed, moving = (image.grid, where) if inverse else (where, image.grid)
    chain = load_transform(transform, fixed=fixed, moving=moving)
    onto = where or _own_grid(chain, inverse)
    if chain.ndim != image.grid.ndim or onto.ndim != image.grid.ndim:
        raise InputError(
            f"{image.name} is {image.grid.ndim}-D, the transform {chain.ndim}-D and the reference {onto.ndim}-D; "
            "all three must be the same"
        )
    chosen, reason = _interpolation(image, interpolation)
    through = chain.inverse() if inverse else chain
    moved = through.resample(image, onto, interpolation=chosen, background=background)
    if not (moved.array != background).any() and (image.array != background).any():
        message = f"nothing of {image.name} falls inside the reference: the result is background only"
        warnings.warn(
            f"{message}; is it really the {source} image, and the transform the right way round?",
            VerimorphWarning,
            stacklevel=2,
        )
    return Carried(moved, source, target, chosen, reason)


def is_points_file(thing: Any) -> bool:
    """Whether a path names a file of points, by its suffix."""
    return isinstance(thing, str | os.PathLike) and os.fspath(thing).lower().endswith(POINT_SUFFIXES)


def load_transform(
    transform: Any, *, format: str | None = None, fixed: Grid | None = None, moving: Grid | None = None
) -> Transform:
    """Make one transform of a transform, a path, or a sequence of which the first acts first on a fixed point."""
    from verimorph.io.transforms import read_transform
    from verimorph.transform import Transform, chain

    items = [transform] if isinstance(transform, str | os.PathLike | Transform) else transform
    if not isinstance(items, Sequence) or not items:
        raise InputError(f"a {type(transform).__name__} is not a transform; give a transform, a path or a list of them")
    read = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            read.append(read_transform(Path(item), format=format, fixed=fixed, moving=moving))
        elif isinstance(item, Transform):
            read.append(item)
        else:
            raise InputError(f"a {type(item).__name__} is not a transform; give a transform or a path")
    return read[0] if len(read) == 1 else chain(read)


def _points(points: Points, transform: Transform, inverse: bool) -> Points:
    from verimorph.transform import map_points_back

    if points.ndim != transform.ndim:
        raise InputError(f"{points.name} holds {points.ndim}-D points, the transform is {transform.ndim}-D")
    coordinates = points.coordinates
    moved = transform.map_points(coordinates) if inverse else map_points_back(transform, coordinates)
    return points.with_coordinates(moved)


def _grid(reference: Any) -> Grid:
    return reference if isinstance(reference, Grid) else as_image(reference).grid


def _own_grid(transform: Transform, inverse: bool) -> Grid:
    from verimorph.transform import Dense, parts_of

    first = parts_of(transform)[0]
    if not inverse and isinstance(first, Dense):
        return first.grid
    needed = "the moving image" if inverse else "the fixed image"
    raise InputError(f"no reference to carry the image onto; give {needed} (-r REFERENCE)")


def _interpolation(image: Image, asked: str | None) -> tuple[str, str]:
    """Choose how to read the voxels, and say why."""
    if asked is not None:
        return asked, "as asked"
    from verimorph.transform import looks_like_labels

    if looks_like_labels(np.asarray(image.array)):
        return "nearest", "a label map: whole numbers, few or in patches"
    return "linear", "whole numbers, but no label map" if image.is_integer else "not a label map"
