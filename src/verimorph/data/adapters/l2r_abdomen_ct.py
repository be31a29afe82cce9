"""Learn2Reg AbdomenCTCT (2020: Task 3): 30 labelled CTs of 30 patients, 13 organs, 192 x 160 x 256 at 2 mm."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, learn2reg
from verimorph.data.cases import Case, Dataset
from verimorph.data.preparation import ABDOMEN_WINDOWS
from verimorph.data.source import Source

LABELS = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "oesophagus", 6: "liver", 7: "stomach",
    8: "aorta", 9: "inferior vena cava", 10: "portal and splenic vein", 11: "pancreas", 12: "right adrenal gland",
    13: "left adrenal gland",
}  # fmt: skip
SWAPS = ((2, 3), (12, 13))

#: Validation of 2020 (Estienne et al.): 45 ordered pairs, the smaller number fixed.
VALIDATION = (1, 4, 7, 10, 23, 26, 29, 32, 35, 38)


def read(root: Path) -> Dataset:
    """Today's layout (``AbdomenCTCT_dataset.json``), or that of 2020 (``Training/img/img0001.nii.gz``)."""
    if (root / "Training").is_dir():
        return _of_2020(root)
    return replace(learn2reg(root, "AbdomenCTCT_dataset.json", swaps=SWAPS), label_names=LABELS)


def _of_2020(root: Path) -> Dataset:
    trained = {file.name[3:7]: file for file in sorted((root / "Training" / "img").glob("img*.nii.gz"))}
    tested = {file.name[3:7]: file for file in sorted((root / "Testing" / "img").glob("img*.nii.gz"))}
    cases = [
        *(
            Case(id, (Source(file),), Source(root / "Training" / "label" / f"label{id}.nii.gz"), subject=id)
            for id, file in trained.items()
        ),
        *(Case(id, (Source(file),), subject=id) for id, file in tested.items()),
    ]
    judged = [id for id in trained if int(id) in VALIDATION]
    splits = {
        "train": tuple(id for id in trained if int(id) not in VALIDATION),
        "validation": tuple(judged),
        "test": tuple(tested),
    }
    pairs = {"validation": tuple(combinations(judged, 2))}
    return Dataset("l2r_abdomen_ct", tuple(cases), LABELS, {k: v for k, v in splits.items() if v}, pairs, SWAPS)


ADAPTER = Adapter(
    name="l2r_abdomen_ct",
    summary="abdominal CT between patients, 13 organs, 20 to train and 45 pairs to validate",
    obtain="obtain it from the Learn2Reg datasets page (AbdomenCTCT.zip) and unpack it here",
    licence="BTCV terms (Synapse), for research",
    read=read,
    preparation={
        "shape": (192, 160, 256),
        "spacing_mm": 2.0,
        "intensity": "windows",
        "windows": ABDOMEN_WINDOWS,
        "centre": "image",
    },
)
