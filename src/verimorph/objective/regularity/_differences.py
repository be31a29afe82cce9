"""Finite differences of fields, in voxels or millimetres, and what a mask leaves of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError
from verimorph.objective._reduce import ordered_sum


def check_field(field: Tensor, least: int = 2) -> None:
    """Refuse what is not (batch, D, *space) with D axes of at least ``least`` voxels."""
    if field.ndim not in (4, 5) or field.shape[1] != field.ndim - 2:
        raise InputError(f"expected a field (batch, D, *space) with D = 2 or 3 axes of space, got {tuple(field.shape)}")
    if min(field.shape[2:]) < least:
        raise InputError(f"this regulariser needs at least {least} voxels an axis, got {tuple(field.shape[2:])}")


def in_millimetres(field: Float[Tensor, "b d *space"], spacing: Sequence[float] | None) -> Tensor:
    """Components times the spacing of their axis; voxels stay voxels where none is given."""
    if spacing is None:
        return field
    scale = torch.as_tensor(spacing, dtype=field.dtype, device=field.device)
    return field * scale.view(1, -1, *(1,) * (field.ndim - 2))


def shift(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Slice ``start:stop`` (``stop`` from the end) along an axis of space."""
    return x.narrow(2 + axis, start, x.shape[2 + axis] - start - stop)


def forward_difference(x: Tensor, axis: int) -> Tensor:
    """x(i + 1) - x(i), one voxel shorter along the axis."""
    return shift(x, axis, 1, 0) - shift(x, axis, 0, 1)


def central_difference(x: Tensor, axis: int) -> Tensor:
    """(x(i + 1) - x(i - 1)) / 2, two voxels shorter along the axis."""
    return (shift(x, axis, 2, 0) - shift(x, axis, 0, 2)) / 2


def crop(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Take voxels off both ends of every axis of space."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        x = shift(x, axis, low, high)
    return x


def all_inside(mask: Tensor | None, before: Sequence[int], after: Sequence[int]) -> Tensor | None:
    """Mask of stencils on the cropped grid: 1 where the whole box from ``-before`` to ``+after`` is inside."""
    if mask is None:
        return None
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        length = mask.shape[2 + axis] - low - high
        parts = [mask.narrow(2 + axis, start, length) for start in range(low + high + 1)]
        mask = torch.stack(parts).amin(0)
    return mask


def stencils(share: Tensor | None, field: Tensor, shorter: Sequence[int]) -> Tensor:
    """Stencils that count in every item: those inside the mask, or all of a grid so many voxels shorter an axis."""
    if share is None:
        whole = math.prod(length - less for length, less in zip(field.shape[2:], shorter, strict=True))
        return field.new_full((len(field),), float(whole))
    count = ordered_sum(share)
    return torch.where(count > 0, count, torch.ones_like(count))


def local_mean(map_: Tensor | None, before: Sequence[int], after: Sequence[int]) -> Tensor | None:
    """Weight of stencils: mean over the two ends of the box along every axis, on the cropped grid."""
    if map_ is None:
        return None
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low + high:
            length = map_.shape[2 + axis] - low - high
            map_ = (map_.narrow(2 + axis, 0, length) + map_.narrow(2 + axis, low + high, length)) / 2
    return map_


def refill(local: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Zeros where no stencil fits, so that a map has the shape of the field."""
    widths = [width for low, high in reversed(list(zip(before, after, strict=True))) for width in (low, high)]
    return torch.nn.functional.pad(local, widths)
