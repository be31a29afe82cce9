"""What is shipped: pins that any machine can use, light imports, public names that stay callables."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import verimorph

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_constraints_bind_no_machine():
    for line in PINS:
        requirement = line.split(";")[0].strip()
        assert "://" not in line, f"an address: {line}"
        assert not line.startswith("-"), f"an option of pip: {line}"
        assert not re.search(r"(^|[\s@])[./~\\]", line), f"a path: {line}"
        assert "+" not in requirement, f"a local version, which other machines do not have: {line}"
        assert "--hash" not in line, f"a hash, which refuses other builds: {line}"
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", requirement), f"not a pin: {line}"


def test_constraints_pin_every_direct_dependency():
    pinned = {line.split("==")[0] for line in PINS}
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")
        assert name in pinned or name == "verimorph", f"{name} is in pyproject.toml but not in constraints.txt"


def test_dependencies_have_no_upper_bound():
    for requirement in PROJECT["dependencies"]:
        assert not re.search(r"<|==|~=", requirement), (
            f"an upper bound breaks other people's environments: {requirement}"
        )


def test_import_is_light():
    code = (
        "import time\nstart = time.process_time()\nimport verimorph\nspent = time.process_time() - start\n"
        "import sys\nprint(spent, [m for m in ('torch', 'numpy', 'nibabel', 'typer') if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split(maxsplit=1) for run in runs), strict=True)
    assert min(map(float, seconds)) < 0.05
    assert set(loaded) == {"[]\n"}


@pytest.mark.parametrize("name", [name for name in verimorph.__all__ if name != "__version__"])
def test_public_names_resolve(name):
    assert callable(getattr(verimorph, name))
    assert name in dir(verimorph)


def test_public_functions_are_not_hidden_by_modules():
    # `import a.b` binds b in a: a module named like a public function would take its place.
    code = (
        "import verimorph.registration, verimorph.cli.register, verimorph.cli.apply, verimorph.io, verimorph.carry\n"
        "print(callable(verimorph.register), callable(verimorph.apply))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_no_module_is_named_like_a_public_name():
    modules = {path.stem for path in (ROOT / "src" / "verimorph").iterdir()}
    assert not modules & set(verimorph.__all__)


def test_unknown_name_says_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'register'"):
        verimorph.regster  # noqa: B018


def test_submodules_are_reachable_by_name():
    code = "import verimorph\nprint(verimorph.errors.nearest('a', ['ab']), verimorph.grid.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "verimorph.grid" in done.stdout
