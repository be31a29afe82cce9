"""A way to run the command line inside the test process: starting a new one costs seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from verimorph.cli import run


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def assert_user_error(self, *words: str) -> None:
        """Check that it ended as a user's mistake does: code 2, one line that holds ``words``, no traceback."""
        assert self.code == 2, f"exit code {self.code}, expected 2:\n{self.out}{self.err}"
        errors = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert len(errors) == 1, f"not one line:\n{self.err}"
        assert errors[0].startswith("error: ")
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word.lower() in errors[0].lower(), f"'{word}' not in: {errors[0]}"


@pytest.fixture
def verimorph(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``verimorph`` with the given words and return the `Outcome`."""

    def invoke(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return invoke


def head(shape: Sequence[int], centre: Sequence[float]) -> np.ndarray:
    """A head in voxels: an ellipsoid with texture and a dark, lopsided hollow, soft at the edges, black around it."""
    index = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    x, y, z = ((axis - c) / n for axis, c, n in zip(index, centre, shape, strict=True))
    inside = 1 / (1 + np.exp(40 * (np.sqrt((x / 0.36) ** 2 + (y / 0.40) ** 2 + (z / 0.38) ** 2) - 1)))
    hollow = 1 / (1 + np.exp(12 * (np.sqrt(((x - 0.05) / 0.18) ** 2 + (y / 0.12) ** 2 + ((z - 0.03) / 0.15) ** 2) - 1)))
    texture = np.cos(25 * x + 3 * y) + np.cos(21 * y - 4 * z) + np.cos(23 * z + 5 * x)
    return (inside * (800 + 80 * texture) * (1 - 0.7 * hollow)).astype(np.float32)


@pytest.fixture
def bright() -> np.ndarray:
    """The fixed image of `pair` as voxels."""
    return head((24, 24, 20), (11, 12, 10))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two small images of one head, two voxels apart, with their label maps beside them (``*_labels.nii.gz``)."""
    import nibabel as nib

    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    files = []
    for name, centre in (("fixed", (11, 12, 10)), ("moving", (13, 12, 10))):
        voxels = head((24, 24, 20), centre)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        labels = (voxels > 150).astype(np.uint8) + 2 * (voxels > 500).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}_labels.nii.gz")
        files.append(tmp_path / f"{name}.nii.gz")
    return files[0], files[1]
