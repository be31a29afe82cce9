"""Soft histograms: joint, and of a second image's values, differentiable, in chunks of voxels.

A window spreads a voxel over the bins near its intensity. Plain torch evaluates it densely for one chunk of voxels at
a time, forward and backward, so that the array of voxels by bins (tens of gigabytes for a brain) never exists; the
cubic B-spline has a compiled kernel that touches four bins only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from verimorph.objective._kernels import usable

#: ``bspline`` cubic B-spline; ``gaussian`` normalised over the bins; ``floor`` the bin that the value falls in.
Window = Literal["bspline", "gaussian", "floor"]

_ELEMENTS = 1 << 22  # of one dense chunk of voxels by bins


@dataclass(frozen=True)
class Bins:
    """Bin centres evenly over an intensity range, and the window's form.

    Attributes
    ----------
    count
        Number of centres over the range, both ends included.
    low, high
        The range, one number an item ``(b,)`` or for all; values beyond are held at its ends.
    window, sigma_ratio
        Form of the window; standard deviation of the Gaussian in bin widths.
    """

    count: int
    low: Float[Tensor, " b"]
    high: Float[Tensor, " b"]
    window: Window = "bspline"
    sigma_ratio: float = 1.0

    @property
    def size(self) -> int:
        """Rows of the table: centres, and one bin of padding at either end for the B-spline's tails."""
        return self.count if self.window == "gaussian" else self.count + 2

    def scale(self) -> Tensor:
        """Bins per unit of intensity."""
        return (self.count - 1) / (self.high - self.low).clamp_min(torch.finfo(self.low.dtype).tiny ** 0.5)

    def weights(self, values: Float[Tensor, "b n"], slope: bool = False) -> tuple[Tensor, Tensor | None]:
        """Window weights ``(b, n, size)`` and their derivative by the value."""
        scale = self.scale()[:, None]
        raw = (values - self.low[:, None]) * scale
        position = raw.clamp(0, self.count - 1)[..., None]
        if self.window == "gaussian":
            distance = position - torch.arange(self.count, device=values.device, dtype=values.dtype)
            weight = torch.softmax(-0.5 * (distance / self.sigma_ratio) ** 2, dim=-1)
            if not slope:
                return weight, None
            pull = -distance / self.sigma_ratio**2
            change = weight * (pull - (weight * pull).sum(-1, keepdim=True))
        else:
            centres = torch.arange(-1, self.count + 1, device=values.device, dtype=values.dtype)
            cell = position.floor().clamp(max=self.count - 2)
            if self.window == "floor":
                weight = (centres == cell).to(values.dtype)
                return weight, torch.zeros_like(weight) if slope else None
            distance = position - centres
            size = distance.abs()
            near = 2 / 3 - size**2 * (1 - size / 2)
            far = (2 - size).clamp_min(0) ** 3 / 6
            weight = torch.where(size < 1, near, far)
            if not slope:
                return weight, None
            near = distance * (1.5 * size - 2)
            far = -0.5 * (2 - size).clamp_min(0) ** 2 * distance.sign()
            change = torch.where(size < 1, near, far)
        inside = ((raw >= 0) & (raw <= self.count - 1)).to(values.dtype)
        return weight, change * (scale * inside)[..., None]


def _chunks(shape: Sequence[int], size: int) -> Iterator[tuple[slice, slice]]:
    """Slices over items and voxels whose dense weights stay below ``_ELEMENTS``."""
    items, voxels = shape
    step = min(voxels, max(1, _ELEMENTS // size))
    batch = max(1, _ELEMENTS // (size * step))
    for first in range(0, items, batch):
        for start in range(0, voxels, step):
            yield slice(first, first + batch), slice(start, start + step)


def _part(bins: Bins, rows: slice) -> Bins:
    return Bins(bins.count, bins.low[rows], bins.high[rows], bins.window, bins.sigma_ratio)


class _JointHistogram(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moved: Tensor, share: Tensor | None, bins_fixed: Bins, bins_moved: Bins
    ) -> Tensor:
        ctx.save_for_backward(fixed, moved, share)
        ctx.bins = bins_fixed, bins_moved
        return _count(fixed, moved, share, bins_fixed, bins_moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        fixed, moved, share = ctx.saved_tensors
        bins_fixed, bins_moved = ctx.bins
        slope = slopes[0]
        to_moved = to_fixed = None
        if ctx.needs_input_grad[1]:
            to_moved = histogram_gradient(fixed, moved, share, bins_fixed, bins_moved, slope)
        if ctx.needs_input_grad[0]:
            to_fixed = histogram_gradient(moved, fixed, share, bins_moved, bins_fixed, slope.transpose(1, 2))
        return to_fixed, to_moved, None, None, None


def _has_kernel(fixed: Tensor, moved: Tensor, share: Tensor | None, bins_fixed: Bins, bins_moved: Bins) -> bool:
    return (
        bins_moved.window == "bspline"
        and bins_fixed.window in ("bspline", "floor")
        and bins_fixed.count == bins_moved.count
        and usable(fixed, moved, share)
    )


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _kernel_arguments(
    fixed: Tensor, moved: Tensor, share: Tensor | None, bins_fixed: Bins, bins_moved: Bins
) -> tuple[Any, ...]:
    low = _flat(torch.stack((bins_fixed.low, bins_moved.low), 1))
    scale = _flat(torch.stack((bins_fixed.scale(), bins_moved.scale()), 1))
    second = _flat(moved)
    part = second if share is None else _flat(share)
    cubic = bins_fixed.window == "bspline"
    return _flat(fixed), second, part, share is not None, low, scale, bins_moved.count, cubic


def _count(
    fixed: Tensor, moved: Tensor, share: Tensor | None, bins_fixed: Bins, bins_moved: Bins
) -> Float[Tensor, "b rows columns"]:
    if _has_kernel(fixed, moved, share, bins_fixed, bins_moved):
        from verimorph.objective._kernels import histogram

        arguments = _kernel_arguments(fixed, moved, share, bins_fixed, bins_moved)
        return torch.from_numpy(histogram.joint_histograms(*arguments))
    table = torch.zeros(fixed.shape[0], bins_fixed.size, bins_moved.size, dtype=torch.float64, device=fixed.device)
    for rows, columns in _chunks(fixed.shape, bins_fixed.size + bins_moved.size):
        first, _ = _part(bins_fixed, rows).weights(fixed[rows, columns])
        second, _ = _part(bins_moved, rows).weights(moved[rows, columns])
        if share is not None:
            first = first * share[rows, columns, None]
        table[rows] += first.transpose(1, 2) @ second
    return table


def histogram_gradient(
    fixed: Tensor, moved: Tensor, share: Tensor | None, bins_fixed: Bins, bins_moved: Bins, slope: Tensor
) -> Float[Tensor, "b n"]:
    """Derivative by ``moved`` of a function whose derivative by the joint table is ``slope``."""
    result = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
    if _has_kernel(fixed, moved, share, bins_fixed, bins_moved):
        from verimorph.objective._kernels import histogram

        arguments = _kernel_arguments(fixed, moved, share, bins_fixed, bins_moved)
        histogram.histogram_gradients(*arguments, _flat(slope.float()), result.numpy())
        return result
    slope = slope.to(moved.dtype)
    for rows, columns in _chunks(fixed.shape, bins_fixed.size + bins_moved.size):
        first, _ = _part(bins_fixed, rows).weights(fixed[rows, columns])
        _, change = _part(bins_moved, rows).weights(moved[rows, columns], slope=True)
        part = ((first @ slope[rows]) * change).sum(-1)
        result[rows, columns] = part if share is None else part * share[rows, columns]
    return result


def joint_histogram(
    fixed: Float[Tensor, "b n"],
    moved: Float[Tensor, "b n"],
    bins_fixed: Bins,
    bins_moved: Bins,
    share: Float[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b rows columns"]:
    """Joint distribution of two images (float64, each table sums to 1, or is empty where no voxel has a share)."""
    table = _JointHistogram.apply(fixed, moved, share, bins_fixed, bins_moved)
    return table / table.sum((1, 2), keepdim=True).detach().clamp_min(1e-12)


class _BinnedMoments(torch.autograd.Function):
    """Per bin of ``given``: summed window weight, and summed window weight times ``values``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, given: Tensor, share: Tensor | None, bins: Bins, raw: bool) -> Tensor:
        ctx.save_for_backward(values, given, share)
        ctx.settings = bins, raw
        if not raw and bins.window == "bspline" and usable(values, given, share):
            from verimorph.objective._kernels import histogram

            return torch.from_numpy(histogram.binned_moments(*_moments_arguments(values, given, share, bins)))
        total = torch.zeros(values.shape[0], bins.size, 2, dtype=torch.float64, device=values.device)
        for rows, columns in _chunks(values.shape, bins.size):
            weight, _ = _binned_weights(_part(bins, rows), given[rows, columns], raw, False)
            pair = torch.stack((torch.ones_like(values[rows, columns]), values[rows, columns]), -1)
            if share is not None:
                pair = pair * share[rows, columns, None]
            total[rows] += weight.transpose(1, 2) @ pair
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        values, given, share = ctx.saved_tensors
        bins, raw = ctx.settings
        slope = outer[0].to(values.dtype)
        to_values, to_given = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (values, given))
        if not raw and bins.window == "bspline" and usable(values, given, share):
            from verimorph.objective._kernels import histogram

            arguments = _moments_arguments(values, given, share, bins)
            histogram.binned_moments_gradients(*arguments, _flat(slope), to_values.numpy(), to_given.numpy())
            return to_values, to_given, None, None, None
        for rows, columns in _chunks(values.shape, bins.size):
            weight, change = _binned_weights(_part(bins, rows), given[rows, columns], raw, True)
            part = 1.0 if share is None else share[rows, columns]
            to_values[rows, columns] = (weight @ slope[rows, :, 1:]).squeeze(-1) * part
            pull = slope[rows, None, :, 0] + slope[rows, None, :, 1] * values[rows, columns, None]
            to_given[rows, columns] = (pull * change).sum(-1) * part
        return to_values, to_given, None, None, None


def _moments_arguments(values: Tensor, given: Tensor, share: Tensor | None, bins: Bins) -> tuple[Any, ...]:
    second = _flat(given)
    part = second if share is None else _flat(share)
    return _flat(values), second, part, share is not None, _flat(bins.low), _flat(bins.scale()), bins.count


def _binned_weights(bins: Bins, given: Tensor, raw: bool, slope: bool) -> tuple[Tensor, Tensor | None]:
    if not raw:
        return bins.weights(given, slope)
    scale = bins.scale()[:, None, None]
    centres = torch.arange(bins.count, device=given.device, dtype=given.dtype)
    distance = ((given[..., None] - bins.low[:, None, None]) * scale - centres) / bins.sigma_ratio
    weight = torch.exp(-(distance**2))
    return weight, weight * (-2 * distance * scale / bins.sigma_ratio) if slope else None


def binned_moments(
    values: Float[Tensor, "b n"],
    given: Float[Tensor, "b n"],
    bins: Bins,
    share: Float[Tensor, "b n"] | None = None,
    *,
    published: bool = False,
) -> Float[Tensor, "b bins 2"]:
    """Per bin of ``given``: total window weight, and total of weight times ``values`` (float64).

    ``published`` takes exp(-(distance / sigma)^2), not normalised over the bins and not held to the range, as in the
    survey's code of the correlation ratio.
    """
    return _BinnedMoments.apply(values, given, share, bins, published)


def intensity_bins(
    image: Float[Tensor, "b n"],
    count: int,
    window: Window,
    sigma_ratio: float,
    intensity_range: tuple[float, float] | None,
    share: Tensor | None = None,
) -> Bins:
    """Bins over a given range, or over each item's own (inside the mask; no gradient flows through it)."""
    if intensity_range is not None:
        low = torch.full((image.shape[0],), float(intensity_range[0]), dtype=image.dtype, device=image.device)
        return Bins(count, low, torch.full_like(low, float(intensity_range[1])), window, sigma_ratio)
    values = image.detach()
    if share is not None:
        outside = share <= 0
        low = values.masked_fill(outside, math.inf).amin(1)
        high = values.masked_fill(outside, -math.inf).amax(1)
        empty = outside.all(1)
        low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 1.0)
    else:
        low, high = values.amin(1), values.amax(1)
    high = torch.where(high > low, high, low + 1)
    return Bins(count, low, high, window, sigma_ratio)
