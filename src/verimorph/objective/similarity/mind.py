"""Modality independent neighbourhood descriptors: MIND, its self-similarity context form, and their distance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    spacing_of,
    spread,
)
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
        ctx.settings = offsets, weights, reach, subtract
        if subtract and all(len(set(kernel)) == 1 for kernel in weights) and usable(image):
            patches = _patches(image, offsets, weights, reach)
            wanted = ctx.needs_input_grad[0]
            result = _described(patches, keep=wanted)
            ctx.save_for_backward(image, *((patches.distances, patches.variance, result) if wanted else ()))
            ctx.bounds = patches.low, patches.high
            return result
        padded, shape = _pad(image, reach), image.shape[2:]
        distances = image.new_empty(image.shape[0], len(offsets[0]), *shape)
        for k, (first, second) in enumerate(zip(*offsets, strict=True)):
            difference = _shifted(padded, reach, first, shape) - _shifted(padded, reach, second, shape)
            distances[:, k : k + 1] = separable(difference.square_(), weights, "replicate")
        if subtract:
            distances -= distances.amin(1, keepdim=True)
        variance = distances.mean(1, keepdim=True)
        low, high = _bounds((ordered_sum(variance) / variance[0].numel()).view(-1, *(1,) * (ndim + 1)))
        result = torch.exp(distances / -torch.minimum(torch.maximum(variance, low), high))
        ctx.save_for_backward(image, distances, variance, result)
        ctx.bounds = low, high
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        image, distances, variance, result = ctx.saved_tensors
        low, high = ctx.bounds
        offsets, weights, reach, subtract = ctx.settings
        if isinstance(low, list):
            patches = _Patches(image, offsets, weights, reach, distances, variance, low, high)
            return _gradient_with_kernel(patches, result, outer[0]), None, None, None, None
        pairs = len(offsets[0])
        held, free = torch.minimum(torch.maximum(variance, low), high), (variance > low) & (variance < high)
        # With E_k = exp(-m_k/V): dE_k/dm_k = -E_k/V and dE_k/dV = E_k m_k / V^2, V the mean of m (where not held).
        pull = outer[0] * result / held
        through_variance = (pull * distances).sum(1, keepdim=True) / held * free / pairs
        slope = through_variance - pull
        if subtract:
            slope.scatter_add_(1, distances.argmin(1, keepdim=True), -slope.sum(1, keepdim=True))
        padded, shape = _pad(image, reach), image.shape[2:]
        gradient = torch.zeros_like(padded)
        for k, (first, second) in enumerate(zip(*offsets, strict=True)):
            difference = _shifted(padded, reach, first, shape) - _shifted(padded, reach, second, shape)
            change = difference.mul_(2).mul_(_separable_adjoint(slope[:, k : k + 1], weights))
            _shifted(gradient, reach, first, shape).add_(change)
            _shifted(gradient, reach, second, shape).sub_(change)
        return _fold(gradient, reach), None, None, None, None


def _bounds(mean: Any) -> tuple[Any, Any]:
    """Between what V is held. Of an item, not a batch: a value must not depend on its neighbours in the batch."""
    return mean * 1e-3 + _TINY, mean * 1e3 + 2 * _TINY


def _separable_adjoint(x: Tensor, weights: Weights) -> Tensor:
    """Adjoint of the replicated-border filter: filter the zero-padded array on a margin, then fold the margin in."""
    margin = [len(kernel) // 2 for kernel in weights]
    widths = [width for size in reversed(margin) for width in (size, size)]
    return _fold(separable(torch.nn.functional.pad(x, widths), weights), margin)


class _Patches(NamedTuple):
    """Patch distances of one channel as the kernels make them: less their minimum, with their mean V and its bounds."""

    image: Tensor
    offsets: Pairs
    weights: Weights
    reach: Steps
    distances: Tensor
    variance: Tensor
    low: list[float]
    high: list[float]

    def geometry(self) -> tuple[Any, Any, Any, Steps, np.float32]:
        """Offsets, reach and radius along three axes, and the weight of a voxel of a patch."""
        lift = (0,) if self.image.ndim == 4 else ()
        firsts, seconds = (np.array([(*lift, *offset) for offset in side], np.int64) for side in self.offsets)
        radius = (*lift, *(len(kernel) // 2 for kernel in self.weights))
        scale = np.float32(np.prod([kernel[0] for kernel in self.weights]))
        return firsts, seconds, np.array((*lift, *self.reach), np.int64), radius, scale

    def bounds(self, item: int) -> tuple[np.float32, np.float32]:
        """Bounds of V of an item."""
        return np.float32(self.low[item]), np.float32(self.high[item])


def _volumes(x: Tensor) -> Any:
    """An item (k, *space) as an array of k volumes."""
    return x.contiguous().numpy().reshape(x.shape[0], *((1,) if x.ndim == 3 else ()), *x.shape[1:])


def _patches(image: Tensor, offsets: Pairs, weights: Weights, reach: Steps) -> _Patches:
    from verimorph.objective._kernels.mind import patch_distances

    distances = torch.empty(image.shape[0], len(offsets[0]), *image.shape[2:])
    variance = torch.empty(image.shape[0], 1, *image.shape[2:])
    found = _Patches(image, offsets, weights, reach, distances, variance, [], [])
    padded = _pad(image, reach)
    firsts, seconds, margins, radius, scale = found.geometry()
    for b in range(image.shape[0]):
        where = _volumes(distances[b]), _volumes(variance[b])[0]
        mean = patch_distances(_volumes(padded[b])[0], firsts, seconds, margins, radius, scale, *where)
        for bound, value in zip((found.low, found.high), _bounds(mean), strict=True):
            bound.append(value)
    return found


def _described(patches: _Patches, *, keep: bool) -> Tensor:
    """Descriptors; in the place of the distances unless these are kept."""
    from verimorph.objective._kernels.mind import descriptors

    result = patches.distances.clone() if keep else patches.distances
    for b in range(len(result)):
        descriptors(_volumes(result[b]), _volumes(patches.variance[b])[0], *patches.bounds(b))
    return result


def _gradient_with_kernel(patches: _Patches, result: Tensor, outer: Tensor) -> Tensor:
    from verimorph.objective._kernels.mind import slopes

    found = torch.empty_like(patches.distances)
    for b in range(len(result)):
        volumes = [_volumes(x[b]) for x in (outer, result, patches.distances)]
        slopes(*volumes, _volumes(patches.variance[b])[0], *patches.bounds(b), _volumes(found[b]))
    return _gradient_of_patches(patches, found)


def _gradient_of_patches(patches: _Patches, found: Tensor) -> Tensor:
    """Gradient by the image from the derivatives ``found`` by the distances."""
    from verimorph.objective._kernels.mind import gradient_of_distances

    firsts, seconds, margins, radius, scale = patches.geometry()
    padded = _pad(patches.image, patches.reach)
    gradient = torch.zeros_like(padded)
    for b in range(len(found)):
        target = _volumes(gradient[b])[0]
        source = _volumes(padded[b])[0]
        gradient_of_distances(_volumes(found[b]), source, firsts, seconds, margins, radius, scale, target)
    return _fold(gradient, patches.reach)


def _distance_with_kernel(
    reference: Tensor,
    image: Tensor,
    radius: int | Steps,
    dilation: int | Steps,
    share: Tensor | None,
    inside: Tensor,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """Distance of the descriptors of every item, and its gradient by ``image``."""
    from verimorph.objective._kernels.mind import distance_and_slopes

    settings = _ssc(image.ndim - 2, radius, dilation)
    count = inside.double() * (image.shape[1] * len(settings[0][0]))
    value, gradients = torch.zeros(len(image), dtype=torch.float64), []
    nothing = np.zeros((1, 1, 1), np.float32)
    for c in range(image.shape[1]):
        described = _described(_patches(reference[:, c : c + 1].contiguous(), *settings), keep=False)
        patches = _patches(image[:, c : c + 1].contiguous(), *settings)
        for b in range(len(image)):
            value[b] += distance_and_slopes(
                _volumes(described[b]),
                _volumes(patches.distances[b]),
                _volumes(patches.variance[b])[0],
                *patches.bounds(b),
                nothing if share is None else _volumes(share[b])[0],
                share is not None,
                np.float32(2 / float(count[b])),
                wanted,
            )
        del described  # a dozen volumes
        if wanted:
            gradients.append(_gradient_of_patches(patches, patches.distances))
    gradient = None if not wanted else gradients[0] if len(gradients) == 1 else torch.cat(gradients, 1)
    return (value / count).to(image.dtype), gradient


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
    return _Descriptors.apply(image, *_ssc(image.ndim - 2, radius, dilation), True)


def _ssc(ndim: int, radius: int | Steps, dilation: int | Steps) -> tuple[Pairs, Weights, Steps]:
    """Offsets, patch weights and reach of MIND-SSC."""
    steps = _per_axis(dilation, "dilation", ndim)
    weights = tuple(tuple(w / (2 * r + 1) for w in box_weights(r)) for r in radius_of(radius, None, None, ndim))
    return _scaled(context_pairs(ndim), steps), weights, steps


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
    mask, weight = spread(mask, moved), spread(weight, moved)
    if form == "ssc" and not map and usable(fixed, moved, mask, weight):
        share = mask if weight is None else weight if mask is None else mask * weight
        inside = moved.new_full((len(moved),), float(moved[0, 0].numel())) if mask is None else ordered_sum(mask)

        def compute(
            fixed: Tensor, moved: Tensor, want_fixed: bool, want_moved: bool
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            settings = radius, dilation, share, inside.clamp_min(1e-6)
            to_fixed = to_moved = value = None
            if want_fixed:
                value, to_fixed = _distance_with_kernel(moved, fixed, *settings, True)
            if want_moved or value is None:
                value, to_moved = _distance_with_kernel(fixed, moved, *settings, want_moved)
            return value, to_fixed, to_moved

        return over_batch(analytic_pair(fixed, moved, compute), reduction)
    first, second = (_describe(image, form, radius, dilation, sigma) for image in (fixed, moved))
    if map:
        return reduce_local((first - second) ** 2, mask=mask, weight=weight, reduction=reduction, map=True)
    return mse(first, second, mask=mask, weight=weight, reduction=reduction)
