"""Development set: 11 skull-stripped T1 brains of 10 people (OASIS, MICCAI 2012 labels), five folds by person."""

from __future__ import annotations

import re
from pathlib import Path

from verimorph.data.adapters.adapter import Adapter, splits_of
from verimorph.data.adapters.brain_labels import swaps_by_name
from verimorph.data.adapters.development import manifest, recommended
from verimorph.data.cases import Case, Dataset, require_files
from verimorph.data.source import Source
from verimorph.errors import OptionError, nearest
from verimorph.io.pairs import read_table

#: First and second scan of one person.
SAME_PERSON = {"1023": "1003"}


def read(root: Path, *, labels: str = "all") -> Dataset:
    """``ID_t1_brain.nii.gz`` and ``ID_labels.nii.gz``; names in ``labels.csv``.

    ``labels``: ``all`` (every structure of the table that has a class of tissue) or ``subcortical`` (23 to 62).
    """
    if labels not in ("all", "subcortical"):
        raise OptionError(
            f"data set brain_t1_oasis: labels cannot be '{labels}'{nearest(labels, ['all', 'subcortical'])}"
        )
    table = root / "labels.csv"
    require_files([table], "brain_t1_oasis")
    rows = [(int(row["Label Number"]), row["Label Name"], row["Class"]) for row in read_table(table)[0]]
    # Rows without a class belong to another protocol; number 1 is "unlabeled".
    named = {value: name for value, name, tissue in rows if tissue and value > 1}
    chosen = {value: name for value, name in named.items() if labels == "all" or 23 <= value <= 62}
    ids = [name.removesuffix("_t1_brain.nii.gz") for name in manifest(root, "brain_t1_oasis") if "_t1_brain" in name]
    cases = tuple(
        Case(
            id,
            (Source(root / f"{id}_t1_brain.nii.gz"),),
            Source(root / f"{id}_labels.nii.gz"),
            subject=SAME_PERSON.get(id, id),
        )
        for id in ids
    )
    splits, pairs = splits_of("brain_t1_oasis")
    pairs = {**pairs, "recommended": recommended(root, "brain_t1_oasis", "_t1_brain.nii.gz")}
    return Dataset("brain_t1_oasis", cases, chosen, splits, pairs, _swaps(chosen))


def _swaps(names: dict[int, str]) -> tuple[tuple[int, int], ...]:
    """Left and right, written out or as the first letter of a parcel's name."""
    parcels = tuple((v + 1, v) for v in names if v >= 100 and v % 2 == 0 and v + 1 in names)
    return swaps_by_name({v: re.sub(r"\s+", " ", n) for v, n in names.items() if v < 100}) + parcels


ADAPTER = Adapter(
    name="brain_t1_oasis",
    summary="T1 brains between subjects, about 139 labels, five folds by person",
    obtain="obtain images and labels of the MICCAI 2012 multi-atlas challenge, laid out as in the page on data",
    licence="CC BY-NC (Neuromorphometrics labels, OASIS images)",
    read=read,
    # Brains reach 97 mm to the front or back of their intensity centre, 75 mm elsewhere.
    preparation={"shape": (80, 112, 80), "spacing_mm": 2.0, "intensity": "percentile", "centre": "mass"},
)
