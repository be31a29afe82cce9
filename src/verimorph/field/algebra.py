"""The group of maps on a grid: compose, exponentiate, invert."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.field.backend import compiled
from verimorph.field.sample import sample_field, voxel_index


def compose(
    outer: Float[Tensor, "b d *space"], inner: Float[Tensor, "b d *out"]
) -> Float[Tensor, "b d *out"]:
    """Displacement of the map that applies ``inner`` first and ``outer`` second.

    ``w(i) = v(i) + u(i + v(i))`` with ``u = outer``, ``v = inner``, both in voxels of one grid; ``u`` is linear between
    voxels and zero outside.
    """
    kernels = compiled(outer, inner) if outer.shape == inner.shape else None
    if kernels is not None:
        return kernels.compose(outer, inner)
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

    References
    ----------
    Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    if steps is None:
        largest = float(velocity.detach().abs().amax()) if velocity.numel() else 0.0
        steps = max(4, math.ceil(math.log2(max(largest, 1e-6) / 0.5)))
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


class Inversion(NamedTuple):
    """An inverse field and how well it inverts."""

    displacement: Float[Tensor, "b d *space"]
    mean_residual: float
    """Mean of ``|w + u(x + w)|`` over the voxels whose image stays inside the grid, voxels."""
    max_residual: float
    """Largest such residual, voxels."""


def invert(
    displacement: Float[Tensor, "b d *space"],
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    start: Float[Tensor, "b d *space"] | None = None,
) -> Inversion:
    """Find ``w`` with ``w(x) + u(x + w(x)) = 0`` by fixed-point iteration.

    ``w <- w - s r`` with the residual ``r = w + u(x + w)``; ``s = 1`` until the mean residual grows, then halved (a
    field whose derivative exceeds 1 in places makes the plain iteration swing).

    Parameters
    ----------
    displacement
        Field u, voxels.
    iterations, tolerance
        Stop after so many iterations or when the mean residual is below ``tolerance`` voxels.
    start
        First guess; default zero.
    """
    inverse = torch.zeros_like(displacement) if start is None else start.clone()
    step, before = 1.0, math.inf
    mean = largest = 0.0
    for n in range(iterations + 1):
        residual = compose(displacement, inverse)
        mean, largest = _residual_size(residual, inverse)
        if mean < tolerance or n == iterations:
            break
        if mean > before:
            step = max(step / 2, 0.25)
        before = mean
        inverse = inverse - step * residual if step < 1 else inverse.sub_(residual)
    return Inversion(inverse, mean, largest)


def _residual_size(residual: Tensor, inverse: Tensor) -> tuple[float, float]:
    """Mean and largest length of the residual where ``x + w(x)`` lies inside the grid."""
    kernels = compiled(residual, inverse)
    if kernels is not None:
        return kernels.residual_size(residual, inverse)
    shape = tuple(inverse.shape[2:])
    index = voxel_index(shape, device=inverse.device, dtype=inverse.dtype) + inverse
    limit = torch.tensor(shape, device=index.device, dtype=index.dtype).view(1, -1, *[1] * len(shape)) - 1
    inside = ((index >= 0) & (index <= limit)).all(dim=1)
    length = residual.square().sum(1).sqrt()[inside]
    return (float(length.mean()), float(length.max())) if length.numel() else (0.0, 0.0)
