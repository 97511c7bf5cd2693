"""The compiled modules under the address and undefined behaviour sanitizers, built beside the tree.

build/fuzz is kept, so that the next run compiles what changed only. Called by tests/fuzz/run.py, and by
tests.chaos.run, which has the whole daemon run on that build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1 -DPROXY_CHECKED"


def build() -> None:
    """Brings BUILD/proxy up to date: sources copied when they differ, modules compiled when theirs do."""
    BUILD.mkdir(parents=True, exist_ok=True)
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


def environment() -> dict[str, str]:
    """What a process needs to run the build; PYTHONPATH apart."""
    return {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that bytes objects have red zones too
    }


def in_use(pid: int) -> bool:
    """Whether the process runs that build."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return str(BUILD) in maps and "libasan" in maps


def prefix() -> list[str]:
    """Builds, and returns the words in front of the daemon's command (tests.support.proxyd) that make it run that."""
    build()
    words = [f"{name}={value}" for name, value in (environment() | {"PYTHONPATH": str(BUILD)}).items()]
    return ["env", f"--chdir={BUILD}", *words]
