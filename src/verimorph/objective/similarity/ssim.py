"""Structural similarity."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, reduce_local
from verimorph.objective._windows import MomentBorder, gaussian_weights
from verimorph.objective.similarity._moments import local_moments


@full_precision
def ssim(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    sigma: float = 1.5,
    radius: int = 5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    border: MomentBorder = "valid",
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """One minus the structural similarity, the same in 2-D and 3-D.

    With Gaussian window means mu, variances s and covariance s_FW, C1 = (k1 data_range)^2, C2 = (k2 data_range)^2::

        SSIM = (2 mu_F mu_W + C1)(2 s_FW + C2) / ((mu_F^2 + mu_W^2 + C1)(s_F + s_W + C2));  value = 1 - mean SSIM

    Range [0, 2], 0 for equal images. Dimensionless; intensities are meant to be non-negative over ``data_range``.

    Parameters
    ----------
    sigma, radius
        Gaussian window in voxels and where it is cut (5 is the window of 11).
    border
        ``valid``: windows count only what lies inside image and mask; ``zeros``: zeros outside, as published code does.

    Source: Wang et al. 2004 (IEEE TIP 13:600).

    Differs from: scikit-image (``gaussian_weights=True, use_sample_covariance=False``) by its reflected border and by
    cutting at 3.5 sigma; MONAI by leaving out windows that meet the border; the survey's 2-D class, which returns
    +SSIM.
    """
    check_pair(fixed, moved)
    if border not in ("valid", "zeros"):
        raise OptionError(f"border '{border}' of ssim is unknown; known: valid, zeros")
    weights = [gaussian_weights(sigma, radius)] * (fixed.ndim - 2)
    moments = local_moments(fixed, moved, weights, border, mask)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    products = 2 * moments.fixed_mean * moments.moved_mean
    luminance = (products + c1) / (moments.fixed_mean**2 + moments.moved_mean**2 + c1)
    structure = (2 * moments.covariance + c2) / (moments.fixed_variance + moments.moved_variance + c2)
    return reduce_local(1 - luminance * structure, mask=mask, weight=weight, reduction=reduction, map=map)
