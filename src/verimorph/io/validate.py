"""What makes two images and what comes with them fit for registration; every refusal is one line that helps.

Nothing is mended in silence. Each function takes the object and the ``role`` that messages call it by.
"""

from __future__ import annotations

import warnings

import numpy as np

from verimorph.errors import InputError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io.points import Points

LEAST_MASK = 64
"""A mask of fewer voxels, a cube of four, holds less than any neighbourhood that images are compared over."""


def check_pair(fixed: Image, moving: Image, *, fillable: bool = True) -> None:
    """Refuse a pair that cannot be registered: 2-D against 3-D, voxels that are not finite, a constant image.

    ``fillable``: whether the caller can put a number in place of voxels that are not finite (``nan_value``).

    Whether the two overlap in the world is another matter (:func:`check_overlap`): it can be mended by centring.

    Raises
    ------
    InputError
        Naming the image and what is wrong with it.
    """
    check_same_dimension(fixed, moving)
    for image, role in ((fixed, "fixed image"), (moving, "moving image")):
        check_finite(image, role, remedy=_FILL if fillable else _REPLACE)
        check_not_constant(image, role)


def check_same_dimension(fixed: Image, moving: Image) -> None:
    """Refuse a 2-D image with a 3-D one."""
    if fixed.grid.ndim != moving.grid.ndim:
        flat, whole = (fixed, moving) if fixed.grid.ndim == 2 else (moving, fixed)
        raise InputError(
            f"fixed image {fixed.name} is {fixed.grid.ndim}-D and moving image {moving.name} is {moving.grid.ndim}-D; "
            f"give two of a kind, e.g. the slice of {whole.name} that shows what {flat.name} shows"
        )


_FILL = "put a number in their place with --nan-value NUMBER (nan_value=NUMBER in Python)"
_REPLACE = "replace them first, e.g. fslmaths IN -nan OUT or numpy.nan_to_num"


def check_finite(image: Image, role: str, *, remedy: str = _REPLACE) -> None:
    """Refuse NaN and infinite voxels; say how many there are, where the first is, and the remedy."""
    voxels = image.array
    if voxels.dtype.kind != "f":
        return
    bad = ~np.isfinite(voxels)
    count = int(np.count_nonzero(bad))
    if not count:
        return
    first = np.unravel_index(int(np.argmax(bad)), voxels.shape)
    nans = int(np.count_nonzero(np.isnan(voxels)))
    kinds = " and ".join(
        f"{number} {kind}" for number, kind in ((nans, "NaN"), (count - nans, "infinite")) if number
    )  # fmt: skip
    raise InputError(
        f"{role} {image.name}: {kinds} of {voxels.size} voxels, the first at index {tuple(map(int, first))}; {remedy}"
    )


def check_not_constant(image: Image, role: str) -> None:
    """Refuse an image whose voxels all have one value."""
    voxels = image.array
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise InputError(f"{role} {image.name}: all voxels are {low}, there is nothing to align; give another image")


def check_same_grid(image: Image, other: Image, role: str, *, image_role: str = "image") -> None:
    """Refuse a mask or label map that does not lie voxel by voxel on the image it belongs to.

    Both must have the same shape, and no corner may be more than a twentieth of the smallest voxel edge away.
    """
    if other.grid.shape == image.grid.shape:
        apart = float(np.linalg.norm(other.grid.corners() - image.grid.corners(), axis=1).max())
        if apart <= 0.05 * float(image.grid.spacing.min()):
            return
        how = f"its corners are up to {apart:.3g} mm away from those"
    else:
        how = f"it has {_times(other.grid)} voxels instead of the {_times(image.grid)}"
    raise InputError(
        f"{role} {other.name}: is on another grid, {how} of the {image_role} {image.name}; "
        "resample it onto that image first, by nearest neighbour"
    )


def check_mask(mask: Image, image: Image, role: str) -> None:
    """Refuse a mask on another grid than its image, with voxels that are not finite, or with nothing to compare inside.

    Inside is above 0; fewer than ``LEAST_MASK`` voxels, or voxels all of one value, are nothing.
    """
    check_same_grid(image, mask, role)
    check_finite(mask, role)
    inside = mask.array > 0
    count = int(inside.sum())
    if count == 0:
        raise InputError(f"{role} {mask.name}: is empty (no voxel above 0); give another mask or none")
    if count < LEAST_MASK:
        held = "one voxel" if count == 1 else f"{count} voxels"
        raise InputError(
            f"{role} {mask.name}: holds {held}, too few to compare images by ({LEAST_MASK} are the least); "
            "give another mask or none"
        )
    values = image.array[inside]
    if values.min() == values.max():
        raise InputError(
            f"{role} {mask.name}: {image.name} has one value ({values.flat[0]:g}) all over it; "
            "give another mask or none"
        )


def whole_numbers(labels: Image, role: str) -> np.ndarray:
    """Voxels of a label map as int64; NaN, infinite ones and fractions are refused."""
    voxels = labels.array
    if voxels.dtype.kind == "f":
        check_finite(labels, role)
        if (voxels != np.rint(voxels)).any():
            raise InputError(
                f"{labels.name}: a label map holds whole numbers; was it resampled without nearest neighbour?"
            )
    return voxels.astype(np.int64)


def check_labels(labels: Image, image: Image, role: str) -> None:
    """Refuse a label map on another grid than its image, with values that are not whole numbers, or without labels."""
    check_same_grid(image, labels, role)
    check_finite(labels, role)
    voxels = labels.array
    if voxels.dtype.kind == "f":
        fraction = voxels != np.rint(voxels)
        if fraction.any():
            where = np.unravel_index(int(np.argmax(fraction)), voxels.shape)
            raise InputError(
                f"{role} {labels.name}: a label map holds whole numbers, it has {voxels[where]:g} at index "
                f"{tuple(map(int, where))}; was it resampled without nearest neighbour?"
            )
    if not voxels.any():
        raise InputError(f"{role} {labels.name}: holds no label (all voxels are 0); give another label map or none")


def check_landmarks(
    fixed_landmarks: Points, moving_landmarks: Points, fixed: Image | Grid, moving: Image | Grid
) -> None:
    """Refuse landmark lists of different length or dimension; warn of points that lie outside their image.

    Warns
    -----
    VerimorphWarning
        Naming the points outside the field of view; a wrong frame (RAS for LPS) is the usual reason.
    """
    if len(fixed_landmarks) != len(moving_landmarks):
        raise InputError(
            f"fixed landmarks {fixed_landmarks.name} have {len(fixed_landmarks)} points, moving landmarks "
            f"{moving_landmarks.name} {len(moving_landmarks)}; both need the same points in the same order"
        )
    for points, image, role in ((fixed_landmarks, fixed, "fixed"), (moving_landmarks, moving, "moving")):
        check_points(points, image, f"{role} landmarks")


def check_points(points: Points, image: Image | Grid, role: str) -> None:
    """Refuse points of another dimension than the image or all outside its field of view; warn of some outside."""
    grid = image if isinstance(image, Grid) else image.grid
    if points.ndim != grid.ndim:
        raise InputError(
            f"{role} {points.name}: are {points.ndim}-D, the image {grid.ndim}-D; give {grid.ndim} coordinates a point"
        )
    outside = np.flatnonzero(~grid.contains(points.coordinates))
    if len(points) and len(outside) == len(points):
        raise InputError(
            f"{role} {points.name}: all {len(points)} points lie outside the image; check that they belong to it and "
            "whether the file says RAS where it is LPS"
        )
    if len(outside):
        some = ", ".join(points.names[i] for i in outside[:5]) + (", ..." if len(outside) > 5 else "")
        warnings.warn(
            f"{role} {points.name}: {len(outside)} of {len(points)} points lie outside the image ({some}); "
            "check whether the file says RAS where it is LPS",
            VerimorphWarning,
            stacklevel=2,
        )


def check_overlap(fixed: Image | Grid, moving: Image | Grid) -> bool:
    """Tell whether the fields of view of two images share any volume worth the name in the world.

    True if any point of a lattice of 17 points along each axis of either image is inside the other; an overlap of less
    than a sixteenth of both fields of view along an axis counts as none.
    """
    one, other = (item if isinstance(item, Grid) else item.grid for item in (fixed, moving))
    return any(bool(b.contains(_lattice(a)).any()) for a, b in ((one, other), (other, one)))


def _lattice(grid: Grid) -> np.ndarray:
    ends = [np.linspace(-0.5, n - 0.5, 17) for n in grid.shape]
    return grid.index_to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, grid.ndim))


def _times(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))
