"""How many CPUs this process may really use, for `workers: auto`.

Why: the machine's count is not what a container or a service is given; workers beyond that only take turns, and a
quota that is used up stops all of them at once. Called by the supervisor, before the start and at a reload.

Invariant: never fails and never less than 1; what cannot be read grants what the rest grants.
"""

from __future__ import annotations

import os
from pathlib import Path

from proxy.system.cgroups import Version, folders, text


def granted(root: Path = Path("/")) -> int:
    """Whole CPUs, rounded down, at least 1: the affinity's, or what the cgroup's quota is worth when that is less.

    root: where proc/self and the mount points are.
    """
    cpus = len(os.sched_getaffinity(0))
    limit = quota(root)
    return max(1, cpus if limit is None else min(cpus, limit))


def quota(root: Path = Path("/")) -> int | None:
    """Whole CPUs that the least quota is worth, 0 for less than one; None where none is set."""
    limits = (_limit(version, folder) for version, folder in folders("cpu", root))
    return min((limit for limit in limits if limit is not None), default=None)


def parse_max(text: str) -> int | None:
    """Whole CPUs of v2's cpu.max: `QUOTA PERIOD`; None for `max` or what is no such line."""
    words = text.split()
    return _worth(*words) if len(words) == 2 else None


def _worth(quota_us: str, period_us: str) -> int | None:
    # v1 says -1 for none.
    if quota_us.isdecimal() and period_us.isdecimal() and int(period_us):
        return int(quota_us) // int(period_us)
    return None


def _limit(version: Version, folder: Path) -> int | None:
    if version == 2:
        return parse_max(text(folder / "cpu.max"))
    return _worth(text(folder / "cpu.cfs_quota_us").strip(), text(folder / "cpu.cfs_period_us").strip())
