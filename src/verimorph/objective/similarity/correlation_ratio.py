"""Correlation ratio: how much of one image is a function of the other, whole image and local."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, ordered_sum, over_batch, spread
from verimorph.objective.similarity._parzen import binned_moments, intensity_bins
from verimorph.objective.similarity._patches import patches
from verimorph.objective.similarity.mutual_information import patch_edges

RatioWindow = Literal["bspline", "gaussian"]


def explained_variance(
    values: Float[Tensor, "p n"],
    given: Float[Tensor, "p n"],
    *,
    bins: int = 32,
    window: RatioWindow = "bspline",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-8,
    share: Float[Tensor, "p n"] | None = None,
    published: bool = False,
) -> Float[Tensor, " p"]:
    """Share of the variance of ``values`` that their mean given the other image explains, eta^2 in [0, 1].

    With w_i(b) the window weight of voxel i for bin b of ``given``, n_b = sum w_i(b), m_b = sum w_i(b) x_i / n_b::

        eta^2 = [ sum_b n_b (m_b - mean x)^2 / sum_b n_b ] / var(x)

    ``published`` uses unnormalised weights exp(-(distance / sigma)^2), as the survey's code does.
    """
    settings = intensity_bins(given, bins, "gaussian" if published else window, sigma_ratio, intensity_range, share)
    # Moments of centred values: the offset cancels in exact arithmetic and would drown small differences in ours.
    part = torch.ones_like(values) if share is None else share
    total = ordered_sum(part).clamp_min(1e-12)
    centred = values - (ordered_sum(values * part) / total)[:, None]
    moments = binned_moments(centred, given, settings, share, published=published)
    count, summed = moments[..., 0], moments[..., 1]
    between = (count * (summed / (count + epsilon)) ** 2).sum(1) / (count.sum(1) + epsilon)
    degrees = (total - 1).clamp_min(1) if published else total
    variance = (ordered_sum(centred**2 * part) / degrees).double()
    return between / (variance + epsilon)


@full_precision
def correlation_ratio(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    bins: int = 32,
    window: RatioWindow = "bspline",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-8,
    published: bool = False,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """One minus the correlation ratio, symmetrised: 1 - (eta^2(F given W) + eta^2(W given F)) / 2.

    Range [0, 1]; near 0 where each image is a function of the other (windows blur it a little), 1 for independent
    images and for a constant one. Dimensionless. See `explained_variance` for eta^2.

    Parameters
    ----------
    bins, window, intensity_range
        As in `mutual_information`; ``window`` is ``bspline`` or ``gaussian``.
    published
        Weights of the survey's code instead: not normalised over bins, not held to the range, unbiased variance.
    mask, weight
        A voxel's share in the statistics is mask times weight.

    Source: Roche et al., MICCAI 1998.

    Differs from: the survey's code, which divides eta^2 by three and returns the negative mean: theirs is
    (value - 1) / 3 with ``published=True`` and ``epsilon=1e-5``.
    """
    check_pair(fixed, moved)
    mask, weight = spread(mask, fixed), spread(weight, fixed)
    share = mask if weight is None else weight if mask is None else mask * weight
    if share is not None:
        share = share.expand(*fixed.shape[:2], *share.shape[2:]).flatten(2).flatten(0, 1)
    first, second = fixed.flatten(2).flatten(0, 1), moved.flatten(2).flatten(0, 1)
    settings: dict[str, Any] = {
        "bins": bins,
        "window": window,
        "sigma_ratio": sigma_ratio,
        "intensity_range": intensity_range,
        "epsilon": epsilon,
        "share": share,
        "published": published,
    }
    both = explained_variance(first, second, **settings) + explained_variance(second, first, **settings)
    return over_batch((1 - both / 2).view(fixed.shape[:2]).mean(1).to(fixed.dtype), reduction)


@full_precision
def local_correlation_ratio(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    patch: int | tuple[int, ...] = 12,
    patch_mm: float | None = None,
    shifted: bool = True,
    bins: int = 8,
    window: RatioWindow = "bspline",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-8,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean over patches of `correlation_ratio`; a constant patch counts 1. Range [0, 1].

    Patches as in `local_mutual_information`: voxels beyond the border count nothing, a patch weighs as many voxels as
    it counts, and ``shifted`` averages a second tiling moved by half a patch.

    Source: local form as listed in the survey of Chen et al. 2025.

    Differs from: the survey's code (zero-padded patches; a second pass on images rolled round, which joins opposite
    borders; eta^2 divided by three).
    """
    check_pair(fixed, moved)
    edges = patch_edges(patch, patch_mm, spacing, fixed.ndim - 2)
    mask, weight = spread(mask, fixed), spread(weight, fixed)
    share = mask if weight is None else weight if mask is None else mask * weight
    tilings = []
    for offset in ([0] * len(edges), [edge // 2 for edge in edges])[: 1 + shifted]:
        tiled = patches(fixed, moved, share, edges, offset)
        first, second, part = (image.flatten(0, 2) for image in tiled)
        settings: dict[str, Any] = {
            "bins": bins,
            "window": window,
            "sigma_ratio": sigma_ratio,
            "intensity_range": intensity_range,
            "epsilon": epsilon,
            "share": part,
        }
        both = explained_variance(first, second, **settings) + explained_variance(second, first, **settings)
        size = tiled[2].sum(-1).double()
        values = (1 - both / 2).view(size.shape)
        tilings.append(((values * size).sum(2) / size.sum(2).clamp_min(1e-6)).mean(1))
    return over_batch(torch.stack(tilings).mean(0).to(fixed.dtype), reduction)
