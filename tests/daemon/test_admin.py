"""What the daemon tells about itself: metrics of all workers as one, probes, its state and its worries in the log."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from proxy.embedded import HOST, EmbeddedCluster, free_port, wait_for
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon, run_cli
from tests.support.raw import encode

StartProxy = Callable[..., ProxyDaemon]


@pytest.fixture(scope="module")
def daemon(small_cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(small_cluster.seeds) as started:
        yield started


def get(daemon: ProxyDaemon, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, Content-Type and body."""
    connection = http.client.HTTPConnection(HOST, daemon.admin_port, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


# Metrics


def test_one_scrape_is_the_sum_of_the_workers(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, workers=3)
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 5, "nobody is there")
    before = daemon.metrics()
    clients = [daemon.raw() for _ in range(6)]
    try:
        for client in clients:
            client.send(encode("SET", "a", "v") * 10 + encode("GET", "a") * 5 + encode("MGET", "a", "b", "c") * 2)
            client.send(encode("NOSUCH") + encode("INCR", "a"))
            client.frames(19)
        after = daemon.metrics()
        assert len(after) == len({*before, *after}), "what is there stays there"

        def grown(family: str, **labels: str) -> float:
            wanted = [f'{name}="{value}"' for name, value in labels.items()]
            return sum(
                value - before.get(sample, 0)
                for sample, value in after.items()
                if sample.partition("{")[0] == f"redis_proxy_{family}" and all(label in sample for label in wanted)
            )

        for command, calls in {"set": 60, "get": 30, "mget": 12, "other": 6, "incr": 6}.items():
            assert grown("commands_total", command=command) == calls
            assert grown("command_duration_seconds_count", command=command) == calls
        assert grown("split_commands_total", command="mget") == 12
        assert grown("command_errors_total", command="incr", kind="ERR") == 6
        assert grown("client_connections_total") == 6
        assert after["redis_proxy_client_connections"] == 6
        sent = 6 * len(
            encode("SET", "a", "v") * 10
            + encode("GET", "a") * 5
            + encode("MGET", "a", "b", "c") * 2
            + encode("NOSUCH")
            + encode("INCR", "a")
        )
        assert grown("bytes_total", side="client", direction="in") == sent
        per_node = [value for name, value in after.items() if name.startswith("redis_proxy_backend_connections{")]
        assert sum(per_node) >= 3 * 3  # every worker has its own to every node
        for node in small_cluster.nodes:
            assert daemon.metric("redis_proxy_node_up", node=node.address) == 1
        assert after["redis_proxy_slots_covered"] == 16384
        assert after["redis_proxy_worker_restarts_total"] == 0
        assert after["redis_proxy_config_last_reload_successful"] == 1
        assert after["redis_proxy_config_last_reload_success_timestamp_seconds"] > 1.6e9
        assert after["redis_proxy_draining"] == 0
        assert after["process_resident_memory_bytes"] > 0
    finally:
        for client in clients:
            client.close()


def test_the_formats(daemon: ProxyDaemon) -> None:
    status, content_type, plain = get(daemon, "/metrics")
    assert (status, content_type.partition(";")[0]) == (200, "text/plain")
    assert {family.name for family in plain_families(plain)} > {"redis_proxy_commands", "redis_proxy_node_up"}
    status, content_type, text = get(daemon, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")
    families = {family.name for family in open_families(text)}
    assert families > {"redis_proxy_commands", "redis_proxy_node_up"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not on PATH")
def test_promtool_has_nothing_to_say(daemon: ProxyDaemon) -> None:
    with daemon.raw() as raw:
        raw.command("GET", "a")
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=daemon.http("/metrics")[1], capture_output=True, text=True
        )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# Probes


def test_readiness_in_words(daemon: ProxyDaemon, start_proxy: StartProxy) -> None:
    status, content_type, body = get(daemon, "/readyz?verbose")
    details = json.loads(body)
    assert (status, content_type.partition(";")[0]) == (200, "application/json")
    assert details["ready"] is True
    assert f"{HOST}:{daemon.port}" in body
    unready = start_proxy([f"{HOST}:{free_port()}"], wait="listening")
    status, _, body = get(unready, "/readyz?verbose")
    assert status == 503
    assert json.loads(body)["ready"] is False
    assert json.loads(body) != details
    assert get(unready, "/livez")[0] == 200


def gap_noticed(daemon: ProxyDaemon) -> bool:
    """Whether not all slots are covered; a command for the gap makes the proxy look."""
    with daemon.raw() as raw:
        raw.command("SET", key_in(0, 100), "v")
    return daemon.metric("redis_proxy_slots_covered") < 16384


def test_a_part_of_the_slots(start_proxy: StartProxy) -> None:
    """Ready without all slots only where that is wanted."""
    with EmbeddedCluster(primaries=3, replicas=0, options={"cluster-require-full-coverage": "no"}) as cluster:
        strict = start_proxy(cluster.seeds)
        lenient = start_proxy(cluster.seeds, {"ready": {"partial": True}})
        assert get(strict, "/readyz")[0] == get(lenient, "/readyz")[0] == 200
        node = cluster.nodes[0]
        node.command("CLUSTER", "DELSLOTSRANGE", 0, 100)
        for other in cluster.nodes[1:]:
            other.command("CLUSTER", "DELSLOTSRANGE", 0, 100)
        wait_for(lambda: gap_noticed(strict) and gap_noticed(lenient), 40, "the gap is noticed")
        wait_for(lambda: get(strict, "/readyz")[0] == 503, 5, "not ready")
        assert get(lenient, "/readyz")[0] == 200


# The log


def test_status_shows_the_whole_proxy(daemon: ProxyDaemon) -> None:
    """`redis-proxy status`, and what it is made of."""
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 5, "nobody is there")
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        shown = run_cli("status", "--admin", f"{HOST}:{daemon.admin_port}")
        state = json.loads(run_cli("status", "--json", "--admin", f"{HOST}:{daemon.admin_port}").stdout)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert state["proxy"]["pid"] == daemon.pid
    assert [worker["pid"] for worker in state["workers"]["each"]] == daemon.worker_pids()
    assert sum(worker["clients"] for worker in state["workers"]["each"]) == state["clients"]["connected"] == 1
    assert len(state["nodes"]) == 3
    for word in [node["address"] for node in state["nodes"]] + [str(pid) for pid in daemon.worker_pids()]:
        assert word in shown.stdout


def test_sigusr1_reopens_the_log_of_every_process(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy, tmp_path: Path
) -> None:
    path, old = tmp_path / "proxy.log", tmp_path / "proxy.log.1"
    daemon = start_proxy(small_cluster.seeds, {"log": {"file": str(path)}})
    wait_for(lambda: path.exists() and "msg=started" in path.read_text(), 5, "the log is written")
    path.rename(old)
    daemon.signal(signal.SIGUSR1)
    wait_for(path.exists, 5, "the log is opened anew")
    wait_for(lambda: not holders(daemon, old), 5, "nobody holds the old file")
    # Each process opens it in its own time: the main process may be told of the new file before its workers are.
    members = sorted([daemon.pid, *daemon.worker_pids()])
    wait_for(lambda: sorted(holders(daemon, path)) == members, 5, "every process holds the new one")
    assert daemon.terminate() == 0
    assert "msg=stopped" in path.read_text()
    assert "msg=stopped" not in old.read_text()


def holders(daemon: ProxyDaemon, path: Path) -> list[int]:
    """Processes of the daemon that have the file open."""
    found = []
    for pid in [daemon.pid, *daemon.worker_pids()]:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                same = os.path.samestat(entry.stat(), path.stat())
            except OSError:
                continue
            if same:
                found.append(pid)
                break
    return found


def test_warnings_at_the_start(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A backlog the kernel will cut, seeds without a node, too few descriptors: said once, and no reason to stop."""
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    seeds = [f"{HOST}:{free_port()}", "no.invalid:7000"]
    lonely = start_proxy(seeds, wait="")
    poor = start_proxy(
        small_cluster.seeds, {"listeners": [{"backlog": 100_000_000}]}, prefix=["prlimit", "--nofile=600:600"]
    )
    calm = start_proxy(small_cluster.seeds, {"clients": {"max_clients": 100}})
    assert poor.log_contains(rf"level=warning .*somaxconn.*{somaxconn}|level=warning .*{somaxconn}.*somaxconn")
    assert poor.log_contains("level=warning .*file descriptor limit.*limit=600")
    for seed in seeds:
        assert lonely.log_contains(rf"level=warning .*{re.escape(seed)}")
    assert "level=warning" not in calm.log
