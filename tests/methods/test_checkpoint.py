"""A trained model on the disk: what is read is what was written, and anything else is refused in one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from verimorph.errors import InputError, OptionError, ResourceError
from verimorph.methods import Citation, Method, Variant, checkpoint
from verimorph.methods.card import Card, Label, TrainingData, render
from verimorph.methods.checkpoint import load_model, load_weights, read_card, save_model


class Small(nn.Module):
    stride = 1

    def __init__(self, ndim: int, channels: int, width: int) -> None:
        super().__init__()
        kind = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.first = kind(2 * channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if ndim == 2 else nn.BatchNorm3d(width)
        self.shared = self.first  # one part under two names, as towers that share their weights


SMALL = Method(
    name="small",
    summary="For these tests.",
    citation=Citation("Nobody", "Nothing", "Nowhere", 2024),
    build=lambda ndim=3, channels=1, width=4: Small(ndim, channels, width),
    objective=("mse",),
    variants={"wide": Variant("wider", {"width": 6})},
)


def _method(name: str) -> Method:
    if name != "small":
        raise OptionError(f"unknown method '{name}'; known: small")
    return SMALL


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(checkpoint, "method", _method)


def make(**changes) -> tuple[nn.Module, Card]:
    torch.manual_seed(3)
    module = SMALL.model(ndim=2, variant="wide")
    module.first.to(memory_format=torch.channels_last)
    card = Card(
        method="small",
        variant="wide",
        ndim=2,
        preparation={"shape": [16, 16], "spacing": 2.0},
        labels=[Label(value=0, name="background"), Label(value=7, name="anterior")],
        training_data=TrainingData(name="phantoms", cases=4, sha256="0" * 64),
        metrics={"dice": 0.5},
    )
    return module, card.model_copy(update=changes)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    module, card = make()
    written = save_model(tmp_path / "model", module, card)
    loaded, read = load_model(tmp_path / "model", expect_method="small")
    assert read == written
    assert read.model_dump(exclude={"weights_sha256", "parameters", "verimorph"}) == card.model_dump(
        exclude={"weights_sha256", "parameters", "verimorph"}
    )
    assert read.parameters == sum(p.numel() for p in module.parameters())
    assert not loaded.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert load_model(tmp_path / "model" / "card.json")[1] == read
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
    assert written.weights_sha256 in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_saving_again_replaces_the_whole_folder(tmp_path):
    module, card = make()
    save_model(tmp_path / "model", module, card)
    (tmp_path / "model" / "stale.txt").write_text("of an older model")
    with torch.no_grad():
        module.first.weight.add_(1)
    save_model(tmp_path / "model", module, card)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md",
        "card.json",
        "model.safetensors",
    ]
    assert torch.equal(load_model(tmp_path / "model")[0].first.weight, module.first.weight)


def test_a_full_disk_keeps_the_model_that_was_there(tmp_path, monkeypatch):
    module, card = make()
    first = save_model(tmp_path / "model", module, card)
    with torch.no_grad():
        module.first.weight.add_(1)

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="disk is full"):
        save_model(tmp_path / "model", module, card)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "method", _method)
    assert read_card(tmp_path / "model") == first
    load_model(tmp_path / "model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_a_changed_byte_of_the_weights_is_refused(tmp_path):
    save_model(tmp_path, *make())
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError, match="SHA-256 differs"):
        load_model(tmp_path)


def _edit(folder: Path, **changes) -> None:
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    (folder / "card.json").write_text(json.dumps(card))


def _replace_weights(folder: Path, change) -> None:
    import hashlib

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    content = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    _edit(folder, weights_sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), "lacks norm.weight"),
        (lambda t: t.update(more=torch.zeros(1)), "has more than wanted: more"),
        (lambda t: t.update({"norm.weight": torch.zeros(9)}), r"the file has 'norm.weight' of shape \(9,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    save_model(tmp_path, *make())
    _replace_weights(tmp_path, change)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "big"}, "cannot be built: unknown method 'big'"),
        ({"settings": {"widht": 3}}, "no setting 'widht'; did you mean 'width'"),
        ({"metrcs": {}}, "no field 'metrcs'; did you mean 'metrics'"),
        ({"ndim": 4}, "field 'ndim'"),
        ({"layout": 99}, "layout 99.*update verimorph"),
        ({"weights_sha256": None}, "SHA-256 differs"),
    ],
)
def test_cards_that_do_not_fit_are_refused(tmp_path, changes, message):
    save_model(tmp_path, *make())
    _edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_a_model_of_another_method_is_refused(tmp_path):
    save_model(tmp_path, *make())
    with pytest.raises(InputError, match="model of 'small', not of 'voxelmorph'"):
        load_weights(tmp_path, expect_method="voxelmorph")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no card\.json"):
        load_model(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pth")
    with pytest.raises(InputError, match="pickled checkpoints are never loaded"):
        load_model(tmp_path / "old.pth")
    save_model(tmp_path / "run" / "model", *make())
    with pytest.raises(InputError, match=r"did you mean .*model"):
        load_model(tmp_path / "run")


def test_a_card_is_read_without_its_weights_where_they_are_not_asked(tmp_path):
    card = save_model(tmp_path, *make())
    (tmp_path / "model.safetensors").unlink()
    assert read_card(tmp_path, needs_weights=False) == card
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        read_card(tmp_path)


def test_a_pickle_under_the_right_name_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    import hashlib
    import pickle

    save_model(tmp_path, *make())
    content = pickle.dumps(Trap())
    (tmp_path / "model.safetensors").write_bytes(content)
    _edit(tmp_path, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="no safetensors file"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_card_in_words_says_what_matters():
    _, card = make(start="affine", licence="CC0-1.0", steps=1200)
    text = render(card)
    for centre, said in (
        ("image", "the middles of their fields of view laid together"),
        ("world", "in world coordinates"),
    ):
        assert said in render(card.model_copy(update={"start": "none", "preparation": {"centre": centre}}))
    for words in ("small (wide)", "phantoms", "4 images", "1,200 steps", "affine", "7 anterior", "CC0-1.0", "| dice |"):
        assert words in text
