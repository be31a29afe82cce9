"""Named data sets: one file each, which knows the folders, splits, labels and grey values, and how to obtain the data.

`ADAPTERS` is the table: name -> module of this package, which holds `ADAPTER`. None of the data comes with Verimorph.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from verimorph.data.adapters.adapter import Adapter
from verimorph.errors import OptionError, nearest

#: Name in a recipe -> module of this package.
ADAPTERS: Mapping[str, str] = MappingProxyType(
    {
        "ixi": "ixi",
        "neurite_oasis": "neurite_oasis",
        "l2r_abdomen_ct": "l2r_abdomen_ct",
        "l2r_hippocampus_mr": "l2r_hippocampus_mr",
        "l2r_oasis": "l2r_oasis",
        "l2r_nlst": "l2r_nlst",
        "lumir": "lumir",
        "acdc": "acdc",
        "mnms": "mnms",
        "autopet": "autopet",
        "brats": "brats",
        "lpba40": "lpba40",
        "hippocampus_mr": "hippocampus_mr",
        "brain_t1_oasis": "brain_t1_oasis",
        "cardiac_cine_acdc": "cardiac_cine_acdc",
    }
)


def adapter(name: str) -> Adapter:
    """Return an adapter by name.

    Raises
    ------
    OptionError
        For an unknown name; the nearest known one is named.
    """
    if name not in ADAPTERS:
        raise OptionError(f"unknown data set '{name}'{nearest(name, ADAPTERS)}")
    return import_module(f"verimorph.data.adapters.{ADAPTERS[name]}").ADAPTER


__all__ = ["ADAPTERS", "Adapter", "adapter"]
