"""How many CPUs this process may really use, for `workers: auto`.

Why: the machine's count is not what a container or a service is given; workers beyond that only take turns, and a
quota that is used up stops all of them at once. Called by the supervisor, before the start and at a reload.

Invariants: never fails and never less than 1; what cannot be read grants what the rest grants. Linux's cgroups, v1, v2
and both together (cgroups(7)); a quota counts wherever it is set between the process's own cgroup and the mount.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Version = int  # 1 or 2

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy with the cpu controller: which of its cgroups is to be seen where."""

    version: Version
    root: str
    point: str


def granted(root: Path = Path("/")) -> int:
    """Whole CPUs, rounded down, at least 1: the affinity's, or what the cgroup's quota is worth when that is less.

    root: where proc/self and the mount points are.
    """
    cpus = len(os.sched_getaffinity(0))
    limit = quota(root)
    return max(1, cpus if limit is None else min(cpus, limit))


def quota(root: Path = Path("/")) -> int | None:
    """Whole CPUs that the least quota is worth, 0 for less than one; None where none is set."""
    mounts = parse_mounts(_text(root / "proc/self/mountinfo"))
    cgroups = parse_cgroups(_text(root / "proc/self/cgroup"))
    limits = []
    for version, cgroup in cgroups.items():
        for folder in _folders([mount for mount in mounts if mount.version == version], cgroup):
            limit = _limit(version, root / str(folder).lstrip("/"))
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup hierarchies of /proc/self/mountinfo that can have CPU quotas, proc_pid_mountinfo(5)."""
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 5 or len(after) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(after[0])
        if version == 2 or (version == 1 and "cpu" in after[2].split(",")):
            mounts.append(Mount(version, _unescaped(before[3]), _unescaped(before[4])))
    return mounts


def parse_cgroups(text: str) -> dict[Version, str]:
    """The process's cgroup in each hierarchy that can have CPU quotas, of /proc/self/cgroup, cgroups(7)."""
    cgroups = {}
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            cgroups[2] = path
        elif "cpu" in controllers.split(","):
            cgroups[1] = path
    return cgroups


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
        return parse_max(_text(folder / "cpu.max"))
    return _worth(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _folders(mounts: list[Mount], cgroup: str) -> Iterator[PurePosixPath]:
    """The folders of a cgroup and of those around it, as far as they are to be seen.

    A container may be told its path on the host, or, with a namespace of its own, one that has nothing to do with the
    mount's root; what is mounted is then taken to be its own cgroup.
    """
    below = False
    for mount in mounts:
        with contextlib.suppress(ValueError):
            inner = PurePosixPath(cgroup).relative_to(mount.root)
            if ".." not in inner.parts:
                folder = PurePosixPath(mount.point) / inner
                yield from (folder, *(one for one in folder.parents if one.is_relative_to(mount.point)))
                below = True
    if not below:
        yield from (PurePosixPath(mount.point) for mount in mounts)


def _unescaped(path: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), path)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
