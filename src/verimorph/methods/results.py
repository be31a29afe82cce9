"""Our own figures of trained models, as measured: rows that a command writes (``verimorph methods --record``).

`RESULTS` is packaged. A row says what was trained, on what it was scored, by whom the scores were made, and the hash of
the weights, so that every figure can be traced to one model.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from verimorph.errors import InputError
from verimorph.methods.card import Card

RESULTS = Path(__file__).with_name("results.json")
_OF_ONE_LABEL = re.compile(r"dice_\d+")


@dataclass(frozen=True)
class Row:
    """One trained model, scored.

    Attributes
    ----------
    method, variant
        What was trained.
    title
        Of the experiment: ``all labels``, ``scarce labels``, ``with --refine 20``.
    data
        What it was scored on.
    measures
        Means over pairs, by name.
    pairs
        How many were scored.
    steps, parameters, weights_sha256, trained_on
        Off the model's card.
    """

    method: str
    data: str
    measures: Mapping[str, float] = field(default_factory=dict)
    variant: str | None = None
    title: str = ""
    pairs: int | None = None
    steps: int | None = None
    parameters: int | None = None
    trained_on: str = ""
    weights_sha256: str = ""

    @property
    def key(self) -> tuple[str, str | None, str, str]:
        """A later row of the same key takes the place of an earlier one."""
        return (self.method, self.variant, self.title, self.data)


def read_results(path: str | os.PathLike = RESULTS) -> list[Row]:
    """All rows; none where the file is not there."""
    file = Path(path)
    if not file.is_file():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [Row(**row) for row in rows]
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{file}: is no table of results ({error}); restore it") from None


def record(row: Row, path: str | os.PathLike = RESULTS) -> None:
    """Add a row, or put it in the place of the one with the same method, variant, title and data."""
    from verimorph.io.documents import write_json

    rows = [old for old in read_results(path) if old.key != row.key] + [row]
    rows.sort(key=lambda one: (one.method, one.data, one.title, one.variant or ""))
    write_json([asdict(one) for one in rows], path)


def row_of(card: Card, scores: Mapping[str, float], *, data: str, title: str = "", pairs: int | None = None) -> Row:
    """A row from a model's card and the mean scores of its predictions."""
    return Row(
        method=card.method,
        variant=card.variant,
        title=title,
        data=data,
        measures={name: float(value) for name, value in scores.items()},
        pairs=pairs,
        steps=card.steps,
        parameters=card.parameters,
        trained_on=card.training_data.name,
        weights_sha256=card.weights_sha256 or "",
    )


def scores_of(folder: str | os.PathLike, card: Card) -> tuple[dict[str, float], int]:
    """Mean scores, and how many pairs, of what ``verimorph predict`` wrote for many pairs by a model (``pairs.csv``).

    Scores of single labels are left out: brains have 132 of them.

    Raises
    ------
    InputError
        If there is no such table, a pair in it failed (a mean without it would flatter), or is by another model.
    """
    from verimorph.predict.many import means
    from verimorph.predict.pair import short_hash

    table = Path(folder) / "pairs.csv"
    if not table.is_file():
        raise InputError(f"{table}: is not there; give a folder that 'verimorph predict' filled from many pairs")
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    failed = [row.get("case", "?") for row in rows if row.get("status", "ok") != "ok"]
    if failed or not rows:
        raise InputError(f"{table}: {', '.join(failed[:3]) or 'no pair'} was not predicted; predict all pairs first")
    ours = short_hash(card.weights_sha256)
    others = [row.get("case", "?") for row in rows if row.get("model") != ours]
    if others:
        raise InputError(
            f"{table}: {', '.join(others[:3])} is not known to be by the model of these weights ({ours}); "
            "predict all pairs by it: those that are there are passed over"
        )
    kept = [{key: value for key, value in row.items() if value and not _OF_ONE_LABEL.fullmatch(key)} for row in rows]
    return means(kept), len(rows)


__all__ = ["RESULTS", "Row", "read_results", "record", "row_of", "scores_of"]
