"""Mean squared and mean absolute difference."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._analytic import analytic_pair
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, ordered_sum, over_batch, reduce_local, spread


@full_precision
def mse_value_and_gradient(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    gradient: bool = True,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c *space"] | None]:
    """`mse` of every item and its gradient with respect to ``moved``, (2/N) w (W - F), without autograd."""
    check_pair(fixed, moved)
    fixed, moved = fixed.detach(), moved.detach()
    mask, weight = spread(mask, moved), spread(weight, moved)
    share = mask if weight is None else weight if mask is None else mask * weight
    channels = moved.shape[1]
    if mask is None:
        inside = moved.new_full((moved.shape[0],), float(math.prod(moved.shape[2:])))
    else:
        inside = ordered_sum(mask).clamp_min(1e-6)
    if not usable(fixed, moved, share):
        difference = moved - fixed
        weighted = difference if share is None else difference * share
        value = ordered_sum(weighted * difference) / (inside * channels)
        if not gradient:
            return value, None
        return value, weighted * (2 / (inside * channels)).view(-1, *(1,) * (moved.ndim - 1))
    from verimorph.objective._kernels.squared import squared_difference

    fixed, moved = fixed.contiguous(), moved.contiguous()
    result = torch.empty_like(moved) if gradient else None
    value = torch.zeros(moved.shape[0], dtype=torch.float64)
    for b in range(moved.shape[0]):
        scale = 2.0 / (float(inside[b]) * channels)
        part = moved[b, 0] if share is None else share[b, 0].contiguous()
        for c in range(channels):
            out = moved[b, c] if result is None else result[b, c]
            total = squared_difference(
                *(x.view(-1).numpy() for x in (fixed[b, c], moved[b, c], part)),
                share is not None,
                np.float32(scale),
                out.view(-1).numpy(),
                result is not None,
            )
            value[b] += total * scale / 2
    return value.to(moved.dtype), result


@full_precision
def mse(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean squared difference of intensities, mean over voxels and channels of (F - W)^2.

    Range [0, inf), 0 best; unit intensity^2. Under Gaussian image noise of standard deviation sigma, the negative
    log-likelihood a voxel is this over 2 sigma^2.

    Parameters
    ----------
    fixed, moved
        Images on one grid.
    mask
        Voxels that take part (product of the masks of both images).
    weight
        Multiplier of the local energy, 1 = default.
    reduction
        ``mean`` or ``sum`` over the batch, ``none`` for one value an item.
    map
        True for the local values ``(b, 1, *space)``.

    Differs from: SimpleITK ``MeanSquares`` by nothing at equal masks; code that sums over voxels, by N.
    """
    check_pair(fixed, moved)
    if map:
        return reduce_local((fixed - moved) ** 2, mask=mask, weight=weight, reduction=reduction, map=True)

    def compute(
        fixed: Tensor, moved: Tensor, want_fixed: bool, want_moved: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        value, gradient = mse_value_and_gradient(
            fixed, moved, mask=mask, weight=weight, gradient=want_fixed or want_moved
        )
        to_fixed = -gradient if want_fixed and gradient is not None else None
        return value, to_fixed, gradient if want_moved else None

    return over_batch(analytic_pair(fixed, moved, compute), reduction)


@full_precision
def mae(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean absolute difference of intensities, mean of |F - W|.

    Range [0, inf), 0 best; unit intensity. The subgradient at equality is zero. Arguments as in `mse`.

    Differs from: ``torch.nn.L1Loss`` by nothing without a mask.
    """
    check_pair(fixed, moved)
    return reduce_local((fixed - moved).abs(), mask=mask, weight=weight, reduction=reduction, map=map)
