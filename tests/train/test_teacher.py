"""The averaged teacher: what its draws say, against NumPy, and what it does to a training."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from tests.train.phantom import TinyNet
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError
from verimorph.field import warp
from verimorph.nn.stochastic import AlwaysOnDropout
from verimorph.objective import build_objective
from verimorph.train.loop import train
from verimorph.train.options import Options, make_fabric
from verimorph.train.passes import registration_tensors
from verimorph.train.phases import Optimiser, Part, Phase
from verimorph.train.recipe import settle
from verimorph.train.run import set_up
from verimorph.train.teacher import Teacher, check_teacher
from verimorph.uncertainty.double import DoubleWeighting

OBJECTIVE = "mse+diffusion:weight=teacher/smoothness+teacher:weight=teacher/consistency"


class Random(TinyNet):
    """Dropout that can be asked to draw after training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[2] = AlwaysOnDropout(0.4)
        nn.init.normal_(self.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    """Gives fields of a list in turn."""

    sampling, generator = False, None

    def __init__(self, fields: list[Tensor]) -> None:
        super().__init__()
        self.fields = iter(fields)

    def forward(self, *, fixed: Tensor, moving: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        assert self.sampling, "a teacher draws"
        return {"field": next(self.fields)}


def test_weights_are_shares_of_the_voxels_of_each_pair(phantoms):
    batch = phantoms.pair(0)
    generator = torch.Generator().manual_seed(1)
    fields = [torch.randn(2, 2, 16, 16, generator=generator) * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1)
              for _ in range(5)]  # fmt: skip
    weighting = DoubleWeighting(3.0, 2.0, transformation_threshold=0.5, appearance_threshold=1e-3)
    said = Teacher(5, weighting).tensors(Drawing(fields), batch, symmetric=False)
    drawn = np.stack([field.numpy() for field in fields]).astype(np.float64)
    looks = np.stack([warp(batch["moving"], field).numpy() for field in fields]).astype(np.float64)
    spread = np.sqrt(drawn.var(0, ddof=1).sum(1)).reshape(2, -1)
    uncertain = spread > 0.5 * spread.max(1, keepdims=True)
    certain = looks.var(0, ddof=1).mean(1).reshape(2, -1) < 1e-3
    np.testing.assert_allclose(said["teacher/field"].numpy(), drawn.mean(0), atol=1e-6)
    np.testing.assert_allclose(said["teacher/smoothness"].numpy(), 3 * uncertain.mean(1), rtol=1e-6)
    np.testing.assert_allclose(said["teacher/consistency"].numpy(), 2 * certain.mean(1), rtol=1e-6)
    assert 0 < said["teacher/consistency"][0] < said["teacher/consistency"][1], "the second pair hardly moves"


@torch.no_grad()
def test_the_total_is_the_weighted_sum(phantoms):
    torch.manual_seed(0)
    model, batch, objective = Random(), phantoms.pair(1), build_objective(OBJECTIVE)
    tensors = registration_tensors(model, batch, objective)
    tensors |= Teacher(3).tensors(model, batch, symmetric=False)
    found = objective(tensors)
    away = (tensors["field"] - tensors["teacher/field"]).square().sum(1).mean((1, 2))
    assert float(found.values["teacher"]) == pytest.approx(float(away.mean()), rel=1e-5)
    smooth = build_objective("diffusion").terms[0](tensors, reduction="none")
    wanted = (
        found.values["mse"] + (tensors["teacher/smoothness"] * smooth + tensors["teacher/consistency"] * away).mean()
    )
    assert float(found.total) == pytest.approx(float(wanted), rel=1e-5)


def test_both_directions_have_a_teacher_of_their_own(phantoms):
    said = Teacher(2).tensors(Random(), phantoms.pair(0), symmetric=True)
    assert said["teacher/field"].shape[0] == said["teacher/smoothness"].shape[0] == 4


def run(folder, phantoms, steps: int, *, resume: bool = False, teacher: Teacher | None = Teacher(3)):
    torch.manual_seed(0)
    parts = (Part(optimiser=Optimiser(lr=1e-2)),)
    return train(
        Random(),
        phases=[Phase(steps, build_objective(OBJECTIVE), parts=parts)],
        train_batches=phantoms.train_batches,
        folder=folder,
        options=Options(log_every=1, tensorboard=False, checkpoint_every=4, ema=0.8, teacher=teacher),
        fabric=make_fabric(accelerator="cpu"),
        resume=resume,
    )


def test_a_taught_run_goes_on_bit_for_bit_and_keeps_its_teacher(tmp_path, phantoms):
    def losses(folder) -> list[str]:
        with open(folder / "log.csv", newline="", encoding="utf-8") as stream:
            return [row["total"] for row in csv.DictReader(stream)]

    run(tmp_path / "whole", phantoms, 8)
    run(tmp_path / "halves", phantoms, 4)
    with pytest.raises(InputError, match="another teacher"):
        run(tmp_path / "halves", phantoms, 8, resume=True, teacher=Teacher(4))
    run(tmp_path / "halves", phantoms, 8, resume=True)
    assert len(losses(tmp_path / "whole")) == 8
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


def test_what_cannot_teach_is_refused():
    with pytest.raises(OptionError, match="give ema"):
        Options(teacher=Teacher())
    with pytest.raises(OptionError, match="2 or more"):
        Teacher(1)
    for model in (TinyNet(), nn.Sequential(AlwaysOnDropout(0.0))):
        with pytest.raises(OptionError, match="draws at random"):
            check_teacher(Teacher(), model, [build_objective(OBJECTIVE)])
    with pytest.raises(OptionError, match="'teacher/field@2': a teacher has one level"):
        check_teacher(Teacher(), Random(), [build_objective("mse+teacher:level=2")])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objective": OBJECTIVE}, "there is no teacher; write teacher"),
        ({"teacher": {}, "ema": 0.99}, "leave the teacher out"),
    ],
)
def test_a_recipe_that_does_not_listen_is_refused(more, said):
    data = {"preparation": {"shape": [16, 16, 16]}, "synthetic": {"kind": "shapes"}}
    recipe = settle({"method": "voxelmorph", "data": data, **more})
    with pytest.raises(OptionError, match=said):
        set_up(recipe)
