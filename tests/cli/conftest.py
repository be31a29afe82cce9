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


def blob(shape: Sequence[int], centre: Sequence[float], width: float = 3.0) -> np.ndarray:
    """A smooth bright blob with a darker one beside it, so that every direction has structure."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).astype(float)
    near = np.exp(-((index - np.asarray(centre)) ** 2).sum(-1) / (2 * width**2))
    beside = np.exp(-((index - np.asarray(centre) - width) ** 2).sum(-1) / (2 * (width / 2) ** 2))
    return (1000 * (near + 0.6 * beside)).astype(np.float32)


@pytest.fixture
def bright() -> np.ndarray:
    """The fixed image of `pair` as voxels."""
    return blob((24, 24, 20), (11, 12, 10))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two small images of one blob, two voxels apart, with their label maps beside them (``*_labels.nii.gz``)."""
    import nibabel as nib

    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    files = []
    for name, centre in (("fixed", (11, 12, 10)), ("moving", (13, 12, 10))):
        voxels = blob((24, 24, 20), centre)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        labels = (voxels > 400).astype(np.uint8) + 2 * (voxels > 800).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}_labels.nii.gz")
        files.append(tmp_path / f"{name}.nii.gz")
    return files[0], files[1]
