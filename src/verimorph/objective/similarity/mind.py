"""Modality independent neighbourhood descriptors: MIND, its self-similarity context form, and their distance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from verimorph.errors import OptionError
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, check_pair, ordered_sum, radius_of, reduce_local, spacing_of
from verimorph.objective._windows import box_weights, gaussian_weights, separable
from verimorph.objective.similarity.squared import mse, mse_value_and_gradient

MINDForm = Literal["ssc", "mind"]
Offsets = tuple[tuple[int, ...], ...]
Pairs = tuple[Offsets, Offsets]
Weights = tuple[tuple[float, ...], ...]
Steps = tuple[int, ...]

_TINY = 1e-12  # keeps 0/0 of a constant image at 0; far below any distance that means something


def context_pairs(ndim: int) -> tuple[Offsets, Offsets]:
    """Pairs of face neighbours at squared distance two: 12 in 3-D, 4 in 2-D, each once."""
    faces = []
    for axis in range(ndim):
        for sign in (-1, 1):
            faces.append(tuple(sign if a == axis else 0 for a in range(ndim)))
    pairs = [
        (first, second)
        for first, second in itertools.combinations(faces, 2)
        if sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) == 2
    ]
    return tuple(first for first, _ in pairs), tuple(second for _, second in pairs)


def centre_pairs(ndim: int) -> tuple[Offsets, Offsets]:
    """The centre with each of its face neighbours: 6 in 3-D, 4 in 2-D."""
    faces = [tuple(sign if a == axis else 0 for a in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]
    return tuple(faces), ((0,) * ndim,) * len(faces)


def _shifted(padded: Tensor, reach: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> Tensor:
    for axis, (margin, step, length) in enumerate(zip(reach, offset, shape, strict=True)):
        padded = padded.narrow(2 + axis, margin + step, length)
    return padded


def _pad(image: Tensor, reach: Sequence[int]) -> Tensor:
    widths = [width for margin in reversed(reach) for width in (margin, margin)]
    return torch.nn.functional.pad(image, widths, mode="replicate")


def _fold(padded: Tensor, reach: Sequence[int]) -> Tensor:
    """Adjoint of repeating the border: margins are added to the border voxels."""
    for axis, margin in enumerate(reach):
        if margin == 0:
            continue
        dim, length = 2 + axis, padded.shape[2 + axis] - 2 * margin
        inner = padded.narrow(dim, margin, length).clone()
        inner.narrow(dim, 0, 1).add_(padded.narrow(dim, 0, margin).sum(dim, keepdim=True))
        inner.narrow(dim, length - 1, 1).add_(padded.narrow(dim, margin + length, margin).sum(dim, keepdim=True))
        padded = inner
    return padded


class _Descriptors(torch.autograd.Function):
    """exp(-m_k / V) with m_k = D_k - min D; channel by channel, forward and backward, so little is kept."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, offsets: tuple[Offsets, Offsets], weights: Weights, reach: Steps, subtract: bool
    ) -> Tensor:
        ndim = image.ndim - 2
        boxes = all(len(set(kernel)) == 1 for kernel in weights)
        if boxes and subtract and usable(image):
            distances, variance, least = _distances_with_kernel(image, offsets, weights, reach)
        else:
            padded, shape = _pad(image, reach), image.shape[2:]
            distances = image.new_empty(image.shape[0], len(offsets[0]), *shape)
            for k, (first, second) in enumerate(zip(*offsets, strict=True)):
                difference = _shifted(padded, reach, first, shape) - _shifted(padded, reach, second, shape)
                distances[:, k : k + 1] = separable(difference.square_(), weights, "replicate")
            least = None
            if subtract:
                minimum, least = distances.min(1, keepdim=True)
                distances -= minimum
            variance = distances.mean(1, keepdim=True)
        mean = (ordered_sum(variance) / variance[0].numel()).view(-1, *(1,) * (ndim + 1))
        # Bounds an item, not a batch: a value must not depend on its neighbours in the batch.
        low, high = mean * 1e-3 + _TINY, mean * 1e3 + 2 * _TINY
        held = torch.minimum(torch.maximum(variance, low), high)
        if not ctx.needs_input_grad[0] and boxes and subtract and usable(image):
            return _finish_with_kernel(distances, variance, low, high)
        if boxes and subtract and usable(image):
            result = _finish_with_kernel(distances.clone(), variance, low, high)
        else:
            result = torch.exp(distances / -held)
        ctx.save_for_backward(image, distances, held, (variance > low) & (variance < high), result, least)
        ctx.settings = offsets, weights, reach, subtract
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        image, distances, held, free, result, least = ctx.saved_tensors
        offsets, weights, reach, subtract = ctx.settings
        if subtract and least is None and usable(image, outer[0]):
            gradient = _gradient_with_kernel(image, distances, held, free, result, outer[0], ctx.settings)
            return gradient, None, None, None, None
        pairs = len(offsets[0])
        # With E_k = exp(-m_k/V): dE_k/dm_k = -E_k/V and dE_k/dV = E_k m_k / V^2, V the mean of m (where not held).
        pull = outer[0] * result / held
        through_variance = (pull * distances).sum(1, keepdim=True) / held * free / pairs
        slope = through_variance - pull
        if subtract:
            if least is None:
                least = distances.argmin(1, keepdim=True)
            slope.scatter_add_(1, least, -slope.sum(1, keepdim=True))
        padded, shape = _pad(image, reach), image.shape[2:]
        gradient = torch.zeros_like(padded)
        for k, (first, second) in enumerate(zip(*offsets, strict=True)):
            difference = _shifted(padded, reach, first, shape) - _shifted(padded, reach, second, shape)
            change = difference.mul_(2).mul_(_separable_adjoint(slope[:, k : k + 1], weights))
            _shifted(gradient, reach, first, shape).add_(change)
            _shifted(gradient, reach, second, shape).sub_(change)
        return _fold(gradient, reach), None, None, None, None


def _separable_adjoint(x: Tensor, weights: Weights) -> Tensor:
    """Adjoint of the replicated-border filter: filter the zero-padded array on a margin, then fold the margin in."""
    margin = [len(kernel) // 2 for kernel in weights]
    widths = [width for size in reversed(margin) for width in (size, size)]
    return _fold(separable(torch.nn.functional.pad(x, widths), weights), margin)


def _kernel_geometry(image: Tensor, offsets: Pairs, weights: Weights, reach: Steps) -> tuple[Any, Any, Any, Steps]:
    lift = (0,) if image.ndim == 4 else ()
    firsts, seconds = (np.array([(*lift, *offset) for offset in side], np.int64) for side in offsets)
    radius = (*lift, *(len(kernel) // 2 for kernel in weights))
    return firsts, seconds, np.array((*lift, *reach), np.int64), radius


def _distances_with_kernel(
    image: Tensor, offsets: Pairs, weights: Weights, reach: Steps
) -> tuple[Tensor, Tensor, None]:
    from verimorph.objective._kernels.mind import patch_distances

    firsts, seconds, margins, radius = _kernel_geometry(image, offsets, weights, reach)
    padded = _pad(image, reach).contiguous()
    distances = torch.empty(image.shape[0], len(offsets[0]), *image.shape[2:])
    variance = torch.empty(image.shape[0], 1, *image.shape[2:])
    scale = np.float32(np.prod([kernel[0] for kernel in weights]))
    for b in range(image.shape[0]):
        volume, target, mean = padded[b, 0], distances[b], variance[b, 0]
        if image.ndim == 4:
            volume, target, mean = volume[None], target[:, None], mean[None]
        patch_distances(volume.numpy(), firsts, seconds, margins, radius, scale, target.numpy(), mean.numpy())
    return distances, variance, None


def _finish_with_kernel(distances: Tensor, variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    from verimorph.objective._kernels.mind import descriptors

    for b in range(distances.shape[0]):
        target, mean = distances[b], variance[b, 0]
        if distances.ndim == 4:
            target, mean = target[:, None], mean[None]
        descriptors(target.numpy(), mean.numpy(), np.float32(low[b].item()), np.float32(high[b].item()))
    return distances


def _gradient_with_kernel(
    image: Tensor, distances: Tensor, held: Tensor, free: Tensor, result: Tensor, outer: Tensor, settings: Any
) -> Tensor:
    from verimorph.objective._kernels import mind as kernels

    offsets, weights, reach, _ = settings
    firsts, seconds, margins, radius = _kernel_geometry(image, offsets, weights, reach)
    scale = np.float32(np.prod([kernel[0] for kernel in weights]))
    padded = _pad(image, reach).contiguous()
    gradient = torch.zeros_like(padded)
    shape = tuple(image.shape[2:]) if image.ndim == 5 else (1, *image.shape[2:])
    shared_slope, at_least, planes, change = (np.empty(shape, np.float32) for _ in range(4))
    least = np.empty(shape, np.int8)
    for b in range(image.shape[0]):
        volumes = [x[b].contiguous().numpy().reshape(-1, *shape) for x in (outer, result, distances)]
        variance, unheld = (x[b, 0].contiguous().numpy().reshape(shape) for x in (held, free))
        kernels.pulls(*volumes, variance, unheld, shared_slope, least, at_least)
        lift = (lambda x: x[None]) if image.ndim == 4 else (lambda x: x)
        source, target = lift(padded[b, 0]).numpy(), lift(gradient[b, 0]).numpy()
        for k in range(len(firsts)):
            kernels.channel_slope(
                volumes[0][k], volumes[1][k], variance, shared_slope, least, at_least, k, radius, scale, planes
            )
            kernels.channel_change(planes, source, firsts[k], seconds[k], margins, radius, change)
            kernels.gather_change(change, firsts[k], seconds[k], margins, target)
    return _fold(gradient, reach)


def _per_axis(steps: int | tuple[int, ...], name: str, ndim: int) -> tuple[int, ...]:
    values = (steps,) * ndim if isinstance(steps, int) else tuple(int(step) for step in steps)
    if len(values) != ndim or min(values) < 1:
        raise OptionError(f"{name} {steps} does not give {ndim} whole numbers of voxels from 1, one an axis")
    return values


@full_precision
def mind_ssc(
    image: Float[Tensor, "b 1 *space"],
    radius: int | tuple[int, ...] = 2,
    dilation: int | tuple[int, ...] = 2,
) -> Float[Tensor, "b pairs *space"]:
    """MIND-SSC descriptors: how alike the neighbours of a voxel are to one another.

    With a_k, b_k the pairs of face neighbours at squared distance two (12 in 3-D, 4 in 2-D), d the dilation::

        D_k(x) = mean over the patch around x of ( I(y + d a_k) - I(y + d b_k) )^2     (borders repeated)
        m_k = D_k - min_k D_k;  V = mean_k m_k, held in [0.001, 1000] times its mean over the image
        E_k = exp(-m_k / V)

    Range (0, 1]; unchanged by I -> a I + b, a != 0 (up to rounding). A constant image gives 1 everywhere. Several
    channels must be taken one by one.

    Parameters
    ----------
    radius
        Of the patch, in voxels; 2 is 5^3.
    dilation
        Distance of the neighbours, in voxels.

    Source: Heinrich et al., MICCAI 2013 (self-similarity context).

    Differs from: the survey's and Learn2Reg code by the order of channels (theirs imitates C++ code; no matter to a
    distance) and by bounds of V for every item alone (theirs for the batch).
    """
    if image.shape[1] != 1:
        raise OptionError(f"MIND takes one channel at a time, got {image.shape[1]}")
    ndim = image.ndim - 2
    steps = _per_axis(dilation, "dilation", ndim)
    weights = tuple(tuple(w / (2 * r + 1) for w in box_weights(r)) for r in radius_of(radius, None, None, ndim))
    return _Descriptors.apply(image, _scaled(context_pairs(ndim), steps), weights, steps, True)


@full_precision
def mind(
    image: Float[Tensor, "b 1 *space"],
    sigma: float = 0.5,
    dilation: int | tuple[int, ...] = 1,
) -> Float[Tensor, "b neighbours *space"]:
    """The first MIND descriptor: distance of the patch at a voxel to the patches at its face neighbours.

    D_k(x) is the Gaussian mean (``sigma`` voxels, borders repeated) of (I(y + d a_k) - I(y))^2, V its mean over k (held
    as in `mind_ssc`), E_k = exp(-D_k / V) divided by the largest E_k of the voxel. Range (0, 1].

    Source: Heinrich et al. 2012 (Med. Image Anal. 16:1423), six-neighbourhood.
    """
    if image.shape[1] != 1:
        raise OptionError(f"MIND takes one channel at a time, got {image.shape[1]}")
    ndim = image.ndim - 2
    steps = _per_axis(dilation, "dilation", ndim)
    kernel = gaussian_weights(sigma, max(1, round(3 * sigma)))
    raw = _Descriptors.apply(image, _scaled(centre_pairs(ndim), steps), (kernel,) * ndim, steps, False)
    return raw / raw.amax(1, keepdim=True).clamp_min(1e-30)


def _scaled(offsets: tuple[Offsets, Offsets], steps: Sequence[int]) -> tuple[Offsets, Offsets]:
    first, second = (
        tuple(tuple(value * step for value, step in zip(offset, steps, strict=True)) for offset in side)
        for side in offsets
    )
    return first, second


def _describe(image: Tensor, form: MINDForm, radius: int | Steps, dilation: int | Steps, sigma: float) -> Tensor:
    if form == "ssc":
        parts = [mind_ssc(image[:, c : c + 1], radius, dilation) for c in range(image.shape[1])]
    elif form == "mind":
        parts = [mind(image[:, c : c + 1], sigma, dilation) for c in range(image.shape[1])]
    else:
        raise OptionError(f"unknown form '{form}' of MIND; known: ssc, mind")
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def mind_value_and_gradient(
    fixed_descriptors: Float[Tensor, "b k *space"],
    moved_descriptors: Float[Tensor, "b k *space"],
    *,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    gradient: bool = True,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k *space"] | None]:
    """Distance of descriptors and its gradient by the moved ones, for solvers that warp descriptors made once.

    Mean over voxels and channels of the squared difference. Warping descriptors of the moving image instead of
    describing the moved one leaves out how a deformation turns neighbourhoods; near the identity that is small.
    """
    return mse_value_and_gradient(fixed_descriptors, moved_descriptors, mask=mask, weight=weight, gradient=gradient)


@full_precision
def mind_distance(
    fixed: Float[Tensor, "b c *space"],
    moved: Float[Tensor, "b c *space"],
    *,
    form: MINDForm = "ssc",
    radius: int | tuple[int, ...] = 2,
    dilation: int | tuple[int, ...] = 2,
    sigma: float = 0.5,
    dilation_mm: float | None = None,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean squared difference of MIND descriptors, over voxels and descriptor channels.

    Range [0, 1], 0 best; dimensionless; for images whose intensities have no simple relation. The mask chooses where
    descriptors are compared; a descriptor within ``radius + dilation`` of the mask's rim still looks outside it.

    Parameters
    ----------
    form
        ``ssc``: `mind_ssc` with ``radius`` and ``dilation``; ``mind``: the descriptor of 2012 with ``sigma``.
    dilation_mm
        Distance of the neighbours in millimetres, at least one voxel, with ``spacing``.

    Differs from: code that sums over the channels (by their number), or takes the absolute difference.
    """
    check_pair(fixed, moved)
    if dilation_mm is not None:
        if spacing is None:
            raise OptionError("a dilation in millimetres needs the spacing of the images")
        dilation = tuple(max(1, round(dilation_mm / step)) for step in spacing_of(spacing, fixed.ndim - 2))
    first, second = (_describe(image, form, radius, dilation, sigma) for image in (fixed, moved))
    if map:
        return reduce_local((first - second) ** 2, mask=mask, weight=weight, reduction=reduction, map=True)
    return mse(first, second, mask=mask, weight=weight, reduction=reduction)
