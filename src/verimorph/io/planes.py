"""A volume one voxel thick is a 2-D image: which plane of the world it lies in."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.grid import Grid


def volume_grid(shape: tuple[int, ...], affine: Float[ndarray, "4 4"], where: str) -> tuple[Grid, tuple[Any, ...]]:
    """Return the grid of a volume, 2-D if it is one slice, and the index that takes its voxels from the stored array.

    A slice (one axis of size 1, or only two axes) becomes a 2-D grid. Its world is the plane it lies in, with the two
    anatomical axes nearest to that plane, in the order R, A, S: an axial slice keeps its R and A coordinates exactly, a
    coronal one R and S, a sagittal one A and S. A tilted slice is turned onto that plane by the smallest rotation, so
    distances and angles in it stay true. The position across the plane is dropped.

    Parameters
    ----------
    shape
        Stored shape, two or three axes.
    affine
        Voxel-to-world matrix, RAS+ mm, always 4x4.
    where
        What a message names: file or object.

    Raises
    ------
    InputError
        If the matrix is singular or not finite, or more than one axis of a volume has a single voxel.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3):
        raise InputError(f"{where}: has {len(shape)} axes (shape {shape}), 2 or 3 are needed; choose one volume")
    thin = [axis for axis, n in enumerate(shape) if n == 1]
    try:
        if len(shape) == 3 and not thin:
            return Grid(shape, affine), (...,)
        if (len(shape) == 3 and len(thin) > 1) or (len(shape) == 2 and thin):
            raise InputError(f"is a single row of voxels (shape {shape}), an image with 2 or 3 axes is needed")
        across = thin[0] if len(shape) == 3 else 2
        kept = [axis for axis in range(3) if axis != across]
        flat = Grid(tuple(shape[axis] for axis in kept), plane_affine(affine, kept))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    index = tuple(0 if axis == across else slice(None) for axis in range(len(shape)))
    return flat, index


def plane_affine(affine: Float[ndarray, "4 4"], axes: list[int]) -> Float[ndarray, "3 3"]:
    """Return the 2-D voxel-to-world matrix of the plane that two voxel axes span (see :func:`volume_grid`).

    With the unit normal n of the plane and the anatomical axis e nearest to it, the plane is turned by the rotation
    that takes n to e along the shortest way, and the coordinate along e is dropped.
    """
    directions = affine[:3, axes]
    normal = np.cross(directions[:, 0], directions[:, 1])
    length = np.linalg.norm(normal)
    if not np.isfinite(length) or length <= 1e-12:
        raise InputError("the voxel-to-world affine is singular; repair the header (sform or qform)")
    normal = normal / length
    nearest = int(np.argmax(np.abs(normal)))
    target = np.zeros(3)
    target[nearest] = np.sign(normal[nearest])
    # Rodrigues' formula for the rotation that takes one unit vector to another; never opposite, as |cos| >= 1/sqrt(3).
    axis, cosine = np.cross(normal, target), float(normal @ target)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.eye(3) if np.abs(axis).max() < 1e-6 else np.eye(3) + skew + skew @ skew / (1 + cosine)
    rows = [world for world in range(3) if world != nearest]
    flat = np.eye(3)
    flat[:2, :2] = (rotation @ directions)[rows]
    flat[:2, 2] = (rotation @ affine[:3, 3])[rows]
    return flat


def embedded(affine: Float[ndarray, "h h"]) -> Float[ndarray, "4 4"]:
    """Return a 4x4 matrix: a 2-D one is placed in the R-A plane at S = 0 with a slice thickness of 1 mm."""
    if affine.shape == (4, 4):
        return affine
    whole = np.eye(4)
    whole[:2, :2], whole[:2, 3] = affine[:2, :2], affine[:2, 2]
    return whole
