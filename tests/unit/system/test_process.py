"""proxy.system.process, with real processes: titles, the end with the parent, the time of the start."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.system.process import is_predecessor, runs, start_ticks

TITLED = """
from proxy.system.process import set_title
set_title("redis-proxy: worker 7")
print(flush=True)
input()
"""
# A parent that starts a child and tells its pid; the child says when it is armed.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
input()
"""
CHILD = """
import os, time
from proxy.system.process import die_with_parent
die_with_parent(os.getppid())
print("armed", flush=True)
time.sleep(60)
"""
ORPHAN = """
from proxy.system.process import die_with_parent
try:
    die_with_parent(2**22 + 1)  # nobody's
except ProcessLookupError as error:
    print(error)
"""


def run(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_title_is_what_ps_shows() -> None:
    with run(TITLED) as process:
        assert process.stdout is not None
        process.stdout.readline()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().strip(b"\0")
        process.communicate("\n")
    assert shown == b"redis-proxy: worker 7"


def test_a_child_ends_with_its_parent() -> None:
    with run(PARENT, CHILD) as parent:
        assert parent.stdout is not None
        pid, armed = parent.stdout.readline().split()
        assert armed == "armed"
        child = os.pidfd_open(int(pid))
        try:
            parent.kill()
            parent.wait()
            waiting = select.poll()
            waiting.register(child)
            assert waiting.poll(10_000), "the child lives on"
        finally:
            os.close(child)


def test_a_parent_that_has_gone_already_is_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == (f"the process that started this one, {2**22 + 1}, has ended\n", "")


def test_the_start_of_a_process() -> None:
    """Also of one whose name has blanks and parentheses."""
    per_second = os.sysconf("SC_CLK_TCK")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    code = "open('/proc/self/comm', 'w').write('a) 1 (b'); print(flush=True); input()"
    with run(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        assert Path(f"/proc/{process.pid}/comm").read_text() == "a) 1 (b\n"
        ticks = start_ticks(process.pid)
        assert runs(process.pid, ticks)
        assert not runs(process.pid, ticks - 1)  # another one, that had its number before
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_ticks(process.pid) == ticks
        assert not runs(process.pid, ticks)  # ended, though nobody has waited for it
        process.wait()
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before - 0.1 <= ticks / per_second <= after
    assert start_ticks(os.getpid()) < ticks
    with pytest.raises(ProcessLookupError, match=f"there is no process {process.pid}"):
        start_ticks(process.pid)
    assert not runs(process.pid, ticks)


JUDGED = """
import sys
from proxy.system.process import is_predecessor
print(*(is_predecessor(written) for written in sys.argv[1:]), flush=True)
"""
GRANDPARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)
"""


def test_a_predecessor_that_has_ended() -> None:
    """Killed while its successor started, nobody having waited for it yet, say; its number may be another's since."""
    with run("pass") as ended, run("input()") as later:
        try:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
            done = run(JUDGED, str(ended.pid), str(2**22 + 1), str(os.getpid()), "x", "").communicate(timeout=30)
            assert done == ("True True True False False\n", "")
            assert is_predecessor(str(later.pid))  # it started after this one
        finally:
            later.communicate("\n")
    done = run(GRANDPARENT, JUDGED, str(os.getpid())).communicate(timeout=30)
    assert done == ("False\n", "")  # it runs, and has not started that one


def modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_what_a_worker_imports_of_this_package_is_light() -> None:
    """Beyond logging and what there is anyway; each of these would cost a worker memory."""
    more = modules("proxy.system.log, proxy.system.process, proxy.system.address") - modules("logging, setproctitle")
    assert "proxy.system.log" in more
    assert not {"asyncio", "ctypes", "ipaddress", "logging.handlers", "pathlib", "pickle", "urllib"} & more
