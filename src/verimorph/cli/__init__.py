"""The command line. Each command is a module of this package that is imported only when it is called.

A command module parses its options, calls the library and prints; it computes nothing itself. It holds ``app``, a typer
application, or a function named after itself.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from verimorph import __version__
from verimorph.cli.runtime import run_safely, tune_allocator
from verimorph.errors import OptionError, nearest

# What `verimorph --help` prints; the modules themselves take seconds to import.
COMMANDS: dict[str, tuple[str, str]] = {
    "register": ("Align images", "Align a moving image to a fixed one; write the moved image, transforms, report."),
    "apply": ("Align images", "Carry an image, labels or points through transforms."),
    "convert": ("Transforms", "Convert transforms between formats, or compose several into one."),
    "explain": ("Transforms", "Say in words what a transform file does, or how sure a result is."),
    "train": ("Learned models", "Train a method, or run a recipe; goes on where a stopped run was."),
    "methods": ("Learned models", "Published methods: citation, size, needs, published figures and ours."),
    "predict": ("Learned models", "Align by a trained model, with refinement and submissions; or label images."),
    "export": ("Learned models", "Write a trained model as TorchScript, ONNX or torch.export, checked."),
    "evaluate": ("Judge results", "Overlap, distances, landmark errors, folding, as a table and JSON."),
    "calibrate": ("Judge results", "Learn, or check, how large errors may be, on known deformations of real images."),
    "bench": ("Judge results", "Measure methods on many pairs, side by side."),
    "demo": ("This machine", "Register a template brain to a known truth and show the true error."),
    "doctor": ("This machine", "What this machine has: devices, threads, kernels, extras, versions."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are listed from `COMMANDS` and imported only when one of them runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the command names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a placeholder with the one-line help, enough for ``--help`` and completion."""
        if cmd_name not in COMMANDS:
            return None
        panel, line = COMMANDS[cmd_name]
        return TyperCommand(name=cmd_name, help=line, short_help=line, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the module of the command that was asked for, or name the nearest one."""
        name = args[0]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name not in COMMANDS:
            raise OptionError(f"unknown command '{name}'{nearest(name, COMMANDS)} (see 'verimorph --help')")
        return name, load(name), args[1:]


def load(name: str) -> Any:
    """Import the command ``name`` and return it as a click command."""
    module = import_module(f"verimorph.cli.{name}")
    application = getattr(module, "app", None)
    if application is None:
        application = typer.Typer(rich_markup_mode="rich", add_completion=False)
        application.command(name)(getattr(module, name))
    command = typer.main.get_command(application)
    command.name = name
    # Line breaks inside a paragraph of a docstring are for the source, not for a terminal of any width.
    command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))
    return command


app = typer.Typer(
    cls=LazyGroup,
    invoke_without_command=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"verimorph {__version__}")
        raise typer.Exit


@app.callback(
    epilog="[bold]Start here[/bold]\n\n"
    "verimorph register -f fixed.nii.gz -m moving.nii.gz -o out\n\n"
    "verimorph COMMAND --help explains a command, with examples."
)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Align medical images, and see how good the alignment is."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with ``arguments`` (default: those of the process) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    called = next((word for word in words if not word.startswith("-")), "")
    return run_safely(lambda: command(words, prog_name="verimorph", standalone_mode=False), called)


def main() -> NoReturn:
    """Entry point of the ``verimorph`` command."""
    tune_allocator()
    sys.exit(run())
