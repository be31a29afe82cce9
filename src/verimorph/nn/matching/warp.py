"""Moving features brought to the fixed ones by the coarser field before they meet."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.field import resize_displacement, warp


def warp_features(
    features: Float[Tensor, "b c *space"], field: Float[Tensor, "b d *coarse"] | None
) -> Float[Tensor, "b c *space"]:
    """Moving features read through a field of any grid over the same field of view: features(i + u(i)), zero outside.

    The field, in voxels of its own grid, is resized to that of the features; None moves nothing. Interpolates in
    float32 and returns the features' type.
    """
    if field is None:
        return features
    exact = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        resized = resize_displacement(field.to(exact), tuple(features.shape[2:]))
        return warp(features.to(exact), resized).to(features.dtype)


class WarpThenFuse(nn.Module):
    """`warp_features`, then any part that takes ``fixed`` and ``moving``.

    Parameters
    ----------
    part
        For instance `Fusion`, `Correlation`, `NeighbourhoodMatching`.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(
        self,
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
        field: Float[Tensor, "b d *coarse"] | None = None,
    ) -> Tensor:
        """What the part makes of the fixed and the warped moving features."""
        return self.part(fixed=fixed, moving=warp_features(moving, field))
