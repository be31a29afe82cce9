"""Local normalised cross-correlation with a square window, and its fast value-and-gradient form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._analytic import analytic_pair
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import (
    Reduction,
    check_pair,
    ordered_sum,
    over_batch,
    radius_of,
    reduce_local,
    spread,
)
from verimorph.objective._windows import MomentBorder, box_sum, box_weights, window_total
from verimorph.objective.similarity._moments import centre, local_moments, mean_inside


@dataclass
class LNCCStatistics:
    """Window statistics of a fixed image, computed once and used in every iteration.

    Attributes
    ----------
    centred
        The fixed image less its mean over the mask (less nothing for zero borders), ``(b, c, *space)``.
    mean, scatter
        Window mean of ``centred`` and window sum of its squared deviations, ``(b, c, *space)``.
    count
        Voxels that a window counts, ``(b|1, 1, *space)``.
    """

    centred: Tensor
    mean: Tensor
    scatter: Tensor
    count: Tensor
    mask: Tensor | None
    radius: tuple[int, ...]
    border: MomentBorder
    scratch: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)


def _axis_counts(shape: torch.Size, radius: tuple[int, ...], border: MomentBorder) -> list[Tensor]:
    counts = []
    for length, r in zip(shape, radius, strict=True):
        index = torch.arange(length)
        inside = (index + r).clamp(max=length - 1) - (index - r).clamp(min=0) + 1
        counts.append((inside if border == "valid" else torch.full_like(inside, 2 * r + 1)).float())
    return counts


def _volume(x: Tensor) -> Tensor:
    """A (*space) view with three axes, as the kernels take it."""
    return x if x.ndim == 3 else x[None]


def lncc_statistics(
    fixed: Float[Tensor, "b c *space"],
    radius: int | tuple[int, ...] = 4,
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    border: MomentBorder = "valid",
) -> LNCCStatistics:
    """Window statistics of the fixed image for `lncc` and `lncc_value_and_gradient`."""
    radii = radius_of(radius, None, None, fixed.ndim - 2)
    mask = spread(mask, fixed)
    centred = centre(fixed.detach(), mask, border)[0].contiguous()
    count = window_total(fixed, [box_weights(r) for r in radii], border, mask)
    mean, scatter = torch.empty_like(centred), torch.empty_like(centred)
    if usable(centred, mask):
        from verimorph.objective._kernels import lncc as kernels

        three = radii if len(radii) == 3 else (0, *radii)
        planes = torch.empty(2, *_volume(centred[0, 0]).shape)
        none = np.float32(0.0)
        counts = _kernel_counts(centred.shape[2:], radii, border, mask, count)
        for b in range(fixed.shape[0]):
            inside = planes[0] if mask is None else _volume(mask[b, 0].contiguous())
            for c in range(fixed.shape[1]):
                image = _volume(centred[b, c]).numpy()
                masked = mask is not None
                kernels.planes_of_products(image, none, image, none, inside.numpy(), masked, *three[1:], planes.numpy())
                kernels.fixed_statistics(
                    planes.numpy(), *counts(b), three[0], _volume(mean[b, c]).numpy(), _volume(scatter[b, c]).numpy()
                )
    else:
        weighted = centred if mask is None else centred * mask
        total = box_sum(weighted, radii)
        mean = total / count
        scatter = (box_sum(weighted * centred, radii) - total * mean).clamp_min(0)
    return LNCCStatistics(centred, mean, scatter, count, mask, radii, border)


def _kernel_counts(
    shape: torch.Size, radius: tuple[int, ...], border: MomentBorder, mask: Tensor | None, count: Tensor
) -> Callable[[int], tuple[Any, ...]]:
    """The window counts as the kernels take them: three vectors without a mask, a volume with one."""
    vectors = [vector.numpy() for vector in _axis_counts(shape, radius, border)]
    if len(vectors) == 2:
        vectors.insert(0, torch.ones(1).numpy())
    dummy = torch.ones(1, 1, 1).numpy()

    def counts(item: int) -> tuple[Any, ...]:
        volume = dummy if mask is None else _volume(count[item, 0].contiguous()).numpy()
        return (*vectors, volume, mask is not None)

    return counts


def _per_item_share(mask: Tensor | None, weight: Tensor | None) -> Tensor | None:
    if mask is None or weight is None:
        return weight if mask is None else mask
    return mask * weight


@full_precision
def lncc_value_and_gradient(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    radius: int | tuple[int, ...] = 4,
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    statistics: LNCCStatistics | None = None,
    border: MomentBorder = "valid",
    epsilon: float = 1e-5,
    gradient: bool = True,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c *space"] | None]:
    """`lncc` of every item and its gradient with respect to ``moved``, without autograd.

    With A the window covariance sum, B and C the window scatter of fixed I and moved J, a = A / (B C + epsilon) and
    b = a^2 B, the gradient of 1 - mean(A a) is -(2/N) [ I box(a) - J box(b) - box(a mean_I - b mean_J) ].

    Parameters
    ----------
    fixed, moved
        Images, any number of channels (each is measured alone, then averaged).
    radius
        Window radius in voxels, one or one an axis; 4 is the window 9^3.
    mask, weight
        As in `lncc`.
    statistics
        What `lncc_statistics` gave for this fixed image, radius, mask and border; computed here where None. It also
        keeps the work space, so that a solver's loop allocates nothing but the gradient.
    gradient
        False for the value alone.

    Returns
    -------
    value, gradient
        One value an item and ``d value[item] / d moved[item]`` (None where not wanted).
    """
    check_pair(fixed, moved)
    if statistics is not None:
        mask, border, radii = statistics.mask, statistics.border, statistics.radius
    else:
        mask, radii = spread(mask, moved), radius_of(radius, None, None, fixed.ndim - 2)
    weight = spread(weight, moved)
    share = _per_item_share(mask, weight)
    voxels = math.prod(moved.shape[2:])
    inside = torch.full((moved.shape[0],), float(voxels)) if mask is None else ordered_sum(mask)
    inside = inside.to(moved)
    if usable(fixed, moved, mask, weight):
        task = _Task(radii, border, mask, share, inside, epsilon, gradient)
        total, result = _with_kernels(fixed.detach(), moved.detach(), statistics, task)
    else:
        known = statistics or lncc_statistics(fixed, radii, mask=mask, border=border)
        centred = centre(moved.detach(), mask, border)[0]
        total, result = _with_torch(known, centred, share, inside, epsilon, gradient)
    possible = inside.to(total) if weight is None or share is None else ordered_sum(share).to(total)
    value = (possible - total / moved.shape[1]) / inside.to(total).clamp_min(1e-6)
    return value.to(moved.dtype), result


class _Task(NamedTuple):
    """What the kernels are asked for, apart from the images."""

    radius: tuple[int, ...]
    border: MomentBorder
    mask: Tensor | None
    share: Tensor | None
    inside: Tensor
    epsilon: float
    gradient: bool


def _with_torch(
    known: LNCCStatistics, moved: Tensor, share: Tensor | None, inside: Tensor, epsilon: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    weighted = moved if known.mask is None else moved * known.mask
    total = box_sum(weighted, known.radius)
    mean = total / known.count
    raw = box_sum(weighted * moved, known.radius) - total * mean
    cross = box_sum(weighted * known.centred, known.radius) - total * known.mean
    a = cross / (known.scatter * raw.clamp_min(0) + epsilon)
    local = a * cross if share is None else a * cross * share
    value = ordered_sum(local)
    if not gradient:
        return value, None
    b = torch.where(raw > 0, a * a * known.scatter, torch.zeros_like(a))
    if share is not None:
        a, b = a * share, b * share
    result = known.centred * box_sum(a, known.radius) - moved * box_sum(b, known.radius)
    result -= box_sum(a * known.mean - b * mean, known.radius)
    if known.mask is not None:
        result *= known.mask
    scale = -2 / (inside.clamp_min(1e-6) * moved.shape[1])
    return value, result.mul_(scale.view(-1, *(1,) * (moved.ndim - 1)))


def _with_kernels(
    fixed: Tensor, moved: Tensor, known: LNCCStatistics | None, task: _Task
) -> tuple[Tensor, Tensor | None]:
    """Value and gradient; without statistics those of the fixed image are made on the way and never stored."""
    from verimorph.objective._kernels import lncc as kernels

    three = task.radius if len(task.radius) == 3 else (0, *task.radius)
    nz, ny, nx = shape = tuple(_volume(moved[0, 0]).shape)
    scratch = {} if known is None else known.scratch
    if shape not in scratch:
        scratch[shape] = torch.empty(5 if known is None else 3, nz + three[0] + 1, ny, nx)
    planes = scratch[shape].numpy()
    count = window_total(moved, [box_weights(r) for r in task.radius], task.border, task.mask)
    counts = _kernel_counts(moved.shape[2:], task.radius, task.border, task.mask, count)
    first = fixed.contiguous() if known is None else known.centred
    second, mask, share = moved.contiguous(), task.mask, task.share
    offsets = [np.zeros(moved.shape[:2], np.float32)] * 2
    if task.border == "valid":  # with zero borders the zeros are part of the image, so nothing is taken off
        offsets = [offsets[0] if known is not None else mean_inside(first, mask).numpy()]
        offsets.append(mean_inside(second, mask).numpy())
    value = torch.zeros(moved.shape[0], dtype=torch.float64)
    result = torch.empty_like(second) if task.gradient else None
    nothing = np.zeros((1, 1, 1), np.float32)
    for b in range(moved.shape[0]):
        inner = nothing if mask is None else _volume(mask[b, 0].contiguous()).numpy()
        part = nothing if share is None else _volume(share[b, 0].contiguous()).numpy()
        for c in range(moved.shape[1]):
            pair = (
                _volume(first[b, c]).numpy(),
                np.float32(offsets[0][b, c]),
                _volume(second[b, c]).numpy(),
                np.float32(offsets[1][b, c]),
            )
            window = (nothing, nothing)
            if known is not None:
                window = (_volume(known.mean[b, c]).numpy(), _volume(known.scatter[b, c]).numpy())
            kernels.planes_of_products(*pair, inner, mask is not None, *three[1:], planes)
            value[b] += kernels.correlation(
                planes,
                *window,
                known is not None,
                *counts(b),
                part,
                share is not None,
                three[0],
                np.float32(task.epsilon),
            )
            if result is not None:
                kernels.planes_of_boxes(planes, 3, nz, *three[1:])
                scale = np.float32(-2.0 / (max(float(task.inside[b]), 1e-6) * moved.shape[1]))
                out = _volume(result[b, c]).numpy()
                kernels.gradient_of_correlation(planes, *pair, inner, mask is not None, three[0], scale, out)
    return value, result


@full_precision
def lncc(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    radius: int | tuple[int, ...] = 4,
    radius_mm: float | None = None,
    border: MomentBorder = "valid",
    epsilon: float = 1e-5,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    statistics: LNCCStatistics | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Local normalised cross-correlation, square window: 1 - mean of the squared local correlation.

    With sums over the window (n voxels of it inside image and mask)::

        cross = sum FW - (sum F)(sum W)/n;  v_F = sum F^2 - (sum F)^2/n;  v_W likewise
        value = 1 - mean_x cross^2 / (v_F v_W + epsilon)

    Range [0, 1]; 0 where every window is an affine image of the other (of either sign: the correlation is squared);
    a constant window counts 1. Dimensionless. Intensities are meant to be of order one (``epsilon`` has the unit
    intensity^4), channels are measured one by one.

    Parameters
    ----------
    radius, radius_mm
        Window radius in voxels (one, or one an axis), or in millimetres with ``spacing``.
    border
        ``valid``: windows count only voxels inside the image (and mask), so a cropped image and a masked one agree;
        ``zeros``: zeros outside, the published form, which breaks the invariance to an offset near the border.
    statistics
        Of the fixed image, from `lncc_statistics`; used where only ``moved`` needs a gradient.

    Source: Avants et al. 2008 (Med. Image Anal. 12:26); Balakrishnan et al. 2019 (IEEE TMI 38:1788).

    Differs from: VoxelMorph-style code (returns -mean: ours minus 1; zero border); MONAI (clamps each variance at its
    constant instead of adding one to the product, kernel 3 by default); ANTs (sign; same window at equal radius).
    """
    check_pair(fixed, moved)
    if border not in ("valid", "zeros"):
        raise OptionError(f"border '{border}' of lncc is unknown; known: valid, zeros")
    radii = radius_of(radius, radius_mm, spacing, fixed.ndim - 2)
    if map:
        moments = local_moments(fixed, moved, [box_weights(r) for r in radii], border, mask)
        square = moments.count**2
        scatters = moments.fixed_variance * moments.moved_variance * square
        local = 1 - moments.covariance**2 * square / (scatters + epsilon)
        return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=True)

    def compute(
        fixed: Tensor, moved: Tensor, want_fixed: bool, want_moved: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        settings: dict[str, Any] = {
            "radius": radii,
            "mask": mask,
            "weight": weight,
            "border": border,
            "epsilon": epsilon,
        }
        value, to_moved = lncc_value_and_gradient(fixed, moved, statistics=statistics, gradient=want_moved, **settings)
        to_fixed = lncc_value_and_gradient(moved, fixed, **settings)[1] if want_fixed else None
        return value, to_fixed, to_moved

    return over_batch(analytic_pair(fixed, moved, compute), reduction)
