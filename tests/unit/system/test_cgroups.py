"""proxy.system.cgroups: what mountinfo and cgroup say. How limits are looked for is in test_cpus.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.system.cgroups import Mount, folders, parse_cgroups, parse_mounts
from tests.unit.system.machine import OTHERS, V1, V2, Machine


def test_mounts() -> None:
    text = OTHERS + V1.format(root="/") + V2.format(root="/")
    assert parse_mounts(text, "cpu") == [Mount(1, "/", "/sys/fs/cgroup/cpu,cpuacct"), Mount(2, "/", "/sys/fs/cgroup")]


def test_a_mount_with_blanks_in_its_names() -> None:
    line = r"35 24 0:30 /a\040b /mnt/c\040d\134e rw - cgroup2 none\040at\040all rw"
    assert parse_mounts(line, "cpu") == [Mount(2, "/a b", "/mnt/c d\\e")]


@pytest.mark.parametrize("text", ["", "\n", "35 24 0:30 / /sys", " - cgroup2 cgroup2 rw", "1 2 3 4 5 - cgroup2"])
def test_what_is_no_mount(text: str) -> None:
    assert parse_mounts(text, "cpu") == []


def test_cgroups() -> None:
    assert parse_cgroups("0::/user.slice/a:b\n", "cpu") == {2: "/user.slice/a:b"}
    assert parse_cgroups("9:name=systemd:/x\n4:cpuacct,cpu:/docker/1\n3:cpuset:/y\n0::/z\n", "cpu") == {
        1: "/docker/1",
        2: "/z",
    }
    assert parse_cgroups("", "cpu") == parse_cgroups("nonsense\n\n3:cpuset:/\n", "cpu") == {}


def test_each_controller_has_its_hierarchy(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    memory = "40 31 0:39 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    machine.process(V1.format(root="/") + memory + V2.format(root="/"), "5:memory:/m\n4:cpu,cpuacct:/c\n0::/u\n")
    found = [(version, str(folder.relative_to(tmp_path))) for version, folder in folders("memory", tmp_path)]
    fs = "sys/fs/cgroup"
    assert sorted(found) == [(1, f"{fs}/memory"), (1, f"{fs}/memory/m"), (2, fs), (2, f"{fs}/u")]
