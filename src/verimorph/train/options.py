"""How a run goes, where it stands, what came of it, and the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from verimorph.errors import MissingExtraError, OptionError, nearest
from verimorph.train.teacher import Teacher

try:
    from lightning_fabric import Fabric, seed_everything
    from lightning_fabric.strategies import DDPStrategy
except ImportError as missing:
    raise MissingExtraError("lightning-fabric", "train", "training") from missing

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Options:
    """How a run goes, whatever it trains.

    Attributes
    ----------
    seed
        Of every random number but those of the data.
    accumulate
        Batches whose gradients make one step.
    clip
        Largest norm of the gradient; None for no limit.
    ema
        Share of the old average in each step's average of the weights, e.g. 0.999: the average is what is validated and
        saved. None: the weights themselves.
    teacher
        How the average, run at random, teaches the weights; needs ``ema``. None: it does not.
    log_every, validate_every, checkpoint_every
        Steps; ``validate_every`` None: only at the end.
    keep
        Checkpoints on the disk.
    monitor, highest
        The measure of the validation that says which model is best, and whether its highest value is. None: ``dice``
        where there is one, else ``loss``, else the last model is; the highest only of Dice.
    patience
        Validations without a better value after which a phase ends, the last one and with it the run; None: never.
    minutes
        Time after which a run ends, whatever steps are left; what was trained before a resume counts. Schedules then
        follow the time where it is further on than the steps. How far such a run comes depends on the machine: it is
        not repeated bit for bit. One phase only.
    channels_last
        Keep weights and images with the channels innermost; ``None`` does so on the CPU, whose convolutions it makes up
        to a third faster.
    tensorboard
        Write its event files.
    """

    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    teacher: Teacher | None = None
    log_every: int = 10
    validate_every: int | None = None
    checkpoint_every: int = 500
    keep: int = 2
    monitor: str | None = None
    highest: bool | None = None
    patience: int | None = None
    minutes: float | None = None
    channels_last: bool | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed is {self.seed}; give a whole number from 0 to {2**32 - 1}")
        for name in ("accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise OptionError(f"ema is {self.ema}; give a share between 0 and 1, such as 0.999")
        if self.teacher is not None and self.ema is None:
            raise OptionError("a teacher is the average of the weights; give ema, such as 0.99")
        if self.minutes is not None and not self.minutes > 0:
            raise OptionError(f"minutes is {self.minutes}; give a time above 0, or leave it out")
        if self.patience is not None and self.validate_every is None:
            raise OptionError("patience counts validations, and the only one is at the end; give validate_every: N")


@dataclass(frozen=True)
class Progress:
    """Where a run is: what its progress bar shows."""

    phase: str
    step: int
    steps: int
    loss: float
    steps_per_second: float
    best: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes
    ----------
    steps
        Done in all, those before a resume included.
    trained
        Done by this process.
    metrics, best_step
        Of the best validation; empty and None without one.
    seconds, steps_per_second
        Of this process, validation and checkpoints left out of the latter.
    stopped_early, out_of_time
        Whether patience ended it, or its time.
    rank
        Of this process among those that trained together; the first, 0, is the one to tell of it.
    """

    steps: int
    trained: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    seconds: float = 0.0
    steps_per_second: float = 0.0
    stopped_early: bool = False
    out_of_time: bool = False
    rank: int = 0


def make_fabric(
    *, accelerator: str = "auto", devices: int | str = 1, nodes: int = 1, precision: str = "32-true"
) -> Fabric:
    """Lightning Fabric for one device, several, or several machines; launched.

    Raises
    ------
    OptionError
        For a precision that is unknown or that the device has not, or a device that is not there.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision '{precision}'{nearest(precision, PRECISIONS)}")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if precision == "16-mixed" and (accelerator == "cpu" or (accelerator == "auto" and not gpu)):
        # Fabric would take bfloat16 in its place.
        raise OptionError("precision 16-mixed needs a GPU; on the CPU give bf16-mixed or 32-true")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if accelerator == name and not there:
            raise OptionError(f"device '{name}' is not available here; 'verimorph doctor' lists what is")
    for name, count in (("devices", devices), ("nodes", nodes)):
        if isinstance(count, int) and count < 1:
            raise OptionError(f"{name} is {count}; give 1 or more")
    many = nodes > 1 or (isinstance(devices, int) and devices > 1) or devices in ("auto", "-1")
    strategy: Any = "auto"
    if many:
        # Phases freeze parts, and a model may have heads that an objective does not read.
        strategy = DDPStrategy(find_unused_parameters=True)
    try:
        settings: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "num_nodes": nodes}
        fabric = Fabric(**settings | {"precision": precision, "strategy": strategy})
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"cannot train on {devices} x {accelerator}: {reason}") from error
    fabric.launch()
    return fabric


__all__ = ["PRECISIONS", "Fabric", "Options", "Progress", "Result", "make_fabric", "seed_everything"]
