"""How good a model is during training, on validation batches and on the model's own grid.

The honest scores, on the images as they are, are those of ``verimorph predict`` and ``verimorph evaluate``; these here
say which of a run's models is the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from verimorph.errors import InputError
from verimorph.evaluate import dice_per_label, folding_percent, sd_log_jacobian
from verimorph.field import jacobian_determinant, warp
from verimorph.objective import Objective
from verimorph.objective.labels import landmark_distance
from verimorph.train.passes import Batch, checked_batch, objective_tensors, shared_known, with_background

#: Of so many classes at most, each has its own Dice among the measures.
_SHOWN = 11


@dataclass(frozen=True)
class Validation:
    """Measures by name, and pictures (rows, columns) in [0, 1] of the first pair."""

    metrics: dict[str, float]
    pictures: dict[str, ndarray] = field(default_factory=dict)


def mean_dice(
    first: ndarray, second: ndarray, known: Sequence[bool] | ndarray, *, names: Sequence[str] = ()
) -> tuple[float, dict[str, float]]:
    """Mean Dice over the classes that were drawn and that one of two class maps has, and each class's own.

    The background does not count. NaN where no class is left.
    """
    classes = [k for k in range(1, len(known)) if known[k]]
    each = dice_per_label(first, second, classes) if classes else {}
    values = np.array(list(each.values()), dtype=float)
    mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return mean, {names[k] if k < len(names) else str(k): each[k] for k in classes}


class _Means:
    """Means of measures of which some pairs lack some."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """A value; NaN counts for nothing."""
        values = self._values.setdefault(name, [])
        if np.isfinite(value):
            values.append(float(value))

    def all(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self._values.items() if values}


def measures(*, single: bool, names: Sequence[str]) -> list[str]:
    """What a validation may measure, of images or of pairs whose classes have these names (background first)."""
    found = ["loss"] if single else ["loss", "folding_percent", "sd_log_jacobian", "landmarks_voxels"]
    if names:
        found += ["dice"] if single else ["dice", "dice_before"]
        found += [f"dice_{name}" for name in names[1:]] if len(names) <= _SHOWN else []
    return found


def validate_registration(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective | None = None,
    names: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Validation:
    """Measure a registration model.

    Parameters
    ----------
    batches
        Of pairs. Without labels (or landmarks) there is no Dice (or landmark error).
    objective
        Its value is ``loss``.
    names
        Of the classes, background first: ``dice_<name>`` for each where there are at most ten.

    Returns
    -------
    Validation
        ``dice``: mean over labels, then over pairs, moving labels warped by nearest neighbour on the model's grid;
        ``dice_before``: the same unregistered; ``folding_percent``, ``sd_log_jacobian``, ``landmarks_voxels``,
        ``loss``.
    """
    means = _Means()
    pictures: dict[str, ndarray] = {}
    for given in batches:
        batch = _to(given, device)
        with torch.no_grad():
            whole = None if objective is None else _with_all(batch, objective)
            if objective is not None and whole is not None:
                tensors = objective_tensors(model, whole, objective)
                means.add("loss", float(objective(tensors, condition=batch.get("condition")).total))
                displacement = tensors["field"].float()
            else:
                condition = batch.get("condition")
                more = {} if condition is None else {"condition": condition}
                displacement = model(fixed=batch["fixed"], moving=batch["moving"], **more)["field"].float()
            pictures = pictures or _pictures(batch, displacement)
            _score_labels(means, batch, displacement, names)
            _score_landmarks(means, batch, displacement)
            jacobian = jacobian_determinant(displacement).cpu().numpy()
        for item in jacobian:
            means.add("folding_percent", folding_percent(item))
            means.add("sd_log_jacobian", sd_log_jacobian(item))
    return Validation(means.all(), pictures)


def validate_segmentation(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective | None = None,
    names: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Validation:
    """Measure a segmentation model: ``dice`` of the likeliest class, mean over labels, then over images; ``loss``."""
    means = _Means()
    pictures: dict[str, ndarray] = {}
    for given in batches:
        batch = _to(given, device)
        with torch.no_grad():
            whole = None if objective is None else _with_all(batch, objective)
            if objective is not None and whole is not None:
                tensors = objective_tensors(model, whole, objective)
                means.add("loss", float(objective(tensors).total))
                logits = tensors["logits"]
            else:
                logits = model(image=batch["image"])["logits"].float()
        classes = logits.shape[1]
        found = logits.argmax(1)
        if batch.get("labels") is not None:
            known = None if batch.get("known") is None else with_background(batch["known"])
            for item in range(len(found)):
                drawn = np.ones(classes, bool) if known is None else known[item].cpu().numpy()
                truth = batch["labels"][item].cpu().numpy()
                _add_dice(means, "dice", truth, found[item].cpu().numpy(), drawn, names)
        if not pictures:
            pictures = {
                "image": _picture(batch["image"][0, 0]),
                "labels": _picture(found[0].float() / max(classes - 1, 1), scale=False),
            }
    return Validation(means.all(), pictures)


def _to(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _with_all(batch: Batch, objective: Objective) -> Batch | None:
    """The batch as the objective reads it; None where it lacks something: it is still worth its Jacobian."""
    try:
        return checked_batch(batch, objective)
    except InputError:
        return None


def _score_labels(means: _Means, batch: Batch, displacement: Tensor, names: Sequence[str]) -> None:
    fixed, moving = batch.get("fixed_labels"), batch.get("moving_labels")
    if fixed is None or moving is None:
        return
    moved = warp(moving[:, None].float(), displacement, mode="nearest")[:, 0].long()
    known = shared_known(batch)
    classes = int(max(fixed.max(), moving.max())) + 1
    for item in range(len(fixed)):
        drawn = np.ones(classes, bool) if known is None else known[item].cpu().numpy()
        truth = fixed[item].cpu().numpy()
        _add_dice(means, "dice", truth, moved[item].cpu().numpy(), drawn, names)
        _add_dice(means, "dice_before", truth, moving[item].cpu().numpy(), drawn, ())


def _add_dice(means: _Means, title: str, first: ndarray, second: ndarray, known: ndarray, names: Sequence[str]) -> None:
    mean, each = mean_dice(first, second, known, names=names)
    means.add(title, mean)
    if names and len(names) <= _SHOWN:
        for name, value in each.items():
            means.add(f"{title}_{name}", value)


def _score_landmarks(means: _Means, batch: Batch, displacement: Tensor) -> None:
    fixed, moving = batch.get("fixed_points"), batch.get("moving_points")
    if fixed is not None and moving is not None:
        each = landmark_distance(displacement, fixed.float(), moving.float(), reduction="none")
        for value in each.tolist():
            means.add("landmarks_voxels", value)


def _picture(image: Tensor, *, scale: bool = True) -> ndarray:
    """Middle slice across the last axis, in [0, 1], the second axis up."""
    plane = image if image.ndim == 2 else image[..., image.shape[-1] // 2]
    values = plane.detach().float().cpu().numpy()
    if scale:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip(values, 0, 1).T[::-1].copy()


def _pictures(batch: Batch, displacement: Tensor) -> dict[str, ndarray]:
    background = batch["moving_background"][:1] if "moving_background" in batch else 0.0
    moved = warp(batch["moving"][:1].float(), displacement[:1], background=background)
    return {
        "pair/fixed": _picture(batch["fixed"][0, 0]),
        "pair/moved": _picture(moved[0, 0]),
        "pair/moving": _picture(batch["moving"][0, 0]),
    }


__all__ = ["Validation", "mean_dice", "measures", "validate_registration", "validate_segmentation"]
