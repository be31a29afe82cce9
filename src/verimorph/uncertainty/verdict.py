"""Pass, review or fail: whether a registration is broken, from what the evidence says over the anatomy as a whole.

A logistic regression on a few facts of the pair, learned on sound registrations and on ones broken on purpose (wrong
start, wrong organ, left and right exchanged, cut field of view, too stiff, too soft, a similarity that does not fit):

    probability = 1 / (1 + exp(-(b + sum_k w_k z_k))),   z_k = (fact_k - m_k) / s_k, cut to 0 ... 4,   w_k >= 0

Every fact is so made that more of it speaks against the registration and never for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import optimize, special

from verimorph import field as fields
from verimorph import pipeline
from verimorph.solve.linear import LinearKind, LinearObjective, solve_linear
from verimorph.solve.measure import make_measure
from verimorph.solve.pyramid import make_level
from verimorph.solve.schedule import LINEAR_RADIUS, start_spacing
from verimorph.transform import Affine, Transform, parts_of
from verimorph.uncertainty.evidence import Evidence, Look, as_field, base_level, mismatch_after

if TYPE_CHECKING:
    from verimorph.image import Image
    from verimorph.registration import Registration
    from verimorph.uncertainty.bound import Calibration

WORDS = {
    "forward": "a second registration ends {away} away",
    "forward p90": "a second registration ends far away in places",
    "backward": "the way back does not lead to where it began",
    "backward p90": "the way back does not lead to where it began in places",
    "mismatch": "the images still differ after alignment",
    "mismatch coarse": "whole regions still differ after alignment",
    "overlap": "the outlines of the anatomies do not coincide",
    "outside": "part of the anatomy is sent outside the moving image",
    "roughness": "the field is rougher than sound ones are",
    "grain": "the field changes from voxel to voxel as sound ones do not",
    "scale": "the linear part changes the volume much",
    "mirror": "left and right fit better when exchanged",
    "restart": "another start leads to a better fit",
    "linear": "the linear part can still be improved",
}
"""What each fact means when it speaks against a registration."""
NEARLY = "left and right fit nearly as well when exchanged"

SMALL_GAIN = 0.003
"""Difference of the local correlation, mean over the image, above which it is taken by its logarithm: a brain differs
from its mirror image by no more, a chest by ten times as much."""
CUT = (0.0, 4.0)
"""Below the mean of all a fact says nothing: where one thing is wrong, that all others are fine does not make up."""
_TIE = 1e-9
_SECOND_OPINION = 20
_PLAIN = Look("plain", levels=(4,), iterations=(80,), noise=0.0, knock=0.0)
_MISMATCH_SHARE = 0.3
"""Of the mismatch after a deformable look, in the fact ``mirror``: it differs by three times as much as affine fits."""


@dataclass(frozen=True)
class Verdict:
    """``pass``, ``review`` or ``fail``, the probability of being broken (None: not known), and why in one line."""

    verdict: str
    probability: float | None
    reasons: str


def pair_facts(
    registration: Registration,
    evidence: Evidence,
    near: Bool[ndarray, "*space"],
    *,
    whole: Bool[ndarray, "*full"] | None = None,
) -> dict[str, float]:
    """Facts about a pair, free of units: quantiles of the evidence over the anatomy, and a few of the whole.

    ``mirror`` is missing where left and right cannot be told: in 2-D, and in one sagittal slice.

    ``near`` is the anatomy of the fixed image on the evidence grid, ``whole`` its foreground, if it is known,
    on its own. Lengths are logarithms of mean voxels.
    """
    from verimorph.uncertainty.known import anatomy

    where = torch.from_numpy(near)
    maps = evidence.maps

    def quantile(name: str, q: float) -> float:
        values = maps[name].cpu()[where]
        return float(np.quantile(values.numpy(), q)) if len(values) else 0.0

    grid = evidence.grid
    transform = registration.transform
    matrix, u = as_field(transform, registration.fixed.grid, grid)
    moving = registration.moving
    voxel = moving.grid.inverse_affine @ matrix @ grid.affine
    anatomies = (
        anatomy(registration.fixed, registration.fixed_mask, inside=whole),
        anatomy(moving, registration.moving_mask),
    )
    there = torch.from_numpy(anatomies[1].astype(np.float32))[None, None]
    moved = (fields.warp(there, u, matrix=voxel)[0, 0] > 0.5).numpy()
    inside = fields.warp(torch.ones_like(there), u, matrix=voxel)[0, 0].numpy() > 0.5
    both = float((moved & near).sum())
    stretch = maps["stretch"].cpu()[where]
    gains = _second_opinions(registration, matrix, anatomies, near)
    return {
        "forward": math.log(quantile("forward 1", 0.5) + 0.02),
        "forward p90": math.log(quantile("forward 1", 0.9) + 0.02),
        "backward": math.log(quantile("backward 1", 0.5) + 0.02),
        "backward p90": math.log(quantile("backward 1", 0.9) + 0.02),
        "mismatch": math.log(quantile("mismatch 1.5", 0.5) + 0.01),
        "mismatch coarse": math.log(quantile("mismatch 4", 0.75) + 0.01),
        "overlap": 1 - 2 * both / max(float(moved.sum() + near.sum()), 1.0),
        "outside": float((~inside & near).sum() / max(near.sum(), 1)),
        "roughness": math.log(float(stretch.square().mean().sqrt()) + 0.02),
        "grain": math.log(_grain(registration.jacobian.array, anatomies[0]) + 0.005),
        "scale": abs(math.log(max(abs(float(np.linalg.det(matrix[:-1, :-1]))), 1e-3))),
    } | {name: math.asinh(gain / SMALL_GAIN) for name, gain in gains.items()}


def _grain(jacobian: Float[ndarray, "*space"], inside: Bool[ndarray, "*space"]) -> float:
    """Root mean square, over the anatomy, of how the logarithm of the volume change differs between neighbours."""
    logs = np.log(np.clip(jacobian, 1e-3, None))
    total, count = 0.0, 0
    for axis in range(logs.ndim):
        both = np.take(inside, range(1, inside.shape[axis]), axis) & np.take(
            inside, range(inside.shape[axis] - 1), axis
        )
        steps = np.diff(logs, axis=axis)[both]
        total += float(np.square(steps, dtype=np.float64).sum())
        count += steps.size
    return math.sqrt(total / max(count, 1))


def _second_opinions(
    registration: Registration,
    matrix: Float[ndarray, "h h"],
    anatomies: tuple[Bool[ndarray, "..."], Bool[ndarray, "..."]],
    near: Bool[ndarray, "*space"],
) -> dict[str, float]:
    """How much better other fits are, affine (of a rigid result: rigid) on a copy of some ten thousand voxels.

    ``restart``: by how much the loss falls from the best of starts that know nothing of the registration: middle on
    middle, and half a turn of that about each axis. ``linear``: from the linear part itself. ``mirror``: from the
    linear part mirrored in the world plane through the middle of the moving anatomy; and 0.3 times how much less
    mismatch a quick deformable registration leaves from there, at the resolution of the evidence: of a brain and its
    mirror image neither tells by itself. Left out where left and right cannot be told.

    ``anatomies`` are those of the fixed and of the moving image, ``near`` is the former on the grid of the evidence.
    """
    recipe = replace(pipeline.recipe_of(registration.settings), device="cpu")
    first, second = pipeline.prepare_pair(
        fixed=registration.fixed,
        moving=registration.moving,
        fixed_mask=registration.fixed_mask,
        moving_mask=registration.moving_mask,
        recipe=recipe,
    )
    spacing = 0.75 * start_spacing(first.grid, second.grid)
    level = make_level(fixed=first, moving=second, shrink=1, spacing_mm=spacing)
    measure = make_measure(recipe.similarity, radius=LINEAR_RADIUS)
    here, middle = (
        image.grid.index_to_world(np.argwhere(inside)).mean(0)
        for image, inside in zip((registration.fixed, registration.moving), anatomies, strict=True)
    )
    d = registration.fixed.grid.ndim

    def about_middle(signs: Sequence[float]) -> Float[ndarray, "h h"]:
        """Axes of the world reversed, the middle of the moving anatomy kept."""
        change = np.diag([*signs, 1.0])
        change[:d, d] = middle - change[:d, :d] @ middle
        return change

    centred = np.eye(d + 1)
    centred[:d, d] = middle - here
    half_turns = [[-1.0] * d] if d == 2 else [[1.0 if a == axis else -1.0 for a in range(3)] for axis in range(3)]
    mirrored = about_middle([-1.0] + [1.0] * (d - 1)) @ matrix
    starts = [centred, *(about_middle(signs) @ centred for signs in half_turns)]
    stiff = is_linear(registration.transform) and Affine(matrix).kind in ("identity", "translation", "rigid")
    kind: LinearKind = "rigid" if stiff else "affine"

    def best(start: Float[ndarray, "h h"]) -> tuple[Float[ndarray, "h h"], float]:
        free = recipe.free_axes
        return solve_linear(
            level=level, measure=measure, start=start, kind=kind, iterations=_SECOND_OPINION, free_axes=free
        )

    with pipeline.one_blas_thread():
        straight, reflected = best(matrix), best(mirrored)
        others = [float(best(start)[1]) for start in starts]
        now = float(LinearObjective(level, measure).value_and_slope(matrix)[0])
    # That all other starts lead nowhere is no merit, however bad they are.
    gains = {"restart": max(straight[1] - min(others), 0.0), "linear": now - straight[1]}
    if _has_sides(registration.moving) and near.any():
        base = base_level(first, second)
        left = [mismatch_after(_PLAIN, base, found, recipe, near) for found, _ in (straight, reflected)]
        gains["mirror"] = straight[1] - reflected[1] + _MISMATCH_SHARE * (left[0] - left[1])
    return gains


def _has_sides(image: Image) -> bool:
    """Whether left and right can be told: not in one sagittal slice, nor in 2-D, where a slice of a head may be its own
    mirror image."""
    directions = np.abs(image.grid.affine[0, :-1] / image.grid.spacing)
    return image.grid.ndim == 3 and image.grid.shape[int(directions.argmax())] > 1


def is_linear(transform: Transform) -> bool:
    """Whether nothing but linear maps is in it."""
    return all(isinstance(part, Affine) for part in parts_of(transform))


def judge(facts: Mapping[str, float], calibration: Calibration) -> Verdict:
    """The verdict by the weights of a calibration; ``review`` where it has none."""
    learned = calibration.verdict
    if learned is None:
        return Verdict("review", None, f"calibration '{calibration.name}' holds no verdict")
    # A fact that could not be measured says nothing.
    pushes = {
        name: w * float(np.clip((facts[name] - m) / s, *CUT))
        for name, w, m, s in zip(
            learned["names"], learned["weights"], learned["mean"], learned["deviation"], strict=True
        )
        if name in facts
    }
    probability = 1 / (1 + math.exp(-(learned["intercept"] + sum(pushes.values()))))
    if not math.isfinite(probability):
        return Verdict("review", None, "what the verdict is drawn from could not be measured")
    # Where no fact speaks against it all sound ones have one probability, which may be the threshold itself.
    review, fail = float(learned["review"]) + _TIE, float(learned["fail"]) + _TIE
    verdict = "fail" if probability > fail else "review" if probability > review else "pass"
    against = sorted((name for name in pushes if pushes[name] > 0.3), key=lambda name: -pushes[name])[:2]
    if verdict == "pass":
        reasons = "independent registrations agree and the anatomies coincide"
    elif against:
        away = f"{math.exp(facts['forward']) - 0.02:.1f} voxels"
        words = WORDS | ({"mirror": NEARLY} if facts.get("mirror", 0.0) <= 0 else {})
        reasons = "; ".join(words[name].format(away=away) for name in against)
    else:
        reasons = "no single fact stands out"
    return Verdict(verdict, float(probability), reasons)


def learn_verdict(
    facts: Sequence[Mapping[str, float]],
    broken: Sequence[bool],
    *,
    ridge: float = 0.3,
    names: Sequence[str] | None = None,
) -> dict[str, object]:
    """Weights by penalised maximum likelihood; both classes weigh the same.

    The threshold for ``review`` is where 95 % of the broken ones are found, at most the 95th percentile of the sound
    ones; that for ``fail`` is the 99th percentile of the sound ones, at least the one for review and one half: a pair
    that is more like sound ones is not failed.
    """
    chosen = list(names or facts[0])
    x = np.array([[row[name] for name in chosen] for row in facts])
    y = np.array(broken, dtype=float)
    mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = np.clip((x - mean) / deviation, *CUT)
    design = np.c_[np.ones(len(z)), z]
    share = np.where(y > 0, 0.5 / max(y.sum(), 1), 0.5 / max((1 - y).sum(), 1)) * len(y)

    def loss(weights: ndarray) -> tuple[float, ndarray]:
        score = design @ weights
        value = float((share * (np.logaddexp(0, score) - y * score)).sum() + ridge / 2 * (weights[1:] ** 2).sum())
        return value, design.T @ (share * (special.expit(score) - y)) + ridge * np.r_[0, weights[1:]]

    bounds = [(None, None)] + [(0, None)] * len(chosen)
    weights = optimize.minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    p = 1 / (1 + np.exp(-design @ weights))
    sound, bad = p[y == 0], p[y == 1]
    review = float(min(np.quantile(bad, 0.05), np.quantile(sound, 0.95)))
    return {
        "names": chosen,
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
        "weights": weights[1:].tolist(),
        "intercept": float(weights[0]),
        "review": review,
        "fail": float(max(np.quantile(sound, 0.99), review, 0.5)),
        "sound": int((y == 0).sum()),
        "broken": int(y.sum()),
    }
