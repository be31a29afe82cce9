"""Does the bound hold for results that the defaults did not make: rigid, fast, another similarity, networks?

    python bench/other_results.py measure runs/other-results.jsonl [--models runs/hippocampus/*/model]
    python bench/other_results.py table runs/other-results.jsonl

Known deformations (`verimorph.uncertainty.known`), registered in each way and assessed as `register --uncertainty` and
`predict --uncertainty` do. Coverage is that of the 90 % bound over the anatomy; goes on where it was stopped. The
images are of sets in the calibration, their deformations are new.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.io import read_image
from verimorph.registration import Registration, register
from verimorph.uncertainty.known import KnownPair, anatomy, known_pair

IMAGES = {
    "hippocampus": ("hippocampus_mr/*_image.nii.gz", 3),
    "cardiac": ("cardiac_cine_acdc/*_ed_image.nii.gz", 2),
    "lung-mr": ("lung_mr_proton/*_h1.nii.gz", 1),
    "slice": ("brain_t1_slices_2d/*_t1.nii.gz", 3),
}
SEEDS = (7001, 7002)
WAYS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "rigid": {"transform": "rigid"},
    "affine": {"transform": "affine"},
    "--quality fast": {"quality": "fast"},
    "--quality best": {"quality": "best"},
    "--similarity mi": {"similarity": "mi"},
    "--similarity mse": {"similarity": "mse"},
    "--similarity mind": {"similarity": "mind"},
    "--symmetric": {"symmetric": True},
    "--iterations 3x2x1": {"iterations": (3, 2, 1)},
    "--levels 4": {"levels": (4,), "iterations": (100,)},
    "--regularity diffusion:weight=5": {"regularity": "diffusion:weight=5"},
}


def judged(found: Registration, pair: KnownPair) -> dict[str, Any]:
    """Coverage, sizes and verdict of one result."""
    begun = time.perf_counter()
    sure = found.assess()
    inside = anatomy(found.fixed, None)
    points = found.fixed.grid.index_to_world(np.argwhere(inside))
    error = np.linalg.norm(found.transform.map_points(points) - pair.truth.map_points(points), axis=1)
    bound = sure.error_mm.array[inside]
    return {
        "coverage": float((error <= bound).mean()),
        "bound_mm": float(np.median(bound)),
        "error_mm": float(np.median(error)),
        "verdict": sure.verdict,
        "kind": sure.calibration,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def network(folder: Path) -> Callable[[KnownPair], Registration]:
    """A trained model, as a way to register."""
    from verimorph.predict import Registrar
    from verimorph.predict.pair import predict_pair

    registrar = Registrar.load(folder)
    return lambda pair: predict_pair(registrar, fixed=pair.fixed, moving=pair.moving)


def measure(path: Path, models: list[Path], only: list[str]) -> None:
    """Add what the file lacks, a line a result."""
    root = Path(os.environ.get("VERIMORPH_DATA", "../shared/data"))
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["images"], row["case"], row["way"]) for row in held}
    networks = {f"network {folder.parent.name}": network(folder) for folder in models}
    for images, (pattern, count) in IMAGES.items():
        if only and images not in only:
            continue
        files = sorted(root.glob(pattern))
        # Spread over the set.
        for file in files[:: max(1, len(files) // count)][:count]:
            for seed in SEEDS:
                case = f"{file.name.split('.')[0]}-{seed}"
                pair = known_pair(read_image(file), seed=seed)
                ways = {
                    way: lambda pair, options=options: register(fixed=pair.fixed, moving=pair.moving, **options)
                    for way, options in WAYS.items()
                }
                for way, run in (ways | (networks if images == "hippocampus" else {})).items():
                    if (images, case, way) in done:
                        continue
                    row = {"images": images, "case": case, "way": way} | judged(run(pair), pair)
                    with open(path, "a", encoding="utf-8") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(f"{images} {case} {way}: {100 * row['coverage']:.1f} %, {row['verdict']}", flush=True)


def table(path: Path) -> None:
    """Per way: coverage by kind of image, ratio, verdicts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = list(dict.fromkeys(row["images"] for row in rows))
    print(f"| result | {' | '.join(kinds)} | median bound over median error | pass / review / fail |")
    print(f"|---|{'---|' * len(kinds)}---|---|")
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        cells = []
        for kind in kinds:
            values = [100 * row["coverage"] for row in own if row["images"] == kind]
            cells.append(f"{np.mean(values):.1f}" if values else "-")
        ratio = np.mean([row["bound_mm"] / row["error_mm"] for row in own])
        verdicts = " / ".join(str(sum(row["verdict"] == word for row in own)) for word in ("pass", "review", "fail"))
        print(f"| {way} | {' | '.join(cells)} | {ratio:.2f} | {verdicts} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--models", nargs="*", default=[], type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="kinds of image")
    args = parser.parse_args()
    if args.what == "measure":
        measure(args.path, args.models, args.only)
    else:
        table(args.path)


if __name__ == "__main__":
    main()
