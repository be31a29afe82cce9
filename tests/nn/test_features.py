"""Features: shapes, equality with plainly written networks, folding, windows, gradients to every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from verimorph.errors import OptionError
from verimorph.nn.features import swin
from verimorph.nn.features.large_kernel import LargeKernelBlock, reparameterise
from verimorph.nn.features.residual import ResidualUNet
from verimorph.nn.features.unet import UNet
from verimorph.nn.features.vit import GlobalTokens


def _unused(model: nn.Module, loss: torch.Tensor) -> list[str]:
    loss.backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def _tiny_swin(ndim: int = 2, **settings) -> swin.SwinUNet:
    return swin.SwinUNet(
        ndim=ndim, inputs=2, embedding=8, depths=(2, 2), heads=(2, 4), window=(3, 2, 4)[:ndim], channels=4, **settings
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("pooling", ["max", "stride"])
@pytest.mark.parametrize("upsampling", ["nearest", "linear", "transposed"])
@pytest.mark.parametrize("coarse_levels", [0, 1])
def test_unet_keeps_the_law_of_shapes(ndim, pooling, upsampling, coarse_levels):
    network = UNet(
        ndim=ndim,
        inputs=2,
        stem=(3,),
        encoder=(4, (5, 6)),
        decoder=((), (6, 5)),
        tail=(7, 3),
        norm="instance",
        pooling=pooling,
        upsampling=upsampling,
        coarse_levels=coarse_levels,
    )
    shape = (8, 4, 12)[:ndim]
    out = network(torch.randn(1, 2, *shape))
    assert network.stride == 4
    assert out.shape == (1, network.out_channels, *(n // network.scale for n in shape))
    assert _unused(network, out.square().sum()) == []


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_unet_equals_the_published_layout_written_plainly(pooling):
    torch.manual_seed(0)
    network = UNet(ndim=3, inputs=2, encoder=(4, 6), decoder=(5, 7), tail=(6, 3), pooling=pooling).double()
    layers = iter([part for part in network.modules() if isinstance(part, nn.Conv3d)])

    def layer(x):
        return functional.leaky_relu(next(layers)(x), 0.2)

    image = torch.randn(1, 2, 8, 8, 4, dtype=torch.float64)
    x, kept = image, []
    for _ in range(2):
        if pooling == "max":
            kept.append(layer(x))
            x = functional.max_pool3d(kept[-1], 2)
        else:
            kept.append(x)
            x = layer(x)
    for _ in range(2):
        x = torch.cat((functional.interpolate(layer(x), scale_factor=2), kept.pop()), 1)
    torch.testing.assert_close(network(image), layer(layer(x)))


def test_unet_refuses_uneven_levels():
    with pytest.raises(OptionError, match="as many decoder levels"):
        UNet(ndim=3, inputs=2, encoder=(4, 4), decoder=(4,))
    with pytest.raises(OptionError, match="coarse_levels"):
        UNet(ndim=3, inputs=2, encoder=(4, 4), decoder=(4, 4), coarse_levels=2)


def test_unet_keeps_channels_last():
    network = UNet(ndim=3, inputs=2, encoder=(16,), decoder=(16,), tail=(16,)).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 2, 36, 40, 4)  # torch leaves small convolutions to a kernel that knows one format only
    out = network(image.to(memory_format=torch.channels_last_3d))
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(out, network(image), check_stride=False)


@pytest.mark.parametrize(("ndim", "kernel"), [(2, 7), (3, 5)])
def test_folded_large_kernel_has_the_same_values(ndim, kernel):
    torch.manual_seed(0)
    block = LargeKernelBlock(ndim, 3, kernel=kernel).double()
    nn.init.constant_(block.activation.weight, 0.1)
    x = torch.randn(2, 3, *[6] * ndim, dtype=torch.float64)
    folded = block.reparameterise()
    torch.testing.assert_close(folded(x), block(x))
    assert sum(isinstance(part, nn.modules.conv._ConvNd) for part in folded.modules()) == 1


def test_a_network_folds_as_a_copy():
    network = UNet(
        ndim=2,
        inputs=2,
        encoder=((4, 4), (6, 6)),
        decoder=((), (4,)),
        tail=(3,),
        pooling="stride",
        block=lambda _, width: LargeKernelBlock(2, width, kernel=5),
    )
    folded, x = reparameterise(network), torch.randn(1, 2, 8, 8)
    assert any(isinstance(part, LargeKernelBlock) for part in network.modules())
    assert not any(isinstance(part, LargeKernelBlock) for part in folded.modules())
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_residual_network(ndim):
    network = ResidualUNet(ndim=ndim, inputs=2, channels=(3, 4, 5), coarse_levels=1)
    out = network(torch.randn(1, 2, *[8] * ndim))
    assert out.shape == (1, 4, *[4] * ndim)
    assert _unused(network, out.square().sum()) == []


def test_tokens_see_the_whole_image():
    network = UNet(
        ndim=2,
        inputs=1,
        encoder=(3, 3),
        decoder=(3, 3),
        tail=(2,),
        bottleneck=lambda width: GlobalTokens(2, width, grid=(4, 4), width=8, depth=1, heads=2, mlp=8, dropout=0.0),
    )
    image = torch.randn(1, 1, 16, 16, requires_grad=True)
    network(image)[0, 0, 0, 0].backward()
    assert (image.grad[0, 0, -4:, -4:] != 0).any()
    assert _unused(network, network(image).square().sum()) == []
    assert network(torch.randn(1, 1, 8, 24)).shape == (1, 2, 8, 24)  # positions are resampled


@pytest.mark.parametrize("ndim", [2, 3])
def test_windows_go_there_and_back_and_hold_neighbours(ndim):
    shape, window = (6, 4, 8)[:ndim], (3, 2, 4)[:ndim]
    x = torch.arange(2 * torch.tensor(shape).prod().item() * 3).reshape(2, *shape, 3).float()
    windows = swin.into_windows(x, window)
    torch.testing.assert_close(swin.from_windows(windows, window, shape), x)
    corner = x[(0, *(slice(0, w) for w in window))].reshape(-1, 3)
    torch.testing.assert_close(windows[0], corner)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("shift", [False, True])
def test_attention_reaches_only_its_window_and_never_across_the_border(ndim, shift):
    """The reach of voxels, found by gradients, against the windows counted by hand: 5 voxels along axis 0 with a
    window of 3 (padded to 6, shifted by 1): windows are 0-2, 3-4 without a shift; 0, 1-3, 4 with one."""
    torch.manual_seed(0)
    window, shape = (3, 2, 2)[:ndim], (5, 4, 4)[:ndim]
    block = swin.SwinBlock(4, heads=2, window=window, shift=shift).double()
    x = torch.randn(1, *shape, 4, dtype=torch.float64, requires_grad=True)
    mask = swin.window_mask(shape, window, block.shift_on(shape), x.device)
    for voxel, reach in enumerate(
        [[0], [1, 2, 3], [1, 2, 3], [1, 2, 3], [4]] if shift else [[0, 1, 2]] * 3 + [[3, 4]] * 2
    ):
        out = block(x, mask)[(0, voxel)].sum()
        (gradient,) = torch.autograd.grad(out, x)
        seen = gradient[0].abs().flatten(1).amax(1) > 1e-12
        assert seen.nonzero().flatten().tolist() == reach


def test_padding_does_not_change_features():
    """A map as large as its window, and the same map in a window that is larger: equal where biases are zero."""
    torch.manual_seed(0)
    small = swin.SwinBlock(4, heads=2, window=(3, 3), shift=False)
    large = swin.SwinBlock(4, heads=2, window=(4, 5), shift=False)
    state = {k: v for k, v in small.state_dict().items() if "relative_position" not in k}
    large.load_state_dict(state, strict=False)
    for block in (small, large):
        nn.init.zeros_(block.attention.relative_position_bias_table)
    x = torch.randn(1, 3, 3, 4)
    mask = swin.window_mask((3, 3), (4, 5), (0, 0), x.device)
    torch.testing.assert_close(large(x, mask), small(x, None))


def test_swin_block_equals_monai_where_windows_fit():
    from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

    torch.manual_seed(0)
    ours = swin.SwinBlock(8, heads=2, window=(2, 3, 2), shift=True, qkv_bias=True).eval()
    theirs = SwinTransformerBlock(8, 2, (2, 3, 2), (1, 1, 1), qkv_bias=True).eval()
    theirs.load_state_dict({k.replace("attention.", "attn."): v for k, v in ours.state_dict().items()})
    x, shape = torch.randn(2, 4, 6, 4, 8), (4, 6, 4)
    mask = swin.window_mask(shape, (2, 3, 2), ours.shift_on(shape), x.device)
    torch.testing.assert_close(ours(x, mask), theirs(x, compute_mask(shape, (2, 3, 2), (1, 1, 1), x.device)))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("coarse_levels", [0, 1])
def test_swin_network_takes_any_multiple_of_its_stride(ndim, coarse_levels):
    network = _tiny_swin(ndim, coarse_levels=coarse_levels)
    shape = (16, 8, 24)[:ndim]
    out = network(torch.randn(1, 2, *shape))
    assert network.stride == 8
    assert out.shape == (1, network.out_channels, *(n // network.scale for n in shape))
    assert _unused(network, out.square().sum()) == []


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    plain, saving = _tiny_swin(drop_path=0.0), _tiny_swin(drop_path=0.0, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, 16, 16)
    for network in (plain, saving):
        network(x).square().sum().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
