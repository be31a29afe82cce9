"""Learn2Reg NLST (2022, 2023): lung CT of one patient at two breaths, key points and lung masks, 224 x 192 x 224."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, learn2reg
from verimorph.data.cases import Dataset


def read(root: Path) -> Dataset:
    """``NLST_dataset.json``; pairs of one patient, ``training_paired_images`` and ``registration_val``."""
    return learn2reg(root, "NLST_dataset.json")


ADAPTER = Adapter(
    name="l2r_nlst",
    summary="lung CT within patients, key points and masks",
    obtain="obtain it from the Learn2Reg datasets page (NLST2023.zip) and unpack it here",
    licence="NLST terms (The Cancer Imaging Archive)",
    read=read,
    # The usual lung window: -1350 to 150 HU.
    preparation={"shape": (224, 192, 224), "spacing_mm": 1.5, "intensity": "windows", "windows": ((1500.0, -600.0),)},
)
