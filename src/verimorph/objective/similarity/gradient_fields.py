"""Normalised gradient fields: edges that point along the same line."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, reduce_local, spacing_of, spread, weighted_mean


def image_gradient(image: Float[Tensor, "b c *space"], spacing: tuple[float, ...]) -> Float[Tensor, "d b c *space"]:
    """Derivative by every axis, per unit of ``spacing``: central differences, one-sided at the border."""
    parts = []
    for axis, step in enumerate(spacing):
        dim = 2 + axis
        if image.shape[dim] == 1:
            parts.append(torch.zeros_like(image))
        else:
            parts.append(torch.gradient(image, spacing=step, dim=dim)[0])
    return torch.stack(parts)


@full_precision
def ngf(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    noise: float = 1.0,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Normalised gradient fields: mean of 1 - <n_F, n_W>^2, n = grad I / sqrt(|grad I|^2 + eta^2).

    eta = ``noise`` times the mean gradient magnitude of each image inside the mask: gradients well below it count as
    noise. Range [0, 1]; lowest, not 0, at a perfect match: flat regions count 1 whatever they meet. Dimensionless; with
    ``spacing`` gradients are taken in millimetres, which matters to their direction where voxels are anisotropic.

    Parameters
    ----------
    noise
        Edge parameter, relative to the mean gradient magnitude.

    Source: Haber & Modersitzki, MICCAI 2006.

    Differs from: forms with an absolute edge parameter, with eta in the numerator too (0 at a perfect match), or with
    the cross product (1 minus ours where eta is small).
    """
    check_pair(fixed, moved)
    steps = spacing_of(spacing, fixed.ndim - 2)
    normals = []
    inside = spread(mask, fixed)
    for image in (fixed, moved):
        gradient = image_gradient(image, steps)
        square = gradient.square().sum(0)
        # sqrt has no slope at 0: the tiny constant stands for it. Each channel has its own mean.
        size = (square + 1e-20).sqrt()
        channels = [weighted_mean(size[:, c : c + 1], inside) for c in range(size.shape[1])]
        magnitude = torch.stack(channels, 1).view(*size.shape[:2], *(1,) * (image.ndim - 2))
        eta = noise * magnitude
        normals.append(gradient * torch.rsqrt(square + eta**2 + 1e-12))
    local = 1 - (normals[0] * normals[1]).sum(0).square()
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
