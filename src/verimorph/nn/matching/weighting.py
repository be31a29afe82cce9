"""Many candidate fields made one: they compete for every voxel."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.field import resize_displacement
from verimorph.nn.blocks import Activation, ConvBlock, Normalisation, convolution


class CompetitiveWeighting(nn.Module):
    """Weighted sum of motion fields, u = sum_h w_h u_h, with w the softmax over heads of convolutions of all of them.

    Parameters
    ----------
    ndim, heads
        Axes of space; number of fields.
    channels
        Of the two hidden convolutions; default twice the channels of all fields.
    factor
        How many times finer the result's grid is than the fields' (they are resized first).
    norm, activation, slope
        Of the hidden convolutions.

    References
    ----------
    Wang et al., ModeT, MICCAI 2023 (competitive weighting module).
    """

    def __init__(
        self,
        *,
        ndim: int,
        heads: int,
        channels: int | None = None,
        factor: int = 2,
        norm: Normalisation = "instance",
        activation: Activation = "leaky_relu",
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        if heads < 2:
            raise OptionError(f"competition needs at least two fields, got {heads}")
        width = 2 * ndim * heads if channels is None else channels
        self.factor = factor
        self.weigh = nn.Sequential(
            ConvBlock(ndim, ndim * heads, width, norm=norm, activation=activation, slope=slope),
            ConvBlock(ndim, width, width, norm=norm, activation=activation, slope=slope),
            convolution(ndim, width, heads),
        )

    def forward(self, fields: Float[Tensor, "b h d *space"]) -> Float[Tensor, "b d *fine"]:
        """One field in voxels of the finer grid, at least float32."""
        exact = torch.promote_types(fields.dtype, torch.float32)
        shape = tuple(n * self.factor for n in fields.shape[3:])
        finer = resize_displacement(fields.to(exact).flatten(0, 1), shape).unflatten(0, fields.shape[:2])
        weights = self.weigh(finer.flatten(1, 2)).to(exact).softmax(dim=1)
        return (weights.unsqueeze(2) * finer).sum(1)


class MotionStage(nn.Module):
    """Matching whose fields become one: a part of the refinement loop.

    Parameters
    ----------
    matching
        Called with ``fixed`` and ``moving``; returns (b, heads, d, \\*space), as `NeighbourhoodMatching`.
    weighting
        Makes one field of them, as `CompetitiveWeighting`. None: their mean, which of one head is the field itself.
    """

    def __init__(self, matching: nn.Module, weighting: nn.Module | None = None) -> None:
        super().__init__()
        self.matching, self.weighting = matching, weighting

    def forward(
        self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b d *fine"]:
        """One field in voxels of its grid."""
        fields = self.matching(fixed=fixed, moving=moving)
        return fields.mean(1) if self.weighting is None else self.weighting(fields)
