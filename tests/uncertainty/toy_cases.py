"""Cases of a calibration from nothing: random evidence, and errors that follow one of the maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from verimorph.uncertainty.cases import Points
from verimorph.uncertainty.suite import Case, write_case

NAMES = ("forward 1", "backward 1", "stretch")


def case(number: int, kind: str = "toy", factor: float = 1.0) -> Case:
    random = np.random.default_rng(number)
    x = np.exp(random.standard_normal((500, 3)))
    error = factor * x[:, 0] * np.linalg.norm(random.standard_normal((500, 3)), axis=1)
    points = Points(NAMES, x, error, random.random(500) < 0.7, kind, (*(1.0,) * 7, 0.0))
    return Case(f"{kind}-image{number}-0", points, x[:, 1], 1.0)


def real_pair(number: int, factor: float = 3.0, kind: str = "toy-pairs") -> Points:
    """Two people: the images differ so much that all evidence is large; errors follow the third map alone."""
    random = np.random.default_rng(number)
    x = np.exp(2 + random.standard_normal((600, 3)))
    error = factor * np.sqrt(x[:, 2]) * np.abs(random.standard_normal(600))
    images = (f"a{number}", f"b{number}")
    return Points(NAMES, x, error, np.ones(600, bool), kind, (*(1.0,) * 6, 3.0, 1.0), images)


def kept(folder: Path, kind: str, *images: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    for k, own in enumerate(images):
        one = case(k, kind=kind)
        write_case(replace(one, points=replace(one.points, images=own)), folder / f"{one.name}.npz")
