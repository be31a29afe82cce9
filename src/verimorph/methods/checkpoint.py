"""A trained model as a folder: weights (``model.safetensors``), card (``card.json``) and the card in words.

Nothing here unpickles: a model from elsewhere can be wrong, but it cannot run code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError
from verimorph.io.safe import replacing_folder
from verimorph.methods import METHODS, method
from verimorph.methods.card import Card, render

WEIGHTS, CARD, README = "model.safetensors", "card.json", "README.md"


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, in the usual order of memory, no two sharing any.

    Weights that two parts of a network share are written once for each name.
    """
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def save_model(folder: str | os.PathLike, module: nn.Module, card: Card) -> Card:
    """Write a trained model; what stood in ``folder`` before is replaced as a whole, and kept if writing fails.

    Parameters
    ----------
    folder
        Becomes the model.
    module
        Its ``state_dict`` is written, as it is.
    card
        Its hash of the weights, the number of parameters and the version are filled in.

    Returns
    -------
    Card
        As written.

    Raises
    ------
    InputError, ResourceError
        If the place cannot be written to, or the disk is full.
    """
    import safetensors.torch

    from verimorph import __version__

    content = safetensors.torch.save(plain_tensors(module.state_dict()))
    card = card.model_copy(
        update={
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "verimorph": __version__,
        }
    )
    with replacing_folder(folder) as beside:
        (beside / WEIGHTS).write_bytes(content)
        (beside / CARD).write_text(card.to_json(), encoding="utf-8")
        (beside / README).write_text(render(card), encoding="utf-8")
    return card


def read_card(path: str | os.PathLike, *, expect_method: str | None = None, needs_weights: bool = True) -> Card:
    """The card of a trained model.

    Parameters
    ----------
    needs_weights
        Refuse a folder whose weights are not there; False where the card alone is asked.

    Raises
    ------
    InputError
        If there is no model, its card is damaged, or it is a model of another method than ``expect_method``.
    """
    folder = Path(path)
    if folder.is_file():
        if folder.name in (WEIGHTS, CARD, README):
            folder = folder.parent
        else:
            raise InputError(
                f"{folder}: is a file; a trained model is a folder with {WEIGHTS} and {CARD} "
                "(pickled checkpoints are never loaded, as reading them can run code)"
            )
    if not folder.is_dir():
        if str(path) in METHODS:
            raise InputError(
                f"'{path}' is a method, and none comes trained; train it first ('verimorph train {path} ...'), then "
                "give the folder of that model"
            )
        raise InputError(f"{folder}: there is no such folder; give the folder of a trained model")
    for name in (CARD, WEIGHTS) if needs_weights else (CARD,):
        if not (folder / name).is_file():
            inner = folder / "model"
            hint = f"; did you mean {inner}?" if (inner / CARD).is_file() else "; it is no trained model"
            raise InputError(f"{folder}: has no {name}{hint}")
    card = Card.from_json((folder / CARD).read_bytes(), where=folder / CARD)
    if expect_method is not None and card.method != expect_method:
        raise InputError(f"{folder}: is a model of '{card.method}', not of '{expect_method}'; give one of that method")
    return card


def load_weights(
    path: str | os.PathLike, *, expect_method: str | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Card]:
    """The tensors of a trained model by name, and its card.

    Raises
    ------
    InputError
        As `read_card`; or if the weights are not those that the card was written for.
    """
    import safetensors
    import safetensors.torch

    card = read_card(path, expect_method=expect_method)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    content = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise InputError(
            f"{folder / WEIGHTS}: is not the file that the card was written for (SHA-256 differs); "
            "it is damaged or was exchanged: fetch or train the model again"
        )
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: is no safetensors file ({error}); fetch the model again") from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, card


def describe_mismatch(module: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """What keeps tensors from being the weights of a module, in a few words; None if nothing does."""
    own = module.state_dict()
    for words, names in (
        ("lacks", own.keys() - tensors.keys()),
        ("has more than wanted:", tensors.keys() - own.keys()),
    ):
        if names:
            shown = sorted(names)
            rest = f" and {len(shown) - 3} others" if len(shown) > 3 else ""
            return f"{words} {', '.join(shown[:3])}{rest}"
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            return f"has '{name}' of shape {tuple(tensors[name].shape)}, the network needs {tuple(tensor.shape)}"
    return None


def load_model(
    path: str | os.PathLike, *, expect_method: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Card]:
    """Build the network that a card describes and fill in its weights.

    Parameters
    ----------
    path
        Folder of the model (or its ``card.json``).
    expect_method
        Refuse a model of any other method.
    device
        Where the module goes.

    Returns
    -------
    module, card
        The module is in evaluation mode.

    Raises
    ------
    InputError
        If there is no model, the card does not fit the weights, or it is a model of another method.
    """
    tensors, card = load_weights(path, expect_method=expect_method)
    try:
        module = method(card.method).model(
            ndim=card.ndim, channels=card.channels, variant=card.variant, **card.settings
        )
    except (OptionError, TypeError) as error:
        raise InputError(f"{path}: the card describes a network that cannot be built: {error}") from error
    problem = describe_mismatch(module, tensors)
    if problem is not None:
        raise InputError(f"{path}: the weights do not fit the network of the card: the file {problem}")
    module.load_state_dict(tensors)
    return module.to(device).eval(), card


__all__ = ["describe_mismatch", "load_model", "load_weights", "plain_tensors", "read_card", "save_model"]
