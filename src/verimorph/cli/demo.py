"""``verimorph demo``: register a template brain to a known truth, or two images of the user's own, with defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, option
from verimorph.cli.progress import ProgressBar
from verimorph.cli.runtime import choose, set_threads
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.registration import Registration

app = application()


@app.command(
    epilog=examples(
        ("The template brain, nothing to prepare:", "verimorph demo"),
        ("Another random deformation:", "verimorph demo --seed 7"),
        ("Two images of your own:", "verimorph demo --fixed a.nii.gz --moving b.nii.gz"),
    )
)
def demo(
    fixed: Annotated[
        Path | None, option("-f", "--fixed", value="FILE", text="Your own fixed image (give --moving too).")
    ] = None,
    moving: Annotated[Path | None, option("-m", "--moving", value="FILE", text="Your own moving image.")] = None,
    output: Annotated[Path, option("-o", "--output", value="FOLDER", text="Where results go; made if missing.")] = Path(
        "demo_output"
    ),
    quality: Annotated[str, option("-q", "--quality", value="NAME", text="fast, balanced or best.")] = "balanced",
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.")
    ] = None,
    seed: Annotated[int, option("--seed", value="N", min=0, text="Which random deformation.")] = 0,
) -> None:
    """Register a template brain to a known truth and show the true error.

    The MNI152 brain is turned by 15 degrees, scaled by 10 %, bent by 6 mm on average, and given other contrast, uneven
    brightness and noise; then it is registered back with the defaults. Exit code 1 if the mean error in the brain
    exceeds 1 mm.
    """
    if (fixed is None) != (moving is None):
        missing = "--moving" if moving is None else "--fixed"
        raise OptionError(f"{missing} is missing; give both --fixed and --moving, or neither for the template brain")
    choose(quality, ("fast", "balanced", "best"), "--quality")
    used_threads = set_threads(threads)

    from verimorph.io.safe import require_writable

    require_writable(output)
    settings: dict[str, Any] = {"quality": quality, "threads": used_threads, "seed": 0}
    if fixed is not None and moving is not None:
        _finish(_align(fixed=fixed, moving=moving, **settings), output)
        return

    from rich.console import Console

    from verimorph.demo import LARGEST_MEAN_ERROR_MM, add_truth, make_pair, write_inputs

    console = Console(highlight=False)
    console.print("Making the pair: MNI152 template, rotated, scaled, bent, with other contrast, bias and noise")
    pair = make_pair(seed=seed)
    result = _align(fixed=pair.fixed, moving=pair.moving, **settings)
    found = add_truth(result, pair)
    write_inputs(pair, output / "input")
    _print_error(console, found)
    _finish(result, output)
    console.print(f"Try your own tools on {output / 'input'}: fixed, moving, brain mask and the true transform")
    if found["registered"]["mean"] > LARGEST_MEAN_ERROR_MM:
        console.print(
            f"[bold red]The mean error in the brain is {found['registered']['mean']:.2f} mm, "
            f"more than {LARGEST_MEAN_ERROR_MM:g} mm[/bold red]"
        )
        raise typer.Exit(1)


def _align(**arguments: Any) -> Registration:
    from verimorph.registration import register

    with ProgressBar() as progress:
        return register(**arguments, progress=progress)


def _finish(result: Registration, output: Path) -> None:
    from verimorph.cli.summary import print_summary

    result.save(output)
    print_summary(result, output)


def _print_error(console: Any, found: dict[str, Any]) -> None:
    """Print the table of true errors, before and after."""
    from rich.table import Table

    table = Table(
        title=f"True error, {found['unit']} ({found['where']})", title_justify="left", box=None, padding=(0, 2)
    )
    table.add_column("")
    for name in ("mean", "median", "95 %", "largest"):
        table.add_column(name, justify="right")
    rows = [("before", found["identity"]), ("after", found["registered"])]
    for name, row in rows:
        style = "bold" if name == "after" else None
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("mean", "median", "p95", "max")), style=style)
    console.print(table)
