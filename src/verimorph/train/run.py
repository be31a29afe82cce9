"""A recipe run: builds data, model and phases, trains, and leaves a folder with the trained model in it.

The folder holds ``recipe.yaml`` (as settled), ``log.csv``, ``validation.csv``, ``checkpoints/``, ``tensorboard/`` and
``model/``, the best model.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from verimorph.data.config import Data, build_data
from verimorph.errors import InputError, OptionError, VerimorphWarning, nearest
from verimorph.io.lock import locked
from verimorph.io.safe import replacing, require_writable
from verimorph.methods import method
from verimorph.methods.card import Card, Label, TrainingData
from verimorph.methods.checkpoint import save_model
from verimorph.train.loop import train
from verimorph.train.options import Fabric, Options, Progress, Result, make_fabric
from verimorph.train.phases import Phase
from verimorph.train.recipe import Recipe
from verimorph.train.state import checkpoints
from verimorph.train.teacher import check_teacher
from verimorph.train.validate import Validation, measures, validate_registration, validate_segmentation

LEAST_COVERED = 0.25
"""A model grid that holds less than this part of the images' fields of view gets a warning."""

#: Settings that a recipe and the loop's options have in common.
_SHARED = (
    *("seed", "accumulate", "clip", "ema", "log_every", "validate_every", "checkpoint_every", "keep", "patience"),
    *("monitor", "highest", "minutes", "channels_last", "tensorboard"),
)


@dataclass(frozen=True)
class Setup:
    """What a recipe comes to, before anything runs."""

    recipe: Recipe
    data: Data
    model: nn.Module
    phases: tuple[Phase, ...]
    card: Card
    options: Options


def set_up(recipe: Recipe) -> Setup:
    """Build what a recipe names; nothing is trained or written.

    Raises
    ------
    InputError, OptionError
        For data that are missing, settings that do not fit, images that a network of this stride cannot take.
    """
    phases = recipe.build_phases()
    data = build_data(recipe.data, seed=recipe.seed)
    told = method(recipe.method)
    single = told.task == "segmentation"
    if single != data.single:
        wanted = "pairs: {kind: single}" if single else "pairs of another kind than single"
        raise OptionError(f"method '{recipe.method}' needs data with {wanted}; mend the recipe's data")
    settings = merged_settings(recipe, data)
    torch.manual_seed(recipe.seed)  # the weights a network begins with
    model = told.model(ndim=data.ndim, channels=data.channels, variant=recipe.variant, **settings)
    _check_stride(model, data, recipe)
    teacher = None if recipe.teacher is None else recipe.teacher.build()
    options = Options(teacher=teacher, **{name: getattr(recipe, name) for name in _SHARED})
    check_teacher(teacher, model, [one for phase in phases for one in phase.objectives])
    card = _card(recipe, data, settings)
    _check_monitor(recipe, data, card)
    _warn_of_small_grid(data)
    return Setup(recipe, data, model, phases, card, options)


def merged_settings(recipe: Recipe, data: Data) -> dict[str, Any]:
    """Settings of the builder: the variant's, the recipe's, and the number of classes where the data say it."""
    told = method(recipe.method)
    settings = {**told.variant(recipe.variant).settings, **recipe.model}
    if "classes" in told.settings() and "classes" not in settings:
        settings["classes"] = data.classes + 1
    return json.loads(json.dumps(settings))


def _check_stride(model: nn.Module, data: Data, recipe: Recipe) -> None:
    stride = int(getattr(model, "stride", 1))
    shape = tuple(recipe.data.get("crop") or data.preparation.shape)
    wrong = [length for length in {*shape, *data.preparation.shape} if length % stride]
    if wrong:
        raise OptionError(
            f"method '{recipe.method}' needs sides that are multiples of {stride}, and {min(wrong)} is none; "
            f"change data.preparation.shape (or data.crop), now {'x'.join(map(str, shape))}"
        )


def _check_monitor(recipe: Recipe, data: Data, card: Card) -> None:
    """Refuse what acts on validations where there are none, and a measure that no validation has."""
    if not data.validation_pairs:
        for name in ("patience", "monitor"):
            if getattr(recipe, name) is not None:
                raise OptionError(f"{name} acts on validations and there are no pairs for them; give data.validation")
    elif recipe.monitor is not None:
        known = measures(single=data.single, names=[label.name for label in card.labels])
        if recipe.monitor not in known:
            raise OptionError(f"the validation has no measure '{recipe.monitor}'{nearest(recipe.monitor, known)}")


def _warn_of_small_grid(data: Data) -> None:
    """Warn where most of a typical image lies outside of the model grid: the model would never see it."""
    if data.dataset is None or data.preparation.centre == "atlas" or not data.train_ids:
        return
    covered = []
    for id in data.train_ids[:: max(1, len(data.train_ids) // 5)][:5]:
        image = data.dataset.case(id).images[0].read()
        grid = data.preparation.grid(data.preparation.index_to_world(image))
        ends = [np.linspace(0, n - 1, 17) for n in image.grid.shape]
        lattice = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, image.grid.ndim)
        covered.append(float(grid.contains(image.grid.index_to_world(lattice)).mean()))
    if np.median(covered) < LEAST_COVERED:
        spacing = data.preparation.spacing_mm
        size = "each image's own size" if spacing is None else f"{spacing} mm"
        warnings.warn(
            VerimorphWarning(
                f"the model grid, {'x'.join(map(str, data.preparation.shape))} voxels of {size}, holds "
                f"{100 * np.median(covered):.0f} % of the images; give a larger shape or spacing to see more of them"
            ),
            stacklevel=3,
        )


def _identity(setup: Setup) -> dict[str, str]:
    """Hashes of what a run depends on from its first step to its last, by what a message calls it.

    Images count by name and size, wherever they lie: a run may go on on another machine.
    """
    recipe, data = setup.recipe, setup.data
    elsewhere = ("root", "csv", "learn2reg", "cache", "memory", "workers", "preparation")
    ids = dict.fromkeys([*data.train_ids, *(id for pair in data.validation_pairs for id in pair)])
    cases = [] if data.dataset is None else [data.dataset.case(id) for id in ids]
    files = [[case.id, *((file.name, file.stat().st_size) for file in case.files if file.exists())] for case in cases]
    terms: list[Any] = [recipe.objective, [part.objective for part in recipe.parts or ()]]
    terms += [[phase.objective, [part.objective for part in phase.parts or ()]] for phase in recipe.phases or ()]
    told = {
        "method": [recipe.method, recipe.variant, setup.card.settings],
        "data": [
            {name: value for name, value in recipe.data.items() if name not in elsewhere},
            [data.class_values, data.train_ids, data.validation_pairs, files],
        ],
        "preparation": data.preparation.to_dict(),
        "batch": [recipe.batch, recipe.accumulate],
        "seed": recipe.seed,
        "objective": terms,
        "precision": recipe.precision,
        # As it was written: a folder that is elsewhere on another machine is still the same start.
        "start_from": [[one.start_from, one.strict] for one in (recipe, *(recipe.phases or ()))],
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
        for name, value in told.items()
    }


def _card(recipe: Recipe, data: Data, settings: Mapping[str, Any]) -> Card:
    told = method(recipe.method)
    names = "\n".join(sorted(data.train_ids))
    labels = [Label(value=0, name="background")] if data.class_values else []
    labels += [Label(value=value, name=data.label_names.get(value, str(value))) for value in data.class_values]
    return Card(
        method=recipe.method,
        variant=recipe.variant,
        settings=dict(settings),
        task=told.task,
        ndim=data.ndim,  # type: ignore[arg-type]
        channels=data.channels,
        preparation=data.preparation.to_dict(),
        labels=labels,
        start=recipe.start,
        training_data=TrainingData(
            name=data.dataset.name if data.dataset is not None else "random shapes",
            cases=len(data.train_ids) or None,
            sha256=hashlib.sha256(names.encode()).hexdigest() if names else None,
        ),
        recipe=json.loads(json.dumps(recipe.model_dump(mode="json", exclude_unset=True))),
        licence=recipe.licence,
    )


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    accelerator: str = "auto",
    devices: int | str = 1,
    nodes: int = 1,
    resume: bool = False,
    head: tuple[str, ...] = (),
    on_step: Callable[[Progress], None] | None = None,
    on_setup: Callable[[Setup], None] | None = None,
) -> Result:
    """Run a recipe in a folder.

    Parameters
    ----------
    accelerator, devices, nodes
        ``cpu``, ``cuda``, ``mps`` or ``auto``; how many on each machine; how many machines.
    resume
        Go on from the folder's newest checkpoint. Without it a folder that holds a run is refused.
    head
        Comment lines for the recipe that is written into the folder.
    on_setup
        Told of what is trained before it begins.

    Raises
    ------
    InputError
        If the folder holds a run already, or another process trains there; see `set_up` and
        `verimorph.train.loop.train` for the others.
    """
    folder = Path(folder)
    require_writable(folder)
    _check_new(folder, resume)
    wanted: str = recipe.precision
    if wanted == "gpu-bf16":
        on_gpu = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        wanted = "bf16-mixed" if on_gpu else "32-true"
    fabric = make_fabric(accelerator=accelerator, devices=devices, nodes=nodes, precision=wanted)
    with ExitStack() as held:
        refused = None
        if fabric.is_global_zero:
            try:
                held.enter_context(locked(folder, doing="training"))
                _check_new(folder, resume)  # another run may have ended since
            except InputError as error:
                refused = str(error)
        refused = fabric.broadcast(refused)  # else the others would wait for the first, or say something of their own
        if refused is not None:
            raise InputError(refused)
        return _run(recipe, folder, fabric, resume, head, on_step, on_setup)


def _check_new(folder: Path, resume: bool) -> None:
    if not resume and (checkpoints(folder / "checkpoints") or (folder / "model").exists()):
        raise InputError(f"{folder}: holds a run already; go on with it (--resume), or choose another folder")


def _run(
    recipe: Recipe,
    folder: Path,
    fabric: Fabric,
    resume: bool,
    head: tuple[str, ...],
    on_step: Callable[[Progress], None] | None,
    on_setup: Callable[[Setup], None] | None,
) -> Result:
    setup = set_up(recipe)
    if on_setup is not None and fabric.is_global_zero:
        on_setup(setup)
    data, objective = setup.data, setup.phases[-1].objective
    names = [label.name for label in setup.card.labels]
    measure = validate_segmentation if data.single else validate_registration

    def keep_recipe() -> None:
        with replacing(folder / "recipe.yaml") as beside:
            beside.write_text(recipe.to_yaml(head=head), encoding="utf-8")

    def batches(start: int) -> Any:
        return data.train_batches(
            start,
            batch=recipe.batch,
            rank=fabric.global_rank,
            world=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
        )

    def validate(model: nn.Module) -> Validation:
        return measure(model, data.validation_batches(), objective=objective, names=names, device=fabric.device)

    def save(model: nn.Module, metrics: dict[str, float], step: int) -> None:
        save_model(folder / "model", model, setup.card.model_copy(update={"metrics": metrics, "steps": step}))

    return train(
        setup.model,
        phases=setup.phases,
        train_batches=batches,
        folder=folder,
        options=setup.options,
        validate=validate if data.validation_pairs else None,
        on_best=save,
        on_step=on_step,
        on_begin=keep_recipe,
        fabric=fabric,
        resume=resume,
        identity=_identity(setup),
    )


__all__ = ["Setup", "merged_settings", "run_recipe", "set_up"]
