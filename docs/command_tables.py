"""MkDocs hook: writes the option tables of the commands from the commands themselves, so that they are never stale.

A line ``[options: register]`` on a page becomes the tables of that command.
"""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker on a page."""
    return re.sub(r"^\[options: ([a-z ]+)\]$", lambda match: option_tables(match[1].split()), markdown, flags=re.M)


def option_tables(path: list[str]) -> str:
    """Return the options of the command at ``path`` as Markdown, one table a panel."""
    from verimorph.cli import load

    command = load(path[0])
    for name in path[1:]:
        command = command.commands[name]
    if hasattr(command, "commands"):
        paths = [[*path, name] for name in command.commands]
        parts = [f"### verimorph {' '.join(inner)}\n\n{option_tables(inner)}" for inner in paths]
        return "\n\n".join([_first_paragraph(command.help), *parts])
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(_row(parameter))
    tables = [
        (f"**{panel}**\n\n" if panel else "") + "\n".join(["| option | value | |", "|---|---|---|", *rows])
        for panel, rows in panels.items()
    ]
    return "\n\n".join([_first_paragraph(command.help), *tables])


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted([*parameter.opts, *parameter.secondary_opts], key=len))
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    if parameter.required:
        text += " *Required.*"
    elif parameter.default not in (None, False, True, "", ()) and not callable(parameter.default):
        text += f" Default: `{parameter.default}`."
    value = (parameter.metavar or "").replace("|", "\\|")
    return f"| {names} | {value} | {text} |"


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
