"""Paths as people write them in recipes and on cards, with variables in them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from verimorph.errors import OptionError

BESIDE = Path("../shared/data")
"""Where data sets lie if ``VERIMORPH_DATA`` does not say it and this folder is there, as beside a checkout."""


def expand(path: str) -> Path:
    """Put variables into a path: ``$NAME``, ``${NAME}``, ``~``.

    ``${VERIMORPH_DATA}`` is the folder that holds data sets.

    Raises
    ------
    OptionError
        For a variable that is not set.
    """
    known = {**({"VERIMORPH_DATA": str(BESIDE)} if BESIDE.is_dir() else {}), **os.environ}

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in known:
            raise OptionError(
                f"{path}: the environment variable {name} is not set; "
                "set it, or write the path out (of a data set: --root)"
            )
        return known[name]

    return Path(os.path.expanduser(re.sub(r"\$(?:(\w+)|\{([^}]*)\}?)", value, path)))


__all__ = ["BESIDE", "expand"]
