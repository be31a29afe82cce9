"""A trained segmentation model applied to any image: a label map on the image's own grid, ids as the data have them.

Estienne et al. (Learn2Reg 2020) draw the noisy labels of their pretraining this way; true labels are put back where
there are any (`with_true_labels`), as they intended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray
from torch import nn

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io.validate import check_same_grid
from verimorph.predict.checks import check_images, images_needed, load_for
from verimorph.predict.registrar import grown
from verimorph.predict.runner import Runner

if TYPE_CHECKING:
    from verimorph.data.preparation import Preparation
    from verimorph.methods.card import Card


class Segmenter:
    """A trained segmentation model with the preparation it was trained with.

    Parameters
    ----------
    module
        One volume in, ``logits`` out (``verimorph.nn.model.ImageModel``).
    preparation
        How an image comes onto the model's grid.
    values
        Label value of every channel of the logits, the background first; default: the number of the channel.
    device, tile, overlap
        As for a `Registrar`.
    """

    def __init__(
        self,
        module: nn.Module,
        preparation: Preparation,
        *,
        values: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        tile: Sequence[int] | None = None,
        overlap: float = 0.25,
    ) -> None:
        self.runner = Runner(module, ndim=preparation.ndim, device=device, tile=tile, overlap=overlap)
        self.preparation = preparation
        self.values = None if values is None else tuple(values)
        self.card: Card | None = None

    @classmethod
    def load(cls, path: str | PathLike, *, device: torch.device | str = "cpu", **settings: Any) -> Segmenter:
        """Load a trained segmentation model: its network, weights, preparation and labels; ``settings`` as here.

        Raises
        ------
        InputError
            If there is no model, its card does not fit, or it is a model of another kind.
        """
        module, card, preparation = load_for(path, task="segmentation")
        values = [label.value for label in card.labels] or None
        made = cls(module, preparation, values=values, device=device, **settings)
        made.card = card
        return made

    def __call__(self, image: Image | Sequence[Image], *, largest: Iterable[int] | bool = False) -> Image:
        """Label every voxel of an image.

        Parameters
        ----------
        image
            One image, or several on one grid as channels.
        largest
            Keep only the largest connected component: of these labels, or (True) of every one.

        Raises
        ------
        InputError
            If the image does not suit the model; one line says why.
        """
        images = [image] if isinstance(image, Image) else list(image)
        first = images[0]
        check_images(
            images,
            "image",
            preparation=self.preparation,
            stride=self.runner.stride,
            images_needed=images_needed(self.card, self.preparation),
        )
        place = self.preparation.index_to_world(first)
        before, shape = grown(self.preparation.shape, first, place, self.runner.stride)
        shift = np.eye(first.grid.ndim + 1)
        shift[:-1, -1] = [-n for n in before]
        place = place @ shift
        prepare = replace(self.preparation, shape=shape)
        raw, _ = self.runner({"image": prepare.volume(images, place)[None]})
        if "logits" not in raw:
            raise InputError("the model put out no 'logits'; is it a segmentation model?")
        logits = raw["logits"]
        if not torch.isfinite(logits).all():
            raise InputError("the model put out values that are not finite; its weights are damaged")
        values = self.values or tuple(range(logits.shape[1]))
        if len(values) != logits.shape[1]:
            raise InputError(f"the model puts out {logits.shape[1]} classes and its card names {len(values)}")
        # Probabilities, not logits: between two voxels their mean says more of the class than a mean of logits does.
        classes = prepare.labels_back(logits.softmax(1)[0], place, first.grid).array
        labels = np.array(values)[classes].astype(smallest_type(values))
        if largest:
            kept = set(values) - {0} if largest is True else set(largest)  # type: ignore[arg-type]
            labels = with_largest_components(labels, kept)
        return first.with_array(labels, name=f"labels of {first.name}")


def smallest_type(values: Iterable[int]) -> np.dtype:
    """The smallest integer type that holds the values: uint8 or int16 where they fit, else int32."""
    low, high = min(values), max(values)
    if 0 <= low and high < 256:
        return np.dtype(np.uint8)
    return np.dtype(np.int16) if -(2**15) <= low and high < 2**15 else np.dtype(np.int32)


def with_largest_components(labels: Shaped[ndarray, "*space"], kept: Iterable[int]) -> Shaped[ndarray, "*space"]:
    """Set to 0 all but the largest connected component (by faces) of each of these labels."""
    from scipy import ndimage

    out = labels.copy()
    for value in sorted(kept):
        parts, count = ndimage.label(labels == value)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            out[(parts > 0) & (parts != sizes.argmax())] = 0
    return out


def with_true_labels(predicted: Image, true: Image, known: Iterable[int] | None = None) -> Image:
    """Put true labels back into a predicted label map.

    Parameters
    ----------
    predicted, true
        Label maps on one grid.
    known
        Label values that are truly drawn in ``true``; the others say nothing there. None: all, and the result is
        ``true`` itself. Where a known label was predicted and is not, the background stands.

    Raises
    ------
    InputError
        If the maps lie on two grids.
    """
    check_same_grid(predicted, true, "true labels", image_role="predicted labels")
    values = np.rint(true.array).astype(np.int64)
    if known is None:
        merged = values
    else:
        drawn = sorted(set(known))
        merged = np.where(np.isin(predicted.array, drawn), 0, predicted.array).astype(np.int64)
        merged = np.where(np.isin(values, drawn), values, merged)
    return predicted.with_array(merged.astype(smallest_type([int(merged.min()), int(merged.max())])))
