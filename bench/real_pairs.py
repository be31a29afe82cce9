"""Does the bound hold for two real scans whose true map is known?

    VERIMORPH_DATA=../shared/data python bench/real_pairs.py

Lungs at two breaths (landmarks), and one person scanned twice: a brain without its skull (against a rigid
registration), and a head by three sequences at two visits (against the affine maps that came with the set, within the
mask of the brain). None of these pairs is in the calibration; the images are, deformed, and the first scan of the brain
is there beside those of other people.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verimorph import register
from verimorph.image import Image
from verimorph.io import read_image, read_transform
from verimorph.io.points import as_points
from verimorph.registration import Registration
from verimorph.transform import Transform, chain
from verimorph.uncertainty.against import against_landmarks, against_transform
from verimorph.uncertainty.assess import Uncertainty


@dataclass(frozen=True)
class Pair:
    """A registration, how its bound is scored, and of which kind one could say that it is."""

    name: str
    truth: str
    found: Registration
    score: Callable[[Uncertainty], dict[str, Any]]
    kind: str


def lungs(folder: Path) -> Pair:
    found = register(fixed=folder / "fixed_baseline.nii.gz", moving=folder / "moving_followup.nii.gz")
    fixed, moving = (as_points(folder / "landmarks_dev.csv", columns=side) for side in ("fixed", "moving"))

    def score(held: Uncertainty) -> dict[str, Any]:
        return against_landmarks(held.error_mm, found.transform, fixed, moving, level=held.level)

    return Pair("lungs, baseline and follow-up", f"{len(fixed.coordinates)} landmarks", found, score, "lung-ct")


def rescan(folder: Path) -> Pair:
    fixed, moving = (read_image(folder / f"{name}_t1_brain.nii.gz") for name in ("1003", "1023"))
    truth = register(fixed=fixed, moving=moving, transform="rigid").transform
    found = register(fixed=fixed, moving=moving)
    return Pair("brain, scanned twice", "rigid registration", found, against(found, truth, fixed=fixed), "brain")


def visits(folder: Path) -> Iterator[Pair]:
    mask = read_image(folder / "patient01_commonspace_brainmask.nii.gz")
    for sequence in ("T1W", "T2W", "FLAIR"):
        first, second = (from_common(folder, f"patient01_visit{visit}", sequence) for visit in (1, 2))
        fixed, moving = (read_image(folder / f"patient01_visit{visit}_{sequence}.nii.gz") for visit in (1, 2))
        found = register(fixed=fixed, moving=moving)
        brain = first.inverse().resample(mask, fixed.grid, interpolation="nearest")
        score = against(found, chain([first.inverse(), second]), mask=brain)
        yield Pair(f"head, two visits, {sequence}", "affine maps of the set", found, score, "head")


def from_common(folder: Path, visit: str, sequence: str) -> Transform:
    """From the space that all images share to this one."""
    steps = [read_transform(folder / f"{visit}_FLAIR_to_commonspace.tfm")]
    if sequence != "FLAIR":
        steps.append(read_transform(folder / f"{visit}_{sequence}_to_FLAIR.tfm"))
    return chain(steps)


def against(
    found: Registration, truth: Transform, *, mask: Image | None = None, fixed: Image | None = None
) -> Callable[[Uncertainty], dict[str, Any]]:
    def score(held: Uncertainty) -> dict[str, Any]:
        return against_transform(held.error_mm, found.transform, truth, level=held.level, mask=mask, fixed=fixed)

    return score


def row(pair: Pair, held: Uncertainty) -> str:
    scored = pair.score(held)
    bound, error = scored["bound_mm"]["median"], scored["error_mm"]["median"]
    holds = f"{100 * scored['coverage']:.1f} %"
    if interval := scored.get("coverage_interval"):
        holds += " (interval {:.0f} to {:.0f} %)".format(*(100 * share for share in interval))
    rank = scored["ranking"]["bound"]["spearman"]
    return (
        f"| {pair.name} | {pair.truth} | {held.calibration.partition(': ')[2] or 'all kinds'} | {holds} | "
        f"{bound:.2f} mm | {error:.2f} mm | {bound / error:.2f} | {rank:.2f} | {held.verdict} |"
    )


def main() -> None:
    data = Path(os.environ.get("VERIMORPH_DATA", "../shared/data"))
    pairs = [lungs(data / "lung_ct_pair"), rescan(data / "brain_t1_oasis"), *visits(data / "brain_multimodal_ms")]
    print(
        "| pair | truth | quantiles of | 90 % bound holds at | median bound | median error | ratio | rank r | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for calibration in ("general", "general:{}"):  # as the images tell, and as known deformations of their kind
        for pair in pairs:
            print(row(pair, pair.found.assess(calibration=calibration.format(pair.kind))))


if __name__ == "__main__":
    main()
