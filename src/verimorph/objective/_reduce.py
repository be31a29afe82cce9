"""From local values to a number: masks, weight maps and reductions, the same for every term.

A **mask** says which voxels take part at all: in window statistics and histograms as well as in the average.
A **weight map** is a dimensionless multiplier, 1 = default: it scales the local energy (or, for measures of the whole
image such as mutual information, a voxel's share in the statistics), and never moves the normalisation.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError, OptionError

Reduction = Literal["mean", "sum", "none"]
Mask = Float[Tensor, "b 1 *space"]


def check_pair(fixed: Tensor, moved: Tensor) -> None:
    """Refuse a pair of images whose shapes differ, or that are not 2-D or 3-D batches."""
    if fixed.shape != moved.shape:
        raise InputError(
            f"fixed {tuple(fixed.shape)} and moved {tuple(moved.shape)} differ in shape; put them on one grid"
        )
    if fixed.ndim not in (4, 5):
        raise InputError(f"expected (batch, channel, *space) with two or three axes of space, got {tuple(fixed.shape)}")


def common_mask(*masks: Tensor | None) -> Tensor | None:
    """Product of those masks that are given: voxels inside all of them; None where none is."""
    product = None
    for mask in masks:
        if mask is not None:
            product = mask.float() if product is None else product * mask
    return product


def spread(map_: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask or weight (b|1, 1, *space) in the type of ``like``, expanded to its batch."""
    if map_ is None:
        return None
    if map_.ndim != like.ndim or map_.shape[2:] != like.shape[2:] or map_.shape[1] != 1:
        raise InputError(
            f"a mask or weight map must be (batch, 1, *{tuple(like.shape[2:])}), as the image, got {tuple(map_.shape)}"
        )
    return map_.to(like).expand(like.shape[0], *map_.shape[1:])


def over_batch(values: Float[Tensor, " b"], reduction: Reduction) -> Tensor:
    """Reduce one value an item to ``mean`` or ``sum`` over the batch, or keep them (``none``)."""
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    raise OptionError(f"unknown reduction '{reduction}'; known: mean, sum, none")


_ROW = 4096


def ordered_sum(x: Tensor, keep: int = 1) -> Tensor:
    """Sum over all axes but the first ``keep``, the same to the last bit on any number of threads.

    The sum of millions to a single number is split among the threads at hand; sums along one axis after the other are
    not.
    """
    if x.ndim == keep + 1 and x.shape[-1] > _ROW:
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % _ROW)).unflatten(-1, (-1, _ROW))
    while x.ndim > keep:
        x = x.sum(-1)
    return x


def weighted_mean(
    local: Float[Tensor, "b c *space"], mask: Tensor | None = None, weight: Tensor | None = None
) -> Float[Tensor, " b"]:
    """Mean over channels and the voxels of ``mask`` of ``weight * local``, one value an item; 0 for an empty mask."""
    local = local.mean(dim=1, keepdim=True)
    if weight is not None:
        local = local * weight
    if mask is None:
        return ordered_sum(local) / math.prod(local.shape[1:])
    count = ordered_sum(mask)
    return ordered_sum(local * mask) / torch.where(count > 0, count, torch.ones_like(count))


def reduce_local(
    local: Float[Tensor, "b c *space"],
    *,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    map: bool,
) -> Tensor:
    """Local values to the answer of a term: a map (b, 1, *space), weighted and zero outside the mask, or a number."""
    mask, weight = spread(mask, local), spread(weight, local)
    if not map:
        return over_batch(weighted_mean(local, mask, weight), reduction)
    local = local.mean(dim=1, keepdim=True)
    for factor in (mask, weight):
        if factor is not None:
            local = local * factor
    return local


def spacing_of(spacing: tuple[float, ...] | float | None, ndim: int) -> tuple[float, ...]:
    """Spacing for every axis, 1 where none is given (voxel units)."""
    if spacing is None:
        return (1.0,) * ndim
    values = (float(spacing),) * ndim if isinstance(spacing, int | float) else tuple(float(value) for value in spacing)
    if len(values) != ndim or min(values) <= 0:
        raise OptionError(f"spacing {spacing} does not give {ndim} positive lengths, one an axis")
    return values


def radius_of(
    radius: int | tuple[int, ...], radius_mm: float | None, spacing: tuple[float, ...] | None, ndim: int
) -> tuple[int, ...]:
    """Window radius in voxels for every axis; from millimetres (at least one voxel) where ``radius_mm`` is given."""
    if radius_mm is not None:
        if spacing is None:
            raise OptionError(
                "a radius in millimetres needs the spacing of the images; give spacing= or a radius in voxels"
            )
        return tuple(max(1, round(radius_mm / step)) for step in spacing_of(spacing, ndim))
    values = (radius,) * ndim if isinstance(radius, int) else tuple(int(value) for value in radius)
    if len(values) != ndim or min(values) < 0:
        raise OptionError(f"radius {radius} does not give {ndim} whole numbers of voxels, one an axis")
    return values
