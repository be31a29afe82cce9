"""Spatial gradients of the sampling map, and the field that they sum to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import InputError
from verimorph.nn.blocks import convolution, start_at_zero
from verimorph.nn.heads.displacement import in_full_precision


def integrate_gradients(gradients: Float[Tensor, "b d *space"]) -> Float[Tensor, "b d *space"]:
    """Displacement of the sampling map whose stretch along each axis is twice the gradient.

    ::

        c_a(i) = 2 sum_{k = 0..i_a} g_a(.., k, ..) - 1,     u_a = c_a - i_a = sum_{k = 0..i_a} (2 g_a(.., k, ..) - 1)

    The sum runs along axis a of channel a alone. g = 1/2 is the identity exactly; for g > 0 every coordinate grows
    along its own axis, which is no guarantee against folds across axes. The map hangs on index 0 of every axis: it
    cannot express a global shift, so align the centres beforehand.

    Parameters
    ----------
    gradients
        In (0, 1), channel a along axis a.

    Returns
    -------
    Tensor
        Displacement in voxels. Sums in float32 at least: half precision loses whole voxels over a few hundred terms.

    References
    ----------
    Estienne et al., Deep learning based registration using spatial gradients and noisy segmentation labels, 2020
    (arXiv 2010.10897).

    Examples
    --------
    >>> integrate_gradients(torch.full((1, 2, 4, 4), 0.75))[0, 0, :, 0]
    tensor([0.5000, 1.0000, 1.5000, 2.0000])
    """
    if gradients.ndim not in (4, 5) or gradients.shape[1] != gradients.ndim - 2:
        raise InputError(f"gradients must be (batch, D, *space) with D = 2 or 3 axes, got {tuple(gradients.shape)}")
    stretch = 2 * gradients.to(torch.promote_types(gradients.dtype, torch.float32)) - 1
    return torch.stack([stretch[:, a].cumsum(1 + a) for a in range(stretch.shape[1])], dim=1)


class GradientHead(nn.Module):
    """Convolution, nearest-neighbour growth, sigmoid, cumulative sum.

    Parameters
    ----------
    ndim, channels
        Axes of space; channels of the features.
    factor
        How many times finer the field is than the features (deep supervision).
    zero
        Start from zero weights and bias, so that the first field is the identity exactly.
    """

    def __init__(self, *, ndim: int, channels: int, factor: int = 1, zero: bool = True) -> None:
        super().__init__()
        self.factor = factor
        layer = convolution(ndim, channels, ndim)
        self.convolution = start_at_zero(layer) if zero else layer

    def forward(
        self,
        features: Float[Tensor, "b c *space"],
        *,
        fixed: Float[Tensor, "b i *fine"] | None = None,
        moving: Float[Tensor, "b i *fine"] | None = None,
    ) -> dict[str, Tensor]:
        """``gradients`` in (0, 1) and ``field`` in voxels, at least float32; the images are not looked at."""
        logits = in_full_precision(self.convolution, features)
        if self.factor > 1:
            logits = functional.interpolate(logits, scale_factor=float(self.factor), mode="nearest")
        gradients = logits.sigmoid()
        return {"gradients": gradients, "field": integrate_gradients(gradients)}
