"""proxy.system.cpus: what the files of a made-up machine grant, and what this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.system.cpus import granted, parse_max, quota
from tests.unit.system.machine import V1, V2, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("299999 100000\n", 2),
        ("50000 100000\n", 0),
        ("max 100000\n", None),
        ("", None),
        ("200000", None),
        ("200000 0\n", None),
        ("-1 100000\n", None),
        ("1 2 3\n", None),
    ],
)
def test_cpu_max(text: str, cpus: int | None) -> None:
    assert parse_max(text) == cpus


# v2


def test_a_service(machine: Machine) -> None:
    machine.process(V2.format(root="/"), "0::/system.slice/redis-proxy.service\n")
    machine.v2("system.slice/redis-proxy.service", "300000 100000\n").v2("system.slice", "max 100000\n")
    assert quota(machine.root) == 3


@pytest.mark.parametrize("least", ["", "kubepods.slice", "kubepods.slice/pod1", "kubepods.slice/pod1/container"])
def test_the_least_quota_around_it(machine: Machine, least: str) -> None:
    machine.process(V2.format(root="/"), "0::/kubepods.slice/pod1/container\n")
    for folder in ("", "kubepods.slice", "kubepods.slice/pod1", "kubepods.slice/pod1/container"):
        machine.v2(folder, "200000 100000\n" if folder == least else "400000 100000\n")
    assert quota(machine.root) == 2


def test_its_neighbours_do_not_count(machine: Machine) -> None:
    machine.process(V2.format(root="/"), "0::/a/b\n")
    machine.v2("a/b/inside", "100000 100000\n").v2("a/c", "100000 100000\n").v2("b", "100000 100000\n")
    assert quota(machine.root) is None


def test_a_container_with_a_namespace_of_its_own(machine: Machine) -> None:
    machine.process(V2.format(root="/"), "0::/\n").v2("", "150000 100000\n")
    assert quota(machine.root) == 1


def test_a_container_that_sees_the_hosts_path(machine: Machine) -> None:
    machine.process(V2.format(root="/docker/1"), "0::/docker/1\n").v2("", "200000 100000\n")
    assert quota(machine.root) == 2


def test_a_cgroup_inside_such_a_container(machine: Machine) -> None:
    machine.process(V2.format(root="/docker/1"), "0::/docker/1/inner\n")
    machine.v2("", "400000 100000\n").v2("inner", "300000 100000\n")
    assert quota(machine.root) == 3


@pytest.mark.parametrize(
    ("root", "path"), [("/../..", "/"), ("/docker/1", "/"), ("/docker/1", "/docker/12"), ("/", "/../other")]
)
def test_a_path_that_is_not_below_the_mount(machine: Machine, root: str, path: str) -> None:
    """What is mounted is taken for its own."""
    machine.process(V2.format(root=root), f"0::{path}\n").v2("", "200000 100000\n")
    machine.write("sys/fs/other/cpu.max", "100000 100000\n")
    assert quota(machine.root) == 2


def test_a_mount_that_shows_it_comes_before_one_that_does_not(machine: Machine) -> None:
    neighbour = "36 24 0:30 /docker/2 /mnt/other rw - cgroup2 cgroup2 rw\n"
    machine.process(neighbour + V2.format(root="/docker/1"), "0::/docker/1\n")
    machine.write("mnt/other/cpu.max", "100000 100000\n").v2("", "300000 100000\n")
    assert quota(machine.root) == 3


def test_a_folder_that_is_gone(machine: Machine) -> None:
    machine.process(V2.format(root="/"), "0::/a/b (deleted)\n").v2("a", "200000 100000\n")
    assert quota(machine.root) == 2


# v1


def test_v1(machine: Machine) -> None:
    machine.process(V1.format(root="/"), "4:cpu,cpuacct:/a/b\n3:cpuset:/c\n1:name=systemd:/d\n")
    machine.v1("a/b", -1).v1("a", 250_000).v1("", -1).v1("c", 100_000)
    assert quota(machine.root) == 2


def test_v1_periods(machine: Machine) -> None:
    machine.process(V1.format(root="/"), "4:cpu,cpuacct:/a\n").v1("a", 60_000, 20_000)
    assert quota(machine.root) == 3


def test_v1_in_a_container(machine: Machine) -> None:
    machine.process(V1.format(root="/docker/1"), "4:cpu,cpuacct:/docker/1\n").v1("", 200_000)
    assert quota(machine.root) == 2


def test_v1_and_v2_together(machine: Machine) -> None:
    unified = "39 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    machine.process(V1.format(root="/") + unified, "4:cpu,cpuacct:/a\n0::/b\n").v1("a", 300_000)
    assert quota(machine.root) == 3
    machine.v2("unified/b", "200000 100000\n")
    assert quota(machine.root) == 2


# What is granted


def test_nothing_is_known(machine: Machine) -> None:
    assert quota(machine.root) is None
    assert granted(machine.root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["\x00\xff", "0::\n", "4:cpu:relative\n"])
def test_what_makes_no_sense_is_passed_over(machine: Machine, text: str) -> None:
    machine.process(V2.format(root="/") + V1.format(root="relative").replace(" /sys", " sys"), text)
    assert quota(machine.root) is None


@pytest.mark.parametrize(("text", "cpus"), [("100000 100000", 1), ("1000 100000", 1), ("900000000 100000", None)])
def test_at_least_one_and_at_most_the_affinity(machine: Machine, text: str, cpus: int | None) -> None:
    machine.process(V2.format(root="/"), "0::/\n").v2("", text)
    assert granted(machine.root) == (cpus or len(os.sched_getaffinity(0)))


def test_this_machine() -> None:
    assert 1 <= granted() <= len(os.sched_getaffinity(0))


def test_affinity() -> None:
    """A process that is bound to one CPU, as by taskset or a cpuset."""
    code = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); from proxy.system.cpus import *;"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print(granted())"], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
