"""An environment is made once, again when its versions change, and a half-made one is not taken for whole."""

from __future__ import annotations

import json

import pytest

from verimorph.bench import environments
from verimorph.errors import InputError, OptionError


@pytest.fixture
def local(monkeypatch):
    """Stand in for the package index: an environment without packages."""
    monkeypatch.setitem(environments.ENVIRONMENTS, "greedy", ())
    steps = []

    def run(command, name):
        steps.append(command)
        if "venv" in command:
            python = environments._python(environments.Path(command[-1]))
            python.parent.mkdir(parents=True)
            python.write_text("")
        return "pip==1\n"

    monkeypatch.setattr(environments, "_run", run)
    return steps


def test_made_once_and_again_when_versions_change(local, tmp_path, monkeypatch):
    assert environments.interpreter("greedy", tmp_path) is None
    python = environments.set_up("greedy", tmp_path)
    assert environments.interpreter("greedy", tmp_path) == python
    count = len(local)
    environments.set_up("greedy", tmp_path)
    assert len(local) == count
    monkeypatch.setitem(environments.ENVIRONMENTS, "greedy", ("picsl_greedy==9",))
    assert environments.interpreter("greedy", tmp_path) is None
    environments.set_up("greedy", tmp_path)
    assert json.loads((tmp_path / "greedy" / "environment.json").read_text())["requirements"] == ["picsl_greedy==9"]


def test_a_half_made_environment_does_not_count(local, tmp_path):
    python = environments.set_up("greedy", tmp_path)
    (tmp_path / "greedy" / "environment.json").unlink()
    assert python.exists()
    assert environments.interpreter("greedy", tmp_path) is None


def test_mistakes_are_named(tmp_path):
    with pytest.raises(OptionError, match="did you mean 'greedy'"):
        environments.set_up("gredy", tmp_path)
    with pytest.raises(InputError, match="environment greedy"):
        environments.set_up("greedy", tmp_path, python="/no/python")


def test_every_version_is_exact():
    assert all("==" in line for lines in environments.ENVIRONMENTS.values() for line in lines)


def test_who_needs_numpy_has_it():
    """SimpleITK alone brings none, and says so only where an array is asked for: in deformable cases."""
    scripts = environments.Path(environments.__file__).parent / "peers"
    brings = ("numpy", "antspyx", "dipy", "convexAdam")
    for name, requirements in environments.ENVIRONMENTS.items():
        for script in scripts.glob(f"{name}*.py"):
            text = script.read_text(encoding="utf-8")
            if "import numpy" in text or "GetArray" in text:
                assert any(requirement.startswith(brings) for requirement in requirements), script.name
