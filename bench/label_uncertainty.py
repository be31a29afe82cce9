"""Does a map of uncertainty tell where carried-over labels are wrong? The published table on the cardiac set, by folds.

    python bench/label_uncertainty.py score --fold 1 -o runs/cardiac/scores
    python bench/label_uncertainty.py score --fold 2 -o runs/cardiac/scores
    python bench/label_uncertainty.py table -o runs/cardiac/scores

Scores the networks that recipes/cardiac trained (runs/cardiac/half1/..., half2/...) on the patients each fold held out,
both directions, on the model's grid, T draws a pair; a pair that is scored already is passed over. Beside them what
needs no training, with its defaults: `engine`, this project's, and `syn`, that of ANTsPy (after `verimorph bench
setup ants`). `table` writes `table.md` and `maps.png`: one slice, the error of its labels, four maps. The picture names
nobody.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verimorph.image import Image
    from verimorph.transform import Transform

TRAINED = ("voxelmorph", "transmorph", "proposed", "aleatoric")
METHODS = ("syn", "engine", *TRAINED)
RECIPE = Path("recipes/cardiac/transmorph.yaml")
STRUCTURES = {1: "RV", 2: "MYO", 3: "LV"}
PUBLISHED_DICE = {
    "unregistered": (0.595, 0.608, 0.445, 0.549),
    "syn": (0.691, 0.634, 0.687, 0.670),
    "voxelmorph": (0.836, 0.788, 0.786, 0.803),
    "transmorph": (0.859, 0.824, 0.832, 0.838),
    "proposed": (0.861, 0.824, 0.834, 0.839),
}
PUBLISHED_R = {
    "transformation": (0.078, 0.107, 0.080, 0.088),
    "appearance": (0.053, 0.080, 0.048, 0.060),
    "epistemic": (0.531, 0.579, 0.546, 0.552),
    "aleatoric": (0.376, 0.371, 0.399, 0.382),
    "epistemic + aleatoric": (0.567, 0.603, 0.579, 0.583),
}
ORDER = (3, 1, 2)  # LV, RV, MYO, as published


def images(batch: dict) -> dict:
    """A prepared pair as images in voxel units."""
    from verimorph.image import Image

    return {
        "fixed": Image.from_array(batch["fixed"][0, 0]),
        "moving": Image.from_array(batch["moving"][0, 0]),
        "fixed_labels": Image.from_array(batch["fixed_labels"][0].short()),
        "moving_labels": Image.from_array(batch["moving_labels"][0].short()),
    }


def measured(displacement) -> dict[str, float]:
    """Folding of a displacement in voxels, percent of voxels and of volume."""
    from verimorph.evaluate import folding_percent
    from verimorph.evaluate.diffeomorphism import non_diffeomorphic_volume
    from verimorph.field import jacobian_determinant

    percent = non_diffeomorphic_volume(displacement.numpy()).percent
    return {"folding_percent": folding_percent(jacobian_determinant(displacement)[0].numpy()), "ndv_percent": percent}


def registered(method: str, fixed: Image, moving: Image) -> Transform:
    """The transform of a method that needs no training."""
    if method == "engine":
        from verimorph.registration import register

        return register(fixed=fixed, moving=moving).transform
    import subprocess
    import tempfile

    from verimorph.bench.environments import interpreter
    from verimorph.io import read_transform, write_image
    from verimorph.transform import Composite

    python = interpreter("ants", "bench/environments")
    assert python is not None
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / f"{name}.nii.gz") for name in ("fixed", "moving")]
        for image, name in zip((fixed, moving), names, strict=True):
            write_image(image, name)
        call = "type_of_transform='SyN', random_seed=1, outprefix=" + repr(f"{folder}/syn_")
        code = f"import ants; a, b = map(ants.image_read, {names!r}); ants.registration(a, b, {call})"
        subprocess.run([str(python), "-c", code], check=True, capture_output=True)
        parts = [read_transform(f"{folder}/syn_{part}") for part in ("1Warp.nii.gz", "0GenericAffine.mat")]
    return Composite(parts)


def ready(method: str, args: argparse.Namespace) -> str:
    """Empty, or why a method cannot be scored."""
    if method == "syn":
        from verimorph.bench.environments import interpreter

        return "" if interpreter("ants", "bench/environments") else "bench/environments/ants: not set up"
    folder = args.runs / f"half{args.fold}" / method / "model"
    return "" if method == "engine" or folder.is_dir() else f"{folder}: not trained"


def score(args: argparse.Namespace) -> None:
    """Score every method on the pairs of a fold that no network of the fold saw."""
    import numpy as np
    import torch
    import yaml

    from verimorph.data.config import build_data
    from verimorph.nn.heads.label_variance import LabelUncertaintyNetwork
    from verimorph.predict.checks import load_for
    from verimorph.predict.registrar import is_random
    from verimorph.uncertainty.sampler import Draw, ModuleSampler
    from verimorph.uncertainty.segmentation import label_uncertainty, moved_dice, one_hot, score_maps

    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    values = list(STRUCTURES)
    given = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["data"]
    data = build_data({**given, "train": f"half{args.fold}-train", "validation": f"half{args.fold}-score"})
    for method in args.methods:
        if why := ready(method, args):
            print(f"{why}; passed over")
            continue
        module, steps, variant = None, 0, ""
        if method in TRAINED:
            module, card, _ = load_for(args.runs / f"half{args.fold}" / method / "model", task="registration")
            module.eval()
            steps = card.steps
            if args.batch_statistics:
                assert isinstance(module, LabelUncertaintyNetwork), "only proposed has batch statistics"
                module.variance.batch_statistics, variant = True, "-batch"
        for number, batch in enumerate(data.validation_batches()):
            file = args.output / f"{method}{variant}-fold{args.fold}-{number}.json"
            if file.exists():
                continue
            begun, pair = time.perf_counter(), images(batch)
            random = module is not None and is_random(module) and args.draws > 1
            draws = args.draws if random else 2  # twice the same field, for the moments
            if module is None:
                stream = iter([Draw(registered(method, pair["fixed"], pair["moving"]))] * draws)
            else:
                sampler = ModuleSampler(module, fixed=batch["fixed"], moving=batch["moving"], random=random)
                stream = sampler.draws(draws, torch.Generator().manual_seed(args.seed))
            maps = label_uncertainty(
                stream,
                fixed=pair["fixed"],
                moving=pair["moving"],
                moving_labels=pair["moving_labels"],
                values=values,
            )
            result = {
                "method": method + variant,
                "fold": args.fold,
                "pair": number,
                "draws": draws if random else 1,
                "steps": steps,
                "dice": moved_dice(pair["fixed_labels"], maps.moved_labels, values),
                "before": moved_dice(pair["fixed_labels"], one_hot(pair["moving_labels"], values), values),
                **measured(maps.mean_displacement),
                "scores": [asdict(one) for one in score_maps(maps, pair["fixed_labels"], values)] if random else [],
                "seconds": time.perf_counter() - begun,
            }
            file.write_text(json.dumps(result))
            mean = np.nanmean(list(result["dice"].values()))
            print(f"{file.name}: Dice {mean:.3f}, {result['seconds']:.0f} s", flush=True)
            if method in ("proposed", "aleatoric") and not variant:
                arrays = {name.replace(" ", "_"): tensor[0].numpy() for name, tensor in maps.named()}
                np.savez_compressed(
                    file.with_suffix(".npz"),
                    fixed=pair["fixed"].array,
                    moving=pair["moving"].array,
                    truth=pair["fixed_labels"].array,
                    moved=maps.moved_labels[0].numpy(),
                    displacement=maps.mean_displacement[0].numpy(),
                    **arrays,
                )


def table(args: argparse.Namespace) -> None:
    """Write the table of what is scored, and the picture."""
    import numpy as np

    found = [json.loads(file.read_text()) for file in sorted(args.output.glob("*-fold*.json"))]
    by = {name: [one for one in found if one["method"] == name] for name in dict.fromkeys(o["method"] for o in found)}

    def shown(rows: list[list[float]]) -> str:
        """LV, RV, MYO and the mean of the three of each case: mean and standard deviation over cases."""
        each = np.array(rows, dtype=float)
        whole = np.c_[each, np.nanmean(each, 1)]
        return " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(np.nanmean(whole, 0), np.nanstd(whole, 0), strict=True))

    def given(values: tuple[float, ...]) -> str:
        return " | ".join(f"{value:.3f}" for value in values)

    lines = ["| method | LV Dice | RV Dice | MYO Dice | mean Dice | folding % | NDV % | pairs | T | steps |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    by = {name: by[name] for name in sorted(by, key=lambda name: METHODS.index(name.removesuffix("-batch")))}
    some = max(by.values(), key=len, default=[])
    if some:
        before = shown([[one["before"][str(k)] for k in ORDER] for one in some])
        lines += [f"| unregistered | {before} | - | - | {len(some)} | - | - |"]
        lines += [f"| unregistered, published | {given(PUBLISHED_DICE['unregistered'])} | | | | | |"]
    for name, cases in by.items():
        folding, volume = (np.mean([one[key] for one in cases]) for key in ("folding_percent", "ndv_percent"))
        steps = ", ".join(sorted({str(one["steps"]) for one in cases})) if name not in ("syn", "engine") else "-"
        dice = shown([[one["dice"][str(k)] for k in ORDER] for one in cases])
        draws = cases[0]["draws"]
        lines += [f"| {name} | {dice} | {folding:.3f} | {volume:.3f} | {len(cases)} | {draws} | {steps} |"]
        if name in PUBLISHED_DICE:
            lines += [f"| {name}, published | {given(PUBLISHED_DICE[name])} | | | | | |"]
    for name, cases in by.items():
        if not cases[0]["scores"]:
            continue
        maps = list(dict.fromkeys(one["name"] for one in cases[0]["scores"]))
        lines += ["", f"Correlation with label error, whole volume: {name}", ""]
        lines += ["| map | LV | RV | MYO | mean | published mean |", "|---|---|---|---|---|---|"]
        for map_ in maps:
            r = shown([_picked(one, map_, "pearson") for one in cases])
            published = f"{PUBLISHED_R[map_][3]:.3f}" if map_ in PUBLISHED_R else "-"
            lines += [f"| {map_} | {r} | {published} |"]
        lines += ["", f"Controls within five voxels of the structure, means of the three: {name}", ""]
        lines += [
            "| map | Pearson | Spearman | AUROC | AUSE | risk-coverage | missing |",
            "|---|---|---|---|---|---|---|",
        ]
        for map_ in maps:
            cells, missing = [], 0
            for key in ("pearson_near", "spearman_near", "auroc_near", "ause_near", "risk_near"):
                values = np.array([_picked(one, map_, key) for one in cases], dtype=float)
                cells.append(f"{np.nanmean(values):.3f}" if np.isfinite(values).any() else "-")
                missing = max(missing, int(np.isnan(values).sum()))
            lines += [f"| {map_} | {' | '.join(cells)} | {missing} |"]
    text = "\n".join(lines) + "\n"
    (args.output / "table.md").write_text(text)
    print(text)
    picture(args)


def _picked(case: dict, map_: str, key: str) -> list[float]:
    own = {one["label"]: one[key] for one in case["scores"] if one["name"] == map_}
    return [own[label] for label in ORDER]


def picture(args: argparse.Namespace) -> None:
    """One slice of one pair: images, error, and the maps of the myocardium."""
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    files = sorted(args.output.glob("aleatoric-fold*.npz")) or sorted(args.output.glob("proposed-fold*.npz"))
    if not files:
        return
    kept = np.load(files[min(args.picture, len(files) - 1)])
    myocardium = 2
    z = int((kept["truth"] == myocardium).sum((0, 1)).argmax())
    inside = np.argwhere(kept["truth"][..., z] > 0)
    low, high = np.maximum(inside.min(0) - 14, 0), inside.max(0) + 15

    def plane(array: np.ndarray) -> np.ndarray:
        cut = array[..., low[0] : high[0], low[1] : high[1], z]
        return np.moveaxis(cut, -1, -2)[..., ::-1, :]

    truth, moved = plane(kept["truth"]), plane(kept["moved"])
    error = np.abs((truth == myocardium) - moved[myocardium])
    panels = [
        ("fixed, true contours", plane(kept["fixed"]), "gray"),
        ("label error, myocardium", error, "inferno"),
        ("1  transformation: Var |u|", plane(kept["transformation"])[0], "viridis"),
        ("2  appearance", plane(kept["appearance"])[0], "viridis"),
        ("3  epistemic, myocardium", plane(kept["epistemic"])[myocardium], "viridis"),
        ("4  aleatoric, myocardium", plane(kept["aleatoric"])[myocardium], "viridis"),
        ("3 + 4", plane(kept["epistemic_+_aleatoric"])[myocardium], "viridis"),
        ("mutual information", plane(kept["mutual_information"])[myocardium], "viridis"),
    ]
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
    for axis, (title, values, colours) in zip(axes.flat, panels, strict=True):
        axis.imshow(
            values, cmap=colours, origin="upper", vmax=None if colours == "gray" else np.quantile(values, 0.998)
        )
        for value in STRUCTURES:
            colour = "white" if colours != "gray" else {1: "tab:blue", 2: "tab:orange", 3: "tab:green"}[value]
            axis.contour(truth == value, [0.5], colors=colour, linewidths=0.5 if colours != "gray" else 1.2)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.savefig(args.output / "maps.png", dpi=85)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "table"))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/cardiac/scores"))
    parser.add_argument("--runs", type=Path, default=Path("runs/cardiac"))
    parser.add_argument("--fold", type=int, choices=(1, 2), default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--draws", type=int, default=25, help="T")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-statistics", action="store_true", help="the head's normalisation as released")
    parser.add_argument("--picture", type=int, default=0, help="which scored pair is drawn")
    args = parser.parse_args()
    score(args) if args.what == "score" else table(args)


if __name__ == "__main__":
    main()
