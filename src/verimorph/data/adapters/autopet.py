"""AutoPET (MICCAI 2022): whole-body CT (and PET) of one study each, onto an atlas."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, proportional_splits
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source


def read(root: Path, *, labels: str = "labels.nii.gz", pet: bool = False) -> Dataset:
    """``PETCT_*/STUDY/CTres.nii.gz`` and ``SUV.nii.gz`` (second channel with ``pet``).

    ``labels`` is the name, in the folder of a study, of an organ map made with TotalSegmentator; AutoPET itself
    outlines lesions alone, which are no landmarks of registration.
    """
    base = root / "FDG-PET-CT-Lesions" if (root / "FDG-PET-CT-Lesions").is_dir() else root
    studies = sorted(folder for folder in base.glob("PETCT_*/*") if folder.is_dir())
    if not studies:
        require_files([base / "PETCT_*"], "autopet")
    cases = []
    for study in studies:
        channels = ["CTres.nii.gz", "SUV.nii.gz"] if pet else ["CTres.nii.gz"]
        organs = study / labels
        cases.append(
            Case(
                id=f"{study.parent.name}_{study.name}",
                images=tuple(Source(study / name) for name in channels),
                labels=Source(organs) if organs.is_file() else None,
                subject=study.parent.name,
            )
        )
    subjects = sorted({case.subject for case in cases})
    by_subject = proportional_splits(subjects, {"train": 0.7, "validation": 0.1, "test": 0.2})
    splits = {name: tuple(case.id for case in cases if case.subject in set(ids)) for name, ids in by_subject.items()}
    return Dataset("autopet", tuple(cases), splits={name: ids for name, ids in splits.items() if ids})


ADAPTER = Adapter(
    name="autopet",
    summary="whole-body CT and PET between patients",
    obtain="obtain FDG-PET-CT-Lesions from The Cancer Imaging Archive (NIfTI as by its conversion script); put it here",
    licence="TCIA restricted licence",
    read=read,
    # -300 to 300 HU; in an atlas of 2.8 x 2.8 x 3.8 mm as published.
    preparation={
        "shape": (192, 192, 256),
        "spacing_mm": (2.8, 2.8, 3.8),
        "intensity": "windows",
        "windows": ((600.0, 0.0),),
    },
)
