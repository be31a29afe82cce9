"""Nested results as JSON files, the only writer of them; what they mean is said where they are made."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from verimorph.io.safe import replacing


def without_nan(value: Any) -> Any:
    """Make a nested result strictly JSON-able: NaN and infinite become ``None``, NumPy scalars plain, keys strings."""
    if isinstance(value, dict):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(document: Any, path: str | os.PathLike) -> None:
    """Write a nested result as JSON, whole or not at all; what is no number is ``null`` there."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(without_nan(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")


__all__ = ["without_nan", "write_json"]
