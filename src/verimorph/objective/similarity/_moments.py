"""Moments of two images in a window around every voxel: what LNCC and SSIM are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from verimorph.objective._reduce import ordered_sum, spread
from verimorph.objective._windows import MomentBorder, separable, window_total


class Moments(NamedTuple):
    """Window means, variances and covariance ``(b, c, *space)``, and the window's weight ``(b|1, 1, *space)``."""

    fixed_mean: Tensor
    moved_mean: Tensor
    fixed_variance: Tensor
    moved_variance: Tensor
    covariance: Tensor
    count: Tensor


def mean_inside(image: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of every channel of every item (b, c), over the mask where there is one."""
    if mask is None:
        return ordered_sum(image, 2) / image[0, 0].numel()
    return ordered_sum(image * mask, 2) / ordered_sum(mask, 2).clamp_min(1e-6)


def centre(image: Tensor, mask: Tensor | None, border: MomentBorder) -> tuple[Tensor, Tensor | float]:
    """The image less its mean, and that mean: sums of squares of an offset image lose their digits.

    With zero borders the zeros are part of the image, so nothing is taken off.
    """
    if border == "zeros":
        return image, 0.0
    mean = mean_inside(image, mask).view(*image.shape[:2], *(1,) * (image.ndim - 2))
    return image - mean, mean


def local_moments(
    fixed: Tensor, moved: Tensor, weights: Sequence[tuple[float, ...]], border: MomentBorder, mask: Tensor | None
) -> Moments:
    """Moments under a separable window, of the voxels inside image and mask (``valid``) or of zeros too (``zeros``)."""
    mask = spread(mask, fixed)
    fixed, fixed_offset = centre(fixed, mask, border)
    moved, moved_offset = centre(moved, mask, border)
    count = window_total(fixed, weights, border, mask)

    def mean(x: Tensor) -> Tensor:
        return separable(x if mask is None else x * mask, weights) / count

    fixed_mean, moved_mean = mean(fixed), mean(moved)
    return Moments(
        fixed_mean + fixed_offset,
        moved_mean + moved_offset,
        (mean(fixed * fixed) - fixed_mean**2).clamp_min(0),
        (mean(moved * moved) - moved_mean**2).clamp_min(0),
        mean(fixed * moved) - fixed_mean * moved_mean,
        count,
    )
