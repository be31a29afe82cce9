"""Layout of the development sets: files side by side, ``manifest.csv`` lists them, ``pairs.csv`` recommended pairs."""

from __future__ import annotations

from pathlib import Path

from verimorph.data.cases import Pair, require_files
from verimorph.io.pairs import read_table


def manifest(root: Path, name: str) -> list[str]:
    """File names that the manifest lists."""
    file = root / "manifest.csv"
    require_files([file], name)
    return [row["file"] for row in read_table(file)[0] if row.get("file")]


def recommended(root: Path, name: str, suffix: str) -> tuple[Pair, ...]:
    """Pairs of ``pairs.csv``, as ids: file names without ``suffix``."""
    file = root / "pairs.csv"
    require_files([file], name)
    return tuple((row["fixed"].removesuffix(suffix), row["moving"].removesuffix(suffix)) for row in read_table(file)[0])
