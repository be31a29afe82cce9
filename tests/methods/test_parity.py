"""Methods against what was published: numbers of parameters, and laws that every one of them keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verimorph.errors import OptionError
from verimorph.methods import method
from verimorph.nn.features.large_kernel import reparameterise
from verimorph.nn.stochastic import sampling
from verimorph.objective import build_objective

#: Counts in the tables of Balakrishnan et al. (current layout: counted by hand from the layout, see below), of Jia et
#: al. 2022 (MLMI, table of IXI results: VoxelMorph-1, -2, LKU-Net, TransMorph) and of Chen et al. 2022 (sizes).
PUBLISHED = {
    ("voxelmorph", None): 327_331,
    ("voxelmorph", "vm1"): 274_387,
    ("voxelmorph", "vm2"): 301_411,
    ("voxelmorph-diff", "deterministic"): 327_331,
    ("lku-net", "c4"): 522_302,
    ("lku-net", None): 2_086_342,
    ("transmorph", None): 46_771_251,
    ("transmorph", "small"): 11_760_000,
    ("transmorph", "large"): 108_340_000,
}
METHODS = ("voxelmorph", "voxelmorph-diff", "transmorph", "lku-net")
VARIANTS = [(name, variant) for name in METHODS for variant in (None, *method(name).variants)]
#: Settings that make each method tiny: laws do not depend on width.
TINY = {
    "voxelmorph": {"encoder": (3, 4), "decoder": (4, 4), "tail": (4, 3)},
    "voxelmorph-diff": {"encoder": (3, 4), "decoder": (4, 4), "tail": (4, 3)},
    "transmorph": {"embedding": 8, "depths": (1, 1), "heads": (2, 2), "window": (2, 2, 2)},
    "lku-net": {"start": 1},
}


def _tiny(name: str, variant: str | None, ndim: int, **more) -> nn.Module:
    torch.manual_seed(0)
    steps = {"steps": 2} if variant == "time-varying" else {}
    return method(name).model(ndim=ndim, variant=variant, **TINY[name], **steps, **more)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_number_of_parameters_is_within_one_percent_of_the_published(name, variant):
    with torch.device("meta"):
        model = method(name).model(variant=variant)
    assert _count(model) == pytest.approx(PUBLISHED[name, variant], rel=0.01)
    said = method(name).variant(variant).parameters or method(name).parameters
    assert said == PUBLISHED[name, variant]


def test_voxelmorph_count_by_hand():
    """27 taps from channels to channels, and a bias each: encoder, decoder (skips 32, 32, 32, 16), tail, head."""
    layers = [
        (2, 16),
        (16, 32),
        (32, 32),
        (32, 32),
        (32, 32),
        (64, 32),
        (64, 32),
        (64, 32),
        (48, 32),
        (32, 16),
        (16, 16),
    ]
    assert sum(27 * i * o + o for i, o in [*layers, (16, 3)]) == PUBLISHED["voxelmorph", None]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_trains(name, variant, ndim):
    """Field on the input grid near the identity, finite objective as the method states it, gradients to all."""
    model = _tiny(name, variant, ndim)
    torch.manual_seed(1)
    fixed, moving = torch.rand(2, 1, 1, *[model.stride] * ndim)
    outputs = model(fixed=fixed, moving=moving)
    assert outputs["field"].shape == (1, ndim, *fixed.shape[2:])
    assert outputs["field"].abs().max() < 0.1
    labels = torch.rand(2, 1, 2, *fixed.shape[2:])
    objective = build_objective(*(method(name).variant(variant).objective or method(name).objective))
    tensors = {**outputs, "fixed": fixed, "moved": moving, "labels/fixed": labels[0], "labels/moved": labels[1]}
    total = objective(tensors).total + sum(output.square().sum() for output in outputs.values())
    assert total.isfinite()
    total.backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_autocast_is_finite_and_close(name):
    model = _tiny(name, None, 2).eval()
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if n.startswith("head.")), std=0.01)
    torch.manual_seed(1)
    fixed, moving = torch.rand(2, 1, 1, *[2 * model.stride] * 2)
    exact = model(fixed=fixed, moving=moving)["field"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(fixed=fixed, moving=moving)["field"]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max() + 1e-4


@pytest.mark.parametrize(("name", "variant"), [("transmorph", "bayes"), ("voxelmorph-diff", None)])
def test_random_methods_draw_again_from_the_same_seed(name, variant):
    model = _tiny(name, variant, 2).eval()
    fixed, moving = torch.rand(2, 1, 1, *[model.stride] * 2)

    def draw(seed: int) -> torch.Tensor:
        with sampling(model, torch.Generator().manual_seed(seed)):
            return model(fixed=fixed, moving=moving)["field"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(*(model(fixed=fixed, moving=moving)["field"] for _ in range(2)))


def test_bayes_drops_in_the_transformer_only():
    from verimorph.nn.features.swin import SwinBlock
    from verimorph.nn.stochastic import AlwaysOnDropout

    model = _tiny("transmorph", "bayes", 2)
    inside = {id(d) for b in model.modules() if isinstance(b, SwinBlock) for d in b.modules()}
    dropouts = [part for part in model.modules() if isinstance(part, AlwaysOnDropout)]
    assert len(dropouts) == 4 * 2  # attention, projection, both layers of the MLP; two blocks
    assert all(id(part) in inside and part.p == 0.15 for part in dropouts)
    assert not any(isinstance(part, nn.Dropout) for part in model.modules())


def test_folded_lku_net_registers_alike():
    model = _tiny("lku-net", None, 2).eval()
    torch.nn.init.normal_(model.head.convolution.weight, std=0.1)
    fixed, moving = torch.rand(2, 1, 1, 32, 32)
    folded = reparameterise(model)
    torch.testing.assert_close(
        folded(fixed=fixed, moving=moving)["field"], model(fixed=fixed, moving=moving)["field"], rtol=1e-3, atol=1e-4
    )


def test_unknown_transform_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'bspline'"):
        method("transmorph").model(transform="bsplin")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_cuda_gives_the_field_of_the_cpu_and_trains_in_half_precision(name, variant):
    model = _tiny(name, variant, 3).eval()
    for head in [p for n, p in model.named_parameters() if n.startswith("head.") and p.abs().max() < 1e-3]:
        torch.nn.init.normal_(head, std=0.01)
    fixed, moving = torch.rand(2, 1, 1, *[2 * model.stride] * 3)
    expected = model(fixed=fixed, moving=moving)["field"]
    model, pair = model.cuda(), {"fixed": fixed.cuda(), "moving": moving.cuda()}
    with torch.backends.cudnn.flags(allow_tf32=False):
        got = model(**pair)["field"]
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4)
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", half):
            outputs = model.train()(**pair)
        assert outputs["field"].dtype == torch.float32
        sum(output.square().mean() for output in outputs.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
