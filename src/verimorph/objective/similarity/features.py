"""Similarity of many-channel images: feature maps of any extractor, compared voxel by voxel."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, reduce_local

FeatureMeasure = Literal["squared", "absolute", "cosine", "correlation"]


@full_precision
def feature_distance(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    measure: FeatureMeasure = "squared",
    epsilon: float = 1e-8,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Distance of feature vectors at every voxel, averaged.

    With f, w the vectors of c features of a voxel::

        squared      mean_c (f - w)^2                          [0, inf)
        absolute     mean_c |f - w|                            [0, inf)
        cosine       1 - <f, w> / sqrt(|f|^2 |w|^2 + epsilon)  [0, 2]
        correlation  the same of f and w less their means over c

    0 best; vectors of zeros count 1 under the last two. Features are what a network, a filter bank or MIND yields, on
    any grid that mask and weight share.

    Source: multi-channel and learned-feature metrics, for instance Czolbe et al. 2023 (DeepSim: cosine).
    """
    check_pair(fixed, moved)
    if measure == "squared":
        local = (fixed - moved) ** 2
    elif measure == "absolute":
        local = (fixed - moved).abs()
    elif measure in ("cosine", "correlation"):
        if measure == "correlation":
            fixed, moved = (image - image.mean(1, keepdim=True) for image in (fixed, moved))
        lengths = fixed.square().sum(1, keepdim=True) * moved.square().sum(1, keepdim=True)
        local = 1 - (fixed * moved).sum(1, keepdim=True) / (lengths + epsilon).sqrt()
    else:
        raise OptionError(f"unknown measure '{measure}' of features; known: squared, absolute, cosine, correlation")
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
