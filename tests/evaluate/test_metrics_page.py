"""The example of docs/metrics.md is what the code computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_table_of_differences_on_the_page_is_the_computed_one():
    specification = importlib.util.spec_from_file_location("metrics_example", DOCS / "metrics_example.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert module.written(page, module.table()) == page, "run: python docs/metrics_example.py --write"
