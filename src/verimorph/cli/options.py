"""How commands declare options: names, what the help calls the value, one line of text, the panel it stands in."""

from __future__ import annotations

from typing import Any

import typer

_CONTEXT = {"help_option_names": ["-h", "--help"]}


def application() -> typer.Typer:
    """Return an empty typer application with the settings that all commands share."""
    return typer.Typer(
        rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False, context_settings=_CONTEXT
    )


def option(*names: str, value: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """Declare an option with a value; ``value`` is what the help calls it (FILE, N, ...)."""
    return typer.Option(*names, metavar=value, help=text, rich_help_panel=panel, **more)


def flag(*names: str, text: str, panel: str | None = None) -> Any:
    """Declare an option without a value."""
    return typer.Option(*names, metavar="", help=text, rich_help_panel=panel, show_default=False)


def examples(*pairs: tuple[str, str]) -> str:
    """Return the epilogue of a command's help: what one wants to do, and the line that does it.

    >>> print(examples(("Look first:", "verimorph explain transform.h5")))
    [bold]Examples[/bold]
    <BLANKLINE>
    Look first:
    <BLANKLINE>
      [cyan]verimorph explain transform.h5[/cyan]
    """
    lines = [f"{purpose}\n\n  [cyan]{command}[/cyan]" for purpose, command in pairs]
    return "\n\n".join(["[bold]Examples[/bold]", *lines])
