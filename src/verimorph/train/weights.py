"""Weights before the first step: those of a trained model, and how they lie in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from verimorph.errors import InputError
from verimorph.methods.checkpoint import describe_mismatch, load_weights


def start_weights(model: nn.Module, path: str, *, strict: bool = True) -> int:
    """Fill a model with the weights of a trained one; the number of tensors that were taken.

    Parameters
    ----------
    path
        Folder of the trained model, or of the run that trained it.
    strict
        All names and shapes have to fit; else what fits is taken.

    Raises
    ------
    InputError
        If they do not, or nothing does.
    """
    folder = Path(path)
    inner = folder / "model"
    tensors, _ = load_weights(inner if (inner / "card.json").is_file() else folder)
    if strict:
        problem = describe_mismatch(model, tensors)
        if problem is not None:
            raise InputError(f"{path}: does not fit the network: it {problem}; strict: false takes what fits")
    own = model.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise InputError(f"{path}: none of its weights fits the network; give a model of the same method")
    model.load_state_dict(fitting, strict=False)
    return len(fitting)


def innermost(tensor: Tensor) -> Tensor:
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=kinds[tensor.ndim]) if tensor.ndim in kinds else tensor


def channels_innermost(model: nn.Module) -> None:
    """Lay out the weights of convolutions with the channels innermost, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            module.weight.data = innermost(module.weight.data)
