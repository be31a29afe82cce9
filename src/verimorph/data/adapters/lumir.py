"""LUMIR (Learn2Reg 2024): T1 brains between subjects without labels, 160 x 224 x 192 at 1 mm, grey values 0 to 255."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, learn2reg
from verimorph.data.cases import Dataset


def read(root: Path) -> Dataset:
    """``LUMIR_dataset.json``; its list ``validation`` holds pairs."""
    return learn2reg(root, "LUMIR_dataset.json")


ADAPTER = Adapter(
    name="lumir",
    summary="T1 brains between subjects, no labels, 3384 to train",
    obtain="obtain images and LUMIR_dataset.json by the links of the LUMIR_L2R repository and put both here",
    licence="CC BY-NC-SA 4.0; terms of the OpenBHB sources apply",
    read=read,
    preparation={"shape": (160, 224, 192), "spacing_mm": 1.0, "intensity": "minmax"},
)
