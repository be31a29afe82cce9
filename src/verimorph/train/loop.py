"""The training loop. It takes a module, phases and iterables of batches; it knows no recipe and no data set.

Lightning Fabric brings the devices, the precision and the processes; what is written here is what makes a run go on
after it was killed as if nothing had happened: everything a step depends on (weights, their average, optimisers, random
generators, position in the data) is in a checkpoint, and step lengths follow from the step alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError, ResourceError, VerimorphError, nearest
from verimorph.memory import is_out_of_memory
from verimorph.objective import Objective
from verimorph.train.log import Board, Table
from verimorph.train.options import Fabric, Options, Progress, Result, make_fabric, seed_everything
from verimorph.train.passes import Batch, checked_batch, objective_tensors
from verimorph.train.phases import Phase, assign, rest_frozen
from verimorph.train.state import checkpoints, random_state, read_checkpoint, set_random_state, write_checkpoint
from verimorph.train.teacher import heard
from verimorph.train.validate import Validation
from verimorph.train.weights import channels_innermost, innermost, start_weights


class TrainingError(VerimorphError):
    """Training that cannot go on: a loss that is no number."""


def train(
    model: nn.Module,
    *,
    phases: Sequence[Phase],
    train_batches: Callable[[int], Iterable[Batch]],
    folder: Path,
    options: Options = Options(),
    validate: Callable[[nn.Module], Validation] | None = None,
    on_best: Callable[[nn.Module, dict[str, float], int], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_begin: Callable[[], None] | None = None,
    fabric: Fabric | None = None,
    resume: bool = False,
    identity: Mapping[str, str] | None = None,
) -> Result:
    """Train a model through phases.

    Parameters
    ----------
    model
        Registration or image model; it is trained in place, and at the end holds the last weights (not the average).
    phases
        One after the other.
    train_batches
        ``train_batches(n)`` yields batch n, n + 1, ... of this process without end; the same batch for the same number.
    folder
        Takes ``log.csv``, ``validation.csv``, ``checkpoints/`` and ``tensorboard/``.
    validate
        Measures the model; called with gradients off, the random generators are put back afterwards.
    on_best
        Saves the model: called with it (or its average), its metrics and the step, whenever the validation is the best
        so far; without ``validate`` once at the end.
    on_step
        Told of every step, in the first process of several.
    on_begin
        Told that the run begins: nothing was refused, nothing is written yet.
    resume
        Go on from the newest checkpoint of ``folder``; start where there is none.
    identity
        What else a checkpoint must have been made with for the run to go on from it: a name and a hash of each.

    Raises
    ------
    TrainingError
        When the loss is no number: says which term, which pair and which step.
    InputError
        When a term needs labels that a pair has not, or the checkpoint is of another run.
    ResourceError
        When the disk is full, memory is short, or a worker of the data was killed.
    """
    fabric = fabric if fabric is not None else make_fabric(accelerator="cpu")
    run = _Run(model, phases, train_batches, Path(folder), options, validate, on_best, on_step, fabric, identity or {})
    return run.go(resume, on_begin)


class _Run:
    """State of one run; `train` is its only user."""

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        train_batches: Callable[[int], Iterable[Batch]],
        folder: Path,
        options: Options,
        validate: Callable[[nn.Module], Validation] | None,
        on_best: Callable[[nn.Module, dict[str, float], int], None] | None,
        on_step: Callable[[Progress], None] | None,
        fabric: Fabric,
        identity: Mapping[str, str],
    ) -> None:
        if not phases:
            raise OptionError("a training needs at least one phase")
        self.model, self.phases, self.train_batches = model, tuple(phases), train_batches
        self.folder, self.options, self.fabric, self.identity = folder, options, fabric, dict(identity)
        self.validate, self.on_best, self.on_step = validate, on_best, on_step
        self.steps = sum(phase.steps for phase in phases)
        self.number = self.begin = 0  # the phase at hand, and the step it began at
        self.step = self.drawn = self.unimproved = 0
        self.peak: float | None = None  # best of the phase, which patience waits for
        self.best: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.best_step: int | None = None
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.average: torch.optim.swa_utils.AveragedModel | None = None
        self.optimisers: list[torch.optim.Optimizer] = []
        self.innermost = fabric.device.type == "cpu" if options.channels_last is None else options.channels_last
        self.busy = self.started = self.used = 0.0
        self.first = 0
        # Of all phases: one that several share goes on with what its terms have learned.
        self.objectives = list({id(one): one for phase in self.phases for one in phase.objectives}.values())

    # -- the run ------------------------------------------------------------------------------------------------------

    def go(self, resume: bool, on_begin: Callable[[], None] | None) -> Result:
        started = self.started = time.monotonic()
        if self.options.minutes is not None and len(self.phases) > 1:
            raise OptionError(f"minutes limits a run of one phase, this one has {len(self.phases)}; give steps")
        self._seed()
        if self.innermost:
            channels_innermost(self.model)
        saved = read_checkpoint(self.folder / "checkpoints") if resume else None
        if saved is not None:
            self._check_outline(saved)
            self._restore(saved)
        self.first = self.step
        if on_begin is not None and self.fabric.is_global_zero:
            on_begin()
        self._open_logs(resumed=saved is not None)
        try:
            while True:
                phase = self.phases[self.number]
                self.steps = self.begin + sum(later.steps for later in self.phases[self.number :])
                if saved is None or not self._is_over(phase):
                    self._phase(phase, saved)
                    saved = None
                if self.number == len(self.phases) - 1:
                    break
                self.number, self.begin, self.peak, self.unimproved = self.number + 1, self.step, None, 0
        except RuntimeError as error:  # raised by a signal, wherever the loop happens to be
            if "DataLoader worker" not in str(error):
                raise
            raise ResourceError(self._worker_ended()) from error
        finally:
            self.board.close()
        done = max(self.step - self.first, 0)
        stopped = self._patience_is_out()
        return Result(
            steps=self.step,
            trained=done,
            metrics=self.best_metrics,
            best_step=self.best_step,
            seconds=time.monotonic() - started,
            steps_per_second=done / self.busy if self.busy > 0 else 0.0,
            stopped_early=stopped,
            out_of_time=self.step < self.steps and not stopped,
            rank=self.fabric.global_rank,
        )

    def _is_over(self, phase: Phase) -> bool:
        return self.step >= self.begin + phase.steps or self._patience_is_out() or self._time_is_up()

    def _patience_is_out(self) -> bool:
        return self.options.patience is not None and self.unimproved >= self.options.patience

    def _phase(self, phase: Phase, saved: Mapping[str, Any] | None) -> None:
        """Run the phase at hand from where it is to its end: its steps, patience or time.

        ``saved`` is the checkpoint the run goes on from, of within the phase or of the end of the one before.
        """
        device = self.fabric.device
        for objective in phase.objectives:
            objective.to(device)
        fresh = self.step == self.begin
        if phase.start_from is not None and fresh:
            start_weights(self.model, phase.start_from, strict=phase.strict)
            self.average = None
        self.model.to(device)
        named = [*self.model.named_parameters(), *_objective_parameters(phase.objectives)]
        weights = assign(named, phase)
        self.optimisers = [part.optimiser.build(own) for part, own in zip(phase.parts, weights, strict=True)]
        if self.options.ema is not None and self.average is None:
            self.average = self._new_average(self.options.ema)
        if self.average is not None:
            self.average.to(device)
        if saved is not None and not fresh:
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
        wrapped = self.fabric.setup_module(self.model)
        prepared = self.fabric.setup_optimizers(*self.optimisers)
        self.stepping = list(prepared) if isinstance(prepared, tuple) else [prepared]
        self._training_mode()
        if saved is not None and self.fabric.global_rank < len(saved["random"]):
            set_random_state(saved["random"][self.fabric.global_rank])
        batches = iter(self.train_batches(self.drawn))
        checkpointed = self.step
        while self.step < self.begin + phase.steps:
            clock = time.monotonic()
            inside = self.step - self.begin
            loss = self._step(phase, inside, wrapped, batches)
            self.step += 1
            self.busy += time.monotonic() - clock
            last = self.step == self.steps or self._time_is_up()
            self._tell(phase, inside, loss, last)
            every = self.options.validate_every
            if last or (every is not None and self.step % every == 0):
                enough = self._validated(last)
            else:
                enough = False
            if last or enough or self.step % self.options.checkpoint_every == 0:
                self._checkpoint()
                checkpointed = self.step
            if enough or last:
                return
        if checkpointed != self.step:
            self._checkpoint()  # the next phase may fail at its start

    def _new_average(self, share: float) -> torch.optim.swa_utils.AveragedModel:
        multi = torch.optim.swa_utils.get_ema_multi_avg_fn(share)
        return torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=multi)

    def _seconds(self) -> float:
        """Time of the run so far, that before it was stopped included."""
        return self.used + time.monotonic() - self.started

    def _time_is_up(self) -> bool:
        limit = self.options.minutes
        return limit is not None and bool(self.fabric.broadcast(self._seconds() >= 60 * limit))

    def _share(self, phase: Phase, inside: int) -> float:
        """How much of a phase is done, 0 to 1: by steps, or by the time where it is limited and further on."""
        share = inside / phase.steps
        if self.options.minutes is not None:
            passed = self._seconds() / (60 * self.options.minutes)
            share = min(max(share, float(self.fabric.broadcast(passed))), 1.0)
        return share

    def _step(self, phase: Phase, inside: int, wrapped: nn.Module, batches: Iterator[Batch]) -> float:
        """One step of every part whose turn it is; the total of the last objective."""
        turn = phase.turn(inside)
        groups: dict[int, tuple[Objective, list[int]]] = {}
        for number in turn:
            objective = phase.parts[number].objective or phase.objective
            groups.setdefault(id(objective), (objective, []))[1].append(number)
        loss = math.nan
        for objective, numbers in groups.values():
            for optimiser in self.stepping:
                optimiser.zero_grad(set_to_none=True)
            loss = 0.0
            for micro in range(self.options.accumulate):
                batch = self._next(batches, objective)
                waiting = micro < self.options.accumulate - 1
                with self.fabric.no_backward_sync(wrapped, enabled=waiting):  # type: ignore[arg-type]
                    loss += self._lower(wrapped, batch, objective, phase, inside) / self.options.accumulate
            for number in numbers:
                optimiser = self.stepping[number]
                for group in optimiser.param_groups:
                    group["lr"] = phase.parts[number].optimiser.at(inside, phase.steps, self._share(phase, inside))
                if self.options.clip is not None:
                    self.fabric.clip_gradients(wrapped, optimiser, max_norm=self.options.clip, error_if_nonfinite=False)
                optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def _lower(self, wrapped: nn.Module, batch: Batch, objective: Objective, phase: Phase, inside: int) -> float:
        """Forward and backward pass of one batch; refuses a loss that is no number before it reaches the weights."""
        try:
            tensors = objective_tensors(wrapped, batch, objective, symmetric=phase.symmetric)
            if self.options.teacher is not None and self.average is not None and heard(objective):
                tensors |= self.options.teacher.tensors(self.average.module, batch, symmetric=phase.symmetric)
            evaluation = objective(tensors, progress=self._share(phase, inside), condition=batch.get("condition"))
            total = float(evaluation.total.detach())
            finite = math.isfinite(total)
            if self.fabric.world_size > 1:
                flag = torch.tensor(float(not finite), device=self.fabric.device)
                bad: Any = self.fabric.all_reduce(flag, reduce_op="sum")
                if float(bad) > 0 and finite:
                    raise TrainingError(
                        f"training stopped at step {self.step}: another process met a loss of no number"
                    )
            if not finite:
                raise TrainingError(self._no_number(objective, tensors, evaluation.values, batch))
            if evaluation.total.requires_grad:
                self.fabric.backward(evaluation.total / self.options.accumulate)
            elif evaluation.values:  # else a schedule has all weights at 0 just now
                raise OptionError(
                    f"phase '{phase.name}': {' and '.join(evaluation.values)} hang on no weight that moves; "
                    "give another objective, or freeze less"
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = tuple(batch["image" if "image" in batch else "fixed"].shape)
            raise ResourceError(
                f"not enough memory on {self.fabric.device} for a batch of {size}; use a smaller batch with more "
                "batches a step (accumulate), or --precision bf16-mixed"
            ) from error
        for name, value in {"total": evaluation.total.detach(), **evaluation.values}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1
        return total

    # -- data ---------------------------------------------------------------------------------------------------------

    def _next(self, batches: Iterator[Batch], objective: Objective) -> Batch:
        try:
            batch = next(batches)
        except StopIteration:
            raise InputError(f"the training data ended after {self.drawn} batches; it must go on") from None
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if getattr(error, "filename", None) is not None:  # a file of the data, not a worker's socket
                raise
            raise ResourceError(self._worker_ended()) from error
        except ResourceError as error:
            raise ResourceError(f"{error}{self._go_on()}") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"not enough memory to prepare a batch of images; use a smaller shape or batch{self._go_on()}"
            ) from error
        self.drawn += 1
        return self._on_device(checked_batch(batch, objective))

    def _worker_ended(self) -> str:
        return (
            f"a data worker ended unexpectedly at step {self.step}, most likely for want of memory; "
            f"use fewer workers{self._go_on()}"
        )

    def _on_device(self, batch: Batch) -> dict[str, Any]:
        moved = {}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                value = value.to(self.fabric.device, non_blocking=True)
                if self.innermost and value.is_floating_point() and name in ("fixed", "moving", "image"):
                    value = innermost(value)
            moved[name] = value
        return moved

    # -- looking at it ------------------------------------------------------------------------------------------------

    def _tell(self, phase: Phase, inside: int, loss: float, last: bool) -> None:
        speed = (self.step - self.first) / self.busy if self.busy > 0 else 0.0
        if self.on_step is not None and self.fabric.is_global_zero:
            self.on_step(Progress(phase.name, self.step, self.steps, loss, speed, self.best))
        if self.step % self.options.log_every and not last:
            return
        means = {name: float(total) / max(self.count, 1) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        share = self._share(phase, inside)  # all processes agree on it, so all must ask
        if not self.fabric.is_global_zero:
            return
        lr = phase.parts[phase.turn(inside)[0]].optimiser.at(inside, phase.steps, share)
        self.log.add({"step": self.step, "phase": phase.name, "lr": lr, **means})
        self.board.scalars("train", {**means, "lr": lr, "steps_per_second": speed}, self.step)

    def _validated(self, last: bool) -> bool:
        """Measure the model, keep the best; True when patience is at its end."""
        model: nn.Module = self.average.module if self.average is not None else self.model
        if self.validate is None:
            if last and self.on_best is not None and self.fabric.is_global_zero:
                self.on_best(model, {}, self.step)
            return False
        before = random_state()
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.fabric.autocast():
            found = self.validate(model)
        model.train(was_training)
        self._training_mode()
        set_random_state(before)
        metrics = self.fabric.broadcast(found.metrics) if self.fabric.world_size > 1 else found.metrics
        monitor = self.options.monitor or next((name for name in ("dice", "loss") if name in metrics), None)
        if monitor is not None and monitor not in metrics:
            raise OptionError(f"the validation has no measure '{monitor}'{nearest(monitor, metrics)}")
        if self.fabric.is_global_zero:
            self.validation.add({"step": self.step, **metrics})
            self.board.scalars("validation", metrics, self.step)
            self.board.pictures(found.pictures, self.step)
        value = float(self.step) if monitor is None else metrics[monitor]
        highest = self.options.highest
        if highest is None:
            highest = monitor is None or monitor.startswith("dice")
        if self._is_better(value, self.peak, highest):
            self.peak, self.unimproved = value, 0
        else:
            self.unimproved += 1
        # A later phase may begin with a worse model: patience waits for the best of the phase, the best of all is kept.
        if self._is_better(value, self.best, highest) or self.best_step is None:
            self.best = value if math.isfinite(value) else None
            self.best_metrics, self.best_step = dict(metrics), self.step
            if self.on_best is not None and self.fabric.is_global_zero:
                self._all_finite(model)
                self.on_best(model, dict(metrics), self.step)
        return self._patience_is_out()

    @staticmethod
    def _is_better(value: float, best: float | None, highest: bool) -> bool:
        return math.isfinite(value) and (best is None or (value > best if highest else value < best))

    def _no_number(
        self, objective: Objective, tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], batch: Batch
    ) -> str:
        """Which term is no number, and for which pair."""
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
        names = list(batch.get("names") or [])
        found: list[str] = []
        for name, term in zip(objective.names, objective.terms, strict=True):
            if name in bad and names:
                with torch.no_grad():
                    each = term(tensors, reduction="none").reshape(-1)
                found += [names[int(item) % len(names)] for item in (~torch.isfinite(each)).nonzero().reshape(-1)]
        pairs = list(dict.fromkeys(found)) or names
        terms = " and ".join(f"'{name}'" for name in bad) or "a weight of a term"
        verb = "are" if len(bad) > 1 else "is"
        about = f" for {', '.join(pairs[:4])}" + (" and others" if len(pairs) > 4 else "") if pairs else ""
        return (
            f"training stopped at step {self.step}: {terms} {verb} no finite number{about}; look at these images, or "
            f"take a smaller lr or clip the gradients{self._go_on()}"
        )

    def _go_on(self) -> str:
        found = checkpoints(self.folder / "checkpoints")
        return f"; the last good checkpoint is {found[-1]}, --resume goes on from it" if found else ""

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _seed(self) -> None:
        seed_everything((self.options.seed + self.fabric.global_rank) % 2**32, verbose=False)

    def _training_mode(self) -> None:
        self.model.train()
        rest_frozen(self.model)
        for objective in self.objectives:
            objective.train()

    def _open_logs(self, *, resumed: bool) -> None:
        titles = [name for phase in self.phases for name in phase.objective.names]
        titles += [
            name for phase in self.phases for part in phase.parts if part.objective for name in part.objective.names
        ]
        after = self.step if resumed else None
        self.board = Board(
            self.folder / "tensorboard",
            purge=after,
            enabled=self.options.tensorboard and self.fabric.is_global_zero,
        )
        if self.fabric.is_global_zero:
            columns = ["step", "phase", "lr", "total", *dict.fromkeys(titles)]
            self.log = Table(self.folder / "log.csv", columns, after=after)
            self.validation = Table(self.folder / "validation.csv", ["step"], after=after)

    def _outline(self) -> list[Any]:
        shapes = sum(weight.numel() for weight in self.model.parameters())
        return [shapes, [[phase.name, len(phase.parts), list(phase.objective.names)] for phase in self.phases]]

    def _settled(self) -> dict[str, Any]:
        """Further settings that a run keeps from its first step to its last, by what a message calls them.

        Step lengths, the norm that gradients are clipped to and the steps of the last phase may change on the way.
        """
        told: dict[str, Any] = {name: getattr(self.options, name) for name in ("ema", "monitor", "highest")}
        told["teacher"] = None if self.options.teacher is None else asdict(self.options.teacher)
        for number, phase in enumerate(self.phases):
            front = f"phases.{number}." if len(self.phases) > 1 else ""
            if number < len(self.phases) - 1:
                told[f"{front}steps"] = phase.steps
            told[f"{front}freeze"], told[f"{front}symmetric"] = list(phase.freeze), phase.symmetric
            for place, part in enumerate(phase.parts):
                own = f"{front}parts.{place}." if len(phase.parts) > 1 else front
                told[f"{own}match"], told[f"{own}turns"] = part.match, part.turns
                told |= {f"{own}optimiser.{name}": value for name, value in part.optimiser.settled().items()}
        return json.loads(json.dumps(told))

    def _check_outline(self, saved: Mapping[str, Any]) -> None:
        number, begin = self._reached(saved)
        steps = begin + sum(phase.steps for phase in self.phases[number:])
        if saved["outline"] != self._outline():
            raise InputError(
                f"{self.folder}: its checkpoint is of another recipe (other weights, phases or terms); resume with the "
                "recipe it began with, or choose another folder"
            )
        if saved["step"] > steps:
            raise InputError(
                f"{self.folder}: its run is at step {saved['step']} already and the recipe ends at {steps}; ask for as "
                "many steps or more"
            )
        # Checkpoints of earlier versions do not say it.
        before = saved.get("identity") or self.identity
        other = [name for name, value in self.identity.items() if name in before and before[name] != value]
        now, then = self._settled(), saved.get("settled", {})
        changed = [name for name, value in now.items() if name in then and then[name] != value]
        # Settings of two optimisers are not compared: it is another one.
        renamed = [name.removesuffix("name") for name in changed if name.endswith("optimiser.name")]
        other += [name for name in changed if name.endswith(".name") or not name.startswith(tuple(renamed))]
        if other:
            raise InputError(
                f"{self.folder}: its run was begun with another {' and '.join(other)}; resume with what it began with "
                "(its recipe.yaml says it), or choose another folder"
            )

    def _reached(self, saved: Mapping[str, Any]) -> tuple[int, int]:
        """The phase that a checkpoint is of, and the step it began at."""
        if "phase" in saved:
            return saved["phase"], saved["begin"]
        begin = 0  # a checkpoint of an earlier version, when every phase but the last went to its end
        for number, phase in enumerate(self.phases[:-1]):
            if saved["step"] <= begin + phase.steps:
                return number, begin
            begin += phase.steps
        return len(self.phases) - 1, begin

    def _checkpoint(self) -> None:
        randoms = [random_state()]
        if self.fabric.world_size > 1:
            randoms = [None] * self.fabric.world_size  # type: ignore[list-item]
            torch.distributed.all_gather_object(randoms, random_state())
        if self.fabric.is_global_zero:
            self._all_finite(self.model)
            state = {
                "outline": self._outline(),
                "identity": self.identity,
                "settled": self._settled(),
                "phase": self.number,
                "begin": self.begin,
                "seconds": self._seconds(),
                "step": self.step,
                "drawn": self.drawn,
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "objectives": [objective.state_dict() for objective in self.objectives],
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "precision": self.fabric.strategy.precision.state_dict(),
                "random": randoms,
                "sums": dict(self.sums),
                "count": self.count,
                "best": self.best,
                "best_metrics": self.best_metrics,
                "best_step": self.best_step,
                "peak": self.peak,
                "unimproved": self.unimproved,
            }
            write_checkpoint(self.folder / "checkpoints", self.step, state, keep=self.options.keep)
        self.fabric.barrier()

    def _restore(self, saved: Mapping[str, Any]) -> None:
        """What belongs to the run; what belongs to a phase is put back where the phase goes on."""
        self.number, self.begin = self._reached(saved)
        self.used, self.peak = saved.get("seconds", 0.0), saved.get("peak", saved["best"])
        self.model.load_state_dict(saved["model"])
        if self.options.ema is not None and saved["average"] is not None:
            self.average = self._new_average(self.options.ema)
            self.average.load_state_dict(saved["average"])
        # Earlier versions kept those of one phase.
        if "phase" in saved or len(saved["objectives"]) == len(self.objectives):
            for objective, state in zip(self.objectives, saved["objectives"], strict=True):
                objective.load_state_dict(state)
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        for name in ("step", "drawn", "count", "best", "best_metrics", "best_step", "unimproved"):
            setattr(self, name, saved[name])
        self.sums = {name: value.to(self.fabric.device) for name, value in saved["sums"].items()}

    def _all_finite(self, model: nn.Module) -> None:
        """Refuse to save weights that are no numbers: a gradient may overflow though the loss did not."""
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrainingError(
                    f"training stopped at step {self.step}: weight '{name}' is no finite number; take a smaller lr or "
                    f"clip the gradients{self._go_on()}"
                )


def _objective_parameters(objectives: Iterable[Objective]) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights that terms own (critics, learned metrics), each once, under ``objective.``."""
    seen: set[int] = set()
    for objective in objectives:
        for name, weight in objective.named_parameters():
            if id(weight) not in seen:
                seen.add(id(weight))
                yield f"objective.{name}", weight
