"""M&Ms (MICCAI 2020): short-axis cine MR of several centres and vendors; labels numbered as in ACDC here."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, folder_with, within_subject
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source
from verimorph.errors import InputError
from verimorph.io.pairs import read_table

LABELS = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

#: The files number the left ventricle 1 and the right one 3; ACDC, which it is trained with, the other way round.
RELABEL = ((1, 3), (3, 1))

_TABLE = "*[Dd]ataset_[Ii]nformation*.csv"

_SPLITS = (("train", "Training"), ("validation", "Validation"), ("test", "Testing"))


def read(root: Path) -> Dataset:
    """``Training/Labeled/CODE/CODE_sa.nii.gz`` (4-D) with ``CODE_sa_gt.nii.gz``; a CSV says the frames of ED and ES."""
    # "Dataset_Information_-_opendataset" in the copies of 2020 and 2021.
    root = folder_with(root, _TABLE)
    tables = sorted(root.glob(_TABLE))
    if not tables:
        require_files([root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"], "mnms")
    rows, columns = read_table(tables[0])
    for needed in ("External code", "ED", "ES"):
        if needed not in columns:
            raise InputError(f"{tables[0]}: has no column '{needed}'; copy or download it again")
    folders: dict[str, tuple[str, Path]] = {}
    for split, name in _SPLITS:
        for folder in (*sorted((root / name).glob("*")), *sorted((root / name).glob("Labeled/*"))):
            folders[folder.name] = (split, folder)
    cases: list[Case] = []
    splits: dict[str, list[Case]] = {}
    for row in rows:
        code = row["External code"].strip()
        if code not in folders:
            continue  # the unlabelled part of the training set comes without frames
        split, folder = folders[code]
        for phase in ("ED", "ES"):
            frame = int(float(row[phase]))
            made = Case(
                id=f"{code}_{phase.lower()}",
                images=(Source(folder / f"{code}_sa.nii.gz", frame),),
                labels=Source(folder / f"{code}_sa_gt.nii.gz", frame),
                subject=code,
                cohort=row.get("Vendor", "").strip() or "mnms",
                relabel=RELABEL,
            )
            cases.append(made)
            splits.setdefault(split, []).append(made)
    if not cases:
        require_files([root / "Training"], "mnms")
        raise InputError(f"{root}: none of the patients of {tables[0].name} has a folder here")
    return Dataset(
        "mnms",
        tuple(cases),
        LABELS,
        {split: tuple(case.id for case in listed) for split, listed in splits.items()},
        {split: within_subject(listed) for split, listed in splits.items()},
    )


ADAPTER = Adapter(
    name="mnms",
    summary="cardiac cine MR within patients, several vendors",
    obtain="obtain it from the M&Ms challenge page of the University of Barcelona (OpenDataset) and unpack it here",
    licence="terms of the M&Ms challenge, for research",
    read=read,
    preparation={"shape": (128, 128, 32), "spacing_mm": (1.5, 1.5, 3.15), "intensity": "percentile"},
)
