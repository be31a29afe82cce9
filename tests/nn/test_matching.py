"""Parts where two images meet: naive references, finite differences, the memory-safe paths, half precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from verimorph.errors import InputError, OptionError
from verimorph.nn.matching import (
    CompetitiveWeighting,
    Correlation,
    CrossAttentionBlock,
    Fusion,
    MotionStage,
    NeighbourhoodMatching,
    WarpThenFuse,
    WindowCrossAttention,
    fuse,
    local_correlation,
    neighbourhood_motion,
    warp_features,
    window_cross_attention,
)

both = pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)], ids=["2d", "3d"])


def features(shape: tuple[int, ...], channels: int = 4, *, seed: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *shape, generator=generator, dtype=torch.float64)


def unfolded(x: Tensor, radius: int) -> Tensor:
    """(b, c, k, *space): the neighbourhood of every voxel, zeros outside, by padding and unfolding."""
    ndim = x.ndim - 2
    wide = torch.nn.functional.pad(x, [radius] * (2 * ndim))
    for axis in range(ndim):
        wide = wide.unfold(2 + axis, 2 * radius + 1, 1)
    return wide.flatten(2 + ndim).movedim(-1, 2)


def naive_motion(fixed: Tensor, moving: Tensor, bias: Tensor, heads: int, radius: int, scale: float) -> Tensor:
    ndim = fixed.ndim - 2
    q = fixed.unflatten(1, (heads, -1))
    k = unfolded(moving, radius).unflatten(1, (heads, -1))
    scores = (q.unsqueeze(3) * k).sum(2) * scale + bias.view(1, heads, -1, *[1] * ndim)
    values = torch.tensor(list(itertools.product(range(-radius, radius + 1), repeat=ndim)), dtype=fixed.dtype)
    return torch.einsum("bhk...,kd->bhd...", scores.softmax(2), values)


# -- fusion --------------------------------------------------------------------------------------------------------


@both
def test_subtraction_turns_round_when_the_images_change_places(shape):
    one, two = features(shape), features(shape, seed=1)
    assert torch.equal(fuse("subtract", fixed=one, moving=two), two - one)
    assert torch.equal(fuse("subtract", fixed=one, moving=two), -fuse("subtract", fixed=two, moving=one))
    assert torch.equal(fuse("add", fixed=one, moving=two), fuse("add", fixed=two, moving=one))
    assert torch.equal(fuse("concat", fixed=one, moving=two)[:, :4], one)


@pytest.mark.parametrize("how", ["concat", "subtract", "add"])
def test_a_pyramid_is_fused_level_by_level(how):
    fixed, moving = ([features((n, n), n, seed=s) for n in (8, 4)] for s in (0, 1))
    fusion = Fusion(how)
    fused = fusion(fixed=fixed, moving=moving)
    for level, f, m in zip(fused, fixed, moving, strict=True):
        assert torch.equal(level, fuse(how, fixed=f, moving=m))
        assert level.shape[1] == fusion.channels(f.shape[1])


def test_unknown_fusion_and_unlike_pyramids_are_refused():
    with pytest.raises(OptionError, match="did you mean 'subtract'"):
        Fusion("substract")
    with pytest.raises(InputError, match="2 and 1 levels"):
        Fusion("add")(fixed=[features((4, 4))] * 2, moving=[features((4, 4))])


# -- correlation ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("radius", [1, 2])
def test_correlation_equals_the_unfolded_product(shape, radius):
    fixed, moving = features(shape), features(shape, seed=1)
    naive = (fixed.unsqueeze(2) * unfolded(moving, radius)).mean(1)
    torch.testing.assert_close(local_correlation(fixed=fixed, moving=moving, radius=radius), naive)


@both
def test_correlation_gradients_are_finite_differences_and_those_of_the_naive_form(shape):
    fixed, moving = (features(shape, 3, seed=s, batch=1).requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(lambda f, m: local_correlation(fixed=f, moving=m), (fixed, moving), fast_mode=True)
    slope = features(shape, 3 ** len(shape), seed=2, batch=1)
    ours = torch.autograd.grad((local_correlation(fixed=fixed, moving=moving) * slope).sum(), (fixed, moving))
    naive = torch.autograd.grad(((fixed.unsqueeze(2) * unfolded(moving, 1)).mean(1) * slope).sum(), (fixed, moving))
    torch.testing.assert_close(ours, naive)


def test_the_largest_normalised_correlation_is_where_the_features_went():
    moving = features((12, 12), 6, batch=1)
    fixed = torch.roll(moving, (-1, 2), (2, 3))  # fixed(i) = moving(i + (1, -2))
    volume = Correlation(2, normalise=True)(fixed=fixed, moving=moving)[0, :, 3:-3, 3:-3]
    place = list(itertools.product(range(-2, 3), repeat=2)).index((1, -2))
    assert (volume.argmax(0) == place).all()
    torch.testing.assert_close(volume[place], torch.ones_like(volume[place]))


def test_a_window_may_differ_by_axis():
    volume = local_correlation(fixed=features((5, 6)), moving=features((5, 6)), radius=(0, 2))
    assert volume.shape == (2, 5, 5, 6)
    with pytest.raises(OptionError, match="radius"):
        local_correlation(fixed=features((5, 6)), moving=features((5, 6)), radius=(1, 2, 3))


# -- neighbourhood -------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("heads", [1, 2])
def test_motion_equals_the_unfolded_softmax(shape, heads):
    fixed, moving = features(shape), features(shape, seed=1)
    for radius in (1, 2):
        bias = torch.randn(heads, (2 * radius + 1) ** len(shape), dtype=torch.float64)
        ours = neighbourhood_motion(fixed=fixed, moving=moving, bias=bias, heads=heads, radius=radius, scale=0.7)
        torch.testing.assert_close(ours, naive_motion(fixed, moving, bias, heads, radius, 0.7))


@both
def test_motion_gradients_are_finite_differences_and_those_of_the_naive_form(shape):
    fixed, moving = (features(shape, 4, seed=s, batch=1).requires_grad_() for s in (0, 1))
    bias = torch.randn(2, 3 ** len(shape), dtype=torch.float64).requires_grad_()
    leaves = (fixed, moving, bias)

    def motion(f: Tensor, m: Tensor, b: Tensor) -> Tensor:
        return neighbourhood_motion(fixed=f, moving=m, bias=b, heads=2, scale=0.7)

    assert torch.autograd.gradcheck(motion, leaves, fast_mode=True)
    slope = torch.randn(1, 2, len(shape), *shape, dtype=torch.float64)
    ours = torch.autograd.grad((motion(*leaves) * slope).sum(), leaves)
    naive = torch.autograd.grad((naive_motion(*leaves, 2, 1, 0.7) * slope).sum(), leaves)
    torch.testing.assert_close(ours, naive)


def test_recorded_and_unrecorded_motion_are_the_same():
    fixed, moving = features((6, 5)).float(), features((6, 5), seed=1).float()
    plain = neighbourhood_motion(fixed=fixed, moving=moving)
    assert torch.equal(plain, neighbourhood_motion(fixed=fixed.clone().requires_grad_(), moving=moving).detach())


def test_sharp_scores_find_the_shift():
    moving = torch.nn.functional.normalize(features((10, 10, 10), 16, batch=1))
    fixed = torch.roll(moving, (-1, 0, 1), (2, 3, 4))  # fixed(i) = moving(i + (1, 0, -1))
    motion = neighbourhood_motion(fixed=fixed, moving=moving, scale=200.0)[0, 0, :, 2:-2, 2:-2, 2:-2]
    expected = torch.tensor([1.0, 0.0, -1.0], dtype=motion.dtype).view(3, 1, 1, 1).expand_as(motion)
    torch.testing.assert_close(motion, expected, atol=1e-6, rtol=0)


def test_large_scores_stay_finite():
    fixed = features((5, 5)) * 1e3
    motion = neighbourhood_motion(fixed=fixed.requires_grad_(), moving=fixed.detach())
    motion.sum().backward()
    assert motion.isfinite().all()
    assert fixed.grad is not None
    assert fixed.grad.isfinite().all()


def test_nothing_learned_moves_nothing_inside():
    matching = NeighbourhoodMatching(ndim=2, channels=4, heads=2)
    motion = matching(fixed=features((8, 8)).float(), moving=features((8, 8), seed=1).float())
    assert motion.shape == (2, 2, 2, 8, 8)
    assert motion.abs().max() < 0.05


def test_no_tensor_as_large_as_the_unfolded_neighbourhood_is_kept():
    fixed, moving = (features((8, 8, 8), 6, seed=s, batch=1).float().requires_grad_() for s in (0, 1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        neighbourhood_motion(fixed=fixed, moving=moving)
        local_correlation(fixed=fixed, moving=moving)
    assert sum(kept) < 6 * fixed.numel()


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="4 channels do not split into 3 heads"):
        neighbourhood_motion(fixed=features((4, 4)), moving=features((4, 4)), heads=3)
    with pytest.raises(InputError, match=r"bias must be \(1, 9\)"):
        neighbourhood_motion(fixed=features((4, 4)), moving=features((4, 4)), bias=torch.zeros(1, 27).double())
    with pytest.raises(InputError, match="of one shape"):
        neighbourhood_motion(fixed=features((4, 4)), moving=features((4, 5)))


# -- weighting -----------------------------------------------------------------------------------------------------


@both
def test_competing_fields_that_agree_give_that_field_on_the_finer_grid(shape):
    weighting = CompetitiveWeighting(ndim=len(shape), heads=3).double()
    shift = torch.arange(1.0, len(shape) + 1, dtype=torch.float64)
    fields = shift.view(1, 1, -1, *[1] * len(shape)).expand(2, 3, -1, *shape)
    one = weighting(fields)
    assert one.shape == (2, len(shape), *(2 * n for n in shape))
    expected = 2 * shift.view(1, -1, *[1] * len(shape))  # the same shift in voxels half as large
    torch.testing.assert_close(one, expected.expand_as(one))


def test_the_winner_takes_the_voxel():
    weighting = CompetitiveWeighting(ndim=2, heads=2).double()
    torch.nn.init.zeros_(weighting.weigh[-1].weight)
    weighting.weigh[-1].bias.data = torch.tensor([0.0, 50.0], dtype=torch.float64)
    fields = features((4, 4), 4).unflatten(1, (2, 2))
    alone = torch.nn.functional.interpolate(fields[:, 1], scale_factor=2.0, mode="bilinear") * 2
    torch.testing.assert_close(weighting(fields), alone)


# -- cross-attention -----------------------------------------------------------------------------------------------


def naive_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int, margin: int) -> Tensor:
    """Attention of all voxels to all, where what is outside the widened window is masked."""
    shape, ndim = q.shape[2:], q.ndim - 2
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")).flatten(1)  # d, n
    corner = index // window * window
    seen = (
        (index[:, None] >= corner[:, :, None] - margin) & (index[:, None] < corner[:, :, None] + window + margin)
    ).all(0)
    q, k, v = (x.flatten(2).unflatten(1, (heads, -1)) for x in (q, k, v))
    scores = torch.einsum("bhcn,bhcm->bhnm", q, k) * q.shape[2] ** -0.5
    out = torch.einsum("bhnm,bhcm->bhcn", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    assert ndim in (2, 3)
    return out.flatten(1, 2).unflatten(2, shape)


@both
@pytest.mark.parametrize("margin", [0, 1])
def test_window_attention_equals_masked_attention_of_all_to_all(shape, margin):
    q, k, v = (features(shape, seed=s) for s in range(3))
    ours = window_cross_attention(query=q, key=k, value=v, heads=2, window=2, margin=margin)
    torch.testing.assert_close(ours, naive_attention(q, k, v, 2, 2, margin))


@both
def test_rows_worked_on_one_at_a_time_change_neither_values_nor_gradients(shape):
    attention = WindowCrossAttention(ndim=len(shape), channels=4, heads=2, window=2, margin=1).double()
    fixed, moving = features(shape).requires_grad_(), features(shape, seed=1).requires_grad_()
    results = []
    for rows in (None, 1):
        attention.rows = rows
        out = attention(fixed=fixed, moving=moving)
        results.append((out, torch.autograd.grad(out.square().sum(), [fixed, moving, *attention.parameters()])))
    torch.testing.assert_close(results[0], results[1])


def test_window_attention_gradients_are_finite_differences():
    q, k, v = (features((3, 4), 2, seed=s, batch=1).requires_grad_() for s in range(3))
    bias = torch.randn(1, 4, 16, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: window_cross_attention(query=x[0], key=x[1], value=x[2], heads=1, window=2, margin=1, bias=x[3]),
        (q, k, v, bias),
        fast_mode=True,
    )


def test_the_bias_belongs_to_the_relative_position():
    attention = WindowCrossAttention(ndim=2, channels=2, heads=1, window=(2, 3), margin=(1, 0))
    table = attention.relative
    keys = list(itertools.product(range(-1, 3), range(3)))
    queries = list(itertools.product(range(2), range(3)))
    place = {}
    for (i, q), (j, k) in itertools.product(enumerate(queries), enumerate(keys)):
        difference = (k[0] - q[0], k[1] - q[1])
        assert place.setdefault(difference, int(table[i, j])) == int(table[i, j])
    assert sorted(place.values()) == list(range(attention.bias.shape[1]))


# -- warp ----------------------------------------------------------------------------------------------------------


@both
def test_features_follow_a_coarse_field_in_their_own_voxels(shape):
    fine = tuple(2 * n for n in shape)
    x = features(fine, 3, batch=1)
    shift = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    shift[:, 0] = 0.5  # half a coarse voxel is one fine voxel
    moved = warp_features(x, shift)
    torch.testing.assert_close(moved[:, :, :-1], x[:, :, 1:])
    assert torch.equal(warp_features(x, None), x)


def test_warp_then_fuse_is_both_in_turn():
    fixed, moving, field = features((6, 6)), features((6, 6), seed=1), features((3, 3), 2, seed=2)
    expected = fixed + warp_features(moving, field)
    assert torch.equal(WarpThenFuse(Fusion("add"))(fixed=fixed, moving=moving, field=field), expected)


# -- all -----------------------------------------------------------------------------------------------------------

PARTS = {
    "correlation": lambda ndim: Correlation(1, normalise=True),
    "neighbourhood": lambda ndim: NeighbourhoodMatching(ndim=ndim, channels=4, heads=2),
    "motion": lambda ndim: MotionStage(
        NeighbourhoodMatching(ndim=ndim, channels=4, heads=2), CompetitiveWeighting(ndim=ndim, heads=2)
    ),
    "cross_attention": lambda ndim: CrossAttentionBlock(ndim=ndim, channels=4, heads=2, window=2, margin=1),
}


@both
@pytest.mark.parametrize("name", PARTS)
def test_half_precision_is_finite_near_the_full_one_and_every_weight_is_used(shape, name):
    torch.manual_seed(0)
    part = PARTS[name](len(shape))
    fixed, moving = features(shape).float().requires_grad_(), features(shape, seed=1).float()
    full = part(fixed=fixed, moving=moving)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = part(fixed=fixed, moving=moving)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
    half.square().sum().backward()
    assert fixed.grad is not None
    assert fixed.grad.isfinite().all()
    unused = [n for n, p in part.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []
