"""From a batch to the named tensors that an objective reads: run the model, warp what its terms ask for.

Keys of a batch of pairs: ``fixed``, ``moving`` (b, c, \\*space); where there are any, ``fixed_labels`` and
``moving_labels`` (b, \\*space) classes 0 to k, ``fixed_known`` and ``moving_known`` (b, k) which classes from 1 on
were drawn, ``fixed_mask`` and ``moving_mask`` (b, 1, \\*space), ``fixed_points`` and ``moving_points`` (b, n, d),
``fixed_background`` and ``moving_background`` (b, c) what lies outside the images (default 0), ``known_field``,
``condition`` (b, k), ``names``. Keys of a batch of single images: ``image``, ``labels``, ``known``, ``names``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verimorph.errors import InputError
from verimorph.field import warp
from verimorph.objective import Objective
from verimorph.objective.terms import pooled

Batch = Mapping[str, Any]
Outputs = dict[str, Tensor]

_NAME = re.compile(
    r"^(?:(?P<direction>forward|backward)/)?(?:(?P<stage>stage\d+)/)?(?P<base>[^@]+)(?:@(?P<level>\d+))?$"
)
_SWAP = {"fixed": "moving", "moving": "fixed"}


def one_hot(labels: Int[Tensor, "b *space"], classes: int) -> Float[Tensor, "b k *space"]:
    """Class map to one channel a class, 0 or 1; a value that is no class is 0 everywhere."""
    index = torch.arange(classes, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    return (labels[:, None] == index).float()


def warp_labels(
    labels: Int[Tensor, "b *space"], field: Float[Tensor, "b d *space"], classes: int
) -> Float[Tensor, "b k *space"]:
    """Class map through a field as probabilities: one-hot, read linearly; what comes from outside is background.

    Differentiable in the field. The background is 1 minus the other classes, so that the channels sum to 1 everywhere.
    """
    moved = warp(one_hot(labels, classes)[:, 1:], field)
    return torch.cat([1 - moved.sum(1, keepdim=True), moved], dim=1)


def classes_of(batch: Batch, side: str = "fixed_") -> int:
    """Number of classes, background included, of a batch's label maps."""
    known = batch.get(f"{side}known")
    return known.shape[1] + 1 if known is not None else int(batch[f"{side}labels"].max()) + 1


def with_background(known: Bool[Tensor, "b k"]) -> Bool[Tensor, "b more"]:
    """Which classes were drawn, the background first: it is known where all others are."""
    return torch.cat([known.all(1, keepdim=True), known], dim=1)


def shared_known(batch: Batch) -> Bool[Tensor, "b k"] | None:
    """Classes that were drawn in both images of a pair, background first; None where the batch does not say."""
    first, second = batch.get("fixed_known"), batch.get("moving_known")
    return None if first is None or second is None else with_background(first & second)


def wanted(objective: Objective) -> set[str]:
    """Names of all tensors that the terms of an objective read, needed or optional."""
    return set(objective.needs) | {name for term in objective.terms for name in _optional(term)}


def _optional(term: Any) -> Sequence[str]:
    while not hasattr(term, "optional"):
        inner = getattr(term, "term", None) or getattr(term, "call", None)
        if inner is None:
            return ()
        term = inner
    return term.optional


def both_ways(objective: Objective) -> bool:
    """Tell whether an objective asks for the pass with fixed and moving exchanged."""
    return "backward" in objective.passes or any(name.startswith("backward/") for name in wanted(objective))


def checked_batch(batch: Batch, objective: Objective) -> Batch:
    """A batch with all that an objective reads; cheapest before it goes to the accelerator.

    A term that reads ``labels/known`` passes over classes that were not drawn, so where such a batch has no label map
    at all it gets an empty one of which nothing is known. Any other term over labels needs all of them in every pair.

    Raises
    ------
    InputError
        If labels or landmarks are missing that a term needs; it names the term and the pair.
    """
    sides = ("",) if "image" in batch else ("fixed_", "moving_")
    lenient = False
    for title, term in zip(objective.names, objective.terms, strict=True):
        bases = {base_of(name) for name in term.needs}
        if any(base.startswith("labels/") for base in bases):
            if any(base_of(name) == "labels/known" for name in _optional(term)):
                lenient = True
            else:
                _require_labels(batch, title, sides)
        for base, key in (("points/fixed", "fixed_points"), ("points/moving", "moving_points")):
            if base in bases and batch.get(key) is None:
                raise InputError(_lacks(title, "landmarks", batch, None, key.removesuffix("points")))
        if "known_field" in bases and batch.get("known_field") is None:
            raise InputError(_lacks(title, "a known field", batch, None, ""))
    return _completed(batch, sides) if lenient else batch


def _require_labels(batch: Batch, title: str, sides: Sequence[str]) -> None:
    for side in sides:
        if batch.get(f"{side}labels") is None:
            raise InputError(_lacks(title, "labels", batch, None, side))
    for side in sides:
        known = batch.get(f"{side}known")
        if known is not None and not bool(known.all()):
            item = int((~known.all(1)).nonzero()[0])
            lacks = _lacks(title, "all labels", batch, item, side)
            raise InputError(f"{lacks}; partial_dice passes over what was not drawn")


def _completed(batch: Batch, sides: Sequence[str]) -> Batch:
    """The batch with an empty label map, nothing of it known, on each side that has none."""
    missing = [side for side in sides if batch.get(f"{side}labels") is None]
    if not missing:
        return batch
    image = batch["image" if "image" in batch else "fixed"]
    there = [batch[f"{side}known"] for side in sides if batch.get(f"{side}known") is not None]
    count = there[0].shape[1] if there else 1
    whole = dict(batch)
    for side in missing:
        whole[f"{side}labels"] = torch.zeros((len(image), *image.shape[2:]), dtype=torch.long, device=image.device)
        whole[f"{side}known"] = torch.zeros((len(image), count), dtype=torch.bool, device=image.device)
    return whole


def base_of(name: str) -> str:
    """A tensor's name without direction, stage and level."""
    match = _NAME.match(name)
    return match["base"] if match else name


def _lacks(term: str, what: str, batch: Batch, item: int | None, side: str) -> str:
    names = batch.get("names") or []
    which = names if item is None else names[item : item + 1]
    kind = "image" if "image" in batch else "pair"
    about = f"{kind} {which[0]}" if which else f"a {kind} of the batch"
    place = f" in the {side.removesuffix('_')} image" if side else ""
    return f"term '{term}' needs {what}, and {about} has none{place}; leave the term out or give them"


class _Way:
    """One direction: the images of a pair, what the model made of them, and what can be derived, each made once."""

    def __init__(self, batch: Batch, outputs: Outputs, classes: int) -> None:
        self.batch, self.outputs, self.classes = batch, outputs, classes
        self._made: dict[str, Tensor] = {}

    def get(self, stage: str | None, base: str) -> Tensor | None:
        """A tensor by its name without direction and level; None where there is none."""
        name = base if stage is None else f"{stage}/{base}"
        if name in self.outputs:
            return self.outputs[name]
        if name not in self._made:
            value = self._make(stage, base)
            if value is None:
                return None
            self._made[name] = value
        return self._made[name]

    def _make(self, stage: str | None, base: str) -> Tensor | None:
        batch = self.batch
        maker: Callable[[Tensor], Tensor] | None
        source: str
        if base == "moved":
            source, maker = (
                "moving",
                lambda field: warp(batch["moving"], field, background=batch.get("moving_background", 0.0)),
            )
        elif base == "moved_mask":
            # A mask says where to look; a gradient through it would pull the images out of each other's sight.
            source, maker = (
                "moving_mask",
                lambda field: (warp(batch["moving_mask"].float(), field.detach()) > 0.5).float(),
            )
        elif base == "labels/moved":
            source, maker = "moving_labels", lambda field: warp_labels(batch["moving_labels"], field, self.classes)
        else:
            return self._given(base)
        field = self.get(stage, "field")
        return None if field is None or batch.get(source) is None else maker(field)

    def _given(self, base: str) -> Tensor | None:
        if base == "labels/fixed" or base == "labels/moving":
            labels = self.batch.get(f"{base.removeprefix('labels/')}_labels")
            return None if labels is None else one_hot(labels, self.classes)
        if base == "labels/known":
            return shared_known(self.batch)
        if base.startswith("points/"):
            return self.batch.get(f"{base.removeprefix('points/')}_points")
        value = self.batch.get(base)
        return value if isinstance(value, Tensor) else None


def exchanged(batch: Batch) -> dict[str, Any]:
    """The same pairs with fixed and moving exchanged. A known field has no exchanged form and is left out."""

    def name(key: str) -> str:
        side, underscore, rest = key.partition("_")
        return f"{_SWAP[side]}{underscore}{rest}" if side in _SWAP else key

    return {name(key): value for key, value in batch.items() if key != "known_field"}


def _masked_alike(batch: Batch) -> Batch:
    """The batch with a mask on either side if it has one on any: the whole image where there was none."""
    masks = {side: batch.get(f"{side}_mask") for side in _SWAP}
    there = next((mask for mask in masks.values() if mask is not None), None)
    if there is None:
        return batch
    return {**batch, **{f"{side}_mask": torch.ones_like(there) for side, mask in masks.items() if mask is None}}


def _doubled(batch: Batch, other: Batch) -> dict[str, Any]:
    """Two batches as one: tensors and lists one behind the other, where both have them."""
    joined: dict[str, Any] = {}
    for key, value in batch.items():
        if value is None or other.get(key) is None:
            continue
        joined[key] = torch.cat([value, other[key]]) if isinstance(value, Tensor) else [*value, *other[key]]
    return joined


def _halves(outputs: Outputs) -> tuple[Outputs, Outputs]:
    pairs = {name: tensor.chunk(2) for name, tensor in outputs.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _turned(outputs: Outputs) -> Outputs:
    """Outputs of a doubled batch with its halves exchanged."""
    return {name: torch.cat(tuple(reversed(tensor.chunk(2)))) for name, tensor in outputs.items()}


def _float(outputs: Mapping[str, Tensor]) -> Outputs:
    """Everything in float32: fields and losses are computed in full precision, whatever the network ran in."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in outputs.items()}


def registration_tensors(
    model: nn.Module | Callable[..., Mapping[str, Tensor]],
    batch: Batch,
    objective: Objective,
    *,
    symmetric: bool = False,
) -> dict[str, Tensor]:
    """Run a registration model on a batch of pairs and name what the objective reads.

    Parameters
    ----------
    model
        ``model(fixed=, moving=, condition=)`` gives named tensors, ``field`` among them. One with the attribute
        ``two_way`` is asked for both directions at once, by ``both_ways=True``.
    batch
        Pairs, on the model's device.
    objective
        Says which tensors are wanted: labels, masks and stages are warped only where a term reads them.
    symmetric
        Every pair in both directions, as one batch of twice the size: the terms, means over the batch, are then
        averaged over both directions, and ``backward/...`` of an item is its pair the other way round.

    Returns
    -------
    dict
        ``fixed``, ``moving``, ``moved``, all outputs of the model, and every wanted name that can be made.

    Notes
    -----
    Where a term reads ``backward/...`` the exchanged pairs run in the same batch, too. ``stageK/moved`` and
    ``stageK/labels/moved`` are warped by ``stageK/field``; other names of a stage are those of the pair.
    """
    names = wanted(objective)
    backward = both_ways(objective)
    classes = classes_of(batch) if batch.get("fixed_labels") is not None else 0
    back: _Way | None = None
    if symmetric or backward:
        if symmetric:
            batch = _masked_alike(batch)
        other = exchanged(batch)
        joined = _doubled(batch, other)
        if getattr(model, "two_way", False):
            outputs = _run(model, batch, both_ways=True)
        else:
            outputs = _run(model, joined)
        if symmetric:
            way = _Way(joined, outputs, classes)
            if backward:
                back = _Way(exchanged(joined), _turned(outputs), classes)
        else:
            first, second = _halves(outputs)
            way, back = _Way(batch, first, classes), _Way(other, second, classes)
    else:
        way = _Way(batch, _run(model, batch), classes)
    tensors = {name: value for name in ("fixed", "moving", "moved") if (value := way.get(None, name)) is not None}
    tensors |= way.outputs
    tensors |= {
        name: way.batch[name] for name in ("fixed_mask", "moving_mask") if isinstance(way.batch.get(name), Tensor)
    }
    for name, value in _resolved(names, way, back):
        tensors[name] = value
    return tensors


def _run(model: Callable[..., Mapping[str, Tensor]], batch: Batch, **more: Any) -> Outputs:
    condition = batch.get("condition")
    if condition is not None:
        more["condition"] = condition
    return _float(model(fixed=batch["fixed"], moving=batch["moving"], **more))


def _resolved(names: set[str], way: _Way, back: _Way | None) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(names):
        match = _NAME.match(name)
        if match is None:
            continue
        chosen = back if match["direction"] == "backward" else way
        value = None if chosen is None else chosen.get(match["stage"], match["base"])
        if value is None:
            continue
        level = int(match["level"] or 1)
        yield name, value if level == 1 else pooled(match["base"], value, level)


def segmentation_tensors(
    model: nn.Module | Callable[..., Mapping[str, Tensor]], batch: Batch, objective: Objective
) -> dict[str, Tensor]:
    """Run an image model on a batch of images and name what the objective reads.

    ``labels/fixed`` is the truth, one-hot; ``labels/moved`` the probabilities, softmax of ``logits``; ``labels/known``
    which classes were drawn; ``fixed`` the image.
    """
    outputs = _float(model(image=batch["image"]))
    probabilities = outputs["logits"].softmax(1)
    if (
        batch.get("known") is not None
        and bool(batch["known"].any())
        and batch["known"].shape[1] + 1 != probabilities.shape[1]
    ):
        raise InputError(
            f"the network draws {probabilities.shape[1]} classes, the labels have {batch['known'].shape[1]} and the "
            "background; set the model's classes"
        )
    tensors = {"fixed": batch["image"], **outputs, "labels/moved": probabilities}
    if batch.get("labels") is not None:
        tensors["labels/fixed"] = one_hot(batch["labels"], probabilities.shape[1])
    known: Bool[Tensor, "b k"] | None = batch.get("known")
    if known is not None and known.shape[1] + 1 == probabilities.shape[1]:
        tensors["labels/known"] = with_background(known)
    for name, value in list(tensors.items()):
        for asked in wanted(objective):
            match = _NAME.match(asked)
            if match is not None and match["level"] and match["base"] == name and match["stage"] is None:
                tensors[asked] = pooled(name, value, int(match["level"]))
    return tensors


def objective_tensors(
    model: nn.Module | Callable[..., Mapping[str, Tensor]],
    batch: Batch,
    objective: Objective,
    *,
    symmetric: bool = False,
) -> dict[str, Tensor]:
    """`registration_tensors` for a batch of pairs, `segmentation_tensors` for one of single images."""
    if "image" in batch:
        return segmentation_tensors(model, batch, objective)
    return registration_tensors(model, batch, objective, symmetric=symmetric)


__all__ = [
    "Batch",
    "base_of",
    "both_ways",
    "checked_batch",
    "exchanged",
    "objective_tensors",
    "one_hot",
    "registration_tensors",
    "segmentation_tensors",
    "shared_known",
    "wanted",
    "warp_labels",
    "with_background",
]
