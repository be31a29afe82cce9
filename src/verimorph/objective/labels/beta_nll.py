"""Gaussian likelihood of warped labels under a predicted variance, weighted by a power of that variance."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError, OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, reduce_local

CLAMP = 20.0
"""Log variances count as within -CLAMP and CLAMP."""


@full_precision
def beta_nll(
    fixed_labels: Float[Tensor, "b k *space"],
    moved_labels: Float[Tensor, "b k *space"],
    log_variance: Float[Tensor, "b k *space"],
    *,
    beta: float = 1.0,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Beta-weighted Gaussian NLL: mean of stop(v)^beta ((y - p)^2 / v + ln v), v = exp(log_variance).

    Mean over voxels and classes; y the fixed labels, p the moved ones; stop() lets no gradient pass. Range (-inf, inf),
    lower is better, in squared label units for beta 1. With beta 1 the gradient by p is -2 (y - p), that of the squared
    error, and the gradient by ln v is v - (y - p)^2: v becomes the mean squared error of the labels. With beta 0 it
    is the ordinary NLL (twice, without its constant), whose gradient by p fades where v is large.

    Parameters
    ----------
    log_variance
        ln v, clamped to [-20, 20].
    beta
        Power of the weight, from 0 (none) to 1.

    Differs from: Seitzer et al. by the factor 1/2, left out as in the code of Chen et al.

    Source: Seitzer et al., On the pitfalls of heteroscedastic uncertainty estimation, ICLR 2022; Chen et al., From
    registration uncertainty to segmentation uncertainty, ISBI 2024.
    """
    if not fixed_labels.shape == moved_labels.shape == log_variance.shape:
        raise InputError(
            f"labels and variances differ in shape: fixed {tuple(fixed_labels.shape)}, moved "
            f"{tuple(moved_labels.shape)}, log variance {tuple(log_variance.shape)}; set the model's classes"
        )
    if not 0 <= beta <= 1:
        raise OptionError(f"beta must be in [0, 1], got {beta}")
    log_variance = log_variance.clamp(-CLAMP, CLAMP)
    local = (fixed_labels.to(moved_labels) - moved_labels).square() * (-log_variance).exp() + log_variance
    local = local * (beta * log_variance.detach()).exp()
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
