"""SIGHUP: a changed configuration is in force for everybody, and no client notices; a bad one changes nothing.

The load counts every request (tests/support/load.py): leaving its `with` means that nothing was lost or refused.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded import HOST, EmbeddedCluster, EmbeddedNode, die_with_parent, free_port, wait_for
from tests.conftest import failed
from tests.support.load import Load, knock
from tests.support.processes import descriptors, session_members
from tests.support.proxyd import COMMAND, ROOT, WORKERS, ProxyDaemon, occupied_port, run_cli
from tests.support.raw import RawClient, bulk

StartProxy = Callable[..., ProxyDaemon]
CLIENTS = 24


@pytest.fixture(scope="module")
def pair() -> Iterator[EmbeddedCluster]:
    """One primary, one replica."""
    with EmbeddedCluster(primaries=1, replicas=1, node_timeout_ms=15000) as started:
        yield started


@pytest.fixture(scope="module")
def started(pair: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(pair.seeds) as daemon:
        yield daemon


@pytest.fixture
def daemon(started: ProxyDaemon, request: pytest.FixtureRequest) -> Iterator[ProxyDaemon]:
    """One daemon for all of them: each begins and ends with the same configuration, and no worker may have died."""
    start = len(started.log)
    wait_for(lambda: started.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")
    yield started
    if failed(request):
        print(f"--- proxy log of this test ---\n{started.log[start:][-6000:]}")
    started.reload({})
    wait_for(lambda: len(started.worker_pids()) == WORKERS, 10, f"{WORKERS} workers")
    assert started.metric("redis_proxy_worker_restarts_total") == 0


def info(client: RawClient, field: str) -> str:
    text = client.command("INFO").decode()
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)[field]


def calls(node: EmbeddedNode, command: str) -> int:
    """How often the node has run the command."""
    return int(node.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def names(cluster: EmbeddedCluster) -> Counter[str]:
    """Client names on all nodes -> connections."""
    return Counter(entry["name"] for node in cluster.nodes for entry in node.client.client_list())


def settled(daemon: ProxyDaemon, cluster: EmbeddedCluster, name: str) -> int:
    """Connections of that name at the nodes, when the workers have them all and make no more; 0 otherwise."""
    up, coming, failed = (
        daemon.metric("redis_proxy_backend_connections", state=state) for state in ("up", "connecting", "backoff")
    )
    return found if (found := names(cluster)[name]) == up and not coming and not failed else 0


# Under load


def test_limits_and_timeouts_of_clients_that_are_there(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    new = {
        "clients": {"max_bulk": "1kb", "max_clients": CLIENTS + 4, "tcp_keepalive": "7s"},
        "requests": {"timeout": "1s", "failover_timeout": "900ms"},
        "cluster": {"refresh_interval": "3s"},
    }
    with daemon.raw() as old, daemon.raw() as other:
        with Load(daemon.address, CLIENTS) as load:
            daemon.reload(new)
            load.advance()
            wait_for(lambda: info(old, "maxclients") == str(CLIENTS + 4), 5, "INFO tells the limit")
            with daemon.raw() as third, daemon.raw() as fourth:
                assert third.command("PING") == fourth.command("PING") == b"+PONG\r\n"
                with daemon.raw() as fifth:
                    assert fifth.rest() == b"-ERR max number of clients reached\r\n"
            assert old.command("SET", "a", "x" * 1000) == b"+OK\r\n"
            old.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2000\r\n")
            assert old.rest().startswith(b"-ERR Protocol error: invalid bulk length")
        (primary,) = pair.primaries()
        pair.pause(primary)
        try:
            asked_s = time.monotonic()
            assert other.command("SET", "a", "v").startswith(b"-")
            assert 0.7 < time.monotonic() - asked_s < 4
        finally:
            pair.resume(primary)
        wait_for(lambda: other.command("SET", "a", "v") == b"+OK\r\n", 10, "served again")


def test_an_idle_timeout_for_clients_that_are_there(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    with daemon.raw() as idle, Load(daemon.address, 6) as load:
        assert idle.command("PING") == b"+PONG\r\n"
        daemon.reload({"clients": {"idle_timeout": "1s"}})
        assert idle.rest() == b""
        load.advance()


def test_where_the_log_goes(pair: EmbeddedCluster, daemon: ProxyDaemon, tmp_path: Path) -> None:
    """Level, format and file, in every process."""
    path = tmp_path / "proxy.log"
    with Load(daemon.address, 8) as load:
        options = {"level": "debug", "format": "json", "file": str(path)}
        daemon.reload({"log": options, "backends": {"connections": 2}})  # new connections: the workers log them

        def levels(worker: int | None) -> set[str]:
            whole = path.read_text().rpartition("\n")[0]  # the last line may be on its way
            lines = [json.loads(line) for line in whole.splitlines()]
            return {line["level"] for line in lines if line.get("worker") == worker or worker is None}

        def debugs(worker: int) -> bool:
            return "debug" in levels(worker)

        wait_for(path.exists, 5, "the file is there")
        wait_for(lambda: "info" in levels(None), 5, "the main process logs there")
        for worker in range(2):
            wait_for(partial(debugs, worker), 5, f"worker {worker} logs there")
        load.advance()
        before = len(daemon.log)
        daemon.reload({"log": {"level": "error"}})
        members = session_members(daemon.session)
        wait_for(lambda: not any(str(path) in descriptors(pid) for pid in members), 5, "all of it is written")
        size = path.stat().st_size
        load.advance()
        daemon.reload({})
        wait_for(lambda: "msg=reloaded" in daemon.log[before:], 5, "stderr again")
        assert path.stat().st_size == size
        assert all(line.startswith("ts=") for line in daemon.log[before:].splitlines())


def test_the_read_policy(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    """Clients that are there follow their listener's, unless they have said themselves what they want."""
    (primary,), (replica,) = pair.primaries(), pair.replicas()
    with daemon.raw() as follower, daemon.raw() as chooser:
        assert chooser.command("READONLY") == b"+OK\r\n"
        with Load(daemon.address, CLIENTS, stale=True) as load:
            before = calls(replica, "get")
            load.advance()
            assert calls(replica, "get") == before
            daemon.reload({"listeners": [{"reads": "replica"}]})
            load.advance(40)
            assert calls(replica, "get") >= before + 100
            assert info(follower, "proxy_reads") == "replica"
            load.advance()
            daemon.reload({"listeners": [{"reads": "prefer_primary"}]})
            load.advance(40)
        assert info(follower, "proxy_reads") == "prefer_primary"
        assert info(chooser, "proxy_reads") == "prefer_replica"
        counts = calls(primary, "get"), calls(replica, "get")
        for _ in range(10):
            follower.command("GET", "a")
            chooser.command("GET", "a")
        assert (calls(primary, "get"), calls(replica, "get")) == (counts[0] + 10, counts[1] + 10)


def test_listeners_come_and_go(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    second = (HOST, free_port())
    added = {"address": f"{second[0]}:{second[1]}"}
    with Load(daemon.address, CLIENTS // 2) as load:
        daemon.reload({"listeners": [{}, added]})
        assert daemon.log_contains(f"address={added['address']}\n")
        with Load(second, CLIENTS // 2) as other:
            load.advance()
            daemon.reload({"listeners": [None, added]})
            assert knock(daemon.address).startswith("refused")
            assert knock(second) == ""
            load.advance()
            other.advance()
            daemon.reload({})
            assert knock(daemon.address) == ""
            assert knock(second).startswith("refused")
            load.advance()
            other.advance()


def test_a_unix_listener_comes_changes_and_goes(pair: EmbeddedCluster, daemon: ProxyDaemon, tmp_path: Path) -> None:
    path = tmp_path / "local.sock"
    listener: dict[str, Any] = {"address": f"unix:{path}", "mode": "0600"}
    daemon.reload({"listeners": [{}, listener]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Load(str(path), 8) as load:
        owner, group = (1, 1) if os.getuid() == 0 else (os.getuid(), os.getgid())
        spelt = f"{owner}:{group}" if os.getuid() == 0 else f":{group}"
        daemon.reload({"listeners": [{}, {**listener, "mode": "0666", "owner": spelt}]})
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o666, owner, group)
        load.advance()
        daemon.reload({})
        assert not path.exists()
        load.advance()


def test_more_and_fewer_workers(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    """Those that are too many serve their clients to the last one."""
    first = daemon.worker_pids()
    start = len(daemon.log)
    counted = daemon.metric("redis_proxy_commands_total", command="incr")
    with Load(daemon.address, CLIENTS) as load:
        daemon.reload({"workers": 4})
        wait_for(lambda: len(daemon.worker_pids()) == 4, 5, "four workers")
        wait_for(lambda: daemon.log[start:].count('msg="worker started"') == 2, 5, "all of them serve")
        load.advance()
        with Load(daemon.address, CLIENTS) as more:
            more.locate(daemon.served_by())
            assert {client.worker for client in more.clients} == set(daemon.worker_pids()) - set(first)
            daemon.reload({"workers": 1})
            assert len(daemon.worker_pids()) == 4
            load.advance()
            more.advance()
            with Load(daemon.address, 4) as last:
                last.locate(daemon.served_by())
                (chosen,) = {client.worker for client in last.clients}
                assert chosen in first
        wait_for(lambda: len(daemon.worker_pids()) == 2, 10, "those without clients end")
    wait_for(lambda: daemon.worker_pids() == [chosen], 10, "the last one ends")
    counted += load.increments() + more.increments() + last.increments()
    assert daemon.metric("redis_proxy_commands_total", command="incr") == counted


def test_connections_to_the_nodes_are_renewed(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    with Load(daemon.address, CLIENTS) as load:
        wait_for(lambda: names(pair)["redis-proxy"] >= 2, 5, "connected under the old name")
        daemon.reload({"backends": {"client_name": "renamed", "keepalive": "33s"}})
        load.advance(40)
        wait_for(lambda: names(pair)["redis-proxy"] == 0, 10, "the old connections are gone")
        once = int(wait_for(lambda: settled(daemon, pair, "renamed"), 10, "the new ones are made"))
        assert once >= 2
        daemon.reload({"backends": {"client_name": "renamed", "connections": 3}})
        load.advance(40)
        wait_for(lambda: names(pair)["renamed"] == 3 * once, 10, "three times as many")
        daemon.reload({"backends": {"client_name": "renamed"}})
        load.advance(40)
        wait_for(lambda: names(pair)["renamed"] == once, 10, "as many as before")


def test_the_password_at_the_nodes(start_proxy: StartProxy) -> None:
    """Rotated as an operator does it: on the nodes, then in the proxy."""
    with EmbeddedCluster(primaries=1, replicas=0) as cluster:
        daemon = start_proxy(cluster.seeds, {"backends": {"client_name": "before"}})
        node = cluster.nodes[0]
        with Load(daemon.address, CLIENTS) as load:
            node.command("CONFIG", "SET", "requirepass", "sesame", "masterauth", "sesame")
            load.advance()
            daemon.reload({"cluster": {"password": "sesame"}, "backends": {"client_name": "after"}})
            load.advance()
            wait_for(lambda: names(cluster)["before"] == 0, 10, "the old connections are gone")
            wait_for(lambda: names(cluster)["after"] >= 2, 10, "the new ones are made")
            load.advance()
        assert "sesame" not in daemon.log
        assert wait_for(lambda: daemon.http("/readyz")[0] == 200, 5, "ready")


def test_a_password_that_the_nodes_refuse(start_proxy: StartProxy) -> None:
    """One mistyped: nothing is changed, and one that they take is put in force the next time."""
    with EmbeddedCluster(primaries=2, replicas=0, password="one") as cluster:
        daemon = start_proxy(cluster.seeds, {"cluster": {"password": "one"}, "backends": {"client_name": "before"}})
        with Load(daemon.address, CLIENTS) as load:
            wanted = {"cluster": {"password": "typo"}, "backends": {"client_name": "after"}}
            daemon.configure(wanted)
            told = run_cli("reload", "-c", str(daemon.file))
            assert told.returncode == 1
            assert "not reloaded: cluster.password: the nodes refuse it: WRONGPASS" in told.stderr
            assert daemon.metric("redis_proxy_config_last_reload_successful") == 0
            load.advance(40)
            assert names(cluster)["after"] == 0
            first, second = cluster.nodes
            first.command("ACL", "SETUSER", "default", ">two")  # and the old one
            daemon.configure({"cluster": {"password": "two"}})
            told = run_cli("reload", "-c", str(daemon.file))
            assert "reloaded, but not everywhere: cluster.password: 1 nodes refuse it" in told.stderr
            assert f"{second.address}: WRONGPASS" in told.stderr
            load.advance(40)
            # Again, and with something that is new: still nobody loses a connection.
            daemon.configure({"cluster": {"password": "two"}, "backends": {"connections": 2}})
            assert "not everywhere: cluster.password: 1 nodes" in run_cli("reload", "-c", str(daemon.file)).stderr
            load.advance(40)
            second.command("ACL", "SETUSER", "default", ">two")
            daemon.reload({"cluster": {"password": "two"}})
            load.advance()
            assert daemon.metric("redis_proxy_config_last_reload_successful") == 1
        assert "typo" not in daemon.log


def test_a_password_that_no_node_says_a_word_to(start_proxy: StartProxy) -> None:
    """All have as many clients as they take: what works stays, and a reload that leaves the password as it is waits."""
    with EmbeddedCluster(primaries=1, replicas=0, password="one") as cluster:
        before = {"cluster": {"password": "one"}, "backends": {"client_name": "before"}}
        daemon = start_proxy(cluster.seeds, before)
        (node,) = cluster.nodes
        with Load(daemon.address, CLIENTS) as load:
            load.advance()
            (most,) = node.command("CONFIG", "GET", "maxclients")[1:]
            node.command("CONFIG", "SET", "maxclients", "1")
            daemon.configure(before | {"cluster": {"password": "typo"}})
            told = run_cli("reload", "-c", str(daemon.file))
            assert told.returncode == 1
            assert f"not reloaded: cluster.password: no node has taken it yet: {node.address}: " in told.stderr
            load.advance(40)
            daemon.reload({"cluster": {"password": "one"}, "backends": {"client_name": "after", "connections": 2}})
            load.advance(40)
            assert names(cluster)["after"] == 0
            node.command("CONFIG", "SET", "maxclients", most)
            wait_for(lambda: names(cluster)["before"] == 0, 10, "the old connections are gone")
            load.advance(40)


def test_the_seeds(pair: EmbeddedCluster, small_cluster: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    """Other nodes of the same cluster change nothing; another cluster is another cluster."""
    with daemon.raw() as raw:
        assert raw.command("SET", "where", "pair") == b"+OK\r\n"
        with Load(daemon.address, CLIENTS) as load:
            daemon.reload({"cluster": {"seeds": pair.seeds[1:]}})
            load.advance(40)
        daemon.reload({"cluster": {"seeds": small_cluster.seeds}})
        wait_for(lambda: raw.command("GET", "where") == b"$-1\r\n", 10, "the other cluster answers")
        assert raw.command("SET", "where", "small") == b"+OK\r\n"
        daemon.reload({})
        wait_for(lambda: raw.command("GET", "where") == bulk(b"pair"), 10, "the first one answers")
        wait_for(lambda: daemon.metric("redis_proxy_slots_covered") == 16384, 5, "all slots are covered")


def test_the_password_of_clients(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    """Who is in stays in (as with CONFIG SET requirepass); who comes has to say it."""
    with Load(daemon.address, 8) as load:
        daemon.reload({"clients": {"password": "sesame"}})
        load.advance()
        with daemon.raw() as raw:
            assert raw.command("GET", "a").startswith(b"-NOAUTH")
            assert raw.command("AUTH", "sesame") == b"+OK\r\n"
            assert not raw.command("GET", "a").startswith(b"-")
    assert "sesame" not in daemon.log


def test_the_admin_address(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    old = daemon.admin_port
    daemon.reload({"admin": {"address": f"{HOST}:{free_port()}"}})
    assert daemon.admin_port != old
    assert daemon.http("/readyz")[0] == 200
    daemon.admin_port, moved = old, daemon.admin_port
    with pytest.raises(ConnectionRefusedError):
        daemon.http("/livez")
    daemon.admin_port = moved


# Refused


def test_a_bad_file_is_refused_whole(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    start = len(daemon.log)
    with daemon.raw() as raw, Load(daemon.address, 8) as load:
        daemon.reload({"clients": {"max_clients": 0}, "workers": 3, "nosuch": 1, "log": {"level": "debug"}}, good=False)
        load.advance()
        wait_for(lambda: "not reloaded" in daemon.log[start:], 5, "told")
        refused = daemon.log[start:]
        for told in (str(daemon.file), "clients.max_clients", "nosuch"):
            assert told in refused
        done = run_cli("-t", "-c", str(daemon.file))
        assert done.returncode == 78
        assert info(raw, "maxclients") == "10000"
        assert len(daemon.worker_pids()) == 2
        assert "level=debug" not in daemon.log[start:]
        daemon.file.write_text("listeners: [")
        daemon.signal(signal.SIGHUP)
        wait_for(lambda: daemon.log[start:].count("not reloaded") == 2, 5, "refused again")
        daemon.reload({"clients": {"max_clients": 99}})
        wait_for(lambda: info(raw, "maxclients") == "99", 5, "the good one is in force")
        load.advance()


def test_what_cannot_be_opened_is_refused_whole(pair: EmbeddedCluster, daemon: ProxyDaemon, tmp_path: Path) -> None:
    start = len(daemon.log)
    taken, port = occupied_port()
    unix = tmp_path / "new.sock"
    with taken, daemon.raw() as raw, Load(daemon.address, 8) as load:
        new = free_port()
        listeners = [{}, {"address": f"{HOST}:{new}"}, {"address": f"unix:{unix}"}, {"address": f"{HOST}:{port}"}]
        impossible: list[dict[str, Any]] = [
            {"listeners": listeners},
            {"listeners": listeners[:3], "admin": {"address": f"{HOST}:{port}"}},
            {"listeners": listeners[:3], "log": {"file": str(tmp_path / "nosuch" / "log")}},
        ]
        for config in impossible:
            daemon.reload({})
            daemon.reload({**config, "clients": {"max_clients": 33}}, good=False)
            assert knock((HOST, new)).startswith("refused")
            assert not unix.exists()
            assert info(raw, "maxclients") == "10000"
            load.advance(5)
        wait_for(lambda: daemon.log[start:].count("not reloaded") >= 3, 5, "told")
        assert f"{HOST}:{port}" in daemon.log[start:]
        assert "nosuch" in daemon.log[start:]
        assert daemon.log[start:].count("not reloaded") == 3


def test_without_a_file_there_is_nothing_to_reload(small_cluster: EmbeddedCluster) -> None:
    """Defaults for the rest: this one may meet the default port in use, and then says so."""
    process = subprocess.Popen(
        [*COMMAND, small_cluster.seeds[0]], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=die_with_parent()
    )
    told = ""

    def read_until(text: str) -> None:
        nonlocal told
        assert process.stderr is not None
        while text not in told and (line := process.stderr.readline()):
            told += line

    try:
        read_until("msg=started")
        if "msg=started" in told:
            process.send_signal(signal.SIGHUP)
            read_until("not reloaded")
            assert "command line" in told
            process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == (1 if "in use" in told else 0), told


# At odd moments


def test_many_at_once(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    with daemon.raw() as raw, Load(daemon.address, 8) as load:
        for n in range(30):
            daemon.configure({"clients": {"max_clients": 100 + n}, "workers": 1 + n % 3})
            daemon.signal(signal.SIGHUP)
            load.advance(1)
        daemon.reload({"clients": {"max_clients": 77}})
        wait_for(lambda: info(raw, "maxclients") == "77", 5, "the last one is in force")


def test_commands_nobody_knows(pair: EmbeddedCluster, daemon: ProxyDaemon) -> None:
    """A reload warns of them as -t does: what was to be denied is not."""
    start = len(daemon.log)
    daemon.reload({"commands": {"deny": ["@writ", "flushal"]}})
    for name in ("@writ", "flushal"):
        text = f"commands.deny: no command or category known here is called {name}"
        wait_for(lambda text=text: text in daemon.log[start:], 5, "a warning")  # type: ignore[misc]
    daemon.reload({"commands": {"deny": []}})
