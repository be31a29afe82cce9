"""Mutual information of two images: Parzen, Mattes and normalised forms, whole image and local."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, ordered_sum, over_batch, reduce_local, spacing_of, spread
from verimorph.objective.similarity._parzen import Bins, Window, histogram_gradient, intensity_bins, joint_histogram
from verimorph.objective.similarity._patches import patches

ParzenWindow = Literal["bspline", "gaussian", "mattes"]
InformationForm = Literal["mutual", "normalised"]


def information(table: Float[Tensor, "p rows columns"], form: InformationForm, epsilon: float) -> Float[Tensor, " p"]:
    """The loss of a joint distribution: -MI in nats, or 2 - (H_F + H_W) / H_FW."""
    fixed, moved = table.sum(2), table.sum(1)
    if form == "mutual":
        expected = fixed[:, :, None] * moved[:, None, :]
        return -(table * torch.log(table / (expected + epsilon) + epsilon)).sum((1, 2))
    if form != "normalised":
        raise OptionError(f"unknown form '{form}' of mutual information; known: mutual, normalised")

    def entropy(distribution: Tensor) -> Tensor:
        return -(distribution * torch.log(distribution + epsilon)).flatten(1).sum(1)

    joint = entropy(table)
    # One occupied bin has no entropy: nothing can be learnt from it, the worst value.
    return 2 - torch.where(joint > 1e-6, (entropy(fixed) + entropy(moved)) / joint.clamp_min(1e-6), joint * 0 + 1)


def _windows(window: ParzenWindow) -> tuple[Window, Window]:
    known: dict[str, tuple[Window, Window]] = {
        "bspline": ("bspline", "bspline"),
        "gaussian": ("gaussian", "gaussian"),
        "mattes": ("floor", "bspline"),
    }
    if window not in known:
        raise OptionError(f"unknown window '{window}' of mutual information; known: {', '.join(known)}")
    return known[window]


def _flat(
    fixed: Tensor, moved: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Channels as items, space flat, and every voxel's share in the statistics."""
    batch, channels = fixed.shape[:2]
    mask, weight = spread(mask, fixed), spread(weight, fixed)
    share = mask if weight is None else weight if mask is None else mask * weight
    if share is not None:
        share = share.expand(batch, channels, *share.shape[2:]).flatten(2).flatten(0, 1)
    return fixed.flatten(2).flatten(0, 1), moved.flatten(2).flatten(0, 1), share


def _bins(
    fixed: Tensor,
    moved: Tensor,
    share: Tensor | None,
    bins: int,
    window: ParzenWindow,
    sigma_ratio: float,
    intensity_range: tuple[float, float] | None,
) -> tuple[Bins, Bins]:
    if bins < 4:
        raise OptionError(f"mutual information needs at least 4 bins, got {bins}")
    kinds = _windows(window)
    return (
        intensity_bins(fixed, bins, kinds[0], sigma_ratio, intensity_range, share),
        intensity_bins(moved, bins, kinds[1], sigma_ratio, intensity_range, share),
    )


@full_precision
def mutual_information(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    bins: int = 32,
    window: ParzenWindow = "bspline",
    form: InformationForm = "mutual",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-10,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mutual information of intensities, negative (or 2 minus the normalised form).

    With Parzen weights w_i(a) of voxel i for bin a, summing to one over the bins::

        p_ab = mean_i w^F_i(a) w^W_i(b);  p_a, p_b its margins
        mutual:      value = - sum p_ab log( p_ab / (p_a p_b + epsilon) + epsilon )      nats, range [-log bins, 0]
        normalised:  value = 2 - (H_F + H_W) / H_FW                                      range [0, 1]

    Both are best at their lower end, independent images give the upper one. Windows blur the histogram, so the value at
    a perfect match stays above -log(bins). Each channel is measured alone.

    Parameters
    ----------
    bins
        Bin centres over the range, ends included.
    window
        ``bspline``: cubic B-splines for both images (symmetric, fast); ``gaussian``: standard deviation
        ``sigma_ratio`` bins, normalised over the bins; ``mattes``: the fixed image falls in one bin, the moved one is
        spread by a cubic B-spline.
    intensity_range
        Intensities of first and last centre, values beyond are held there without gradient; None: each image's own
        range inside the mask.
    mask, weight
        A voxel's share in the histogram is mask times weight (only relative weights matter).
    map
        Local values whose mean over the mask is the value of the mutual form: -sum_ab w^F w^W log(p_ab / (p_a p_b)).
        No gradient flows through a map.

    Source: Viola & Wells 1997; Mattes et al. 2003 (IEEE TMI 22:120); Studholme et al. 1999 (normalised).

    Differs from: SimpleITK Mattes by nothing with ``window="mattes"``, ``bins`` = theirs - 3 and own ranges (all voxels
    sampled); the survey's code and MONAI by where the small constant stands, and by clamping only at 0 and 1; MONAI by
    its default of 23 bins and half the bin width.
    """
    check_pair(fixed, moved)
    first, second, share = _flat(fixed, moved, mask, weight)
    kinds = _bins(first, second, share, bins, window, sigma_ratio, intensity_range)
    if map:
        local = _pointwise(first.detach(), second.detach(), share, kinds, epsilon).view(fixed.shape)
        return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=True)
    values = information(joint_histogram(first, second, *kinds, share), form, epsilon)
    return over_batch(values.view(fixed.shape[:2]).mean(1).to(fixed.dtype), reduction)


def _pointwise(fixed: Tensor, moved: Tensor, share: Tensor | None, bins: tuple[Bins, Bins], epsilon: float) -> Tensor:
    """Minus the expected log ratio at every voxel."""
    table = joint_histogram(fixed, moved, *bins, share)
    expected = table.sum(2, keepdim=True) * table.sum(1, keepdim=True)
    ratio = -torch.log(table / (expected + epsilon) + epsilon).to(fixed.dtype)
    result = torch.empty_like(fixed)
    step = max(1, (1 << 22) // sum(b.size for b in bins))
    for start in range(0, fixed.shape[1], step):
        part = slice(start, start + step)
        first, second = bins[0].weights(fixed[:, part])[0], bins[1].weights(moved[:, part])[0]
        result[:, part] = ((first @ ratio) * second).sum(-1)
    return result


@full_precision
def mutual_information_value_and_gradient(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    bins: int = 32,
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    window: ParzenWindow = "bspline",
    form: InformationForm = "mutual",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-10,
    gradient: bool = True,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c *space"] | None]:
    """`mutual_information` of every item and its gradient with respect to ``moved``, without a graph of voxels.

    One pass fills the joint histogram, the derivative of the value by the table is taken on the table, a second pass
    looks it up for every voxel.
    """
    check_pair(fixed, moved)
    first, second, share = _flat(fixed.detach(), moved.detach(), mask, weight)
    kinds = _bins(first, second, share, bins, window, sigma_ratio, intensity_range)
    with torch.enable_grad():
        table = joint_histogram(first, second, *kinds, share).requires_grad_()
        values = information(table, form, epsilon)
        if not gradient:
            return values.detach().view(fixed.shape[:2]).mean(1).to(fixed.dtype), None
        (slope,) = torch.autograd.grad(values.sum(), table)
    total = float(first.shape[1]) if share is None else ordered_sum(share).clamp_min(1e-12).double().view(-1, 1, 1)
    slope = slope / total / fixed.shape[1]
    change = histogram_gradient(first, second, share, *kinds, slope).view(moved.shape)
    return values.detach().view(fixed.shape[:2]).mean(1).to(fixed.dtype), change


@full_precision
def local_mutual_information(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    patch: int | tuple[int, ...] = 12,
    patch_mm: float | None = None,
    shifted: bool = True,
    bins: int = 8,
    window: ParzenWindow = "bspline",
    form: InformationForm = "mutual",
    sigma_ratio: float = 1.0,
    intensity_range: tuple[float, float] | None = (0.0, 1.0),
    epsilon: float = 1e-10,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean over patches of `mutual_information`, each patch with its own histogram.

    Patches tile the image; voxels beyond the border count nothing, and a patch weighs as many voxels as it counts.
    Range [-log bins, 0] (mutual) or [0, 1] (normalised), 0 worst and 1 worst respectively. A patch of n voxels in b^2
    cells overestimates information by about b^2 / 2n: keep the bins few, and compare values rather than read them.

    Parameters
    ----------
    patch, patch_mm
        Edge in voxels (one, or one an axis), or in millimetres with ``spacing``.
    shifted
        Also take the tiling moved by half a patch, and average.

    Source: Studholme et al. 2006 (regional MI); tiled form as in the survey of Chen et al. 2025.

    Differs from: the survey's code (zeros padded into the histograms, patch 5 with 32 bins, one tiling).
    """
    check_pair(fixed, moved)
    edges = patch_edges(patch, patch_mm, spacing, fixed.ndim - 2)
    mask, weight = spread(mask, fixed), spread(weight, fixed)
    share = mask if weight is None else weight if mask is None else mask * weight
    tilings = []
    for offset in ([0] * len(edges), [edge // 2 for edge in edges])[: 1 + shifted]:
        first, second, part = patches(fixed, moved, share, edges, offset)
        flat = first.flatten(0, 2), second.flatten(0, 2), part.flatten(0, 2)
        kinds = _bins(*flat, bins, window, sigma_ratio, intensity_range)
        values = information(joint_histogram(flat[0], flat[1], *kinds, flat[2]), form, epsilon)
        size = part.sum(-1).double()
        values = values.view(size.shape)
        tilings.append(((values * size).sum(2) / size.sum(2).clamp_min(1e-6)).mean(1))
    return over_batch(torch.stack(tilings).mean(0).to(fixed.dtype), reduction)


def patch_edges(
    patch: int | tuple[int, ...], patch_mm: float | None, spacing: tuple[float, ...] | None, ndim: int
) -> tuple[int, ...]:
    """Edge lengths of a patch in voxels, at least 2."""
    if patch_mm is not None:
        if spacing is None:
            raise OptionError("a patch in millimetres needs the spacing of the images")
        return tuple(max(2, math.ceil(patch_mm / step)) for step in spacing_of(spacing, ndim))
    edges = (patch,) * ndim if isinstance(patch, int) else tuple(patch)
    if len(edges) != ndim or min(edges) < 2:
        raise OptionError(f"patch {patch} does not give {ndim} edges of at least 2 voxels")
    return edges
