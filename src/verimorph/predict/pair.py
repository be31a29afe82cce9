"""One pair through a trained model, with or without refinement, as a `Registration` like any other."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verimorph import pipeline
from verimorph.errors import VerimorphWarning
from verimorph.inputs import Inputs
from verimorph.io import as_image
from verimorph.predict.refine import refine
from verimorph.predict.registrar import Prediction, Registrar
from verimorph.registration import Registration, _assemble
from verimorph.solve.progress import Event
from verimorph.transform import Affine

if TYPE_CHECKING:
    from verimorph.methods.card import Card


def predict_pair(
    registrar: Registrar,
    *,
    fixed: Any,
    moving: Any,
    fixed_labels: Any = None,
    moving_labels: Any = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    unit: str = "mm",
    refinement: pipeline.Recipe | None = None,
    progress: Callable[[Event], None] | None = None,
    watch: Callable[[Prediction], None] | None = None,
) -> Registration:
    """Align a pair by a trained model.

    Parameters
    ----------
    registrar
        The model, loaded once for many pairs (``Registrar.load(folder)``).
    fixed, moving
        As for :func:`verimorph.register`; a list gives several contrasts as channels, of which the first is the image
        that is moved and shown.
    fixed_labels, moving_labels, fixed_landmarks, moving_landmarks
        For scoring, never for fitting.
    unit
        ``voxel`` where the images have no known voxel size: of distances in the metrics.
    refinement
        Of :func:`~verimorph.predict.refine.refinement_recipe`: the solver goes on from the prediction. None: the
        prediction as it is.
    progress
        Called after every iteration of the refinement.
    watch
        Called with the prediction, whose raw outputs the result does not keep.

    Raises
    ------
    VerimorphError
        For images that cannot be used, or do not suit the model.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VerimorphWarning)
        clock = pipeline.Clock()
        with clock("read"):
            fixed, moving = _images(fixed), _images(moving)
            given = Inputs.read(
                fixed=fixed[0],
                moving=moving[0],
                fillable=False,
                fixed_mask=None,
                moving_mask=None,
                fixed_labels=fixed_labels,
                moving_labels=moving_labels,
                fixed_landmarks=fixed_landmarks,
                moving_landmarks=moving_landmarks,
            )
        predicted = registrar(fixed=fixed, moving=moving, inverse=refinement is None)
        if watch is not None:
            watch(predicted)
        settings = described(registrar) | _placed(predicted)
        timings = clock.seconds | predicted.extras["seconds"]
        if refinement is None:
            result = Registration(
                **{name: getattr(given, name) for name in Inputs.__dataclass_fields__},
                transform=predicted.transform,
                inverse=predicted.inverse,
                initial=Affine(predicted.extras["start"]),
                settings=settings,
                timings=timings,
                peak_memory_mb=pipeline.peak_memory_mb(),
                inversion=predicted.inversion,
            )
        else:
            begun = time.perf_counter()
            found = refine(
                fixed=given.fixed,
                moving=given.moving,
                transform=predicted.transform,
                recipe=refinement,
                watcher=progress,
            )
            found.timings.clear()
            timings["refine"] = time.perf_counter() - begun
            result = _assemble(given, refinement, found, timings)
            result.settings = settings | {"refinement": result.settings}
        result.unit = unit
        result.model = identity_of(registrar.card)
    result.warnings = list(dict.fromkeys(str(w.message) for w in caught))
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result


def described(registrar: Registrar) -> dict[str, Any]:
    """What decides a prediction, whatever the pair, JSON-able."""
    start, tile = registrar.start, registrar.runner.tile
    return {
        "transform": "deformable",
        "start": start if isinstance(start, str) else np.asarray(start, float).tolist(),
        "tile": None if tile is None else list(tile),
        "device": str(registrar.runner.device),
        "threads": torch.get_num_threads(),
        "seed": registrar.seed,
    }


def _placed(predicted: Prediction) -> dict[str, Any]:
    """Where a model ran, and how its field was inverted, JSON-able."""
    grid = predicted.extras["grid"]
    return {
        "model_grid": {"shape": list(grid.shape), "spacing_mm": [round(float(s), 6) for s in grid.spacing]},
        "tiles": predicted.extras["tiles"],
        "inverse": predicted.extras["inverse"],
    }


def identity_of(card: Card | None) -> dict[str, Any] | None:
    """Which model it was: method, what it was trained on, hashes of card and weights."""
    if card is None:
        return None
    return {
        "method": card.method,
        "variant": card.variant,
        "trained_on": card.training_data.name,
        "card_sha256": hashlib.sha256(card.to_json().encode()).hexdigest(),
        "weights_sha256": card.weights_sha256,
        "licence": card.licence,
        "verimorph": card.verimorph,
    }


def same_model(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two identities are of one model: by its weights where both have their hash, as cards may be rewritten."""
    if one and other and one.get("weights_sha256") and other.get("weights_sha256"):
        return bool(one["weights_sha256"] == other["weights_sha256"])
    return one == other


def short_hash(weights_sha256: str | None) -> str:
    """What tables call a model by: the first digits of the hash of its weights."""
    return (weights_sha256 or "")[:12]


def _images(thing: Any) -> list[Any]:
    """One or several images; ``(array, affine)`` is one."""
    several = isinstance(thing, Sequence) and not isinstance(thing, str | tuple)
    return [as_image(one) for one in thing] if several else [as_image(thing)]
