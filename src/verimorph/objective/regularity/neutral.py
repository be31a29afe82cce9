"""Distance of spatial gradients from the value at which nothing moves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, reduce_local


@full_precision
def neutral_gradients(
    gradients: Float[Tensor, "b d *space"],
    *,
    neutral: float = 0.5,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean distance of spatial gradients from neutral: mean_{x, component} |g - neutral|.

    Range [0, inf), [0, 1/2] for gradients in [0, 1]; 0 exactly where the map is the identity. Dimensionless. Acts on
    raw gradients, the stretch of the sampling map along each axis before they are summed to a field (0.5 stands for a
    stretch of 1), not on a displacement.

    Parameters
    ----------
    gradients
        Channel d along axis d.
    neutral
        The value that stands for no stretch.

    Source: Estienne et al. 2020 (arXiv 2010.10897), weight 0.01 for abdominal CT and 0.1 for the hippocampus.

    Differs from: the parent method's penalty (Estienne & Lerousseau et al. 2020), which is the sum over voxels and
    carries a weight near 1e-10.
    """
    return reduce_local((gradients - neutral).abs(), mask=mask, weight=weight, reduction=reduction, map=map)
