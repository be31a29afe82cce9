"""OASIS-1 as preprocessed with FreeSurfer and SAMSEG for HyperMorph: 414 T1 brains, 35 structures."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, proportional_splits
from verimorph.data.adapters.brain_labels import OASIS_35, swaps_by_name
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source


def read(root: Path) -> Dataset:
    """``OASIS_OAS1_NNNN_MR1/aligned_norm.nii.gz`` and ``aligned_seg35.nii.gz``; listed in ``subjects.txt`` if there."""
    listed = root / "subjects.txt"
    ids = listed.read_text(encoding="utf-8").split() if listed.is_file() else None
    ids = ids or [folder.name for folder in sorted(root.glob("OASIS_*")) if folder.is_dir()]
    if not ids:
        require_files([root / "subjects.txt"], "neurite_oasis")
    cases = tuple(
        Case(
            id=id,
            images=(Source(root / id / "aligned_norm.nii.gz"),),
            labels=Source(root / id / "aligned_seg35.nii.gz"),
            subject=id.rsplit("_MR", 1)[0],
        )
        for id in ids
    )
    # No split was published with the files; subjects here have one scan each.
    splits = proportional_splits(ids, {"train": 0.8, "validation": 0.1, "test": 0.1})
    return Dataset("neurite_oasis", cases, OASIS_35, splits, {}, swaps_by_name(OASIS_35))


ADAPTER = Adapter(
    name="neurite_oasis",
    summary="T1 brains between subjects, 35 structures",
    obtain="obtain neurite-oasis.v1.0.tar from the neurite-oasis repository and unpack it here",
    licence="OASIS data use agreement",
    read=read,
    # The files hold 160 x 192 x 224 voxels from right to left, top to bottom, back to front.
    preparation={"shape": (160, 224, 192), "spacing_mm": 1.0, "intensity": "minmax"},
)
