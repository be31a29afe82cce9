"""Carrying an image through any transform, in one interpolation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import OptionError, nearest
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform.dense import check_dimensions, field_then_matrix
from verimorph.transform.protocol import Transform
from verimorph.transform.trace import Trace, slabs
from verimorph.transform.voting import inside, read_nearest, read_vote

_SAME_SIZE = {"uint16": np.int16, "uint32": np.int32, "uint64": np.int64, "bool": np.uint8}

INTERPOLATIONS = ("linear", "nearest", "cubic", "labels")


def resample(
    transform: Transform,
    image: Image,
    reference: Grid,
    *,
    interpolation: str = "linear",
    background: float = 0.0,
) -> Image:
    """Carry a moving image onto a grid in fixed space: ``moved(x) = image(transform(x))``.

    Parameters
    ----------
    transform
        Fixed to moving. A field on ``reference`` followed by matrices (what a registration returns) is one pass over
        the image; any other transform is evaluated point by point. Neither builds a dense composition.
    image
        On its own grid, which may differ from ``reference`` in everything but the number of axes.
    interpolation
        ``linear``; ``cubic`` (B-spline of order 3); ``nearest`` (halves up); ``labels`` (the label with the largest
        linear weight, see :func:`verimorph.transform.voting.read_vote`). The last two never change a value.
    background
        Value outside the moving image.

    Returns
    -------
    Image
        On ``reference``, voxels of the same type as those of ``image``. Interpolated values of integer images are
        rounded to the nearest integer and clipped to the range of the type.

    Raises
    ------
    OptionError
        For an unknown interpolation.
    InputError
        If transform, image and reference do not have the same number of axes.
    """
    if interpolation not in INTERPOLATIONS:
        raise OptionError(f"unknown interpolation '{interpolation}'{nearest(interpolation, INTERPOLATIONS)}")
    check_dimensions(transform, reference)
    check_dimensions(transform, image.grid)
    array = image.array
    simple = field_then_matrix(transform, reference)
    if simple is not None and simple.displacement is not None and _one_pass(array, interpolation):
        matrix = image.grid.inverse_affine @ simple.matrix @ reference.affine
        voxels = _warped(array, simple.displacement, matrix, interpolation, background)
    else:
        trace = Trace(transform, reference, image.grid)
        read = _reader(array, interpolation, background)
        voxels = np.empty(reference.shape, dtype=array.dtype)
        for planes in slabs(reference.shape):
            voxels[planes] = to_type(read(trace(planes)), array.dtype).reshape(voxels[planes].shape)
    return Image.from_array(voxels, reference, name=image.name)


def _one_pass(array: ndarray, interpolation: str) -> bool:
    """Whether the field kernels can read this image: any type for nearest, what float32 holds for linear."""
    return interpolation == "nearest" or (interpolation == "linear" and not _needs_double(array))


def _warped(
    array: ndarray, displacement: Tensor, matrix: Float[ndarray, "h h"], interpolation: str, background: float
) -> ndarray:
    """Read the image at ``matrix @ (i + u(i))``."""
    if interpolation == "nearest":
        # torch has no unsigned types beyond 8 bits: copying bits is all that nearest does, so signed ones serve.
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        signed = stored.view(_SAME_SIZE.get(stored.dtype.name, stored.dtype))
        outside = to_type(np.array([background], dtype=np.float64), stored.dtype).view(signed.dtype)[0].item()
        source = torch.from_numpy(signed if signed.flags.writeable else signed.copy())[None, None]
        moved = field.warp(
            source.to(displacement.device), displacement, matrix=matrix, mode="nearest", background=outside
        )
        return moved[0, 0].cpu().numpy().view(stored.dtype)
    source = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))[None, None]
    moved = field.warp(source.to(displacement.device), displacement, matrix=matrix, background=background)
    return to_type(moved[0, 0].cpu().numpy(), array.dtype)


def to_type(values: ndarray, dtype: np.dtype) -> ndarray:
    """Convert to a voxel type; to an integer type by rounding to the nearest integer and clipping to its range."""
    if values.dtype == dtype:
        return values
    if np.issubdtype(dtype, np.bool_):
        return values >= 0.5
    if np.issubdtype(dtype, np.integer) and not np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(dtype)
        # 2^63 - 1 (for float32 also 2^31 - 1) is no float; its neighbour above would overflow in the cast.
        highest = values.dtype.type(limits.max)
        if int(highest) > limits.max:
            highest = np.nextafter(highest, values.dtype.type(0))
        return np.clip(np.rint(values), limits.min, highest).astype(dtype)
    return values.astype(dtype)


def _needs_double(array: ndarray) -> bool:
    """Whether float32 would round the voxels: integers beyond 2^24."""
    if not np.issubdtype(array.dtype, np.integer) or array.dtype.itemsize < 4 or array.size == 0:
        return False
    return max(abs(int(array.min())), abs(int(array.max()))) > 1 << 24


def _reader(array: ndarray, interpolation: str, background: float) -> Callable[[ndarray], ndarray]:
    """Return the function that reads the image at indices ``(D, n)``."""
    if interpolation in ("nearest", "labels"):
        pick = read_nearest if interpolation == "nearest" else read_vote
        whole = np.ascontiguousarray(array)
        # Written straight into the result, so it must be what the type can hold.
        outside = to_type(np.array([background], dtype=np.float64), array.dtype)[0]
        return lambda index: pick(whole, index, outside)
    work = np.float64 if _needs_double(array) else np.float32
    if interpolation == "cubic":
        return _cubic_reader(array, work, background)
    voxels = torch.from_numpy(np.array(array, dtype=work, order="C"))[None, None]
    return lambda index: (
        field.sample(voxels, torch.from_numpy(index.astype(work))[None], background=background).numpy().reshape(-1)
    )


def _cubic_reader(array: ndarray, work: type, background: float) -> Callable[[ndarray], ndarray]:
    """Cubic B-spline, mirrored at the border as ITK does it; the image is prefiltered once, not once a slab."""
    from scipy import ndimage

    coefficients = ndimage.spline_filter(array.astype(work), order=3, output=work, mode="mirror")

    def read(index: ndarray) -> ndarray:
        within = inside(index, array.shape)
        values = np.full(index.shape[1], background, dtype=np.float64)
        values[within] = ndimage.map_coordinates(
            coefficients, index[:, within], order=3, mode="mirror", prefilter=False
        )
        return values

    return read
