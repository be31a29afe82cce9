"""How long `verimorph predict` takes from the start of its process to the first layer of the network.

    python bench/start.py MODEL FIXED MOVING [--runs 5]

Each run is a process of its own on one thread. Processor time holds on a busy machine, where seconds of the wall do
not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

STARTED = "VERIMORPH_BENCH_STARTED"


def first_layer(words: list[str]) -> None:
    """Run the command in this process up to the first layer, then say how long it took and end."""
    from verimorph.cli import run

    def said(*_: object) -> None:
        wall = time.time() - float(os.environ[STARTED])
        print(f"{time.process_time():.2f} s of the processor, {wall:.2f} s of the wall", flush=True)
        os._exit(0)

    class Watch:
        """Hooks into torch when the code of the prediction is about to be imported; finds nothing itself."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "verimorph.predict.pair" and self in sys.meta_path:
                sys.meta_path.remove(self)  # type: ignore[arg-type]
                from torch.nn.modules.module import register_module_forward_pre_hook

                register_module_forward_pre_hook(said)

    sys.meta_path.insert(0, Watch())  # type: ignore[arg-type]
    sys.exit(run(words))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "fixed", "moving"):
        parser.add_argument(name)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["predict", options.model, "-f", options.fixed, "-m", options.moving, "-o", f"{folder}/out", "-j", "1"]
        for _ in range(options.runs):
            environment = os.environ | {STARTED: str(time.time()), "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, __file__, *words], check=True, env=environment)


if __name__ == "__main__":
    if STARTED in os.environ:
        first_layer(sys.argv[1:])
    else:
        main()
