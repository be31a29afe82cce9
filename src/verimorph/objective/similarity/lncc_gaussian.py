"""Local normalised cross-correlation under a Gaussian window."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, reduce_local, spacing_of
from verimorph.objective._windows import MomentBorder, gaussian_weights
from verimorph.objective.similarity._moments import local_moments


@full_precision
def lncc_gaussian(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    sigma: float = 1.5,
    radius: int | None = None,
    sigma_mm: float | None = None,
    border: MomentBorder = "valid",
    epsilon: float = 1e-8,
    numerator_epsilon: float = 0.0,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Local normalised cross-correlation under a Gaussian window: 1 - mean of the squared local correlation.

    With G* a normalised Gaussian mean::

        s_FW = G*(FW) - (G*F)(G*W);  s_FF, s_WW likewise
        value = 1 - mean_x (s_FW^2 + numerator_epsilon) / (s_FF s_WW + epsilon)

    Range [0, 1], 0 best, a constant window counts 1 (0 where ``numerator_epsilon`` equals ``epsilon``, as published).
    Moments are means here, so ``epsilon`` must be far below (variance)^2: the published 1e-5 flattens the measure on
    images in [0, 1].

    Parameters
    ----------
    sigma, sigma_mm
        Standard deviation in voxels, or in millimetres with ``spacing``.
    radius
        Where the window is cut, in voxels; four standard deviations (rounded up) where None.
    border
        As in `lncc`.

    Source: the Gaussian form of Cachier & Ayache 2000 (local correlation as demons force); LNCC as in `lncc`.

    Differs from: the survey's code (zero border, 1e-5 in numerator and denominator, sigma 1.5 cut at 4); MONAI (sigma
    a third of the kernel size, window not normalised).
    """
    check_pair(fixed, moved)
    if border not in ("valid", "zeros"):
        raise OptionError(f"border '{border}' of lncc_gaussian is unknown; known: valid, zeros")
    ndim = fixed.ndim - 2
    sigmas = (sigma,) * ndim
    if sigma_mm is not None:
        if spacing is None:
            raise OptionError("a sigma in millimetres needs the spacing of the images")
        sigmas = tuple(sigma_mm / step for step in spacing_of(spacing, ndim))
    weights = [gaussian_weights(s, radius if radius is not None else math.ceil(4 * s)) for s in sigmas]
    moments = local_moments(fixed, moved, weights, border, mask)
    variances = moments.fixed_variance * moments.moved_variance
    local = 1 - (moments.covariance**2 + numerator_epsilon) / (variances + epsilon)
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
