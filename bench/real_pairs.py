"""Does the bound hold for two real scans whose true map is known?

    VERIMORPH_DATA=../shared/data python bench/real_pairs.py

Lungs at two breaths (landmarks), and one person scanned twice: a brain without its skull (against a rigid
registration), and a head by three sequences at two visits (against the affine maps that came with the set, within the
mask of the brain). None of these pairs is in the calibration; the images are, deformed, and the first scan of the brain
is there beside those of other people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verimorph import register
from verimorph.image import Image
from verimorph.io import read_image, read_transform
from verimorph.io.points import as_points
from verimorph.registration import Registration
from verimorph.transform import Transform, chain
from verimorph.uncertainty.against import against_landmarks, against_transform

Row = tuple[str, str, Registration, dict[str, Any]]


def lungs(folder: Path) -> Row:
    found = register(fixed=folder / "fixed_baseline.nii.gz", moving=folder / "moving_followup.nii.gz", uncertainty=True)
    held = found.uncertainty
    fixed, moving = (as_points(folder / "landmarks_dev.csv", columns=side) for side in ("fixed", "moving"))
    scored = against_landmarks(
        held.error_mm, found.transform, fixed, moving, level=held.level, spread=held.displacement_std
    )
    return "lungs, baseline and follow-up", f"{scored['n']} landmarks", found, scored


def rescan(folder: Path) -> Row:
    fixed, moving = (read_image(folder / f"{name}_t1_brain.nii.gz") for name in ("1003", "1023"))
    truth = register(fixed=fixed, moving=moving, transform="rigid").transform
    found = register(fixed=fixed, moving=moving, uncertainty=True)
    return "brain, scanned twice", "rigid registration", found, against(found, truth, fixed=fixed)


def visits(folder: Path) -> Iterator[Row]:
    mask = read_image(folder / "patient01_commonspace_brainmask.nii.gz")
    for sequence in ("T1W", "T2W", "FLAIR"):
        first, second = (from_common(folder, f"patient01_visit{visit}", sequence) for visit in (1, 2))
        fixed, moving = (read_image(folder / f"patient01_visit{visit}_{sequence}.nii.gz") for visit in (1, 2))
        found = register(fixed=fixed, moving=moving, uncertainty=True)
        brain = first.inverse().resample(mask, fixed.grid, interpolation="nearest")
        scored = against(found, chain([first.inverse(), second]), mask=brain)
        yield f"head, two visits, {sequence}", "affine maps of the set", found, scored


def from_common(folder: Path, visit: str, sequence: str) -> Transform:
    """From the space that all images share to this one."""
    steps = [read_transform(folder / f"{visit}_FLAIR_to_commonspace.tfm")]
    if sequence != "FLAIR":
        steps.append(read_transform(folder / f"{visit}_{sequence}_to_FLAIR.tfm"))
    return chain(steps)


def against(found: Registration, truth: Transform, **place: Image) -> dict[str, Any]:
    held = found.uncertainty
    return against_transform(
        held.error_mm, found.transform, truth, level=held.level, spread=held.displacement_std, **place
    )


def main() -> None:
    data = Path(os.environ.get("VERIMORPH_DATA", "../shared/data"))
    rows = [lungs(data / "lung_ct_pair"), rescan(data / "brain_t1_oasis"), *visits(data / "brain_multimodal_ms")]
    print(
        "| pair | truth | quantiles of | 90 % bound holds at | median bound | median error | ratio | rank r | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, truth, found, scored in rows:
        held, bound, error = found.uncertainty, scored["bound_mm"]["median"], scored["error_mm"]["median"]
        kind = held.calibration.partition(": ")[2] or "all kinds"
        holds, rank = f"{100 * scored['coverage']:.1f} %", scored["ranking"]["bound"]["spearman"]
        if interval := scored.get("coverage_interval"):
            holds += " (interval {:.0f} to {:.0f} %)".format(*(100 * share for share in interval))
        print(
            f"| {name} | {truth} | {kind} | {holds} | {bound:.2f} mm | {error:.2f} mm | "
            f"{bound / error:.2f} | {rank:.2f} | {held.verdict} |"
        )


if __name__ == "__main__":
    main()
