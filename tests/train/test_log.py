"""The tables of a run: what comes later, a column or a run that goes on, keeps what is there."""

from __future__ import annotations

import csv

from verimorph.train.log import Table


def rows(path):
    with path.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_a_new_column_keeps_the_rows_before_it(tmp_path):
    table = Table(tmp_path / "log.csv", ["step", "total"])
    table.add({"step": 1, "total": 0.1 + 0.2})
    table.add({"step": 2, "total": 0.5, "mae": 0.25})
    table.add({"step": 3, "mae": 0.125})
    found = rows(tmp_path / "log.csv")
    assert [row["mae"] for row in found] == ["", "0.25", "0.125"]
    assert float(found[0]["total"]) == 0.1 + 0.2
    again = Table(tmp_path / "log.csv", ["step", "lr"], after=2)
    assert again.columns == ["step", "lr", "total", "mae"]
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1", "2"]
    Table(tmp_path / "log.csv", ["step"])
    assert rows(tmp_path / "log.csv") == []
