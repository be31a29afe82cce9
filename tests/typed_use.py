"""A user's program as a type checker sees it: never run, checked by mypy (``make types``).

Every value is annotated with the type that the documentation promises, so a change of the public interface shows here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import verimorph
from verimorph.solve import Event
from verimorph.transform import Transform


def watch(event: Event) -> None:
    print(f"{event.stage} {event.level} {event.iteration}/{event.iterations} {event.value:.3f} {event.fraction:.0%}")


def align(fixed: Path, moving: Path, folder: Path) -> verimorph.Registration:
    result: verimorph.Registration = verimorph.register(
        fixed=fixed, moving=moving, transform="affine", levels=(4, 2), iterations=(50, 20), threads=2, progress=watch
    )
    moved: verimorph.Image = result.moved
    forward: Transform = result.transform
    points: np.ndarray = forward.map_points(np.zeros((1, 3)))
    labels: verimorph.Image | None = result.moved_labels
    written: Path = result.save(folder, both=True)
    page: Path = result.report(folder / "again.html")
    print(moved.grid.spacing, points.shape, labels, written, page, result.metrics["unit"])
    return result


def carry(image: verimorph.Image, marks: verimorph.Points, transform: Transform) -> verimorph.Image:
    carried: verimorph.Image | verimorph.Points = verimorph.apply(marks, transform=transform)
    back: Transform = transform.inverse()
    moved: verimorph.Image = back.resample(image, image.grid, interpolation="labels")
    verimorph.write_transform(back, Path("inverse.h5"))
    verimorph.write_image(moved, Path("moved.nii.gz"))
    print(carried)
    return moved


def refuse(name: str) -> str:
    try:
        grid: verimorph.Grid = verimorph.read_image(name).grid
        return str(grid)
    except verimorph.VerimorphError as error:
        return str(error)
