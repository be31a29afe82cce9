"""What every similarity must do, whatever it measures."""

from __future__ import annotations

import pytest
import torch

from verimorph.field.backend import plain_torch
from verimorph.objective import similarity as s

#: name -> (measure, small settings, symmetric, affine in intensity leaves it unchanged, value at a perfect match)
MEASURES = {
    "mse": (s.mse, {}, True, 0.0),
    "mae": (s.mae, {}, True, 0.0),
    "pearson": (s.pearson, {}, True, 0.0),
    "lncc": (s.lncc, {"radius": 2}, True, 0.0),
    "lncc_gaussian": (s.lncc_gaussian, {"sigma": 1.0}, True, 0.0),
    "mind": (s.mind_distance, {"radius": 1, "dilation": 1}, True, 0.0),
    "mind_2012": (s.mind_distance, {"form": "mind", "dilation": 1}, True, 0.0),
    "mi": (s.mutual_information, {"bins": 8}, True, None),
    "mi_gaussian": (s.mutual_information, {"bins": 8, "window": "gaussian"}, True, None),
    "mattes": (s.mutual_information, {"bins": 8, "window": "mattes"}, False, None),
    "nmi": (s.mutual_information, {"bins": 8, "form": "normalised"}, True, None),
    "local_mi": (s.local_mutual_information, {"bins": 6, "patch": 5}, True, None),
    "correlation_ratio": (s.correlation_ratio, {"bins": 8}, True, None),
    "local_correlation_ratio": (s.local_correlation_ratio, {"bins": 6, "patch": 5}, True, None),
    "ssim": (s.ssim, {"radius": 2}, True, 0.0),
    "ngf": (s.ngf, {}, True, None),
    "features": (s.feature_distance, {"measure": "absolute"}, True, 0.0),
}
LOCAL = [name for name in MEASURES if name not in ("local_mi", "correlation_ratio", "local_correlation_ratio")]

each = pytest.mark.parametrize("name", MEASURES)
both = pytest.mark.parametrize("shape", [(10, 9), (8, 7, 9)], ids=["2d", "3d"])


def run(name, fixed, moved, **options):
    measure, settings, *_ = MEASURES[name]
    return measure(fixed, moved, **{**settings, **options})


@each
@both
def test_lowest_at_a_perfect_match(name, shape, textured):
    image = textured(shape)
    matched = run(name, image, image)
    if MEASURES[name][3] is not None:
        assert matched.item() == pytest.approx(MEASURES[name][3], abs=2e-3 if "lncc" in name else 1e-5)
    for axis in range(len(shape)):
        assert run(name, image, image.roll(1, 2 + axis)) > matched + 1e-3


@each
@both
def test_symmetric_in_the_images(name, shape, textured):
    fixed, moved = textured(shape, 0), textured(shape, 1)
    forward, backward = run(name, fixed, moved), run(name, moved, fixed)
    if MEASURES[name][2]:
        assert forward.item() == pytest.approx(backward.item(), rel=1e-9, abs=1e-12)
    else:
        assert forward.item() != pytest.approx(backward.item(), rel=1e-9)


@each
@both
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_the_finite_difference(name, shape, masked, textured):
    small = tuple(min(n, 6) for n in shape)
    fixed, moved = (textured(small, seed).requires_grad_() for seed in (2, 3))
    generator = torch.Generator().manual_seed(4)
    options = {}
    if masked:
        options["mask"] = (torch.rand(1, 1, *small, generator=generator) > 0.3).double()
        options["weight"] = 0.2 + torch.rand(1, 1, *small, generator=generator).double()
    with plain_torch():
        checked = (moved,) if name == "mattes" else (fixed, moved)  # the fixed image of Mattes falls in bins: no slope

        def value(*inputs):
            return run(name, *((fixed.detach(), *inputs) if len(inputs) == 1 else inputs), **options)

        assert torch.autograd.gradcheck(value, checked, atol=1e-6, fast_mode=True)


@each
def test_every_item_of_a_batch_alone(name, textured):
    fixed, moved = textured((7, 8, 6), 5, batch=3), textured((7, 8, 6), 6, batch=3)
    together = run(name, fixed, moved, reduction="none")
    alone = torch.stack([run(name, fixed[b : b + 1], moved[b : b + 1]) for b in range(3)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(run(name, fixed, moved), alone.mean())
    torch.testing.assert_close(run(name, fixed, moved, reduction="sum"), alone.sum())


@each
def test_channels_are_averaged(name, textured):
    if name == "features":
        return
    fixed, moved = textured((7, 8), 5, channels=2), textured((7, 8), 6, channels=2)
    alone = torch.stack([run(name, fixed[:, c : c + 1], moved[:, c : c + 1]) for c in range(2)]).mean()
    torch.testing.assert_close(run(name, fixed, moved), alone)


#: Measures whose local values look at nothing outside the mask, so that masking equals cropping. MIND and NGF look at
#: neighbours through the mask's rim; patches tile from the image's corner.
CROPPABLE = [n for n in MEASURES if n not in ("mind", "mind_2012", "ngf", "local_mi", "local_correlation_ratio")]


@pytest.mark.parametrize("name", CROPPABLE)
@both
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_masked_equals_cropped(name, shape, single, textured):
    fixed, moved = textured(shape, 7), textured(shape, 8)
    if single:
        fixed, moved = fixed.float(), moved.float()
    box = (..., *(slice(1, n - 2) for n in shape))
    mask = torch.zeros_like(fixed)
    mask[box] = 1
    inside = run(name, fixed[box], moved[box])
    torch.testing.assert_close(run(name, fixed, moved, mask=mask), inside, rtol=1e-5, atol=1e-6)
    # What lies outside the mask must not matter at all.
    other = torch.where(mask > 0, moved, torch.full_like(moved, 0.9))
    torch.testing.assert_close(run(name, fixed, other, mask=mask), inside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_the_map_averages_to_the_value(name, textured):
    fixed, moved = textured((9, 8, 7), 9), textured((9, 8, 7), 10)
    mask = torch.ones_like(fixed)
    mask[..., :2] = 0
    local = run(name, fixed, moved, map=True, mask=mask)
    assert local.shape == fixed.shape
    if name == "nmi":  # the map of information is that of the mutual form
        local, name = local, "mi"
    torch.testing.assert_close(local.sum() / mask.sum(), run(name, fixed, moved, mask=mask), rtol=1e-6, atol=1e-8)


@each
def test_a_weight_of_one_changes_nothing(name, textured):
    fixed, moved = textured((8, 9), 1), textured((8, 9), 2)
    ones = torch.ones_like(fixed)
    torch.testing.assert_close(run(name, fixed, moved, weight=ones, mask=ones), run(name, fixed, moved))


@pytest.mark.parametrize("name", ["mse", "mae", "lncc", "lncc_gaussian", "mind", "ssim", "ngf", "features"])
def test_a_weight_map_multiplies_the_local_energy(name, textured):
    fixed, moved = textured((8, 9, 7), 1), textured((8, 9, 7), 2)
    weight = textured((8, 9, 7), 3) * 3
    expected = (run(name, fixed, moved, map=True) * weight).mean()
    torch.testing.assert_close(run(name, fixed, moved, weight=weight), expected)
    single = run(name, fixed.float(), moved.float(), weight=weight.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-6)


@each
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("content", ["constant", "half", "textured"])
def test_finite_with_its_gradient(name, shape, dtype, content, textured):
    fixed = textured(shape, 1).to(dtype)
    moved = textured(shape, 2).to(dtype)
    if content == "constant":
        fixed, moved = torch.full_like(fixed, 0.5), torch.full_like(moved, 0.25)
    elif content == "half":
        fixed[:, :, : shape[0] // 2] = 0
        moved[:, :, : shape[0] // 2] = 0
    moved.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = run(name, fixed, moved)
    value.backward()
    assert value.dtype == (torch.float32 if dtype != torch.float64 else dtype)
    assert value.isfinite()
    assert moved.grad is not None
    assert moved.grad.dtype == dtype
    assert moved.grad.isfinite().all()


@each
def test_half_precision_keeps_full_statistics(name, textured):
    fixed, moved = textured((8, 8, 8), 1).half(), textured((8, 8, 8), 2).half()
    expected = run(name, fixed.double(), moved.double())
    torch.testing.assert_close(run(name, fixed, moved).double(), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pearson", "lncc", "lncc_gaussian"])
def test_offsets_and_contrast_do_not_matter(name, textured):
    fixed, moved = textured((12, 12, 12), 1), textured((12, 12, 12), 2)
    offset = run(name, fixed, 2 * moved + 3, epsilon=1e-14)
    torch.testing.assert_close(offset, run(name, fixed, moved, epsilon=1e-14))


def test_a_large_offset_does_not_drown_the_variance():
    # E[x^2] - E[x]^2 of intensities near 1000 with noise of 1e-3 is negative in float32 unless the mean goes first.
    generator = torch.Generator().manual_seed(0)
    image = 1000 + 1e-3 * torch.randn(1, 1, 12, 12, 12, generator=generator, dtype=torch.float64)
    single = image.float()
    settings = {"radius": 2, "epsilon": 1e-20}
    for one in (single, single.double()):
        assert s.lncc(one, 3 * one + 5, **settings).item() == pytest.approx(0, abs=5e-2)
    with plain_torch():
        assert s.lncc(single, 3 * single + 5, **settings).item() == pytest.approx(0, abs=5e-2)


def test_anticorrelated_images_score_two_by_pearson_and_match_by_lncc(textured):
    image = textured((10, 10, 10))
    assert s.pearson(image, 1 - image).item() == pytest.approx(2, abs=1e-6)
    assert s.lncc(image, 1 - image, epsilon=1e-12).item() == pytest.approx(0, abs=1e-6)


def test_dependence_that_correlation_misses(textured):
    image = textured((16, 16, 16))
    other = 4 * (image - image.mean()) ** 2
    assert s.pearson(image, other) > 0.5
    assert s.explained_variance(other.flatten(1), image.flatten(1)) > 0.95
    assert s.mutual_information(image, other) < -0.9
