"""What do different sources of transforms know of where carried-over labels are wrong? Hippocampi, one interface.

    python bench/samplers.py score -o runs/samplers            pairs of the split 'score'; goes on where it stopped
    python bench/samplers.py table -o runs/samplers

Sources: the posterior of voxelmorph-diff, an ensemble of four networks of different methods (runs/hippocampus, trained
by recipes/hippocampus), the discrete posterior of a local cost volume from the middles laid together, and the engine
with its calibrated error bound; the last two need no training. Each gives draws of a transform; maps and scores are
the same for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verimorph.image import Image
    from verimorph.uncertainty.sampler import Sampler

SOURCES = ("posterior", "ensemble", "cost volume", "engine")
MEMBERS = ("voxelmorph", "voxelmorph-diff-deterministic", "lku-net", "modet")
MAPS = ("transformation", "appearance", "epistemic", "mutual information", "entropy of the mean warp")
VALUES = [1, 2]


def sampler(source: str, runs: Path, images: dict[str, Image], loaded: dict) -> tuple[Sampler, int]:
    """Draws of a pair, and how many of them."""
    import numpy as np

    from verimorph.predict import Registrar
    from verimorph.transform import Affine
    from verimorph.uncertainty.sampler import CostVolumeSampler, EnsembleSampler, RegistrarSampler

    fixed, moving = images["fixed"], images["moving"]
    if source == "posterior":
        if source not in loaded:
            loaded[source] = Registrar.load(runs / "voxelmorph-diff/model")
        return RegistrarSampler(loaded[source], fixed=fixed, moving=moving), 25
    if source == "ensemble":
        if source not in loaded:
            loaded[source] = [Registrar.load(runs / name / "model") for name in MEMBERS]
        return EnsembleSampler(loaded[source], fixed=fixed, moving=moving), len(MEMBERS)
    if source == "cost volume":
        middles = np.eye(4)
        middles[:3, 3] = moving.grid.centre - fixed.grid.centre
        return CostVolumeSampler(fixed=fixed, moving=moving, start=Affine(middles), reach=8), 25
    from verimorph.registration import register
    from verimorph.uncertainty.assess import calibrated_sampler

    return calibrated_sampler(register(fixed=fixed, moving=moving)), 25


def pairs() -> Iterator[tuple[str, str]]:
    """Fixed and moving of the pairs to score."""
    from importlib.resources import files

    held = json.loads((files("verimorph") / "data/splits/hippocampus_mr.json").read_text())
    yield from ((fixed, moving) for fixed, moving in held["pairs"]["score"])


def score(args: argparse.Namespace) -> None:
    """Score every source on every pair."""
    import os

    import torch

    from verimorph.io import read_image
    from verimorph.uncertainty.segmentation import label_uncertainty, moved_dice, score_maps

    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    root = Path(os.environ.get("VERIMORPH_DATA", "../shared/data")) / "hippocampus_mr"
    loaded: dict = {}
    for source in args.sources:
        for number, (fixed, moving) in enumerate(islice(pairs(), args.pairs)):
            file = args.output / f"{source.replace(' ', '-')}-{number}.json"
            if file.exists():
                continue
            begun = time.perf_counter()
            names = {"fixed": f"{fixed}_image", "moving": f"{moving}_image"}
            names |= {"fixed_labels": f"{fixed}_labels", "moving_labels": f"{moving}_labels"}
            images = {key: read_image(root / f"{name}.nii.gz") for key, name in names.items()}
            draws, count = sampler(source, args.runs, images, loaded)
            maps = label_uncertainty(
                draws.draws(count, torch.Generator().manual_seed(0)),
                fixed=images["fixed"],
                moving=images["moving"],
                moving_labels=images["moving_labels"],
                values=VALUES,
            )
            result = {
                "source": source,
                "draws": count,
                "dice": moved_dice(images["fixed_labels"], maps.moved_labels, VALUES),
                "scores": [asdict(one) for one in score_maps(maps, images["fixed_labels"], VALUES)],
                "seconds": time.perf_counter() - begun,
            }
            file.write_text(json.dumps(result))
            mean = sum(result["dice"].values()) / len(VALUES)
            print(f"{file.name}: Dice {mean:.3f}, {result['seconds']:.0f} s", flush=True)


def table(args: argparse.Namespace) -> None:
    """Means over pairs and labels: correlation over the whole volume, and near the structure."""
    import numpy as np

    print(f"| source | draws | pairs | Dice | {' | '.join(MAPS)} |")
    print("|---" * (4 + len(MAPS)) + "|")
    for source in SOURCES:
        found = [json.loads(f.read_text()) for f in sorted(args.output.glob(f"{source.replace(' ', '-')}-*.json"))]
        if not found:
            continue
        dice = np.mean([np.nanmean(list(one["dice"].values())) for one in found])
        cells = []
        for name in MAPS:
            r, near = (
                np.nanmean([s[key] for one in found for s in one["scores"] if s["name"] == name])
                for key in ("pearson", "auroc_near")
            )
            cells.append(f"{r:.3f}, {near:.3f}")
        print(f"| {source} | {found[0]['draws']} | {len(found)} | {dice:.3f} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "table"))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/samplers"))
    parser.add_argument("--runs", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--pairs", type=int, help="only the first so many")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    score(args) if args.what == "score" else table(args)


if __name__ == "__main__":
    main()
