"""Smoothing along the axes: Gaussian and box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.field.backend import compiled
from verimorph.field.differentiable import SeparableFilter, gradient_wanted

Border = Literal["renormalise", "zero"]


def per_axis(value: float | int | Sequence[float | int], d: int) -> tuple[float, ...]:
    """One number an axis, from one or from ``d`` of them."""
    values = tuple(float(v) for v in np.atleast_1d(np.asarray(value, dtype=np.float64)))
    return values * d if len(values) == 1 else values


def _extents(value: float | int | Sequence[float | int], d: int, name: str) -> tuple[float, ...]:
    """Widths of a filter, checked."""
    values = per_axis(value, d)
    if len(values) != d or not all(0 <= v < math.inf for v in values):
        raise OptionError(f"{name} is {value}; give one number of voxels >= 0, or {d}, one an axis")
    return values


def gaussian_weights(sigma: float, *, truncate: float = 3.0) -> list[float]:
    """Half of a sampled Gaussian, from the centre outwards, whole kernel summing to 1."""
    radius = max(1, math.ceil(truncate * sigma))
    half = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = half[0] + 2 * sum(half[1:])
    return [w / total for w in half]


@lru_cache(maxsize=64)
def _band(half: tuple[float, ...], n: int, border: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The ``(n, n)`` matrix of a symmetric filter; rows renormalised at the border unless it is zero there."""
    offset = (torch.arange(n)[:, None] - torch.arange(n)[None]).abs()
    weights = torch.tensor(half, dtype=torch.float64)
    matrix = torch.where(offset < len(half), weights[offset.clamp(max=len(half) - 1)], 0.0)
    if border == "renormalise":
        matrix = matrix / matrix.sum(1, keepdim=True)
    return matrix.to(dtype=dtype, device=device)


def _filter(x: Tensor, halves: Sequence[tuple[float, ...] | None], border: str) -> Tensor:
    """Apply a symmetric filter along each spatial axis."""
    halves = tuple(None if x.shape[2 + axis] == 1 else half for axis, half in enumerate(halves))
    if all(half is None for half in halves):
        return x
    kernels = compiled(x)
    if kernels is None:
        return _filter_by_matrices(x, halves, border)
    if gradient_wanted(x):
        return SeparableFilter.apply(x, halves, border == "renormalise", kernels)
    return kernels.separable_filter(x, halves, border == "renormalise")


def _filter_by_matrices(x: Tensor, halves: Sequence[tuple[float, ...] | None], border: str) -> Tensor:
    """The same as a banded matrix an axis: differentiable, no compiler, any device, and faster than convolution."""
    for axis, half in enumerate(halves):
        if half is not None:
            matrix = _band(half, x.shape[2 + axis], border, x.dtype, x.device)
            x = (x.movedim(2 + axis, -1) @ matrix.T).movedim(-1, 2 + axis)
    return x.contiguous()


def gaussian_smooth(
    x: Float[Tensor, "b c *space"], sigma: float | int | Sequence[float | int], *, border: Border = "renormalise"
) -> Float[Tensor, "b c *space"]:
    """Convolve with a Gaussian cut at 3 sigma. Differentiable.

    Parameters
    ----------
    x
        Images or fields.
    sigma
        Standard deviation in voxels, one or one an axis; 0 leaves an axis alone (and an axis of one voxel always is).
        Where all are 0 the input itself is returned.
    border
        ``renormalise`` divides by the weight inside (a constant stays constant); ``zero`` takes zeros outside, which
        draws fields to zero at the rim (Dirichlet, for updates).

    Raises
    ------
    OptionError
        For a negative sigma, another number of them than axes, or an unknown border.

    Examples
    --------
    >>> gaussian_smooth(torch.ones(1, 1, 9, 9), 2)[0, 0, 0, :3]
    tensor([1.0000, 1.0000, 1.0000])
    """
    if border not in ("renormalise", "zero"):
        raise OptionError(f"unknown border '{border}'; known: renormalise, zero")
    sigmas = _extents(sigma, x.ndim - 2, "sigma")
    return _filter(x, [tuple(gaussian_weights(s)) if s > 0 else None for s in sigmas], border)


def box_mean(x: Float[Tensor, "b c *space"], radius: int | Sequence[int]) -> Float[Tensor, "b c *space"]:
    """Mean over the window of ``2 radius + 1`` voxels an axis, over its part inside the image. Differentiable.

    Examples
    --------
    >>> ramp = torch.arange(5.0)[None, None, :, None].expand(1, 1, 5, 5)
    >>> box_mean(ramp, 1)[0, 0, :, 0]
    tensor([0.5000, 1.0000, 2.0000, 3.0000, 3.5000])
    """
    radii = [int(r) for r in _extents(radius, x.ndim - 2, "radius")]
    return _filter(x, [(1 / (2 * r + 1),) * (r + 1) if r > 0 else None for r in radii], "renormalise")
