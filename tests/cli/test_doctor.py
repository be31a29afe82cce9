"""``verimorph doctor`` says what is there, and what to install where something is not."""

from __future__ import annotations

import json
from importlib import metadata

import verimorph.doctor as doctor
import verimorph.memory as memory


def test_json_holds_what_a_bug_report_needs(verimorph):
    outcome = verimorph("doctor", "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert facts["packages"]["numpy"] == metadata.version("numpy")
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["threads"]["usable"] >= 1
    assert facts["kernels"]["in_use"] in ("numba", "torch")
    assert facts["problems"] == []


def test_table_names_every_part(verimorph):
    outcome = verimorph("doctor")
    assert outcome.code == 0
    for word in ("Device cpu", "Memory", "Threads", "Kernels", "Allocator", "Extra formats", "torch"):
        assert word in outcome.out


def test_missing_extra_says_which_install_brings_it(verimorph, monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "formats", ("foreign transforms", {"absent": "a_module_that_is_not_there"}))
    outcome = verimorph("doctor")
    assert "pip install 'verimorph[formats]'" in " ".join(outcome.out.split())


def test_kernels_switched_off_are_a_problem_with_its_reason(verimorph, monkeypatch):
    monkeypatch.setattr("verimorph.field.backend.kernels_in_use", lambda: "torch")
    monkeypatch.setenv("VERIMORPH_KERNELS", "torch")
    facts = json.loads(verimorph("doctor", "--json").out)
    assert "VERIMORPH_KERNELS" in facts["kernels"]["reason"]
    assert any("compiled kernels are off" in problem for problem in facts["problems"])


def test_memory_respects_the_limit_of_a_container(monkeypatch):
    monkeypatch.setattr(memory, "_control_group", lambda: (1_000_000, 400_000))
    assert memory.memory() == {"total": 1_000_000, "available": 600_000}


def test_extras_are_those_of_the_package():
    known = set(metadata.metadata("verimorph").get_all("Provides-Extra") or [])
    assert set(doctor.EXTRAS) == known
