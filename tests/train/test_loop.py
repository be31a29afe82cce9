"""The training loop: it learns, it stops with a reason, and it goes on after a kill as if nothing had happened."""

from __future__ import annotations

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.phantom import TinyNet, TinySegmenter
from torch import nn

from verimorph.errors import InputError, OptionError, ResourceError, VerimorphWarning
from verimorph.methods.card import Card, TrainingData
from verimorph.methods.checkpoint import save_model
from verimorph.objective import Objective, Schedule, build_objective
from verimorph.train.loop import TrainingError, train
from verimorph.train.options import Options, make_fabric
from verimorph.train.phases import Optimiser, Part, Phase
from verimorph.train.state import checkpoints, read_checkpoint, write_checkpoint
from verimorph.train.validate import Validation, validate_registration, validate_segmentation
from verimorph.train.weights import start_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fabric():
    return make_fabric(accelerator="cpu")


def phase(steps: int, terms: str = "mse", **more) -> Phase:
    optimiser = more.pop("optimiser", Optimiser(lr=1e-2))
    return Phase(steps, build_objective(terms), parts=more.pop("parts", (Part(optimiser=optimiser),)), **more)


def quick(**more) -> Options:
    return Options(**{"log_every": 1, "tensorboard": False, **more})


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def losses(folder: Path) -> list[float]:
    return [float(row["total"]) for row in rows(folder / "log.csv")]


def test_a_pair_is_learned(tmp_path, fabric, tiny, phantoms):
    pair = phantoms.pair(0)
    kept = []
    result = train(
        tiny,
        phases=[phase(60, "mse+diffusion:weight=0.01")],
        train_batches=lambda start: iter(lambda: pair, None),
        folder=tmp_path,
        options=quick(validate_every=20, tensorboard=True),
        validate=lambda model: validate_registration(model, [pair], names=("background", "disc")),
        on_best=lambda model, metrics, step: kept.append((step, metrics["dice"])),
        fabric=fabric,
    )
    values = losses(tmp_path)
    assert len(values) == 60
    assert min(values[-5:]) < 0.3 * values[0]
    assert result.metrics["dice"] > result.metrics["dice_before"] + 0.05
    assert result.best_step == kept[-1][0]
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    measured = {int(row["step"]): float(row["dice"]) for row in rows(tmp_path / "validation.csv")}
    assert list(measured) == [20, 40, 60]
    assert result.metrics["dice"] == max(measured.values())
    assert "dice_disc" in result.metrics
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_segmenter_is_learned(tmp_path, fabric, phantoms):
    torch.manual_seed(0)
    pair = phantoms.pair(0)
    batch = {"image": pair["fixed"], "labels": pair["fixed_labels"], "known": pair["fixed_known"], "names": ["a", "b"]}
    result = train(
        TinySegmenter(),
        phases=[phase(60, "partial_dice+cross_entropy", optimiser=Optimiser(lr=3e-2))],
        train_batches=lambda start: iter(lambda: batch, None),
        folder=tmp_path,
        options=quick(),
        validate=lambda model: validate_segmentation(model, [batch]),
        fabric=fabric,
    )
    assert result.metrics["dice"] > 0.95


def test_an_unlabelled_item_changes_nothing_in_a_partial_term(tmp_path, fabric, phantoms):
    # The weights move only by the pair whose labels were drawn, whatever the other one's maps say.
    torch.manual_seed(1)
    first = TinyNet(dropout=0.0)
    second = TinyNet(dropout=0.0)
    second.load_state_dict(first.state_dict())
    pair, other = phantoms.pair(0), phantoms.pair(0)
    for batch in (pair, other):
        batch["fixed_known"] = torch.tensor([[True], [False]])
    other["fixed_labels"] = pair["fixed_labels"].clone()
    other["fixed_labels"][1] = 0
    for model, batch, name in ((first, pair, "one"), (second, other, "two")):
        train(
            model,
            phases=[phase(5, "partial_dice")],
            train_batches=lambda start, batch=batch: iter(lambda: batch, None),
            folder=tmp_path / name,
            options=quick(),
            fabric=fabric,
        )
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


_SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.train.phantom import Phantoms, TinyNet
from verimorph.objective import build_objective
from verimorph.train.loop import train
from verimorph.train.options import Options, make_fabric
from verimorph.train.phases import Optimiser, Part, Phase
from verimorph.train.validate import validate_registration

folder, resume, slow = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])
data, fabric = Phantoms(), make_fabric(accelerator="cpu")
torch.manual_seed(5)
phases = [
    Phase(7, build_objective("mse"), name="first", parts=(Part(optimiser=Optimiser(lr=1e-2, schedule="cosine")),)),
    Phase(
        13, build_objective("mse+diffusion:weight=0.01"), name="second", freeze=("encoder",), symmetric=True,
        parts=(Part(optimiser=Optimiser("sgd", 1e-1, "poly", warmup=3, settings={{"momentum": 0.9}})),),
    ),
]
train(
    TinyNet(), phases=phases, train_batches=data.train_batches, folder=folder, fabric=fabric, resume=resume,
    options=Options(
        log_every=1, checkpoint_every=3, validate_every=4, ema=0.9, accumulate=2, clip=1.0, tensorboard=False
    ),
    validate=lambda model: validate_registration(model, data.validation),
    on_step=lambda progress: time.sleep(slow),
)
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT.format(root=str(ROOT)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: str, *words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, str(script), str(tmp_path / folder), *words], env=environment)

    whole, killed = start("whole", "new", "0"), start("killed", "new", "0.3")
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and killed.poll() is None and not (log.is_file() and len(rows(log)) >= 11):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = len(rows(log))
    assert 11 <= reached < 20, "killed in the second phase, between checkpoints or at one"
    assert whole.wait() == 0
    assert start("killed", "resume", "0").wait() == 0
    for name in ("log.csv", "validation.csv"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "killed" / name), name
    first, second = (read_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "killed"))
    for part in ("model", "average"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name
    assert len(rows(tmp_path / "whole" / "log.csv")) == 20


@pytest.mark.parametrize("stop", [7, 10])
def test_resuming_at_the_end_of_a_phase_or_within_is_exact(tmp_path, fabric, phantoms, stop):
    def run(folder: Path, *, resume: bool = False, until: int | None = None) -> None:
        torch.manual_seed(5)
        seen: list[int] = []

        def on_step(progress) -> None:
            seen.append(progress.step)
            if progress.step == until:
                raise KeyboardInterrupt

        phases = [phase(7, name="first"), phase(6, "mse+diffusion", name="second", optimiser=Optimiser("sgd", 1e-1))]
        train(
            TinyNet(),
            phases=phases,
            train_batches=phantoms.train_batches,
            folder=folder,
            options=quick(checkpoint_every=stop, log_every=3),
            on_step=on_step,
            fabric=fabric,
            resume=resume,
        )

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", until=stop + 1)
    assert checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == f"step-{stop:08d}"
    run(tmp_path / "cut", resume=True)
    assert rows(tmp_path / "whole" / "log.csv") == rows(tmp_path / "cut" / "log.csv")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, fabric, phantoms):
    def run(terms: str) -> None:
        train(
            TinyNet(),
            phases=[phase(2, terms)],
            train_batches=phantoms.train_batches,
            folder=tmp_path,
            options=quick(),
            fabric=fabric,
            resume=True,
        )

    run("mse")
    with pytest.raises(InputError, match="of another recipe"):
        run("mae")


def test_settings_that_decide_the_result_are_refused_on_the_way(tmp_path, fabric, phantoms):
    begun = {"name": "adam", "lr": 1e-2, "settings": {"weight_decay": 0.1}}

    def run(optimiser=(), last=3, ema=None, **more) -> int:
        own = Optimiser(**{**begun, **dict(optimiser)})
        result = train(
            TinyNet(),
            phases=[phase(more.pop("first", 2), name="first"), phase(last, optimiser=own, name="second", **more)],
            train_batches=phantoms.train_batches,
            folder=tmp_path,
            options=quick(ema=ema),
            on_begin=lambda: began.append(True),
            fabric=fabric,
            resume=True,
        )
        return result.steps

    began: list[bool] = []
    assert run() == 5
    for change, said in (
        ({"optimiser": {"settings": {"weight_decay": 0.5}}}, r"another phases\.1\.optimiser\.weight_decay;"),
        ({"optimiser": {"name": "sgd", "settings": {"momentum": 0.9}}}, r"another phases\.1\.optimiser\.name;"),
        ({"first": 1}, r"another phases\.0\.steps;"),
        ({"freeze": ("encoder",)}, r"another phases\.1\.freeze;"),
        ({"symmetric": True, "ema": 0.9}, r"another ema and phases\.1\.symmetric;"),
        ({"parts": (Part("head|encoder", Optimiser(**begun)),)}, r"another phases\.1\.match;"),
    ):
        with pytest.raises(InputError, match=said):
            run(**change)
        assert began == [True], "refused before anything is written"
    assert run(optimiser={"lr": 1e-3, "schedule": "cosine"}, last=4) == 6


def test_patience_ends_a_phase_and_the_next_one_begins(tmp_path, fabric, phantoms):
    # The second phase begins worse than the first was, and gets better: nothing of that is its end.
    values = {2: 0.8, 4: 0.7, 6: 0.7, 8: 0.5, 10: 0.55, 12: 0.6, 14: 0.6, 16: 0.6}
    kept: list[int] = []

    def run(folder: Path, *, resume: bool = False, until: int | None = None):
        torch.manual_seed(5)
        now: list[int] = [0]

        def on_step(progress) -> None:
            now[0] = progress.step
            if progress.step == until:
                raise KeyboardInterrupt

        return train(
            TinyNet(),
            phases=[phase(50, name="first"), phase(40, "mae", name="second", optimiser=Optimiser("sgd", 1e-1))],
            train_batches=phantoms.train_batches,
            folder=folder,
            options=quick(validate_every=2, patience=2, ema=0.9, checkpoint_every=3),
            validate=lambda model: Validation({"dice": values[now[0]]}),
            on_best=lambda model, metrics, step: kept.append(step),
            on_step=on_step,
            fabric=fabric,
            resume=resume,
        )

    whole = run(tmp_path / "whole")
    assert (whole.steps, whole.stopped_early, whole.best_step) == (16, True, 2)
    assert kept == [2]
    assert [row["phase"] for row in rows(tmp_path / "whole" / "log.csv")] == ["first"] * 6 + ["second"] * 10
    for until in (7, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(until), until=until)
        run(tmp_path / str(until), resume=True)
        assert rows(tmp_path / "whole" / "log.csv") == rows(tmp_path / str(until) / "log.csv")


def test_what_a_term_has_learned_goes_on_in_the_next_phase(tmp_path, fabric, phantoms):
    class Shift(nn.Module):
        """A term with a weight of its own."""

        needs, passes = ("field",), ()

        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.ones(()))

        def forward(self, tensors, *, spacing=None, reduction="mean", weight=None):
            return ((tensors["field"] - self.own) ** 2).mean()

    def run(folder: Path, *, resume: bool = False, until: int | None = None) -> None:
        torch.manual_seed(5)
        learned, other = Objective([("shift", Shift(), 1.0)]), build_objective("mse")
        order = ((learned, "first"), (other, "second"), (learned, "third"))

        def on_step(progress) -> None:
            if progress.step == until:
                raise KeyboardInterrupt

        train(
            TinyNet(),
            phases=[Phase(2, one, name=name, parts=(Part(optimiser=Optimiser(lr=1e-2)),)) for one, name in order],
            train_batches=phantoms.train_batches,
            folder=folder,
            options=quick(checkpoint_every=1),
            on_step=on_step,
            fabric=fabric,
            resume=resume,
        )

    run(tmp_path / "whole")
    for until in (3, 5):  # the newest checkpoint is of a border, and of the phase after it
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(until), until=until)
        run(tmp_path / str(until), resume=True)
        assert losses(tmp_path / "whole") == losses(tmp_path / str(until))


def test_an_objective_without_weight_is_refused_and_a_schedule_from_nothing_is_not(tmp_path, fabric, tiny, phantoms):
    with pytest.raises(OptionError, match="nothing is left to lower, the weight of mse and of diffusion is 0"):
        phase(1, "mse:weight=0+diffusion:weight=0")
    rising = Objective([(build_objective("mse").terms[0], Schedule(0.0, 1.0))])
    train(
        tiny,
        phases=[Phase(3, rising)],
        train_batches=phantoms.train_batches,
        folder=tmp_path,
        options=quick(),
        fabric=fabric,
    )
    assert losses(tmp_path)[0] == 0 < losses(tmp_path)[1]


def test_frozen_weights_stay_and_others_move(tmp_path, fabric, phantoms):
    class Normed(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.append(nn.BatchNorm2d(6))

    torch.manual_seed(2)
    model = Normed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(
        model,
        phases=[phase(3, freeze=("^encoder",))],
        train_batches=phantoms.train_batches,
        folder=tmp_path,
        options=quick(),
        fabric=fabric,
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("encoder"), name


def test_alternating_parts_take_their_turns(tmp_path, fabric, phantoms):
    torch.manual_seed(2)
    model = TinyNet()
    nn.init.normal_(model.head.weight, std=0.1)
    moved: list[tuple[bool, bool]] = []
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_step(progress) -> None:
        now = model.state_dict()
        moved.append(
            tuple(any(not torch.equal(now[n], last[n]) for n in now if n.startswith(p)) for p in ("encoder", "head"))
        )
        last.update({name: tensor.clone() for name, tensor in now.items()})

    parts = (
        Part("^encoder", Optimiser(lr=1e-2), turns=2),
        Part("^head", Optimiser("sgd", 1e-1), turns=1, objective=build_objective("mae")),
    )
    train(
        model,
        phases=[phase(6, parts=parts)],
        train_batches=phantoms.train_batches,
        folder=tmp_path,
        options=quick(),
        on_step=on_step,
        fabric=fabric,
    )
    assert moved == [(True, False), (True, False), (False, True)] * 2
    assert [bool(row["mae"]) for row in rows(tmp_path / "log.csv")] == [False, False, True] * 2


def test_a_pattern_that_matches_nothing_is_refused(tmp_path, fabric, tiny, phantoms):
    for more in ({"freeze": ("encodr",)}, {"parts": (Part("encodr"),)}):
        with pytest.raises(OptionError, match="no weight's name has 'encodr'; did you mean 'encoder'"):
            train(
                tiny,
                phases=[phase(1, **more)],
                train_batches=phantoms.train_batches,
                folder=tmp_path,
                options=quick(),
                fabric=fabric,
            )


def test_the_average_follows_its_formula(tmp_path, fabric, phantoms):
    model, decay, expected = TinyNet(), 0.8, None

    def on_step(progress) -> None:
        nonlocal expected
        now = model.encoder[0].weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now

    saved = []
    train(
        model,
        phases=[phase(5)],
        train_batches=phantoms.train_batches,
        folder=tmp_path,
        options=quick(ema=decay),
        on_step=on_step,
        on_best=lambda best, metrics, step: saved.append(best.encoder[0].weight.detach().clone()),
        fabric=fabric,
    )
    torch.testing.assert_close(saved[0], expected)
    assert not torch.equal(saved[0], model.encoder[0].weight)


def test_accumulated_batches_are_one_larger_batch(tmp_path, fabric, phantoms):
    pair = phantoms.pair(3)
    halves = [{name: value[item : item + 1] for name, value in pair.items()} for item in range(2)]
    models = []
    for name, batches, accumulate in (("whole", [pair], 1), ("halves", halves, 2)):
        torch.manual_seed(4)
        model = TinyNet(dropout=0.0)
        nn.init.normal_(model.head.weight, std=0.1)
        models.append(model)
        train(
            model,
            phases=[phase(1, optimiser=Optimiser("sgd", 1e-1))],
            train_batches=lambda start, batches=batches: iter(batches),
            folder=tmp_path / name,
            options=quick(accumulate=accumulate),
            fabric=fabric,
        )
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two)


class Robust(TinyNet):
    """Its field stays finite whatever the images are."""

    def forward(self, *, fixed, moving, condition=None):
        return super().forward(fixed=fixed.nan_to_num(), moving=moving.nan_to_num())


@pytest.mark.parametrize(
    # What a field of no number reads lies outside the image, where the value is the background's.
    ("kind", "said"),
    [(Robust, "'mse' is no finite number"), (TinyNet, "'diffusion' is no finite number")],
)
def test_a_loss_of_no_number_stops_with_term_pair_and_step(tmp_path, fabric, phantoms, kind, said):
    def batches(start: int):
        for number in range(start, 99):
            batch = phantoms.pair(number)
            if number == 4:
                batch["moving"][1, 0, 7, 7] = float("nan")
            yield batch

    with pytest.raises(TrainingError, match=rf"at step 4: {said} for pair4-1;.*step-00000004"):
        train(
            kind(),
            phases=[phase(9, "mse+diffusion")],
            train_batches=batches,
            folder=tmp_path,
            options=quick(checkpoint_every=2),
            fabric=fabric,
        )
    saved = read_checkpoint(tmp_path / "checkpoints")
    assert saved["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in saved["model"].values())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, fabric, tiny, phantoms, monkeypatch):
    write = Path.write_bytes
    count = 0

    def full(self, content):
        nonlocal count
        if self.name == "state.safetensors":
            count += 1
            if count == 2:
                write(self, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=r"disk is full.*step-00000002 is whole.*--resume"):
        train(
            tiny,
            phases=[phase(9)],
            train_batches=phantoms.train_batches,
            folder=tmp_path,
            options=quick(checkpoint_every=2),
            fabric=fabric,
        )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert read_checkpoint(tmp_path / "checkpoints")["step"] == 2


def test_a_disk_full_before_the_first_checkpoint_promises_no_other(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="disk is full") as error:
        write_checkpoint(tmp_path / "checkpoints", 1, {"step": 1})
    assert "--resume" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            ResourceError("a data worker ended unexpectedly"),
            "a data worker ended unexpectedly; the last good checkpoint is",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory to prepare a batch"),
    ],
)
def test_where_data_fail_the_last_checkpoint_is_named(tmp_path, fabric, tiny, phantoms, raised, said):
    def batches(start):
        yield from (phantoms.pair(number) for number in range(3))
        raise raised

    with pytest.raises(ResourceError, match=rf"^{said}.*step-00000002, --resume goes on from it$"):
        train(
            tiny,
            phases=[phase(9)],
            train_batches=batches,
            folder=tmp_path,
            options=quick(checkpoint_every=2),
            fabric=fabric,
        )


def test_two_checkpoints_are_kept_and_a_damaged_one_passed_over(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, {"step": step, "model": {"w": torch.full((2,), float(step))}})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    damaged = tmp_path / "step-00000003" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(VerimorphWarning, match="step-00000003: cannot be read"):
        assert read_checkpoint(tmp_path)["step"] == 2
    assert not list(tmp_path.rglob("*.p*t*")), "no pickles"


_DYING = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.train.phantom import Phantoms, TinyNet
from verimorph.errors import ResourceError
from verimorph.objective import build_objective
from verimorph.train.loop import train
from verimorph.train.options import Options, make_fabric
from verimorph.train.phases import Phase


class Dying(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from (Phantoms().pair(number) for number in range(3))
        os.kill(os.getpid(), signal.SIGKILL)


loader = torch.utils.data.DataLoader(Dying(), batch_size=None, num_workers=1)
try:
    train(
        TinyNet(), phases=[Phase(9, build_objective("mse"))], train_batches=lambda start: loader,
        folder=Path(sys.argv[1]), fabric=make_fabric(accelerator="cpu"),
        options=Options(checkpoint_every=1, tensorboard=False),
    )
except ResourceError as error:
    print(error)
"""


def test_a_killed_data_worker_is_one_line(tmp_path):
    # In a process of its own: torch tells of the death by a signal, which may come anywhere, even in pytest.
    script = tmp_path / "run.py"
    script.write_text(_DYING.format(root=str(ROOT)), encoding="utf-8")
    words = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    (line,) = done.stdout.splitlines()
    assert re.search(r"a data worker ended unexpectedly at step \d, .*use fewer workers", line), done.stderr
    assert all(path.name.startswith("step-") for path in (tmp_path / "run" / "checkpoints").glob("*"))


def test_patience_ends_the_run(tmp_path, fabric, tiny, phantoms):
    values = iter([0.5, 0.6, 0.55, 0.58, 0.9])
    result = train(
        tiny,
        phases=[phase(50)],
        train_batches=phantoms.train_batches,
        folder=tmp_path,
        options=quick(validate_every=2, patience=2),
        validate=lambda model: Validation({"dice": next(values)}),
        fabric=fabric,
    )
    assert (result.stopped_early, result.steps, result.best_step, result.metrics) == (True, 8, 4, {"dice": 0.6})


def test_a_run_that_patience_ended_stays_ended(tmp_path, fabric, tiny, phantoms):
    values = iter([0.5, 0.4, 0.3, 0.9])

    def run(resume: bool):
        return train(
            tiny,
            phases=[phase(50)],
            train_batches=phantoms.train_batches,
            folder=tmp_path,
            options=quick(validate_every=2, patience=2),
            validate=lambda model: Validation({"dice": next(values)}),
            fabric=fabric,
            resume=resume,
        )

    ended, again = run(False), run(True)
    assert (ended.steps, ended.stopped_early) == (6, True)
    assert (again.steps, again.stopped_early, again.best_step) == (6, True, 2)


def test_a_limit_of_time_ends_the_run_with_its_schedule_at_the_end(tmp_path, fabric, tiny, phantoms):
    pair = phantoms.pair(0)

    def slowly(start):
        while True:
            time.sleep(0.05)
            yield pair

    kept = []
    slope = Part(optimiser=Optimiser(lr=1e-2, schedule="poly", power=1.0))
    result = train(
        tiny,
        phases=[phase(10_000, parts=(slope,))],
        train_batches=slowly,
        folder=tmp_path,
        fabric=fabric,
        options=quick(minutes=0.02),
        on_best=lambda model, metrics, step: kept.append(step),
    )
    assert 1 < result.steps < 100
    assert kept == [result.steps]
    assert checkpoints(tmp_path / "checkpoints")
    rates = [float(row["lr"]) for row in rows(tmp_path / "log.csv")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-3
    assert result.out_of_time

    def again(minutes):
        return train(
            tiny,
            phases=[phase(10_000, parts=(slope,))],
            train_batches=slowly,
            folder=tmp_path,
            fabric=fabric,
            options=quick(minutes=minutes),
            resume=True,
        )

    ended = again(0.02)
    assert (ended.trained, ended.steps, ended.out_of_time) == (0, result.steps, True)
    assert len(rows(tmp_path / "log.csv")) == len(rates)
    longer = again(0.03)
    assert 0 < longer.trained < 20
    rates = [float(row["lr"]) for row in rows(tmp_path / "log.csv")][len(rates) :]
    assert rates[0] < 5e-3, "two thirds of the way, not at its beginning"
    with pytest.raises(OptionError, match="one phase"):
        train(
            tiny,
            phases=[phase(1), phase(1)],
            train_batches=slowly,
            folder=tmp_path / "two",
            fabric=fabric,
            options=quick(minutes=1),
        )


_TWO = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.train.phantom import Phantoms, TinyNet
from verimorph.objective import build_objective
from verimorph.train.loop import train
from verimorph.train.options import Options, make_fabric
from verimorph.train.phases import Optimiser, Part, Phase

torch.manual_seed(5)
result = train(
    TinyNet(), phases=[Phase(4, build_objective("mse"), parts=(Part(optimiser=Optimiser(lr=1e-2)),))],
    train_batches=Phantoms().train_batches, folder=Path(sys.argv[1]),
    fabric=make_fabric(accelerator="cpu", devices=2),
    options=Options(log_every=1, checkpoint_every=2, minutes=10, tensorboard=False),
    on_step=lambda progress: print(f"step {{progress.step}}", flush=True),
)
print(f"rank {{result.rank}}", flush=True)
"""


def test_processes_that_share_a_limit_of_time_stay_together(tmp_path):
    """Each asks the others as often as they ask it: else they wait for one another without end."""
    script = tmp_path / "run.py"
    script.write_text(_TWO.format(root=str(ROOT)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Its own group: a process that waits for the other ends with it.
    words = [sys.executable, str(script), str(tmp_path / "out")]
    run = subprocess.Popen(words, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        told, _ = run.communicate(timeout=240)
        assert run.returncode == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert [row["step"] for row in rows(tmp_path / "out" / "log.csv")] == ["1", "2", "3", "4"]
    said = told.splitlines()
    assert [line for line in said if line.startswith("step")] == ["step 1", "step 2", "step 3", "step 4"]
    assert sorted(line for line in said if line.startswith("rank")) == ["rank 0", "rank 1"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64, np.int16, np.float32, np.float64, bool])
def test_arrays_come_back_from_a_checkpoint_as_they_were(tmp_path, dtype):
    array = (np.array([0.0, 0.5, 1.7, 200.25]) if np.dtype(dtype).kind == "f" else np.array([0, 1, 2, 250])).astype(
        dtype
    )
    if dtype is np.uint64:
        array[-1] = 2**64 - 1
    write_checkpoint(tmp_path, 1, {"array": array})
    found = read_checkpoint(tmp_path)["array"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_training_starts_from_a_trained_model(tmp_path, phantoms):
    torch.manual_seed(1)
    trained, other = TinyNet(), TinyNet()
    save_model(tmp_path / "run" / "model", trained, Card(method="tiny", training_data=TrainingData(name="none")))
    assert start_weights(other, str(tmp_path / "run")) == 4
    assert torch.equal(other.encoder[0].weight, trained.encoder[0].weight)
    wider = TinyNet(width=6)
    wider.head = nn.Conv2d(6, 3, 3)
    with pytest.raises(InputError, match=r"it has 'head.weight' of shape.*strict: false"):
        start_weights(wider, str(tmp_path / "run"))
    assert start_weights(wider, str(tmp_path / "run"), strict=False) == 2
    with pytest.raises(InputError, match="none of its weights fits"):
        start_weights(TinySegmenter(), str(tmp_path / "run"), strict=False)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly"])
def test_step_lengths_are_those_of_torch(schedule):
    ours = Optimiser(lr=0.1, schedule=schedule, power=0.9)
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    theirs = {
        "constant": torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0),
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10),
        "poly": torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=10, power=0.9),
    }[schedule]
    optimiser.param_groups[0]["lr"] = 0.1
    theirs.last_epoch = 0
    for step in range(10):
        assert ours.at(step, 10) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6)
        optimiser.step()
        theirs.step()


def test_bfloat16_trains(tmp_path, phantoms):
    pair = phantoms.pair(0)
    train(
        TinyNet(dropout=0.0),
        phases=[phase(30)],
        train_batches=lambda start: iter(lambda: pair, None),
        folder=tmp_path,
        options=quick(channels_last=True),
        fabric=make_fabric(accelerator="cpu", precision="bf16-mixed"),
    )
    values = losses(tmp_path)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize(("asked", "innermost"), [(None, True), (True, True), (False, False)])
def test_the_cpu_keeps_channels_innermost_unless_told(tmp_path, phantoms, asked, innermost):
    pair = phantoms.pair(0)
    model = TinyNet(dropout=0.0)
    train(
        model,
        phases=[phase(2)],
        train_batches=lambda start: iter(lambda: pair, None),
        folder=tmp_path,
        options=quick(channels_last=asked),
        fabric=make_fabric(accelerator="cpu"),
    )
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    kinds = {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights}
    assert kinds == {innermost}


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(OptionError, match="did you mean 'bf16-mixed'"):
        make_fabric(accelerator="cpu", precision="bf16-mixd")
    with pytest.raises(OptionError, match="16-mixed needs a GPU; on the CPU give bf16-mixed or 32-true"):
        make_fabric(accelerator="cpu", precision="16-mixed")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="device 'cuda' is not available here; 'verimorph doctor'"):
            make_fabric(accelerator="cuda")
    for settings in ({"devices": 0}, {"nodes": 0}):
        with pytest.raises(OptionError, match="is 0; give 1 or more"):
            make_fabric(accelerator="cpu", **settings)
