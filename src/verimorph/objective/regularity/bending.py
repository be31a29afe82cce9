"""Bending energy: squared second derivatives."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._analytic import analytic_field
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, over_batch, spacing_of, spread, weighted_mean
from verimorph.objective.regularity import _compiled
from verimorph.objective.regularity._differences import (
    all_inside,
    central_difference,
    check_field,
    crop,
    in_millimetres,
    refill,
    shift,
    stencils,
)

Stencil = Literal["compact", "nested"]


def _second(x: Tensor, axis: int) -> Tensor:
    return shift(x, axis, 2, 0) - 2 * shift(x, axis, 1, 1) + shift(x, axis, 0, 2)


@full_precision
def bending(
    field: Float[Tensor, "b d *space"],
    *,
    stencil: Stencil = "compact",
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Bending energy: mean over voxels and components of the squared second derivatives.

    ::

        value = mean( sum_a u_aa^2 + 2 sum_{a<b} u_ab^2 )

    Range [0, inf); 0 for affine fields. Unit 1/voxel^2, or 1/mm^2 with ``spacing`` (displacements then in millimetres).
    Acts on the field it is given.

    Parameters
    ----------
    stencil
        ``compact``: u(x+1) - 2u(x) + u(x-1), mixed derivatives by central differences, needs 3 voxels an axis;
        ``nested``: central differences of central differences, as most published code, needs 5; it is blind to the
        checkerboard and every other pattern of period two, so it must not stand alone.
    mask
        A stencil counts where its whole box is inside.

    Source: Rueckert et al. 1999 (IEEE TMI 18:712).

    Differs from: MONAI ``BendingEnergyLoss(normalize=False)`` by nothing since its release 1.6, and before that by
    nothing with ``stencil="nested"``; forms without the factor 2 of the mixed terms, or summed over components.
    """
    if stencil not in ("compact", "nested"):
        raise OptionError(f"unknown stencil '{stencil}' of bending; known: compact, nested")
    margin = 1 if stencil == "compact" else 2
    check_field(field, 2 * margin + 1)
    ndim = field.shape[1]
    steps = spacing_of(spacing, ndim)
    mask, weight = spread(mask, field), spread(weight, field)
    box = [margin] * ndim
    share = all_inside(mask, box, box)
    part = None if weight is None else crop(weight, box, box)
    if stencil == "compact" and not map and usable(field, share, part):
        factor = share if part is None else part if share is None else share * part
        whole = None if factor is None else refill(factor, box, box)
        count = stencils(share, field, [2] * ndim)

        def compute(field: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
            return _compiled.bending(field, steps, whole, count, wanted=wanted)

        return over_batch(analytic_field(field, compute), reduction)
    u = in_millimetres(field, spacing)
    local: Tensor | float = 0.0
    for a in range(ndim):
        for b in range(a, ndim):
            if a == b and stencil == "compact":
                derivative, used = _second(u, a), {a: 1}
            else:
                derivative = central_difference(central_difference(u, a), b)
                used = {a: 2} if a == b else {a: 1, b: 1}
            rest = [margin - used.get(axis, 0) for axis in range(ndim)]
            derivative = crop(derivative, rest, rest) / (steps[a] * steps[b])
            local = local + (1 if a == b else 2) * derivative.square()
    assert isinstance(local, torch.Tensor)
    if not map:
        return over_batch(weighted_mean(local, share, part), reduction)
    local = local.mean(1, keepdim=True)
    for factor in (share, part):
        local = local if factor is None else local * factor
    return refill(local, box, box)
