"""Tiny data sets in the layouts of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a small NIfTI image: ``write(path, seed=0, labels=3, shape=(8, 9, 10))``."""

    def make(path: Path, *, seed: int = 0, labels: int | None = None, shape: tuple[int, ...] = (8, 9, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        voxels = random.random(shape).astype(np.float32) if labels is None else random.integers(0, labels + 1, shape)
        nib.save(nib.Nifti1Image(voxels.astype(np.float32 if labels is None else np.uint8), np.eye(4)), path)
        return path

    return make


@pytest.fixture
def folder_set(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Six labelled images ``images/sNN_T.nii.gz`` of three subjects with two scans each."""
    for subject in range(3):
        for scan in range(2):
            write(tmp_path / "images" / f"s{subject}_{scan}.nii.gz", seed=10 * subject + scan)
            write(tmp_path / "labels" / f"s{subject}_{scan}.nii.gz", seed=10 * subject + scan, labels=3)
    return tmp_path


@pytest.fixture
def folder_config(folder_set: Path) -> dict:
    """Configuration of that set."""
    return {
        "root": str(folder_set),
        "folder": {
            "images": "images/{id}.nii.gz",
            "labels": "labels/{id}.nii.gz",
            "subject": r"(s\d)_",
            "label_names": {1: "left", 2: "right", 3: "other"},
            "swaps": [[1, 2]],
        },
        "preparation": {"shape": [8, 8, 8], "intensity": "none"},
    }


def write_json(path: Path, content: object) -> Path:
    """Write JSON."""
    path.write_text(json.dumps(content))
    return path
