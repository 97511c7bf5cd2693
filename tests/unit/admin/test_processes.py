"""Real processes, held against what the kernel tells by other ways; and a made-up /proc for what they will not do."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.admin.processes import Processes

# Says when it has eaten some CPU, then waits for its end.
CHILD = """
import sys, time
spare = [open("/dev/null") for _ in range(20)]
while time.process_time() < {cpu_s}:
    pass
print(flush=True)
sys.stdin.read()
"""


def shown(processes: Processes) -> dict[str, float]:
    return {sample.name: sample.value for family in processes.collect() for sample in family.samples}


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has used 0.2 s and holds 20 descriptors more than others."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(cpu_s=0.2)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def test_all_processes_together(child: subprocess.Popen[bytes]) -> None:
    alone = shown(Processes(lambda: [os.getpid()]))
    both = shown(Processes(lambda: [os.getpid(), child.pid]))
    assert both["process_cpu_seconds_total"] - alone["process_cpu_seconds_total"] >= 0.15
    assert both["process_open_fds"] - alone["process_open_fds"] >= 23
    assert both["process_resident_memory_bytes"] - alone["process_resident_memory_bytes"] > 4 << 20
    assert both["process_virtual_memory_bytes"] - alone["process_virtual_memory_bytes"] > 8 << 20
    assert both["process_start_time_seconds"] == alone["process_start_time_seconds"]


def test_own_figures_are_right() -> None:
    mine = shown(Processes(lambda: [os.getpid()]))
    assert mine["process_cpu_seconds_total"] == pytest.approx(time.process_time(), abs=0.1)
    assert mine["process_open_fds"] == len(os.listdir("/proc/self/fd")) - 1
    assert mine["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert mine["process_resident_memory_bytes"] == pytest.approx(
        int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(), rel=0.1
    )
    age_s = float(Path("/proc/uptime").read_text().split()[0]) - int(
        Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    ) / os.sysconf("SC_CLK_TCK")
    assert time.time() - mine["process_start_time_seconds"] == pytest.approx(age_s, abs=1.5)


def test_cpu_of_a_process_that_ended_is_kept(child: subprocess.Popen[bytes]) -> None:
    pids = [os.getpid(), child.pid]
    processes = Processes(lambda: pids)
    before = shown(processes)
    child.kill()
    child.wait()
    gone = shown(processes)  # nobody has said so yet
    assert gone["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]
    assert gone["process_open_fds"] <= before["process_open_fds"] - 20
    pids.remove(child.pid)
    processes.ended(child.pid, 100.5)
    after = shown(processes)
    assert after["process_cpu_seconds_total"] == pytest.approx(100.5 + time.process_time(), abs=0.1)


def test_zombies_are_no_trouble(child: subprocess.Popen[bytes]) -> None:
    processes = Processes(lambda: [os.getpid(), child.pid])
    before = shown(processes)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert shown(processes)["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]


def test_nobody_to_be_read() -> None:
    assert shown(Processes(lambda: [])) == {"process_cpu_seconds_total": 0.0}


class Proc:
    """A made-up /proc, one second of CPU being 100 ticks or whatever this kernel has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "stat").write_text("cpu 1 2 3\nbtime 1000\n")

    def write(self, pid: int, cpu_s: int, name: str = "redis-proxy") -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        fields = ["S", *(["0"] * 10), str(cpu_s * ticks), "0", *(["0"] * 6), str(7 * ticks), "4096", "3", "0"]
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_fields_of_stat_whatever_the_name(proc: Proc) -> None:
    proc.write(7, 3, name="a) R 1 (b")
    found = shown(Processes(lambda: [7], str(proc.root)))
    assert found["process_cpu_seconds_total"] == 3
    assert found["process_virtual_memory_bytes"] == 4096
    assert found["process_resident_memory_bytes"] == 3 * resource.getpagesize()
    assert found["process_start_time_seconds"] == 1007


def test_ended_takes_the_larger_figure_and_once(proc: Proc) -> None:
    proc.write(7, 3)
    pids = [7]
    processes = Processes(lambda: pids, str(proc.root))
    assert shown(processes)["process_cpu_seconds_total"] == 3
    pids.clear()
    processes.ended(7)
    assert shown(processes)["process_cpu_seconds_total"] == 3
    processes.ended(7)
    assert shown(processes)["process_cpu_seconds_total"] == 3
    processes.ended(8, 2.0)  # came and went between two scrapes
    assert shown(processes)["process_cpu_seconds_total"] == 5


def test_a_number_used_again_counts_on(proc: Proc) -> None:
    proc.write(7, 3)
    pids = [7]
    processes = Processes(lambda: pids, str(proc.root))
    assert shown(processes)["process_cpu_seconds_total"] == 3
    processes.ended(7, 4.0)
    proc.write(7, 1)
    assert shown(processes)["process_cpu_seconds_total"] == 5
    proc.write(7, 0)  # another one again, of which nobody was told
    assert shown(processes)["process_cpu_seconds_total"] == 5
    proc.write(7, 2)
    assert shown(processes)["process_cpu_seconds_total"] == 7


def test_descriptors_are_listed_where_the_kernel_does_not_count_them(proc: Proc) -> None:
    listed = shown(Processes(lambda: [os.getpid()]))["process_open_fds"]
    empty = Path("/proc/self/fdinfo")  # its size is 0, as that of fd was before Linux 6.2
    assert empty.stat().st_size == 0
    proc.write(7, 0)
    folder = proc.root / "7" / "fd"
    folder.rmdir()
    folder.symlink_to(empty)
    assert abs(shown(Processes(lambda: [7], str(proc.root)))["process_open_fds"] - listed) <= 2


def test_half_a_process_is_left_out(proc: Proc) -> None:
    proc.write(7, 3)
    (proc.root / "7" / "fd").rmdir()
    proc.write(8, 2)
    found = shown(Processes(lambda: [7, 8, 9], str(proc.root)))
    assert found["process_cpu_seconds_total"] == 2
    assert found["process_resident_memory_bytes"] == 3 * resource.getpagesize()


def test_a_process_that_ends_while_it_is_read_counts_once(proc: Proc) -> None:
    proc.write(7, 3)
    pids = [7]
    enders: list[threading.Thread] = []

    def end() -> None:
        pids.clear()
        processes.ended(7, 4.0)

    def named() -> list[int]:
        now = list(pids)
        if now:  # the loop hears of its end between this and the reading
            enders.append(threading.Thread(target=end))
            enders[0].start()
        return now

    processes = Processes(named, str(proc.root))
    assert shown(processes)["process_cpu_seconds_total"] == 3
    enders[0].join()
    assert shown(processes)["process_cpu_seconds_total"] == 4
