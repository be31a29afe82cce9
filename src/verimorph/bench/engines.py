"""What can be measured: ours at every preset, the identity, the peers, and any command a user names.

An engine is a row of a table here: how it is called, what it is told, which environment it needs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from verimorph.bench.cases import Case
from verimorph.bench.environments import interpreter
from verimorph.errors import OptionError, nearest

_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Engine:
    """One way to register a pair.

    Parameters
    ----------
    name
        As in the table.
    about
        One line for ``verimorph bench engines``.
    script
        Peer script in ``peers/``; None for ours, the identity and commands.
    environment
        Environment the script runs in.
    settings
        What it is told; part of every record.
    command
        A command line with ``{fixed} {moving} {out} {threads} {kind}`` that leaves ``{out}/transform.h5``
        (or ``.tfm``, ``.mat``, ``.nii.gz``).
    quality
        Preset of ours.
    dimensions
        2, 3 or both.
    """

    name: str
    about: str
    script: str | None = None
    environment: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    quality: str | None = None
    dimensions: tuple[int, ...] = (2, 3)

    @property
    def ours(self) -> bool:
        """Whether this is Verimorph itself."""
        return self.quality is not None

    @property
    def is_identity(self) -> bool:
        """Whether nothing is run: the row every table has."""
        return self.script is None and self.command is None and self.quality is None

    def described(self) -> str:
        """Settings as one line: a record holds it, and a run with another line is another run."""
        if self.ours:
            return f"quality={self.quality} code={code_fingerprint()}"
        if self.command:
            return self.command
        return json.dumps(dict(self.settings), sort_keys=True) if self.settings else ""

    def missing(self, environments: Path) -> str | None:
        """Say what has to be done before this engine can run, None if nothing."""
        if self.environment is None or interpreter(self.environment, environments):
            return None
        return f"run: verimorph bench setup {self.environment}"

    def command_line(self, case: Case, *, out: Path, threads: int, environments: Path) -> list[str]:
        """Write the job into ``out`` and return the command that does it."""
        if self.command:
            words = {
                "fixed": case.fixed,
                "moving": case.moving,
                "out": out,
                "threads": threads,
                "kind": case.kind,
            }
            return [word.format(**words) for word in shlex.split(self.command)]
        if self.ours:
            return self._register(case, out, threads)
        job = {
            "fixed": str(case.fixed),
            "moving": str(case.moving),
            "fixed_mask": str(case.fixed_mask) if case.fixed_mask else None,
            "moving_mask": str(case.moving_mask) if case.moving_mask else None,
            "kind": case.kind,
            "contrast": case.contrast,
            "threads": threads,
            "settings": dict(self.settings),
            "out": str(out),
        }
        file = out / "job.json"
        file.write_text(json.dumps(job, indent=1), encoding="utf-8")
        python = interpreter(str(self.environment), environments)
        return [str(python), str(_PEERS / f"{self.script}.py"), str(file)]

    def _register(self, case: Case, out: Path, threads: int) -> list[str]:
        words = [sys.executable, "-m", "verimorph", "register"]
        words += ["--fixed", str(case.fixed), "--moving", str(case.moving), "--output", str(out)]
        words += ["--transform", case.kind, "--quality", str(self.quality), "--threads", str(threads)]
        for option, path in (
            ("--fixed-labels", case.fixed_labels),
            ("--moving-labels", case.moving_labels),
            ("--fixed-mask", case.fixed_mask),
            ("--moving-mask", case.moving_mask),
        ):
            if path is not None:
                words += [option, str(path)]
        return words

    def result(self, out: Path) -> dict[str, Any]:
        """Read what the engine left: the transform files in the order they act, seconds and versions if it says."""
        if self.ours:
            return _our_result(out)
        file = out / "result.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        for suffix in (".h5", ".tfm", ".mat", ".txt", ".nii.gz"):
            if (out / f"transform{suffix}").exists():
                return {"chain": [str(out / f"transform{suffix}")]}
        raise FileNotFoundError(f"{self.name} left no transform file in its folder")


def command_engine(definition: str) -> Engine:
    """Make an engine of ``NAME=COMMAND``, a user's own method.

    >>> command_engine("mine=mytool -f {fixed} -m {moving} -o {out}/transform.h5").name
    'mine'
    """
    name, equals, command = definition.partition("=")
    if not equals or not name.strip() or "{out}" not in command:
        raise OptionError(
            f"--command is '{definition}'; write NAME=COMMAND with {{fixed}}, {{moving}} and {{out}} in it, "
            "e.g. mine='mytool -f {fixed} -m {moving} -o {out}/transform.h5'"
        )
    try:
        for word in shlex.split(command):
            word.format(fixed="", moving="", out="", threads="", kind="")
    except (KeyError, IndexError, ValueError) as error:
        raise OptionError(
            f"--command {name}: cannot be filled in ({error}); see 'verimorph bench run --help'"
        ) from None
    return Engine(name=name.strip(), about="a user's command", command=command.strip())


def find_engines(wanted: list[str], extra: list[Engine] = []) -> list[Engine]:  # noqa: B006 (never changed)
    """Return engines by name; ``ours`` and ``peers`` stand for several; the identity always comes first."""
    known = {**ENGINES, **{engine.name: engine for engine in extra}}
    names = ["identity"]
    for word in wanted:
        if word in GROUPS:
            names += GROUPS[word]
        elif word in known:
            names.append(word)
        else:
            raise OptionError(f"--engines: unknown engine '{word}'{nearest(word, [*GROUPS, *known])}")
    names += [engine.name for engine in extra]
    return [known[name] for name in dict.fromkeys(names)]


_OTHER_ROOMS = ("bench", "data", "methods", "nn", "predict", "train")
_OTHER_COMMANDS = tuple(f"cli/{name}.py" for name in ("__init__", "bench", "export", "methods", "predict", "train"))


@cache
def code_fingerprint() -> str:
    """Return eight digits that change when the code that registers a pair does; learned models are no part of that."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        part = file.relative_to(root)
        if part.parts[0] not in _OTHER_ROOMS and part.as_posix() not in _OTHER_COMMANDS:
            digest.update(part.as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def _our_result(out: Path) -> dict[str, Any]:
    chain = out / "transform.h5"
    if not chain.exists():
        raise FileNotFoundError("verimorph left no transform.h5 in its folder")
    result: dict[str, Any] = {"chain": [str(chain)], "versions": {}}
    provenance = out / "provenance.json"
    if provenance.exists():
        facts = json.loads(provenance.read_text(encoding="utf-8"))
        result["versions"] = {
            name: version
            for name, version in {**facts.get("versions", {}), "verimorph": facts.get("verimorph")}.items()
            if name in ("verimorph", "torch", "numpy") and isinstance(version, str)
        }
        result["timings"] = facts.get("timings_seconds", {})
    return result


_GREEDY = {"affine_metric": "NCC 2x2x2", "linear_metric": "NMI", "iterations": [100, 50, 10]}

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("identity", "nothing is done; centred first where the case list says so"),
        Engine("verimorph-fast", "verimorph register --quality fast", quality="fast"),
        Engine("verimorph-balanced", "verimorph register --quality balanced (the default)", quality="balanced"),
        Engine("verimorph-best", "verimorph register --quality best", quality="best"),
        Engine(
            "greedy",
            "greedy: affine NCC, then NCC 2x2x2, 100x50x10",
            script="greedy",
            environment="greedy",
            settings={**_GREEDY, "metric": "NCC 2x2x2"},
        ),
        Engine(
            "greedy_r4",
            "greedy: the same, NCC 4x4x4",
            script="greedy",
            environment="greedy",
            settings={**_GREEDY, "metric": "NCC 4x4x4"},
        ),
        Engine(
            "sitk_demons",
            "SimpleITK: affine (Mattes), then diffeomorphic demons, 100x60x40",
            script="sitk_demons",
            environment="sitk_demons",
            settings={
                "bins": 50,
                "sampling": 0.25,
                "linear_iterations": 200,
                "match_points": 7,
                "iterations": [100, 60, 40],
                "sigma_voxels": 1.5,
                "step_voxels": 0.5,
            },
        ),
        Engine(
            "elastix",
            "elastix: default affine, then default B-spline",
            script="elastix",
            environment="elastix",
            settings={"iterations": 256, "seed": 121212},
        ),
        Engine(
            "ants_syn",
            "ANTsPy's own default SyN (Mattes, 40x20x0)",
            script="ants_syn",
            environment="ants",
            settings={"type": "SyN", "seed": 1},
        ),
        Engine(
            "ants_syn_quick",
            "antsRegistrationSyNQuick[s]",
            script="ants_syn",
            environment="ants",
            settings={"type": "antsRegistrationSyNQuick[s]", "seed": 1},
        ),
        Engine(
            "ants_syn_script",
            "antsRegistrationSyN[s] (CC radius 2; slow)",
            script="ants_syn",
            environment="ants",
            settings={"type": "antsRegistrationSyN[s]", "seed": 1},
        ),
        Engine(
            "dipy_syn",
            "DIPY: affine, then symmetric diffeomorphic (CC)",
            script="dipy_syn",
            environment="dipy",
            settings={
                "bins": 32,
                "linear_iterations": [1000, 100, 10],
                "iterations": [10, 10, 5],
                "radius": 4,
            },
        ),
        Engine(
            "convexadam",
            "convexAdam-MIND after greedy's affine",
            script="convexadam",
            environment="convexadam",
            settings={**_GREEDY},
            dimensions=(3,),
        ),
    )
}

GROUPS: dict[str, list[str]] = {
    "ours": [name for name, engine in ENGINES.items() if engine.ours],
    "peers": [name for name, engine in ENGINES.items() if engine.environment],
}
