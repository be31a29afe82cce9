"""Windows as shifted views of one padded tensor: nothing is unfolded, so nothing grows with the window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from verimorph.errors import InputError, OptionError


def radii(radius: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Radius in voxels along every axis."""
    values = (radius,) * ndim if isinstance(radius, int) else tuple(radius)
    if len(values) != ndim or min(values) < 0:
        raise OptionError(f"radius {radius} does not give {ndim} whole numbers of voxels, one an axis")
    return values


def offsets(radius: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Offsets of a window, the last axis fastest."""
    return list(itertools.product(*(range(-r, r + 1) for r in radius)))


def padded(x: Tensor, radius: tuple[int, ...]) -> Tensor:
    """Zeros around the axes of space."""
    return torch.nn.functional.pad(x, [r for r in reversed(radius) for _ in range(2)])


def shifts(wide: Tensor, radius: tuple[int, ...]) -> Iterator[Tensor]:
    """Views of a padded tensor, one an offset: the view of offset o holds x(i + o) at i."""
    for offset in offsets(radius):
        view = wide
        for axis, (step, r) in enumerate(zip(offset, radius, strict=True)):
            view = view.narrow(2 + axis, step + r, wide.shape[2 + axis] - 2 * r)
        yield view


def cropped(wide: Tensor, radius: tuple[int, ...]) -> Tensor:
    """What `padded` was given."""
    for axis, r in enumerate(radius):
        wide = wide.narrow(2 + axis, r, wide.shape[2 + axis] - 2 * r)
    return wide


def check_features(fixed: Tensor, moving: Tensor) -> None:
    """Refuse features that differ in shape or are not 2-D or 3-D batches."""
    if fixed.shape != moving.shape or fixed.ndim not in (4, 5):
        raise InputError(
            f"features must be (batch, channel, *space) of one shape, got fixed {tuple(fixed.shape)} and moving "
            f"{tuple(moving.shape)}"
        )
