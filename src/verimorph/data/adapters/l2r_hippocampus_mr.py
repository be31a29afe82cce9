"""Learn2Reg HippocampusMR (2020: Task 4): small MR volumes of the hippocampus, two labels, 64^3 at 1 mm."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, learn2reg
from verimorph.data.cases import Dataset

LABELS = {1: "anterior hippocampus", 2: "posterior hippocampus"}


def read(root: Path) -> Dataset:
    """``HippocampusMR_dataset.json``."""
    return learn2reg(root, "HippocampusMR_dataset.json", label_names=LABELS)


ADAPTER = Adapter(
    name="l2r_hippocampus_mr",
    summary="hippocampus MR between subjects, two labels",
    obtain="obtain it from the Learn2Reg datasets page (HippocampusMR.zip) and unpack it here",
    licence="CC BY-SA 4.0 (Medical Segmentation Decathlon)",
    read=read,
    preparation={"shape": (64, 64, 64), "spacing_mm": 1.0, "intensity": "zscore"},
)
