"""Estimates grow as the work does, and a registration that cannot fit is refused with a way out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from verimorph.errors import ResourceError
from verimorph.grid import Grid
from verimorph.planning import Plan, Work, require_memory
from verimorph.solve.pyramid import level_shape


def plan(side: int = 64, levels=(4, 2, 1), iterations: int = 50, threads: int = 1) -> Plan:
    grid = Grid((side,) * 3)
    steps = [Work("deformable", level, iterations, level_shape(grid, float(level))) for level in levels]
    return Plan(grid, grid, tuple(steps), threads)


def test_estimates_grow_with_the_work():
    assert plan(128).memory_bytes > plan(64).memory_bytes
    assert plan(128).seconds > plan(64).seconds
    assert plan(128, iterations=100).seconds > plan(128, iterations=50).seconds
    assert plan(128, threads=2).seconds < plan(128, threads=1).seconds
    assert plan(128, levels=(8, 4, 2)).memory_bytes < plan(128).memory_bytes
    assert replace(plan(128), channels=12).memory_bytes > plan(128).memory_bytes
    assert replace(plan(128), symmetric=True).seconds > 2 * plan(128).seconds - 10
    assert plan(128).disk_bytes > 128**3 * 32


def test_memory_of_a_brain_is_as_measured():
    # Fixed 162 x 214 x 167, moving 151 x 202 x 163: 1.76 GB at its peak, report included, on Linux.
    fixed, moving = Grid((162, 214, 167)), Grid((151, 202, 163))
    steps = tuple(Work("deformable", level, 50, level_shape(fixed, float(level))) for level in (4, 2, 1))
    assert Plan(fixed, moving, steps).memory_bytes == pytest.approx(1.76e9, rel=0.1)


def test_enough_memory_is_no_obstacle():
    require_memory(plan(), available=64 * 10**9)
    require_memory(plan())


def test_following_the_advice_lowers_the_need():
    large = plan(512)
    with pytest.raises(ResourceError) as caught:
        require_memory(large, available=10**9)
    assert f"{large.memory_bytes / 1e9:.1f} GB" in str(caught.value)
    levels = tuple(map(int, re.search(r"--levels ([0-9x]+)", str(caught.value))[1].split("x")))
    assert plan(512, levels=levels).memory_bytes < large.memory_bytes
