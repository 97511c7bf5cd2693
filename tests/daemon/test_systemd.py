"""The daemon as systemd runs it: notifications, sockets it is started with; the files in systemd/, by their tools."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.admin.probes import SILENT_S as LIVE_S
from proxy.config.models import from_seeds
from proxy.embedded import HOST, EmbeddedCluster, free_port, wait_for
from proxy.supervisor.worker_pool import ABORT_S, PARTING_S, SILENT_S
from tests.support.processes import children, descriptors, session_members
from tests.support.proxyd import COMMAND, ROOT, ProxyDaemon, occupied_port
from tests.support.raw import Closed, RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
UNITS = ROOT / "systemd"
PROGRAM = "/opt/redis-proxy/bin/redis-proxy"
WATCHDOG_S = 0.4

RECEIVE_S = 20.0


class ServiceManager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def until(self, wanted: str) -> list[str]:
        """What is received up to and with the datagram that begins with `wanted`."""
        received: list[str] = []
        while not received or not received[-1].startswith(wanted):
            received.append(self.sock.recv(4096).decode())
        return received

    def silence(self, unwanted: str, for_s: float, within_s: float) -> float:
        """Waits until no datagram that begins with `unwanted` has come for for_s; returns when the last one did.

        In time.monotonic(). Fails when there is no such silence within_s.
        """
        began = last = time.monotonic()
        try:
            while (now := time.monotonic()) < last + for_s:
                assert now < began + within_s, f"{unwanted} does not stop"
                self.sock.settimeout(last + for_s - now)
                with contextlib.suppress(TimeoutError):
                    if self.sock.recv(4096).decode().startswith(unwanted):
                        last = time.monotonic()
        finally:
            self.sock.settimeout(RECEIVE_S)
        return last


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    """Daemons started in this test notify it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(RECEIVE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield ServiceManager(sock)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP and a Unix socket that somebody else listens on and keeps open."""
    with socket.create_server((HOST, 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "held.sock"))
        unix.listen()
        yield tcp, unix


def with_unix(path: str) -> dict[str, list[dict[str, str]]]:
    """A second listener, for start_proxy(unix=True)."""
    return {"listeners": [{}, {"address": f"unix:{path}"}]}


# Notifications


def test_ready_alive_stopping(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    idle = "STATUS=0 clients, 16384 of 16384 slots, 2 workers"
    with ProxyDaemon(small_cluster.seeds, wait="") as daemon:
        assert manager.until("READY=1") == ["READY=1"]
        manager.until(idle)
        with daemon.raw() as raw:
            assert raw.command("PING") == b"+PONG\r\n"
            manager.until("STATUS=1 clients, 16384 of 16384 slots, 2 workers")
            for _ in range(3):
                manager.until("WATCHDOG=1")
        assert daemon.terminate() == 0
        assert set(manager.until("STOPPING=1")) <= {"WATCHDOG=1", idle, "STOPPING=1"}


def test_stopping_is_said_when_the_end_begins(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager's patience counts from there; meanwhile clients are served, and it hears of them and of the loops."""
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    with ProxyDaemon(small_cluster.seeds, {"drain": {"delay": "60s"}}) as daemon:
        daemon.signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert daemon.http("/readyz")[0] == 503
        with daemon.raw() as raw:
            assert raw.command("SET", "a", "v") == b"+OK\r\n"
            manager.until("STATUS=draining, 1 clients, 16384 of 16384 slots, 2 workers")
        manager.until("WATCHDOG=1")
        assert daemon.alive
        assert daemon.terminate() == 0  # the second signal


def test_a_reload_is_announced_and_its_end_too(small_cluster: EmbeddedCluster, manager: ServiceManager) -> None:
    with ProxyDaemon(small_cluster.seeds) as daemon:
        manager.until("READY=1")
        for good in (True, False):
            before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            daemon.reload({"clients": {"max_clients": 77 if good else -1}}, good=good)
            reloading = manager.until("RELOADING=1")[-1]
            after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            told = dict(line.split("=", 1) for line in reloading.splitlines())
            assert set(told) == {"RELOADING", "MONOTONIC_USEC"}
            assert before_us <= int(told["MONOTONIC_USEC"]) <= after_us
            assert all(one.startswith(("READY=1", "STATUS=")) for one in manager.until("READY=1"))
        with daemon.raw() as raw:
            assert raw.command("PING") == b"+PONG\r\n"


def test_a_worker_that_does_not_answer_is_no_sign_of_life(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings stop while one worker hangs, though the supervisor and the other do not; status says which."""
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    with ProxyDaemon(small_cluster.seeds) as daemon:
        manager.until("WATCHDOG=1")
        worker = daemon.worker_pids()[1]
        os.kill(worker, signal.SIGSTOP)
        stopped = time.monotonic()
        last = manager.silence("WATCHDOG=1", for_s=4 * WATCHDOG_S, within_s=LIVE_S + 5)
        assert LIVE_S - 1.5 < last - stopped < LIVE_S + 2  # a worker speaks once a second
        assert daemon.http("/livez")[0] == 503
        os.kill(worker, signal.SIGCONT)
        manager.until("WATCHDOG=1")
        assert daemon.http("/livez")[0] == 200
        assert worker in daemon.worker_pids()


@pytest.mark.long
def test_a_hung_worker_is_replaced_before_the_watchdog_bites(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the unit has it: the supervisor mends it by itself within WatchdogSec, and the others' clients stay."""
    unit = (UNITS / "redis-proxy.service").read_text()
    watchdog_s = float(re.findall(r"^WatchdogSec=(\d+)s$", unit, re.MULTILINE)[0])
    monkeypatch.setenv("WATCHDOG_USEC", str(int(watchdog_s * 1e6)))
    with ProxyDaemon(small_cluster.seeds) as daemon:
        manager.until("WATCHDOG=1")
        pinged = time.monotonic()
        hung, other = daemon.worker_pids()
        os.kill(hung, signal.SIGSTOP)
        manager.sock.settimeout(watchdog_s)
        while hung in daemon.worker_pids() or len(daemon.worker_pids()) < 2:
            if "WATCHDOG=1" in manager.until("")[-1]:
                now = time.monotonic()
                assert now - pinged < watchdog_s
                pinged = now
        manager.until("WATCHDOG=1")
        assert time.monotonic() - pinged < watchdog_s
        assert other in daemon.worker_pids()
        assert "worker=0" in daemon.log or "worker=1" in daemon.log


def test_children_do_not_speak_for_the_daemon(
    small_cluster: EmbeddedCluster,
    manager: ServiceManager,
    held: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of systemd's variables and none of its sockets reach the workers."""
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    with ProxyDaemon(small_cluster.seeds, inherited=held[:1]) as daemon:
        manager.until("READY=1")
        workers = children(daemon.pid)
        assert len(workers) == 2
        for pid in workers:
            variables = {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
            assert b"PATH" in variables  # it is the environment
            assert not variables & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID", b"LISTEN_FDS", b"LISTEN_PID"}
            listening = f"socket:[{os.stat(held[0].fileno()).st_ino}]"
            assert listening in descriptors(daemon.pid)
            assert listening not in descriptors(pid)


def test_no_ping_where_none_is_expected(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with ProxyDaemon(small_cluster.seeds) as daemon:
        manager.until("STATUS=")
        assert daemon.terminate() == 0
        assert "WATCHDOG=1" not in manager.until("STOPPING=1")


def test_a_stopped_daemon_does_not_ping(
    small_cluster: EmbeddedCluster, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    with ProxyDaemon(small_cluster.seeds) as daemon:
        assert daemon.process is not None
        manager.until("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED)
        manager.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # what was on its way
            while manager.sock.recv(4096):
                pass
        manager.sock.settimeout(2 * WATCHDOG_S)
        with pytest.raises(TimeoutError):
            manager.sock.recv(4096)
        daemon.process.send_signal(signal.SIGCONT)
        manager.sock.settimeout(RECEIVE_S)
        manager.until("WATCHDOG=1")


def test_the_watchdogs_signal_leaves_the_stack(small_cluster: EmbeddedCluster) -> None:
    """It goes to the main process (KillMode=mixed); the others follow by themselves."""
    daemon = ProxyDaemon(small_cluster.seeds).start()
    try:
        assert daemon.terminate(signal.SIGABRT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in daemon.log
        assert "run.py" in daemon.log
        wait_for(lambda: session_members(daemon.pid) == [], 5, "the workers are gone")
    finally:
        daemon.remove()


def test_a_start_that_fails_says_why(small_cluster: EmbeddedCluster, manager: ServiceManager) -> None:
    taken, port = occupied_port()
    with taken:
        config = {"listeners": [{"address": f"{HOST}:{port}"}]}
        daemon = ProxyDaemon(small_cluster.seeds, config, wait="").start()
        assert daemon.process is not None
        assert daemon.process.wait(20) == 1
        daemon.remove()
    sentence = f"cannot listen on {HOST}:{port}: the address is in use; is another proxy running?"
    assert manager.until("STATUS=") == [f"STATUS={sentence}"]


def test_a_manager_that_is_gone_is_no_reason_to_end(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    daemon = start_proxy(small_cluster.seeds)
    with daemon.raw() as raw:
        assert raw.command("SET", "a", "v") == b"+OK\r\n"


# Sockets it is started with


def test_connections_made_before_and_between_are_served(
    small_cluster: EmbeddedCluster, held: tuple[socket.socket, socket.socket]
) -> None:
    """Two daemons one after the other on the same sockets: nobody who connects is refused at any time."""
    tcp, unix = held
    path = unix.getsockname()
    for _ in range(2):
        with RawClient(tcp.getsockname()) as early, RawClient(path) as local:
            early.send(encode("PING"))
            local.send(encode("PING"))
            with ProxyDaemon(small_cluster.seeds, with_unix(path), unix=True, inherited=held) as daemon:
                assert daemon.port == tcp.getsockname()[1]
                assert early.frame() == b"+PONG\r\n"
                assert local.frame() == b"+PONG\r\n"
                assert early.command("SET", "a", "v") == b"+OK\r\n"
                assert "not used" not in daemon.log
                # Who found it ready has left. Each worker has two of four clients, so one by the inherited TCP socket.
                wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 2, 5, "two clients are there")
                with daemon.raw() as late, daemon.raw() as later:
                    assert late.command("PING") == later.command("PING") == b"+PONG\r\n"
                    assert holders(daemon) == set(daemon.worker_pids())
    with RawClient(path) as later:  # the socket's file is still there, and its owner listens
        later.send(encode("PING"))


def test_a_socket_without_a_listener_is_named_and_closed(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, held: tuple[socket.socket, socket.socket]
) -> None:
    unix = held[1]
    path = unix.getsockname()
    daemon = start_proxy(small_cluster.seeds, inherited=held)
    assert f'msg="inherited socket not used: no listener has its address" address=unix:{path}\n' in daemon.log
    unix.close()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"


def test_a_listener_without_a_socket_is_opened(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, held: tuple[socket.socket, socket.socket]
) -> None:
    daemon = start_proxy(small_cluster.seeds, unix=True, inherited=held[:1])
    with RawClient(daemon.unix_path) as local, daemon.raw() as remote:
        assert local.command("PING") == remote.command("PING") == b"+PONG\r\n"
    daemon.stop()
    assert not os.path.exists(daemon.unix_path)


def test_a_socket_of_another_spelling_explains_the_address_in_use(
    small_cluster: EmbeddedCluster, held: tuple[socket.socket, socket.socket]
) -> None:
    """The unit has one address, the configuration all of them: the port is taken, and the log says by what."""
    port = held[0].getsockname()[1]
    config = {"listeners": [{"address": f"0.0.0.0:{port}"}]}
    daemon = ProxyDaemon(small_cluster.seeds, config, wait="", inherited=held[:1]).start()
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1
    log = daemon.log
    daemon.remove()
    assert f'msg="inherited socket not used: no listener has its address" address={HOST}:{port}\n' in log
    assert f"cannot listen on 0.0.0.0:{port}: the address is in use" in log


def test_connections_made_while_the_old_one_drains_wait_for_the_new_one(
    small_cluster: EmbeddedCluster, held: tuple[socket.socket, socket.socket]
) -> None:
    """What redis-proxy.socket promises of a restart: nobody is refused, whoever comes during the drain waits."""
    tcp = held[0]
    with ProxyDaemon(small_cluster.seeds, {"drain": {"timeout": "60s"}}, inherited=held[:1]) as old:
        with old.raw(receive_buffer=4096) as busy:
            # A client that does not read its replies keeps the drain going.
            assert busy.command("SET", "a", "v" * 100_000) == b"+OK\r\n"
            busy.send(encode("GET", "a") * 100)
            wait_for(lambda: old.metric("redis_proxy_output_buffer_bytes") > 0, 10, "replies wait to be read")
            old.signal(signal.SIGTERM)
            wait_for(lambda: not accepts_still(old, tcp), 10, "the old one has closed its copy")
            with RawClient(tcp.getsockname()) as early:
                early.send(encode("PING"))
                assert old.alive
                with ProxyDaemon(small_cluster.seeds, inherited=held[:1]):
                    assert early.frame() == b"+PONG\r\n"
                assert old.alive
            for _ in range(100):
                assert busy.frame() == b"$100000\r\n" + b"v" * 100_000 + b"\r\n"
        assert old.exit_code("the last client left") == 0


def accepts_still(daemon: ProxyDaemon, sock: socket.socket) -> bool:
    """Whether it has this listening socket open."""
    return f"socket:[{os.stat(sock.fileno()).st_ino}]" in descriptors(daemon.pid)


def holders(daemon: ProxyDaemon) -> set[int]:
    """Its processes that hold a client's TCP connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = [row for row in rows if row[1].endswith(f":{daemon.port:04X}") and row[3] == "01"]
    links = {f"socket:[{row[9]}]" for row in established}
    return {pid for pid in session_members(daemon.pid) if links.intersection(descriptors(pid))}


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate")
def test_with_systemds_own_activation(small_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    """Started by the first connection, which is then served."""
    port = free_port()
    config = tmp_path / "proxy.yaml"
    config.write_text(
        f'listeners: [{{address: "{HOST}:{port}"}}]\ncluster: {{seeds: ["{small_cluster.seeds[0]}"]}}\n'
        "admin: {address: off}\nworkers: 2\n"
    )
    process = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"{HOST}:{port}", "--fdname=redis", *COMMAND, "-c", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        with wait_for(lambda: connected(port), 10, "systemd-socket-activate listens") as raw:
            assert raw.command("SET", "a", "v") == b"+OK\r\n"
        process.terminate()
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert f"msg=inherited name=redis address={HOST}:{port}\n" in told


def connected(port: int) -> RawClient | None:
    try:
        return RawClient((HOST, port), timeout_s=20)
    except (OSError, Closed):
        return None


# The files in systemd/


def seconds(text: str) -> float:
    """Of a time in whole seconds, as the unit has it."""
    assert re.fullmatch(r"\d+s", text)
    return float(text[:-1])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_the_units_are_correct(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program
    copies = []
    for unit in ("redis-proxy.service", "redis-proxy.socket"):
        text = (UNITS / unit).read_text()
        assert (PROGRAM in text) == (unit == "redis-proxy.service")
        (tmp_path / unit).write_text(text.replace(PROGRAM, program))  # it has to be there
        copies.append(str(tmp_path / unit))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *copies], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_units_fit_the_daemon() -> None:
    service = (UNITS / "redis-proxy.service").read_text().splitlines()
    for line in ("Type=notify", "NotifyAccess=main", "KillMode=mixed", "OOMPolicy=continue"):
        assert line in service
    file = "-c /etc/redis-proxy/proxy.yaml"
    reload = [line for line in service if line.startswith("ExecReload=")]
    assert reload == [f"ExecReload={PROGRAM} -t {file}", f"ExecReload={PROGRAM} reload {file}"]
    options = dict(line.split("=", 1) for line in service if "=" in line and not line.startswith("#"))
    drain = from_seeds([f"{HOST}:7001"]).drain
    assert seconds(options["TimeoutStopSec"]) > drain.delay + drain.timeout + PARTING_S
    # Silence is noticed and the worker killed before; a ping may be half the interval old when it begins.
    assert seconds(options["WatchdogSec"]) > 1.5 * (SILENT_S + ABORT_S)
    sockets = (UNITS / "redis-proxy.socket").read_text().splitlines()
    assert "ListenStream=127.0.0.1:7617" in sockets  # the default listener


def test_logrotate(small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Twice, with the shipped example: all its processes write on in the new file, and no line is lost."""
    # Not on everybody's PATH: Debian has it in /usr/sbin.
    logrotate = shutil.which("logrotate", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if logrotate is None:
        pytest.skip("no logrotate")
    folder = tmp_path / "log"
    folder.mkdir(mode=0o755)
    path = folder / "proxy.log"
    daemon = start_proxy(small_cluster.seeds, {"log": {"file": str(path)}})
    assert daemon.process is not None
    text = (UNITS / "redis-proxy.logrotate").read_text()
    kill = "systemctl kill --kill-who=main --signal=USR1 redis-proxy.service"
    assert kill in text
    assert "/var/log/redis-proxy/*.log" in text
    config = tmp_path / "logrotate.conf"
    config.write_text(
        text.replace(kill, f"kill -USR1 {daemon.process.pid}").replace("/var/log/redis-proxy", str(folder))
    )
    config.chmod(0o644)

    def rotate() -> None:
        done = subprocess.run(
            [logrotate, "--force", "--verbose", "--state", str(tmp_path / "state"), str(config)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "error:" not in done.stderr, done.stderr

    wait_for(lambda: "msg=started" in path.read_text(), 10, "the log is written")
    rotate()
    wait_for(path.exists, 10, "the log is opened anew")
    old = str(folder / "proxy.log.1")
    members = session_members(daemon.pid)
    wait_for(lambda: not any(old in descriptors(pid) for pid in members), 10, "nobody writes into the old file")
    assert set(members) == {daemon.pid, *daemon.worker_pids()}
    wait_for(lambda: all(str(path) in descriptors(pid) for pid in members), 10, "all write into the new one")
    assert "msg=started" in (folder / "proxy.log.1").read_text()
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
    path.write_text("so that it is not empty\n")
    rotate()
    wait_for(path.exists, 10, "the log is opened anew")
    assert (folder / "proxy.log.2.gz").exists()
    assert daemon.terminate() == 0
    assert "msg=draining" in path.read_text()
    assert "msg=draining" not in (folder / "proxy.log.1").read_text()
