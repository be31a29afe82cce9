"""Tiny pairs with a known shift, and engines that are a few lines of Python."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.bench import Engine, command_engine, read_cases

SHIFT = (3.0, -2.0, 1.0)
"""From a fixed point to its moving point, ITK's frame, mm: the right answer."""

# Writes the shift it is told, and a line into `calls` so that a test can count how often it ran.
FAKE = """
import sys
out, dx, dy, dz, calls = sys.argv[1:]
open(calls, "a").write(out + chr(10))
open(out + "/transform.tfm", "w").write(f'''#Insight Transform File V1.0
#Transform 0
Transform: TranslationTransform_double_3_3
Parameters: {dx} {dy} {dz}
FixedParameters:
''')
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder: two images of one blob moved by SHIFT, labels, landmarks, a reference map, a case list."""
    folder = tmp_path / "data"
    folder.mkdir()
    size, spacing = [20, 18, 16], (1.5, 1.0, 0.5)  # SHIFT is a whole number of voxels
    centre = np.array([14.0, 9.0, 4.0])
    for name, middle in (("fixed", centre), ("moving", centre + SHIFT)):
        blob = sitk.GaussianSource(sitk.sitkFloat32, size, (5.0, 3.5, 1.8), middle.tolist(), 100.0, (0, 0, 0), spacing)
        sitk.WriteImage(blob, str(folder / f"{name}.nii.gz"))
        labels = sitk.Cast(blob > 40, sitk.sitkUInt8) + sitk.Cast(blob > 80, sitk.sitkUInt8)
        sitk.WriteImage(labels, str(folder / f"{name}_labels.nii.gz"))
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 25, (6, 3))
    with (folder / "landmarks.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([f"{which}_{axis}_lps_mm" for which in ("fixed", "moving") for axis in "xyz"])
        writer.writerows(np.concatenate([points, points + SHIFT], axis=1).tolist())
    sitk.WriteImage(labels > 0, str(folder / "region.nii.gz"))
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(folder / "to_moving.tfm"))
    sitk.WriteTransform(sitk.TranslationTransform(3, (0.0, 0.0, 0.0)), str(folder / "to_fixed.tfm"))
    (folder / "lists").mkdir()
    (folder / "lists" / "cases.csv").write_text(
        "case,set,fixed,moving,fixed_labels,moving_labels,landmarks,region,region_to_fixed,region_to_moving,kind,start\n"
        "overlap.a,overlap,fixed.nii.gz,moving.nii.gz,fixed_labels.nii.gz,moving_labels.nii.gz,,,,,deformable,header\n"
        "points.a,points,fixed.nii.gz,moving.nii.gz,,,landmarks.csv,,,,affine,header\n"
        "map.a,map,fixed.nii.gz,moving.nii.gz,,,,region.nii.gz,to_fixed.tfm,to_moving.tfm,rigid,centre-of-mass\n"
    )
    return folder


@pytest.fixture
def cases(data: Path):
    """Return the three cases of the folder."""
    return read_cases(data / "lists" / "cases.csv", data=data)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Return the file in which fake engines note that they ran."""
    return tmp_path / "calls"


@pytest.fixture
def fake(tmp_path: Path, calls: Path):
    """Return a maker of engines that answer with a shift."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def make(name: str = "right", shift: tuple[float, float, float] = SHIFT) -> Engine:
        numbers = " ".join(str(value) for value in shift)
        return command_engine(f"{name}={sys.executable} {script} {{out}} {numbers} {calls}")

    return make
