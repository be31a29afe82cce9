"""Overlap of soft label maps: Dice, generalised Dice, and Dice where only some labels were drawn."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verimorph.errors import InputError, MissingExtraError, OptionError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, ordered_sum, over_batch, spread

VolumeWeight = Literal["square", "simple", "uniform"]


def _monai_losses(purpose: str) -> ModuleType:
    try:
        from monai.losses import dice
    except ImportError as error:
        raise MissingExtraError("MONAI", "train", purpose) from error
    return dice


def _prepare(fixed: Tensor, moved: Tensor, mask: Tensor | None, include_background: bool) -> tuple[Tensor, Tensor]:
    if fixed.shape != moved.shape or fixed.ndim not in (4, 5):
        raise InputError(
            f"labels must be (batch, label, *space) of one shape, got {tuple(fixed.shape)} and {tuple(moved.shape)}"
        )
    if not include_background:
        if fixed.shape[1] < 2:
            raise InputError("with one channel of labels there is no background to leave out; set include_background")
        fixed, moved = fixed[:, 1:], moved[:, 1:]
    fixed = fixed.to(moved)
    mask = spread(mask, moved)
    return (fixed, moved) if mask is None else (fixed * mask, moved * mask)


def _overlap(
    fixed: Tensor, moved: Tensor, weight: Tensor | None, squared: bool
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Twice the intersection, and the sum of sizes."""
    weight = spread(weight, moved)
    first, second = (fixed, moved) if weight is None else (fixed * weight, moved * weight)
    inner = 2 * ordered_sum(first * moved, 2)
    sizes = (first * fixed + second * moved) if squared else (first + second)
    return inner, ordered_sum(sizes, 2)


@full_precision
def soft_dice(
    fixed_labels: Float[Tensor, "b k *space"],
    moved_labels: Float[Tensor, "b k *space"],
    *,
    squared: bool = False,
    smooth: float = 1e-5,
    include_background: bool = False,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Soft Dice loss, mean over labels of 1 - (2 sum p t + smooth) / (sum p + sum t + smooth).

    Range [0, 1], 0 best for binary maps (soft maps that agree stay above 0 unless ``squared``). Dimensionless.

    Parameters
    ----------
    fixed_labels, moved_labels
        Probabilities or one-hot maps, channel 0 the background; the moved ones warped linearly.
    squared
        Squares in the denominator (Milletari et al. 2016).
    mask, weight
        Voxels that count, and how much.

    Computed by MONAI's ``DiceLoss`` (extra ``train``), except with a weight map, which MONAI does not take.

    Differs from: MONAI by its defaults (background in, sigmoid off alike). A label absent in both counts 0 loss; to
    leave it out of the mean see `partial_dice`.
    """
    fixed, moved = _prepare(fixed_labels, moved_labels, mask, include_background)
    if weight is not None:
        inner, sizes = _overlap(fixed, moved, weight, squared)
        return over_batch((1 - (inner + smooth) / (sizes + smooth)).mean(1), reduction)
    loss = _monai_losses("the soft Dice loss").DiceLoss(
        include_background=True, squared_pred=squared, smooth_nr=smooth, smooth_dr=smooth, reduction="none"
    )
    return over_batch(loss(moved, fixed).flatten(1).mean(1), reduction)


@full_precision
def generalised_dice(
    fixed_labels: Float[Tensor, "b k *space"],
    moved_labels: Float[Tensor, "b k *space"],
    *,
    volume_weight: VolumeWeight = "square",
    smooth: float = 1e-5,
    include_background: bool = False,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised Dice loss: labels pooled with weights from their volume.

    ::

        value = 1 - (2 sum_k w_k sum p_k t_k + smooth) / (sum_k w_k (sum p_k + sum t_k) + smooth)
        w_k = 1 / (sum t_k)^2 (square), 1 / sum t_k (simple), 1 (uniform); absent labels take the largest w

    Range [0, 1], 0 best. Dimensionless. Computed by MONAI's ``GeneralizedDiceLoss`` (extra ``train``), except
    with a weight map or a gradient by the fixed labels, neither of which MONAI takes.

    Source: Sudre et al., DLMIA 2017.
    """
    if volume_weight not in ("square", "simple", "uniform"):
        raise OptionError(f"unknown volume_weight '{volume_weight}'; known: square, simple, uniform")
    fixed, moved = _prepare(fixed_labels, moved_labels, mask, include_background)
    if weight is not None or fixed.requires_grad:
        inner, sizes = _overlap(fixed, moved, weight, False)
        volume = ordered_sum(fixed if weight is None else fixed * spread(weight, moved), 2)
        power = {"square": 2, "simple": 1, "uniform": 0}[volume_weight]
        shares = volume.clamp_min(1e-12).pow(-power)
        absent = volume <= 0
        largest = shares.masked_fill(absent, 0.0).amax(1, keepdim=True)
        shares = torch.where(absent, largest, shares)
        value = 1 - ((shares * inner).sum(1) + smooth) / ((shares * sizes).sum(1) + smooth)
        return over_batch(value, reduction)
    loss = _monai_losses("the generalised Dice loss").GeneralizedDiceLoss(
        include_background=True, w_type=volume_weight, smooth_nr=smooth, smooth_dr=smooth, reduction="none"
    )
    return over_batch(loss(moved, fixed).flatten(1).mean(1), reduction)


@full_precision
def partial_dice(
    fixed_labels: Float[Tensor, "b k *space"],
    moved_labels: Float[Tensor, "b k *space"],
    *,
    known: Bool[Tensor, "b k"] | None = None,
    squared: bool = False,
    smooth: float = 1e-5,
    include_background: bool = False,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Soft Dice over the labels that were drawn in both images of a pair and that one of them contains.

    As `soft_dice`, but the mean runs, item by item, over labels that are ``known`` and present in the fixed or the
    moved map; 0 (with no gradient) where none is. For data sets that each drew other organs, and for labels cut off by
    the field of view.

    Parameters
    ----------
    known
        Which labels were drawn in both images, background first as in the maps; all where None.

    Differs from: `soft_dice` with all labels known and present, by nothing.
    """
    fixed, moved = _prepare(fixed_labels, moved_labels, mask, include_background)
    inner, sizes = _overlap(fixed, moved, weight, squared)
    present = (fixed + moved).detach().flatten(2).amax(2) > 0
    if known is not None:
        known = known.to(device=present.device, dtype=torch.bool)
        present = present & (known if include_background else known[:, 1:])
    share = present.to(moved.dtype)
    loss = (1 - (inner + smooth) / (sizes + smooth)) * share
    return over_batch(loss.sum(1) / share.sum(1).clamp_min(1), reduction)
