"""BraTS (2018 to 2023): four contrasts of one skull-stripped brain with a tumour, 240 x 240 x 155 at 1 mm."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, proportional_splits
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source
from verimorph.errors import OptionError, nearest

LABELS = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}

#: Contrast -> how its files end, until 2021 and since.
CONTRASTS = {"t1": ("_t1", "-t1n"), "t1ce": ("_t1ce", "-t1c"), "t2": ("_t2", "-t2w"), "flair": ("_flair", "-t2f")}


def read(root: Path, *, contrasts: list[str] | tuple[str, ...] = ("t1",)) -> Dataset:
    """``ID/ID_t1.nii.gz`` ... and ``ID_seg.nii.gz``, or ``ID/ID-t1n.nii.gz`` ...; ``contrasts`` become channels."""
    for contrast in contrasts:
        if contrast not in CONTRASTS:
            raise OptionError(f"data set brats has no contrast '{contrast}'{nearest(contrast, CONTRASTS)}")
    folders = sorted(
        folder for pattern in ("BraTS*", "HGG/*", "LGG/*") for folder in root.glob(pattern) if folder.is_dir()
    )
    if not folders:
        require_files([root / "BraTS*"], "brats")
    cases = []
    for folder in folders:
        id = folder.name
        new = any(folder.glob(f"{id}-*.nii.gz"))
        # Early years were not compressed.
        suffix = ".nii" if any(folder.glob("*.nii")) else ".nii.gz"
        labels = folder / f"{id}{'-' if new else '_'}seg{suffix}"
        cases.append(
            Case(
                id=id,
                images=tuple(Source(folder / f"{id}{CONTRASTS[name][new]}{suffix}") for name in contrasts),
                labels=Source(labels) if labels.exists() else None,
                subject=id,
                relabel=((4, 3),),
            )
        )
    # Shares of Estienne et al. 2020 (199/26/60 of 285); which cases those were is not published.
    splits = proportional_splits([case.id for case in cases], {"train": 199, "validation": 26, "test": 60})
    return Dataset("brats", tuple(cases), LABELS, {name: ids for name, ids in splits.items() if ids})


ADAPTER = Adapter(
    name="brats",
    summary="brains with tumours between patients, four contrasts",
    obtain="obtain the training data of a BraTS year from its challenge page (registration needed) and unpack it here",
    licence="terms of the BraTS challenge",
    read=read,
    preparation={"shape": (144, 208, 144), "spacing_mm": 1.0, "intensity": "percentile", "centre": "mass"},
)
