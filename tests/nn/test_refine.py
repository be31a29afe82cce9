"""The refinement loop: one stage is the plain network, stages compose as their formula says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError
from verimorph.field import compose, resize_displacement, warp
from verimorph.nn.features.pyramid import ConvPyramid, Towers
from verimorph.nn.refine import Refinement, update

both = pytest.mark.parametrize("shape", [(8, 12), (8, 4, 12)], ids=["2d", "3d"])


class Step(nn.Module):
    """A small network from two images to a field."""

    def __init__(self, ndim: int, channels: int = 1, size: float = 0.3) -> None:
        super().__init__()
        self.stride, self.size, self.seen = 2, size, []
        self.layer = {2: nn.Conv2d, 3: nn.Conv3d}[ndim](2 * channels, ndim, 3, padding=1)

    def forward(self, *, fixed: Tensor, moving: Tensor) -> dict[str, Tensor]:
        self.seen.append((fixed, moving))
        field = self.size * self.layer(torch.cat((fixed, moving), 1)).tanh()
        return {"field": field, "raw": 2 * field}


def images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 1, *shape), torch.rand(2, 1, *shape)


@both
def test_one_level_and_one_iteration_is_the_plain_network(shape):
    fixed, moving = images(shape)
    step = Step(len(shape))
    plain, looped = step(fixed=fixed, moving=moving), Refinement([step])(fixed=fixed, moving=moving)
    for name in ("field", "raw"):
        assert torch.equal(looped[name], plain[name])
    assert torch.equal(looped["stage1/field"], plain["field"])


@both
@pytest.mark.parametrize("how", ["compose", "add"])
def test_every_stage_sees_the_moving_image_through_the_whole_field_so_far(shape, how):
    fixed, moving = images(shape)
    step = Step(len(shape))
    out = Refinement([step], iterations=3, how=how)(fixed=fixed, moving=moving)
    field = None
    for number in range(1, 4):
        seen = moving if field is None else warp(moving, field)
        torch.testing.assert_close(step.seen[number - 1][1], seen)
        made = step(fixed=fixed, moving=seen)["field"]
        field = made if field is None else compose(field, made) if how == "compose" else field + made
        torch.testing.assert_close(out[f"stage{number}/field"], field)
        torch.testing.assert_close(out[f"stage{number}/raw"], 2 * made)
    torch.testing.assert_close(out["field"], field)


def test_composition_of_stages_is_warping_in_turn():
    moving = torch.rand(1, 1, 40, 40)
    moving = nn.functional.avg_pool2d(moving, 7, 1, 3)
    first = torch.zeros(1, 2, 40, 40)
    first[:, 0], first[:, 1] = 2.0, -1.0  # whole voxels: nothing is lost by interpolation
    second = 0.5 * torch.sin(torch.arange(40.0) / 6).view(1, 1, 1, 40).expand(1, 2, 40, 40)
    inside = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(warp(moving, update(first, second))[inside], warp(warp(moving, first), second)[inside])


@both
def test_levels_are_block_means_and_fields_come_in_voxels_of_the_input(shape):
    fixed, moving = images(shape)
    coarse, fine = Step(len(shape)), Step(len(shape))
    out = Refinement([coarse, fine], levels=(2, 1))(fixed=fixed, moving=moving)
    pool = nn.functional.avg_pool2d if len(shape) == 2 else nn.functional.avg_pool3d
    torch.testing.assert_close(coarse.seen[0][0], pool(fixed, 2))
    first = coarse(fixed=pool(fixed, 2), moving=pool(moving, 2))["field"]
    torch.testing.assert_close(out["stage1/field"], resize_displacement(first, shape))
    torch.testing.assert_close(
        out["field"], update(first, fine(fixed=fixed, moving=warp(moving, out["stage1/field"]))["field"])
    )


def test_weights_are_shared_or_own():
    step = Step(2)
    shared = Refinement([step], levels=(2, 1), iterations=(2, 1))
    assert len(list(shared.parameters())) == 2
    assert shared.schedule == [(2, 0), (2, 0), (1, 0)]
    own = Refinement([Step(2), Step(2), Step(2)], levels=(2, 1), iterations=(2, 1))
    assert own.schedule == [(2, 0), (2, 1), (1, 2)]
    by_level = Refinement([Step(2), Step(2)], levels=(2, 1), iterations=2)
    assert by_level.schedule == [(2, 0), (2, 0), (1, 1), (1, 1)]
    with pytest.raises(OptionError, match="2 parts for 1 levels and 3 stages"):
        Refinement([Step(2), Step(2)], iterations=3)


def test_detached_stages_learn_from_their_own_step_alone():
    fixed, moving = images((8, 8))
    first, second = Step(2), Step(2)
    for detach in (False, True):
        model = Refinement([first, second], iterations=2, detach=detach)
        out = model(fixed=fixed, moving=moving)
        (slope,) = torch.autograd.grad(out["field"].square().sum(), [first.layer.weight], allow_unused=True)
        assert (slope is None) == detach


def test_features_are_read_through_the_field_not_made_again():
    fixed, moving = images((8, 8))
    towers = Towers(ConvPyramid(ndim=2, channels=1, widths=(3, 5)))
    coarse, fine = Step(2, 5), Step(2, 3)
    model = Refinement([coarse, fine], levels=(1, 0), features=towers)
    out = model(fixed=fixed, moving=moving)
    f, m = towers(fixed=fixed, moving=moving)
    torch.testing.assert_close(coarse.seen[0], (f[1], m[1]))
    torch.testing.assert_close(fine.seen[0], (f[0], warp(m[0], out["stage1/field"])))
    assert (model.stride, out["field"].shape) == (2, (2, 2, 8, 8))


def test_without_stages_only_the_result_is_there():
    fixed, moving = images((8, 8))
    model = Refinement([Step(2)], levels=(2, 1))
    with_stages = model(fixed=fixed, moving=moving)["field"]
    model.stages = False
    out = model(fixed=fixed, moving=moving)
    assert torch.equal(out["field"], with_stages)
    assert not [name for name in out if name.endswith("/field")]


def test_what_does_not_fit_is_refused():
    model = Refinement([Step(2)], levels=(3, 1))
    assert model.stride == 6
    with pytest.raises(InputError, match="multiples of 6"):
        model(fixed=torch.rand(1, 1, 8, 8), moving=torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="differ in shape"):
        model(fixed=torch.rand(1, 1, 6, 6), moving=torch.rand(1, 1, 6, 12))
    with pytest.raises(OptionError, match="take no condition"):
        model(fixed=torch.rand(1, 1, 6, 6), moving=torch.rand(1, 1, 6, 6), condition=torch.rand(1, 2))
    with pytest.raises(OptionError, match="did you mean 'compose'"):
        Refinement([Step(2)], how="composed")


def test_half_precision_steps_compose_in_full_precision():
    fixed, moving = images((8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Refinement([Step(2)], iterations=2)(fixed=fixed, moving=moving)
    assert out["field"].dtype == torch.float32
    assert out["field"].isfinite().all()
