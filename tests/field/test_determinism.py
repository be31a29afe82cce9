"""Same bits whatever the number of threads, and in another process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from verimorph.field import warp
from verimorph.field.backend import kernels_in_use, plain_torch

SCRIPT = """
import hashlib, sys
import numpy as np
import torch
from verimorph import field
from verimorph.field.backend import set_threads

threads = [int(word) for word in sys.argv[1:]]
shape = (37, 30, 41)
random = torch.Generator().manual_seed(0)
coarse = torch.randn(1, 6, 5, 5, 5, generator=random)
u, v = field.resize(coarse, shape).split(3, dim=1)
image = torch.rand(1, 2, *shape, generator=random)
matrix = np.eye(4) + np.pad(0.05 * np.random.default_rng(0).normal(size=(3, 4)), ((0, 1), (0, 0)))
for number in threads:
    set_threads(number)
    leaf, picture = u.clone().requires_grad_(), image.clone().requires_grad_()
    moved = field.warp(picture, field.compose(leaf, leaf), matrix=matrix)
    results = [
        moved, *torch.autograd.grad(moved.square().sum(), (leaf, picture)),
        field.warp(image, u, mode="nearest"), *field.warp_with_gradient(image[:, :1], u, matrix=matrix),
        field.sample(image, u * 10), field.exponentiate(v), *field.invert(u, iterations=6, tolerance=0.0),
        field.jacobian_determinant(u), field.gaussian_smooth(u, 1.73), field.gaussian_smooth(u, 9.0, border="zero"),
        field.box_mean(image, 4),
    ]
    whole = b"".join(np.ascontiguousarray(torch.as_tensor(x).detach().numpy()).tobytes() for x in results)
    print(hashlib.sha256(whole).hexdigest())
"""


def fingerprints(*threads: int) -> list[str]:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, threads)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bits_do_not_depend_on_threads_or_process():
    if kernels_in_use() != "numba":
        pytest.skip("compiled kernels are not available")
    first = fingerprints(1, 2, 3)
    assert len(first[0]) == len(hashlib.sha256().hexdigest())
    assert len(set(first)) == 1
    assert fingerprints(2) == first[:1]


@pytest.mark.parametrize("shape", [(12, 7, 6), (13, 7, 6), (1, 7, 6)])
def test_slabs_read_as_a_batch_change_nothing(shape, smooth_noise):
    """With several threads the torch back end hands slabs to ``grid_sample`` as a batch: same bits, same gradient."""
    image, u = smooth_noise((9, 8, 7), 2, 1.0), smooth_noise(shape, 3, 2.0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with plain_torch():
                leaf = u.clone().requires_grad_()
                moved = warp(image, leaf)
                results.append((moved.detach(), *torch.autograd.grad(moved.sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
