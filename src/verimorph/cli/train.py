"""``verimorph train``: run a recipe, or a method on pairs, a folder, or a named data set."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.progress import TrainingBar
from verimorph.cli.runtime import counted, error_console, set_threads
from verimorph.errors import OptionError, nearest

if TYPE_CHECKING:
    from verimorph.train.recipe import Recipe
    from verimorph.train.run import Setup

_DATA = "Data (where no recipe says them)"
_HOW = "How it is trained"
_MACHINE = "Machine"

app = application()


@app.command(
    epilog=examples(
        ("What a recipe says:", "verimorph train recipes/hippocampus/voxelmorph.yaml -o runs/voxelmorph"),
        (
            "A method on pairs of a list:",
            "verimorph train voxelmorph --pairs pairs.csv --shape 96x96x96 -o runs/mine",
        ),
        ("Go on after an interruption:", "verimorph train -o runs/mine --resume"),
        (
            "Other settings, two GPUs:",
            "verimorph train transmorph --variant small --pairs pairs.csv --shape 96x96x96 --devices 2 -o runs/small",
        ),
    )
)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD|RECIPE",
            help="A method ('verimorph methods' lists them) or a YAML file; with --resume that of the run.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, option("-o", "--output", value="FOLDER", text="The run: log, checkpoints, the best model.")
    ] = None,
    variant: Annotated[
        str | None,
        option(
            "--variant", value="NAME", text="Variant of the method; 'verimorph methods METHOD' lists them.", panel=_HOW
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        option("--pairs", value="FILE", text="CSV of pairs, or a Learn2Reg dataset JSON.", panel=_DATA),
    ] = None,
    folder: Annotated[
        Path | None, option("--folder", value="FOLDER", text="All images of a folder, each with each.", panel=_DATA)
    ] = None,
    images: Annotated[
        str | None,
        option("--images", value="PATTERN", text="Which of its files are images; default: {id}.nii.gz.", panel=_DATA),
    ] = None,
    labels: Annotated[
        str | None,
        option(
            "--labels", value="PATTERN", text="Which are their label maps, such as {id}_labels.nii.gz.", panel=_DATA
        ),
    ] = None,
    dataset: Annotated[
        str | None, option("--dataset", value="NAME", text="A known data set, such as l2r_abdomen_ct.", panel=_DATA)
    ] = None,
    root: Annotated[
        Path | None,
        option(
            "--root", value="FOLDER", text="Where the data set lies, or relative names in a list start.", panel=_DATA
        ),
    ] = None,
    validation: Annotated[
        str | None,
        option("--validation", value="NAME", text="List of pairs or split that says which model is best.", panel=_DATA),
    ] = None,
    shape: Annotated[
        str | None, option("--shape", value="NxNxN", text="Voxels of the model's grid.", panel=_DATA)
    ] = None,
    spacing: Annotated[
        float | None,
        option("--spacing", value="MM", text="Size of its voxels; default: each image's own.", panel=_DATA),
    ] = None,
    settings: Annotated[
        list[str] | None,
        option("--set", value="KEY=VALUE", text="Any setting of a recipe; again for more.", panel=_HOW),
    ] = None,
    steps: Annotated[int | None, option("--steps", value="N", text="Steps of the optimiser.", panel=_HOW)] = None,
    resume: Annotated[bool, flag("--resume", text="Go on from the run's newest checkpoint.", panel=_HOW)] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", text="Show what would be trained, and stop before it is.", panel=_HOW)
    ] = False,
    device: Annotated[
        str, option("--device", value="NAME", text="cpu, cuda, mps, or auto: the best there is.", panel=_MACHINE)
    ] = "auto",
    devices: Annotated[int, option("--devices", value="N", text="GPUs on each machine.", panel=_MACHINE)] = 1,
    nodes: Annotated[int, option("--nodes", value="N", text="Machines.", panel=_MACHINE)] = 1,
    precision: Annotated[
        str | None, option("--precision", value="NAME", text="32-true, bf16-mixed, 16-mixed, gpu-bf16.", panel=_MACHINE)
    ] = None,
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.", panel=_MACHINE)
    ] = None,
) -> None:
    """Train a method, or run a recipe.

    Leaves the best model, its card and its log in a folder. A run that was stopped, in whatever way, goes on with
    --resume as if it had not been.
    """
    count = set_threads(threads)
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise OptionError(f"--device cannot be '{device}'{nearest(device, ('auto', 'cpu', 'cuda', 'mps'))}")
    source: dict[str, Any] = {
        "pairs": pairs, "folder": folder, "images": images, "labels": labels, "dataset": dataset, "root": root,
        "validation": validation, "shape": shape, "spacing": spacing,
    }  # fmt: skip
    wanted = _recipe(recipe, output, variant, source, settings or [], steps, precision, resume)
    import torch

    torch.set_num_threads(count)
    from verimorph.train.run import run_recipe, set_up

    if dry_run:
        _show(set_up(wanted))
        print(wanted.to_yaml(), end="")
        return
    if output is None:
        raise OptionError("say where the run goes: -o FOLDER")
    words = [word for word in sys.argv[1:] if word != "--resume"]
    with TrainingBar() as bar:
        result = run_recipe(
            wanted,
            output,
            accelerator=device,
            devices=devices,
            nodes=nodes,
            resume=resume,
            head=(f"verimorph {shlex.join(words)}",),
            on_step=bar,
            on_setup=_show,
        )
    if result.rank == 0:
        _conclude(result, output)


def _recipe(
    name: str | None,
    output: Path | None,
    variant: str | None,
    source: dict[str, Any],
    sets: list[str],
    steps: int | None,
    precision: str | None,
    resume: bool,
) -> Recipe:
    from verimorph.methods import METHODS, method
    from verimorph.train.recipe import merged, read_recipe, settle

    data = _data(source)
    over: dict[str, Any] = {"data": data} if data else {}
    if variant is not None:
        over["variant"] = variant
    if steps is not None:
        over["steps"] = steps
    if precision is not None:
        over["precision"] = precision
    if name is None:
        if not resume or output is None:
            raise OptionError("say what to train: a method or a recipe; or --resume -o FOLDER to go on with a run")
        name = str(output / "recipe.yaml")
        if not Path(name).is_file():
            raise OptionError(f"{output}: holds no run to go on with; give the folder of one, or say what to train")
    if name in METHODS:
        if not data:
            raise OptionError(
                f"say what '{name}' is trained on: --pairs FILE, --folder FOLDER, or --dataset NAME --root FOLDER"
            )
        if method(name).task == "segmentation":
            data.pop("pairs", None)  # of a list the images alone count
        defaults: dict[str, Any] = {"method": name, "validate_every": 500, "precision": "gpu-bf16"}
        if source["dataset"] is None:  # a named set brings the voxel size that suits it
            defaults["data"] = {"preparation": {"spacing_mm": None}}
        made = settle(merged(defaults, over), sets=sets, where=name)
    else:
        if not name.endswith((".yaml", ".yml")) and not Path(name).exists():
            raise OptionError(f"unknown method '{name}'{nearest(name, METHODS)} (see 'verimorph methods')")
        made = read_recipe(name, sets=sets, over=over)
    if steps is not None and made.phases is not None and any(phase.steps for phase in made.phases):
        raise OptionError("--steps says not which phase it is for; use --set phases.0.steps=N")
    return made


def _data(source: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data from options of the command line."""
    given = [name for name in ("pairs", "folder", "dataset") if source[name] is not None]
    if len(given) > 1:
        raise OptionError(f"--{given[0]} and --{given[1]} are two sources; give one")
    for name in ("images", "labels"):
        if source[name] is not None and source["folder"] is None:
            raise OptionError(f"--{name} says which files of a folder are {name}; give --folder")
    if source["root"] is not None and source["folder"] is not None:
        raise OptionError("--root is where a data set or the names in a list start; --folder says where it is itself")
    data: dict[str, Any] = {}
    if source["pairs"] is not None:
        data = _listed(_absolute(source["pairs"]))
    elif source["folder"] is not None:
        images = source["images"] or "{id}.nii.gz"
        data = {"folder": {"images": images}, "root": _absolute(source["folder"]), "train": "all"}
        if source["labels"] is not None:
            data["folder"]["labels"] = source["labels"]
    elif source["dataset"] is not None:
        data = {"dataset": source["dataset"]}
    if source["validation"] is not None:
        data["validation"] = source["validation"]
    if source["root"] is not None:
        data["root"] = _absolute(source["root"])
    if source["shape"] is not None:
        from verimorph.cli.runtime import schedule

        data["preparation"] = {"shape": list(schedule(source["shape"], "--shape", least=1) or ())}
    if source["spacing"] is not None:
        data.setdefault("preparation", {})["spacing_mm"] = source["spacing"]
    return data


def _listed(path: str) -> dict[str, Any]:
    """Settings for a CSV of pairs, or for a Learn2Reg dataset JSON, which may list images alone."""
    if not path.lower().endswith(".json"):
        return {"csv": path, "pairs": {"kind": "listed"}}
    from verimorph.data.cases import read_learn2reg

    listed = {"pairs": {"kind": "listed"}} if "train" in read_learn2reg(path).pairs else {}
    return {"learn2reg": path, **listed}


def _absolute(path: Path) -> str:
    """A path that holds wherever the run is gone on with."""
    from verimorph.io.paths import expand

    return str(expand(str(path)).absolute())


def _show(setup: Setup) -> None:
    """One line about what is trained."""
    recipe, card, data = setup.recipe, setup.card, setup.data
    name = recipe.method if recipe.variant is None else f"{recipe.method} ({recipe.variant})"
    size = sum(weight.numel() for weight in setup.model.parameters())
    steps = sum(phase.steps for phase in setup.phases)
    shape = "x".join(str(length) for length in recipe.data.get("crop") or data.preparation.shape)
    if data.dataset is not None and data.preparation.spacing_mm is None:
        shape += " voxels of each image's own size"
    names = (name for phase in setup.phases for objective in phase.objectives for name in objective.names)
    terms = " + ".join(dict.fromkeys(name.partition("#")[0] for name in names))
    cases = card.training_data.cases
    images = counted(cases, "images") if cases else "synthetic images"
    error_console().print(
        f"{name}: {size:,} parameters, {images} of {card.training_data.name}, "
        f"{shape}, batch {recipe.batch}, {counted(steps, 'steps')}; {terms}"
    )


def _conclude(result: Any, output: Path) -> None:
    from rich.console import Console

    measures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    best = f"; best at step {result.best_step}: {measures}" if result.metrics else ""
    why, more = "", "steps"
    if result.stopped_early:
        why, more = " (no better for a while: stopped early)", "patience"
    elif result.out_of_time:
        why, more = " (its time is used up)", "minutes"
    went = f"{result.seconds:.0f} s, {result.steps_per_second:.2f} steps/s"
    if not result.trained:
        went = f"nothing is left to do; ask for more {more}"
    Console(highlight=False, soft_wrap=True).print(
        f"{counted(result.steps, 'steps')}{why}, {went}{best}\nmodel: {output / 'model'}"
    )
