"""IXI as preprocessed for TransMorph: 576 T1 brains and one atlas, 160 x 192 x 224, 30 structures scored."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.adapters.adapter import Adapter
from verimorph.data.adapters.brain_labels import FREESURFER_30, swaps_by_name
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source


def read(root: Path) -> Dataset:
    """``{Train,Val,Test}/subject_N.pkl`` and ``atlas.pkl``, each (image, labels); pairs have the atlas moving."""
    base = root / "IXI_data" if (root / "IXI_data").is_dir() else root
    atlas = base / "atlas.pkl"
    found = {split: sorted((base / folder).glob("*.pkl"), key=lambda file: (len(file.name), file.name))
             for split, folder in (("train", "Train"), ("validation", "Val"), ("test", "Test"))}  # fmt: skip
    require_files([atlas, *(base / f for f in ("Train", "Val", "Test"))], "ixi")
    files = [atlas, *(file for listed in found.values() for file in listed)]
    cases = [Case(id=file.stem, images=(Source(file, 0),), labels=Source(file, 1), subject=file.stem) for file in files]
    splits = {split: tuple(file.stem for file in listed) for split, listed in found.items() if listed}
    pairs = {split: tuple((id, "atlas") for id in ids) for split, ids in splits.items()}
    return Dataset("ixi", tuple(cases), FREESURFER_30, splits, pairs, swaps_by_name(FREESURFER_30), units="voxel")


ADAPTER = Adapter(
    name="ixi",
    summary="T1 brains onto one atlas, 403/58/115 subjects",
    obtain="obtain it by the link on the IXI page of the TransMorph repository (IXI_data.zip) and unpack it here",
    licence="CC BY-SA 3.0 (IXI)",
    read=read,
    preparation={"shape": (160, 192, 224), "spacing_mm": None, "intensity": "none"},
)
