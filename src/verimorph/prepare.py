"""Intensities made ready for comparison: tails cut, range and histogram matched, bias field removed.

Functions on voxel values alone, as arrays or tensors; they never look at where a voxel is. What comes in as an array
goes out as an array, a tensor as a tensor on its device; results are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from verimorph.errors import InputError, OptionError
from verimorph.image import Image

Voxels = TypeVar("Voxels", np.ndarray, Tensor)

_SAMPLE = 500_000


def winsorise(
    image: Voxels, quantiles: tuple[float, float] = (0.005, 0.995), *, mask: np.ndarray | Tensor | None = None
) -> Voxels:
    """Clamp intensities to two quantiles of the foreground.

    ``y = min(max(x, q_low), q_high)`` with the bounds of :func:`quantile_range`.

    Parameters
    ----------
    image
        Any shape; a batch is treated as one image.
    quantiles
        Lower and upper, 0 <= lower < upper <= 1.
    mask
        Where quantiles are taken (> 0); same number of voxels as the image.

    Returns
    -------
    ndarray or Tensor
        float32, same shape. A constant image comes back as it is.

    Raises
    ------
    OptionError
        If the quantiles are not in order.

    References
    ----------
    The preprocessing that ANTs calls truncating or winsorising image intensities.
    """
    low, high = quantile_range(image, quantiles, mask=mask)
    return _like(_tensor(image).clamp(min=low, max=high), image)


def quantile_range(
    image: Voxels, quantiles: tuple[float, float] = (0.005, 0.995), *, mask: np.ndarray | Tensor | None = None
) -> tuple[float, float]:
    """Return two quantiles of the foreground intensities.

    The foreground is ``mask > 0``, or all voxels that are not background. Background is the image's lowest value
    (padding, air set to one number) and, where more than a fifth of the voxels are exactly 0, also 0 (a skull-stripped
    image in which interpolation left negative values). Where 0 is background and the quantile lies above it, the lower
    bound is 0: the rim of a masked organ then still falls off to what lies outside, without a step.

    Quantiles are of nearest rank among at most half a million evenly strided voxels: deterministic, and quick.

    Parameters
    ----------
    image, quantiles, mask
        As in :func:`winsorise`.

    Returns
    -------
    tuple of float
        Lower and upper bound.
    """
    lower, upper = quantiles
    if not 0 <= lower < upper <= 1:
        raise OptionError(f"winsorise: quantiles must be 0 <= lower < upper <= 1, got {lower} and {upper}")
    values = _tensor(image)
    if mask is not None:
        inside = _tensor(mask).flatten() > 0
        if inside.numel() != values.numel():
            raise InputError(f"winsorise: the mask has {inside.numel()} voxels, the image {values.numel()}")
        foreground, background = _subsample(values.flatten()[inside]), []
        if not foreground.size:
            raise InputError("winsorise: the mask is empty (no voxel above 0); give another mask or none")
    else:
        sample = _subsample(values)
        background = _background_values(sample)
        foreground = sample[np.logical_and.reduce([sample != value for value in background])]
        if not foreground.size:
            return background[0], background[0]
    ranks = [round(q * (foreground.size - 1)) for q in (lower, upper)]
    ordered = np.partition(foreground, ranks)
    low, high = (float(ordered[rank]) for rank in ranks)
    return (min(low, 0.0) if 0.0 in background else low), high


def rescale(image: Voxels, low: float | None = None, high: float | None = None) -> Voxels:
    """Map intensities linearly so that ``low`` becomes 0 and ``high`` becomes 1 (default: the image's own range).

    ``y = (x - low) / (high - low)``; a constant image becomes 0. Values beyond the bounds are not clamped.
    """
    values = _tensor(image)
    bottom = float(values.min()) if low is None else float(low)
    top = float(values.max()) if high is None else float(high)
    if top <= bottom:
        return _like(torch.zeros_like(values), image)
    return _like((values - bottom) / (top - bottom), image)


def histogram_match(*, fixed: Voxels, moving: Voxels, levels: int = 1024, points: int = 12) -> Voxels:
    """Give the moving image the intensity distribution of the fixed one, where both show the same contrast.

    The quantiles of the two foregrounds (voxels above the mean) are mapped onto each other piecewise linearly.

    Parameters
    ----------
    fixed, moving
        Voxels of the two images; their shapes may differ.
    levels
        Bins of the histograms.
    points
        Quantiles that are matched.

    Returns
    -------
    ndarray or Tensor
        The moving image, float32.

    References
    ----------
    Nyul, Udupa, Zhang (2000), New variants of a method of MRI scale standardization, IEEE TMI 19; as in ITK's
    ``HistogramMatchingImageFilter``.
    """
    import SimpleITK as sitk

    matched = sitk.HistogramMatching(_itk(moving), _itk(fixed), levels, points, True)
    return _from_itk(matched, moving)


def bias_correct(
    image: Voxels,
    *,
    spacing: Sequence[float] | np.ndarray | None = None,
    mask: np.ndarray | Tensor | None = None,
    shrink: int = 4,
    iterations: Sequence[int] = (50, 50, 50),
    threads: int = 1,
) -> Voxels:
    """Divide out the smooth multiplicative inhomogeneity of an MR image (N4).

    ``y = x / exp(b)`` with b the logarithm of the bias field, a cubic B-spline fitted on a shrunken image.

    Parameters
    ----------
    image
        Voxels, spatial axes only or with leading axes of size 1.
    spacing
        Voxel size, mm, along each spatial axis; default 1.
    mask
        Where the field is fitted (> 0); default: above Otsu's threshold. Voxels that are not positive never count.
    shrink
        Factor of the image the field is fitted on; axes keep at least 16 voxels.
    iterations
        At most so many on each fitting level.
    threads
        One gives the same bits on every run.

    Returns
    -------
    ndarray or Tensor
        float32, same shape.

    Raises
    ------
    InputError
        If no voxel is left to fit on.

    References
    ----------
    Tustison et al. (2010), N4ITK: improved N3 bias correction, IEEE TMI 29; the implementation is ITK's.
    """
    import SimpleITK as sitk

    whole = _itk(image, spacing)
    low, high = quantile_range(image, (0.0, 1.0))
    region = (sitk.OtsuThreshold(whole, 0, 1) if mask is None else _itk(mask, spacing) > 0) & (whole > 0)
    if low >= high or not sitk.GetArrayViewFromImage(region).any():
        raise InputError("bias correction: no positive voxel inside the mask to fit on; leave it out or give a mask")
    factors = [max(1, min(shrink, n // 16)) for n in whole.GetSize()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([int(n) for n in iterations])
    corrector.SetNumberOfThreads(threads)
    corrector.Execute(sitk.Shrink(whole, factors), sitk.Shrink(region, factors))
    field = sitk.Exp(corrector.GetLogBiasFieldAsImage(whole))
    return _from_itk(whole / sitk.Cast(field, sitk.sitkFloat32), image)


def default_background(image: Image | np.ndarray | Tensor) -> float:
    """Value for what lies outside an image: its minimum for CT, else 0.

    An image counts as CT if its minimum is between -4095 and -500 and at least 1 % of its voxels are at -500 or below
    (air in Hounsfield units). Phase images, which begin at -4096, and normalised MR do not.
    """
    values = _tensor(image.array if isinstance(image, Image) else image)
    lowest = float(values.min())
    if not -4095 <= lowest <= -500:
        return 0.0
    return lowest if (_subsample(values) <= -500).mean() >= 0.01 else 0.0


def _background_values(sample: np.ndarray) -> list[float]:
    """Values that count as background: the lowest, and 0 where more than a fifth of the voxels are 0."""
    lowest = float(sample.min())
    zero = lowest < 0 and np.count_nonzero(sample == 0) > 0.2 * sample.size
    return [lowest, 0.0] if zero else [lowest]


def _subsample(values: Tensor) -> np.ndarray:
    """Return at most half a million of the values, in memory order, at a stride that no image axis divides."""
    flat = values.permute(sorted(range(values.ndim), key=lambda axis: -values.stride(axis))).flatten()
    stride = max(1, math.ceil(flat.numel() / _SAMPLE))
    while stride > 1 and math.gcd(stride, flat.numel()) > 1:
        stride += 1
    return flat[::stride].cpu().numpy()


def _tensor(voxels: np.ndarray | Tensor) -> Tensor:
    if isinstance(voxels, Tensor):
        return voxels.detach().float()
    array = np.asarray(voxels, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable and min(array.strides) > 0 else array.copy(order="K"))


def _like(values: Tensor, source: Any) -> Any:
    return values.to(source.device) if isinstance(source, Tensor) else values.numpy()


def _itk(voxels: np.ndarray | Tensor, spacing: Sequence[float] | np.ndarray | None = None) -> Any:
    """Return a SimpleITK image of the voxels; leading axes of size 1 are dropped."""
    import SimpleITK as sitk

    array = _tensor(voxels).cpu().numpy()
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise InputError(
            f"intensity preparation: takes one 2-D or 3-D image at a time, got shape {tuple(voxels.shape)}"
        )
    image = sitk.GetImageFromArray(array.T)
    if spacing is not None:
        image.SetSpacing([float(step) for step in spacing])
    return image


def _from_itk(image: Any, source: Any) -> Any:
    import SimpleITK as sitk

    array = np.ascontiguousarray(sitk.GetArrayFromImage(image).T).reshape(source.shape)
    return torch.from_numpy(array).to(source.device) if isinstance(source, Tensor) else array
