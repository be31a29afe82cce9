"""From evidence to a size: what an error is expected to be, and how far off that may be.

A regression of the logarithm of known errors on logarithms of the evidence, normal in the logarithm,

    log(e + e0) ~ N(m(z, inside), s(z, inside)^2),   z_k = (log(x_k + e0) - mean_k) / deviation_k, cut at +-3.5

with m and log s the means over a few small networks (three hidden layers of 64 sigmoid linear units), each kind of
image weighing the same. It has no knowledge of anatomy, and lengths are in voxels of the fixed image, so it carries
from one kind of image to another.

What evidence says of two scans of two people is another matter: they differ however well they are aligned, so m comes
out large and tells little. The size of their errors, taken from drawn surfaces, is the smaller of two, smoothly:

    g = -log(exp(-3 (m + s)) + exp(-3 h)) / 3,    h = h0 + sum_k w_k z_k

with h learned from such pairs. Where two scans are alike, as those of one person, g is m + s, else h.

Seitzer et al., On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks, ICLR 2022
(the likelihood, its terms weighed by the standard deviation); Lange, Little and Taylor, Robust statistical modeling
using the t distribution, JASA 1989 (h: a part of an error is at hand, and some are far off).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Event, Lock

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import linear, silu

from verimorph.errors import OptionError, VerimorphError
from verimorph.field.backend import using_threads
from verimorph.uncertainty.cases import Points, case_weights, columns, is_pairs

FLOOR = 0.02
"""Added to lengths before the logarithm, voxels: below a fiftieth of a voxel differences mean nothing."""
SPREADS = (-2.0, 1.0)
"""Between which the logarithm of the spread is kept."""
HIDDEN = (64, 64, 64)
"""Units of the hidden layers. Size and number of steps were chosen on the cases of the packaged calibration, images
held out: two layers of 48 that see a third as many points lose 0.08 of the log likelihood and have bounds a fifteenth
wider; twice as many units, layers or steps gain 0.01 at most."""
BATCH, STEP_LENGTH, DECAY, PIECE = 1024, 1e-2, 1e-2, 100_000

SHARPNESS, FREEDOM, RIDGE, OF_A_PAIR = 3.0, 3.0, 0.02, 1000
"""Of the size of errors of two scans: how sharply the smaller of two is taken, degrees of freedom of t, weight of the
squared weights, and points of a pair that are learned from. On the pairs of the packaged calibration, images held out,
ridges of 0.005 and 0.1 and networks in place of the sum made no difference that counts; a constant in its place had
bounds as short for brains and hippocampi, and a third longer for abdomens and sections; m in place of m + s longer for
all."""

Layer = tuple[list[list[float]], list[float]]
"""Weights, one row an output, and offsets."""


@dataclass(frozen=True)
class Scale:
    """Predicted size of the error, in units, from evidence, and how far off it may be.

    ``pairs`` holds the weights w of the size of errors of two real scans, and h0 behind them; where it is empty, none
    were learned, and g is m + s.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    networks: tuple[tuple[Layer, ...], ...]
    pairs: tuple[float, ...] = ()

    def __call__(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]
    ) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """m and s: mean and standard deviation of ``log(e + e0)``."""
        found = [(m, s) for _, m, s in self._pieces(evidence, foreground)]
        return np.concatenate([m for m, _ in found]), np.concatenate([s for _, s in found])

    def root_mean_square(
        self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]
    ) -> Float[ndarray, " n"]:
        """Root of the expected squared error, units: ``exp(m + s^2)``, that of a normal logarithm, e0 left in."""
        m, s = self(evidence, foreground)
        return np.exp(m + s**2)

    def of_pairs(self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]) -> Float[ndarray, " n"]:
        """g: logarithm of the size of the errors of two real scans, e0 left in."""
        if not self.pairs:
            return np.concatenate([m + s for _, m, s in self._pieces(evidence, foreground)])
        *weights, offset = self.pairs
        own = _float32([*weights, 0.0])  # nothing for the column of the anatomy
        # By torch, as m and s: threads of a second library would stand in the way of its own.
        return np.concatenate(
            [
                _smaller(m + s, (torch.from_numpy(z) @ own).numpy() + offset)
                for z, m, s in self._pieces(evidence, foreground)
            ]
        )

    def standardised(self, evidence: Float[ndarray, "n k"], foreground: Bool[ndarray, " n"]) -> Float[ndarray, "n c"]:
        """z, and a column of whether the voxel is in the anatomy."""
        return _inputs(_logarithms(evidence), foreground, np.array(self.mean), np.array(self.deviation))

    def _pieces(
        self, evidence: ndarray, foreground: ndarray
    ) -> Iterator[tuple[Float[ndarray, "p c"], Float[ndarray, " p"], Float[ndarray, " p"]]]:
        """z, m and s of so many points at a time: whole images would take gigabytes."""
        nets = [[(_float32(w), _float32(b)) for w, b in net] for net in self.networks]
        for start in range(0, max(len(evidence), 1), PIECE):
            piece = slice(start, start + PIECE)
            z = self.standardised(evidence[piece], foreground[piece])
            m, log_s = _outputs(z, nets).T
            yield z, m, np.exp(np.clip(log_s, *SPREADS))

    def scores(self, points: Points) -> Float[ndarray, " n"]:
        """``(log(e + e0) - m) / s`` of known errors; ``log(e + e0) - g`` of pairs of real scans."""
        evidence, error = columns(points, self.names), np.log(points.error + FLOOR)
        if is_pairs(points.kind):
            return error - self.of_pairs(evidence, points.foreground)
        m, s = self(evidence, points.foreground)
        return (error - m) / s


@torch.no_grad()
def _outputs(z: Float[ndarray, "n c"], nets: list[list[tuple[Tensor, Tensor]]]) -> Float[ndarray, "n 2"]:
    inputs = torch.from_numpy(z)
    total = torch.zeros(len(z), 2, dtype=torch.float64, device="cpu")
    for net in nets:
        x = inputs
        for weight, offset in net[:-1]:
            x = silu(linear(x, weight, offset), inplace=True)
        total += linear(x, *net[-1])
    return (total / len(nets)).numpy()


def _smaller(u: Float[ndarray, " n"], h: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    return -np.logaddexp(-SHARPNESS * u, -SHARPNESS * h) / SHARPNESS


def _float32(values: Sequence) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _logarithms(evidence: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    return np.log(np.asarray(evidence, dtype=np.float64) + FLOOR)


def _inputs(logs: ndarray, foreground: ndarray, mean: ndarray, deviation: ndarray) -> Float[ndarray, "n c"]:
    z = np.clip((logs - mean) / deviation, -3.5, 3.5)
    return np.concatenate([z, foreground[:, None]], axis=1).astype(np.float32)


def fit_scale(
    points: Sequence[Points],
    *,
    names: Sequence[str] | None = None,
    networks: int = 3,
    steps: int | None = None,
    stop: Event | None = None,
) -> Scale:
    """Fit the regression by weighted likelihood; every kind of image weighs the same, and every case within a kind.

    Parameters
    ----------
    names
        Which evidence to use; default all.
    networks
        How many, from different random weights; their outputs are averaged.
    steps
        Of Adam with decoupled decay, on 1024 random points each; the step length rises over the first fiftieth and
        falls to nothing. Default: :func:`steps_for` these cases.
    stop
        Ends the fit early, without a result.
    """
    steps = steps_for(points) if steps is None else steps
    points = with_sizes(points)
    if not points:
        raise OptionError("no cases to calibrate on; give at least one")
    chosen = tuple(names or points[0].names)
    logs = np.concatenate([_logarithms(columns(p, chosen)) for p in points])
    inside = np.concatenate([p.foreground for p in points])
    wanted = np.log(np.concatenate([p.error for p in points]) + FLOOR)
    share = np.concatenate(
        [np.full(len(p.error), w / max(len(p.error), 1)) for p, w in zip(points, case_weights(points), strict=True)]
    )
    share /= share.sum()
    mean = share @ logs
    deviation = np.sqrt(np.maximum(share @ (logs - mean) ** 2, 1e-6))
    z = torch.from_numpy(_inputs(logs, inside, mean, deviation))
    y = torch.from_numpy(wanted.astype(np.float32))
    weight = torch.from_numpy((share * len(share)).astype(np.float32))
    del logs  # twice the size of z
    sizes = [z.shape[1], *HIDDEN, 2]
    random = torch.Generator().manual_seed(0)
    # All networks at once: one batched product a layer. Weights start uniform within one over the root of the inputs.
    layers = []
    for inputs, outputs in pairwise(sizes):
        reach = 1 / math.sqrt(inputs)
        drawn = [
            torch.rand(networks, n, outputs, generator=random, dtype=torch.float32, device="cpu") for n in (inputs, 1)
        ]
        layers.append(tuple(((2 * reach) * one - reach).requires_grad_() for one in drawn))
    with torch.enable_grad():
        optimiser = torch.optim.AdamW([p for layer in layers for p in layer], STEP_LENGTH, weight_decay=DECAY)
        for k in range(steps):
            if stop is not None and stop.is_set():
                raise VerimorphError("the fit was stopped")
            optimiser.param_groups[0]["lr"] = STEP_LENGTH * min(1.0, 50 * (k + 1) / steps) * (1 - k / steps)
            at = torch.randint(0, len(y), (BATCH,), generator=random)
            x = z[at].expand(networks, -1, -1)
            for number, (w, b) in enumerate(layers):
                x = torch.baddbmm(b, x if number == 0 else silu(x), w)
            log_s = x[..., 1].clamp(*SPREADS)
            # Times the root of the variance, held: where much is unsure the mean is still fitted (Seitzer et al. 2022).
            share_of = weight[at] * log_s.detach().exp()
            loss = (share_of * ((x[..., 0] - y[at]).square() * (-2 * log_s).exp() / 2 + log_s)).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    found = tuple(
        tuple((_digits(w[m].T.tolist()), _digits(b[m].tolist())[0]) for w, b in layers) for m in range(networks)
    )
    return Scale(chosen, tuple(mean.tolist()), tuple(deviation.tolist()), found)


def with_pairs(scale: Scale, points: Sequence[Points]) -> Scale:
    """The scale with the size of the errors of two real scans, learned from those of the cases that are such pairs.

    Maximises ``-g - (nu + 1) / 2 log(1 + ((e + e0) / exp(g))^2 / nu)``, every kind weighing the same.
    """
    # Points of a pair are in no order: the first of them are as good as any.
    pairs = [
        replace(p, evidence=p.evidence[:OF_A_PAIR], error=p.error[:OF_A_PAIR], foreground=p.foreground[:OF_A_PAIR])
        for p in points
        if is_pairs(p.kind) and len(p.error)
    ]
    if not pairs:
        return replace(scale, pairs=())
    evidence = np.concatenate([columns(p, scale.names) for p in pairs])
    inside = np.concatenate([p.foreground for p in pairs])
    error = np.log(np.concatenate([p.error for p in pairs]) + FLOOR)
    weights_of = zip(pairs, case_weights(pairs), strict=True)
    share = np.concatenate([np.full(len(p.error), w / len(p.error)) for p, w in weights_of])
    share /= share.sum()
    z = scale.standardised(evidence, inside).astype(np.float64)
    z[:, -1] = 1  # the offset; pairs are known in the anatomy only
    m, s = scale(evidence, inside)

    def loss(weights: ndarray) -> tuple[float, ndarray]:
        h = z @ weights
        g = _smaller(m + s, h)
        # Of the logarithm of the squared ratio: a line search may try sizes of nothing.
        ratio = 2 * (error - g) - math.log(FREEDOM)
        value = share @ (g + (FREEDOM + 1) / 2 * np.logaddexp(0, ratio)) + RIDGE * np.sum(weights[:-1] ** 2)
        of_g = share * (1 - (FREEDOM + 1) * expit(ratio))
        slope = z.T @ (of_g * expit(SHARPNESS * (m + s - h)))
        slope[:-1] += 2 * RIDGE * weights[:-1]
        return float(value), slope

    found = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return replace(scale, pairs=tuple(_digits([found.x.tolist()])[0]))


PASSES, FEWEST_STEPS, MOST_STEPS = 4.6, 1000, 8000
"""Of 24 hearts a thousand steps, about five passes, teach most: of hearts not learned from the mean negative log
likelihood is 0.20 then, 0.73 after two thousand and 1.2 after four; 12 brains and 20 abdomens are alike."""


def steps_for(points: Sequence[Points]) -> int:
    """Steps of about five passes over these cases, within limits: what sees few cases often learns them by heart."""
    count = sum(len(p.error) for p in with_sizes(points))
    return round(min(max(PASSES * count / BATCH, FEWEST_STEPS), MOST_STEPS))


def with_sizes(points: Sequence[Points]) -> list[Points]:
    """Those to learn sizes of errors from: all but pairs of real scans.

    Pairs know a part of their error, to half a voxel: too coarse for small ones.
    """
    return [p for p in points if not is_pairs(p.kind)]


class Fits:
    """`fit_scale` of many sets of cases, a core each, and once for the same cases.

    Nested cross-validation asks for nearly each set twice. ``tell`` is called with a name, the number of fits begun
    before and ``count``, those expected in all.
    """

    def __init__(self, *, count: int = 0, tell: Callable[[str, int, int], None] | None = None) -> None:
        self._held: dict[tuple, tuple[list[Points], Scale]] = {}
        self._count, self._tell = count, tell
        self._begun, self._lock = 0, Lock()

    def __call__(self, sets: Sequence[Sequence[Points]], *, steps: int) -> list[Scale]:
        """The scales of these sets, of so many steps each.

        Products this small gain nothing from a second thread: torch has one until all are done, the whole process.
        """
        asked = [with_sizes(points) for points in sets]
        keys = [
            (steps, *((p.kind, *(id(a) for a in (p.evidence, p.error, p.foreground))) for p in used)) for used in asked
        ]
        # Cases are held beside their fit, so that no others take over the identities.
        new = {key: used for key, used in zip(keys, asked, strict=True) if key not in self._held}
        stop, threads = Event(), torch.get_num_threads()

        def fit(used: list[Points]) -> Scale:
            with self._lock:
                if self._tell is not None:
                    self._tell("learning", self._begun, max(self._count, self._begun + 1))
                self._begun += 1
            return fit_scale(used, steps=steps, stop=stop)

        with using_threads(1), ThreadPoolExecutor(min(threads, BESIDE)) as pool:
            running = {pool.submit(fit, used): key for key, used in new.items()}
            try:
                for one in as_completed(running):
                    self._held[running[one]] = new[running[one]], one.result()
            finally:
                stop.set()  # where one failed, or someone wants to stop, the others need not end
                pool.shutdown(cancel_futures=True)
        return [self._held[key][1] for key in keys]


BESIDE = 4
"""Fits at a time at most: each holds a copy of the evidence."""


def _digits(rows: list[list[float]]) -> list[list[float]]:
    """Five digits are enough, and make the file a third as long."""
    return [[float(f"{value:.5g}") for value in row] for row in rows]
