"""Published methods of learned registration: one file each, composed of the parts in ``verimorph.nn``.

`METHODS` is the table: name -> module. A module is imported when its method is asked for and holds `METHOD`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from verimorph.errors import OptionError, nearest
from verimorph.methods.method import Citation, Method, Published, Variant

#: Name on the command line -> module of this package.
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "voxelmorph": "voxelmorph",
        "voxelmorph-diff": "voxelmorph_diff",
        "transmorph": "transmorph",
        "transmorph-uncertainty": "transmorph_uncertainty",
        "lku-net": "lku_net",
        "modet": "modet",
        "estienne": "estienne",
        "estienne-segmentation": "estienne_segmentation",
    }
)


def method(name: str) -> Method:
    """Return a method by name.

    Raises
    ------
    OptionError
        For an unknown name; the nearest known one is named.
    """
    if name not in METHODS:
        raise OptionError(f"unknown method '{name}'{nearest(name, METHODS)} (see 'verimorph methods')")
    return import_module(f"verimorph.methods.{METHODS[name]}").METHOD


__all__ = ["METHODS", "Citation", "Method", "Published", "Variant", "method"]
