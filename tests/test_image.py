"""Image: voxels are loaded once and only when needed; the stored type and the grid stay with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.errors import InputError
from verimorph.image import Image


def test_voxels_are_loaded_once_and_only_when_asked_for(oblique_grid):
    grid, calls = oblique_grid(3), []

    def load() -> np.ndarray:
        calls.append(1)
        return np.ones(grid.shape, np.int16)

    image = Image(grid, load, stored_dtype=np.dtype(np.int16))
    assert image.dtype == np.int16
    assert image.is_integer
    assert not calls
    assert image.array is image.array
    assert len(calls) == 1


def test_tensor_is_float32_with_batch_and_channel_and_does_not_share_memory(random):
    voxels = random.normal(size=(5, 4, 3)).astype(np.float32)
    image = Image.from_array(voxels)
    tensor = image.tensor()
    assert tensor.shape == (1, 1, 5, 4, 3)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor[0, 0].numpy(), voxels)
    tensor += 1
    np.testing.assert_array_equal(image.array, voxels)


def test_tensor_of_fortran_ordered_integers_keeps_the_index_order():
    voxels = np.asfortranarray(np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    assert Image.from_array(voxels).tensor()[0, 0, 2, 3, 1] == voxels[2, 3, 1]


def test_other_voxels_keep_the_grid_and_take_their_own_type(oblique_grid):
    image = Image.from_array(np.zeros(oblique_grid(3).shape, np.uint8), oblique_grid(3))
    other = image.with_array(torch.ones(image.grid.shape, dtype=torch.float64))
    assert other.grid is image.grid
    assert other.dtype == np.float64


def test_voxels_that_do_not_fit_the_grid_are_refused(oblique_grid):
    with pytest.raises(InputError, match="must be equal"):
        Image.from_array(np.zeros((2, 3, 4)), oblique_grid(3))
    with pytest.raises(InputError, match="header says"):
        Image(oblique_grid(3), lambda: np.zeros((2, 3, 4))).array  # noqa: B018
