"""``verimorph explain``: a transform file in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option

app = application()


@app.command(
    epilog=examples(
        ("What is in this file, and how do I use it?", "verimorph explain transform.h5"),
        ("The same for a program:", "verimorph explain transform.h5 --json"),
    )
)
def explain(
    path: Annotated[Path, typer.Argument(metavar="TRANSFORM", help="Transform file.", show_default=False)],
    as_json: Annotated[bool, flag("--json", text="Print JSON instead of text.")] = False,
    format: Annotated[str | None, option("--from", value="FORMAT", text="Its format; default: recognised.")] = None,
    fixed: Annotated[
        Path | None, option("--fixed", value="FILE", text="Fixed image, for formats that need it.")
    ] = None,
    moving: Annotated[Path | None, option("--moving", value="FILE", text="Moving image, the same.")] = None,
) -> None:
    """Say in words what a transform does: kind, direction, frame, grid, size, folding, and how to apply it."""
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


def _print(facts: dict[str, Any], ways: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from verimorph.explain import in_words

    console = Console(highlight=False)
    console.print(Text(facts["name"], style="bold"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, line in in_words(facts):
        table.add_row(label, Text(line))
    console.print(table)
    console.print(Text("\nHow to apply it", style="bold"))
    for tool, way in ways:
        # Whole on one line, to be copied: never folded by the width of the terminal.
        console.print(Text.assemble((f"{tool:<12}", "bold"), way), soft_wrap=True)
