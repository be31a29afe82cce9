"""The layers of every picture: what is seen at each place in each plane, as image data and paths for the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from verimorph.field import sample
from verimorph.grid import Grid
from verimorph.report import lines, paint
from verimorph.report import uncertainty as sureness
from verimorph.report.survey import Survey, coarse
from verimorph.report.view import Plane, planes_through

VOLUME_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
PICTURE_FILES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}


@dataclass(frozen=True)
class View:
    """One plane at one place: images as ``data:`` addresses and line drawings as SVG paths, by layer name."""

    key: str
    title: str
    position: str
    columns: int
    rows: int
    width_mm: float
    letters: tuple[str, str, str, str]
    images: dict[str, str]
    paths: dict[str, str]


@dataclass(frozen=True)
class Place:
    """A world point the planes go through, and why."""

    key: str
    title: str
    note: str
    views: list[View]


@dataclass
class Scales:
    """What colours and lines mean."""

    volume_ratio: float = 2.0
    error_mm: float = 1.0
    bound_mm: float = 1.0
    grid_step_mm: float = 10.0
    any_folded: bool = False


@dataclass(eq=False)
class Painter:
    """Samples one registration on planes. Tensors are made once, every picture is a few milliseconds.

    Parameters
    ----------
    registration
        The finished registration.
    survey
        Its coarse lattice.
    start
        Transform shown as "before": identity, or where the registration started if the header leaves no overlap.
    tensors
        ``fixed``, ``moving`` and ``moved`` as float32 tensors ``(1, 1, *shape)``.
    """

    registration: Any
    survey: Survey
    start: Any
    tensors: dict[str, Tensor]
    scales: Scales = field(default_factory=Scales)

    def __post_init__(self) -> None:
        r = self.registration
        self.fixed, self.moving, self.moved = (self.tensors[name] for name in ("fixed", "moving", "moved"))
        self.jacobian = r.jacobian.tensor()
        self.windows = {
            "fixed": _window(self.fixed, r.fixed.grid, self.survey.foreground),
            "moving": _window(self.moving, r.moving.grid, None),
        }
        values = r.jacobian.array[tuple(slice(None, None, 2) for _ in r.jacobian.grid.shape)]
        spread = float(np.percentile(np.abs(np.log(np.clip(values, 1e-6, None))), 99))
        self.scales.volume_ratio = next((v for v in VOLUME_RATIOS if np.log(v) >= spread), VOLUME_RATIOS[-1])
        self.scales.any_folded = bool((r.jacobian.array <= 0).any())
        self.scales.grid_step_mm = lines.nice_step(float(r.fixed.grid.extent.max()))
        if r.truth is not None:
            points = self.survey.points[self.survey.foreground.ravel()]
            error = np.linalg.norm(r.transform.map_points(points) - r.truth.map_points(points), axis=1)
            self.scales.error_mm = max(0.5, float(np.ceil(2 * np.percentile(error, 99)) / 2))
        found = r.uncertainty
        self.bound = None if found is None else (found.error_mm.tensor(), found.error_mm.grid)
        entropy = None if found is None else found.label_uncertainty
        self.entropy = None if entropy is None else (entropy.tensor(), entropy.grid)
        if found is not None:
            points = self.survey.points[self.survey.foreground.ravel()]
            self.scales.bound_mm = sureness.scale_mm(sureness.known_values(found.error_mm, points))
            if r.truth is not None:  # one scale, so that bound and true error can be compared by eye
                self.scales.bound_mm = self.scales.error_mm = max(self.scales.bound_mm, self.scales.error_mm)

    def place(self, key: str, title: str, note: str, point: ndarray) -> Place:
        """Paint all layers of the planes through a world point."""
        r = self.registration
        picture_file = r.fixed.path is None or r.fixed.path.suffix.lower() in PICTURE_FILES
        planes = planes_through(r.fixed.grid, point, as_stored=picture_file)
        return Place(key, title, note, [self._view(plane, key) for plane in planes])

    def _view(self, plane: Plane, key: str) -> View:
        r = self.registration
        background = self.survey.background
        fixed = plane.values(self.fixed, r.fixed.grid)
        after = plane.values(self.moved, r.moved.grid, background=background)
        before = self._through(plane, self.start, background)
        jacobian = plane.values(self.jacobian, r.jacobian.grid, background=1.0)
        images = {
            "fixed": paint.data_uri(paint.grey(fixed, self.windows["fixed"])),
            "before": paint.data_uri(paint.grey(before, self.windows["moving"])),
            "after": paint.data_uri(paint.grey(after, self.windows["moving"])),
            "volume": paint.data_uri(self._volume(plane, jacobian)),
        }
        for when in ("before", "after"):
            images[f"residual-{when}"] = paint.data_uri(self._residual(plane, when))
        if r.truth is not None:
            images["error"] = paint.data_uri(self._error(plane))
        if self.bound is not None:
            images["bound"] = paint.data_uri(self._bound(plane))
        if self.entropy is not None:
            images["label-uncertainty"] = paint.data_uri(self._label_uncertainty(plane))
        paths = {
            "edges-fixed": lines.svg_path(lines.edges(fixed)),
            "edges-before": lines.svg_path(lines.edges(before)),
            "edges-after": lines.svg_path(lines.edges(after)),
            "grid": lines.svg_path(self._grid(plane)),
        } | self._label_paths(plane)
        rows, columns = plane.shape
        return View(
            f"{key}-{plane.name}",
            plane.name.capitalize(),
            plane.position,
            columns,
            rows,
            columns * plane.pixel_mm,
            plane.letters,
            images,
            paths,
        )

    def _through(self, plane: Plane, transform: Any, background: float) -> ndarray:
        """The moving image at the pixels of a plane, carried there by a transform in one interpolation."""
        moving = self.registration.moving
        points = transform.map_points(plane.world.reshape(-1, moving.grid.ndim)).reshape(plane.world.shape)
        return _at(self.moving, moving.grid.world_to_index(points), "linear", background)

    def _volume(self, plane: Plane, jacobian: ndarray) -> ndarray:
        """Colours of log J, faint outside the anatomy where nothing drives it; folded voxels stand out."""
        limit = np.log(self.scales.volume_ratio)
        logarithm = np.log(np.clip(jacobian, 1e-6, None))
        pixels = paint.coloured(logarithm, (-limit, limit), paint.colour_table("volume"))
        opacity = np.where(plane.values(self.survey.body, self.survey.grid) > 0.5, 255, 90)
        pixels[jacobian <= 0] = paint.FOLDED
        opacity[jacobian <= 0] = 255
        return np.dstack([pixels, opacity.astype(np.uint8)])

    def _residual(self, plane: Plane, when: str) -> ndarray:
        """Heat of the residual with matching opacity, to lie over the fixed image."""
        coarse_values = torch.from_numpy(self.survey.residual[when].astype(np.float32))[None, None]
        value = plane.values(coarse_values, self.survey.grid)
        opacity = np.clip(value * 1.5, 0, 0.85)
        heat = paint.coloured(value, (0.0, 1.0), paint.colour_table("residual"))
        return np.dstack([heat, np.round(255 * opacity).astype(np.uint8)])

    def _error(self, plane: Plane) -> ndarray:
        """Distance between found and true position, coloured over the anatomy and transparent elsewhere."""
        r = self.registration
        points = plane.world.reshape(-1, r.fixed.grid.ndim)
        error = np.linalg.norm(r.transform.map_points(points) - r.truth.map_points(points), axis=1)
        heat = paint.coloured(error.reshape(plane.shape), (0.0, self.scales.error_mm), paint.colour_table("error"))
        shown = plane.values(self.survey.body, self.survey.grid) > 0.5
        return np.dstack([heat, np.where(shown, 235, 0).astype(np.uint8)])

    def _bound(self, plane: Plane) -> ndarray:
        """Error bound in the colours of the true error, over the anatomy only; it lets the fixed image through."""
        bound = plane.values(*self.bound)
        heat = paint.coloured(bound, (0.0, self.scales.bound_mm), paint.colour_table("error"))
        shown = (plane.values(self.survey.body, self.survey.grid) > 0.5) & np.isfinite(bound)
        return np.dstack([heat, np.where(shown, 200, 0).astype(np.uint8)])

    def _label_uncertainty(self, plane: Plane) -> ndarray:
        """Entropy of the moved label in the colours of the error; where the label is certain nothing is painted."""
        entropy = np.nan_to_num(plane.values(*self.entropy))
        heat = paint.coloured(entropy, (0.0, sureness.TWO_LABELS), paint.colour_table("error"))
        opacity = np.clip(2 * entropy / sureness.TWO_LABELS, 0, 0.85)
        return np.dstack([heat, np.round(255 * opacity).astype(np.uint8)])

    def _grid(self, plane: Plane) -> list[ndarray]:
        grid = self.registration.fixed.grid
        mapped = self.registration.transform.map_points(plane.world.reshape(-1, grid.ndim)).reshape(plane.world.shape)
        in_plane = [int(np.abs(grid.direction[:, axis]).argmax()) for axis in (plane.right, plane.down)]
        return lines.grid_lines(mapped[..., in_plane], self.scales.grid_step_mm)

    def _label_tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = getattr(self.registration, name).tensor()
        return self.tensors[name]

    def _label_paths(self, plane: Plane) -> dict[str, str]:
        r = self.registration
        if r.fixed_labels is None or r.moved_labels is None:
            return {}
        maps = {
            "labels-fixed": plane.values(self._label_tensor("fixed_labels"), r.fixed_labels.grid, mode="nearest"),
            "labels-after": plane.values(self._label_tensor("moved_labels"), r.moved_labels.grid, mode="nearest"),
        }
        if r.moving_labels is not None:
            points = self.start.map_points(plane.world.reshape(-1, r.fixed.grid.ndim)).reshape(plane.world.shape)
            index = r.moving_labels.grid.world_to_index(points)
            maps["labels-before"] = _at(self._label_tensor("moving_labels"), index, "nearest", 0.0)
        return {name: lines.outlines(values) for name, values in maps.items()}


def _at(image: Tensor, index: ndarray, mode: str, background: float) -> ndarray:
    """Read a tensor at ``(rows, columns, D)`` voxel indices."""
    points = torch.from_numpy(np.ascontiguousarray(np.moveaxis(index, -1, 0), dtype=np.float32))[None]
    points = points[..., None] if points.shape[1] == 3 else points
    return sample(image, points, mode=mode, background=background).reshape(index.shape[:2]).numpy()


def _window(image: Tensor, grid: Grid, foreground: ndarray | None) -> tuple[float, float]:
    """Grey window from every second voxel; ``foreground`` on the coarse lattice tells where anatomy begins."""
    thin = image[(0, 0, *(slice(None, None, 2 if n > 32 else 1) for n in grid.shape))].numpy()
    values = coarse(image, grid)[0][0, 0].numpy()
    if foreground is None:
        low, high = np.percentile(values, (1, 99.5))
        foreground = values > low + 0.15 * (high - low)
    least = float(values[foreground].min()) if foreground.any() else float(thin.min())
    return paint.window(thin, thin >= least)
