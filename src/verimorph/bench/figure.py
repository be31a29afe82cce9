"""Accuracy against seconds: a panel a set, a point an engine; up and left is better everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from verimorph.bench.records import Record
from verimorph.bench.table import MEASURES, by_set, newest, summarise
from verimorph.errors import InputError


def draw(records: Iterable[Record], path: str | Path) -> Path:
    """Draw the figure to ``path`` (.svg, .png or .pdf).

    Errors in mm have their axis turned over, so that better is up in every panel. The identity is a line. Engines
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
            label, higher, _digits = MEASURES[measure]
            for row in rows:
                if row.engine == "identity":
                    panel.axhline(row.mean, color="0.6", linewidth=1, linestyle=":", label="identity")
                elif row.wall_s:
                    ours = row.engine.startswith("verimorph")
                    panel.scatter(
                        row.wall_s, row.mean, color=colour[row.engine], s=45, marker="D" if ours else "o", zorder=3
                    )
                    panel.annotate(
                        row.engine,
                        (row.wall_s, row.mean),
                        xytext=(5, 3),
                        textcoords="offset points",
                        fontweight="bold" if ours else "normal",
                    )
            panel.set_xscale("log")
            panel.margins(x=0.25, y=0.12)
            panel.grid(alpha=0.3, which="both", linewidth=0.5)
            panel.set_title(f"{title} ({threads} thread{'s' * (threads > 1)})")
            panel.set_xlabel("seconds, whole command")
            panel.set_ylabel(label if higher else f"{label}, mm (smaller is up)")
            if not higher:
                panel.invert_yaxis()
        for panel in list(axes.flat)[len(groups) :]:
            panel.set_visible(False)
        with replacing(path) as beside:
            sheet.savefig(beside, dpi=150, metadata={"Date": None} if str(path).endswith(".svg") else None)
        plt.close(sheet)
    if backend != "agg":
        matplotlib.use(backend, force=False)
    return Path(path)
