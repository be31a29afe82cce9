"""Compiled kernels give the values of plain torch, and the same bits whatever the number of threads."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import torch

from verimorph.field.backend import kernels_in_use, plain_torch
from verimorph.objective import regularity
from verimorph.objective import similarity as s

pytestmark = pytest.mark.skipif(kernels_in_use() != "numba", reason="no numba here: plain torch is all there is")

SHAPES = [(37, 21), (19, 37, 23), (1, 9, 8), (40, 3, 18)]


def double(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def both_ways(function, *arguments, **options):
    """Kernel in float32 and plain torch in float64."""
    kernel = function(*arguments, **options)
    with plain_torch():
        plain = function(*map(double, arguments), **{name: double(value) for name, value in options.items()})
    return kernel, plain


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", ["valid", "zeros"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("radius", [2, 4, 12])
def test_lncc(shape, border, masked, radius, textured):
    fixed, moved = (textured(shape, seed, batch=2, channels=2).float() for seed in (1, 2))
    options = {"border": border}
    if masked:
        options["mask"] = (textured(shape, 3, batch=2) > 0.4).float()
        options["weight"] = textured(shape, 4, batch=2).float()
    (value, gradient), (expected, slope) = both_ways(s.lncc_value_and_gradient, fixed, moved, radius, **options)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
    assert (gradient.double() - slope).abs().max() <= 2e-4 * slope.abs().max()


def test_lncc_statistics_are_reused(textured):
    fixed, moved = textured((12, 13, 14), 1).float(), textured((12, 13, 14), 2).float()
    statistics = s.lncc_statistics(fixed, 3)
    for seed in range(2):
        moved = textured((12, 13, 14), 5 + seed).float()
        kept = s.lncc_value_and_gradient(fixed, moved, 3, statistics=statistics)
        fresh = s.lncc_value_and_gradient(fixed, moved, 3)
        assert torch.equal(kept[0], fresh[0])
        assert torch.equal(kept[1], fresh[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_mse(shape, masked, textured):
    fixed, moved = (textured(shape, seed, batch=2, channels=3).float() for seed in (1, 2))
    options = {"mask": (textured(shape, 3) > 0.4).float(), "weight": textured(shape, 4).float()} if masked else {}
    (value, gradient), (expected, slope) = both_ways(s.mse_value_and_gradient, fixed, moved, **options)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", ["bspline", "mattes"])
@pytest.mark.parametrize("form", ["mutual", "normalised"])
@pytest.mark.parametrize("masked", [False, True])
def test_mutual_information(shape, window, form, masked, textured):
    fixed, moved = (textured(shape, seed, batch=2).float() for seed in (1, 2))
    moved = moved * 1.2 - 0.1  # some values beyond the range
    options = {"window": window, "form": form}
    if masked:
        options |= {"mask": (textured(shape, 3, batch=2) > 0.4).float(), "weight": textured(shape, 4, batch=2).float()}
    result = both_ways(s.mutual_information_value_and_gradient, fixed, moved, 16, **options)
    (value, gradient), (expected, slope) = result
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert (gradient.double() - slope).abs().max() <= 1e-3 * slope.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 2), (1, 3)])
def test_mind_ssc(shape, radius, dilation, textured):
    descriptors, expected = both_ways(s.mind_ssc, textured(shape, batch=2).float(), radius, dilation)
    torch.testing.assert_close(descriptors.double(), expected, rtol=0, atol=2e-4)


def slopes(measure, fixed, moved, **options):
    """Gradients by both images: kernel in float32, plain torch in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [image.to(dtype).requires_grad_() for image in (fixed, moved)]
        measure(
            *leaves, **{n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in options.items()}
        ).backward()
        results.append([leaf.grad.double() for leaf in leaves])
    return zip(*results, strict=True)


@pytest.mark.parametrize("shape", [(9, 8, 10), (13, 11), (1, 6, 7), (3, 9, 2)])
@pytest.mark.parametrize(("radius", "dilation"), [(2, 2), (3, 1)])
def test_mind_gradient(shape, radius, dilation, textured):
    fixed, moved = textured(shape, 1, batch=2), textured(shape, 2, batch=2)
    for single, exact in slopes(s.mind_distance, fixed, moved, radius=radius, dilation=dilation):
        assert (single - exact).abs().max() <= 1e-3 * exact.abs().max()


@pytest.mark.parametrize("measure", [s.correlation_ratio, s.local_correlation_ratio, s.local_mutual_information])
@pytest.mark.parametrize("shape", [(13, 11), (14, 3, 9)])
def test_patches_and_binned_moments(measure, shape, textured):
    fixed, moved = textured(shape, 1, batch=2), textured(shape, 2, batch=2) * 1.2 - 0.1
    mask = (textured(shape, 3) > 0.3).double()
    options = {"bins": 7, "mask": mask} if measure is s.correlation_ratio else {"bins": 7, "mask": mask, "patch": 5}
    value = measure(fixed.float(), moved.float(), **{**options, "mask": mask.float()})
    torch.testing.assert_close(value.double(), measure(fixed, moved, **options), rtol=1e-5, atol=1e-6)
    for single, exact in slopes(measure, fixed, moved, **options):
        assert (single - exact).abs().max() <= 1e-3 * exact.abs().max()


REGULARISERS = {
    "diffusion": regularity.diffusion,
    "tv": regularity.total_variation,
    "bending": regularity.bending,
    "elastic": regularity.linear_elasticity,
    "folding": functools.partial(regularity.jacobian_folding, margin=0.1),
    "log volume": functools.partial(regularity.jacobian_volume, floor=0.3, stencil="corners"),
    "volume": functools.partial(regularity.jacobian_volume, floor=0.3, form="symmetric"),
}


@pytest.mark.parametrize("measure", REGULARISERS)
@pytest.mark.parametrize("shape", [(13, 11), (20, 9, 14), (35, 3, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_regularisers(measure, shape, masked, textured):
    ndim = len(shape)
    generator = torch.Generator().manual_seed(5)
    field = torch.randn(2, ndim, *shape, generator=generator, dtype=torch.float64)
    options = {"reduction": "none"}
    if measure in ("diffusion", "tv", "bending", "elastic"):
        options["spacing"] = (1.5, 0.7, 2.0)[:ndim]
    if masked:
        options["mask"] = (textured(shape, 3, batch=2) > 0.2).double()
        options["weight"] = textured(shape, 4, batch=2).double() + 0.5
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = field.to(dtype).requires_grad_()
        value = REGULARISERS[measure](
            leaf, **{n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in options.items()}
        )
        (value * value.new_tensor([1.0, 3.0])).sum().backward()
        results.append((value.double(), leaf.grad.double()))
    (value, gradient), (expected, slope) = results
    assert expected.min() > 0
    torch.testing.assert_close(value, expected, rtol=2e-6, atol=0)
    assert (gradient - slope).abs().max() <= 1e-5 * slope.abs().max()


FAST = {
    "lncc": lambda f, m, **o: s.lncc_value_and_gradient(f, m, 2, **o),
    "mse": s.mse_value_and_gradient,
    "mi": lambda f, m, **o: s.mutual_information_value_and_gradient(f, m, 12, **o),
}
SLOW = {
    "lncc": lambda f, m, **o: s.lncc(f, m, radius=2, map=True, **o).sum() / o["mask"].sum(),
    "mse": lambda f, m, **o: ((f - m) ** 2 * o["mask"] * o["weight"]).sum() / o["mask"].sum(),
    "mi": lambda f, m, **o: s.mutual_information(f, m, bins=12, **o),
}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_is_that_of_autograd(name, dtype, textured):
    fixed, moved = textured((9, 8, 10), 1).to(dtype), textured((9, 8, 10), 2).to(dtype)
    options = {"mask": (textured((9, 8, 10), 3) > 0.3).to(dtype), "weight": textured((9, 8, 10), 4).to(dtype)}
    leaf = moved.double().requires_grad_()
    with plain_torch():
        expected = SLOW[name](fixed.double(), leaf, **{k: v.double() for k, v in options.items()})
    (slope,) = torch.autograd.grad(expected, leaf)
    value, gradient = FAST[name](fixed, moved, **options)
    torch.testing.assert_close(value[0].double(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert (gradient.double() - slope).abs().max() <= (1e-8 if dtype == torch.float64 else 1e-3) * slope.abs().max()
    assert FAST[name](fixed, moved, gradient=False, **options)[1] is None


DIGEST = """
import hashlib, torch
from verimorph.objective import regularity
from verimorph.objective import regularity as r, similarity as s
def digest():
    fixed, moved = torch.rand(2, 1, 1, 66, 58, 47, generator=torch.Generator().manual_seed(0))
    field = torch.randn(1, 3, 66, 58, 47, generator=torch.Generator().manual_seed(1)).requires_grad_()
    slopes = []
    for penalty in (r.diffusion, r.total_variation, r.bending, r.linear_elasticity, r.jacobian_folding):
        slopes += torch.autograd.grad(penalty(field), field)
    leaf = moved.clone().requires_grad_()
    parts = [
        *slopes,
        *torch.autograd.grad(s.mind_distance(fixed, leaf), leaf),
        *s.lncc_value_and_gradient(fixed, moved, 4),
        *s.mse_value_and_gradient(fixed, moved),
        *s.mutual_information_value_and_gradient(fixed, moved),
        s.mind_ssc(fixed),
        *(measure(fixed, moved, mask=(fixed > 0.1).float()) for measure in (s.pearson, s.lncc_gaussian, s.ssim, s.mae)),
        *(measure(fixed, moved, weight=moved) for measure in (s.correlation_ratio, s.local_mutual_information, s.ngf)),
    ]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
"""
TWO_THREADS = DIGEST + "import numba; numba.set_num_threads(2); torch.set_num_threads(2); print(digest())"


def test_same_bits_for_any_number_of_threads_in_another_process():
    here: dict = {}
    exec(DIGEST, here)
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", TWO_THREADS]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here["digest"]()
