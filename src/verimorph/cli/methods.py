"""``verimorph methods``: what can be trained, with citation, size, needs, published figures and our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.methods import Method
    from verimorph.methods.results import Row

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
    title: Annotated[str, option("--title", value="TEXT", text="Of the experiment.")] = "",
    results: Annotated[
        Path | None, option("--results", value="FILE", text="Table of our figures; default: the packaged one.")
    ] = None,
) -> None:
    """List the published methods that can be trained."""
    from verimorph.methods import METHODS, method
    from verimorph.methods.results import RESULTS, read_results, row_of, scores_of
    from verimorph.methods.results import record as keep

    table = results or RESULTS
    if record is not None:
        if model is None or data is None:
            raise OptionError("--record needs --model FOLDER and --data NAME, so that a figure can be traced")
        from verimorph.methods.checkpoint import read_card

        card = read_card(model, needs_weights=False)
        scores, pairs = scores_of(record, card)
        keep(row_of(card, scores, data=data, title=title, pairs=pairs), table)
        return
    rows = read_results(table)
    chosen = [method(name)] if name is not None else [method(known) for known in METHODS]
    if as_json:
        print(json.dumps([_document(one, rows) for one in chosen], indent=2, ensure_ascii=False))
    elif name is not None:
        _one(chosen[0], rows)
    else:
        _all(chosen, rows)


def _best(rows: list[Row], name: str) -> tuple[str, str]:
    """The highest Dice of our figures for a method, and on what."""
    own = [row for row in rows if row.method == name and "dice" in row.measures]
    if not own:
        return "-", ""
    top = max(own, key=lambda row: row.measures["dice"])
    return f"{top.measures['dice']:.3f}", top.data


def _published(one: Method) -> tuple[str, str]:
    found = [figure for figure in one.published if figure.measure.startswith("dice")]
    if not found:
        return "-", ""
    top = max(found, key=lambda figure: figure.value)
    return f"{top.value:.3f}", top.data


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _all(chosen: list[Method], rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("what")
    table.add_column("published in")
    for heading in ("size", "Dice, published", "Dice, ours"):
        table.add_column(heading, justify="right")
    table.add_column("extra")
    for one in chosen:
        told, where = _published(one)
        ours, there = _best(rows, one.name)
        names = one.citation.authors.split(",")
        first = names[0] + (" et al." if len(names) > 1 else "")
        table.add_row(
            one.name,
            one.summary,
            f"{first} {one.citation.year}",
            _size(one.parameters),
            f"{told}\n{where}" if where else told,
            f"{ours}\n{there}" if there else ours,
            ", ".join(one.needs),
        )
    Console(highlight=False).print(table)


def _one(one: Method, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

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

    def show(title: str, headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
        console.print(f"\n[bold]{title}[/bold]")
        table = Table(*headings, box=None, header_style="dim", pad_edge=False)
        for line in lines or [("-",) * len(headings)]:
            table.add_row(*line)
        console.print(table)

    if one.variants:
        show("Variants", ("name", "what"), [(key, value.summary) for key, value in one.variants.items()])
    figures = [(figure.data, figure.measure, f"{figure.value:.4g}", figure.source) for figure in one.published]
    show("Published figures", ("data", "measure", "value", "source"), figures)
    show(
        "Our figures",
        ("data", "experiment", "variant", "measures"),
        [_ours(row) for row in rows if row.method == one.name],
    )


def _ours(row: Row) -> tuple[str, str, str, str]:
    shown = [
        name
        for name in ("dice", "dice_before", "folding_percent", "sd_log_jacobian", "seconds")
        if name in row.measures
    ]
    measures = ", ".join(f"{name} {row.measures[name]:.4g}" for name in shown)
    return row.data, row.title or "-", row.variant or "-", measures


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
