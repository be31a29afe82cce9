"""State of a run on the disk, without pickle: tensors as safetensors, the rest as JSON, so that a killed run goes on.

A checkpoint is a folder ``step-00001200`` with ``state.safetensors`` and ``state.json``; it appears as a whole or not
at all, and the newest ones are kept. Any nest of dictionaries, lists, numbers, texts and tensors can be stored.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verimorph.errors import InputError, ResourceError, VerimorphWarning
from verimorph.io.safe import replacing_folder
from verimorph.methods.checkpoint import plain_tensors

TENSORS, PLAIN = "state.safetensors", "state.json"
_FOLDER = re.compile(r"^step-(\d+)$")
_MARK = "__tensor__"


def flatten(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Part a nest into what JSON can say and its tensors; each tensor leaves a mark with its name behind.

    >>> flatten({"a": [torch.zeros(2), 1.5]})[0]
    {'kind': 'dict', 'items': [['a', {'kind': 'list', 'items': [{'__tensor__': '/a/0'}, 1.5]}]]}
    """
    if isinstance(state, Tensor):
        return {_MARK: name}, {name: state}
    if isinstance(state, np.ndarray):
        # The generator of NumPy has unsigned integers, which torch knows in part.
        array = state.astype(np.int64) if state.dtype.kind == "u" else state
        return {_MARK: name, "numpy": str(state.dtype)}, {name: torch.from_numpy(array)}
    if isinstance(state, Mapping):  # pairs, as the keys of an optimiser's state are numbers
        parts = {key: flatten(value, f"{name}/{key}") for key, value in state.items()}
        plain: Any = {"kind": "dict", "items": [[key, part] for key, (part, _) in parts.items()]}
        return plain, {place: tensor for _, found in parts.values() for place, tensor in found.items()}
    if isinstance(state, list | tuple):
        entries = state if isinstance(state, list) else list(state)
        if all(type(entry) in (int, float, str) for entry in entries):  # the state of Python's generator is long
            return {"kind": "list" if isinstance(state, list) else "tuple", "items": entries}, {}
        inner = [flatten(value, f"{name}/{key}") for key, value in enumerate(entries)]
        plain = {"kind": "list" if isinstance(state, list) else "tuple", "items": [part for part, _ in inner]}
        return plain, {place: tensor for _, found in inner for place, tensor in found.items()}
    if state is None or isinstance(state, bool | int | float | str):
        return state, {}
    raise TypeError(f"a checkpoint cannot hold {type(state).__name__} ({name})")


def restore(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that `flatten` parted."""
    if isinstance(plain, dict) and _MARK in plain:
        tensor = tensors[plain[_MARK]]
        return tensor.numpy().astype(plain["numpy"]) if "numpy" in plain else tensor
    if isinstance(plain, dict):
        if plain["kind"] == "dict":
            return {key: restore(value, tensors) for key, value in plain["items"]}
        values = [restore(value, tensors) for value in plain["items"]]
        return values if plain["kind"] == "list" else tuple(values)
    return plain


def random_state() -> dict[str, Any]:
    """State of every generator that training may draw from."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    return state | {"cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators where they were."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``.

    Raises
    ------
    ResourceError
        If the disk is full: the checkpoints that were there stay.
    """
    import safetensors.torch

    plain, tensors = flatten(state)
    path = folder / f"step-{step:08d}"
    content = safetensors.torch.save(plain_tensors(tensors))
    outline = {"layout": 1, "step": step, "sha256": hashlib.sha256(content).hexdigest(), "state": plain}
    try:
        with replacing_folder(path) as beside:
            (beside / TENSORS).write_bytes(content)
            (beside / PLAIN).write_text(json.dumps(outline), encoding="utf-8")
    except ResourceError as error:
        before = checkpoints(folder)
        last = f"; {before[-1]} is whole, go on from it with --resume" if before else ""
        raise ResourceError(f"{error}{last}") from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _FOLDER.match(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """State of the newest checkpoint that is whole; None if there is none. A damaged one is passed over with a warning.

    Raises
    ------
    InputError
        If there are checkpoints and none can be read.
    """
    import safetensors
    import safetensors.torch

    found = checkpoints(folder)
    for path in reversed(found):
        try:
            outline = json.loads((path / PLAIN).read_bytes())
            content = (path / TENSORS).read_bytes()
            if hashlib.sha256(content).hexdigest() != outline["sha256"]:
                raise ValueError("its tensors are not those it was written with")
            return restore(outline["state"], safetensors.torch.load(content))
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            warnings.warn(VerimorphWarning(f"{path}: cannot be read ({error}); trying the one before"), stacklevel=2)
    if found:
        raise InputError(f"{folder}: no checkpoint in it can be read; start again in another folder")
    return None


__all__ = [
    "checkpoints",
    "flatten",
    "random_state",
    "read_checkpoint",
    "restore",
    "set_random_state",
    "write_checkpoint",
]
