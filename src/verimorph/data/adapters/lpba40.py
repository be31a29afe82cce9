"""LPBA40: T1 brains of 40 people, skull-stripped, 56 structures drawn by hand."""

from __future__ import annotations

import re
from pathlib import Path

from verimorph.data.adapters.adapter import Adapter
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source

_PAIRED = {
    21: "superior frontal gyrus", 23: "middle frontal gyrus", 25: "inferior frontal gyrus", 27: "precentral gyrus",
    29: "middle orbitofrontal gyrus", 31: "lateral orbitofrontal gyrus", 33: "gyrus rectus", 41: "postcentral gyrus",
    43: "superior parietal gyrus", 45: "supramarginal gyrus", 47: "angular gyrus", 49: "precuneus",
    61: "superior occipital gyrus", 63: "middle occipital gyrus", 65: "inferior occipital gyrus", 67: "cuneus",
    81: "superior temporal gyrus", 83: "middle temporal gyrus", 85: "inferior temporal gyrus",
    87: "parahippocampal gyrus", 89: "lingual gyrus", 91: "fusiform gyrus", 101: "insular cortex",
    121: "cingulate gyrus", 161: "caudate", 163: "putamen", 165: "hippocampus",
}  # fmt: skip
LABELS = dict(
    sorted(
        {
            **{value: f"left {name}" for value, name in _PAIRED.items()},
            **{value + 1: f"right {name}" for value, name in _PAIRED.items()},
            181: "cerebellum",
            182: "brainstem",
        }.items()
    )
)
SWAPS = tuple((value, value + 1) for value in _PAIRED)

#: Where the image and the labels of subject NN are, as distributed (delineation space), and as many passed it on.
_IMAGES = ("**/S{n:02d}.delineation.skullstripped.*", "**/S{n:02d}.nii*", "**/l{n}.nii*", "**/S{n:02d}.hdr")
_LABELS = ("**/S{n:02d}.delineation.structure.label.*", "label*/S{n:02d}*.nii*", "label*/l{n}.nii*")


def read(root: Path) -> Dataset:
    """``SNN/SNN.delineation.skullstripped.*`` with ``....structure.label.*``, or images beside a folder ``label``."""
    cases, lacking = [], []
    for n in range(1, 41):
        image, labels = _first(root, _IMAGES, n, labels=False), _first(root, _LABELS, n, labels=True)
        if image is None:
            lacking.append(root / f"S{n:02d}" / f"S{n:02d}.delineation.skullstripped.nii.gz")
        else:
            cases.append(Case(f"S{n:02d}", (Source(image),), Source(labels) if labels else None, subject=f"S{n:02d}"))
    require_files(lacking, "lpba40")
    ids = [case.id for case in cases]
    # The common split: the first 30 to train, the last 10 to test; images fixed and moving among the latter.
    test = ids[30:]
    splits = {"train": tuple(ids[:27]), "validation": tuple(ids[27:30]), "test": tuple(test)}
    pairs = {"test": tuple((fixed, moving) for fixed in test for moving in test if fixed != moving)}
    return Dataset("lpba40", tuple(cases), LABELS, splits, pairs, SWAPS)


def _first(root: Path, patterns: tuple[str, ...], n: int, *, labels: bool) -> Path | None:
    for pattern in patterns:
        for file in sorted(root.glob(pattern.format(n=n))):
            in_labels = "label" in file.relative_to(root).as_posix().lower()
            # Of a pair .hdr/.img the header leads to the other.
            if in_labels == labels and not re.search(r"\.img(\.gz)?$", file.name):
                return file
    return None


ADAPTER = Adapter(
    name="lpba40",
    summary="T1 brains between subjects, 56 structures",
    obtain="obtain it from the LONI atlases page (LPBA40, delineation space; registration needed) and unpack it here",
    licence="LONI terms, for research",
    read=read,
    preparation={"shape": (160, 192, 160), "spacing_mm": 1.0, "intensity": "percentile", "centre": "mass"},
)
