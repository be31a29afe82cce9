"""Displacement straight from features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.field import resize_displacement
from verimorph.nn.blocks import convolution, size_of, start_small


def exact(x: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(layer: nn.Module, features: Tensor) -> Tensor:
    """A layer outside autocast, in at least float32: bfloat16 rounds displacements near 16 voxels to an eighth."""
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return exact(layer(exact(features)))
    return exact(layer(features))


def bounded(raw: Float[Tensor, "b d *space"], extent: float = 1.0) -> Float[Tensor, "b d *space"]:
    """Displacement in voxels that stays below ``extent`` times half the image: ``softsign(raw) extent N_d / 2``.

    Softsign is x / (1 + |x|), the displacement in the coordinates in which the image spans [-1, 1].
    """
    size = torch.tensor(raw.shape[2:], dtype=raw.dtype, device=raw.device)
    return functional.softsign(raw) * (size * (extent / 2)).view(1, -1, *[1] * (raw.ndim - 2))


class DisplacementHead(nn.Module):
    """One convolution whose output is the displacement in voxels, near zero at the start (weights N(0, 1e-5)).

    Parameters
    ----------
    ndim, channels
        2 or 3; of the features.
    kernel, bias, deviation
        Of the convolution; standard deviation of its first weights.
    bound
        Largest displacement as a share of half the image, through `bounded`; None for no bound.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        kernel: int = 3,
        bias: bool = True,
        deviation: float = 1e-5,
        bound: float | int | None = None,
    ) -> None:
        super().__init__()
        self.convolution = start_small(convolution(ndim, channels, ndim, kernel=kernel, bias=bias), deviation)
        self.bound = bound

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """``field``, on the grid of the images."""
        raw = in_full_precision(self.convolution, features)
        field = raw if self.bound is None else bounded(raw, self.bound)
        return {"field": resize_displacement(field, size_of(fixed))}
