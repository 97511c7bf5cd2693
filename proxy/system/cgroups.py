"""Which folders of Linux's cgroup hierarchies limit this process, for cpus and limits (memory).

Why: what a container or a service is granted stands there, and not in what the machine has. v1, v2 and both together
(cgroups(7)); a limit counts wherever it is set between the process's own cgroup and the mount.

Invariant: never fails; what cannot be read limits nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Version = int  # 1 or 2

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy that has the controller: which of its cgroups is to be seen where."""

    version: Version
    root: str
    point: str


def folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Version, Path]]:
    """The folders whose files may limit this process; controller: as v1 calls it, `cpu` or `memory`.

    root: where proc/self and the mount points are.
    """
    mounts = parse_mounts(text(root / "proc/self/mountinfo"), controller)
    for version, cgroup in parse_cgroups(text(root / "proc/self/cgroup"), controller).items():
        for folder in _visible([mount for mount in mounts if mount.version == version], cgroup):
            yield version, root / str(folder).lstrip("/")


def parse_mounts(mountinfo: str, controller: str) -> list[Mount]:
    """The hierarchies of /proc/self/mountinfo that can have limits of this controller, proc_pid_mountinfo(5)."""
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 5 or len(after) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(after[0])
        if version == 2 or (version == 1 and controller in after[2].split(",")):
            mounts.append(Mount(version, _unescaped(before[3]), _unescaped(before[4])))
    return mounts


def parse_cgroups(text: str, controller: str) -> dict[Version, str]:
    """The process's cgroup in each hierarchy that can have such limits, of /proc/self/cgroup, cgroups(7)."""
    cgroups = {}
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            cgroups[2] = path
        elif controller in controllers.split(","):
            cgroups[1] = path
    return cgroups


def text(path: Path) -> str:
    """What is in the file; empty when it cannot be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _visible(mounts: list[Mount], cgroup: str) -> Iterator[PurePosixPath]:
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
