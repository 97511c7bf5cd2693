from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bench import procfs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: sum(range(100_000))\n"
SPAWN = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin)\n"
# A supervisor, below it a fork server with two workers; says their ids, waits; the fork server waits for its workers.
TREE = """
import os, sys, time
supervisor = os.getpid()
if (server := os.fork()) == 0:
    workers = []
    for _ in range(2):
        if (worker := os.fork()) == 0:
            time.sleep(30)
            os._exit(0)
        workers.append(worker)
    print(supervisor, os.getpid(), *workers, flush=True)
    while workers:
        workers.remove(os.wait()[0])
        print('waited', flush=True)
    os._exit(0)
input()
os.kill(server, 9)
os.wait()
print('alone', flush=True)
input()
"""
GROW = "block = bytearray(b'x' * (32 << 20))\nprint('grown', flush=True)\ninput()\ndel block\n"
WAIT = "print('ready', flush=True)\ninput()\nprint('done', flush=True)\ninput()\n"


@contextmanager
def script(source: str, session: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Runs it; in the end it is killed, with its session when it has one of its own."""
    command = [sys.executable, "-c", source]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=session
    ) as process:
        try:
            yield process
        finally:
            for pid in reversed(procfs.family(process.pid)) if session else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
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


def test_roles_go_by_the_place_in_the_family():
    with script(TREE, session=True) as process:
        supervisor, server, *workers = (int(word) for word in line(process).split())
        named = [("supervisor", supervisor), ("fork server", server)]
        assert procfs.roles(supervisor) == named + [(f"worker {n}", pid) for n, pid in enumerate(workers)]
        assert procfs.roles(workers[0]) == [("process", workers[0])]


def test_workers_whose_fork_server_died_still_belong_to_the_session():
    with script(TREE, session=True) as process:
        supervisor, server, *workers = (int(word) for word in line(process).split())
        assert set(procfs.family(supervisor)) == {supervisor, server, *workers}
        go(process)
        assert line(process) == "alone"
        assert set(procfs.family(supervisor)) == {supervisor, *workers}
        assert [role for role, _ in procfs.roles(supervisor)] == ["supervisor", "worker 0", "worker 1"]


def test_a_worker_that_ended_is_still_counted():
    source = f"""
import os
if (child := os.fork()) == 0:
    exec({BURN!r})
    os._exit(0)
print('forked', flush=True)
input()
os.wait()
print('waited', flush=True)
input()
"""
    with script(source) as process:
        assert line(process) == "forked"
        before = procfs.cpu_time(procfs.family(process.pid))
        go(process)
        assert line(process) == "waited"
        assert procfs.family(process.pid) == [process.pid]
        spent = procfs.cpu_time(procfs.family(process.pid)).since(before)
        whole = procfs.cpu_time([process.pid])
    assert whole.total_ns > 0.17e9  # 0.2 s less two ticks
    assert -2 * procfs.TICK_NS < spent.total_ns < 0.4e9


def test_what_has_ended_and_was_not_waited_for_is_no_member():
    source = "import os\nif os.fork() == 0: os._exit(0)\nos.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)\n"
    with script(f"{source}{WAIT}") as process:
        assert line(process) == "ready"
        assert procfs.family(process.pid) == [process.pid]


def test_descriptors_and_threads():
    more = "import threading\nfiles = [open('/dev/null') for _ in range(5)]\n"
    more += "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    with script(WAIT.replace("print('done', flush=True)", f"exec({more!r})\nprint('done', flush=True)")) as process:
        assert line(process) == "ready"
        descriptors, threads = procfs.descriptors(process.pid), procfs.threads(process.pid)
        assert threads == 1
        go(process)
        assert line(process) == "done"
        assert procfs.descriptors(process.pid) == descriptors + 5
        assert procfs.threads(process.pid) == 4


def test_shared_pages_count_once_in_pss():
    source = "import os\nblock = bytearray(b'x' * (32 << 20))\nparent = os.getpid()\nchild = os.fork()\n"
    source += "if child == 0:\n    import time\n    while os.getppid() == parent: time.sleep(0.01)\n    os._exit(0)\n"
    with script(f"{source}print(child, flush=True)\ninput()") as process:
        child = int(line(process))
        (rss, pss), (child_rss, child_pss) = (procfs.rss_and_pss_bytes(pid) for pid in (process.pid, child))
    block = 32 << 20
    assert rss > block
    assert child_rss > block
    assert block < pss + child_pss < rss + child_rss - block * 3 // 4
    assert 0 < pss < rss


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
