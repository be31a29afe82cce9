"""Learn2Reg OASIS (2021: Task 3): T1 brains between subjects, 35 structures, 160 x 224 x 192 at 1 mm."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, learn2reg
from verimorph.data.adapters.brain_labels import OASIS_35, swaps_by_name
from verimorph.data.cases import Dataset


def read(root: Path) -> Dataset:
    """``OASIS_dataset.json``."""
    return learn2reg(root, "OASIS_dataset.json", label_names=OASIS_35, swaps=swaps_by_name(OASIS_35))


ADAPTER = Adapter(
    name="l2r_oasis",
    summary="T1 brains between subjects, 394 to train and 19 pairs to validate",
    obtain="obtain it from the Learn2Reg datasets page (OASIS.zip) and unpack it here",
    licence="OASIS data use agreement",
    read=read,
    preparation={"shape": (160, 224, 192), "spacing_mm": 1.0, "intensity": "minmax"},
)
