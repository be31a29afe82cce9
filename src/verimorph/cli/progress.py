"""The progress bar of long commands: stage, level, iteration, value, time left. Silent when nobody is looking."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from verimorph.cli.runtime import error_console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from verimorph.solve.progress import Event


class ProgressBar:
    """Shows the events of a solver on standard error; call it with each event.

    Parameters
    ----------
    verbose
        Print one line an iteration instead of a bar, on terminals and elsewhere (a log file, say).
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0

    def __enter__(self) -> ProgressBar:
        console = error_console()
        if console.is_terminal and not self.verbose:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
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

    def __call__(self, event: Event) -> None:
        """Show ``event``. Cheap enough to call on every iteration."""
        if self.verbose:
            error_console().print(
                f"{event.stage:<12} level {event.level}  iteration {event.iteration:>4}/{event.iterations}"
                f"  value {event.value:.6g}"
            )
        elif self._progress is not None and self._task is not None:
            now = time.monotonic()
            if now - self._drawn < 0.05 and event.iteration < event.iterations:
                return
            self._drawn = now
            self._progress.update(
                self._task,
                completed=event.fraction,
                description=event.stage,
                detail=f"level {event.level}, iteration {event.iteration}/{event.iterations}, {event.value:.4g}",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class CountBar:
    """A bar over the items of a list, on a terminal; elsewhere nothing, or with ``lines`` a line for each item."""

    def __init__(self, *, lines: bool = False) -> None:
        self.lines = lines
        self._progress: Progress | None = None

    def __enter__(self) -> CountBar:
        console = error_console()
        if console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                expand=True,
            )
            self._task = self._progress.add_task("reading", total=None)
            self._progress.start()
        return self

    def __call__(self, name: str, number: int, count: int) -> None:
        """Say that item ``number`` of ``count`` (from 0) is begun."""
        if self._progress is not None:
            self._progress.update(self._task, completed=number, total=count, description=name)
        elif self.lines:
            error_console().print(f"{number + 1} of {count}: {name}", highlight=False)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
