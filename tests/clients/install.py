"""Has what a program needs: npm and PyPI packages in the cache folder, Debian's packages where that is allowed.

Why: the repository carries none of it, and the project's own .venv must not depend on any of it.
Called by: run.py.

Invariant: an installation that was broken off is done again (a stamp is made last), and one with the same packages is
shared by the programs that want exactly those.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INSTALL_S = 900.0
BUILD_S = 300.0


class NotInstalled(Exception):
    """args[0]: what is missing, in a few words for the table."""


@dataclass
class Installed:
    """env: what the program's environment gets; words: what {python}, {build} in its commands stand for."""

    env: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def install(folder: Path, meta: dict[str, Any], cache: Path, *, apt: bool) -> Installed:
    """Everything meta asks for; raises NotInstalled."""
    library = folder.parent / "lib"
    done = Installed({"PYTHONPATH": str(library), "NODE_PATH": str(library)}, {"python": sys.executable})
    if packages := meta.get("apt"):
        _debian(packages, apt)
    if packages := meta.get("npm"):
        done.env["NODE_PATH"] += os.pathsep + str(_npm(packages, cache) / "node_modules")
    if packages := meta.get("pip"):
        done.words["python"] = str(_pip(packages, cache) / "bin" / "python")
    done.words["build"] = str(cache / "build" / folder.name)
    Path(done.words["build"]).mkdir(parents=True, exist_ok=True)
    for command in meta.get("build", []):
        words = [word.format(**done.words) for word in command]
        _run(words, f"builds: {words[0]}", cwd=folder, env=done.env | meta.get("env", {}), timeout_s=BUILD_S)
    return done


def _debian(packages: list[str], allowed: bool) -> None:
    missing = [package for package in packages if not _has_debian(package)]
    if not missing:
        return
    wanted = f"needs Debian's {', '.join(missing)}"
    if not (allowed and os.geteuid() == 0 and shutil.which("apt-get")):
        raise NotInstalled(wanted)
    environment = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # RUNLEVEL: no service is started
    _run(["apt-get", "update", "-qq"], wanted, env=environment)
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], wanted, env=environment)


def _has_debian(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    command = ["dpkg-query", "-W", "-f=${Status}", package]
    return subprocess.run(command, capture_output=True, text=True).stdout.endswith(" installed")


def _npm(packages: list[str], cache: Path) -> Path:
    if shutil.which("npm") is None:
        raise NotInstalled("needs npm")
    place = _place(cache, "npm", packages)
    if not (place / ".done").exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text('{"private": true}')
        options = ["--no-audit", "--no-fund", "--loglevel=error", "--cache", str(cache / "npm-cache")]
        _run(["npm", "install", *options, *packages], f"needs npm's {', '.join(packages)}", cwd=place)
        (place / ".done").touch()
    return place


def _pip(packages: list[str], cache: Path) -> Path:
    place = _place(cache, "pip", packages)
    if not (place / ".done").exists():
        wanted = f"needs PyPI's {', '.join(packages)}"
        # Not this interpreter's own name: in a virtual environment that would be its python, and so its packages.
        _run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--clear", str(place)], wanted)
        pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "--cache-dir", str(cache / "pip-cache"), "install", *packages], wanted)
        (place / ".done").touch()
    return place


def _place(cache: Path, kind: str, packages: list[str]) -> Path:
    digest = hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()[:12]
    return cache / kind / digest


def _run(
    command: list[str],
    wanted: str,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout_s: float = INSTALL_S,
) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{wanted} ({error})") from error
    if done.returncode != 0:
        print(done.stdout[-3000:], file=sys.stderr)
        raise NotInstalled(f"{wanted} ({command[0]} ends with {done.returncode})")
