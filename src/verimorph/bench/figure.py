"""Accuracy against seconds: a panel a set, a point an engine; up and left is better everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verimorph.bench.records import Record
from verimorph.bench.table import MEASURES, Row, by_set, newest, summarise
from verimorph.errors import InputError


def draw(records: Iterable[Record], path: str | Path) -> Path:
    """Draw the figure to ``path`` (.svg, .png or .pdf).

    Errors have their axis turned over, so that better is up in every panel. The identity is a line. Engines
    that finished no case of a set are not in its panel.

    Raises
    ------
    InputError
        If no record holds a result.
    """
    import matplotlib

    from verimorph.io.safe import replacing

    groups = {
        key: rows
        for key, group in by_set(newest(records)).items()
        if (rows := [row for row in summarise(group) if row.mean is not None])
    }
    if not groups:
        raise InputError("nothing to draw: no record holds a result; do 'verimorph bench run' first")
    backend = matplotlib.get_backend()
    matplotlib.use("agg", force=False)
    import matplotlib.pyplot as plt

    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    with plt.rc_context({"font.size": 8, "svg.hashsalt": "verimorph", "svg.fonttype": "none"}):
        sheet, axes = plt.subplots(
            lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False, layout="constrained"
        )
        names = list(dict.fromkeys(row.engine for rows in groups.values() for row in rows if row.engine != "identity"))
        palette = plt.get_cmap("tab20")
        colour = {name: palette(index % 20) for index, name in enumerate(names)}
        for panel, ((title, measure, threads), rows) in zip(axes.flat, groups.items(), strict=False):
            label, higher, _ = MEASURES[measure]
            _draw_panel(panel, rows, colour)
            panel.set_title(f"{title} ({threads} thread{'s' * (threads > 1)})")
            panel.set_xlabel("seconds, whole command")
            panel.set_ylabel(label if higher else f"{label} (turned over)")
            if not higher:  # errors span decades, from the identity down to a fraction of a voxel
                panel.set_yscale("log")
                panel.invert_yaxis()
                _plain_ticks(panel.yaxis)
        for panel in list(axes.flat)[len(groups) :]:
            panel.set_visible(False)
        with replacing(path) as beside:
            sheet.savefig(beside, dpi=150, metadata={"Date": None} if str(path).endswith(".svg") else None)
        plt.close(sheet)
    if backend != "agg":
        matplotlib.use(backend, force=False)
    return Path(path)


def _draw_panel(panel: Any, rows: list[Row], colour: dict[str, Any]) -> None:
    """Draw one set. An engine that finished fewer cases than the best says how many: its mean is over others."""
    cases = max(row.cases for row in rows)
    points = [(row, row.wall_s) for row in rows if row.engine != "identity" and row.wall_s]
    for row in rows:
        if row.engine == "identity":
            panel.axhline(row.mean, color="0.5", linewidth=1, linestyle=":")
            panel.annotate("identity", (0.01, row.mean), xycoords=("axes fraction", "data"), color="0.4", va="bottom")
    panel.set_xscale("log")
    if points:
        low, high = min(seconds for _, seconds in points) / 1.8, max(seconds for _, seconds in points) * 1.8
        panel.set_xlim(low, high)
    for row, seconds in points:
        ours, left = row.engine.startswith("verimorph"), seconds > math.sqrt(low * high)
        panel.scatter(seconds, row.mean, color=colour[row.engine], s=45, marker="D" if ours else "o", zorder=3)
        panel.annotate(
            row.engine + (f" ({row.cases} of {cases})" if row.cases < cases else ""),
            (seconds, row.mean),
            xytext=(-6 if left else 6, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontweight="bold" if ours else "normal",
        )
    _plain_ticks(panel.xaxis)
    panel.margins(y=0.12)
    panel.grid(alpha=0.3, linewidth=0.5)


def _plain_ticks(axis: Any) -> None:
    """Write 2, 5, 10 on a logarithmic axis, not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
