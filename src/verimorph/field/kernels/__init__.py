"""Compiled CPU kernels of the field numerics (numba): float32, 3-D here, 2-D in ``planar``.

The functions here take and return tensors, and each mirrors one in the folder above that is written in torch; a test
holds the two together. Loops run in parallel over slabs and write disjoint memory, so bits do not depend on the number
of threads; reductions go through one partial sum a slab, added in order, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from verimorph.field.kernels import filters, interpolation, inversion, jacobian, planar

__all__ = [
    "compose",
    "invert",
    "jacobian_determinant",
    "planar",
    "sample",
    "separable_filter",
    "separable_filter_adjoint",
    "warp",
    "warp_backward",
    "warp_nearest",
    "warp_with_gradient",
]

_IDENTITY = np.eye(3, 4, dtype=np.float32)


def _arrays(x: Tensor) -> np.ndarray:
    """Contiguous array over the memory of a tensor."""
    return x.detach().contiguous().numpy()


def _rows(matrix: np.ndarray) -> np.ndarray:
    """The rows of a homogeneous matrix that do something."""
    return np.ascontiguousarray(matrix[:3], dtype=np.float32)


def _flat(x: Tensor) -> np.ndarray:
    """``(B, C, voxels)``."""
    return _arrays(x).reshape(*x.shape[:2], -1)


def _shape(x: Tensor) -> tuple[int, int, int]:
    """Voxels along the three axes."""
    a, b, c = x.shape[2:]
    return a, b, c


def warp(image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float) -> Tensor:
    """Compiled form of :func:`verimorph.field.warp`, linear."""
    out = torch.empty(*image.shape[:2], *displacement.shape[2:])
    for values, field, target in zip(_flat(image), _arrays(displacement), out.numpy(), strict=True):
        interpolation.warp(values, _shape(image), field, _rows(matrix), np.float32(background), target)
    return out


def warp_nearest(image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float) -> Tensor:
    """Compiled form of :func:`verimorph.field.warp`, nearest, of an image of any type."""
    index = torch.empty(displacement.shape[0], *displacement.shape[2:], dtype=torch.int64)
    rows = np.ascontiguousarray(matrix[:3], dtype=np.float64)
    for field, target in zip(_arrays(displacement), index.numpy(), strict=True):
        interpolation.nearest_index(field, _shape(image), rows, target)
    outside = index < 0
    index.clamp_(min=0)
    picked = [values.flatten(1).index_select(1, where.flatten()) for values, where in zip(image, index, strict=True)]
    out = torch.stack(picked).reshape(*image.shape[:2], *displacement.shape[2:])
    return out.masked_fill_(outside[:, None], background)


def warp_with_gradient(image: Tensor, displacement: Tensor, matrix: np.ndarray) -> tuple[Tensor, Tensor]:
    """Compiled form of :func:`verimorph.field.warp_with_gradient`."""
    out, gradient = torch.empty(1, 1, *displacement.shape[2:]), torch.empty(displacement.shape)
    interpolation.warp_with_gradient(
        _flat(image)[0, 0],
        _shape(image),
        _arrays(displacement)[0],
        _rows(matrix),
        out[0, 0].numpy(),
        gradient[0].numpy(),
    )
    return out, gradient


def warp_backward(
    sensitivity: Tensor, image: Tensor, displacement: Tensor, matrix: np.ndarray, *, of_image: bool, of_field: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives of ``sum(sensitivity * warp(image, displacement))`` with respect to image and displacement."""
    to_image = torch.empty(image.shape) if of_image else None
    to_field = torch.empty(displacement.shape) if of_field else None
    rows, shape = _rows(matrix), _shape(image)
    values, fields, weights = _flat(image), _arrays(displacement), _arrays(sensitivity)
    for b in range(len(fields)):
        if to_image is not None:
            target = to_image[b].numpy().reshape(image.shape[1], -1)
            interpolation.warp_backward_image(shape, fields[b], rows, weights[b], target)
        if to_field is not None:
            interpolation.warp_backward_field(values[b], shape, fields[b], rows, weights[b], to_field[b].numpy())
    return to_image, to_field


def sample(image: Tensor, index: Tensor, background: float) -> Tensor:
    """Compiled form of :func:`verimorph.field.sample`, linear."""
    out = torch.empty(*image.shape[:2], index[0, 0].numel())
    for values, where, target in zip(_flat(image), _flat(index), out.numpy(), strict=True):
        interpolation.sample(values, _shape(image), where, np.float32(background), target)
    return out.reshape(*image.shape[:2], *index.shape[2:])


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compiled form of :func:`verimorph.field.compose`."""
    out = torch.empty(inner.shape)
    for values, field, target in zip(_flat(outer), _arrays(inner), out.numpy(), strict=True):
        interpolation.compose(values, _shape(outer), field, _IDENTITY, target)
    return out


def invert(
    displacement: Tensor, start: Tensor, iterations: int, tolerance: float, smallest_step: float
) -> tuple[Tensor, float, float]:
    """Compiled form of :func:`verimorph.field.invert`: the inverse (``start`` improved in place) and its residuals."""
    out = start.contiguous()
    slabs = out.shape[0], out.shape[2]
    total, count, largest = np.zeros(slabs), np.zeros(slabs, dtype=np.int64), np.zeros(slabs)
    limits = iterations, np.float32(tolerance), np.float32(smallest_step)
    for b, (values, field) in enumerate(zip(_flat(displacement), out.numpy(), strict=True)):
        inversion.invert(values, _shape(displacement), field, _IDENTITY, *limits, total[b], count[b], largest[b])
    return out, float(total.sum() / max(int(count.sum()), 1)), float(largest.max(initial=0.0))


def _axis_weights(half: Sequence[float] | None, n: int, renormalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Half kernel, cut to the axis and padded to 1 + 3 n taps, and the factor at every position of a line."""
    weights = np.array(half or (1.0,), dtype=np.float64)[:n] if n > 1 else np.ones(1)
    norm = np.ones(n)
    if renormalise and len(weights) > 1:
        cumulative = np.concatenate([[0.0], np.cumsum(weights[1:])])
        reach, at = len(weights) - 1, np.arange(n)
        norm = 1 / (weights[0] + cumulative[np.minimum(at, reach)] + cumulative[np.minimum(n - 1 - at, reach)])
    taps = np.zeros(max(4, 1 + 3 * -(-(len(weights) - 1) // 3)), dtype=np.float32)
    taps[: len(weights)] = weights
    return taps, norm.astype(np.float32)


def separable_filter(x: Tensor, halves: Sequence[tuple[float, ...] | None], renormalise: bool) -> Tensor:
    """Compiled form of the separable symmetric filter in :mod:`verimorph.field.smooth`."""
    out = torch.empty(x.shape)
    axes = [_axis_weights(half, n, renormalise) for half, n in zip(halves, x.shape[2:], strict=True)]
    taps, norms = zip(*axes, strict=True)
    pieces = min(8, x.shape[2])
    for volumes, target in zip(_arrays(x), out.numpy(), strict=True):
        filters.separable_filter(volumes, *taps, *norms, pieces, target)
    return out


def separable_filter_adjoint(x: Tensor, halves: Sequence[tuple[float, ...] | None], renormalise: bool) -> Tensor:
    """Adjoint of :func:`separable_filter`: the factors of the border first, then the symmetric filter."""
    if renormalise:
        for axis, (half, n) in enumerate(zip(halves, x.shape[2:], strict=True)):
            if half is not None and n > 1:
                norm = torch.from_numpy(_axis_weights(half, n, True)[1])
                x = x * norm.reshape(-1, *[1] * (2 - axis))
    return separable_filter(x, halves, False)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Compiled form of :func:`verimorph.field.jacobian_determinant`."""
    out = torch.empty(displacement.shape[0], *displacement.shape[2:])
    for field, target in zip(_arrays(displacement), out.numpy(), strict=True):
        jacobian.jacobian_determinant(field, target)
    return out
