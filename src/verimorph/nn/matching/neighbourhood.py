"""Attention to a neighbourhood whose values are its offsets: out comes motion (family of ModeT, Im2Grid, VFA)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from verimorph.errors import InputError, OptionError
from verimorph.nn.matching._shifts import check_features, cropped, offsets, padded, radii, shifts


def _scores(fixed: Tensor, view: Tensor, bias: Tensor, heads: int, scale: float) -> Tensor:
    """Matching scores of one offset, (b, heads, 1, *space)."""
    product = (fixed * view).unflatten(1, (heads, -1)).sum(2, keepdim=True)
    return product * scale + bias.view(1, heads, 1, *(1,) * (fixed.ndim - 2))


def _attend(
    fixed: Tensor, moving: Tensor, bias: Tensor, heads: int, radius: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Motion (b, heads, d, *space) and logarithm of the sum of exponentials (b, heads, 1, *space).

    One offset at a time with a running maximum (Milakov & Gimelshein 2018), so that no score is kept.
    """
    ndim = fixed.ndim - 2
    shape = (fixed.shape[0], heads, 1, *fixed.shape[2:])
    peak, total = fixed.new_full(shape, -torch.inf), fixed.new_zeros(shape)
    motion = fixed.new_zeros(*shape[:2], ndim, *shape[3:])
    for k, (offset, view) in enumerate(zip(offsets(radius), shifts(padded(moving, radius), radius), strict=True)):
        score = _scores(fixed, view, bias[:, k], heads, scale)
        step = score.new_tensor(offset).view(1, 1, -1, *(1,) * ndim)
        higher = torch.maximum(peak, score)
        kept, share = (peak - higher).exp(), (score - higher).exp()
        peak, total, motion = higher, total * kept + share, motion * kept + share * step
    return motion / total, peak + total.log()


class _NeighbourhoodMotion(torch.autograd.Function):
    """Keeps inputs and results; the backward pass makes each offset's share again."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, bias: Tensor, heads: int, radius: tuple[int, ...], scale: float
    ) -> Tensor:
        motion, normaliser = _attend(fixed, moving, bias, heads, radius, scale)
        ctx.save_for_backward(fixed, moving, bias, motion, normaliser)
        ctx.heads, ctx.radius, ctx.scale = heads, radius, scale
        return motion

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        fixed, moving, bias, motion, normaliser = ctx.saved_tensors
        of_fixed, of_moving, of_bias = ctx.needs_input_grad[:3]
        (slope,) = outer
        to_fixed = torch.zeros_like(fixed) if of_fixed else None
        wide = padded(moving, ctx.radius)
        to_wide = torch.zeros_like(wide) if of_moving else wide
        to_bias = torch.zeros_like(bias) if of_bias else None
        along = (slope * motion).sum(2, keepdim=True)
        views = zip(offsets(ctx.radius), shifts(wide, ctx.radius), shifts(to_wide, ctx.radius), strict=True)
        for k, (offset, view, target) in enumerate(views):
            share = (_scores(fixed, view, bias[:, k], ctx.heads, ctx.scale) - normaliser).exp()
            step = slope.new_tensor(offset).view(1, 1, -1, *(1,) * (fixed.ndim - 2))
            to_score = share * ((slope * step).sum(2, keepdim=True) - along)
            if to_bias is not None:
                to_bias[:, k] = to_score.transpose(0, 1).flatten(1).sum(1)
            spread = to_score.expand(-1, -1, fixed.shape[1] // ctx.heads, *to_score.shape[3:]).flatten(1, 2)
            if to_fixed is not None:
                to_fixed.addcmul_(spread, view, value=ctx.scale)
            if of_moving:
                target.addcmul_(spread, fixed, value=ctx.scale)
        to_moving = cropped(to_wide, ctx.radius).contiguous() if of_moving else None
        return to_fixed, to_moving, to_bias, None, None, None


def neighbourhood_motion(
    *,
    fixed: Float[Tensor, "b c *space"],
    moving: Float[Tensor, "b i *moving_space"],
    bias: Float[Tensor, "h k"] | None = None,
    heads: int = 1,
    radius: int | tuple[int, ...] = 1,
    scale: float | None = None,
) -> Float[Tensor, "b h d *space"]:
    """Expected offset of the best match of every fixed voxel among its neighbours in the moving features, head by head.

    ::

        u_h(i) = sum_o o softmax_o( scale <fixed_h(i), moving_h(i + o)> + bias_h(o) ),     o in [-r, r]^d, zeros outside

    Parameters
    ----------
    fixed, moving
        Queries and keys; the channels are split evenly among the heads.
    bias
        Score of each offset whatever the images, last axis fastest; zero where None.
    radius
        Of the neighbourhood, voxels.
    scale
        Of the product; default one over the root of a head's channels.

    Returns
    -------
    Tensor
        One displacement a head in voxels of this grid, each component in [-r, r]; at least float32. Memory does not
        grow with the neighbourhood: offsets are taken one at a time, forth and back (the unfolded form holds
        (2r + 1)^d times the moving features).

    Raises
    ------
    InputError
        Where shapes differ or the channels do not split into the heads.

    References
    ----------
    Wang et al., ModeT, MICCAI 2023 (heads, learned bias); Liu et al., Coordinate translator (Im2Grid), MMMI 2022; Liu
    et al., Vector field attention, Journal of Medical Imaging 2024.
    """
    check_features(fixed, moving)
    ndim, channels = fixed.ndim - 2, fixed.shape[1]
    size = radii(radius, ndim)
    if heads < 1 or channels % heads:
        raise InputError(f"{channels} channels do not split into {heads} heads")
    count = len(offsets(size))
    if bias is not None and tuple(bias.shape) != (heads, count):
        raise InputError(f"the bias must be ({heads}, {count}), a score a head and offset, got {tuple(bias.shape)}")
    exact = torch.promote_types(fixed.dtype, torch.float32)
    factor = (channels // heads) ** -0.5 if scale is None else scale
    with torch.autocast(fixed.device.type, enabled=False):
        first, second = fixed.to(exact), moving.to(exact)
        third = first.new_zeros(heads, count) if bias is None else bias.to(exact)
        if torch.is_grad_enabled() and any(x.requires_grad for x in (first, second, third)):
            return _NeighbourhoodMotion.apply(first, second, third, heads, size, factor)
        return _attend(first, second, third, heads, size, factor)[0]


class NeighbourhoodMatching(nn.Module):
    """Project both images' features alike, then match each fixed voxel with its neighbourhood.

    Parameters
    ----------
    ndim, channels
        Axes of space; channels of the features of one image.
    heads, head_channels
        One motion field a head; channels that a head compares.
    radius
        Of the neighbourhood, voxels.
    scale
        Of the product; None for one over the root of ``head_channels``.

    The projection starts near zero and is normalised over the channels of all heads (LayerNorm); the learned bias
    starts at zero.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        heads: int,
        head_channels: int = 6,
        radius: int = 1,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or head_channels < 1:
            raise OptionError(f"matching needs at least one head of one channel, got {heads} of {head_channels}")
        width = heads * head_channels
        self.heads, self.radius, self.scale = heads, radii(radius, ndim), scale
        self.projection = nn.Linear(channels, width)
        nn.init.normal_(self.projection.weight, std=1e-5)
        nn.init.zeros_(self.projection.bias)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(heads, len(offsets(self.radius))))

    def _project(self, features: Tensor) -> Tensor:
        return self.norm(self.projection(features.movedim(1, -1))).movedim(-1, 1)

    def forward(
        self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b h d *space"]:
        """One displacement field a head, voxels of the features' grid."""
        return neighbourhood_motion(
            fixed=self._project(fixed),
            moving=self._project(moving),
            bias=self.bias,
            heads=self.heads,
            radius=self.radius,
            scale=self.scale,
        )
