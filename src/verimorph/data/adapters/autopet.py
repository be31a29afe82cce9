"""AutoPET (MICCAI 2022 and since): whole-body CT (and PET) of one study each, onto an atlas."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, folder_with, splits_by_subject
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source


def read(root: Path, *, labels: str = "labels.nii.gz", pet: bool = False) -> Dataset:
    """``PETCT_*/STUDY/CTres.nii.gz`` and ``SUV.nii.gz`` (second channel with ``pet``), or the layout since 2024.

    That is ``imagesTr/TRACER_PATIENT_STUDY_0000.nii.gz`` (CT) and ``..._0001.nii.gz`` (PET), TRACER fdg or psma.

    ``labels`` is the name, in the folder of a study, of an organ map made with TotalSegmentator; in the layout since
    2024 without its suffix the name of a folder of maps ``TRACER_PATIENT_STUDY.nii.gz`` beside ``imagesTr``. AutoPET
    itself outlines lesions alone, which are no landmarks of registration.
    """
    base = folder_with(root, "imagesTr")
    if (base / "imagesTr").is_dir():
        cases = _of_2024(base, labels.removesuffix(".nii.gz"), pet=pet)
    else:
        cases = _of_2022(folder_with(root, "PETCT_*"), labels, pet=pet)
    splits = splits_by_subject(cases, {"train": 0.7, "validation": 0.1, "test": 0.2})
    return Dataset("autopet", tuple(cases), splits=splits)


def _of_2022(base: Path, labels: str, *, pet: bool) -> list[Case]:
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
    return cases


def _of_2024(base: Path, labels: str, *, pet: bool) -> list[Case]:
    folder = base / "imagesTr"
    ids = [file.name.removesuffix("_0000.nii.gz") for file in sorted(folder.glob("*_0000.nii.gz"))]
    if not ids:
        require_files([folder / "*_0000.nii.gz"], "autopet")
    cases = []
    for id in ids:
        tracer, patient = id.split("_")[0], "_".join(id.split("_")[:2])
        organs = base / labels / f"{id}.nii.gz"
        cases.append(
            Case(
                id=id,
                images=tuple(Source(folder / f"{id}_{n:04d}.nii.gz") for n in ((0, 1) if pet else (0,))),
                labels=Source(organs) if organs.is_file() else None,
                subject=patient,
                cohort=tracer,
            )
        )
    return cases


ADAPTER = Adapter(
    name="autopet",
    summary="whole-body CT and PET between patients",
    obtain="obtain FDG-PET-CT-Lesions or PSMA-FDG-PET-CT-Lesions (NIfTI) from FDAT Tuebingen and unpack it here",
    licence="as its page at FDAT or The Cancer Imaging Archive says",
    read=read,
    # -300 to 300 HU; in an atlas of 2.8 x 2.8 x 3.8 mm as published.
    preparation={
        "shape": (192, 192, 256),
        "spacing_mm": (2.8, 2.8, 3.8),
        "intensity": "windows",
        "windows": ((600.0, 0.0),),
    },
)
