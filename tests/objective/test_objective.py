"""Terms over named tensors, weights of every kind, scales, and the grammar."""

from __future__ import annotations

import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.objective import (
    TERMS,
    Conditional,
    FeatureSpace,
    MultiScale,
    Objective,
    ObjectiveTerm,
    Schedule,
    Term,
    build_objective,
    build_term,
    key,
    parse,
    similarity,
    validate,
)
from verimorph.objective.regularity import diffusion


@pytest.fixture
def tensors(textured):
    """Everything any term of the table may ask for."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 10, 8)
    fixed, moved = textured(shape, 1, batch=2).float(), textured(shape, 2, batch=2).float()
    field = 0.2 * torch.randn(2, 3, *shape, generator=generator)
    maps = torch.randn(2, 3, *shape, generator=generator).softmax(1)
    points = 1 + 5 * torch.rand(2, 6, 3, generator=generator)
    return {
        "fixed": fixed,
        "moved": moved,
        "field": field,
        "velocity": 0.9 * field,
        "velocity_mean": field,
        "velocity_log_variance": -field.abs(),
        "inverse": -field,
        "gradients": 0.5 + 0.1 * field,
        "backward/field": -0.8 * field,
        "known_field": 1.1 * field,
        "teacher/field": 0.9 * field,
        "features/fixed": fixed.repeat(1, 4, 1, 1, 1) ** 2,
        "features/moved": moved.repeat(1, 4, 1, 1, 1) ** 2,
        "labels/fixed": maps,
        "labels/moved": maps.flip(2),
        "label_log_variance": maps - 1,
        "points/fixed": points,
        "points/moving": points + 0.3,
    }


@pytest.mark.parametrize("name", TERMS)
def test_every_term_of_the_table(name, tensors):
    if TERMS[name].group == "labels":
        pytest.importorskip("monai")
    term = Term(name)
    assert isinstance(term, ObjectiveTerm)
    assert TERMS[name].summary
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items() if n in term.needs}
    value = term({**tensors, **leaves}, spacing=(1.0, 1.5, 2.0))
    assert value.shape == ()
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    assert any(slope is not None and slope.abs().max() > 0 for slope in slopes)
    assert term(tensors, reduction="none").shape == (2,)
    scaled = MultiScale(term, (1, 2))(tensors)
    assert scaled.isfinite()
    built, weight = build_term(name, weight=0.5)
    assert weight == 0.5
    torch.testing.assert_close(built(tensors), Term(name)(tensors), rtol=0.3 if name == "icon" else 1e-6, atol=1e-6)


def test_terms_name_what_they_miss(tensors):
    del tensors["moved"]
    with pytest.raises(InputError, match="'lncc' needs the tensor 'moved'"):
        Term("lncc")(tensors)


def test_masks_of_both_images_are_multiplied(tensors):
    tensors["fixed_mask"] = torch.ones(2, 1, 12, 10, 8)
    tensors["fixed_mask"][:, :, :4] = 0
    tensors["moved_mask"] = torch.ones(2, 1, 12, 10, 8)
    tensors["moved_mask"][..., 6:] = 0
    for name in ("mse", "lncc", "mi"):
        box = {n: tensors[n][:, :, 4:, :, :6].contiguous() for n in ("fixed", "moved")}
        torch.testing.assert_close(Term(name)(tensors), Term(name)(box), rtol=1e-4, atol=1e-5)


def test_directions_and_levels_are_read_from_names(tensors):
    assert key("moved", "backward", 2) == "backward/moved@2"
    fixed, moved = tensors["fixed"], tensors["moved"]
    named = {"backward/fixed@2": moved, "backward/moved@2": fixed, "backward/field@2": tensors["field"]}
    term = Term("mse", direction="backward", level=2)
    assert term.needs == ("backward/fixed@2", "backward/moved@2")
    torch.testing.assert_close(term(named), similarity.mse(moved, fixed))
    regular = Term("bending", direction="backward", level=2)
    half = regular(named, spacing=(0.5, 0.5, 0.5))
    torch.testing.assert_close(half, Term("bending")({"field": tensors["field"]}))


def test_regularisers_say_what_they_act_on(tensors):
    for on in ("field", "velocity", "inverse"):
        term = Term("diffusion", on=on)
        assert term.needs == (on,)
        torch.testing.assert_close(term(tensors), diffusion(tensors[on]))
    with pytest.raises(OptionError, match="cannot act on 'velocity'"):
        Term("folding", on="velocity")


def test_terms_may_ask_for_another_pass():
    objective = build_objective("lncc+gradicon:weight=1.5")
    assert objective.passes == ("backward",)
    assert "backward/field" in objective.needs


def test_fixed_statistics_follow_the_image(tensors):
    term = Term("lncc", radius=2)
    first = term(tensors)
    assert term(tensors) == first
    changed = {**tensors, "fixed": tensors["moved"].flip(2)}
    torch.testing.assert_close(term(changed), similarity.lncc(changed["fixed"], changed["moved"], radius=2))
    tensors["fixed"].mul_(0.5).add_(0.1 * tensors["moved"])  # the same tensor with other content
    torch.testing.assert_close(term(tensors), similarity.lncc(tensors["fixed"], tensors["moved"], radius=2))
    masked = {**tensors, "fixed_mask": (tensors["fixed"] > 0.2).float()}
    expected = similarity.lncc(tensors["fixed"], tensors["moved"], radius=2, mask=masked["fixed_mask"])
    torch.testing.assert_close(term(masked), expected)


def test_weights_of_every_kind(tensors):
    similarity_value, energy = Term("mse")(tensors), Term("diffusion")(tensors)

    def total(weight, **options):
        return Objective([(Term("mse"), 1.0), (Term("diffusion"), weight)])(tensors, **options).total

    torch.testing.assert_close(total(0.3), similarity_value + 0.3 * energy)
    schedule = Schedule(1.0, 0.25, begin=0.5)
    for progress, weight in ((0.0, 1.0), (0.5, 1.0), (0.75, 0.625), (1.0, 0.25)):
        torch.testing.assert_close(total(schedule, progress=progress), similarity_value + weight * energy)
    each = Term("diffusion")(tensors, reduction="none")
    condition = torch.tensor([[0.1], [2.0]])
    conditional = Conditional(lambda c: 3 * c[:, 0])
    expected = similarity_value + (each * torch.tensor([0.3, 6.0])).mean()
    torch.testing.assert_close(total(conditional, condition=condition), expected)
    stiffness = 0.5 + torch.rand(1, 1, 12, 10, 8, generator=torch.Generator().manual_seed(1))
    expected = similarity_value + diffusion(tensors["field"], weight=stiffness)
    torch.testing.assert_close(total(stiffness), expected)
    torch.testing.assert_close(
        Objective([(Term("mse"), 1.0), (Term("diffusion"), "stiffness")])({**tensors, "stiffness": stiffness}).total,
        expected,
    )
    with pytest.raises(OptionError, match="condition"):
        total(conditional)


def test_schedules():
    assert Schedule(1.0, 0.01, shape="log")(0.5) == pytest.approx(0.1)
    assert Schedule(0.0, 1.0, shape="cosine")(0.5) == pytest.approx(0.5)
    assert Schedule(0.0, 1.0, shape="cosine")(0.25) < 0.25
    for wrong in ({"shape": "steps"}, {"begin": 0.5, "end": 0.5}, {"stop": 0.0, "shape": "log"}):
        with pytest.raises(OptionError):
            Schedule(**{"start": 1.0, "stop": 2.0, **wrong})


def test_values_are_reported_before_weighting(tensors):
    objective = build_objective("mse:weight=0.5+mse:weight=2+diffusion:weight=0")
    total, values = objective(tensors)
    assert list(values) == ["mse", "mse#2"]
    torch.testing.assert_close(values["mse"], Term("mse")(tensors))
    torch.testing.assert_close(total, 2.5 * values["mse"])


def test_scales_average_blocks(tensors):
    fine, coarse = Term("mse")(tensors), None
    pool = torch.nn.functional.avg_pool3d
    coarse = similarity.mse(pool(tensors["fixed"], 2), pool(tensors["moved"], 2))
    term, _ = build_term("mse", scales=(1, 2), scale_weights=(3.0, 1.0))
    torch.testing.assert_close(term(tensors), (3 * fine + coarse) / 4)
    # A linear field has the same derivatives on every grid: vectors shrink with it.
    x = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    for scale in (1, 2, 4):
        linear, quadratic = ({"field": torch.cat([u, 0 * u], 1)} for u in (0.2 * x, 0.01 * x**2))
        assert MultiScale(Term("diffusion"), (scale,))(linear).item() == pytest.approx(0.04 / 4)
        bent = MultiScale(Term("bending"), (scale,))(quadratic, spacing=(1.0, 1.0))
        assert bent.item() == pytest.approx(0.02**2 / 2, rel=1e-3)
    field = torch.zeros(1, 2, 16, 16)
    points = {
        "field": field,
        "points/fixed": torch.tensor([[[2.0, 3.0]]]),
        "points/moving": torch.tensor([[[2.0, 5.0]]]),
    }
    assert MultiScale(Term("landmarks"), (2,))(points, spacing=(1.5, 1.5)).item() == pytest.approx(3.0)


def test_feature_space_owns_its_extractor(tensors):
    torch.manual_seed(0)
    extractor = torch.nn.Conv3d(1, 4, 3, stride=2, padding=1)
    term = FeatureSpace(extractor, Term("mse"))
    objective = Objective([(term, 0.5)])
    assert len(list(objective.parameters())) == 2
    expected = 0.5 * similarity.mse(extractor(tensors["fixed"]), extractor(tensors["moved"]))
    torch.testing.assert_close(objective(tensors).total, expected)
    tensors["fixed_mask"] = torch.ones(2, 1, 12, 10, 8)
    torch.testing.assert_close(objective(tensors, spacing=(1.0, 1.0, 1.0)).total, expected)


def test_any_callable_of_the_protocol_is_a_term(tensors):
    class Mean:
        needs, passes = ("moved",), ()

        def __call__(self, tensors, *, spacing=None, weight=None, reduction="mean", map=False):
            return tensors["moved"].mean()

    torch.testing.assert_close(Objective([(Mean(), 2.0)])(tensors).total, 2 * tensors["moved"].mean())


def test_text_yaml_list_and_mapping_mean_the_same():
    text = "lncc:radius=4x4x2,border=zeros+mi:weight=0.5,intensity_range=0x2+diffusion:weight=1e-2,on=velocity"
    assert parse(text) == [
        {"name": "lncc", "radius": (4, 4, 2), "border": "zeros"},
        {"name": "mi", "weight": 0.5, "intensity_range": (0, 2)},
        {"name": "diffusion", "weight": 0.01, "on": "velocity"},
    ]
    as_list = [
        {"name": "lncc", "radius": [4, 4, 2], "border": "zeros"},
        {"name": "mi", "weight": 0.5, "intensity_range": [0, 2]},
        {"name": "diffusion", "weight": 0.01, "on": "velocity"},
    ]
    as_mapping = {entry["name"]: {k: v for k, v in entry.items() if k != "name"} for entry in as_list}
    shown = [repr(build_objective(specification)) for specification in (text, as_list, as_mapping)]
    assert shown[0] == shown[1] == shown[2]
    assert (
        repr(build_objective("lncc:radius=4x4x2,border=zeros", "mi:weight=0.5,intensity_range=0x2", text.split("+")[2]))
        == shown[0]
    )
    assert parse("mse:weight=1e+3")[0]["weight"] == 1000.0


def test_a_schedule_in_yaml():
    objective = build_objective({"diffusion": {"weight": {"start": 1.0, "stop": 0.1, "shape": "log"}}})
    field = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(objective({"field": field}, progress=1.0).total, 0.1 * diffusion(field))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lnc", "unknown term 'lnc'; did you mean 'lncc'"),
        ("lncc:radus=3", "no setting 'radus'; did you mean 'radius'"),
        ("lncc:radius=abc", "'radius' of term 'lncc'"),
        ("lncc:radius=1.5", "'radius' of term 'lncc'"),
        ("lncc:radius", "has no value"),
        ("lncc:", "not a list of terms"),
        ("lncc:radius=2,radius=3", "given twice"),
        ("mse++lncc", "not a list of terms"),
        ("folding:on=velocity", "'on' of term 'folding'"),
        ("mattes:window=gaussian", "no setting 'window'"),
        ("diffusion:level=0", "'level' of term 'diffusion'"),
        ("mse:scales=0", "scales"),
        ("mi:window=boxcar", "'window' of term 'mi'"),
    ],
)
def test_mistakes_are_refused_in_one_line(text, message):
    with pytest.raises(OptionError, match=message) as error:
        build_objective(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["lncc:radius=-1", "diffusion:weight=-1", "mse:weight=nan", "lncc:radius=4x-2x4", "mi:bins=1", "mind:sigma=0.0"],
)
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(OptionError, match="give "):
        build_objective(text)


def test_settings_are_complete_and_strict():
    assert validate("lncc", {})["radius"] == 4
    with pytest.raises(OptionError):
        validate("lncc", {"radius": "4"})
    with pytest.raises(OptionError):
        Term("lncc", radus=3)
