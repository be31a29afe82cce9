"""What a run leaves behind while it goes: CSV tables, TensorBoard scalars and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy import ndarray

from verimorph.io.safe import replacing


class Table:
    """A CSV file that grows by a row at a time; numbers are written so that reading gives the same bits.

    Parameters
    ----------
    path
        Of the file.
    columns
        ``step`` first. A row may lack some.
    after
        Rows of later steps are dropped first: a resumed run writes them again. None: the file starts anew.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, after: int | None = None) -> None:
        self.path, self.columns = path, list(columns)
        self._begin(after)

    def _begin(self, after: int | None) -> None:
        """Write the head anew, and below it the rows up to a step that are there."""
        kept: list[dict[str, str]] = []
        if after is not None and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self.columns += [name for name in reader.fieldnames or () if name not in self.columns]
                kept = [row for row in reader if row["step"] and row["step"].isdigit() and int(row["step"]) <= after]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        with replacing(self.path) as beside:
            beside.write_text(text.getvalue(), encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; a new column rewrites the file's head."""
        if more := [name for name in row if name not in self.columns]:
            self.columns += more
            self._begin(after=int(row["step"]))
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self.columns, lineterminator="\n").writerow(row)


class Board:
    """TensorBoard's event files; does nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, *, purge: int | None = None, enabled: bool = True) -> None:
        self._writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, front: str, values: Mapping[str, float], step: int) -> None:
        """Numbers under ``front/name``."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{front}/{name}", value, step)

    def pictures(self, pictures: Mapping[str, ndarray], step: int) -> None:
        """Grey pictures (rows, columns) with values in [0, 1]."""
        if self._writer is not None:
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, step, dataformats="HW")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


__all__ = ["Board", "Table"]
