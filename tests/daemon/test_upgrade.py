"""The program is replaced by its successor and nobody who connects meanwhile is turned away."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.embedded import HOST, EmbeddedCluster, free_port, wait_for
from tests.support.load import Knocks, Load, knock
from tests.support.processes import alive, children, descriptors
from tests.support.proxyd import COMMAND, ROOT, ProxyDaemon, occupied_port, run_cli
from tests.support.raw import encode

StartProxy = Callable[..., ProxyDaemon]


def state(daemon: ProxyDaemon) -> dict[str, object]:
    """What it says of its last upgrade."""
    found: dict[str, object] = json.loads(daemon.http("/api/state")[1])["upgrade"]
    return found


def gave_up(daemon: ProxyDaemon, attempts: int) -> bool:
    """Whether so many attempts have come to nothing; for a moment a successor that is about to end may answer."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        answer = json.loads(daemon.http("/api/state")[1])
        return bool(answer["proxy"]["pid"] == daemon.pid and answer["upgrade"]["attempts"] == attempts)
    return False


def fails(daemon: ProxyDaemon, attempts: int) -> str:
    """SIGUSR2, and why it did not lead to anything."""
    daemon.signal(signal.SIGUSR2)
    wait_for(lambda: gave_up(daemon, attempts), 30, f"given up: {daemon.log[-3000:]}")
    assert state(daemon)["state"] == "failed"
    return str(state(daemon)["error"])


def test_upgrades(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Twice in a row, by TCP and by Unix socket: nobody is refused, clients of the old one lose nothing."""
    first = start_proxy(small_cluster.seeds, {"drain": {"timeout": "10s"}}, unix=True)
    with (
        Load(first.address, 20, checked=False) as load,
        Knocks([first.address, first.unix_path]) as knocks,
    ):
        second = first.upgrade()
        assert first.exit_code("the upgrade") == 0
        assert alive(second.pid)
        wait_for(lambda: not load.alive(), 5, "the old clients have been parted with")
        knocks.advance()
        with second.raw() as raw:
            assert raw.command("PING") == b"+PONG\r\n"
            assert second.worker_of(raw) in second.worker_pids()
        assert second.http("/readyz")[0] == 200
        third = second.upgrade()
        wait_for(lambda: not second.alive, 10, "the second has gone")
        knocks.advance()
        assert third.http("/readyz")[0] == 200
        third.reload({"clients": {"max_clients": 50}})
        knocks.advance()
        knocks.stop()
        third.stop()
        assert not os.path.exists(third.unix_path)
    assert knocks.refused == []
    assert knocks.unanswered == []
    assert [ended for ended in load.ended if not ended.clean] == []
    assert load.executed(small_cluster) == load.answered_by_key()


def test_by_the_command_line(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """`redis-proxy upgrade` waits for the successor, and says why there is none."""
    daemon = start_proxy(small_cluster.seeds)
    daemon.file.write_text("nonsense: true\n")
    refused = run_cli("upgrade", "--admin", f"{HOST}:{daemon.admin_port}", timeout_s=60)
    assert refused.returncode == 1
    assert "78" in refused.stdout + refused.stderr
    daemon.configure({})
    done = run_cli("upgrade", "--admin", f"{HOST}:{daemon.admin_port}", timeout_s=60)
    assert done.returncode == 0, done.stderr
    (pid,) = re.findall(r"pid (\d+)", done.stdout)
    assert alive(int(pid))
    assert int(pid) != daemon.pid
    assert daemon.exit_code("the upgrade") == 0
    os.kill(int(pid), signal.SIGTERM)
    wait_for(lambda: not alive(int(pid)), 20, "the successor has ended")


def test_not_while_nodes_are_paused(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """The successor would know nothing of it, and nobody would tell whoever works on the node."""
    daemon = start_proxy(small_cluster.seeds, {"clients": {"admin_password": "x"}})
    with daemon.raw() as raw:
        assert raw.command("AUTH", "admin", "x") == b"+OK\r\n"
        assert raw.command("PROXY", "PAUSE", "NODE", small_cluster.primaries()[0].address) == b"+OK\r\n"
        refused = run_cli("upgrade", "--admin", f"{HOST}:{daemon.admin_port}", timeout_s=60)
        assert refused.returncode == 1
        assert "not upgraded: nodes are paused: PROXY RESUME first" in refused.stderr
        assert fails(daemon, 2) == "nodes are paused: PROXY RESUME first"
        assert daemon.log_contains('level=error .*not upgraded.*"nodes are paused: PROXY RESUME first"')
        assert raw.command("PROXY", "RESUME") == b"+OK\r\n"
    successor = daemon.upgrade()
    assert daemon.exit_code("the upgrade") == 0
    successor.stop()


def test_not_while_clients_are_paused(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """The successor would carry out what was to wait."""
    daemon = start_proxy(small_cluster.seeds)
    with daemon.raw() as raw, daemon.raw() as held:
        assert raw.command("CLIENT", "PAUSE", "60000", "WRITE") == b"+OK\r\n"
        held.send(encode("SET", "k", "v"))
        assert fails(daemon, 1) == "clients are paused: CLIENT UNPAUSE first, or wait for the pause's end"
        assert not select.select([held.sock], [], [], 0)[0]
        assert raw.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert held.frame() == b"+OK\r\n"


def test_another_configuration_for_the_successor(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """What it wants is kept, what it does not want is closed, what is new is opened."""
    first = start_proxy(small_cluster.seeds, unix=True)
    path = str(tmp_path / "new.sock")
    admin = free_port()
    config = {
        "listeners": [{}, None, {"address": f"unix:{path}"}],
        "workers": 1,
        "admin": {"address": f"{HOST}:{admin}"},
    }
    with Knocks([first.address]) as knocks:
        second = first.upgrade(config)
        second.admin_port = admin
        assert first.exit_code("the upgrade") == 0
        assert knock(path) == ""
        assert knock(first.unix_path).startswith("refused")
        assert not os.path.exists(first.unix_path)
        assert second.http("/readyz")[0] == 200
        assert knock((HOST, first.admin_port)).startswith("refused")
        knocks.advance()
        knocks.stop()
        second.stop()
    assert knocks.trouble() == []


def test_a_successor_that_cannot_start(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A bad file, a port in use, an admin port in use, credentials that the nodes refuse: the old one goes on, and can
    be asked again."""
    first = start_proxy(small_cluster.seeds, unix=True)
    taken, port = occupied_port()
    with taken:
        failures = [
            ("code 78", {"clients": {"max_clients": 0}}),
            ("code 1", {"listeners": [{}, {}, {"address": f"{HOST}:{port}"}]}),
            ("code 1", {"admin": {"address": f"{HOST}:{port}"}}),
            ("the nodes refuse it: WRONGPASS", {"cluster": {"username": "nobody", "password": "typo"}}),
        ]
        with Load(first.address, 6) as load, Knocks([first.address, first.unix_path]) as knocks:
            for attempt, (reason, config) in enumerate(failures, 1):
                first.configure(config)
                assert reason in fails(first, attempt)
                load.advance()
                knocks.advance()
                assert first.http("/readyz")[0] == 200
        assert knocks.trouble() == []
    second = first.upgrade({})
    assert first.exit_code("the upgrade") == 0
    second.stop()


def test_a_successor_that_does_not_get_through(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the topology from the seeds, but its workers reach no node."""
    hook = tmp_path / "sitecustomize.py"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))  # the hook imports our own
    first = start_proxy(small_cluster.seeds)
    hook.write_text(
        "import os, sys\n"
        "if os.environ.get('REDIS_PROXY_PREDECESSOR') and 'proxy.worker.main' not in sys.orig_argv:\n"
        "    from proxy.supervisor import upgrade\n"
        "    upgrade.CLUSTER_S = 3.0\n"
    )
    nowhere = {node.address: f"{HOST}:1" for node in small_cluster.nodes}
    first.configure({"cluster": {"address_map": nowhere}})
    error = fails(first, 1)
    assert f"only 0 of 16384 slots are reached within 3 s: {HOST}:1: " in error
    assert first.http("/readyz")[0] == 200


@pytest.mark.parametrize(
    "broken",
    [pytest.param(name, marks=pytest.mark.long) for name in ("aiohttp", "prometheus_client")]
    + ["redis", "proxy.worker.worker"],
)
def test_a_broken_installation(
    broken: str,
    small_cluster: EmbeddedCluster,
    start_proxy: StartProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new version cannot import what it needs (A1): nobody is told that it is ready, the old one goes on."""
    hook = tmp_path / "sitecustomize.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = ProxyDaemon(small_cluster.seeds).start()  # not by start_proxy: Python prints the successor's stack
    hook.write_text(
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {broken!r}:\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    try:
        with Load(first.address, 6) as load, Knocks([first.address]) as knocks:
            assert "successor has ended" in fails(first, 1)
            load.advance()
            knocks.advance()
            assert first.http("/readyz")[0] == 200
        assert knocks.trouble() == []
        assert first.terminate() == 0
    finally:
        first.remove()


def test_a_successor_that_hangs(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM meanwhile ends both; nothing is left."""
    hook = tmp_path / "sitecustomize.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = start_proxy(small_cluster.seeds)
    workers = first.worker_pids()
    hook.write_text("import time\ntime.sleep(600)\n")
    first.signal(signal.SIGUSR2)
    wait_for(lambda: len(children(first.pid)) == len(workers) + 1, 10, "a successor has been started")
    first.signal(signal.SIGHUP)
    assert first.log_contains("an upgrade is under way")
    first.signal(signal.SIGUSR2)  # one at a time
    assert knock(first.address) == ""
    began_s = time.monotonic()
    first.stop()
    assert time.monotonic() - began_s < 5


def test_a_successor_that_is_killed(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """At any moment before it is ready, the old one goes on; after it, there is nobody to go on."""
    first = start_proxy(small_cluster.seeds)
    workers = first.worker_pids()
    with Load(first.address, 6, checked=False) as load, Knocks([first.address]) as knocks:
        for attempt, delay_s in enumerate((0.05, 0.15, 0.25), 1):
            first.signal(signal.SIGUSR2)
            (pid,) = wait_for(lambda: set(children(first.pid)).difference(workers), 10, "a successor")
            time.sleep(delay_s)  # any moment will do
            os.kill(pid, signal.SIGKILL)
            if first.log_contains("the successor is ready", 0.5):
                return
            wait_for(lambda attempt=attempt: state(first)["attempts"] == attempt, 10, "given up")
            load.advance()
            knocks.advance()
            assert first.http("/readyz")[0] == 200
    load.check()
    assert knocks.trouble() == []


def test_a_successor_that_dies_once_it_is_ready(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its first clients, say: for a moment both serve, so the old one has lost nothing."""
    hook = tmp_path / "sitecustomize.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = start_proxy(small_cluster.seeds, unix=True)
    hook.write_text(
        "import os, sys\n"
        "if os.environ.get('REDIS_PROXY_PREDECESSOR') and 'proxy.worker.main' not in sys.orig_argv:\n"
        "    import threading, time\n"
        "    def watch():\n"
        "        while 'proxy.run' not in sys.modules: time.sleep(0.01)\n"
        "        from proxy.system.sd_notify import Notifier\n"
        "        ready = Notifier.ready\n"
        "        def then_dies(self):\n"
        "            ready(self)\n"
        "            threading.Timer(0.03, lambda: os.kill(os.getpid(), 9)).start()\n"
        "        Notifier.ready = then_dies\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    with Knocks([first.address, first.unix_path]) as knocks:
        assert "has ended with signal 9" in fails(first, 1)
        knocks.advance()
    hook.write_text("")
    assert knocks.refused == []
    assert first.http("/readyz")[0] == 200


def test_the_predecessor_dies_first(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Killed while the successor starts: that one has the sockets, and serves."""
    first = ProxyDaemon(small_cluster.seeds, unix=True).start()
    try:
        workers = first.worker_pids()
        first.signal(signal.SIGUSR2)
        (pid,) = wait_for(lambda: set(children(first.pid)).difference(workers), 10, "a successor")
        first.kill_main()
        wait_for(lambda: knock(first.unix_path) == "" and knock(first.address) == "", 20, "the successor serves")
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), 20, "the successor has ended")
    finally:
        first.remove()


def test_another_version_on_disk(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of another version is not mixed with this one: a successor of that version takes over."""
    hook = tmp_path / "sitecustomize.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = start_proxy(small_cluster.seeds)
    hook.write_text("import proxy\nproxy.__version__ = '99.0.0'\n")
    with Knocks([first.address]) as knocks:
        os.kill(first.worker_pids()[0], signal.SIGKILL)
        assert first.log_contains("the program on disk is of another version")
        assert first.log_contains("the successor is ready", 20)
        assert first.exit_code("the upgrade") == 0
        knocks.advance()
        knocks.stop()
    assert [trouble for trouble in knocks.refused if trouble] == []
    pid = int(re.findall(r"successor=(\d+)", first.log)[-1])
    assert "version=99.0.0" in first.log
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), 20, "the successor has ended")


def test_what_cannot_be_started_again(small_cluster: EmbeddedCluster) -> None:
    """A configuration that came from stdin is gone."""
    port, admin = free_port(), free_port()
    text = json.dumps(
        {
            "listeners": [{"address": f"{HOST}:{port}"}],
            "cluster": {"seeds": small_cluster.seeds},
            "admin": {"address": f"{HOST}:{admin}"},
            "workers": 1,
        }
    )
    process = subprocess.Popen(
        [*COMMAND, "-c", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        wait_for(lambda: knock((HOST, port)) == "", 20, "it serves")
        done = run_cli("upgrade", "--admin", f"{HOST}:{admin}", timeout_s=30)
        assert done.returncode == 1
        assert "standard input" in done.stdout + done.stderr
        assert knock((HOST, port)) == ""
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


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


def test_signals_meanwhile_reach_the_successor(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload and a rotation of the log are asked of the proxy, whichever process that is."""
    hook, ready, go = tmp_path / "sitecustomize.py", tmp_path / "ready", tmp_path / "go"
    log, old = tmp_path / "proxy.log", tmp_path / "proxy.log.1"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = start_proxy(small_cluster.seeds, {"log": {"file": str(log)}})
    hook.write_text(  # the configuration is read, the log is open, but it is not ready
        "import os, sys, threading, time\n"
        "def wait(ready):\n"
        f"    open({str(ready)!r}, 'w').close()\n"
        f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "def watch():\n"
        "    while 'proxy.run' not in sys.modules: time.sleep(0.001)\n"
        "    from proxy.system.sd_notify import Notifier\n"
        "    ready = Notifier.ready\n"
        "    Notifier.ready = lambda self: (wait(ready), ready(self))[1]\n"
        "if os.environ.get('REDIS_PROXY_PREDECESSOR') and 'proxy.worker.main' not in sys.orig_argv:\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    first.signal(signal.SIGUSR2)
    wait_for(ready.exists, 20, "the successor has opened its log")
    first.configure({"log": {"file": str(log)}, "clients": {"max_clients": 44}})
    log.rename(old)
    first.signal(signal.SIGUSR1)
    command = [*COMMAND, "reload", "--admin", f"{HOST}:{first.admin_port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as reload:
        wait_for(lambda: log.exists() and "the reload waits" in log.read_text(), 10, "the reload is asked for")
        go.touch()
        out, err = reload.communicate(timeout=30)
    assert (reload.returncode, out.splitlines()[0]) == (0, "reloaded"), err
    assert "clients.max_clients: 10000 -> 44" in out
    assert first.exit_code("the upgrade") == 0
    (pid,) = map(int, re.findall(r"the successor is ready, .* successor=(\d+)", log.read_text()))
    for process in (pid, *children(pid)):
        assert str(log) in descriptors(process)
        assert str(old) not in descriptors(process)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), 20, "the successor has ended")


def test_no_pause_begins_meanwhile(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROXY PAUSE would hold for the clients of one of the two processes only: it is refused until there is one."""
    hook, go = tmp_path / "sitecustomize.py", tmp_path / "go"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = start_proxy(small_cluster.seeds, {"clients": {"admin_password": "s3cret"}, "drain": {"timeout": "15s"}})
    workers = first.worker_pids()
    hook.write_text(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n")
    with first.raw(timeout_s=20) as operator, first.raw() as blocked:
        assert operator.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
        first.signal(signal.SIGUSR2)
        wait_for(lambda: len(children(first.pid)) == len(workers) + 1, 10, "a successor has been started")
        answer = b"-ERR an upgrade is under way, and the successor would know nothing of this\r\n"
        assert operator.command("PROXY", "PAUSE", "200") == answer
        assert operator.command("PROXY", "RESUME") == b"+OK\r\n"
        assert operator.command("SET", "k", "v") == b"+OK\r\n"  # nothing is held
        blocked.send(encode("BLPOP", "nothing", "0"))
        go.touch()
        second = first.successor()
        with second.raw(timeout_s=20) as later:
            assert later.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
            answer = b"-ERR an upgrade is under way: the process before this one still has clients\r\n"
            assert later.command("PROXY", "PAUSE", "200") == answer
            blocked.close()
            assert first.exit_code("the upgrade") == 0
            assert later.command("PROXY", "PAUSE", "60000") == b"+OK\r\n"
            assert later.command("PROXY", "RESUME") == b"+OK\r\n"
    assert second.terminate() == 0
    first.remove()
