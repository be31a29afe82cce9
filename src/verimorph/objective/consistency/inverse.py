"""Agreement of two maps that should be each other's inverse."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError
from verimorph.field import sample_field, voxel_index
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, over_batch, spacing_of, spread, weighted_mean
from verimorph.objective.regularity._differences import (
    all_inside,
    check_field,
    crop,
    forward_difference,
    in_millimetres,
    local_mean,
)


def _residual(first: Tensor, second: Tensor, start: Tensor, moved_start: bool) -> tuple[Tensor, Tensor]:
    """There and back from the points ``start``: how far one ends from them, and which points stayed on the grid."""
    onward = sample_field(first, start.expand_as(first)) if moved_start else first
    arrived = start + onward
    back = sample_field(second, arrived)
    inside = torch.ones_like(arrived[:, :1], dtype=torch.bool)
    for axis, length in enumerate(second.shape[2:]):
        for point in (arrived, start):
            place = point[:, axis : axis + 1]
            inside = inside & (place >= 0) & (place <= length - 1)
    return onward + back, inside


def _start(field: Tensor, jitter: float, generator: torch.Generator | None) -> Tensor:
    index = voxel_index(tuple(field.shape[2:]), device=field.device, dtype=field.dtype)
    if jitter == 0:
        return index
    # Drawn on the CPU: one seed gives the same points on every device.
    noise = torch.rand(field.shape, generator=generator, dtype=field.dtype).to(field.device)
    return index + jitter * (2 * noise - 1)


def _check(field: Tensor, inverse: Tensor) -> None:
    check_field(field)
    if field.shape != inverse.shape:
        raise InputError(f"the two maps lie on different grids: {tuple(field.shape)} and {tuple(inverse.shape)}")


@full_precision
def inverse_consistency(
    field: Float[Tensor, "b d *space"],
    inverse: Float[Tensor, "b d *other"],
    *,
    both: bool = True,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Inverse consistency: mean squared distance from where one starts after going there and back.

    With r(x) = S ( u(x) + v(x + u(x)) ): mean |r|^2 over points that stay on the grid, averaged with the same of (v, u)
    where ``both``. Range [0, inf), 0 for exact inverses; voxel^2, or mm^2 with ``spacing``. Acts on the forward and the
    inverse displacement, in voxels of one grid.

    Parameters
    ----------
    field, inverse
        Displacements of the two maps (from two passes of a network, or a solver's field and inverse).
    jitter, generator
        Start from points moved at random by up to ``jitter`` voxels along every axis (ICON takes about half a voxel);
        without a generator the global one is used.
    map
        |r|^2 of the forward round trip, without jitter.

    Source: Christensen & Johnson 2001 (IEEE TMI 20:568); with jitter ICON, Greer et al., ICCV 2021.

    Differs from: forms that add both directions (twice ours), count points that leave the image, or work in normalised
    coordinates, where the unit depends on the axis.
    """
    _check(field, inverse)
    ndim = field.shape[1]
    mask, weight = spread(mask, field), spread(weight, field)
    spacing_of(spacing, ndim)
    if map:
        residual, inside = _residual(field, inverse, _start(field, 0.0, None), False)
        local = in_millimetres(residual, spacing).square().sum(1, keepdim=True) * inside
        for factor in (mask, weight):
            local = local if factor is None else local * factor
        return local
    values = []
    for first, second in ((field, inverse), (inverse, field))[: 1 + both]:
        residual, inside = _residual(first, second, _start(field, jitter, generator), jitter > 0)
        local = in_millimetres(residual, spacing).square().sum(1, keepdim=True)
        share = inside.to(local.dtype) if mask is None else mask * inside
        values.append(weighted_mean(local, share, weight))
    return over_batch(torch.stack(values).mean(0), reduction)


@full_precision
def gradient_inverse_consistency(
    field: Float[Tensor, "b d *space"],
    inverse: Float[Tensor, "b d *other"],
    *,
    both: bool = True,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """GradICON: mean squared Frobenius norm of grad(there and back) - identity.

    With r as in `inverse_consistency`: mean |dr/dx|_F^2 by forward differences, over cells whose corners stay on the
    grid, averaged over both directions. Range [0, inf); 0 for inverses up to a translation. Dimensionless; with
    ``spacing`` derivatives of millimetres by millimetres. Acts on the forward and the inverse displacement. Usual
    weight 1 to 1.5 beside LNCC.

    Source: Tian et al., CVPR 2023.

    Differs from: the authors' code, which differentiates along random directions at random points, in units of the
    whole image.
    """
    _check(field, inverse)
    ndim = field.shape[1]
    steps = spacing_of(spacing, ndim)
    mask, weight = spread(mask, field), spread(weight, field)
    nothing, one = [0] * ndim, [1] * ndim
    values = []
    for first, second in ((field, inverse), (inverse, field))[: 1 + both]:
        residual, inside = _residual(first, second, _start(field, 0.0, None), False)
        residual = in_millimetres(residual, spacing)
        share = inside.to(residual.dtype) if mask is None else mask * inside
        slopes = [
            crop(forward_difference(residual, axis), nothing, [int(b != axis) for b in range(ndim)]) / steps[axis]
            for axis in range(ndim)
        ]
        local = torch.stack(slopes).square().sum((0, 2))[:, None]
        kept, part = all_inside(share, nothing, one), local_mean(weight, nothing, one)
        values.append(weighted_mean(local, kept, part))
    return over_batch(torch.stack(values).mean(0), reduction)
