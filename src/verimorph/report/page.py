"""Puts a finished registration on one page: a single HTML file that needs no network and no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import ndarray

from verimorph import __version__
from verimorph.field import sample
from verimorph.field.backend import using_threads
from verimorph.io.documents import without_nan
from verimorph.io.safe import replacing
from verimorph.prepare import default_background
from verimorph.report import charts, facts, paint, uncertainty
from verimorph.report.pictures import Painter, Place
from verimorph.report.survey import Survey, coarse
from verimorph.report.view import tilt_degrees
from verimorph.transform import identity

if TYPE_CHECKING:
    import jinja2

    from verimorph.registration import Registration

FEWEST_IN_VIEW = 0.02
FAR_APART_MM = 5.0


def write_report(registration: Registration, path: str | PathLike) -> Path:
    """Write the page of one registration.

    Parameters
    ----------
    registration
        What :func:`verimorph.register` returned.
    path
        The HTML file. It is written beside and renamed, so that a half page never stays behind.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    InputError
        If the place cannot be written to.
    ResourceError
        If the disk is full.
    """
    target = Path(path)
    page = render(registration)
    with replacing(target) as beside:
        beside.write_text(page, encoding="utf-8")
    return target


def render(registration: Registration) -> str:
    """Return the page of one registration as HTML text."""
    with torch.inference_mode(), using_threads(1):
        context = _context(registration)
    context |= {"style": _asset("report.css"), "script": _asset("report.js")}
    return _template().render(context)


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = facts.number
    return environment.get_template("report.html.j2")


def _asset(name: str) -> str:
    return resources.files("verimorph.report").joinpath(name).read_text(encoding="utf-8")


def _context(r: Registration) -> dict[str, Any]:
    tensors = {"fixed": r.fixed.tensor(), "moving": r.moving.tensor(), "moved": r.moved.tensor()}
    survey, start, started_from_header = _survey(r, tensors)
    painter = Painter(r, survey, start, tensors)
    places = list(_places(r, survey, painter))
    measured = facts.gather(r, survey, _labels_before(r, start))
    metrics = without_nan(r.metrics or {})
    tilt = tilt_degrees(r.fixed.grid)
    return {
        "version": __version__,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "fixed": r.fixed,
        "moving": r.moving,
        "three_d": r.fixed.grid.ndim == 3,
        "tilt": tilt if tilt > 1 and r.fixed.grid.ndim == 3 else 0.0,
        "facts": measured,
        "places": places,
        "positions": {view.key: view.position for place in places for view in place.views},
        "scales": painter.scales,
        "gradients": {name: paint.css_gradient(name) for name in ("volume", "error")},
        "start_words": "where its header places it"
        if started_from_header
        else "where the registration started (its header leaves it out of view)",
        "has_labels": bool(measured.labels),
        "has_truth": r.truth is not None,
        "sure": uncertainty.gather(r, survey),
        "charts": charts.convergence(r.history),
        "chart_size": {k: getattr(charts, k) for k in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")},
        "timings": _timings(r.timings),
        "warnings": list(r.warnings),
        "details": [
            ("Settings", list(_flat(without_nan(r.settings or {})))),
            ("Provenance", list(_flat(without_nan(r.provenance or {})))),
        ],
        "metrics_json": json.dumps(metrics, indent=1),
    }


def _survey(r: Registration, tensors: dict[str, torch.Tensor]) -> tuple[Survey, Any, bool]:
    """The coarse lattice, the transform shown as "before", and whether that is the header's own placing."""
    fixed, grid = coarse(tensors["fixed"], r.fixed.grid)
    moving, moving_grid = coarse(tensors["moving"], r.moving.grid)
    after, _ = coarse(tensors["moved"], r.fixed.grid)
    background = default_background(tensors["moving"])
    shape = (1, grid.ndim, *grid.shape)
    points = grid.index_to_world(
        np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, grid.ndim)
    )

    def place(transform: Any) -> tuple[torch.Tensor, bool]:
        mapped = transform.map_points(points)
        index = torch.from_numpy(np.ascontiguousarray(moving_grid.world_to_index(mapped).T, dtype=np.float32))
        in_view = moving_grid.contains(mapped).mean() >= FEWEST_IN_VIEW
        return sample(moving, index.reshape(shape), background=background), bool(in_view)

    start = identity(grid.ndim)
    before, in_view = place(start)
    from_header = in_view or r.initial is None
    if not from_header:
        start = r.initial
        before, _ = place(start)
    return Survey(grid, fixed, before, after, background, r.fixed_mask), start, from_header


def _places(r: Registration, survey: Survey, painter: Painter) -> Iterator[Place]:
    yield painter.place("middle", "Middle", "through the middle of the anatomy in the fixed image", survey.middle)
    shown = [survey.middle]

    def new(point: ndarray) -> bool:
        far = all(np.linalg.norm(point - other) >= FAR_APART_MM for other in shown)
        shown.append(point)
        return far

    if survey.grid.ndim == 3 and new(survey.worst):
        note = "where local correlation is lowest for the amount of structure there: look here first"
        yield painter.place("worst", "Worst residual", note, survey.worst)
    inside = survey.foreground.ravel()
    points = survey.points[inside]
    if r.truth is not None and survey.grid.ndim == 3:
        error = np.linalg.norm(r.transform.map_points(points) - r.truth.map_points(points), axis=1)
        if new(points[error.argmax()]):
            yield painter.place(
                "error",
                "Largest true error",
                "where the found position is furthest from the true one",
                points[error.argmax()],
            )
    if painter.scales.any_folded and survey.grid.ndim == 3:
        folded = np.unravel_index(int(r.jacobian.array.argmin()), r.jacobian.grid.shape)
        point = r.jacobian.grid.index_to_world(np.array(folded))
        if new(point):
            yield painter.place("folded", "Strongest folding", "where the Jacobian determinant is smallest", point)


def _labels_before(r: Registration, start: Any) -> tuple[ndarray, ndarray] | None:
    """Fixed labels and moving labels as ``start`` places them; every second voxel of large images is enough here."""
    fixed, moving = r.fixed_labels, r.moving_labels
    if fixed is None or moving is None:
        return None
    step = tuple(slice(None, None, 2 if fixed.grid.size > 2_000_000 else 1) for _ in fixed.grid.shape)
    thin = fixed.array[step]
    index = np.stack(
        np.meshgrid(
            *[np.arange(n, dtype=np.float64)[s] for n, s in zip(fixed.grid.shape, step, strict=True)], indexing="ij"
        ),
        -1,
    )
    mapped = start.map_points(fixed.grid.index_to_world(index.reshape(-1, fixed.grid.ndim)))
    nearest = np.floor(moving.grid.world_to_index(mapped) + 0.5).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < moving.grid.shape)).all(1)
    placed = np.zeros(len(nearest), dtype=moving.array.dtype)
    placed[inside] = moving.array[tuple(nearest[inside].T)]
    return thin, placed.reshape(thin.shape)


def _timings(timings: dict[str, float]) -> list[dict[str, Any]]:
    total = max(sum(timings.values()), 1e-9)
    return [{"stage": stage, "seconds": s, "percent": 100 * s / total} for stage, s in timings.items()]


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text) lines; short lists stay on one line."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list | tuple) and any(isinstance(v, dict) for v in tree):
        for number, value in enumerate(tree, 1):
            yield from _flat(value, f"{prefix}[{number}]")
    else:
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree)
