"""Local correlation of features: the cost volume of optical flow and of discrete registration."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from verimorph.nn.matching._shifts import check_features, cropped, offsets, padded, radii, shifts


class _LocalCorrelation(torch.autograd.Function):
    """Shift and multiply; only the two feature maps are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, radius: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.radius = radius
        return _correlate(fixed, moving, radius)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        fixed, moving = ctx.saved_tensors
        slopes = outer[0] / fixed.shape[1]
        to_fixed = torch.zeros_like(fixed) if ctx.needs_input_grad[0] else None
        wide = padded(moving, ctx.radius)
        to_wide = torch.zeros_like(wide) if ctx.needs_input_grad[1] else wide
        for k, (view, target) in enumerate(zip(shifts(wide, ctx.radius), shifts(to_wide, ctx.radius), strict=True)):
            slope = slopes[:, k : k + 1]
            if to_fixed is not None:
                to_fixed.addcmul_(view, slope)
            if ctx.needs_input_grad[1]:
                target.addcmul_(fixed, slope)
        return to_fixed, cropped(to_wide, ctx.radius).contiguous() if ctx.needs_input_grad[1] else None, None


def _correlate(fixed: Tensor, moving: Tensor, radius: tuple[int, ...]) -> Tensor:
    volume = fixed.new_empty(fixed.shape[0], len(offsets(radius)), *fixed.shape[2:])
    for k, view in enumerate(shifts(padded(moving, radius), radius)):
        volume[:, k] = (fixed * view).mean(dim=1)
    return volume


def local_correlation(
    *,
    fixed: Float[Tensor, "b c *space"],
    moving: Float[Tensor, "b i *moving_space"],
    radius: int | tuple[int, ...] = 1,
) -> Float[Tensor, "b k *space"]:
    """Mean product of fixed features with moving ones at every offset o of a window.

    ::

        value_o(i) = 1/c sum_channels fixed(i) moving(i + o),     o in [-r, r]^d, zeros outside

    Parameters
    ----------
    fixed, moving
        Features of one shape; make them of unit length for a correlation in [-1, 1] times 1/c.
    radius
        Window radius in voxels, one number or one an axis.

    Returns
    -------
    Tensor
        (b, (2r + 1)^d, \\*space), offsets with the last axis fastest, at least float32. Memory beside the result: two
        feature maps, whatever the window.

    References
    ----------
    Dosovitskiy et al., FlowNet, ICCV 2015.
    """
    check_features(fixed, moving)
    size = radii(radius, fixed.ndim - 2)
    exact = torch.promote_types(fixed.dtype, torch.float32)
    with torch.autocast(fixed.device.type, enabled=False):
        first, second = fixed.to(exact), moving.to(exact)
        if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
            return _LocalCorrelation.apply(first, second, size)
        return _correlate(first, second, size)


class Correlation(nn.Module):
    """`local_correlation` with its settings.

    Parameters
    ----------
    radius
        In voxels.
    normalise
        Make the features of unit length first: the value is then the cosine (not divided by c).
    """

    def __init__(self, radius: int | tuple[int, ...] = 1, *, normalise: bool = False) -> None:
        super().__init__()
        self.radius, self.normalise = radius, normalise

    def channels(self, ndim: int) -> int:
        """Channels that come out: offsets of the window."""
        return len(offsets(radii(self.radius, ndim)))

    def forward(
        self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b k *space"]:
        """The cost volume."""
        if not self.normalise:
            return local_correlation(fixed=fixed, moving=moving, radius=self.radius)
        fixed, moving = (nn.functional.normalize(x.float() if x.dtype.itemsize < 4 else x) for x in (fixed, moving))
        return local_correlation(fixed=fixed, moving=moving, radius=self.radius) * fixed.shape[1]
