"""Pyramids of one image, towers of two, the V-shaped network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verimorph.errors import InputError, OptionError
from verimorph.nn.features.pyramid import ConvPyramid, Towers
from verimorph.nn.features.vnet import VNetDecoder, VNetEncoder, VNetSegmentation

both = pytest.mark.parametrize("shape", [(16, 8), (8, 16, 8)], ids=["2d", "3d"])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@both
@pytest.mark.parametrize("down", ["average", "stride"])
def test_every_level_halves_the_grid(shape, down):
    pyramid = ConvPyramid(ndim=len(shape), channels=2, widths=(3, 5, 7), convolutions=(1, 2, 1), stem=4, down=down)
    levels = pyramid(torch.rand(2, 2, *shape))
    assert [tuple(x.shape) for x in levels] == [
        (2, width, *(n // 2**k for n in shape)) for k, width in enumerate((3, 5, 7))
    ]
    assert pyramid.stride == 4
    sum(x.square().sum() for x in levels).backward()
    assert all(p.grad is not None for p in pyramid.parameters())


def test_pooling_is_the_mean_over_blocks():
    pyramid = ConvPyramid(ndim=2, channels=1, widths=(1, 1), convolutions=1, norm="none", activation="none")
    for level in pyramid.levels:
        nn.init.dirac_(level[-1].convolution.weight)
        nn.init.zeros_(level[-1].convolution.bias)
    image = torch.rand(1, 1, 8, 8)
    expected = image.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(pyramid(image)[1], expected)


def test_towers_share_their_weights_or_have_their_own():
    image = torch.rand(1, 1, 8, 8)
    tower = ConvPyramid(ndim=2, channels=1, widths=(3, 5))
    shared, twin = Towers(tower), Towers(tower, twin=True)
    assert (count(shared), count(twin)) == (count(tower), 2 * count(tower))
    f, m = shared(fixed=image, moving=image)
    assert all(torch.equal(a, b) for a, b in zip(f, m, strict=True))
    f, m = twin(fixed=image, moving=image)
    assert not any(torch.equal(a, b) for a, b in zip(f, m, strict=True))


def test_sizes_that_do_not_fit_are_refused_with_the_size_that_does():
    with pytest.raises(InputError, match="multiples of 4"):
        ConvPyramid(ndim=2, channels=1, widths=(2, 2, 2))(torch.rand(1, 1, 8, 6))
    with pytest.raises(InputError, match="multiples of 2"):
        VNetEncoder(ndim=2, channels=1, widths=(2, 2), convolutions=(1,))(torch.rand(1, 1, 8, 7))
    with pytest.raises(OptionError, match="counts of convolutions"):
        VNetEncoder(ndim=2, channels=1, widths=(2, 2, 4))
    with pytest.raises(OptionError, match="unknown way down"):
        ConvPyramid(ndim=2, channels=1, widths=(2, 2), down="max")  # type: ignore[arg-type]


def test_the_published_sizes_of_encoder_and_decoder():
    widths = (32, 64, 128, 256, 512)
    with torch.device("meta"):
        encoder, decoder = VNetEncoder(ndim=3, channels=3, widths=widths), VNetDecoder(ndim=3, widths=widths)
    assert count(encoder) == pytest.approx(21.89e6, abs=5e3)
    assert count(decoder) == pytest.approx(8.86e6, abs=5e3)


def test_the_input_block_adds_its_two_convolutions_and_is_not_normalised():
    encoder = VNetEncoder(ndim=2, channels=1, widths=(3, 4), convolutions=(1,))
    image = torch.rand(1, 1, 8, 8)
    first = nn.functional.conv2d(
        image, encoder.first.convolution.weight, encoder.first.convolution.bias, padding=1
    ).relu()
    second = nn.functional.conv2d(
        first, encoder.second.convolution.weight, encoder.second.convolution.bias, padding=1
    ).relu()
    torch.testing.assert_close(encoder(image)[0], first + second)


@both
def test_the_decoder_comes_back_to_full_resolution(shape):
    ndim, widths = len(shape), (2, 4, 6)
    encoder = VNetEncoder(ndim=ndim, channels=1, widths=widths, convolutions=(1, 2))
    decoder = VNetDecoder(ndim=ndim, widths=widths, convolutions=(1, 2))
    pyramid = encoder(torch.rand(2, 1, *shape))
    decoded = decoder(pyramid)
    assert torch.equal(decoded[0], pyramid[-1])
    assert [tuple(x.shape) for x in decoded] == [tuple(x.shape) for x in reversed(pyramid)]
    with pytest.raises(InputError, match="takes 3 levels, got 2"):
        decoder(pyramid[:2])


@both
def test_segmentation_gives_logits_and_uses_every_weight(shape):
    ndim, widths = len(shape), (2, 4, 6)
    model = VNetSegmentation(
        VNetEncoder(ndim=ndim, channels=1, widths=widths, convolutions=(1, 1)),
        VNetDecoder(ndim=ndim, widths=widths, convolutions=(1, 1)),
        ndim=ndim,
        classes=3,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(image=torch.rand(2, 1, *shape))["logits"]
    assert logits.shape == (2, 3, *shape)
    assert logits.isfinite().all()
    logits.float().log_softmax(1)[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(OptionError, match="no condition"):
        model(image=torch.rand(1, 1, *shape), condition=torch.rand(1, 1))
