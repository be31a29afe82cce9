"""Other numbers of voxels over the same field of view."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def resize(x: Float[Tensor, "b c *space"], shape: tuple[int, ...]) -> Float[Tensor, "b c *out"]:
    """Resample to another shape over the same field of view, linear, edges repeated. Smooth first when shrinking."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    mode = {2: "bilinear", 3: "trilinear"}[x.ndim - 2]
    return torch.nn.functional.interpolate(x, size=tuple(shape), mode=mode, align_corners=False)


def resize_displacement(displacement: Float[Tensor, "b d *space"], shape: tuple[int, ...]) -> Float[Tensor, "b d *out"]:
    """Resample a field to another shape over the same field of view; component d is scaled by ``N'_d / N_d``."""
    old = displacement.shape[2:]
    factor = torch.tensor([m / n for n, m in zip(old, shape, strict=True)], dtype=displacement.dtype)
    return resize(displacement, shape) * factor.to(displacement.device).view(1, -1, *[1] * len(shape))
