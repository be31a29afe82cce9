"""The group of maps on a grid: compose, exponentiate, invert."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.field.backend import compiled
from verimorph.field.differentiable import Compose, gradient_wanted
from verimorph.field.sample import read_linear, sample_field, voxel_index


def compose(outer: Float[Tensor, "b d *space"], inner: Float[Tensor, "b d *out"]) -> Float[Tensor, "b d *out"]:
    """Displacement of the map that applies ``inner`` first and ``outer`` second.

    ``w(i) = v(i) + u(i + v(i))`` with ``u = outer``, ``v = inner``, both in voxels of one grid; ``u`` is linear between
    voxels and zero outside. Differentiable in both.

    Examples
    --------
    >>> one, two = torch.full((1, 2, 8, 8), 1.0), torch.full((1, 2, 8, 8), 2.0)
    >>> compose(one, two)[0, :, 0, 0]  # two voxels, then one more
    tensor([3., 3.])
    >>> compose(one, two)[0, :, 7, 7]  # the second step starts outside, where nothing moves
    tensor([2., 2.])
    """
    kernels = compiled(outer, inner)
    if kernels is not None:
        return Compose.apply(outer, inner, kernels) if gradient_wanted(outer, inner) else kernels.compose(outer, inner)
    index = voxel_index(tuple(inner.shape[2:]), device=inner.device, dtype=inner.dtype) + inner
    return inner + sample_field(outer, index)


def exponentiate(velocity: Float[Tensor, "b d *space"], *, steps: int | None = None) -> Float[Tensor, "b d *space"]:
    """Displacement of the flow of a stationary velocity field at time 1, by scaling and squaring.

    ``u_0 = v / 2^K``, then K times ``u <- u o u``.

    Parameters
    ----------
    velocity
        In voxels per unit of time.
    steps
        K. Default: the smallest number for which no first step exceeds half a voxel, at least 4. Cost is linear in K.

    Returns
    -------
    Tensor
        Displacement in voxels. Differentiable; memory for gradients is one field a step.

    References
    ----------
    Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.

    Examples
    --------
    >>> constant = torch.zeros(1, 2, 16, 16)
    >>> constant[:, :, 2:-2, 2:-2] = 0.75
    >>> exponentiate(constant)[0, :, 8, 8]  # where the velocity is constant, the flow is that shift
    tensor([0.7500, 0.7500])
    """
    if steps is None:
        largest = float(velocity.detach().abs().amax()) if velocity.numel() else 0.0
        steps = max(4, math.ceil(math.log2(max(largest, 1e-6) / 0.5)))
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


_SMALLEST_STEP = 0.125


class Inversion(NamedTuple):
    """An inverse field and how well it inverts."""

    displacement: Float[Tensor, "b d *space"]
    mean_residual: float
    """Mean of ``|w + u(x + w)|`` over the voxels whose image stays inside the grid, voxels."""
    max_residual: float
    """Largest such residual, voxels."""


@torch.no_grad()
def invert(
    displacement: Float[Tensor, "b d *space"],
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    start: Float[Tensor, "b d *space"] | None = None,
) -> Inversion:
    """Find ``w`` with ``w(x) + u(x + w(x)) = 0`` by fixed-point iteration at every voxel.

    ``w <- w - s r`` with the residual ``r = w + u(x + w)``; ``s = 1``, halved (at least 1/8) at a voxel whenever its
    residual grows: where the derivative of ``u`` exceeds 1 the plain iteration swings. Beyond its grid ``u`` repeats
    its edge here, so that a field which does not vanish at the border (a shift) is inverted up to it. No gradient.

    Parameters
    ----------
    displacement
        Field u, voxels.
    iterations, tolerance
        A voxel is done after so many iterations or when its residual is below ``tolerance`` voxels.
    start
        First guess; default zero.

    Returns
    -------
    Inversion
        The inverse with its own residual, measured after the last change. Voxels that nothing is mapped to keep a
        large residual, however many iterations. Where the field folds, a voxel has several origins and one of them is
        found: the Jacobian determinant tells, the residual need not.

    References
    ----------
    Chen et al., A simple fixed-point approach to invert a deformation field, Medical Physics 35, 2008.

    Examples
    --------
    >>> shift = torch.full((1, 2, 8, 8), 1.5)
    >>> inverse = invert(shift)
    >>> inverse.displacement[0, :, 4, 4], inverse.max_residual < 1e-3
    (tensor([-1.5000, -1.5000]), True)
    """
    inverse = torch.zeros_like(displacement) if start is None else start.clone()
    kernels = compiled(displacement, inverse)
    if kernels is not None:
        return Inversion(*kernels.invert(displacement, inverse, iterations, tolerance, _SMALLEST_STEP))
    identity = voxel_index(tuple(inverse.shape[2:]), device=inverse.device, dtype=inverse.dtype)
    step, before = torch.ones_like(inverse[:, :1]), torch.full_like(inverse[:, :1], math.inf)
    for n in range(iterations + 1):
        residual = inverse + read_linear(displacement, identity + inverse)
        length = residual.square().sum(1, keepdim=True).sqrt()
        still = length >= tolerance
        if n == iterations or not still.any():
            break
        step = torch.where(length > before, (step / 2).clamp(min=_SMALLEST_STEP), step)
        before = length
        inverse = torch.where(still, inverse - step * residual, inverse)
    return Inversion(inverse, *_residual_size(length, identity + inverse))


def _residual_size(length: Tensor, index: Tensor) -> tuple[float, float]:
    """Mean and largest residual where ``x + w(x)`` does not leave the grid; NaN is infinite."""
    shape = tuple(index.shape[2:])
    limit = torch.tensor(shape, device=index.device, dtype=index.dtype).view(1, -1, *[1] * len(shape)) - 1
    counted = (~((index < 0) | (index > limit))).all(dim=1, keepdim=True)
    kept = torch.nan_to_num(length.double(), nan=math.inf)[counted]
    return (float(kept.mean()), float(kept.max())) if kept.numel() else (0.0, 0.0)
