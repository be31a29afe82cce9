"""``verimorph doctor``: what this machine has, as a table or as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

from verimorph.cli.options import application, examples, flag

app = application()


@app.command(
    epilog=examples(
        ("Can I use my GPU, and are the fast kernels on?", "verimorph doctor"),
        ("For a bug report:", "verimorph doctor --json > machine.json"),
    )
)
def doctor(as_json: Annotated[bool, flag("--json", text="Print JSON instead of a table.")] = False) -> None:
    """Say what this machine has: devices, threads, kernels in use, optional extras, versions."""
    from verimorph.doctor import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(facts)


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Verimorph", f"{facts['verimorph']}, Python {facts['python']}")
    table.add_row("System", facts["system"])
    for device in facts["devices"]:
        table.add_row(f"Device {device['name']}", f"{device['description']}, {gigabytes(device['memory'])}")
    table.add_row("Memory", f"{gigabytes(facts['memory']['available'])} free of {gigabytes(facts['memory']['total'])}")
    table.add_row("Threads", f"{facts['threads']['usable']} usable, torch uses {facts['threads']['torch']}")
    kernels = facts["kernels"]
    layer = f", threading layer {kernels['threading_layer']}" if kernels["threading_layer"] else ""
    reason = f" ({kernels['reason']})" if kernels["reason"] else ""
    table.add_row("Kernels", f"{kernels['in_use'] or 'none'}{layer}{reason}")
    table.add_row("Allocator", facts["allocator"])
    table.add_row("Browser", facts["browser"] or "none found (only needed to test reports)")
    for name, extra in facts["extras"].items():
        state = "installed" if extra["installed"] else f"not installed; for {extra['purpose']}: {extra['install']}"
        table.add_row(f"Extra {name}", Text(state))
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items())
    table.add_row("Packages", versions)
    console.print(table)
    for problem in facts["problems"]:
        console.print(Text.assemble(("! ", "bold yellow"), problem))
    if not facts["problems"]:
        console.print(Text("Nothing is missing.", style="green"))


def gigabytes(count: int | None) -> str:
    """Write a number of bytes in GB.

    >>> gigabytes(16_500_000_000)
    '16.5 GB'
    """
    return "unknown memory" if count is None else f"{count / 1e9:.1f} GB"
