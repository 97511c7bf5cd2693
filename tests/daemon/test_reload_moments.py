"""SIGHUP at odd moments: while it starts, drains or reads, and by two at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from proxy.embedded import HOST, EmbeddedCluster, wait_for
from tests.support.load import knock
from tests.support.processes import children
from tests.support.proxyd import COMMAND, ROOT, ProxyDaemon

StartProxy = Callable[..., ProxyDaemon]


def test_while_draining(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, {"drain": {"delay": "60s"}})
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: daemon.http("/readyz")[0] == 503, 5, "draining")
        daemon.configure({"clients": {"max_clients": 0}})
        daemon.signal(signal.SIGHUP)
        assert daemon.log_contains("not reloaded.*draining")
        assert raw.command("PING") == b"+PONG\r\n"
        assert daemon.terminate() == 0  # the second signal


def test_a_file_that_never_answers(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A pipe that nobody writes to, as a disk on a dead network: the proxy serves on, and ends when it is told to."""
    daemon = start_proxy(small_cluster.seeds)
    more = daemon.folder / "more.yaml"
    os.mkfifo(more)
    daemon.configure({"include": [str(more)]})
    daemon.signal(signal.SIGHUP)
    with being_read(more), daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        began_s = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began_s < 5


@contextlib.contextmanager
def being_read(pipe: Path) -> Iterator[int]:
    """Waits until somebody reads the pipe: its other end, which is closed afterwards."""

    def opened() -> int | None:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads it
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        return None

    descriptor = int(wait_for(opened, 10, "it is being read"))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_whose_reload_it_was(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """`redis-proxy reload` during somebody else's reload waits for its own."""
    daemon = start_proxy(small_cluster.seeds)
    more = daemon.folder / "more.yaml"
    os.mkfifo(more)
    daemon.configure({"include": [str(more)]})
    daemon.signal(signal.SIGHUP)

    def requests() -> int:
        return int(json.loads(daemon.http("/api/state")[1])["reload"]["requests"])

    command = [*COMMAND, "reload", "--admin", f"{HOST}:{daemon.admin_port}"]
    with being_read(more) as pipe:
        daemon.configure({"nonsense": 1})
        mine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        wait_for(lambda: requests() == 2, 20, "it has sent its signal")
        assert mine.poll() is None
        os.write(pipe, b"{}\n")
    told, _ = mine.communicate(timeout=20)
    assert mine.returncode == 1
    assert "nonsense" in told


def test_while_starting(small_cluster: EmbeddedCluster) -> None:
    """It starts all the same, however early the signal comes."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        daemon = ProxyDaemon(small_cluster.seeds, wait="").start()
        try:
            wait_for(partial(children, daemon.pid), 10, "a worker is there: the command runs")
            while "msg=started" not in daemon.log and daemon.alive:
                daemon.signal(number)
                time.sleep(0.02)  # any moment will do
            assert daemon.alive, daemon.log
            assert knock(daemon.address) == ""
            daemon.stop()
        finally:
            daemon.remove()
