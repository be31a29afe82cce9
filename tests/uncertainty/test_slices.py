"""The packaged verdict of slices, on real ones that it was not learned from, and the packaged bound.

The calibration of the bound has seen these images deformed by other maps: the sets have no more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from verimorph.image import Image
from verimorph.io import read_image
from verimorph.registration import Registration, register

SLICES = "brain_t1_slices_2d"


def sure(fixed: Image, moving: Image) -> Registration:
    return register(fixed=fixed, moving=moving, uncertainty=True)


@pytest.fixture(scope="module")
def sections(data_folder: Path) -> list[Image]:
    folder = data_folder / "brain_histology_mr_2d"
    return [read_image(folder / f"allen_{number}_histology_affine.png") for number in ("036", "038")]


def test_slices_of_two_people_and_neighbouring_sections_pass(data_folder, sections):
    files = sorted((data_folder / SLICES).glob("*_t1.nii.gz"))[-2:]
    for fixed, moving in ([read_image(file) for file in files], sections):
        found = sure(fixed, moving).uncertainty
        assert found.verdict == "pass", found.reasons


def test_half_a_turn_is_found_and_passes(sections):
    fixed, moving = sections
    turned = sure(fixed, moving.with_array(np.ascontiguousarray(np.rot90(moving.array, 2))))
    assert turned.uncertainty.verdict == "pass", turned.uncertainty.reasons
    straight = register(fixed=fixed, moving=moving).moved.array
    assert np.corrcoef(turned.moved.array.ravel(), straight.ravel())[0, 1] > 0.95


def test_another_organ_does_not_pass(data_folder, sections):
    brain = read_image(sorted((data_folder / SLICES).glob("*_t1.nii.gz"))[-1])
    volume = read_image(data_folder / "abdomen_mr_chaos" / "chaos10_t2spir.nii.gz")
    abdomen = Image.from_array(np.ascontiguousarray(volume.array[:, :, 12]))
    for fixed in (brain, sections[0]):
        found = sure(fixed, abdomen).uncertainty
        assert found.verdict != "pass", found.reasons


def test_the_bound_holds_for_a_slice_and_its_warped_copy(data_folder):
    brain = read_image(sorted((data_folder / SLICES).glob("*_t1.nii.gz"))[-1])
    random = np.random.default_rng(0)
    u = np.stack([ndimage.gaussian_filter(random.standard_normal(brain.grid.shape), 15) for _ in range(2)])
    u *= 4 / np.abs(u).max()
    at = np.indices(brain.grid.shape) + u
    warped = ndimage.map_coordinates(brain.array.astype(float), at, order=3, mode="nearest")
    found = sure(brain.with_array(warped.astype(np.float32)), brain)
    where = np.argwhere(warped > 0.2 * np.percentile(warped, 99))
    truth = brain.grid.index_to_world(where + u[:, where[:, 0], where[:, 1]].T)
    error = np.linalg.norm(found.transform.map_points(brain.grid.index_to_world(where)) - truth, axis=1)
    bound = found.uncertainty.error_mm.array[tuple(where.T)]
    assert 0.75 < (error <= bound).mean()
    assert np.median(bound) < 3 * np.median(error)
