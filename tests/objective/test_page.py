"""The page of measures names every term of the table, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from verimorph.objective import TERMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measures.md"


def test_every_term_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert sorted(rows) == sorted(TERMS)
