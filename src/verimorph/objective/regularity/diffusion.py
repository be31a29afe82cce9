"""Diffusion energy: squared first derivatives."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from verimorph.objective._analytic import analytic_field
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, ordered_sum, over_batch, spacing_of, spread
from verimorph.objective.regularity._compiled import first_derivatives
from verimorph.objective.regularity._differences import check_field, forward_difference, refill, shift


def edge_share(mask: Tensor | None, weight: Tensor | None, axis: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
    """Share of every edge along an axis (both ends inside, mean weight of its ends), and edges counted an item."""
    if mask is None:
        count = like.new_full((like.shape[0],), float(shift(like[:, :1], axis, 1, 0)[0].numel()))
        share = None
    else:
        share = shift(mask, axis, 1, 0) * shift(mask, axis, 0, 1)
        count = ordered_sum(share).clamp_min(1e-6)
    if weight is not None:
        mean = (shift(weight, axis, 1, 0) + shift(weight, axis, 0, 1)) / 2
        share = mean if share is None else share * mean
    return share, count


def by_edges(
    field: Tensor, steps: tuple[float, ...], mask: Tensor | None, weight: Tensor | None, *, absolute: bool
) -> Float[Tensor, " b"]:
    """Mean squared or absolute forward difference by the compiled kernels, one value an item."""
    counts = [edge_share(mask, None, axis, field)[1] for axis in range(field.shape[1])]

    def compute(field: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        return first_derivatives(field, steps, counts, mask, weight, absolute=absolute, wanted=wanted)

    return analytic_field(field, compute)


class _Diffusion(torch.autograd.Function):
    """Energy and its gradient, minus a weighted Laplacian, without keeping the differences."""

    @staticmethod
    def forward(ctx: Any, field: Tensor, scales: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        ndim = field.shape[1]
        value = field.new_zeros(field.shape[0])
        gradient = torch.zeros_like(field) if ctx.needs_input_grad[0] else None
        for axis in range(ndim):
            share, count = edge_share(mask, weight, axis, field)
            difference = forward_difference(field, axis)
            scale = scales[:, axis].view(1, ndim, *(1,) * ndim)
            flux = difference * scale if share is None else difference * scale * share
            unit = (1 / (count * ndim * ndim)).view(-1, *(1,) * (ndim + 1))
            value += ordered_sum(flux * difference) * unit.flatten()
            if gradient is not None:
                flux *= 2 * unit
                shift(gradient, axis, 1, 0).add_(flux)
                shift(gradient, axis, 0, 1).sub_(flux)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].view(-1, *(1,) * (gradient.ndim - 1)), None, None, None


@full_precision
def diffusion(
    field: Float[Tensor, "b d *space"],
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Diffusion energy: mean squared forward difference of the field.

    ::

        value = 1/D sum_axes mean_{x, component} (u(x + e_a) - u(x))^2

    Range [0, inf); 0 for a constant field, not for an affine one. Dimensionless. With ``spacing`` s the derivative is
    of the displacement in millimetres by millimetres: component c along axis a scales by s_c / s_a. Acts on whatever
    field it is given (the term says which: displacement, velocity or inverse).

    Parameters
    ----------
    field
        Displacement or velocity in voxels, channel d along axis d.
    mask
        An edge counts where both its voxels are inside.
    weight
        Stiffness, a multiplier of the local energy (mean of an edge's ends), 1 = default.
    map
        Local energies: each edge shared by its two voxels, zero outside.

    Source: Fischer & Modersitzki 2002 (diffusion registration).

    Differs from: VoxelMorph ``Grad('l2')`` by nothing in 3-D (its default is 'l1', `total_variation`; it halves some
    versions); MONAI ``DiffusionLoss`` (central differences, axes summed instead of averaged).
    """
    check_field(field)
    ndim = field.shape[1]
    steps_of = spacing_of(spacing, ndim)
    steps = torch.tensor(steps_of, dtype=field.dtype, device=field.device)
    scales = (steps[:, None] / steps[None, :]) ** 2
    mask, weight = spread(mask, field), spread(weight, field)
    if not map and usable(field, mask, weight):
        return over_batch(by_edges(field, steps_of, mask, weight, absolute=False), reduction)
    if not map:
        return over_batch(_Diffusion.apply(field, scales, mask, weight), reduction)
    local = torch.zeros_like(field[:, :1])
    for axis in range(ndim):
        share, _ = edge_share(mask, weight, axis, field)
        scale = scales[:, axis].view(1, ndim, *(1,) * ndim)
        energy = (forward_difference(field, axis) ** 2 * scale).mean(1, keepdim=True) / ndim / 2
        energy = energy if share is None else energy * share
        before = [int(a == axis) for a in range(ndim)]
        nothing = [0] * ndim
        local = local + refill(energy, before, nothing) + refill(energy, nothing, before)
    return local
