"""Development set: end of diastole and of systole of 10 ACDC patients, three labels, no voxel size; five folds."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.acdc import LABELS
from verimorph.data.adapters.adapter import Adapter, splits_of
from verimorph.data.adapters.development import manifest, recommended
from verimorph.data.cases import Case, Dataset
from verimorph.data.source import Source


def read(root: Path) -> Dataset:
    """``patientNNN_{ed,es}_image.nii.gz`` and ``..._labels.nii.gz``; ids are ``patientNNN_ed``, ``patientNNN_es``."""
    ids = [name.removesuffix("_image.nii.gz") for name in manifest(root, "cardiac_cine_acdc") if "_image" in name]
    cases = tuple(
        Case(
            id,
            (Source(root / f"{id}_image.nii.gz"),),
            Source(root / f"{id}_labels.nii.gz"),
            subject=id.rsplit("_", 1)[0],
            cohort="acdc",
        )
        for id in ids
    )
    splits, pairs = splits_of("cardiac_cine_acdc")
    pairs = {**pairs, "recommended": recommended(root, "cardiac_cine_acdc", "_image.nii.gz")}
    return Dataset("cardiac_cine_acdc", cases, LABELS, splits, pairs, units="voxel")


ADAPTER = Adapter(
    name="cardiac_cine_acdc",
    summary="cardiac cine MR within patients, end of diastole and systole, voxel units",
    obtain="obtain ACDC from CREATIS, laid out as in the page on data",
    licence="CC BY-NC-SA 4.0 (ACDC), for research",
    read=read,
    # Slices are few and thick: an image has 6 to 18 of them.
    preparation={"shape": (128, 128, 16), "spacing_mm": None, "intensity": "percentile"},
)
