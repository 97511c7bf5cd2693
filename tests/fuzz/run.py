"""Fuzzes the compiled modules under the address and undefined behaviour sanitizers, for a bounded time.

    python tests/fuzz/run.py --seconds 60 [--seed N] [--only replies] [--plain]

Builds every .pyx of proxy/ with sanitizers into build/fuzz (kept, so that the next run compiles what changed only),
then runs each tests/fuzz/target_*.py in a Python of its own that has the sanitizer's runtime loaded before all else. A
target is a module with `run(seed, deadline)` that returns the number of cases it tried before time.monotonic() reached
the deadline; its first lines state its invariants, and an exception or a sanitizer report is a failure. The seed is
printed; with the same seed a target tries the same cases in the same order. Of a crash, the last input is shown.

Called by: `make fuzz`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1 -DPROXY_CHECKED"


def targets() -> list[str]:
    """Names of the target modules, without `target_`."""
    return sorted(path.stem.removeprefix("target_") for path in Path(__file__).parent.glob("target_*.py"))


def build() -> None:
    """Brings BUILD/proxy up to date: sources copied when they differ, modules compiled when theirs do."""
    wanted = {path.relative_to(ROOT) for kind in ("py", "pyx", "pxd") for path in (ROOT / "proxy").rglob(f"*.{kind}")}
    for path in wanted:
        copy = BUILD / path
        if not copy.exists() or copy.read_bytes() != (ROOT / path).read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, copy)
    for kind in ("py", "pyx", "pxd"):
        for copy in (BUILD / "proxy").rglob(f"*.{kind}"):
            if copy.relative_to(BUILD) not in wanted:
                copy.unlink()
                for made in copy.parent.glob(f"{copy.stem}.*.so"):
                    made.unlink()
    modules = [str(path.relative_to(BUILD)) for path in sorted(BUILD.rglob("*.pyx")) if "temp" not in path.parts]
    script = (
        "from setuptools import Extension, setup; from Cython.Build import cythonize; import sys;"
        f"setup(name='fuzz', script_args=['-q', 'build_ext', '--inplace', '--build-temp', 'temp'],"
        f" packages=[], ext_modules=cythonize([Extension(m[:-4].replace('/', '.'), [m]) for m in {modules!r}],"
        " language_level=3, quiet=True))"
    )
    environment = os.environ | {"CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined"}
    subprocess.run([sys.executable, "-c", script], cwd=BUILD, env=environment, check=True)


def runtime() -> str:
    """Path of the sanitizer's shared library, which must come before everything else a process loads."""
    compiler = os.environ.get("CC", "gcc").split()[0]
    return subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()


def fuzz(name: str, seed: int, seconds: float, plain: bool) -> bool:
    """Runs one target in its own process; False when it found something."""
    from tests.fuzz.cases import LastInput

    environment = os.environ | {"PYTHONPATH": f"{ROOT}" if plain else f"{BUILD}{os.pathsep}{ROOT}"}
    environment["FUZZ_LAST_INPUT"] = str(LastInput.path())
    if not plain:
        environment |= {
            "LD_PRELOAD": runtime(),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",  # so that bytes objects have red zones too
        }
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
    os.environ.pop("LD_PRELOAD", None)
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
    BUILD.mkdir(parents=True, exist_ok=True)
    if not options.plain:
        build()
    chosen = options.only or targets()
    print(f"seed {seed}, {options.seconds / len(chosen):.0f} s for each of {', '.join(chosen)}", flush=True)
    results = [fuzz(name, seed, options.seconds / len(chosen), options.plain) for name in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
