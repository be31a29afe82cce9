"""Recipes: strict, layered, settled before any data are read; and a run of one from files to a trained model."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.train.phantom import disc

from verimorph.errors import InputError, OptionError
from verimorph.methods import method
from verimorph.methods.checkpoint import load_model
from verimorph.train.options import Options
from verimorph.train.recipe import Recipe, assignments, merged, read_recipe, read_yaml, settle
from verimorph.train.teacher import Teacher
from verimorph.uncertainty.double import DoubleWeighting

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_layers_win_in_order():
    told = method("modet").scheme
    recipe = settle({"method": "modet", "optimiser": {"lr": 1e-3}, "batch": 4}, sets=["optimiser.power=2", "batch=6"])
    assert recipe.optimiser.name == told["optimiser"]["name"]
    assert (recipe.optimiser.lr, recipe.optimiser.power, recipe.batch) == (1e-3, 2.0, 6)
    built = recipe.build_phases()[0].parts[0].optimiser
    assert built.schedule == "poly"
    assert built.settings == {"amsgrad": True}


def test_a_variant_brings_its_terms_and_scheme():
    names = [settle({"method": "voxelmorph", "variant": v}).build_phases()[0].objective.names for v in (None, "semi")]
    assert names[0] != names[1]
    assert "dice" in names[1]
    baseline, symmetric = (settle({"method": "estienne", "variant": v}) for v in ("baseline", "symmetric"))
    assert not baseline.build_phases()[0].symmetric
    assert symmetric.build_phases()[0].symmetric


@pytest.mark.parametrize(
    ("given", "sets", "message"),
    [
        ({"method": "voxelmorph", "stpes": 3}, [], "no setting 'stpes'; did you mean 'steps'"),
        ({"method": "voxelmorf"}, [], "unknown method 'voxelmorf'; did you mean 'voxelmorph'"),
        ({"method": "voxelmorph", "variant": "semy"}, [], "no variant 'semy'; did you mean 'semi'"),
        ({"method": "voxelmorph", "model": {"encodr": [8]}}, [], "no setting 'encodr'; did you mean 'encoder'"),
        ({"method": "voxelmorph", "optimiser": {"lrr": 1}}, [], "optimiser: no setting 'lrr'; did you mean 'lr'"),
        ({"method": "voxelmorph", "steps": 0}, [], "steps: input should be greater than or equal to 1, got 0"),
        ({"method": "voxelmorph", "objective": "lnc"}, [], "unknown term 'lnc'; did you mean 'lncc'"),
        ({"method": "voxelmorph", "phases": [{"freeze": ["("]}]}, [], r"'\(' is no regular expression"),
        ({"method": "voxelmorph"}, ["steps"], "write key=value"),
        ({"method": "voxelmorph"}, ["optimiser.betas=[0.9]"], r"optimiser\.betas: list should have at least 2 items"),
        ({"method": "voxelmorph"}, ["optimiser.settings={betas: [0.9]}"], r"optimiser 'adam' cannot take .*0\.9"),
        ({"method": "voxelmorph", "strict": "foo"}, [], "strict: input should be a valid boolean.*, got 'foo'"),
        ({"method": "voxelmorph", "batch": 0, "steps": 0}, [], "steps: .*; batch: input should be greater"),
        ({"method": "voxelmorph"}, ["seed=-1"], "seed: input should be greater than or equal to 0, got -1"),
        ({"method": "voxelmorph"}, ["seed=1e20"], r"seed: .*got 1e\+20"),
        ({"method": "voxelmorph"}, ["symmetric=true", "objective=known_field"], "'known_field' is known in one; leave"),
        ({"method": "voxelmorph"}, ["objective=mse:weight=0"], "nothing is left to lower, the weight of mse is 0"),
        ({"method": "voxelmorph", "start": "foo"}, [], "start: input should be 'none', 'centres', 'rigid' or 'affine'"),
        ({"method": "voxelmorph", "licence": {1, 2}}, [], "not JSON serializable; write numbers, texts"),
        ({"method": "voxelmorph", "steps": 3}, ["steps.x=2"], "'steps' is a value"),
        ({"method": "voxelmorph", "phases": [{}]}, ["phases.3.steps=1"], "no place in a list of 1"),
        ({}, [], "names no method"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest(given, sets, message):
    with pytest.raises(OptionError, match=message) as error:
        settle(given, sets=sets)
    assert "\n" not in str(error.value)


def test_yaml_reads_numbers_as_people_write_them():
    assert read_yaml("a: 1e-4\nb: 1e3\nc: 5\nd: 0.5\ne: x1e4") == {"a": 1e-4, "b": 1e3, "c": 5, "d": 0.5, "e": "x1e4"}
    assert assignments(["a.b=1e-3"]) == [(["a", "b"], 1e-3)]
    with pytest.raises(InputError, match="line 2: 'a' is given twice"):
        read_yaml("a: 1\na: 2")
    with pytest.raises(InputError, match="line"):
        read_yaml("a: [1")
    assert merged({"a": {"b": 1}}, {"a": 3}) == {"a": 3}


def test_files_that_are_no_recipes_are_one_line(tmp_path):
    assert read_yaml("a: 2024-05-17") == {"a": "2024-05-17"}
    for text in ("x: {{name}}", "? [1]\n: 2"):
        with pytest.raises(InputError, match=r"line 1: .* stands where a key is"):
            read_yaml(text)
    file = tmp_path / "recipe.yaml"
    file.write_bytes("method: voxelmorph\nlicence: März\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_recipe(file)


def test_a_settled_recipe_reads_back_the_same(tmp_path):
    recipe = settle(
        {
            "method": "estienne",
            "variant": "hippocampus-symmetric",
            "phases": [
                {"name": "first", "steps": 2, "freeze": ["encoder"]},
                {"steps": 3, "objective": ["mse", "dice"]},
            ],
            "data": {"dataset": "hippocampus_mr"},
        }
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(head=["verimorph train estienne"]), encoding="utf-8")
    assert file.read_text().startswith("# verimorph train estienne\n")
    assert read_recipe(file) == recipe
    first, second = recipe.build_phases()
    assert (first.steps, first.freeze, second.steps, second.objective.names) == (2, ("encoder",), 3, ["mse", "dice"])
    assert first.symmetric
    assert second.symmetric
    assert isinstance(Recipe.model_validate(yaml.safe_load(file.read_text())), Recipe)


def test_what_is_a_default_is_said_all_the_same():
    """Left out of the file, the method's own settings would stand in its place when a run is resumed."""
    recipe = settle({"method": "modet", "optimiser": {"schedule": "constant"}, "batch": 1, "symmetric": False})
    assert recipe.optimiser.schedule == "constant"
    again = settle(read_yaml(recipe.to_yaml()))
    assert again == recipe
    assert again.model_dump() == recipe.model_dump()


def test_an_optimiser_of_a_phase_stands_over_that_of_the_recipe():
    recipe = settle({"method": "modet", "phases": [{"steps": 1}, {"steps": 1, "optimiser": {"lr": 1e-5}}]})
    first, second = (phase.parts[0].optimiser for phase in recipe.build_phases())
    assert (first.lr, second.lr) == (1e-4, 1e-5)
    assert second.schedule == first.schedule == "poly"
    assert second.settings == first.settings == {"amsgrad": True}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_recipes_of_the_repository_are_sound(file):
    recipe = read_recipe(file)
    told = method(recipe.method)
    assert set(recipe.model) <= set(told.settings())
    lines = file.read_text(encoding="utf-8").splitlines()
    # Where a recipe is run once a fold, its run lies in the fold's folder.
    command = rf"verimorph train {file.relative_to(ROOT)} -o runs/{file.parent.name}/(half1/)?{file.stem}"
    assert re.fullmatch(f"# Run:     {command}", lines[0])
    assert any(line.startswith("# Result: ") for line in lines[:6])
    from verimorph.data.config import DataConfig

    DataConfig.parse(recipe.data)
    if recipe.start_from is not None and recipe.strict:
        start = re.fullmatch(r"runs/\w+/(?:half1/)?([\w-]+)(?:/model)?", recipe.start_from)[1]
        before = read_recipe(file.with_name(f"{start}.yaml"))
        assert before.method == recipe.method, "weights have to fit"
        assert before.model == recipe.model or file.parent.name == "cardiac", "weights have to fit"


@pytest.fixture
def pairs(tmp_path, random) -> Path:
    """Four images of discs with their labels, and a list of pairs."""
    import nibabel

    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        image = disc((16 + number, 16 - number), 9, side=32).numpy()
        affine = np.eye(4)
        for name, values in ((f"i{number}", image), (f"l{number}", (image > 0.5).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(values[..., None].repeat(16, 2), affine), folder / f"{name}.nii.gz")
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["fixed", "moving", "fixed_labels", "moving_labels", "split"])
        for fixed, moving, split in ((0, 1, "train"), (1, 2, "train"), (2, 3, "validation")):
            files = [f"i{fixed}.nii.gz", f"i{moving}.nii.gz", f"l{fixed}.nii.gz", f"l{moving}.nii.gz"]
            writer.writerow([*files, split])
    return folder / "pairs.csv"


def small(pairs: Path, **more):
    return settle(
        {
            "method": "voxelmorph",
            "model": {"encoder": [4, 4], "decoder": [4, 4], "tail": [4]},
            "objective": "mse+diffusion:weight=0.01+dice",
            "data": {
                "csv": str(pairs),
                "pairs": {"kind": "listed"},
                "validation": "validation",
                "preparation": {"shape": [16, 16, 8], "spacing_mm": 2.0, "intensity": "minmax"},
            },
            "steps": 4,
            "tensorboard": False,
            "log_every": 1,
            **more,
        }
    )


def test_a_recipe_runs_from_files_to_a_model(pairs, tmp_path):
    from verimorph.train.run import run_recipe

    recipe = small(pairs, batch=2, validate_every=2, licence="CC0-1.0")
    result = run_recipe(recipe, tmp_path / "run", accelerator="cpu", head=("a line",))
    module, card = load_model(tmp_path / "run" / "model", expect_method="voxelmorph")
    assert result.steps == 4
    assert set(result.metrics) >= {"dice", "dice_before", "folding_percent", "sd_log_jacobian", "loss"}
    assert card.metrics == result.metrics
    assert (card.ndim, card.channels, card.licence, card.steps) == (3, 1, "CC0-1.0", result.best_step)
    assert card.training_data.cases == 3
    assert [label.value for label in card.labels] == [0, 1]
    assert card.preparation["shape"] == [16, 16, 8]
    assert card.settings["encoder"] == [4, 4]
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    assert json.loads(json.dumps(card.recipe)) == card.recipe
    image = torch.rand(1, 1, 16, 16, 8)
    assert module(fixed=image, moving=image)["field"].shape == (1, 3, 16, 16, 8)
    with pytest.raises(InputError, match=r"holds a run already.*--resume"):
        run_recipe(recipe, tmp_path / "run", accelerator="cpu")


def test_every_option_of_the_loop_can_be_set_by_a_recipe(pairs, monkeypatch):
    given = {
        "accumulate": 2, "clip": 3.0, "ema": 0.5, "log_every": 7, "validate_every": 8, "checkpoint_every": 9, "keep": 4,
        "monitor": "loss", "highest": False, "patience": 5, "minutes": 0.5, "channels_last": True, "tensorboard": False,
        "seed": 6,
    }  # fmt: skip
    assert {*given, "teacher"} == {field.name for field in fields(Options)}
    from verimorph.train.run import set_up

    taught = {"draws": 3, "smoothness": 1.5, "appearance_threshold": 0.2}
    objective = "mse+teacher:weight=teacher/consistency"
    monkeypatch.setattr("verimorph.train.run.check_teacher", lambda *_: None)  # this network does not draw
    options = set_up(small(pairs, **given, teacher=taught, objective=objective)).options
    assert {name: getattr(options, name) for name in given} == given
    assert options.teacher == Teacher(3, DoubleWeighting(1.5, appearance_threshold=0.2))


def test_labels_of_the_validation_alone_are_scored(pairs, tmp_path):
    from verimorph.train.run import run_recipe

    recipe = small(pairs, objective="mse")
    recipe = recipe.model_copy(update={"data": {**recipe.data, "keep_labels": False}})
    result = run_recipe(recipe, tmp_path / "run", accelerator="cpu")
    assert 0 < result.metrics["dice"] <= 1


def test_a_resumed_run_goes_on_with_the_same_dropout(pairs, tmp_path):
    """A loader must not take numbers from the generator that dropout draws from: a resumed run begins one more."""
    from verimorph.train.run import run_recipe

    model = {"embedding": 4, "depths": [2], "heads": [2], "window": [2, 2, 2], "drop_path": 0.5}
    whole = small(pairs, method="transmorph", model=model, objective="mse", checkpoint_every=2, steps=6)
    run_recipe(whole, tmp_path / "whole", accelerator="cpu")
    run_recipe(whole, tmp_path / "parted", accelerator="cpu")
    newest = max((tmp_path / "parted" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    log = tmp_path / "parted" / "log.csv"
    run_recipe(whole, tmp_path / "parted", accelerator="cpu", resume=True)
    assert log.read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_a_run_goes_on_with_what_it_began_with_alone(pairs, tmp_path):
    import nibabel

    from verimorph.train.run import run_recipe

    run = tmp_path / "run"
    run_recipe(small(pairs), run, accelerator="cpu")
    before = (run / "recipe.yaml").read_text()
    for change, told in (
        ({"batch": 2}, "batch"),
        ({"optimiser": {"weight_decay": 0.5}}, r"another optimiser\.weight_decay;"),
        ({"optimiser": {"name": "sgd"}}, r"another optimiser\.name;"),
        ({"precision": "bf16-mixed"}, "another precision;"),
        ({"start_from": "runs/other"}, "another start_from;"),
        ({"seed": 3}, "seed"),
        ({"objective": "mse+diffusion:weight=0.5+dice"}, "objective"),
        ({"model": {"encoder": [8, 4], "decoder": [4, 4], "tail": [4]}}, "another recipe"),
        ({"data": {**small(pairs).data, "augment": {"flip": 0.5}}}, "data"),
    ):
        with pytest.raises(InputError, match=told):
            run_recipe(small(pairs, **change), run, accelerator="cpu", resume=True)
        assert (run / "recipe.yaml").read_text() == before
    assert run_recipe(small(pairs, steps=5), run, accelerator="cpu", resume=True).steps == 5
    image = nibabel.load(pairs.parent / "i0.nii.gz")
    nibabel.save(nibabel.Nifti1Image(1 + np.asarray(image.dataobj) ** 2, image.affine), pairs.parent / "i0.nii.gz")
    with pytest.raises(InputError, match="begun with another data;"):
        run_recipe(small(pairs, steps=6), run, accelerator="cpu", resume=True)


def test_two_runs_do_not_share_a_folder(pairs, tmp_path, monkeypatch):
    from verimorph.train import run as module

    run, tried = tmp_path / "run", []

    def meanwhile(setup) -> None:
        for resume in (False, True):
            with pytest.raises(InputError, match="another process is training there"):
                module.run_recipe(small(pairs), run, accelerator="cpu", resume=resume)
            tried.append(resume)

    assert module.run_recipe(small(pairs, steps=1), run, accelerator="cpu", on_setup=meanwhile).steps == 1
    assert tried == [False, True]
    assert not (run / ".lock").exists()


def test_what_acts_on_validations_needs_them(pairs):
    from verimorph.train.run import set_up

    with pytest.raises(OptionError, match="measure 'dise'; did you mean 'dice'"):
        set_up(small(pairs, monitor="dise"))
    with pytest.raises(OptionError, match=r"patience counts validations.*validate_every"):
        set_up(small(pairs, patience=3))
    data = {name: value for name, value in small(pairs).data.items() if name != "validation"}
    for given in ({"monitor": "dice"}, {"patience": 3, "validate_every": 2}):
        with pytest.raises(OptionError, match=r"there are no pairs for them; give data\.validation"):
            set_up(small(pairs, data=data, **given))


def test_a_grid_that_the_network_cannot_take_is_refused(pairs):
    from verimorph.train.run import set_up

    recipe = small(pairs)
    settings = recipe.model_dump(exclude_defaults=True)
    settings["data"]["preparation"]["shape"] = [18, 16, 8]
    with pytest.raises(OptionError, match=r"multiples of 4, and 18 is none.*data\.preparation\.shape"):
        set_up(settle(settings))


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("voxelmorph", {"encoder": [8, "x"]}, r"encoder is \[8, 'x'\]; give whole numbers above 0, such as \[16, 32"),
        ("voxelmorph", {"encoder": [0, 8]}, r"encoder is \[0, 8\]; give whole numbers above 0"),
        ("voxelmorph", {"encoder": 8}, "encoder is 8; give whole numbers above 0"),
        ("voxelmorph", {"pooling": 3}, "pooling is 3; give a text, such as max"),
        ("lku-net", {"start": 0}, "with start 0: a layer has no channels"),
        ("transmorph", {"embedding": 0}, "cannot be built with embedding 0"),
        ("transmorph", {"drop_path": 3}, r"cannot be built with drop_path 3 \(Drop path prob"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(name, model, said):
    with pytest.raises(OptionError, match=f"^method '{name}'.*{said}"):
        method(name).model(**model)


def test_segmentation_needs_single_images(pairs):
    from verimorph.train.run import set_up

    settings = small(pairs).model_dump(exclude_defaults=True)
    settings |= {"method": "estienne-segmentation", "model": {}, "objective": None}
    with pytest.raises(OptionError, match=r"needs data with pairs: \{kind: single\}"):
        set_up(settle(settings))
