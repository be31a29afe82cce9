"""Medical image registration that says how sure it is.

The names below are the public interface. Each is loaded when first used, so that ``import verimorph`` costs nothing:

>>> import verimorph
>>> grid = verimorph.Grid((64, 64, 40))
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# torch and the compiled kernels each keep a pool of OpenMP threads. While one works, the idle threads of the other
# would spin on the same cores: ten times the seconds on small images. Heeded only before an OpenMP library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Public name -> the module that holds it. No public name is also the name of a module of this package: importing such
# a module would put the module where the function belongs.
_HOME = {
    "register": "verimorph.registration",
    "Registration": "verimorph.registration",
    "apply": "verimorph.carry",
    "Grid": "verimorph.grid",
    "Image": "verimorph.image",
    "read_image": "verimorph.io",
    "write_image": "verimorph.io",
    "read_points": "verimorph.io",
    "write_points": "verimorph.io",
    "read_transform": "verimorph.io",
    "write_transform": "verimorph.io",
    "Points": "verimorph.io",
    "VerimorphError": "verimorph.errors",
    "VerimorphWarning": "verimorph.errors",
}

__all__ = [
    "Grid",
    "Image",
    "Points",
    "Registration",
    "VerimorphError",
    "VerimorphWarning",
    "__version__",
    "apply",
    "read_image",
    "read_points",
    "read_transform",
    "register",
    "write_image",
    "write_points",
    "write_transform",
]

if TYPE_CHECKING:
    from verimorph.carry import apply
    from verimorph.errors import VerimorphError, VerimorphWarning
    from verimorph.grid import Grid
    from verimorph.image import Image
    from verimorph.io import (
        Points,
        read_image,
        read_points,
        read_transform,
        write_image,
        write_points,
        write_transform,
    )
    from verimorph.registration import Registration, register


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use, or a submodule such as ``verimorph.transform``."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    from verimorph.errors import nearest

    raise AttributeError(f"verimorph has no {name!r}{nearest(name, _HOME)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
