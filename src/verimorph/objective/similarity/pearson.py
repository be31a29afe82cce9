"""Pearson correlation over the whole image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, ordered_sum, over_batch, reduce_local, spread


@full_precision
def pearson(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    epsilon: float = 1e-10,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """One minus the correlation coefficient of intensities, 1 - cov(F, W) / sqrt(var F var W + epsilon).

    Range [0, 2]; 0 for W = aF + b with a > 0, 1 for uncorrelated or constant images, 2 for a < 0. Dimensionless. Each
    channel is correlated alone, then averaged.

    Parameters
    ----------
    mask, weight
        A voxel's share in the moments is mask times weight (only relative weights matter).
    map
        Local values 1 - z_F z_W of the standardised images, whose mean over the share is the value.

    Source: Pearson 1895; global correlation as in every registration package.

    Differs from: SimpleITK ``Correlation``, which returns -r^2 (blind to the sign); the survey's code, which pools the
    channels before correlating and has no epsilon.
    """
    check_pair(fixed, moved)
    full_mask, full_weight = spread(mask, fixed), spread(weight, fixed)
    share = full_mask if full_weight is None else full_weight if full_mask is None else full_mask * full_weight
    first, second = fixed.flatten(2), moved.flatten(2)
    if share is None:
        part = torch.full_like(first, 1 / first.shape[2])
    else:
        part = share.flatten(2).expand_as(first)
        part = part / ordered_sum(part, 2)[..., None].clamp_min(1e-12)
    first = first - ordered_sum(first * part, 2)[..., None]
    second = second - ordered_sum(second * part, 2)[..., None]
    spreads = ordered_sum(first * first * part, 2) * ordered_sum(second * second * part, 2)
    scale = torch.rsqrt(spreads + epsilon)
    if map:
        local = (1 - first * second * scale[..., None]).view(fixed.shape)
        return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=True)
    return over_batch((1 - ordered_sum(first * second * part, 2) * scale).mean(1), reduction)
