"""BraTS (2017 to 2024): four contrasts of one skull-stripped brain with a glioma, 240 x 240 x 155 at 1 mm."""

from __future__ import annotations

import re
from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, splits_by_subject
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source
from verimorph.errors import InputError, OptionError, nearest

LABELS = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}

#: After treatment (2024) there is one more; until 2021 its number was that of the enhancing tumour.
CAVITY = {4: "resection cavity"}

#: Contrast -> how its files end, until 2021 and since.
CONTRASTS = {"t1": ("_t1", "-t1n"), "t1ce": ("_t1ce", "-t1c"), "t2": ("_t2", "-t2w"), "flair": ("_flair", "-t2f")}


def read(root: Path, *, contrasts: list[str] | tuple[str, ...] = ("t1",)) -> Dataset:
    """``ID/ID_t1.nii.gz`` ... and ``ID_seg.nii.gz``, or ``ID/ID-t1n.nii.gz`` ...; ``contrasts`` become channels.

    The folders may lie up to three below ``root``, as in ``MICCAI_BraTS_2018_Data_Training/HGG``; a folder of
    validation data, which has no labels, beside them is passed over. Since 2023 ``BraTS-GLI-NNNNN-TTT`` is scan TTT of
    patient NNNNN.
    """
    for contrast in contrasts:
        if contrast not in CONTRASTS:
            raise OptionError(f"data set brats has no contrast '{contrast}'{nearest(contrast, CONTRASTS)}")
    cases = [_case(folder, contrasts) for folder in _folders(root)]
    names = {**LABELS, **CAVITY} if any(re.fullmatch(r"BraTS-GLI-\d+-1\d\d", case.id) for case in cases) else LABELS
    # Shares of Estienne et al. 2020 (199/26/60 of 285); which cases those were is not published.
    return Dataset("brats", tuple(cases), names, splits_by_subject(cases, {"train": 199, "validation": 26, "test": 60}))


def _folders(root: Path) -> list[Path]:
    """Folders of cases: those beside one that holds files of its own name."""
    aside: list[Path] = []
    for above in ("", "*/", "*/*/"):
        folders = sorted(folder for folder in root.glob(f"{above}[Bb]ra[Tt][Ss]*") if folder.is_dir())
        homes = {folder.parent for folder in folders if _named_alike(folder)}
        training = {home for home in homes if "validation" not in home.relative_to(root).as_posix().lower()}
        if training:
            return [folder for folder in folders if folder.parent in training]
        aside = aside or [folder for folder in folders if folder.parent in homes]
    if not aside:
        require_files([root / "BraTS*"], "brats")
        raise InputError(f"{root}: its folders BraTS* hold no images of their names")
    return aside


def _named_alike(folder: Path) -> bool:
    return any(file.name.startswith((f"{folder.name}_", f"{folder.name}-")) for file in folder.glob("*.nii*"))


def _case(folder: Path, contrasts: list[str] | tuple[str, ...]) -> Case:
    id = folder.name
    new = any(file.name.startswith(f"{id}-") for file in folder.glob("*.nii*"))
    # Copies of some years are not compressed.
    suffix = ".nii" if any(folder.glob("*.nii")) else ".nii.gz"
    labels = folder / f"{id}{'-' if new else '_'}seg{suffix}"
    # BraTS20_Training_355 keeps another name.
    labels = next((found for found in (labels, *sorted(folder.glob("*_Segm.nii*"))) if found.exists()), labels)
    return Case(
        id=id,
        images=tuple(Source(folder / f"{id}{CONTRASTS[name][new]}{suffix}") for name in contrasts),
        labels=Source(labels) if labels.exists() else None,
        subject=id.rpartition("-")[0] if new else id,
        relabel=() if new else ((4, 3),),
    )


ADAPTER = Adapter(
    name="brats",
    summary="brains with tumours between patients, four contrasts",
    obtain="obtain the training data of a BraTS year from its challenge page (registration needed) and unpack it here",
    licence="terms of the BraTS challenge",
    read=read,
    preparation={"shape": (144, 208, 144), "spacing_mm": 1.0, "intensity": "percentile", "centre": "mass"},
)
