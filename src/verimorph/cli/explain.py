"""``verimorph explain``: a transform file, or how sure a result is, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.runtime import say
from verimorph.errors import OptionError

app = application()


@app.command(
    epilog=examples(
        ("What is in this file, and how do I use it?", "verimorph explain transform.h5"),
        ("How sure is this result, and what does the bound mean?", "verimorph explain out"),
        ("Which results of a cohort are broken, or stand out from the others?", "verimorph explain results/*"),
        ("The same for a program:", "verimorph explain transform.h5 --json"),
    )
)
def explain(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRANSFORM|FOLDER...",
            help="Transform file; result folder or its error_mm; several result folders: a cohort.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, flag("--json", text="Print JSON instead of text.")] = False,
    format: Annotated[str | None, option("--from", value="FORMAT", text="Its format; default: recognised.")] = None,
    fixed: Annotated[
        Path | None, option("--fixed", value="FILE", text="Fixed image, for formats that need it.")
    ] = None,
    moving: Annotated[Path | None, option("--moving", value="FILE", text="Moving image, the same.")] = None,
) -> None:
    """Say in words what a transform does: kind, direction, frame, grid, size, folding, and how to apply it.

    Of a result folder, or of an error_mm.nii.gz: the verdict, what the error bound means, and for which images. Of
    several result folders: the verdicts, and which results differ from the others (from eight on).
    """
    path = paths[0]
    result = len(paths) > 1 or path.is_dir() or path.name in ("error_mm.nii.gz", "error_mm.nii")
    if result and (format is not None or fixed is not None or moving is not None):
        raise OptionError("--from, --fixed and --moving are for transform files; leave them out")
    if len(paths) > 1:
        _explain_cohort(paths, as_json)
        return
    if result:
        _explain_result(path, as_json)
        return
    from verimorph.explain import explain as facts_of
    from verimorph.explain import how_to_apply
    from verimorph.io import read_transform
    from verimorph.io.transforms import detect_format

    transform = read_transform(path, format=format, fixed=fixed, moving=moving)
    known = format or detect_format(path)
    facts = facts_of(transform, name=str(path), format=known)
    ways = how_to_apply(str(path), known, linear=hasattr(transform, "matrix"), ndim=transform.ndim)
    if as_json:
        print(json.dumps(facts | {"how_to_apply": dict(ways)}, indent=2))
    else:
        _print(facts, ways)


def _explain_cohort(paths: list[Path], as_json: bool) -> None:
    """Verdicts of many results, and which of them differ from the others."""
    from dataclasses import asdict

    from verimorph.cli.summary import print_cohort
    from verimorph.io.documents import without_nan
    from verimorph.uncertainty.cohort import cohort
    from verimorph.uncertainty.maps import NothingSaidError, facts_of_result

    # A shell's pattern also gives what lies beside the results: the table of a list of pairs, its submission.
    folders = [path for path in paths if (path / "metrics.json").is_file()]
    if len(folders) < 2:
        raise OptionError("fewer than two of these are result folders; give transform files one at a time")
    if rest := [path.name for path in paths if path not in folders]:
        say("note", f"no result folders, passed over: {', '.join(rest)}")
    found, silent = {}, []
    for folder in folders:
        try:
            found[str(folder)] = facts_of_result(folder)
        except NothingSaidError:
            silent.append(folder.name)
    if silent:
        say("warning", f"registered without --uncertainty, passed over: {', '.join(silent)}")
    if len(found) < 2:
        raise OptionError("fewer than two of these say how sure they are; register with --uncertainty")
    standings = cohort(found)
    if as_json:
        print(json.dumps(without_nan([asdict(one) for one in standings]), indent=2))
    else:
        print_cohort(standings)


def _explain_result(path: Path, as_json: bool) -> None:
    """Verdict and error bound of what ``register --uncertainty`` wrote."""
    from verimorph.uncertainty.maps import facts_of_result
    from verimorph.uncertainty.words import in_words

    facts = facts_of_result(path)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    _print_lines(str(path), in_words(facts))
    transform = (path if path.is_dir() else path.parent) / "transform.h5"
    if transform.is_file():
        from rich.console import Console

        console = Console(highlight=False)
        console.print(f"\nThe transform in words: verimorph explain {transform}", soft_wrap=True, markup=False)


def _print_lines(name: str, lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(name, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, line in lines:
        table.add_row(label, Text(line))
    console.print(table)


def _print(facts: dict[str, Any], ways: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from verimorph.explain import in_words

    _print_lines(facts["name"], in_words(facts))
    console = Console(highlight=False)
    console.print(Text("\nHow to apply it", style="bold"))
    for tool, way in ways:
        # Whole on one line, to be copied: never folded by the width of the terminal.
        console.print(Text.assemble((f"{tool:<12}", "bold"), way), soft_wrap=True)
