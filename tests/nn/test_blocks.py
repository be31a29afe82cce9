"""Blocks: the fused convolution after upsampling, sizes, starts, refusals."""

from __future__ import annotations

import io
import warnings

import jaxtyping
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from verimorph.errors import InputError, OptionError
from verimorph.nn import blocks


@pytest.mark.parametrize("ndim", [2, 3])
def test_convolution_of_upsampled_equals_upsample_concat_convolve(ndim):
    torch.manual_seed(0)
    coarse = torch.randn(2, 3, *(3, 4, 5)[:ndim], dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 2, *(6, 8, 10)[:ndim], dtype=torch.float64, requires_grad=True)
    layer = blocks.convolution(ndim, 5, 4).double()
    fused = blocks.convolve_upsampled(coarse, skip, layer.weight, layer.bias)
    plain = layer(torch.cat((functional.interpolate(coarse, scale_factor=2, mode="nearest"), skip), 1))
    torch.testing.assert_close(fused, plain)
    probe, inputs = torch.randn_like(plain), (coarse, skip, layer.weight, layer.bias)
    for ours, theirs in zip(
        torch.autograd.grad(fused, inputs, probe), torch.autograd.grad(plain, inputs, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(1, 1, 8), (3, 1, 8), (7, 1, 8), (3, 2, 4), (4, 4, 2), (2, 2, 4)]
)
def test_convolution_divides_the_size_by_the_stride(ndim, kernel, stride, size):
    layer = blocks.convolution(ndim, 1, 2, kernel=kernel, stride=stride)
    assert layer(torch.zeros(1, 1, *[8] * ndim)).shape == (1, 2, *[size] * ndim)


def test_even_kernel_cannot_keep_the_size():
    with pytest.raises(OptionError, match="odd kernel"):
        blocks.convolution(3, 1, 1, kernel=4)


def test_instance_normalisation_is_that_of_torch():
    x = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(blocks.normalisation("instance", 3, 3)(x), nn.InstanceNorm3d(3)(x))


def test_instance_normalisation_keeps_half_precision_under_autocast():
    x = 3 + 0.1 * torch.randn(2, 3, 6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = blocks.normalisation("instance", 3, 3)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    expected = nn.InstanceNorm3d(3)(x.bfloat16().double())  # of the rounded values, exactly
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


def test_instance_normalisation_is_one_operation_where_it_is_traced_for_onnx(monkeypatch):
    onnx = pytest.importorskip("onnx")
    held = io.BytesIO()
    volume = torch.rand(1, 2, 4, 4, 4)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(blocks.InstanceNorm(), (volume,), held, dynamo=False, opset_version=20)
    held.seek(0)
    assert "InstanceNormalization" in {node.op_type for node in onnx.load(held).graph.node}


def test_instance_normalisation_takes_a_single_voxel_in_training():
    assert blocks.normalisation("instance", 3, 3).train()(torch.randn(1, 3, 1, 1, 1)).isfinite().all()


@pytest.mark.parametrize("norm", ["none", "instance", "batch", "group"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "prelu", "gelu"])
def test_block_of_every_kind_passes_gradients_to_all_its_parameters(norm, activation):
    block = blocks.ConvBlock(2, 2, 6, norm=norm, activation=activation)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    block(x).square().sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("mode", ["nearest", "linear", "transposed"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_upsampling_doubles(mode, ndim):
    assert blocks.Upsample(ndim, 3, mode=mode)(torch.zeros(1, 3, *[4] * ndim)).shape == (1, 3, *[8] * ndim)


def test_starts():
    torch.manual_seed(0)
    layer = blocks.start_small(nn.Conv2d(64, 64, 3), 1e-5, bias=-10.0)
    assert layer.weight.std().item() == pytest.approx(1e-5, rel=0.02)
    assert (layer.bias == -10).all()
    assert all((parameter == 0).all() for parameter in blocks.start_at_zero(layer).parameters())


def test_size_off_the_stride_is_refused_with_the_size_to_pad_to():
    with pytest.raises(InputError, match="multiples of 16, got 20x32; pad to 32x32"):
        blocks.check_size((20, 32), 16)


def test_unknown_names_are_refused_with_the_nearest():
    for call in (
        lambda: blocks._known("normalisation", "instanc", ("instance", "batch")),
        lambda: blocks.check_ndim(4),
    ):
        with pytest.raises(OptionError, match=r"instance|2 or 3"):
            call()


@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "shape"),
    [(6, 3, 1, (12, 13, 11)), (3, 3, 1, (9, 10, 8)), (6, 2, 2, (12, 14, 10)), (5, 3, 2, (13, 12, 11))],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_convolution_of_one_small_volume_is_that_of_torch(outputs, kernel, stride, shape, layout):
    torch.manual_seed(0)
    layer = blocks.convolution(3, 4, outputs, kernel=kernel, stride=stride).to(memory_format=layout)
    x = torch.randn(1, 4, *shape).contiguous(memory_format=layout).requires_grad_()
    assert blocks.torch_is_slow(x, layer.weight)
    found = layer(x)
    plain = functional.conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    probe, inputs = torch.randn_like(plain), (x, layer.weight, layer.bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, probe), torch.autograd.grad(plain, inputs, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)


def small_convolution():
    """Input, weight and bias of a convolution that is left to oneDNN."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 9, 7, requires_grad=True)
    weight, bias = (0.3 * torch.randn(*shape) for shape in ((4, 3, 3, 3, 3), (4,)))
    return x, weight.requires_grad_(), bias.requires_grad_()


def convolved(x, weight, bias):
    return blocks.convolve(x, weight, bias, padding=1)


def convolved_by_torch(x, weight, bias):
    return functional.conv3d(x, weight, bias, padding=1)


def test_a_penalty_on_gradients_has_the_gradient_that_torch_gives():
    inputs = small_convolution()
    found = []
    for convolve in (convolved, convolved_by_torch):
        first = torch.autograd.grad(convolve(*inputs).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().mean() for g in first), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_convolution_gives_only_the_gradients_that_are_asked():
    x, weight, bias = small_convolution()
    frozen = weight.detach()
    (found,) = torch.autograd.grad(convolved(x, frozen, None).square().sum(), x)
    (plain,) = torch.autograd.grad(convolved_by_torch(x, frozen, None).square().sum(), x)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    still = x.detach()
    found = torch.autograd.grad(convolved(still, weight, bias).square().sum(), (weight, bias))
    plain = torch.autograd.grad(convolved_by_torch(still, weight, bias).square().sum(), (weight, bias))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)


def test_convolution_bears_anomaly_detection_and_onednn_switched_off():
    inputs = small_convolution()
    with torch.autograd.detect_anomaly(check_nan=True):
        found = torch.autograd.grad(convolved(*inputs).square().sum(), inputs)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = torch.autograd.grad(convolved(*inputs).square().sum(), inputs)
    out = convolved(*inputs).square().sum()
    with torch.backends.mkldnn.flags(enabled=False):
        late = torch.autograd.grad(out, inputs)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found, late, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("of", [0, 1])
def test_convolution_bears_the_transforms_of_functions(of):
    inputs = [t.detach() for t in small_convolution()]

    def value(convolve):
        return lambda t: convolve(*inputs[:of], t, *inputs[of + 1 :]).square().sum()

    probe = torch.randn_like(inputs[of])
    for transform in (
        lambda f: torch.func.grad(f)(inputs[of]),
        lambda f: torch.func.vmap(f)(torch.stack([inputs[of], probe])),
        lambda f: torch.func.jvp(f, (inputs[of],), (probe,))[1],
        lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([inputs[of], probe])),
        lambda f: forward_derivative(f, inputs[of], probe),
    ):
        ours, theirs = transform(value(convolved)), transform(value(convolved_by_torch))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def forward_derivative(f, at, along):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(at, along)
        return torch.autograd.forward_ad.unpack_dual(f(dual)).tangent


def test_convolution_of_fake_tensors_says_the_size():
    with FakeTensorMode():
        found = convolved(torch.empty(1, 3, 8, 9, 7), torch.empty(4, 3, 3, 3, 3), None)
    assert found.shape == (1, 4, 8, 9, 7)


def test_convolution_is_left_to_torch_where_it_is_fast_or_must_be_seen():
    weight = torch.zeros(4, 4, 3, 3, 3)
    volume = torch.zeros(1, 4, 12, 12, 12)
    assert blocks.torch_is_slow(volume, weight)
    assert not blocks.torch_is_slow(volume.expand(2, -1, -1, -1, -1), weight)  # several items
    assert not blocks.torch_is_slow(volume.double(), weight.double())
    assert not blocks.torch_is_slow(volume, torch.zeros(4, 4, 5, 5, 5))
    assert not blocks.torch_is_slow(torch.zeros(1, 4, 80, 80, 80), weight)  # 4 * 80 * 80 > 20 480
    assert not blocks.torch_is_slow(torch.zeros(1, 4, 4, 4, 4), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not blocks.torch_is_slow(volume, weight)
    traced = torch.jit.trace(blocks.convolution(3, 4, 4), volume)
    assert "mkldnn" not in str(traced.inlined_graph)
