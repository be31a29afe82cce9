"""What the tests of this folder share."""

from __future__ import annotations

import pytest
import torch
from tests.train.phantom import Phantoms, TinyNet


@pytest.fixture
def phantoms() -> Phantoms:
    return Phantoms()


@pytest.fixture
def tiny() -> TinyNet:
    torch.manual_seed(5)
    return TinyNet()
