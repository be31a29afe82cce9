"""Smaller images for coarse levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.field.resize import resize
from verimorph.field.smooth import gaussian_smooth, per_axis


def shrink(
    image: Float[Tensor, "b c *space"], factors: float | int | Sequence[float | int]
) -> Float[Tensor, "b c *out"]:
    """Shrink an image by a factor an axis: Gaussian smoothing against aliasing, then linear resampling.

    The standard deviation is half the factor, in voxels; an axis with factor 1 is left alone. The field of view is kept
    and an axis has ``N / factor`` voxels, rounded up: of few slices each counts.

    Parameters
    ----------
    image
        Images, 2-D or 3-D.
    factors
        At least 1; one, or one an axis (an anisotropic image shrinks first where its voxels are small).

    Raises
    ------
    OptionError
        For a factor below 1, or another number of factors than axes.

    Examples
    --------
    >>> import torch
    >>> shrink(torch.ones(1, 1, 40, 40, 10), (4, 4, 1)).shape
    torch.Size([1, 1, 10, 10, 10])
    """
    d = image.ndim - 2
    each = per_axis(factors, d)
    if len(each) != d or not all(f >= 1 for f in each):
        raise OptionError(f"shrink factors are {factors}; give one number >= 1, or {d}, one an axis")
    shape = tuple(max(1, math.ceil(n / f - 1e-6)) for n, f in zip(image.shape[2:], each, strict=True))
    return resize(gaussian_smooth(image, [f / 2 if f > 1 else 0.0 for f in each]), shape)
