"""ACDC (MICCAI 2017): short-axis cine MR, end of diastole and of systole of 150 patients, three labels."""

from __future__ import annotations

import re
from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, folder_with, within_subject
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source
from verimorph.errors import InputError

LABELS = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}


def read(root: Path) -> Dataset:
    """``{training,testing}/patientNNN/Info.cfg`` says which frames ``patientNNN_frameMM[_gt].nii.gz`` are meant.

    Labels of the patients to test on came out after the challenge; a copy without any is read without.
    """
    base = folder_with(root, "training")
    folders = {split: sorted((base / name).glob("patient*")) for split, name in
               (("train", "training"), ("test", "testing"))}  # fmt: skip
    if not any(folders.values()):
        require_files([base / "training"], "acdc")
        raise InputError(f"{base}: its folder training holds no patient")
    cases: list[Case] = []
    splits: dict[str, tuple[str, ...]] = {}
    pairs = {}
    for split, patients in folders.items():
        labelled = split == "train" or any(found for folder in patients for found in folder.glob("*_gt.nii.gz"))
        here = [case for folder in patients if folder.is_dir() for case in _patient(folder, labelled=labelled)]
        if here:
            cases += here
            splits[split] = tuple(case.id for case in here)
            pairs[split] = within_subject(here)
    return Dataset("acdc", tuple(cases), LABELS, splits, pairs)


def _patient(folder: Path, *, labelled: bool) -> list[Case]:
    information = folder / "Info.cfg"
    require_files([information], "acdc")
    text = information.read_text(encoding="utf-8", errors="replace")
    made = []
    for phase in ("ED", "ES"):
        match = re.search(rf"^\s*{phase}\s*:\s*(\d+)", text, re.MULTILINE)
        if match is None:
            raise InputError(f"{information}: names no frame for {phase}; copy or download it again")
        name = f"{folder.name}_frame{int(match[1]):02d}"
        made.append(
            Case(
                id=f"{folder.name}_{phase.lower()}",
                images=(Source(folder / f"{name}.nii.gz"),),
                labels=Source(folder / f"{name}_gt.nii.gz") if labelled else None,
                subject=folder.name,
                cohort="acdc",
            )
        )
    return made


ADAPTER = Adapter(
    name="acdc",
    summary="cardiac cine MR within patients, end of diastole and systole",
    obtain="obtain it from the ACDC challenge page of CREATIS (Human Heart Project) and unpack it here",
    licence="CC BY-NC-SA 4.0, for research",
    read=read,
    preparation={"shape": (128, 128, 32), "spacing_mm": (1.5, 1.5, 3.15), "intensity": "percentile"},
)
