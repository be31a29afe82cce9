"""Progress bars of long commands, on standard error: what is done, how much is left. Silent when nobody is looking."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from verimorph.cli.runtime import error_console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from verimorph.solve.progress import Event
    from verimorph.train.options import Progress as Training


class _Bar:
    """One bar while the ``with`` block runs; nothing where standard error is not a terminal.

    ``counted`` shows ``3/10`` instead of ``30 %``.
    """

    counted = False

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        console = error_console()
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            amount = "{task.completed:.0f}/{task.total:.0f}" if self.counted else "{task.percentage:>3.0f} %"
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn(amount),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                expand=True,
            )
            self._task = self._progress.add_task("reading", total=1.0, detail="")
            self._progress.start()
        return self

    def _show(self, **shown: Any) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, **shown)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


class ProgressBar(_Bar):
    """Stage, level, iteration and value of a solver; call it with each event.

    Parameters
    ----------
    verbose
        Print one line an iteration instead of a bar, on terminals and elsewhere (a log file, say).
    """

    def __init__(self, *, verbose: bool = False) -> None:
        super().__init__()
        self.verbose = verbose
        self._drawn = 0.0

    def __enter__(self) -> Self:
        return self if self.verbose else super().__enter__()

    def __call__(self, event: Event) -> None:
        """Show ``event``. Cheap enough to call on every iteration."""
        if self.verbose:
            error_console().print(
                f"{event.stage:<12} level {event.level}  iteration {event.iteration:>4}/{event.iterations}"
                f"  value {event.value:.6g}"
            )
            return
        now = time.monotonic()
        if now - self._drawn < 0.05 and event.iteration < event.iterations:
            return
        self._drawn = now
        self._show(
            completed=event.fraction,
            description=event.stage,
            detail=f"level {event.level}, iteration {event.iteration}/{event.iterations}, {event.value:.4g}",
        )


class CountBar(_Bar):
    """The items of a list; with ``lines`` a line for each of them where there is no terminal."""

    counted = True

    def __init__(self, *, lines: bool = False) -> None:
        super().__init__()
        self.lines = lines

    def __call__(self, name: str, number: int, count: int) -> None:
        """Say that item ``number`` of ``count`` (from 0) is begun."""
        self._show(completed=number, total=count, description=name)
        if self._progress is None and self.lines:
            error_console().print(f"{number + 1} of {count}: {name}", highlight=False)


class TrainingBar(_Bar):
    """Steps, loss and speed of a training."""

    counted = True

    def __call__(self, now: Training) -> None:
        """Show where the run is."""
        best = "" if now.best is None else f", best {now.best:.4g}"
        detail = f"loss {now.loss:.4g}{best}, {now.steps_per_second:.2f} steps/s"
        self._show(completed=now.step, total=now.steps, description=now.phase, detail=detail)
