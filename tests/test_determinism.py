"""Same input, machine and threads: the same bits of a whole registration, in processes that differ in all else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verimorph.demo import make_pair, template
from verimorph.field.backend import kernels_in_use
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.synthetic import random_transform, scan

# Blocks of odd sizes, some kept and some freed, so that every later array lies elsewhere.
SCRIPT = """
import hashlib, random, sys
import numpy as np
random.seed(sys.argv[2])
blocks = [np.empty(random.randrange(16, 1 << random.randrange(5, 18)), np.uint8) for _ in range(2000)]
del blocks[:: 3]
from verimorph import Grid, Image, register
pair = np.load(sys.argv[1])
fixed, moving = (Image.from_array(pair[n], Grid(pair[n].shape, pair[n + "_affine"])) for n in ("fixed", "moving"))
found = register(fixed=fixed, moving=moving, threads=2)
field, linear = found.transform.parts
values = np.array([step.value for step in found.history])
print(found.settings["started_from"].replace(" ", "-"))
inverse = found.inverse.parts[1].displacement
for array in (found.initial.matrix, linear.matrix, values, field.displacement.numpy(), inverse.numpy()):
    print(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
"""


def bits(pair: Path, variant: int) -> list[str]:
    """Register in a fresh process with a hash seed, a heap and garbage in fresh memory (glibc) of its own."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(variant),
        "MALLOC_PERTURB_": str(37 + 100 * variant),
        "OMP_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(pair), str(variant)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def save(path: Path, fixed: Image, moving: Image) -> Path:
    np.savez(
        path, fixed=fixed.array, fixed_affine=fixed.grid.affine, moving=moving.array, moving_affine=moving.grid.affine
    )
    return path


@pytest.mark.slow
def test_bits_do_not_depend_on_process(tmp_path):
    """The template brain at 2 mm, bent, turned and scanned anew."""
    pytest.importorskip("nilearn")
    whole, _ = template()
    affine = whole.grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    voxels = np.ascontiguousarray(whole.array[::2, ::2, ::2])
    fixed = Image.from_array(voxels, Grid(voxels.shape, affine))
    bend = random_transform(fixed.grid, mask=voxels > 0, seed=1)
    moving = scan(bend.resample(fixed, fixed.grid, interpolation="linear"), seed=1)
    pair = save(tmp_path / "pair.npz", fixed, moving)
    assert bits(pair, 0) == bits(pair, 1)


@pytest.mark.proof
def test_bits_do_not_depend_on_process_at_full_size(tmp_path):
    """The pair of ``make demo``."""
    pytest.importorskip("nilearn")
    known = make_pair()
    pair = save(tmp_path / "pair.npz", known.fixed, known.moving)
    first = bits(pair, 0)
    assert [bits(pair, variant) for variant in (1, 2)] == [first, first]


CONSTANT = "VALUE = {}\n"
USES_IT = """
from verimorph.field.kernels.compiling import kernel
from constant import VALUE

@kernel()
def read():
    return VALUE

print(read())
"""


def test_edit_of_one_kernel_file_recompiles_the_others(tmp_path):
    """numba alone takes a kernel as fresh while its own file is unchanged, whatever it was compiled with."""
    if kernels_in_use() != "numba":
        pytest.skip("compiled kernels are not available")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    (tmp_path / "uses_it.py").write_text(USES_IT)
    for value in (1, 2, 2):
        (tmp_path / "constant.py").write_text(CONSTANT.format(value))
        done = subprocess.run(
            [sys.executable, str(tmp_path / "uses_it.py")], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == value
    assert list((tmp_path / "cache").rglob("*.nbc")), "nothing was kept"
