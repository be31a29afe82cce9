"""The public function: register one image to another, and what comes of it.

This room chooses and checks; the stages are in ``pipeline.py``, the numerics below it. The report is imported only when
asked for.
"""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verimorph import pipeline
from verimorph.errors import OptionError, VerimorphWarning
from verimorph.evaluate.score import score
from verimorph.field import Inversion
from verimorph.field.backend import set_threads
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.inputs import Inputs, fingerprint, parts_of, read_start
from verimorph.io import Points, validate, write_image, write_images, write_points, write_transform
from verimorph.io.documents import write_json
from verimorph.io.safe import keep_inputs, require_free_space, writing_folder
from verimorph.planning import Plan, Work, require_memory
from verimorph.prepare import default_background
from verimorph.solve.progress import Event, Step
from verimorph.solve.pyramid import level_shape
from verimorph.solve.schedule import linear_levels
from verimorph.transform import Affine, Composite, DisplacementField, Transform
from verimorph.uncertainty.reference import by_defaults

if TYPE_CHECKING:
    from verimorph.uncertainty.assess import Uncertainty
    from verimorph.uncertainty.bound import Calibration


RESULT_FILES = (
    *("moved.nii.gz", "jacobian.nii.gz", "transform.h5", "inverse.h5", "moved_labels.nii.gz", "moved_landmarks.csv"),
    *("error_mm.nii.gz", "displacement_std.nii.gz", "label_uncertainty.nii.gz", "fixed_in_moving_space.nii.gz"),
    *("ants_0GenericAffine.mat", "ants_1Warp.nii.gz", "ants_1InverseWarp.nii.gz", "ants_Warped.nii.gz"),
    *("metrics.json", "provenance.json", "report.html"),
)
"""What a registration may write into its folder."""
_OF_PREDICTIONS = ("field.nii.gz", "grid.nii.gz", "gradients.nii.gz")
"""What a prediction may add."""


def left_behind(folder: str | PathLike) -> tuple[str, ...]:
    """Names under which an earlier result in a folder may have left what would be taken for a part of the next.

    Empty where the folder holds no result of ours: names alone do not make a file ours.
    """
    try:
        told = json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return (*RESULT_FILES, *_OF_PREDICTIONS) if isinstance(told, dict) and "verimorph" in told else ()


def taken(folder: str | PathLike) -> list[Path]:
    """Files of a folder that a result saved there may replace or remove: none of them may be an input."""
    return [Path(folder) / name for name in dict.fromkeys((*RESULT_FILES, *left_behind(folder)))]


@dataclass
class Registration:
    """A finished registration: everything in memory, nothing on disk until :meth:`save`.

    Attributes
    ----------
    fixed, moving
        The images as given.
    transform
        Maps world points of the fixed image to world points of the moving image: what resampling the moving image
        needs. A field on the fixed grid that acts first (deformable only), then a linear map.
    inverse
        Moving to fixed: the inverse linear map, then the inverse field on the fixed grid.
    initial
        Where the optimisation started (linear).
    initial_file
        The transform file it was read from, if any.
    history
        One entry for every evaluation of the objective.
    timings
        Seconds of each part.
    settings
        Everything that decided the result, resolved.
    truth
        The known transform, in demonstrations with synthetic deformations.
    unit
        What distances are called in the metrics: ``voxel`` where the images have no known voxel size.
    model
        Of a prediction: which trained model made it, with the hashes of its card and weights.
    uncertainty
        Bound of the error, label uncertainty and verdict, where asked for; see :meth:`assess`.

    Examples
    --------
    >>> result = register(fixed="fixed.nii.gz", moving="moving.nii.gz")  # doctest: +SKIP
    >>> result.save("out")  # doctest: +SKIP
    """

    fixed: Image
    moving: Image
    transform: Transform
    inverse: Transform
    initial: Transform
    settings: dict[str, Any]
    history: list[Step] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    inversion: Inversion | None = None
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    fixed_landmarks: Points | None = None
    moving_landmarks: Points | None = None
    truth: Transform | None = None
    warnings: list[str] = field(default_factory=list)
    unit: str = "mm"
    model: dict[str, Any] | None = None
    uncertainty: Uncertainty | None = None
    initial_file: Path | None = None

    @cached_property
    def moved(self) -> Image:
        """The moving image on the fixed grid: linear interpolation, one for the whole transform, type kept."""
        background = default_background(self.moving)
        return self.transform.resample(self.moving, self.fixed.grid, interpolation="linear", background=background)

    @cached_property
    def moved_back(self) -> Image:
        """The fixed image carried into moving space."""
        background = default_background(self.fixed)
        return self.inverse.resample(self.fixed, self.moving.grid, interpolation="linear", background=background)

    @cached_property
    def moved_labels(self) -> Image | None:
        """The moving labels on the fixed grid, nearest neighbour, ids and type kept."""
        if self.moving_labels is None:
            return None
        return self.transform.resample(self.moving_labels, self.fixed.grid, interpolation="nearest")

    @cached_property
    def moved_landmarks(self) -> Points | None:
        """The moving landmarks carried into fixed space (by the inverse: points travel against images)."""
        if self.moving_landmarks is None:
            return None
        return self.moving_landmarks.with_coordinates(self.inverse.map_points(self.moving_landmarks.coordinates))

    @cached_property
    def jacobian(self) -> Image:
        """Jacobian determinant of the whole transform on the fixed grid: local volume change, below 0 a fold."""
        values = self.transform.jacobian_determinant(self.fixed.grid)[0].cpu().numpy().astype(np.float32)
        return Image.from_array(values, self.fixed.grid, name="jacobian")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Measured facts, JSON-able: overlap and landmark errors where given, folding, inverse consistency."""
        found = score(
            fixed_labels=self.fixed_labels,
            moved_labels=self.moved_labels,
            moving_labels=self.moving_labels,
            fixed_landmarks=self.fixed_landmarks,
            moving_landmarks=self.moving_landmarks,
            transform=self.transform,
            inverse=self.inverse,
            initial=self.initial,
            fixed_grid=self.fixed.grid,
            moving_grid=self.moving.grid,
            jacobian=self.jacobian,
            surface=False,
            non_diffeomorphic=False,
            unit=self.unit,
        )
        found["displacement_mm"] = _displacement_summary(self.transform, self.fixed.grid)
        if self.inversion is not None:
            found["inverse_residual_voxels"] = {
                "mean": self.inversion.mean_residual,
                "max": self.inversion.max_residual,
            }
        if self.history:
            last = self.history[-1]
            same = [step.value for step in self.history if (step.stage, step.level) == (last.stage, last.level)]
            found["objective"] = {"stage": last.stage, "level": last.level, "first": same[0], "last": same[-1]}
        found["calibrated"] = self.uncertainty is not None
        if self.uncertainty is not None:
            found["uncertainty"] = self.uncertainty.summary()
            found["verdict"] = self.uncertainty.verdict_summary()
        return found

    def assess(self, *, level: float = 0.9, calibration: Any = "general") -> Uncertainty:
        """Say how sure this registration is, and keep it as :attr:`uncertainty`.

        Parameters
        ----------
        level
            Share of voxels for which the bound of the error is to hold.
        calibration
            Name of a packaged calibration, or a file that ``verimorph calibrate`` wrote; with ``:KIND`` behind it all
            images are taken for those of a kind (``general:cardiac-pairs``).

        Raises
        ------
        OptionError, InputError
            For a level that the calibration does not reach, or one that is not there.
        """
        from verimorph.uncertainty.assess import assess

        self.uncertainty = assess(self, level=level, calibration=calibration)
        self.timings["uncertainty"] = self.uncertainty.seconds
        self.peak_memory_mb = max(self.peak_memory_mb, pipeline.peak_memory_mb())
        for stale in ("metrics", "provenance"):
            self.__dict__.pop(stale, None)
        return self.uncertainty

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Inputs with hashes, settings, versions, timings, seed, peak memory."""
        from verimorph import __version__
        from verimorph.field.backend import kernels_in_use

        inputs = {
            "fixed": self.fixed,
            "moving": self.moving,
            "fixed_mask": self.fixed_mask,
            "moving_mask": self.moving_mask,
            "fixed_labels": self.fixed_labels,
            "moving_labels": self.moving_labels,
        }
        return {
            "verimorph": __version__,
            **({} if self.model is None else {"model": self.model}),
            "inputs": {name: fingerprint(image) for name, image in inputs.items() if image is not None},
            "settings": self.settings,
            "seed": self.settings["seed"],
            "timings_seconds": {name: round(seconds, 3) for name, seconds in self.timings.items()},
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "kernels": kernels_in_use(),
            "platform": platform.platform(terse=True),
            "warnings": self.warnings,
        }

    def save(
        self,
        folder: str | PathLike,
        *,
        style: str = "verimorph",
        both: bool = False,
        report: bool = True,
    ) -> Path:
        """Write everything to a folder; all files appear together at the end, or none.

        Parameters
        ----------
        folder
            Made if missing. Files of the same name are replaced. Where it holds an earlier result of ours, what that
            has and this one has not (report, labels, error bound, files for ANTs) is removed.
        style
            ``verimorph``, or ``ants``: also ``ants_0GenericAffine.mat``, ``ants_1Warp.nii.gz``,
            ``ants_1InverseWarp.nii.gz``, ``ants_Warped.nii.gz`` as ANTs names and means them.
        both
            Also write the fixed image carried into moving space.
        report
            Also write ``report.html``.

        Raises
        ------
        InputError, ResourceError
            If the folder cannot be written to, an input would be overwritten, or the disk is full.
        """
        given = (getattr(self, name) for name in Inputs.__dataclass_fields__)
        read = [self.initial_file, *(one.path for one in given if one is not None)]
        keep_inputs(taken(folder), [file for file in read if file is not None])
        if style not in ("verimorph", "ants"):
            raise OptionError(f"unknown output style '{style}'; known: verimorph, ants")
        require_free_space(folder, 24 * self.fixed.grid.size + (1 << 22))
        with writing_folder(folder, stale=left_behind(folder)) as out:
            clock = pipeline.Clock()
            with clock("write"):
                images = {"moved.nii.gz": self.moved, "jacobian.nii.gz": self.jacobian}
                if self.moved_labels is not None:
                    images["moved_labels.nii.gz"] = self.moved_labels
                if self.uncertainty is not None:
                    images |= self.uncertainty.maps
                if both:
                    images["fixed_in_moving_space.nii.gz"] = self.moved_back
                write_images(images, out)
                write_transform(self.transform, out / "transform.h5")
                write_transform(self.inverse, out / "inverse.h5")
                if self.moved_landmarks is not None:
                    write_points(self.moved_landmarks, out / "moved_landmarks.csv")
                if style == "ants":
                    self._write_ants_files(out)
            with clock("metrics"):
                write_json(self.metrics, out / "metrics.json")
            if report:
                with clock("report"):
                    self.report(out / "report.html")
            self.timings.update(clock.seconds)
            self.peak_memory_mb = max(self.peak_memory_mb, pipeline.peak_memory_mb())
            self.__dict__.pop("provenance", None)
            write_json(self.provenance, out / "provenance.json")
        return Path(folder)

    def _write_ants_files(self, out: Path) -> None:
        linear = next(part for part in parts_of(self.transform) if isinstance(part, Affine))
        write_transform(linear, out / "ants_0GenericAffine.mat")
        for transform, name in ((self.transform, "ants_1Warp.nii.gz"), (self.inverse, "ants_1InverseWarp.nii.gz")):
            dense = next((part for part in parts_of(transform) if isinstance(part, DisplacementField)), None)
            if dense is not None:
                write_transform(dense, out / name)
        write_image(self.moved, out / "ants_Warped.nii.gz")

    def report(self, file: str | PathLike) -> Path:
        """Write the page that shows this registration: one self-contained HTML file."""
        from verimorph.report import write_report

        return write_report(self, file)


def register(
    *,
    fixed: Any,
    moving: Any,
    transform: str = "deformable",
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_labels: Any = None,
    moving_labels: Any = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    initial: Any = "auto",
    stages: Sequence[str] | None = None,
    restrict: Sequence[bool] | None = None,
    similarity: str = "auto",
    regularity: str | None = None,
    symmetric: bool | None = None,
    quality: str = "balanced",
    levels: Sequence[int] | None = None,
    iterations: Sequence[int] | None = None,
    nan_value: float | None = None,
    winsorise: tuple[float, float] | None = (0.005, 0.995),
    histogram_matching: bool = False,
    bias_correction: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    uncertainty: bool = False,
    level: float = 0.9,
    calibration: Any = "general",
    progress: Callable[[Event], None] | None = None,
) -> Registration:
    """Align a moving image to a fixed one; no training, any pair.

    Parameters
    ----------
    fixed, moving
        Paths, :class:`~verimorph.Image`, nibabel or SimpleITK images, or ``(array, affine)`` with a RAS+ mm affine.
        Both 2-D or both 3-D.
    transform
        ``rigid``, ``similarity``, ``affine`` or ``deformable`` (diffeomorphic, after the affine).
    fixed_mask, moving_mask
        Compare only where these are not 0.
    fixed_labels, moving_labels, fixed_landmarks, moving_landmarks
        For scoring, never for fitting (but ``initial="landmarks"`` starts from the landmarks).
    initial
        ``auto`` (several starts, the best wins), ``header`` or ``identity``, ``centre``, ``centre-of-mass``,
        ``moments``, ``search``, ``landmarks``, a transform or a transform file.
    stages
        Only these of ``rigid``, ``similarity``, ``affine``, ``deformable``.
    restrict
        One truth value an axis of the fixed image; False freezes it.
    similarity
        ``auto`` (``lncc``), ``lncc``, ``mi``, ``mse``, ``mind``; with settings ``lncc:radius=4``; sums with ``+``.
    regularity
        A penalty on the field besides the smoothing, such as ``diffusion:weight=0.1``.
    symmetric
        Treat both images alike in the deformable stage (about three times the work).
    quality
        ``fast``, ``balanced`` or ``best``.
    levels, iterations
        Shrink factors of the deformable stage, coarse first, and iterations at each.
    nan_value
        Number to put in place of NaN and infinite voxels of the two images; default: such images are refused.
    winsorise
        Quantiles at which intensities are cut; None leaves them.
    histogram_matching, bias_correction
        Match the moving histogram to the fixed one; correct slow intensity changes (N4) first.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    threads
        CPU threads; default: as set for torch.
    seed
        Same seed, machine and threads: the same bits.
    uncertainty, level, calibration
        Also say how sure the result is: :meth:`Registration.assess`.
    progress
        Called with an :class:`~verimorph.solve.Event` after every evaluation.

    Returns
    -------
    Registration

    Raises
    ------
    VerimorphError
        For input that cannot be used and options that are not known; the message says what to do.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VerimorphWarning)
        clock = pipeline.Clock()
        with clock("read"):
            given = Inputs.read(
                fixed=fixed,
                moving=moving,
                fixed_mask=fixed_mask,
                moving_mask=moving_mask,
                fixed_labels=fixed_labels,
                moving_labels=moving_labels,
                fixed_landmarks=fixed_landmarks,
                moving_landmarks=moving_landmarks,
                nan_value=nan_value,
            )
            recipe, start, start_field = _resolve(
                given,
                initial,
                transform=transform,
                stages=stages,
                similarity=similarity,
                quality=quality,
                levels=levels,
                iterations=iterations,
                symmetric=symmetric,
                winsorise=winsorise,
                histogram_matching=histogram_matching,
                bias_correction=bias_correction,
                regularity=regularity,
                restrict=restrict,
                device=device,
                seed=seed,
            )
            held = _calibration(calibration, level, given) if uncertainty else None
            if threads is not None:
                set_threads(threads)
            require_memory(_plan(given, recipe, uncertainty=uncertainty))
        with clock("prepare"):
            first, second = pipeline.prepare_pair(
                fixed=given.fixed,
                moving=given.moving,
                fixed_mask=given.fixed_mask,
                moving_mask=given.moving_mask,
                recipe=recipe,
            )
        found = pipeline.run(
            fixed=first, moving=second, recipe=recipe, start=start, start_field=start_field, watcher=progress
        )
        del first, second
        result = _assemble(given, recipe, found, clock.seconds)
        result.settings["nan_value"] = nan_value
        if isinstance(initial, str | PathLike) and Path(initial).is_file():
            result.initial_file = Path(initial)
        if uncertainty:
            result.assess(level=level, calibration=held)
    result.warnings = list(dict.fromkeys(str(w.message) for w in caught))
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result


def plan(*, threads: int | None = None, **request: Any) -> Plan:
    """Return what :func:`register` would do with the same arguments, how long it would take and what it needs.

    Nothing is computed but what the headers tell (and the voxel checks of the inputs).
    """
    request.pop("progress", None)
    uncertainty = request.pop("uncertainty", False)
    level, calibration = request.pop("level", 0.9), request.pop("calibration", "general")
    names = set(Inputs.__dataclass_fields__)
    given = Inputs.read(**{name: request.pop(name, None) for name in (*names, "nan_value")})
    recipe, _, _ = _resolve(given, request.pop("initial", "auto"), **request)
    if uncertainty:
        _calibration(calibration, level, given)
    return _plan(given, recipe, threads, uncertainty=uncertainty)


def _calibration(name: Any, level: float, given: Inputs) -> Calibration:
    """What the bound will be drawn from: refused, where it must be, before anything is computed."""
    from verimorph.uncertainty.bound import read_calibration

    held = read_calibration(name, ndim=given.fixed.grid.ndim)
    held.check(level)
    return held


def _resolve(
    given: Inputs, initial: Any, **request: Any
) -> tuple[pipeline.Recipe, np.ndarray | None, torch.Tensor | None]:
    """Return the recipe and, where they do not have to be sought, the matrix and the field to start from."""
    ndim = given.fixed.grid.ndim
    request.pop("threads", None)
    restrict = request.get("restrict")
    if restrict is not None and len(restrict) != ndim:
        raise OptionError(f"restrict has {len(restrict)} entries for a {ndim}-D image; give one an axis")
    name, start, start_field = read_start(given, initial)
    if start_field is not None and request.get("stages") is None:
        # The linear part belongs to the field that came with it; refitting it alone would spoil both.
        request["stages"] = ("deformable",)
    recipe = pipeline.make_recipe(initial=name, **request)
    check_device(recipe.device)
    if start is None and not validate.check_overlap(given.fixed, given.moving):
        warnings.warn(
            VerimorphWarning(
                "the images do not overlap in the world (their headers place them apart); starting from their centres"
                + (f", not by '{name}'" if name in ("header", "identity") else "")
            ),
            stacklevel=3,
        )
        # A start by the header would compare nothing with nothing.
        if name in ("header", "identity"):
            recipe = pipeline.make_recipe(initial="centre", **request)
    return recipe, start, start_field


def check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise OptionError(f"device '{device}' is not available here; 'verimorph doctor' lists what is") from None


def _plan(given: Inputs, recipe: pipeline.Recipe, threads: int | None = None, *, uncertainty: bool = False) -> Plan:
    reference = None
    if uncertainty and not by_defaults(pipeline.describe(recipe)):
        reference = _plan(given, pipeline.make_recipe(), threads)
    grid = given.fixed.grid
    steps = linear_levels(grid, given.moving.grid, final=not recipe.deforms)
    work = []
    for kind in recipe.linear_kinds:
        for step in steps if kind == recipe.linear_kinds[-1] else steps[:1]:
            work.append(Work(kind, step.shrink, step.iterations, step.shape))
    if recipe.deforms:
        finest = float(grid.spacing.min())
        for shrink, count in zip(recipe.levels, recipe.iterations, strict=True):
            work.append(Work("deformable", shrink, count, level_shape(grid, shrink * finest)))
    return Plan(
        grid,
        given.moving.grid,
        tuple(work),
        threads or torch.get_num_threads(),
        channels=12 if "mind" in recipe.similarity else 1,
        symmetric=recipe.deformable.symmetric,
        looks=0 if not uncertainty else 1 if reference is None else 2,
        reference=reference,
    )


def _assemble(
    given: Inputs, recipe: pipeline.Recipe, found: pipeline.Outcome, timings: dict[str, float]
) -> Registration:
    grid = given.fixed.grid
    linear = Affine(found.linear)
    forward: Transform = linear
    backward: Transform = linear.inverse()
    inversion = None
    if found.field is not None:
        displacement, inversion = found.field.displacement.cpu(), found.field.inverse
        inverse_displacement = inversion.displacement.cpu()
        forward = Composite([DisplacementField(grid, displacement, inverse_displacement), linear])
        backward = Composite([linear.inverse(), DisplacementField(grid, inverse_displacement, displacement)])
    settings = pipeline.describe(recipe) | {"started_from": found.start_name, "threads": torch.get_num_threads()}
    return Registration(
        **{name: getattr(given, name) for name in Inputs.__dataclass_fields__},
        transform=forward,
        inverse=backward,
        initial=Affine(found.start),
        settings=settings,
        history=found.history,
        timings=timings | found.timings,
        peak_memory_mb=pipeline.peak_memory_mb(),
        inversion=inversion,
    )


def _displacement_summary(transform: Transform, grid: Grid) -> dict[str, float]:
    """Mean, 95th percentile and largest distance between where a fixed point is and where it is sent, mm."""
    steps = [max(1, math.ceil(n / 48)) for n in grid.shape]
    axes = [np.arange(0, n, step) for n, step in zip(grid.shape, steps, strict=True)]
    points = grid.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, grid.ndim))
    length = np.linalg.norm(transform.map_points(points) - points, axis=1)
    return {
        "mean": float(length.mean()),
        "p95": float(np.percentile(length, 95)),
        "max": float(length.max()),
    }
