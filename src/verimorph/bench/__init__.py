"""The harness: many engines on many cases, one scorer, one table, one figure.

An engine is a command that reads two images and leaves transform files; ours is run through the same command line that
a user types. Nothing here registers anything itself, and no peer is imported into this process.
"""

from verimorph.bench.cases import Case, find_cases, read_cases
from verimorph.bench.engines import ENGINES, Engine, command_engine, find_engines
from verimorph.bench.harness import Plan, run_plan
from verimorph.bench.records import Record, Records

__all__ = [
    "ENGINES",
    "Case",
    "Engine",
    "Plan",
    "Record",
    "Records",
    "command_engine",
    "find_cases",
    "find_engines",
    "read_cases",
    "run_plan",
]
