"""The plain network: what it refuses, that it exports, that its fields obey the exchange of images."""

from __future__ import annotations

import io

import jaxtyping
import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.field.backend import plain_torch
from verimorph.nn.features.unet import UNet
from verimorph.nn.heads.displacement import DisplacementHead
from verimorph.nn.heads.time_varying import TimeVaryingHead
from verimorph.nn.heads.velocity import VelocityHead
from verimorph.nn.model import RegistrationModel
from verimorph.nn.network import RegistrationNetwork


def _network(ndim: int = 2, head=DisplacementHead) -> RegistrationNetwork:
    torch.manual_seed(0)
    features = UNet(ndim=ndim, inputs=2, encoder=(4, 4), decoder=(4, 4), tail=(4,))
    return RegistrationNetwork(features=features, head=head(ndim=ndim, channels=4, deviation=0.1)).eval()


def test_it_is_a_registration_model():
    assert isinstance(_network(), RegistrationModel)
    assert _network().stride == 4


def test_refusals():
    network, image = _network(), torch.rand(1, 1, 8, 8)
    with pytest.raises(InputError, match="one shape"):
        network(fixed=image, moving=torch.rand(1, 1, 8, 12))
    with pytest.raises(InputError, match="multiples of 4"):
        network(fixed=image[..., :6], moving=image[..., :6])
    with pytest.raises(OptionError, match="no condition"):
        network(fixed=image, moving=image, condition=torch.zeros(1, 1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_items_of_a_batch_do_not_mix(ndim):
    network = _network(ndim, VelocityHead)
    fixed, moving = torch.rand(2, 2, 1, *[8] * ndim)
    both = network(fixed=fixed, moving=moving)
    swapped = network(fixed=fixed.flip(0), moving=moving.flip(0))
    for name, value in both.items():
        torch.testing.assert_close(swapped[name], value.flip(0))


class _Positional(torch.nn.Module):
    """Exporters pass inputs in order."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, fixed, moving):
        return self.network(fixed=fixed, moving=moving)["field"]


@pytest.mark.parametrize("head", [DisplacementHead, VelocityHead, TimeVaryingHead])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torch_export_and_trace_give_the_same_field(head, monkeypatch):
    network, inputs = _Positional(_network(2, head)), (torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    # A tracer replaces sizes by tensors, and the tests' checks of types would stumble over them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with plain_torch(), torch.no_grad():
        expected = network(*inputs)
        torch.testing.assert_close(torch.jit.trace(network, inputs)(*inputs), expected)
        held = io.BytesIO()
        torch.export.save(torch.export.export(network, inputs), held)
        torch.testing.assert_close(torch.export.load(held).module()(*inputs), expected)
