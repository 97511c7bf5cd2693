"""Builds the compiled modules: every proxy/**/*.pyx, found by name, with one set of flags.

Called by pip (wheel, editable install) and by `make`, which runs `python setup.py build_ext --inplace`. Everything that
is not about compiling stands in pyproject.toml; what a module asks of Cython stands in its own first line.

Invariants:
- Metadata commands and the sdist need no compiler: modules are translated when build_ext runs, not before.
- A development build is incremental whoever starts it, because editable and in-place builds share one folder, and it
  replaces a module in one step, because another process may have the old one mapped.
- What is missing on the machine is said in one sentence.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

# Nothing outside a module calls into it except through Python's own tables, so its symbols need not be interposable.
# -g1: lines for perf and sanitizers at a third of the size.
COMPILE_FLAGS = ["-O3", "-g1", "-fvisibility=hidden", "-fno-strict-aliasing"]
GCC_FLAGS = ["-fno-semantic-interposition"]  # clang has this as its default and older ones warn about the option
DEVELOPMENT_BUILD = f"build/inplace.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def extensions() -> list[Extension]:
    """One extension per .pyx below proxy/, named after its path."""
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [path.as_posix()],
            extra_compile_args=COMPILE_FLAGS + (GCC_FLAGS if sys.platform.startswith("linux") else []),
        )
        for path in sorted(Path("proxy").rglob("*.pyx"))
    ]


def missing(compiler: list[str]) -> str:
    """What a build lacks on this machine and how to get it, in one sentence; empty when it lacks nothing."""
    lacking, packages = [], []
    if shutil.which(compiler[0]) is None:
        lacking.append(f"a C compiler ('{compiler[0]}' is not on PATH)")
        packages.append("gcc libc6-dev")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        lacking.append(f"Python's headers (no Python.h in {include})")
        packages.append("python3-dev")
    if not lacking:
        return ""
    return f"building redis-proxy needs {' and '.join(lacking)}: try `apt-get install {' '.join(packages)}`"


class BuildExt(build_ext):
    """build_ext that checks the machine first, translates late and replaces modules in one step."""

    def run(self) -> None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        if lack := missing(compiler):
            raise PlatformError(lack)
        try:
            from Cython.Build import cythonize
        except ImportError:
            raise PlatformError("building redis-proxy needs Cython: try `pip install 'Cython>=3.1'`") from None
        if self.inplace or self.editable_mode:
            self.build_lib = os.path.join(DEVELOPMENT_BUILD, "lib")
            self.build_temp = os.path.join(DEVELOPMENT_BUILD, "temp")
        translated = {module.name: module for module in cythonize(self.extensions, language_level=3)}
        for extension in self.extensions:
            extension.sources = translated[extension.name].sources
            extension.depends = translated[extension.name].depends
        super().run()

    def copy_extensions_to_source(self) -> None:
        """Moves each new module over the old one: a copy in place would change code under a running process."""
        packages = self.get_finalized_command("build_py")
        for extension in self.extensions:
            target, built = self._get_inplace_equivalent(packages, extension)
            if not os.path.exists(target) or os.stat(target).st_mtime_ns != os.stat(built).st_mtime_ns:
                shutil.copy2(built, target + ".new")
                os.replace(target + ".new", target)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
