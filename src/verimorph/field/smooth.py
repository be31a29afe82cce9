"""Smoothing along the axes: Gaussian and box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.field.backend import compiled


def _per_axis(value: float | Sequence[float], d: int) -> tuple[float, ...]:
    return (float(value),) * d if isinstance(value, int | float) else tuple(float(v) for v in value)


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
    """Apply a symmetric filter along each spatial axis as a banded matrix: differentiable, no compiler, any device."""
    for axis, half in enumerate(halves):
        n = x.shape[2 + axis]
        if half is not None and n > 1:
            matrix = _band(half, n, border, x.dtype, x.device)
            x = (x.movedim(2 + axis, -1) @ matrix.T).movedim(-1, 2 + axis)
    return x.contiguous()


def gaussian_smooth(
    x: Float[Tensor, "b c *space"], sigma: float | Sequence[float], *, border: str = "renormalise"
) -> Float[Tensor, "b c *space"]:
    """Convolve with a Gaussian cut at 3 sigma.

    Parameters
    ----------
    x
        Images or fields.
    sigma
        Standard deviation in voxels, one or one an axis; 0 leaves an axis alone.
    border
        ``renormalise`` divides by the weight inside (a constant stays constant); ``zero`` takes zeros outside, which
        draws fields to zero at the rim (Dirichlet, for updates).
    """
    sigmas = _per_axis(sigma, x.ndim - 2)
    halves = [tuple(gaussian_weights(s)) if s > 0 else None for s in sigmas]
    if all(half is None for half in halves):
        return x
    kernels = compiled(x)
    if kernels is not None:
        return kernels.separable_filter(x, halves, border == "renormalise")
    return _filter(x, halves, border)


def box_mean(
    x: Float[Tensor, "b c *space"], radius: int | Sequence[int]
) -> Float[Tensor, "b c *space"]:
    """Mean over the window of ``2 radius + 1`` voxels an axis, over its part inside the image."""
    radii = [int(r) for r in _per_axis(radius, x.ndim - 2)]
    halves = [(1 / (2 * r + 1),) * (r + 1) if r > 0 else None for r in radii]
    return _filter(x, halves, "renormalise")
