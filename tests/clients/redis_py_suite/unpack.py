"""Unpacks the tests out of redis-py's source distribution on PyPI, in the installed version, into the given folder."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

folder = Path(sys.argv[1])
name = f"redis-{version('redis')}"
if not (folder / name / "tests").exists():
    with tempfile.TemporaryDirectory() as place:
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", place]
        command = [sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")]
        subprocess.run(command, check=True)
        with tarfile.open(next(Path(place).glob("*.tar.gz"))) as archive:
            wanted = [
                each for each in archive.getmembers() if each.name.startswith((f"{name}/tests/", f"{name}/pyproj"))
            ]
            archive.extractall(folder, wanted, filter="data")
