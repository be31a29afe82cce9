"""What this machine has and what Verimorph makes of it: facts for a bug report and for choosing ``--device``.

It only looks; it computes nothing and changes no setting.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from verimorph.memory import memory

# Extra -> what it is for and the packages it brings, under the names they are imported by.
EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "formats": ("X5 transforms", {"nitransforms": "nitransforms", "h5py": "h5py"}),
    "demo": ("the template brain of `verimorph demo`", {"nilearn": "nilearn"}),
    "train": (
        "training, and networks with Swin blocks",
        {"monai": "monai", "lightning-fabric": "lightning_fabric", "tensorboard": "tensorboard", "pyyaml": "yaml"},
    ),
    "export": ("ONNX files", {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}),
    "dev": ("tests, linter and type checker", {"pytest": "pytest", "hypothesis": "hypothesis", "ruff": "ruff"}),
    "docs": ("this documentation, built", {"mkdocs-material": "material", "mkdocstrings": "mkdocstrings"}),
}

_CORE = (
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "numba",
    "matplotlib",
    "jinja2",
    "pydantic",
    "typer",
    "rich",
    "safetensors",
    "jaxtyping",
)


def examine() -> dict[str, Any]:
    """Return what this machine has, as a dictionary that JSON can hold.

    Returns
    -------
    dict
        ``verimorph``, ``python``, ``system`` (strings); ``devices`` (list of name, description, memory in bytes or
        None); ``threads`` (usable, torch, numba); ``memory`` (total and available bytes, None where unknown);
        ``kernels`` (back end in use, numba's threading layer, why not numba); ``extras``; ``packages``; ``browser``;
        ``problems``, a list of lines that each say what is wrong and what to do.
    """
    problems: list[str] = []
    packages = {name: _version(name) for name in _CORE}
    facts: dict[str, Any] = {
        "verimorph": _version("verimorph"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {_processor()}",
        "devices": _devices(problems),
        "threads": _threads(),
        "memory": memory(),
        "allocator": _allocator(),
        "kernels": _kernels(problems),
        "extras": {name: _extra(name) for name in EXTRAS},
        "packages": packages,
        "browser": browser(),
    }
    for name, version in packages.items():
        if version is None:
            problems.append(f"{name} is missing; run: pip install verimorph")
    facts["problems"] = problems
    return facts


def browser() -> str | None:
    """Return the path of a Chromium-like browser (the report's test opens pages in it), None if there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _devices(problems: list[str]) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [{"name": "cpu", "description": _processor(), "memory": memory()["total"]}]
    try:
        import torch
    except Exception as error:
        problems.append(f"torch does not import ({error}); run: pip install --force-reinstall torch")
        return devices
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append({"name": f"cuda:{index}", "description": properties.name, "memory": properties.total_memory})
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        problems.append("there is an NVIDIA driver but torch is a CPU build; install a CUDA build of torch to use it")
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "description": "Apple GPU", "memory": None})
    return devices


def _threads() -> dict[str, int | None]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch

        in_torch: int | None = torch.get_num_threads()
    except Exception:
        in_torch = None
    return {"usable": usable, "torch": in_torch}


def _allocator() -> str:
    """Say whether the command line can keep freed memory in the process (glibc only), which spares page faults."""
    if not sys.platform.startswith("linux"):
        return "system default"
    library, version = platform.libc_ver()
    return f"{library} {version}, tuned by the command line" if library == "glibc" else "system default (not glibc)"


def _kernels(problems: list[str]) -> dict[str, str | None]:
    try:
        from verimorph.field.backend import kernels_in_use

        in_use = kernels_in_use()
    except Exception as error:
        problems.append(f"the numerics do not import ({type(error).__name__}: {error}); run: pip install verimorph")
        return {"in_use": None, "threading_layer": None, "reason": str(error)}
    reason = layer = None
    if in_use == "numba":
        layer = _threading_layer()
    elif os.environ.get("VERIMORPH_KERNELS") == "torch":
        reason = "VERIMORPH_KERNELS=torch is set"
    elif util.find_spec("numba") is None:
        reason = "numba is not installed; run: pip install numba"
    else:
        reason = "numba does not import"
    if reason and in_use != "numba":
        problems.append(f"compiled kernels are off ({reason}); registration works, several times slower")
    return {"in_use": in_use, "threading_layer": layer, "reason": reason}


def _threading_layer() -> str:
    """Return the threading layer numba will pick: the first of its preference list that loads."""
    from numba import config

    if config.THREADING_LAYER not in ("default", "safe", "threadsafe", "forksafe"):
        return str(config.THREADING_LAYER)
    for layer, module in (("tbb", "tbbpool"), ("omp", "omppool"), ("workqueue", "workqueue")):
        try:
            __import__(f"numba.np.ufunc.{module}")
        except ImportError:
            continue
        return layer
    return "none"


def _extra(name: str) -> dict[str, Any]:
    purpose, packages = EXTRAS[name]
    versions = {package: _version(package) for package in packages}
    missing = [package for package, module in packages.items() if util.find_spec(module) is None]
    return {
        "purpose": purpose,
        "packages": versions,
        "installed": not missing,
        "install": f"pip install 'verimorph[{name}]'",
    }
