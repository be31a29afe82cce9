"""Development set: 120 volumes of the hippocampus (Medical Segmentation Decathlon, Task 4), two labels."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, splits_of
from verimorph.data.adapters.development import manifest, recommended
from verimorph.data.cases import Case, Dataset
from verimorph.data.source import Source

LABELS = {1: "anterior hippocampus", 2: "posterior hippocampus"}


def read(root: Path) -> Dataset:
    """``hippocampus_NNN_image.nii.gz`` and ``..._labels.nii.gz``; the id is ``hippocampus_NNN``."""
    names = [name.removesuffix("_image.nii.gz") for name in manifest(root, "hippocampus_mr") if "_image" in name]
    cases = tuple(
        Case(id, (Source(root / f"{id}_image.nii.gz"),), Source(root / f"{id}_labels.nii.gz"), subject=id)
        for id in names
    )
    splits, pairs = splits_of("hippocampus_mr")
    pairs = {**pairs, "recommended": recommended(root, "hippocampus_mr", "_image.nii.gz")}
    return Dataset("hippocampus_mr", cases, LABELS, splits, pairs)


ADAPTER = Adapter(
    name="hippocampus_mr",
    summary="hippocampus MR between subjects: 100 to train, 20 pairs to score",
    obtain="obtain Task04_Hippocampus of the Medical Segmentation Decathlon, laid out as in the page on data",
    licence="CC BY-SA 4.0 (Medical Segmentation Decathlon)",
    read=read,
    preparation={"shape": (64, 64, 64), "spacing_mm": 1.0, "intensity": "zscore"},
)
