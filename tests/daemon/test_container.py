"""The daemon as a container runs it: process 1 of its own process namespace, on a root it cannot write to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.embedded import HOST, EmbeddedCluster, die_with_parent, free_port, wait_for
from tests.support.processes import alive, children, command_line
from tests.support.proxyd import COMMAND, ROOT, run_cli
from tests.support.raw import Closed, RawClient

# What `docker run --read-only` does, by hand. In a namespace of its own nobody else notices.
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
READ_ONLY = ["sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh"]


def possible() -> bool:
    """Whether this user may make namespaces, and the root can be made read-only in one."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, *READ_ONLY, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not possible(), reason="may not make namespaces")


@dataclass
class Container:
    """unshare(1), whose only child is process 1 inside."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path

    @property
    def pid(self) -> int:
        """Of process 1, as it is outside."""
        (pid,) = children(self.process.pid)
        return pid

    def workers(self) -> list[int]:
        """Children of process 1, but for those it has inherited."""
        return [pid for pid in children(self.pid) if "worker" in command_line(pid)]

    def serves(self) -> bool:
        """Whether a client is answered from every third of the slots."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            with RawClient((HOST, self.port), timeout_s=5) as raw:
                return not any(raw.command("EXISTS", key).startswith(b"-") for key in ("a", "b", "c"))
        except (OSError, Closed):
            return False

    def healthy(self) -> bool:
        """What the Dockerfile's HEALTHCHECK asks."""
        return run_cli("healthcheck", "--admin", f"{HOST}:{self.admin_port}").returncode == 0

    def zombies(self) -> list[int]:
        """Children of process 1 that it has not waited for."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z" and int(parent) == self.pid:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def container(small_cluster: EmbeddedCluster, tmp_path: Path) -> Iterator[Container]:
    """Serving; ended in the end."""
    port, admin_port, log = free_port(), free_port(), tmp_path / "log"
    file = tmp_path / "proxy.yaml"
    config = {
        "workers": 2,
        "cluster": {"seeds": small_cluster.seeds},
        "listeners": [{"address": f"{HOST}:{port}"}],
        "admin": {"address": f"{HOST}:{admin_port}"},
    }
    file.write_text(json.dumps(config))  # JSON is YAML
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*UNSHARE, *READ_ONLY, *COMMAND, "-c", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            preexec_fn=die_with_parent(),
        )
    started = Container(process, port, admin_port, log)
    try:
        wait_for(started.serves, 20, "the proxy serves")
        yield started
    finally:
        process.kill()  # and with it, by --kill-child, process 1 and so everything in the namespace
        process.wait()


def test_it_serves_and_ends_on_the_signal_of_docker_stop(container: Container) -> None:
    pid = container.pid
    inside = Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()
    assert inside == [str(pid), "1"]
    wait_for(container.healthy, 10, "/livez answers")
    members = [pid, *container.workers()]
    assert len(members) == 3
    os.kill(pid, signal.SIGTERM)
    assert container.process.wait(20) == 0, container.log.read_text()
    assert not any(alive(member) for member in members)
    assert "Traceback" not in container.log.read_text()


def test_orphans_are_waited_for(container: Container) -> None:
    """Process 1 inherits whoever's parent has ended; its own workers are waited for, and replaced, all the same."""
    workers = container.workers()
    assert len(workers) == 2
    inside = ["nsenter", "--target", str(container.pid), "--mount", "--pid"]
    for _ in range(3):  # a shell that leaves a child behind
        subprocess.run([*inside, "sh", "-c", "sleep 0.3 & exit 0"], check=True, stdout=subprocess.DEVNULL)
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: len(container.workers()) == 2, 20, "another worker has been started")
    wait_for(lambda: set(children(container.pid)) == set(container.workers()), 10, "the orphans have ended")
    wait_for(lambda: not container.zombies(), 10, "who ended has been waited for")
    wait_for(container.serves, 20, "the new worker serves")


def test_it_cannot_be_upgraded(container: Container) -> None:
    """Its end would end the container: nothing changes, and it says so."""
    os.kill(container.pid, signal.SIGUSR2)
    wait_for(lambda: "process 1 of a container" in container.log.read_text(), 10, "the log says why not")
    assert container.serves()
    assert container.healthy()
