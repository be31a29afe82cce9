"""Separable windows as one small matrix an axis: device-neutral, differentiable, no padding copies.

A banded matrix product per axis is the fastest form that plain torch has for a box or Gaussian of a single channel
(the convolution routines are made for many channels), and its transpose is the exact adjoint, borders included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Border = Literal["valid", "zeros", "replicate"]

#: Borders of windows whose moments are taken: what lies outside counts nothing, or counts as zeros.
MomentBorder = Literal["valid", "zeros"]


@functools.lru_cache(maxsize=64)
def _matrix(
    length: int, weights: tuple[float, ...], border: Border, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "out in"]:
    radius = len(weights) // 2
    matrix = torch.zeros(length, length, dtype=torch.float64)
    rows = torch.arange(length)
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        columns = rows + offset
        if border == "replicate":
            columns = columns.clamp(0, length - 1)
        inside = (columns >= 0) & (columns < length)
        matrix[rows[inside], columns[inside]] += weight
    return matrix.to(device=device, dtype=dtype)


def box_weights(radius: int) -> tuple[float, ...]:
    """Ones over ``2 * radius + 1`` voxels: a window *sum*."""
    return (1.0,) * (2 * radius + 1)


def gaussian_weights(sigma: float, radius: int) -> tuple[float, ...]:
    """Gaussian of standard deviation ``sigma`` voxels cut at ``radius``, summing to one."""
    values = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = math.fsum(values)
    return tuple(value / total for value in values)


def separable(
    x: Float[Tensor, "b c *space"], weights: Sequence[tuple[float, ...]], border: Border = "zeros"
) -> Float[Tensor, "b c *space"]:
    """Filter every axis of space with its weights.

    ``valid`` and ``zeros`` both leave out what lies outside the image; the caller who wants ``valid`` means divides by
    the same filter of ones.
    """
    matrices = [
        _matrix(length, kernel, "replicate" if border == "replicate" else "zeros", x.dtype, x.device)
        for length, kernel in zip(x.shape[2:], weights, strict=True)
    ]
    last = matrices[-1]
    out = x @ last.T if len(weights[-1]) > 1 else x * last[0, 0]
    if len(weights[-2]) > 1:
        out = matrices[-2] @ out
    if len(weights) == 3 and len(weights[0]) > 1:
        out = (matrices[0] @ out.flatten(-2)).view_as(x)
    return out


def box_sum(x: Float[Tensor, "b c *space"], radius: Sequence[int], border: Border = "zeros") -> Tensor:
    """Sum over a box of ``2 * radius + 1`` voxels."""
    return separable(x, [box_weights(value) for value in radius], border)


def window_total(
    like: Float[Tensor, "b c *space"],
    weights: Sequence[tuple[float, ...]],
    border: Border,
    mask: Tensor | None,
) -> Tensor:
    """Sum of window weights that count: over the mask, over the image (``valid``), or over all (``zeros``)."""
    if mask is not None:
        return separable(mask, weights).clamp_min(1e-6)
    if border == "valid":
        # Separable, so a product of one vector an axis instead of a filtered volume.
        total = like.new_ones((1,) * like.ndim)
        for axis, (length, kernel) in enumerate(zip(like.shape[2:], weights, strict=True)):
            sums = _matrix(length, kernel, "zeros", like.dtype, like.device).sum(1)
            total = total * sums.view([1, 1, *(length if a == axis else 1 for a in range(like.ndim - 2))])
        return total
    return like.new_full((1,) * like.ndim, math.prod(math.fsum(kernel) for kernel in weights))
