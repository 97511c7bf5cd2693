"""proxy.system.limits: in processes that may spoil their own limits; memory on made-up machines."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.embedded import die_with_parent
from proxy.system.limits import OTHER, clients_allowed, granted_memory, leases_allowed, lowered, share_limit
from tests.unit.system.machine import V2, Machine

LIMITS = """
import resource, sys
from proxy.system import log
from proxy.system import limits as descriptors
soft, hard, max_clients = map(int, sys.argv[1:])
log.setup("info", "logfmt")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(descriptors.raise_limit(max_clients), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "clients", "raised", "missing"),
    [
        (64, 1024 + OTHER, 128, 128 + OTHER, 0),
        (512 + OTHER, 1024 + OTHER, 64, 512 + OTHER, 0),
        (64, 256 + OTHER, 256, 256 + OTHER, 0),
        (64, 256 + OTHER, 300, 256 + OTHER, 44),
    ],
)
def test_raised_as_far_as_it_may(soft: int, hard: int, clients: int, raised: int, missing: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(soft), str(hard), str(clients)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(raised), str(raised), str(hard)]
    if missing:
        assert f"limit={raised} wanted={clients + OTHER} missing={missing}\n" in done.stderr
        assert "level=warning" in done.stderr
    else:
        assert done.stderr == ""


def test_shared_with_other_processes() -> None:
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (50, {mine[1]})); print(); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent()
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        share_limit([child.pid, 2**22 + 1])  # the second is nobody's: a warning, no more
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == mine
        child.communicate()


# Clients


@pytest.mark.parametrize(
    ("max_clients", "workers", "limit", "allowed", "each"),
    [
        (10000, 1, 200, 136, 136),
        (10000, 2, 200, 272, 136),
        (10000, 4, 1024, 3072, 768),
        (10000, 1, 10512, 10000, 10000),
        (10000, 1, 4096, 3584, 3584),
        (100, 1, 200, 100, 136),
        (10000, 2, 50, 2, 1),
        (10000, 2, -1, 10000, 10000),
    ],
)
def test_clients_that_the_limit_allows(max_clients: int, workers: int, limit: int, allowed: int, each: int) -> None:
    assert clients_allowed(max_clients, workers, limit) == (allowed, each)
    assert bool(lowered(max_clients, workers, limit)) == (allowed < max_clients)


def test_what_is_said_of_it() -> None:
    assert lowered(10000, 1, 200) == (
        "max_clients lowered from 10000 to 136: the limit of open files is 200 and the worker keeps 64 for other than"
        " clients; all clients need 10512 (ulimit -n, LimitNOFILE= of systemd)"
    )
    said = lowered(10001, 2, 200)
    assert "to 272: the limit of open files is 200 and each of 2 workers keeps 64" in said
    assert "need 5513 " in said
    assert lowered(10001, 2, 5513) == ""


# Core dumps


CRASH = """
import os, sys
from proxy.system.limits import forbid_core_dumps
import resource
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
if sys.argv[1] == "forbidden":
    forbid_core_dumps()
assert resource.getrlimit(resource.RLIMIT_CORE)[1] == hard
if os.fork() == 0:
    os.abort()
print(os.WCOREDUMP(os.wait()[1]))
"""


def test_no_core_dumps(tmp_path: Path) -> None:
    """Of children neither."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 or Path("/proc/sys/kernel/core_pattern").read_text()[0] in "|/":
        pytest.skip("no core files in the current folder here")

    def crash(how: str) -> str:
        command = [sys.executable, "-c", CRASH, how]
        return subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert crash("allowed") == "True\n"
    (core,) = tmp_path.iterdir()
    core.unlink()
    assert crash("forbidden") == "False\n"
    assert list(tmp_path.iterdir()) == []


# Memory


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    return made.write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:            1 kB\n")


PHYSICAL = 16 << 20
MEMORY_V1 = "40 31 0:39 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def test_memory_without_cgroups(machine: Machine) -> None:
    assert granted_memory(machine.root) == PHYSICAL


@pytest.mark.parametrize("folder", ["", "a", "a/b"])
def test_the_least_limit_of_v2(machine: Machine, folder: str) -> None:
    machine.process(V2.format(root="/"), "0::/a/b\n")
    for one in ("", "a", "a/b"):
        machine.write(f"sys/fs/cgroup/{one}/memory.max", "8388608\n" if one == folder else "max\n")
    machine.write("sys/fs/cgroup/a/c/memory.max", "1\n")
    assert granted_memory(machine.root) == 8 << 20


def test_a_limit_of_v1(machine: Machine) -> None:
    machine.process(MEMORY_V1.format(root="/docker/1"), "5:memory:/docker/1\n4:cpu,cpuacct:/c\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4194304\n")
    assert granted_memory(machine.root) == 4 << 20


def test_no_limit_of_v1_is_a_large_number(machine: Machine) -> None:
    machine.process(MEMORY_V1.format(root="/"), "5:memory:/a\n")
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n")
    assert granted_memory(machine.root) == PHYSICAL


@pytest.mark.parametrize("written", ["", "-1\n", "lots\n", "\x00"])
def test_a_limit_that_makes_no_sense(machine: Machine, written: str) -> None:
    machine.process(V2.format(root="/"), "0::/\n").write("sys/fs/cgroup/memory.max", written)
    assert granted_memory(machine.root) == PHYSICAL


def test_nothing_can_be_read(tmp_path: Path) -> None:
    assert granted_memory(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < granted_memory() <= granted_memory(tmp_path)


@pytest.mark.parametrize(
    ("clients", "soft", "allowed"),
    [
        (0, 10512, 2628),
        (8000, 10512, 2000),
        (10000, 10512, 128),
        (0, 200, 50),
        (105, 200, 31),
        (136, 200, 16),
        (0, 10, 16),
        (10000, resource.RLIM_INFINITY, 2**32 - 1),
    ],
)
def test_connections_for_single_clients(clients: int, soft: int, allowed: int) -> None:
    assert leases_allowed(clients, soft) == allowed
