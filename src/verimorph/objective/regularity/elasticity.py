"""Linear elastic energy."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.objective._analytic import analytic_field
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, over_batch, spacing_of, spread, weighted_mean
from verimorph.objective.regularity import _compiled
from verimorph.objective.regularity._differences import (
    all_inside,
    check_field,
    crop,
    forward_difference,
    in_millimetres,
    local_mean,
    refill,
    stencils,
)


@full_precision
def linear_elasticity(
    field: Float[Tensor, "b d *space"],
    *,
    mu: float = 1.0,
    lam: float = 1.0,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Energy of a linear elastic body: mean( mu |e|_F^2 + lam/2 tr(e)^2 ), e = (grad u + grad u^T) / 2.

    Range [0, inf); 0 for translations and infinitesimal rotations, not for finite ones. Dimensionless for
    dimensionless ``mu`` and ``lam``; ``spacing`` as in `diffusion`. Forward differences, where all of them exist. Acts
    on the field it is given.

    Parameters
    ----------
    mu, lam
        Lame's constants: resistance to shear, and to change of volume.
    mask
        A stencil counts where its whole box is inside.

    Source: Broit 1981; Fischer & Modersitzki 2004.

    Differs from: forms with mu/4 sum (d_a u_b + d_b u_a)^2, which is the same written out.
    """
    check_field(field)
    ndim = field.shape[1]
    steps = spacing_of(spacing, ndim)
    mask, weight = spread(mask, field), spread(weight, field)
    nothing, one = [0] * ndim, [1] * ndim
    share, part = all_inside(mask, nothing, one), local_mean(weight, nothing, one)
    if not map and usable(field, share, part):
        factor = share if part is None else part if share is None else share * part
        count = stencils(share, field, one)

        def compute(field: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
            return _compiled.linear_elasticity(field, steps, mu, lam, factor, count, wanted=wanted)

        return over_batch(analytic_field(field, compute), reduction)
    u = in_millimetres(field, spacing)
    rows = [crop(forward_difference(u, a), nothing, [int(b != a) for b in range(ndim)]) / steps[a] for a in range(ndim)]
    gradient = torch.stack(rows, 1)  # (b, axis, component, *space)
    strain = (gradient + gradient.transpose(1, 2)) / 2
    trace = torch.diagonal(strain, dim1=1, dim2=2).sum(-1)
    local = (mu * strain.square().sum((1, 2)) + lam / 2 * trace.square())[:, None]
    if not map:
        return over_batch(weighted_mean(local, share, part), reduction)
    for factor in (share, part):
        local = local if factor is None else local * factor
    return refill(local, nothing, one)
