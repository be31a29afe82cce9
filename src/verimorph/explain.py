"""What a transform does, as facts and in words."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import numpy as np
import torch

from verimorph.grid import Grid
from verimorph.transform import Affine, Dense, Spline, Transform, parts_of

_MODELS = {
    "identity": "leaves every point where it is",
    "translation": "a shift",
    "rigid": "a rotation and a shift",
    "similarity": "a rotation, one scale for all directions and a shift",
    "affine": "any linear map: rotation, scales, shears and a shift",
    "displacement": "a dense displacement field",
    "velocity": "the flow of a stationary velocity field",
    "spline": "a cubic B-spline over control points",
    "composite": "several transforms in a row",
}


def explain(transform: Transform, *, name: str = "transform", format: str | None = None) -> dict[str, Any]:
    """Return what can be said about a transform, JSON-able, lengths in mm.

    Parameters
    ----------
    transform
        Any transform.
    name
        What the text calls it: a file name.
    format
        Name of its file format (:data:`verimorph.io.transforms.FORMATS`), for the frame of the file.

    Returns
    -------
    dict
        ``kind``, ``axes``, ``direction``, ``frame``, ``parts`` (one dictionary each, in the order in which they act)
        and, where there is a grid, ``whole``: displacement and change of volume of the complete map on it.
    """
    from verimorph.io.transforms import FORMATS

    parts = list(parts_of(transform))
    grids = [grid for part in parts if (grid := _sampling_grid(part)) is not None]
    linear_first = len(parts) > 1 and isinstance(parts[0], Affine) and bool(grids)
    facts: dict[str, Any] = {
        "name": name,
        "format": format,
        "kind": transform.kind,
        "axes": transform.ndim,
        "direction": "fixed to moving points; carries images from moving to fixed",
        "form": "inverse" if linear_first else "forward" if len(parts) > 1 and grids else None,
        "frame": "RAS mm",
        "file_frame": FORMATS[format].frame if format else None,
        "parts": [_part(part) for part in parts],
    }
    if grids:
        facts["whole"] = _on_grid(transform, grids[0])
    return facts


def _part(part: Transform) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": part.kind, "model": _MODELS.get(part.kind, part.kind)}
    if isinstance(part, Affine):
        return facts | _linear(part)
    if isinstance(part, Dense | Spline):
        facts["grid"] = grid_facts(part.grid)
    grid = _sampling_grid(part)
    return facts if grid is None else facts | _on_grid(part, grid)


def _sampling_grid(part: Transform) -> Grid | None:
    """Where to look at a part: on its own grid, of a spline four times between control points."""
    if isinstance(part, Spline):
        return part.fine_grid(4)
    return part.grid if isinstance(part, Dense) else None


def _linear(part: Affine) -> dict[str, Any]:
    parts = part.decompose()
    return {
        "rotation_degrees": parts.rotation_degrees,
        "rotation_axis": None if parts.axis is None else parts.axis.tolist(),
        "scales": parts.scales.tolist(),
        "determinant": parts.determinant,
        "reflects": parts.reflects,
        "shift_mm": part.translation.tolist(),
        "matrix": part.matrix.tolist(),
    }


def grid_facts(grid: Grid) -> dict[str, Any]:
    """Shape, spacing, extent, orientation and centre of a grid."""
    return {
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing.tolist(),
        "extent_mm": grid.extent.tolist(),
        "axis_codes": grid.axis_codes,
        "centre_mm": grid.centre.tolist(),
    }


def _on_grid(transform: Transform, grid: Grid) -> dict[str, Any]:
    """Length of the displacement in mm, and the Jacobian determinant, over all voxels of a grid."""
    d = grid.ndim
    displacement = transform.displacement_on(grid)
    length = torch.zeros(displacement.shape[2:])
    # One world axis at a time: the vectors in mm never exist as a second field.
    for row in torch.as_tensor(grid.affine[:d, :d], dtype=torch.float32):
        length += torch.einsum("j,j...->...", row, displacement[0]).square()
    length = length.sqrt_()
    largest = np.unravel_index(int(length.argmax()), grid.shape)
    mean, most = float(length.double().mean()), float(length.max())
    quantile = float(np.quantile(length.numpy(), 0.95))
    del length, displacement
    jacobian = transform.jacobian_determinant(grid)
    folded = int((jacobian <= 0).sum())
    return {
        "mean_displacement_mm": mean,
        "displacement_95_mm": quantile,
        "largest_displacement_mm": most,
        "largest_at_mm": grid.index_to_world(np.array(largest, dtype=np.float64)).tolist(),
        "smallest_determinant": float(jacobian.min()),
        "largest_determinant": float(jacobian.max()),
        "folded_voxels": folded,
        "folded_fraction": folded / grid.size,
    }


def in_words(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Turn the facts of :func:`explain` into labelled lines."""
    lines = [("Kind", _kind_line(facts))]
    frame = f"points are world {facts['frame']}"
    if facts["file_frame"] and facts["file_frame"] != facts["frame"]:
        frame += f" here; the file holds {facts['file_frame']}"
    lines += [("Direction", _direction_line(facts)), ("Frame", frame)]
    several = len(facts["parts"]) > 1
    for number, part in enumerate(facts["parts"], 1):
        label = f"Part {number}" if several else "Map"
        order = (
            {1: ", acts first on a fixed point", len(facts["parts"]): ", acts last"}.get(number, "") if several else ""
        )
        lines.append((label, f"{part['kind']}: {part['model']}{order}"))
        lines += [("", line) for line in _part_lines(part, alone=not several)]
    if "whole" in facts:
        lines += [
            ("Whole map" if several else "Size", _length_line(facts["whole"])),
            ("", _volume_line(facts["whole"])),
        ]
    return lines


def _kind_line(facts: dict[str, Any]) -> str:
    held = f", {facts['format']} format" if facts["format"] else ""
    return f"{facts['kind']}, {facts['axes']}-D{held}"


def _direction_line(facts: dict[str, Any]) -> str:
    line = "sends points of the fixed image to points of the moving image, and so carries images from moving to fixed"
    if facts["form"] == "forward":
        line += "; field before matrix, the form of a forward transform"
    if facts["form"] == "inverse":
        line += (
            "; matrix before field is the form of an inverse (inverse.h5): if it is one, its 'fixed' image is the "
            "moving image of the registration"
        )
    return line


def _part_lines(part: dict[str, Any], alone: bool) -> list[str]:
    if "matrix" in part:
        axis = part["rotation_axis"]
        about = "" if axis is None else f" about ({_numbers(axis, 2)})"
        scales = "x".join(f"{s:.4f}" for s in part["scales"])
        flipped = "; REFLECTS (left and right, or another pair, change places)" if part["reflects"] else ""
        turn = f"rotation {part['rotation_degrees']:.2f} degrees{about}"
        return [
            f"{turn}; principal scales {scales}; volume x{abs(part['determinant']):.4f}{flipped}",
            f"the world origin goes to ({_numbers(part['shift_mm'], 2)}) mm",
        ]
    if "grid" not in part:
        return []
    grid = part["grid"]
    shape, spacing, extent = (
        "x".join(f"{v:.4g}" for v in values) for values in (grid["shape"], grid["spacing_mm"], grid["extent_mm"])
    )
    place = f"covers {extent} mm around ({_numbers(grid['centre_mm'], 1)}); outside it nothing moves"
    line = f"grid {shape} of {spacing} mm, {grid['axis_codes']}, {place}"
    return [line] if alone else [line, _length_line(part), _volume_line(part)]


def _length_line(facts: dict[str, Any]) -> str:
    return (
        f"moves points by {facts['mean_displacement_mm']:.2f} mm on average, 95 % by less than "
        f"{facts['displacement_95_mm']:.2f}, at most {facts['largest_displacement_mm']:.2f} mm "
        f"(at {_numbers(facts['largest_at_mm'], 1)})"
    )


def _volume_line(facts: dict[str, Any]) -> str:
    span = f"volume changes by factors {facts['smallest_determinant']:.3g} to {facts['largest_determinant']:.3g}"
    if not facts["folded_voxels"]:
        return f"{span}; no folding"
    percent = 100 * facts["folded_fraction"]
    share = f"{percent:.2g} %" if not math.isclose(percent, 0) else "0 %"
    return f"{span}; FOLDS at {facts['folded_voxels']} voxels ({share})"


def how_to_apply(name: str, format: str, *, linear: bool, ndim: int = 3) -> list[tuple[str, str]]:
    """Return commands and code that apply a transform file, for this program and the tools that read the format."""
    from verimorph.io.transforms import FORMATS

    file, string = shlex.quote(name), json.dumps(name, ensure_ascii=False)
    hint = "" if format in ("itk", "itk-field", "x5", "freesurfer", "elastix") else f" --from {format}"
    images = f"-r FIXED.nii.gz -o MOVED.nii.gz{hint}"
    ways = [
        ("verimorph", f"verimorph apply -i MOVING.nii.gz -t {file} {images}"),
        ("labels", f"verimorph apply -i MOVING_LABELS.nii.gz -t {file} {images} --interpolation labels"),
        ("points", f"verimorph apply -i MOVING_POINTS.csv -t {file} -o FIXED_POINTS.csv{hint}"),
        (
            "back",
            f"verimorph apply -i FIXED.nii.gz -t {file} -r MOVING.nii.gz -o FIXED_IN_MOVING.nii.gz{hint} --inverse",
        ),
    ]
    if format in ("itk", "itk-field"):
        ways.append(
            ("ANTs", f"antsApplyTransforms -d {ndim} -i MOVING.nii.gz -r FIXED.nii.gz -t {file} -o MOVED.nii.gz")
        )
        read = (
            f"sitk.ReadTransform({string})"
            if format == "itk"
            else f"sitk.DisplacementFieldTransform(sitk.ReadImage({string}, sitk.sitkVectorFloat64))"
        )
        ways.append(("SimpleITK", f"sitk.Resample(moving, fixed, {read}, sitk.sitkLinear, 0.0)"))
    else:
        needs = " --fixed FIXED.nii.gz --moving MOVING.nii.gz" if FORMATS[format].needs else ""
        ways.append(
            ("other tools", f"verimorph convert {file} transform.h5{hint}{needs}   # then ANTs, SimpleITK, Slicer")
        )
    if linear and format == "itk":
        ways.append(("Slicer", f"add data, {name} (a linear transform), then apply it to the moving volume"))
    return ways


def _numbers(values: list[float], digits: int) -> str:
    return ", ".join(f"{v:.{digits}f}" for v in values)
