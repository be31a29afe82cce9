"""One environment a peer, made on demand: peers pin versions that contradict each other and ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from verimorph.errors import InputError, OptionError, nearest

# Versions are exact: a table is only worth as much as it says what was run.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "ants": ("antspyx==0.6.3",),
    "greedy": ("picsl_greedy==1.4.0.3", "SimpleITK==2.5.7", "numpy==2.4.6"),
    "elastix": ("SimpleITK-SimpleElastix==3.0.0a1.post183",),
    "sitk_demons": ("SimpleITK==2.5.7", "numpy==2.4.6"),
    "dipy": ("dipy==1.12.1", "SimpleITK==2.5.7"),
    "convexadam": ("convexAdam==0.2.0", "torch==2.13.0", "picsl_greedy==1.4.0.3", "SimpleITK==2.5.7"),
}
_STAMP = "environment.json"


def check_name(name: str) -> str:
    """Return ``name`` if there is an environment of that name, else say which is nearest."""
    if name not in ENVIRONMENTS:
        raise OptionError(f"'{name}' has no environment{nearest(name, ENVIRONMENTS)}")
    return name


def interpreter(name: str, folder: str | Path) -> Path | None:
    """Return the Python of the environment ``name`` below ``folder``; None if it has not been set up as it is now."""
    place = Path(folder) / name
    try:
        made = json.loads((place / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    python = _python(place)
    return python if python.exists() and made.get("requirements") == list(ENVIRONMENTS[name]) else None


def set_up(
    name: str, folder: str | Path, *, python: str = sys.executable, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Make the environment ``name`` below ``folder`` and return its Python; nothing is done if it is there already.

    An environment that was left half made, or was made for other versions, is made anew.

    Raises
    ------
    InputError
        If it cannot be made; the message has the last line of the tool that failed.
    """
    ready = interpreter(check_name(name), folder)
    if ready is not None:
        return ready
    place = Path(folder) / name
    shutil.rmtree(place, ignore_errors=True)
    requirements = list(ENVIRONMENTS[name])
    say(f"{name}: installing {', '.join(requirements)}")
    _run([python, "-m", "venv", str(place)], name)
    install = [str(_python(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    _run(install, name)
    frozen = _run([str(_python(place)), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], name)
    stamp = {"requirements": requirements, "installed": frozen.split()}
    (place / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    return _python(place)


def _python(place: Path) -> Path:
    return place.absolute() / "bin" / "python"


def _run(command: list[str], name: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"environment {name}: {command[0]} cannot be started ({error.strerror})") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no message"]
        raise InputError(f"environment {name}: {' '.join(command[1:4])} failed: {lines[-1].strip()}")
    return done.stdout
