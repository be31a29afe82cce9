"""Divergence of a Gaussian velocity from a smooth prior: the regulariser of probabilistic VoxelMorph."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, ordered_sum, over_batch, spacing_of, spread
from verimorph.objective.regularity._differences import check_field, forward_difference, refill
from verimorph.objective.regularity.diffusion import edge_share


@full_precision
def laplacian_prior(
    velocity_mean: Float[Tensor, "b d *space"],
    velocity_log_variance: Float[Tensor, "b d *space"],
    *,
    precision: float = 10.0,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence of N(mean, diag(variance)) from N(0, (precision L)^-1), a voxel and component.

    L = D - A is the graph Laplacian of the voxel grid (D the number of neighbours, A the adjacency). With N voxels and
    d components, constants dropped::

        value = 1/(2 N d) [ sum_i ( precision D_i variance_i - log variance_i )
                            + precision sum_{edges ij} (m_i - m_j)^2 ]

    Range (-inf, inf) (a density ratio without its constants); lowest at a constant mean and variance
    1 / (precision D). Acts on raw parameters: mean and log variance of a velocity in voxels. With ``spacing`` an edge
    along axis a of component c weighs (s_c / s_a)^2, in the sum over edges and in D alike.

    Parameters
    ----------
    velocity_log_variance
        Natural logarithm of the variance (voxels^2); not of the standard deviation.
    precision
        Strength of the prior (lambda in the paper).
    mask
        Edges with both ends inside count, and voxels inside.

    Source: Dalca et al. 2019 (Med. Image Anal. 57:226).

    Differs from: VoxelMorph's ``KL`` loss, which averages the edge term by axis instead of summing it, and multiplies
    the whole by the number of components.
    """
    check_field(velocity_mean)
    ndim = velocity_mean.shape[1]
    steps = spacing_of(spacing, ndim)
    mask, weight = spread(mask, velocity_mean), spread(weight, velocity_mean)
    degree = torch.zeros_like(velocity_mean)
    edges = torch.zeros_like(velocity_mean)
    for axis in range(ndim):
        share, _ = edge_share(mask, weight, axis, velocity_mean)
        scale = velocity_mean.new_tensor([(step / steps[axis]) ** 2 for step in steps]).view(1, ndim, *(1,) * ndim)
        square = forward_difference(velocity_mean, axis).square() * scale
        one = torch.ones_like(square) * scale
        if share is not None:
            square, one = square * share, one * share
        before, nothing = [int(a == axis) for a in range(ndim)], [0] * ndim
        # Each edge is shared by its two voxels in the map of the energy, and counts in the degree of both.
        edges = edges + (refill(square, before, nothing) + refill(square, nothing, before)) / 2
        degree = degree + refill(one, before, nothing) + refill(one, nothing, before)
    entropy = velocity_log_variance if weight is None else velocity_log_variance * weight
    local = (precision * degree * velocity_log_variance.exp() - entropy + precision * edges) / 2
    local = local.mean(1, keepdim=True)
    if mask is not None:
        local = local * mask
    if map:
        return local
    count = float(local[0].numel()) if mask is None else ordered_sum(mask).clamp_min(1e-6)
    return over_batch(ordered_sum(local) / count, reduction)
