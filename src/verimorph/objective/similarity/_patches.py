"""Tile images into patches, with a share of zero for what lies beyond the border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def _tiled(image: Tensor, edges: Sequence[int], offset: Sequence[int]) -> Float[Tensor, "b c patches voxels"]:
    pad: list[int] = []
    for length, edge, start in zip(reversed(image.shape[2:]), reversed(edges), reversed(offset), strict=True):
        pad += [start, -(length + start) % edge]
    image = torch.nn.functional.pad(image, pad)
    ndim = len(edges)
    split = [number for length, edge in zip(image.shape[2:], edges, strict=True) for number in (length // edge, edge)]
    image = image.reshape(*image.shape[:2], *split)
    order = [0, 1, *(2 + 2 * axis for axis in range(ndim)), *(3 + 2 * axis for axis in range(ndim))]
    return image.permute(order).flatten(2 + ndim).flatten(2, 1 + ndim)


def patches(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    share: Float[Tensor, "#b 1 *space"] | None,
    edges: Sequence[int],
    offset: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Both images and the voxels' share as ``(b, c, patches, voxels)``; ``offset`` moves the tiling."""
    if share is None:
        share = fixed.new_ones(fixed.shape[0], 1, *fixed.shape[2:])
    share = share.expand(fixed.shape[0], fixed.shape[1], *fixed.shape[2:])
    return _tiled(fixed, edges, offset), _tiled(moved, edges, offset), _tiled(share, edges, offset)
