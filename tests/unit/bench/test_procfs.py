from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import procfs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: sum(range(100_000))\n"
SPAWN = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin)\n"
GROW = "block = bytearray(b'x' * (32 << 20))\nprint('grown', flush=True)\ninput()\ndel block\n"
WAIT = "print('ready', flush=True)\ninput()\nprint('done', flush=True)\ninput()\n"


@contextmanager
def script(source: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_cpu_time_is_what_the_process_burnt():
    with script(f"print('ready', flush=True)\ninput()\n{BURN}print('burnt', flush=True)\ninput()") as process:
        assert line(process) == "ready"
        before = procfs.cpu_time([process.pid])
        go(process)
        assert line(process) == "burnt"
        spent = procfs.cpu_time([process.pid]).since(before)
    assert 0.19e9 < spent.total_ns < 0.4e9
    assert spent.user_ns + spent.system_ns == pytest.approx(spent.total_ns)
    assert spent.user_ns > spent.system_ns


def test_the_split_into_user_and_system_follows_the_ticks():
    spent = procfs.CpuTime(1_000, 3, 1)
    assert (spent.user_ns, spent.system_ns) == (750, 250)
    assert procfs.CpuTime(1_000, 0, 0).system_ns == 1_000


def test_a_family_is_the_process_and_its_descendants():
    with script(SPAWN + "print(child.pid, flush=True)\nchild.wait()") as process:
        child = int(line(process))
        assert procfs.family(process.pid) == [process.pid, child]
        assert procfs.started_at(child) >= procfs.started_at(process.pid) > 0
        go(process)
        process.wait(10)


def test_the_peak_is_counted_from_the_last_reset():
    with script(f"{GROW}{WAIT}") as process:
        assert line(process) == "grown"
        grown = procfs.rss_bytes([process.pid])
        go(process)
        assert line(process) == "ready"
        assert procfs.peak_rss_bytes([process.pid]) >= grown
        procfs.reset_peak([process.pid])
        assert procfs.peak_rss_bytes([process.pid]) < grown - (16 << 20)


def test_a_process_that_is_gone_is_an_error_not_a_zero():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(OSError, match=str(process.pid)):
        procfs.cpu_time([process.pid])
    assert procfs.started_at(process.pid) == 0


def test_the_machine_is_at_least_as_busy_as_this_process():
    assert procfs.machine_busy_ns() > 0
    assert procfs.cpu_time([os.getpid()]).total_ns > 0
