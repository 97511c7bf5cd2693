"""Fuzzes the compiled modules under the address and undefined behaviour sanitizers, for a bounded time.

    python tests/fuzz/run.py --seconds 60 [--seed N] [--only replies] [--plain]

Builds all .pyx of proxy/ with sanitizers (tests.support.sanitizers), then runs each tests/fuzz/target_*.py in a Python
of its own that has the sanitizer's runtime loaded before all else. A target is a module with `run(seed, deadline)` that
returns the number of cases it tried before time.monotonic() reached the deadline; its first lines state its invariants,
and an exception or a sanitizer report is a failure. The seed is printed; with the same seed a target tries the same
cases in the same order. Of a crash, the last input is shown.

Called by: `make fuzz`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: the build with sanitizers has a proxy/ of its own

from tests.support import sanitizers
from tests.support.sanitizers import BUILD, ROOT


def targets() -> list[str]:
    """Names of the target modules, without `target_`."""
    return sorted(path.stem.removeprefix("target_") for path in Path(__file__).parent.glob("target_*.py"))


def fuzz(name: str, seed: int, seconds: float, plain: bool) -> bool:
    """Runs one target in its own process; False when it found something."""
    from tests.fuzz.cases import LastInput

    environment = os.environ | {"PYTHONPATH": f"{ROOT}" if plain else f"{BUILD}{os.pathsep}{ROOT}"}
    environment["FUZZ_LAST_INPUT"] = str(LastInput.path())
    if not plain:
        environment |= sanitizers.environment()
    child = [sys.executable, "-c", f"from tests.fuzz.run import child; child({name!r}, {seed}, {seconds})"]
    try:
        done = subprocess.run(child, cwd=BUILD if not plain else ROOT, env=environment, timeout=seconds * 3 + 120)
        if done.returncode == 0:
            return True
        print(f"{name}: FAILED with exit status {done.returncode}, seed {seed}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"{name}: FAILED, hangs, seed {seed}", flush=True)
    print(f"{name}: last input {LastInput.read()!r}", flush=True)
    return False


def child(name: str, seed: int, seconds: float) -> None:
    """One target, inside the process with the sanitizer; servers it starts must not inherit that."""
    sanitized = os.environ.pop("LD_PRELOAD", None) is not None
    used = Path(importlib.import_module("proxy").__file__ or "")
    assert used.is_relative_to(BUILD) == sanitized, f"{used} is not what was built for this"
    began = time.monotonic()
    cases = importlib.import_module(f"tests.fuzz.target_{name}").run(seed, began + seconds)
    print(f"{name}: {cases} cases in {time.monotonic() - began:.0f} s, seed {seed}", flush=True)
    assert cases > 0, "a target must try something"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together, building not counted")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", action="append", choices=targets(), help="run this target only (may be repeated)")
    parser.add_argument("--plain", action="store_true", help="use the modules in the tree, without sanitizers")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if not options.plain:
        sanitizers.build()
    chosen = options.only or targets()
    print(f"seed {seed}, {options.seconds / len(chosen):.0f} s for each of {', '.join(chosen)}", flush=True)
    results = [fuzz(name, seed, options.seconds / len(chosen), options.plain) for name in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
