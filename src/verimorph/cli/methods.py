"""``verimorph methods``: what can be trained, with citation, size, needs, published figures and our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.runtime import counted, refuse
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.methods import Method
    from verimorph.methods.results import Row

#: Which measures of ours are printed, and under which heading.
_SHOWN = {"dice": "Dice", "dice_before": "before", "folding_percent": "folds %", "seconds": "seconds"}

app = application()


@app.command(
    epilog=examples(
        ("All methods:", "verimorph methods"),
        ("One, with its settings, variants and figures:", "verimorph methods transmorph"),
        (
            "Keep the scores of a trained model, as predicted:",
            "verimorph methods --record predictions --model runs/voxelmorph/model --data hippocampus_mr",
        ),
    )
)
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Of one method: all about it.", show_default=False)
    ] = None,
    as_json: Annotated[bool, flag("--json", text="As JSON.")] = False,
    record: Annotated[
        Path | None, option("--record", value="FOLDER", text="Take up the scores of what 'predict' wrote there.")
    ] = None,
    model: Annotated[
        Path | None, option("--model", value="FOLDER", text="The model that made them; its card is enough.")
    ] = None,
    data: Annotated[str | None, option("--data", value="NAME", text="What it was scored on.")] = None,
    title: Annotated[str, option("--title", value="TEXT", text="Name of the experiment.")] = "",
    results: Annotated[
        Path | None, option("--results", value="FILE", text="Table of our figures; default: the packaged one.")
    ] = None,
) -> None:
    """List the published methods that can be trained."""
    from verimorph.methods import METHODS, method
    from verimorph.methods.results import RESULTS, read_results, row_of, scores_of
    from verimorph.methods.results import record as keep

    table = results or RESULTS
    if record is None:
        refuse({"--model": model, "--data": data, "--title": title}, "of figures to keep; give --record FOLDER")
        if results is not None and not results.is_file():
            raise OptionError(f"--results {results}: there is no such file")
    else:
        refuse({"NAME": name, "--json": as_json}, "of what is shown, and --record shows nothing; give one or the other")
        if model is None or data is None:
            raise OptionError("--record needs --model FOLDER and --data NAME, so that a figure can be traced")
        from verimorph.methods.checkpoint import read_card

        card = read_card(model, needs_weights=False)
        scores, pairs = scores_of(record, card)
        row = row_of(card, scores, data=data, title=title, pairs=pairs)
        keep(row, table)
        dice = f"Dice {_digits(row.measures['dice'])}, " if "dice" in row.measures else ""
        print(f"{row.method} on {data}: {dice}{counted(pairs, 'pairs')}; kept in {table}")
        return
    rows = read_results(table)
    chosen = [method(name)] if name is not None else [method(known) for known in METHODS]
    if as_json:
        print(json.dumps([_document(one, rows) for one in chosen], indent=2, ensure_ascii=False))
    elif name is not None:
        _one(chosen[0], rows)
    else:
        _all(chosen, rows)


def _figures(one: Method, rows: list[Row]) -> str:
    """The highest Dice of the paper and the highest of ours, and on what."""
    told = [(figure.value, figure.data) for figure in one.published if figure.measure.startswith("dice")]
    ours = [(row.measures["dice"], row.data) for row in rows if row.method == one.name and "dice" in row.measures]
    found = [(*max(figures), whose) for figures, whose in ((told, "published"), (ours, "ours")) if figures]
    return "; ".join(f"{value:.3f} {whose} ({data})" for value, data, whose in found) or "-"


def _size(count: int | None) -> str:
    if count is None:
        return "not published"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _all(chosen: list[Method], rows: list[Row]) -> None:
    """A few lines for each method: they read alike on a terminal of any width."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for one in chosen:
        names = one.citation.authors.split(",")
        first = names[0] + (" et al." if len(names) > 1 else "")
        console.print(Text.assemble((one.name, "bold"), f"  {first} {one.citation.year}"))
        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column()
        facts.add_row("what", Text(one.summary))
        facts.add_row("parameters", _size(one.parameters))
        facts.add_row("highest Dice", Text(_figures(one, rows)))
        if one.needs:
            facts.add_row("needs", Text(f"verimorph[{','.join(one.needs)}]"))
        console.print(Padding(facts, (0, 0, 0, 2)))


def _one(one: Method, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    cited = one.citation
    console.print(f"[bold]{one.name}[/bold]: {one.summary}")
    doi = f", https://doi.org/{cited.doi}" if cited.doi else ""
    console.print(f"{cited.authors}: {cited.title}. {cited.venue}, {cited.year}{doi}", markup=False)
    needs = f"; needs verimorph[{','.join(one.needs)}]" if one.needs else ""
    size = "not published" if one.parameters is None else f"{one.parameters:,}"
    console.print(f"{one.task}; parameters {size}{needs}", markup=False)
    console.print(f"objective: {' + '.join(one.objective)}", markup=False)
    if one.deviations:
        console.print(f"deviations: {one.deviations}", markup=False)
    settings = ", ".join(f"{key}={_plain(value)}" for key, value in one.settings().items())
    console.print(f"settings: {settings}", markup=False)

    def show(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], *, numbers: int = 0) -> None:
        """Print a table whose last ``numbers`` columns are numbers; names are never broken."""
        console.print(f"\n[bold]{title}[/bold]")
        table = Table(box=None, header_style="dim", pad_edge=False)
        for place, heading in enumerate(headings):
            number = place >= len(headings) - numbers
            whole = number or heading in ("name", "variant")
            table.add_column(heading, justify="right" if number else "left", no_wrap=whole, overflow="fold")
        for line in lines or [("-",) * len(headings)]:
            table.add_row(*map(Text, line))
        console.print(table)

    if one.variants:
        show("Variants", ("name", "what"), [(key, value.summary) for key, value in one.variants.items()])
    figures = [(figure.data, figure.measure, figure.source, f"{figure.value:.4g}") for figure in one.published]
    show("Published figures", ("data", "measure", "source", "value"), figures, numbers=1)
    own = [row for row in rows if row.method == one.name]
    headings = ("experiment", "variant", *_SHOWN.values())
    for data in dict.fromkeys(row.data for row in own):
        measured = [
            (row.title or "-", row.variant or "-", *(_digits(row.measures.get(name)) for name in _SHOWN))
            for row in own
            if row.data == data
        ]
        show(f"Our figures on {data}", headings, measured, numbers=len(_SHOWN))
    if not own:
        show("Our figures", headings, [], numbers=len(_SHOWN))


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: Any) -> str:
    return "x".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)


def _document(one: Method, rows: list[Row]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": one.name,
        "summary": one.summary,
        "task": one.task,
        "citation": asdict(one.citation),
        "parameters": one.parameters,
        "needs": list(one.needs),
        "objective": list(one.objective),
        "settings": json.loads(json.dumps(one.settings(), default=str)),
        "variants": {key: value.summary for key, value in one.variants.items()},
        "published": [asdict(figure) for figure in one.published],
        "ours": [asdict(row) for row in rows if row.method == one.name],
        "deviations": one.deviations,
    }
