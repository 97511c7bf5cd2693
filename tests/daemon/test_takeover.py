"""The program is replaced by its successor and nobody who connects meanwhile is turned away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.embedded import HOST, EmbeddedCluster, wait_for
from tests.support.load import Knocks, Load, knock
from tests.support.processes import session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

StartProxy = Callable[..., ProxyDaemon]


@pytest.fixture
def handover(tmp_path: Path) -> str:
    return str(tmp_path / "handover.sock")


@contextlib.contextmanager
def successor(daemon: ProxyDaemon, config: dict[str, object] | None = None) -> Iterator[ProxyDaemon]:
    """Another instance with the same configuration or this one, just started; ended and removed afterwards."""
    other = daemon.successor(config).start()
    try:
        yield other
    except BaseException:
        daemon.show_log()
        other.show_log()
        raise
    finally:
        other.remove()


def started(daemon: ProxyDaemon) -> None:
    wait_for(lambda: "msg=started" in daemon.log or not daemon.alive, 20, f"started: {daemon.log}")
    assert daemon.alive, daemon.log


def test_a_successor_takes_over(small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str) -> None:
    """Twice in a row, by TCP and by Unix socket: nobody is refused, clients of the old one lose nothing."""
    first = start_proxy(small_cluster.seeds, {"handover": handover}, unix=True)
    with (
        Load(first.address, 20, checked=False) as load,
        Knocks([first.address, first.unix_path]) as knocks,
        successor(first) as second,
    ):
        started(second)
        assert first.exit_code("the hand-over") == 0
        assert "Traceback" not in first.log
        assert session_members(first.pid) == []
        wait_for(lambda: not load.alive(), 5, "the old clients have been parted with")
        knocks.advance()
        with second.raw() as raw:
            assert raw.command("PING") == b"+PONG\r\n"
            assert second.worker_of(raw) in second.worker_pids()
        assert second.http("/readyz")[0] == 200
        with successor(second) as third:
            started(third)
            assert second.exit_code("the hand-over") == 0
            assert session_members(second.pid) == []
            knocks.advance()
            assert third.http("/readyz")[0] == 200
            third.reload({"handover": handover, "clients": {"max_clients": 50}})
            knocks.advance()
            knocks.stop()
            third.stop()
            assert not os.path.exists(third.unix_path)
            assert not os.path.exists(handover)
    assert knocks.refused == []
    assert knocks.unanswered == []
    assert [ended for ended in load.ended if not ended.clean] == []
    assert load.executed(small_cluster) == load.answered_by_key()


def test_another_configuration_for_the_successor(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str
) -> None:
    """What it wants is kept, what it does not want is closed, what is new is opened."""
    first = start_proxy(small_cluster.seeds, {"handover": handover}, unix=True)
    path = str(Path(handover).with_name("new.sock"))
    config: dict[str, object] = {
        "handover": handover,
        "listeners": [{}, None, {"address": f"unix:{path}"}],
        "workers": 1,
    }
    with Knocks([first.address]) as knocks, successor(first, config) as second:
        started(second)
        assert first.exit_code("the hand-over") == 0
        assert knock(path) == ""
        assert knock(first.unix_path).startswith("refused")
        assert not os.path.exists(first.unix_path)
        knocks.advance()
        knocks.stop()
        second.stop()
    assert knocks.trouble() == []


def test_a_successor_that_cannot_start(small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str) -> None:
    """A bad file; or it has the sockets, and then a port is in use: the old one goes on, and can be asked again."""
    first = start_proxy(small_cluster.seeds, {"handover": handover})
    with socket.create_server((HOST, 0)) as taken:
        further = {"address": f"{HOST}:{taken.getsockname()[1]}"}
        failures: list[tuple[int, dict[str, object]]] = [
            (78, {"handover": handover, "clients": {"max_clients": 0}}),
            (1, {"handover": handover, "listeners": [{}, further]}),
        ]
        with Load(first.address, 6) as load, Knocks([first.address]) as knocks:
            for code, config in failures:
                with successor(first, config) as second:
                    assert second.exit_code(f"its configuration {config}") == code
                load.advance()
                knocks.advance()
                assert first.http("/readyz")[0] == 200
        assert knocks.trouble() == []
    with successor(first) as third:
        started(third)
        assert first.exit_code("the hand-over") == 0
        third.stop()


def test_a_successor_that_is_killed(small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str) -> None:
    """At any moment before it has started, the old one goes on; after it, there is nobody to go on."""
    first = start_proxy(small_cluster.seeds, {"handover": handover})
    with Load(first.address, 6, checked=False) as load, Knocks([first.address]) as knocks:
        for delay_s in (0.2, 0.4, 0.6):
            with successor(first) as second:
                time.sleep(delay_s)  # any moment will do
                second.terminate(signal.SIGKILL)
            if first.log_contains("taken the listening sockets over", 0.2):
                return
            load.advance()
            knocks.advance()
            assert first.http("/readyz")[0] == 200
    load.check()
    assert knocks.trouble() == []


def test_who_asks_and_leaves_gets_nothing(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str
) -> None:
    first = start_proxy(small_cluster.seeds, {"handover": handover})
    assert os.stat(handover).st_mode & 0o077 == 0
    for words in (b"", b"x", b"nonsense\r\n" * 100):
        with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
            asking.settimeout(10)
            asking.connect(handover)
            asking.sendall(words)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(handover)
        assert knock(first.address) == ""
        with successor(first) as second:
            started(second)
            assert first.exit_code("the hand-over") == 0
            assert knock(second.address) == ""
            second.stop()


def test_a_file_left_behind(small_cluster: EmbeddedCluster, start_proxy: StartProxy, handover: str) -> None:
    """After kill -9 the path leads to nobody: the next one starts as if it were not there."""
    first = ProxyDaemon(small_cluster.seeds, {"handover": handover}, unix=True).start()
    try:
        first.kill()
        assert os.path.exists(handover)
        with successor(first) as second:
            started(second)
            with RawClient(second.unix_path) as raw:
                assert raw.command("PING") == b"+PONG\r\n"
            second.stop()
        assert not os.path.exists(handover)
    finally:
        first.remove()


def test_a_socket_that_systemd_keeps(small_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    """Old one out, new one in, as `systemctl restart` does it: connections made meanwhile wait, and are served."""
    with socket.create_server((HOST, 0), backlog=1000) as tcp, socket.socket(socket.AF_UNIX) as unix:
        path = str(tmp_path / "held.sock")
        unix.bind(path)
        unix.listen(1000)
        config = {"listeners": [{}, {"address": f"unix:{path}"}]}
        first = ProxyDaemon(small_cluster.seeds, config, unix=True, inherited=[tcp, unix]).start()
        second = ProxyDaemon(small_cluster.seeds, config, unix=True, inherited=[tcp, unix], wait="")
        try:
            with Knocks([first.address, path]) as knocks:
                first.stop()
                second.start()
                knocks.advance()
                knocks.stop()
                second.stop()
            assert knocks.refused == []
            assert knocks.unanswered == []
        finally:
            first.remove()
            second.remove()
