"""The documentation is true: its code runs, its commands parse, its links lead somewhere, its map fits the folders."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from verimorph.cli import COMMANDS, load, run

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(
    r"^(?P<marker><!-- run -->\n)?(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``run`` if ``<!-- run -->`` stands above it."""

    page: Path
    line: int
    language: str
    code: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(page, line, match["language"], textwrap.dedent(match["code"]), bool(match["marker"]))


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN_PAGES = sorted({block.page for block in BLOCKS if block.run})


def commands(block: Block) -> Iterator[list[str]]:
    """The ``verimorph`` commands of a shell block, as words."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "verimorph":
            yield words[1:]


def test_there_is_something_to_check():
    assert DOCS / "quick-start.md" in RUN_PAGES
    assert sum(len(list(commands(block))) for block in BLOCKS if block.language == "bash") > 10


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
def test_marked_code_runs(page, tmp_path, monkeypatch, capsys):
    # In order, in one folder and one Python session, as a reader would.
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    for block in (block for block in blocks(page) if block.run):
        if block.language == "python":
            exec(compile(block.code, str(block), "exec"), session)
        else:
            for words in commands(block):
                code = run(words)
                assert code == 0, f"{block}: verimorph {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block):
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        pytest.param(block, words, id=f"{block}-{words[0] if words else ''}")
        for block in BLOCKS
        if block.language == "bash"
        for words in commands(block)
    ],
)
def test_commands_parse(block, words):
    # Options that exist, values of the right kind, nothing required left out; nothing is run.
    if words[0].startswith("-"):
        return
    assert words[0] in COMMANDS, block
    if "--help" not in words and words[-1] != "...":
        load(words[0]).make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}; {path} has no such heading"


def test_make_targets_in_the_text_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M):
            assert target in targets, f"{page.name} says make {target}"


def test_architecture_page_matches_the_folders():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w/.]+)` \|", page, flags=re.M))
    package = ROOT / "src" / "verimorph"
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    there |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == there


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation, f"{page.name} is not in mkdocs.yml"


def test_commands_page_has_every_command_and_option():
    import importlib.util

    specification = importlib.util.spec_from_file_location("command_tables", DOCS / "command_tables.py")
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    page = tables.on_page_markdown((DOCS / "commands.md").read_text(encoding="utf-8"))
    assert "[options:" not in page
    for name in COMMANDS:
        assert f"## verimorph {name}" in page
    for option in ("--fixed-landmarks", "--output-style", "--inverse", "--json"):
        assert f"`{option}`" in page
