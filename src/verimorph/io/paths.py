"""Paths as people write them in recipes and on cards, with variables in them."""

from __future__ import annotations

import os
from pathlib import Path

from verimorph.errors import OptionError

BESIDE = Path("../shared/data")
"""Where data sets lie if ``VERIMORPH_DATA`` does not say it and this folder is there, as beside a checkout."""


def expand(path: str) -> Path:
    """Put variables into a path: ``${NAME}``, ``~``. ``${VERIMORPH_DATA}`` is the folder that holds data sets.

    Raises
    ------
    OptionError
        For a variable that is not set.
    """
    if "VERIMORPH_DATA" not in os.environ and BESIDE.is_dir():
        path = path.replace("${VERIMORPH_DATA}", str(BESIDE))
    done = os.path.expanduser(os.path.expandvars(path))
    if "${" in done:
        name = done.partition("${")[2].partition("}")[0]
        raise OptionError(
            f"{path}: the environment variable {name} is not set; set it, or write the path out (of a data set: --root)"
        )
    return Path(done)


__all__ = ["BESIDE", "expand"]
