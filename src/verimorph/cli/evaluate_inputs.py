"""What the words of ``verimorph evaluate`` mean: result folders, chains of transforms, methods, labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verimorph.errors import InputError, OptionError

if TYPE_CHECKING:
    from verimorph.transform import Transform


def from_result_folder(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what ``verimorph register`` wrote to a folder; options given beside it win."""
    import json

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give what 'verimorph register' wrote with -o")
    found = dict(given)
    for key, names in (("transform", ("transform.h5",)), ("inverse", ("inverse.h5",))):
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if found[key] is None and file is not None:
            found[key] = [file]
    if found["moved_labels"] is None:
        found["moved_labels"] = next(iter(sorted(folder.glob("moved_labels.*"))), None)
    if given["transform"] is None and given["fixed"] is None and (folder / "jacobian.nii.gz").is_file():
        found["jacobian"] = folder / "jacobian.nii.gz"
    if found["transform"] is None and found["moved_labels"] is None:
        raise InputError(f"{folder}: has neither transform.h5 nor moved_labels; give what 'verimorph register' wrote")
    if (folder / "provenance.json").is_file():
        try:
            inputs = json.loads((folder / "provenance.json").read_text(encoding="utf-8")).get("inputs", {})
        except (ValueError, AttributeError):
            raise InputError(f"{folder / 'provenance.json'}: is damaged; register again, or name the files") from None
        for role in ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_landmarks", "moving_landmarks"):
            entry = inputs.get(role)
            path = entry.get("path") if isinstance(entry, dict) else entry
            if found[role] is None and isinstance(path, str) and Path(path.partition("::")[0]).exists():
                found[role] = Path(path)
    if found["fixed_labels"] is None and found["moved_labels"] is not None and given["moved_labels"] is None:
        found["moved_labels"] = None  # nothing to compare them with; the transform is scored all the same
    if found["fixed_labels"] is None:
        found["moving_labels"] = None
    if found["fixed"] is None and "jacobian" in found:
        found["fixed"] = found["jacobian"]
    if (found["fixed_landmarks"] is None) != (found["moving_landmarks"] is None):
        found["fixed_landmarks"] = found["moving_landmarks"] = None
    return found


def read_chain(paths: list[Path] | None, *, fixed: Any, moving: Any) -> Transform | None:
    """Read transforms and compose them; a point goes through the first of the list first."""
    if not paths:
        return None
    from verimorph.io import read_transform
    from verimorph.transform import chain

    return chain([read_transform(path, fixed=fixed, moving=moving) for path in paths])


def name_methods(results: list[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER`` or ``FOLDER`` (called after its last part).

    >>> list(name_methods(["ours=results/a", "results/b"]))
    ['ours', 'b']
    """
    methods: dict[str, Path] = {}
    for text in results:
        name, sign, folder = text.partition("=")
        if not sign or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if name in methods:
            raise OptionError(f"two methods are called '{name}'; name them: {name}={methods[name]} other={folder}")
        methods[name] = Path(folder)
    return methods


def label_list(text: str | None) -> list[int] | None:
    """Read labels and ranges of labels.

    >>> label_list("1,2,5-7")
    [1, 2, 5, 6, 7]
    """
    if text is None:
        return None
    labels: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or int(high or low) < int(low):
            raise OptionError(f"--labels is '{text}'; give whole numbers and ranges, e.g. 1,2,5-9")
        labels += range(int(low), int(high or low) + 1)
    return labels


def read_names(path: Path | None) -> dict[int, str] | None:
    """Read a table of labels: first column (or ``label``) the number, second (or ``name``) the name."""
    if path is None:
        return None
    import csv

    if not path.is_file():
        raise InputError(f"{path}: no such file; give a CSV with the columns label and name")
    with path.open(encoding="utf-8-sig", newline="") as opened:
        rows = [row for row in csv.reader(opened) if row and row[0].strip()]
    names = {
        int(row[0]): (row[1].strip() if len(row) > 1 else "") for row in rows if row[0].strip().lstrip("-").isdigit()
    }
    if not names:
        raise InputError(f"{path}: has no line that starts with a label number; its columns are to be label, name")
    return names
