"""What a model's card says about the images it can take, held against the images at hand. One line each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.image import Image
from verimorph.io import validate

if TYPE_CHECKING:
    from torch import nn

    from verimorph.data.preparation import Preparation
    from verimorph.methods.card import Card

FAR_SPACING = 3.0
"""Voxels this many times finer or coarser than the model's are outside of what it has seen."""


def load_for(path: str | PathLike, *, task: str) -> tuple[nn.Module, Card, Preparation]:
    """Load a trained model of a task with the preparation on its card.

    Raises
    ------
    InputError
        If there is no model, its card is damaged or does not fit, or it is a model of another task.
    """
    from verimorph.data.preparation import Preparation
    from verimorph.methods.checkpoint import load_model, read_card

    card = read_card(path)
    if card.task != task:
        takes = "one image, not a pair" if card.task == "segmentation" else "a pair, not one image"
        raise InputError(f"{path}: is a {card.task} model ('{card.method}'); it takes {takes}")
    module, card = load_model(path)
    try:
        preparation = Preparation.from_dict(card.preparation)
    except (OptionError, TypeError) as error:
        raise InputError(f"{path}: the card does not say how images are prepared ({error})") from None
    if preparation.ndim != card.ndim:
        raise InputError(f"{path}: the card says {card.ndim}-D and has a {preparation.ndim}-D grid; it is damaged")
    if card.channels % preparation.channels:
        raise InputError(
            f"{path}: the card says {card.channels} channels, and its preparation makes {preparation.channels} of each "
            "image; it is damaged"
        )
    return module, card, preparation


def images_needed(card: Card | None, preparation: Preparation) -> int:
    """How many images make up one side of a pair: one, unless the model was trained on several contrasts."""
    return 1 if card is None else max(1, card.channels // preparation.channels)


def check_images(
    images: Sequence[Image], role: str, *, preparation: Preparation, stride: int, images_needed: int
) -> None:
    """Refuse images that a model cannot take: axes, number of contrasts, constant or not finite, smaller than a stride.

    Warns
    -----
    VerimorphWarning
        If the voxels are far finer or coarser than those the model was trained on.
    """
    if len(images) != images_needed:
        given = "one" if len(images) == 1 else str(len(images))
        raise InputError(
            f"{role}: the model takes {images_needed} image{'s' * (images_needed > 1)} as channels, {given} "
            f"{'is' if len(images) == 1 else 'are'} given; give the option once for each image"
        )
    first = images[0]
    for image in images:
        if image.grid.ndim != preparation.ndim:
            raise InputError(
                f"{role} {image.name}: is {image.grid.ndim}-D, the model was trained on {preparation.ndim}-D "
                "images; give such an image, or another model"
            )
        validate.check_finite(image, role)
        validate.check_not_constant(image, role)
        if image is not first:
            validate.check_same_grid(first, image, role)
    spacing = first.grid.spacing
    wanted = spacing if preparation.spacing_mm is None else np.broadcast_to(preparation.spacing_mm, preparation.ndim)
    if preparation.spacing_mm is None:
        voxels = np.array(first.grid.shape, dtype=float)
    else:
        voxels = first.grid.extent / float(np.min(wanted))
    # Models are trained on small images in a wider grid, so less than a stride is fine where that is a good part of it.
    least = min(stride, min(preparation.shape) // 4)
    if voxels.min() < least:
        raise InputError(
            f"{role} {first.name}: is {' x '.join(f'{n:.3g}' for n in voxels)} voxels of the model's size, the "
            f"model (stride {stride}) needs {least} or more along every axis; give a larger image, or a model of fewer "
            "levels"
        )
    # Axes may be permuted between image and model: extremes are compared.
    ratio = max(spacing.max() / wanted.max(), wanted.min() / spacing.min())
    if ratio > FAR_SPACING:
        warnings.warn(
            VerimorphWarning(
                f"{role} {first.name}: its voxels are {' x '.join(f'{s:.3g}' for s in spacing)} mm, the model "
                f"was trained at {' x '.join(f'{float(s):.3g}' for s in wanted)} mm; look closely at the result"
            ),
            stacklevel=3,
        )
