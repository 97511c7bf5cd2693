"""Start, signals, and what the daemon says when the world around it is not as it should be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.embedded import HOST, EmbeddedCluster, die_with_parent, free_port, wait_for
from tests.support.cluster import Standalone, servers
from tests.support.fake_node import FakeNode
from tests.support.proxyd import COMMAND, ROOT, ProxyDaemon, occupied_port, run_cli
from tests.support.raw import RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
CLUSTERDOWN = b"-CLUSTERDOWN"


def test_sigterm_and_sigint_end_it_with_0(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon = start_proxy(small_cluster.seeds)
        with daemon.raw() as idle, daemon.raw() as busy:
            busy.send(encode("GET", "a") * 100)
            assert daemon.terminate(number) == 0
            assert idle.rest() == b""


def test_sigterm_while_the_cluster_is_down(start_proxy: StartProxy) -> None:
    daemon = start_proxy([f"{HOST}:{free_port()}"], wait="listening")
    started = time.monotonic()
    assert daemon.terminate() == 0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_at_the_start(number: int, small_cluster: EmbeddedCluster) -> None:
    """Whenever it comes, the end is clean or by that very signal: never a traceback, never a hang.

    But for SIGINT in Python's own start: it ends with exit code 1 and a traceback before the first line of ours.
    """
    for delay_s in (0.05, 0.2, 0.4):
        daemon = ProxyDaemon(small_cluster.seeds, wait="").start()
        try:
            time.sleep(delay_s)  # any moment will do
            code = daemon.terminate(number)
            if number != signal.SIGINT or not daemon.log.endswith("KeyboardInterrupt\n"):
                assert code in (0, -number)
                assert "Traceback" not in daemon.log
        finally:
            daemon.remove()


def test_a_port_in_use(small_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    taken, port = occupied_port()
    with taken:
        config = tmp_path / "proxy.yaml"
        config.write_text(
            f'listeners: [{{address: "{HOST}:{port}"}}]\ncluster: {{seeds: ["{small_cluster.seeds[0]}"]}}\n'
            f'admin: {{address: "{HOST}:{free_port()}"}}\n'
        )
        done = run_cli("-c", str(config))
    assert done.returncode == 1
    assert f"{HOST}:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_admin_port_in_use(small_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    taken, port = occupied_port()
    with taken:
        config = tmp_path / "proxy.yaml"
        config.write_text(
            f'listeners: [{{address: "{HOST}:{free_port()}"}}]\ncluster: {{seeds: ["{small_cluster.seeds[0]}"]}}\n'
            f'admin: {{address: "{HOST}:{port}"}}\n'
        )
        done = run_cli("-c", str(config))
    assert done.returncode == 1
    assert f"{HOST}:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_unix_socket_left_behind_is_taken_over(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = ProxyDaemon(small_cluster.seeds, unix=True)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(daemon.unix_path)
    stale.close()
    with daemon, RawClient(daemon.unix_path) as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        daemon.stop()
        assert not os.path.exists(daemon.unix_path)


def test_seeds_on_the_command_line(small_cluster: EmbeddedCluster) -> None:
    """Defaults for the rest: this one may meet the default port in use, and then says so."""
    process = subprocess.Popen(
        [*COMMAND, *small_cluster.seeds], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=die_with_parent()
    )
    try:
        assert process.stderr is not None
        told = ""
        while "listening" not in told and (line := process.stderr.readline()):
            told += line
        if "listening" in told:
            process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == (1 if "in use" in told else 0), told


def test_no_node_reachable_keeps_trying_and_recovers(start_proxy: StartProxy) -> None:
    """The cluster being down is no reason to exit; when it appears, it is served without a restart."""
    node = FakeNode()
    port = node.port
    node.close()
    config = {"backends": {"backoff_max": "200ms"}, "cluster": {"refresh_min_gap": "50ms", "refresh_interval": "200ms"}}
    daemon = start_proxy([f"{HOST}:{port}"], config, wait="listening")
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        for words in (("GET", "a"), ("SET", "a", "v"), ("MGET", "a", "b"), ("EVAL", "return 1", 0)):
            assert raw.command(*words).startswith(CLUSTERDOWN)
        assert raw.command("CLIENT", "ID").startswith(b":")
        assert daemon.log_contains(f"{HOST}:{port}")
        with FakeNode(port=port):
            wait_for(lambda: raw.command("SET", "a", "v") == b"+OK\r\n", 15, "served")
            assert raw.command("GET", "a") == b"$1\r\nv\r\n"


def test_readiness_follows_the_cluster(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    ready = start_proxy(small_cluster.seeds)
    unready = start_proxy([f"{HOST}:{free_port()}"], wait="listening")
    assert ready.http("/readyz")[0] == 200
    assert unready.http("/readyz")[0] == 503
    for daemon in (ready, unready):
        assert daemon.http("/livez")[0] == 200
        assert daemon.http("/metrics")[0] == 200
        assert daemon.http("/nosuch")[0] == 404


def test_a_seed_that_is_no_cluster_is_said(start_proxy: StartProxy) -> None:
    with Standalone(servers()["valkey"]) as server:
        daemon = start_proxy([f"{HOST}:{server.port}"], wait="listening")
        assert daemon.log_contains("cluster (support|mode) (is )?disabled|not a cluster|no cluster")
        with daemon.raw() as raw:
            assert raw.command("GET", "a").startswith(CLUSTERDOWN)


def test_a_wrong_upstream_password_is_said(start_proxy: StartProxy) -> None:
    with EmbeddedCluster(primaries=1, replicas=0, password="right") as cluster:
        for config in ({"cluster": {"password": "wrong-one"}}, {}):
            daemon = start_proxy(cluster.seeds, config, wait="listening")
            assert daemon.log_contains("WRONGPASS|NOAUTH|[Aa]uthentication|password")
            assert "wrong-one" not in daemon.log
            with daemon.raw() as raw:
                assert raw.command("GET", "a").startswith(CLUSTERDOWN)


def test_one_live_seed_is_enough(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    dead = [f"{HOST}:{free_port()}", "no.invalid:7000"]
    with start_proxy([*dead, small_cluster.seeds[0]]).raw() as raw:
        assert raw.command("MSET", "a", 1, "b", 2, "c", 3) == b"+OK\r\n"


def test_metrics_count_what_passed(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds)
    with daemon.raw() as raw:
        before = daemon.metrics()
        for _ in range(5):
            raw.command("SET", "a", "v")
            raw.command("GET", "a")
        raw.command("MGET", "a", "b", "c")
        raw.command("INCR", "a")  # not an integer
        raw.command("NOSUCH")
        after = daemon.metrics()

    def grown(family: str, **labels: str) -> float:
        return sum(
            value - before.get(sample, 0)
            for sample, value in after.items()
            if sample.startswith(family) and all(f'{name}="{value}"' in sample for name, value in labels.items())
        )

    assert grown("redis_proxy_commands_total", command="set") == 5
    assert grown("redis_proxy_commands_total", command="get") == 5
    assert grown("redis_proxy_commands_total", command="mget") == 1
    assert grown("redis_proxy_commands_total", command="other") == 1
    assert grown("redis_proxy_split_commands_total", command="mget") == 1
    assert grown("redis_proxy_command_errors_total", command="incr", kind="ERR") == 1
    assert grown("redis_proxy_command_duration_seconds_count", command="get") == 5
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "the client has left")
    assert daemon.metric("redis_proxy_slots_covered") == 16384
    assert daemon.metric("redis_proxy_build_info") == 1


def test_log_lines_are_logfmt_or_json(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    import json

    plain = start_proxy(small_cluster.seeds)
    assert plain.log_contains("msg=started .*\n")
    assert all(line.startswith("ts=") for line in plain.log.splitlines())
    daemon = start_proxy(small_cluster.seeds, {"log": {"format": "json"}})
    assert daemon.log_contains('"started".*\n')
    whole = daemon.log.rpartition("\n")[0]  # the last line may be on its way
    assert all(json.loads(line)["msg"] for line in whole.splitlines())


def test_sigusr1_reopens_the_log(small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    daemon = start_proxy(small_cluster.seeds, {"log": {"file": str(path)}})
    wait_for(lambda: path.exists() and "listening" in path.read_text(), 5, "the log is written")
    path.rename(tmp_path / "proxy.log.1")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGUSR1)
    wait_for(path.exists, 5, "the log is opened anew")
    assert daemon.terminate() == 0
    assert "stop" in path.read_text()


def test_garbage_is_collected_once_it_has_started(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the main process and in its workers; not what was imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import gc, os, pathlib, threading, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def tell():\n"
        "    while not (folder / 'now').exists() or not gc.isenabled(): time.sleep(0.01)\n"
        "    (folder / f'{os.getpid()}.gc').write_text(f'{gc.get_freeze_count() > 10000}.')\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = start_proxy(small_cluster.seeds)
    wait_for(lambda: "msg=started" in daemon.log, 10, "it has started")
    (tmp_path / "now").touch()
    for pid in (daemon.pid, *daemon.worker_pids()):
        told = tmp_path / f"{pid}.gc"
        wait_for(lambda told=told: told.exists() and told.read_text().endswith("."), 10, "it tells")
        assert told.read_text() == "True."


def test_what_nobody_caught_is_a_line_of_the_log(
    small_cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the main process and in its workers; Python writes it to stderr, which nobody reads where there is a file."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "def fail():\n"
        "    while threading.excepthook is threading.__excepthook__: time.sleep(0.01)\n"
        "    raise ValueError('of a test')\n"
        "threading.Thread(target=fail, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "proxy.log"
    # Not by start_proxy, which wants a log without a traceback at the end.
    daemon = ProxyDaemon(small_cluster.seeds, {"log": {"file": str(path)}}).start()
    try:

        def lines() -> list[str]:
            # A worker's may be on stderr: it has its settings only a moment later.
            both = path.read_text() + daemon.log
            return [line for line in both.splitlines() if line.startswith("ts=") and "nobody caught" in line]

        wait_for(lambda: len(lines()) == 1 + len(daemon.worker_pids()), 10, "all have said so")
        assert all("ValueError: of a test" in line for line in lines())
        assert "Exception in thread" not in daemon.log
        assert daemon.terminate() == 0
    finally:
        daemon.remove()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_without_standard_descriptors(closed: str, small_cluster: EmbeddedCluster) -> None:
    """They went to sockets, and the first to be closed ended the process."""
    daemon = ProxyDaemon(small_cluster.seeds, prefix=["sh", "-c", f'exec "$@" {closed}', "sh"]).start()
    try:
        for number in "012":
            assert os.readlink(f"/proc/{daemon.pid}/fd/{number}").startswith(("/dev/null", str(daemon.folder)))
        daemon.reload({"listeners": [{"address": f"{HOST}:{free_port()}"}]})
        for _ in range(5):
            assert daemon.http("/livez")[0] == 200
        assert daemon.terminate() == 0
    finally:
        daemon.remove()


def test_two_instances_and_one_unix_socket(small_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    """The second finds the socket in use from the very beginning, and leaves the file where it is."""
    nobody = f"{HOST}:{free_port()}"  # the start waits for the cluster for a while
    path = str(tmp_path / "proxy.sock")
    processes = []
    for number in range(2):
        file = tmp_path / f"{number}.yaml"
        file.write_text(
            f"listeners: [{{address: 'unix:{path}'}}]\ncluster: {{seeds: ['{nobody}']}}\n"
            f"admin: {{address: '{HOST}:{free_port()}'}}\nworkers: 1\n"
        )
        processes.append(
            subprocess.Popen(
                [*COMMAND, "-c", str(file)], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=die_with_parent()
            )
        )
        wait_for(lambda: os.path.exists(path), 10, "the first has made its file")
    first, second = processes
    try:
        _, told = second.communicate(timeout=20)
        assert second.returncode == 1
        assert "in use" in told
        with RawClient(path) as raw:
            assert raw.command("PING") == b"+PONG\r\n"
        first.terminate()
        first.communicate(timeout=20)
        assert first.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
