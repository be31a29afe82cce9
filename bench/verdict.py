"""Sound registrations and ones broken on purpose, over all development sets: what the verdict is learned from.

    python bench/verdict.py measure runs/verdict.jsonl          facts of every registration; goes on where it stopped
    python bench/verdict.py table runs/verdict.jsonl            how well verdicts do on sets they were not learned on
    python bench/verdict.py learn runs/verdict.jsonl FILE       write the weights into a calibration
    python bench/verdict.py check runs/unseen.jsonl --unseen    the packaged verdict on rows that others measured

Images are registered as they are, at full resolution, as people register them. The whole takes an hour or more of one
core; several may share it by `--only`. With ``--slices FOLDER`` the same for 2-D images, in a file of their own: FOLDER
is where ``bench/slices.py`` has cut slices from volumes. With ``--unseen`` sets that no verdict was learned from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from verimorph import pipeline
from verimorph.errors import VerimorphError
from verimorph.image import Image
from verimorph.inputs import Inputs
from verimorph.io import read_image
from verimorph.registration import Registration, _assemble, register
from verimorph.synthetic import change_contrast
from verimorph.transform import Affine, identity
from verimorph.uncertainty.assess import on_evidence
from verimorph.uncertainty.bound import read_calibration, write_calibration
from verimorph.uncertainty.evidence import gather
from verimorph.uncertainty.known import foreground, known_pair
from verimorph.uncertainty.metrics import auroc
from verimorph.uncertainty.verdict import judge, learn_verdict, pair_facts

HARMED = 0.95
"""A registration broken on purpose counts as broken if its Dice is at most this share of the sound one's."""
SETS = {
    "cardiac": ("cardiac_cine_acdc", "*_ed_image.nii.gz", 5, 10),
    "hippocampus": ("hippocampus_mr", "*_image.nii.gz", 6, 12),
    "brain": ("brain_t1_oasis", "*_t1_brain.nii.gz", 5, 10),
    "abdomen": ("abdomen_mr_chaos", "*_t2spir.nii.gz", 5, 10),
    "lung": ("lung_mr_proton", "*_h1.nii.gz", 2, 2),
    "head": ("brain_multimodal_ms", "*visit?_*[RW].nii.gz", 6, 6),
}
"""Folder, images, how many of them, how many sound pairs are made of these. Heads: T1, T2 and FLAIR of one person."""
UNSEEN = {
    "tumour": ("brain_multimodal_tumour", "*.nii.gz", 3, 6),
    "spine": ("spine_multimodal", "t[12].nii.gz", 2, 2),
    "cord": ("spine_multimodal", "mt[01_]*.nii.gz", 3, 6),
    "lung-ct": ("lung_ct_pair", "[fm]*[ep].nii.gz", 2, 2),
}
"""The same of sets that the packaged verdict was not learned on: several contrasts of one person, and a lung twice."""
SLICES = {
    "slice": ("brain_t1_slices_2d", "*_t1.nii.gz", 10, 20),
    "histology": ("brain_histology_mr_2d", "allen_0[1-4]?_mri.png", 8, 8),
    "section": ("brain_histology_mr_2d", "allen_0[1-4]?_histology_affine.png", 8, 8),
    "heart-slice": ("heart", "*_ed-50_image.nii.gz", 10, 20),
}
"""The same of 2-D images; hearts are cut from volumes. Sections pair with the next ones of the same brain."""
UNLABELLED = ("head", "tumour", "spine", "cord", "lung-ct")
DRAWN = ("label", "cord", "mask")
"""In the names of files that people or programs have drawn, not scanned."""
WORDS = ("pass", "review", "fail")
BROKEN = ("start", "organ", "flipped", "cut", "stiff", "soft", "similarity")


@dataclass(frozen=True)
class Suite:
    """The sets that one verdict is learned on, and where they lie."""

    sets: dict[str, tuple[str, str, int, int]]
    cut: Path | None = None
    """Of slices: where those that were cut from volumes lie."""
    beside: dict[str, tuple[str, str, int, int]] = field(default_factory=dict)
    """Sets that wrong organs are taken from, too."""

    @property
    def ndim(self) -> int:
        """Of the images."""
        return 3 if self.cut is None else 2

    def images(self, name: str) -> list[Path]:
        """The images of a set."""
        folder, pattern, count, _ = (self.beside | self.sets)[name]
        data = Path(os.environ.get("VERIMORPH_DATA", "../shared/data"))
        root = self.cut / folder if self.cut is not None and name == "heart-slice" else data / folder
        scans = [file for file in sorted(root.glob(pattern)) if not any(word in file.name for word in DRAWN)]
        return scans[:count]

    def pair(self, name: str, number: int) -> tuple[Path, Path]:
        """Fixed and moving image: the two phases of a heart, one way and then the other; elsewhere the next, then those
        after it."""
        files = self.images(name)
        file, turn = files[number % len(files)], number // len(files)
        if name in ("cardiac", "heart-slice"):
            both = file, file.with_name(file.name.replace("_ed", "_es"))
            return both if turn % 2 == 0 else both[::-1]
        return file, files[(number + 1 + turn) % len(files)]

    def other_organ(self, name: str, number: int) -> Path:
        """An image of something else."""
        if self.cut is not None:  # all other sets of slices are brains
            kinds = ["abdomen", "lung-mr"] if name == "heart-slice" else ["abdomen", "heart"]
            files = sorted((self.cut / kinds[number % 2]).glob("*_image.nii.gz"))
            return files[number % len(files)]
        others = [other for other in self.beside | self.sets if other != name]
        return self.images(others[number % len(others)])[0]

    def jobs(self) -> Iterator[tuple[str, str, int]]:
        """Sound and broken ones of every set; broken twice each way, of slices, which are quick, every other image."""
        for name, (_, _, count, pairs) in self.sets.items():
            for number in range(pairs):
                yield name, "sound", number
                if number < count and number % 2 == 0:
                    yield name, "known", number
            for k, kind in enumerate(BROKEN):
                if name in UNLABELLED and kind in ("soft", "similarity"):
                    continue  # nothing would tell whether it did harm
                if self.ndim == 2 and kind == "flipped":
                    continue  # nothing tells the left of a slice from its right
                twice = sorted({k % count, (k + 1) % count if count < 3 else (k + 2) % count})
                for number in range(k % 2, count, 2) if self.ndim == 2 else twice:
                    yield name, kind, number


def one(suite: Suite, name: str, kind: str, number: int) -> Registration:
    fixed, moving = (read_image(file) for file in suite.pair(name, number))
    random = np.random.default_rng(number)
    if kind == "known":
        pair = known_pair(fixed, seed=900 + number)
        return register(fixed=pair.fixed, moving=pair.moving)
    if kind == "sound":
        return register(fixed=fixed, moving=moving)
    if kind == "organ":
        return register(fixed=fixed, moving=read_image(suite.other_organ(name, number)))
    if kind == "start":
        return register(fixed=fixed, moving=moving, initial=_far_start(moving, random), stages=("affine", "deformable"))
    if kind == "flipped":
        return register(fixed=fixed, moving=moving.with_array(np.ascontiguousarray(_mirrored(moving))))
    if kind == "cut":
        return register(fixed=fixed, moving=_cut(moving, random))
    if kind == "stiff":
        # As if the smoothing were so strong that nothing but the coarsest moves, from a start that is off.
        pair = known_pair(fixed, seed=700 + number)
        d = fixed.grid.ndim
        off = np.eye(d + 1)
        off[:d, d] = random.standard_normal(d) * 6 * float(fixed.grid.spacing.mean())
        return register(
            fixed=pair.fixed,
            moving=pair.moving,
            initial=Affine(off),
            stages=("deformable",),
            levels=(4,),
            iterations=(3,),
        )
    if kind == "soft":
        return _soft(fixed, moving)
    changed = fixed.with_array(change_contrast(_positive(fixed), fold=0.8).astype(np.float32))
    return register(fixed=changed, moving=moving, similarity="mse")


def _positive(image: Image) -> np.ndarray:
    values = image.array.astype(np.float32)
    return values - np.percentile(values, 0.5)


def _far_start(moving: Image, random: np.random.Generator) -> Affine:
    centre = moving.grid.index_to_world(np.argwhere(foreground(moving))).mean(0)
    d = moving.grid.ndim
    angle = np.radians(random.uniform(60, 180))
    matrix = np.eye(d + 1)
    if d == 2:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    else:
        axis = random.standard_normal(3)
        turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    matrix[:d, :d] = turn
    matrix[:d, d] = centre - turn @ centre
    return Affine(matrix)


def _mirrored(image: Image) -> np.ndarray:
    axis = int(np.argmax(np.abs(image.grid.direction[0])))
    return np.flip(image.array, axis)


def _cut(image: Image, random: np.random.Generator) -> Image:
    inside = np.argwhere(foreground(image))
    axis = int(random.integers(image.grid.ndim))
    low, high = inside[:, axis].min(), inside[:, axis].max()
    middle = int(low + (high - low) * random.uniform(0.4, 0.6))
    window = [slice(None)] * image.grid.ndim
    window[axis] = (
        slice(0, max(middle, 4)) if random.random() < 0.5 else slice(min(middle, image.grid.shape[axis] - 4), None)
    )
    start = [s.start or 0 for s in window]
    array = np.ascontiguousarray(image.array[tuple(window)])
    affine = image.grid.affine.copy()
    affine[:-1, -1] = image.grid.index_to_world(np.array([start]))[0]
    return Image.from_array(array, type(image.grid)(array.shape, affine), name=image.name)


def _soft(fixed: Image, moving: Image) -> Registration:
    recipe = pipeline.make_recipe()
    recipe = replace(recipe, deformable=replace(recipe.deformable, update_sigma=0.4, total_sigma=0.0))
    given = Inputs(fixed, moving, None, None, None, None, None, None)
    first, second = pipeline.prepare_pair(fixed=fixed, moving=moving, fixed_mask=None, moving_mask=None, recipe=recipe)
    return _assemble(given, recipe, pipeline.run(fixed=first, moving=second, recipe=recipe), {})


_LABELS = (
    *(("_image", "_labels"), ("_t1_brain", "_labels"), ("_t2spir", "_labels"), ("_h1", "_lobes"), ("_t1.", "_labels.")),
    *(("_mri.", "_mri_labels."), ("_affine.", "_affine_labels.")),
)


def labels_of(file: Path) -> Path:
    """The label map that belongs to an image of the development sets."""
    for old, new in _LABELS:
        if old in file.name:
            return file.with_name(file.name.replace(old, new))
    raise VerimorphError(f"{file.name}: no label map is known for it")


def overlap(pair: tuple[Path, Path], found: Registration) -> float:
    """Mean Dice of a pair's labels on the fixed grid."""
    drawn, moving = (read_image(labels_of(file)) for file in pair)
    fixed = identity(found.fixed.grid.ndim).resample(drawn, found.fixed.grid, interpolation="nearest").array
    moved = found.transform.resample(moving, found.fixed.grid, interpolation="nearest").array
    own = [label for label in np.unique(fixed) if label != 0]
    return float(
        np.mean([2 * ((fixed == k) & (moved == k)).sum() / ((fixed == k).sum() + (moved == k).sum()) for k in own])
    )


def measure(suite: Suite, out: Path, only: Callable[[str], bool]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["set"], r["kind"], r["number"]) for r in rows(out)}
    for name, kind, number in suite.jobs():
        if (name, kind, number) in done or not only(name):
            continue
        begun = time.time()
        try:
            found = one(suite, name, kind, number)
            evidence = gather(fixed=found.fixed, moving=found.moving, transform=found.transform)
            facts = pair_facts(found, evidence, on_evidence(foreground(found.fixed), evidence.grid))
        except VerimorphError as error:
            print(name, kind, number, "refused:", error, flush=True)
            continue
        labelled = name not in UNLABELLED and kind in ("sound", "soft", "start", "similarity")
        dice = overlap(suite.pair(name, number), found) if labelled else None
        row = {"set": name, "kind": kind, "number": number, "dice": dice, "facts": facts}
        with open(out, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(
            name, kind, number, f"{time.time() - begun:.0f} s", {k: round(v, 2) for k, v in facts.items()}, flush=True
        )


def usable(found: list[dict]) -> list[dict]:
    """Without what was meant to be broken and is not: its labels overlap as well as those of the sound registration."""
    sound = {(r["set"], r["number"]): r["dice"] for r in found if r["kind"] == "sound"}

    def harmed(row: dict) -> bool:
        reference = sound.get((row["set"], row["number"]))
        return (
            row["kind"] not in BROKEN or row["dice"] is None or reference is None or row["dice"] <= HARMED * reference
        )

    return [row for row in found if harmed(row)]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def hash_of(suite: Suite, row: dict) -> int:
    """A number that depends on the fixed image alone, so that what is made of it stays together."""
    return sum(ord(letter) for letter in row["set"]) + 3 * (row["number"] % suite.sets[row["set"]][2])


def table(suite: Suite, path: Path) -> None:
    found = usable(rows(path))
    print(f"{len(rows(path)) - len(found)} meant to be broken are as good as sound ones and left out")
    broken = np.array([r["kind"] in BROKEN for r in found])
    facts = [r["facts"] for r in found]
    base = read_calibration("general", ndim=suite.ndim)
    scores, verdicts = np.zeros(len(found)), np.array(["" for _ in found], dtype=object)
    for name in suite.sets:
        own = np.array([r["set"] == name for r in found])
        if not own.any():
            continue
        learned = learn_verdict([f for f, o in zip(facts, own, strict=True) if not o], broken[~own].tolist())
        held = replace(base, verdict=learned)
        for i in np.flatnonzero(own):
            one_verdict = judge(facts[i], held)
            scores[i], verdicts[i] = one_verdict.probability, one_verdict.verdict
        sound, bad = int((~broken[own]).sum()), int(broken[own].sum())
        area = f"AUROC {auroc(scores[own], broken[own]):.3f} on " if bad else ""
        print(f"{name}: {area}{sound} sound and {bad} broken")
    print(f"all sets, each judged without itself: AUROC {auroc(scores, broken):.3f}")
    at95 = np.quantile(scores[broken], 0.05)
    print(f"false alarms at 95 % detection: {100 * (scores[~broken] >= at95).mean():.1f} %")
    dealt, words = np.zeros(len(found)), np.array(["" for _ in found], dtype=object)
    for fold in range(10):
        own = np.array([hash_of(suite, r) % 10 == fold for r in found])
        learned = learn_verdict([f for f, o in zip(facts, own, strict=True) if not o], broken[~own].tolist())
        for i in np.flatnonzero(own):
            one_verdict = judge(facts[i], replace(base, verdict=learned))
            dealt[i], words[i] = one_verdict.probability, one_verdict.verdict
    alarms = 100 * (dealt[~broken] >= np.quantile(dealt[broken], 0.05)).mean()
    print(f"every tenth judged without itself: AUROC {auroc(dealt, broken):.3f}; false alarms {alarms:.1f} %")
    print("pass / review / fail, judged without their tenth, and without their set:")
    for kind in ("sound", "known", *BROKEN):
        own = np.array([r["kind"] == kind for r in found])
        counts = [" / ".join(str(int((w[own] == v).sum())) for v in WORDS) for w in (words, verdicts)]
        print(f"{kind:12s} {counts[0]:14s} {counts[1]}")


def check(suite: Suite, path: Path) -> None:
    """Judge rows by the packaged verdict."""
    found = usable(rows(path))
    broken = np.array([r["kind"] in BROKEN for r in found])
    packaged = read_calibration("general", ndim=suite.ndim)
    verdicts = [judge(r["facts"], packaged) for r in found]
    scores = np.array([one.probability for one in verdicts])
    alarms = 100 * (scores[~broken] >= np.quantile(scores[broken], 0.05)).mean()
    print(f"AUROC {auroc(scores, broken):.3f}; false alarms at 95 % detection {alarms:.1f} %; pass / review / fail:")
    for name in suite.sets:
        for word, wanted in (("sound", False), ("broken", True)):
            own = [
                v.verdict for v, r, b in zip(verdicts, found, broken, strict=True) if r["set"] == name and b == wanted
            ]
            print(f"{name:12s} {word:7s} {' / '.join(str(own.count(v)) for v in WORDS)}")


def learn(path: Path, calibration: Path) -> None:
    found = usable(rows(path))
    learned = learn_verdict([r["facts"] for r in found], [r["kind"] in BROKEN for r in found])
    write_calibration(replace(read_calibration(calibration), verdict=learned), calibration)
    print(json.dumps(learned, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table", "learn", "check"))
    parser.add_argument("rows", type=Path)
    parser.add_argument("calibration", type=Path, nargs="?")
    parser.add_argument("--only", help="of these sets, with commas")
    parser.add_argument("--slices", type=Path, metavar="FOLDER", help="2-D images; slices cut from volumes lie here")
    parser.add_argument("--unseen", action="store_true", help="sets that the packaged verdict has not seen")
    arguments = parser.parse_args()
    suite = Suite(SETS) if arguments.slices is None else Suite(SLICES, arguments.slices)
    if arguments.unseen:
        suite = Suite(UNSEEN, beside=SETS)
    if arguments.what == "measure":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
        names = None if arguments.only is None else arguments.only.split(",")
        measure(suite, arguments.rows, lambda name: names is None or name in names)
    elif arguments.what == "table":
        table(suite, arguments.rows)
    elif arguments.what == "check":
        check(suite, arguments.rows)
    elif arguments.calibration is None:
        sys.exit("learn needs the calibration file to write to")
    else:
        learn(arguments.rows, arguments.calibration)
