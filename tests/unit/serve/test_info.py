"""INFO: which sections, in which order, and that no figure is made up."""

from __future__ import annotations

import os
import platform
from typing import Any

import pytest

from proxy.forward.ask import Later
from proxy.resp import encode
from proxy.resp.decode import decode
from proxy.serve import info, table
from proxy.serve.context import NodeState, ServeContext
from proxy.serve.info_merge import Document
from proxy.serve.node_infos import Infos, NodeInfo
from tests.unit.serve.fakes import RUN_ID, FakeClient, context, topology

ALL = [
    "Server", "Clients", "Memory", "Persistence", "Stats", "Replication", "CPU", "Modules", "Commandstats",
    "Errorstats", "Latencystats", "Cluster", "Keyspace", "Proxy", "Nodes",
]  # fmt: skip
PLAIN = [name for name in ALL if name not in ("Commandstats", "Latencystats")]


def text_of(*asked: str, ctx: ServeContext | None = None, client: FakeClient | None = None) -> str:
    reply = info.info(ctx or context(), client or FakeClient(), [b"INFO", *(section.encode() for section in asked)])
    assert isinstance(reply, bytes)
    text = decode(reply)
    assert isinstance(text, bytes)
    return text.decode()


def sections(*asked: str, ctx: ServeContext | None = None) -> dict[str, dict[str, str]]:
    """Section -> field -> value, in the order they came."""
    return parsed(text_of(*asked, ctx=ctx))


def parsed(text: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in text.split("\r\n"):
        if line.startswith("# "):
            fields = found.setdefault(line[2:], {})
        elif line:
            name, _, value = line.partition(":")
            assert name not in fields
            fields[name] = value
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), PLAIN),
        (("default",), PLAIN),
        (("ALL",), ALL),
        (("everything", "server"), ALL),
        (("server",), ["Server"]),
        (("KEYSPACE", "clients", "keyspace"), ["Clients", "Keyspace"]),
        (("nosuch",), []),
        (("nosuch", "cpu"), ["CPU"]),
        (("",), []),
        (("persistence", "commandstats"), ["Persistence", "Commandstats"]),
        (("commandstats", "default"), [name for name in ALL if name != "Latencystats"]),
        (("sentinel", "keysizes"), []),
    ],
)
def test_sections(asked: tuple[str, ...], expected: list[str]) -> None:
    assert list(sections(*asked)) == expected


def test_sections_are_parted_by_an_empty_line() -> None:
    assert text_of("cluster", "keyspace") == "# Cluster\r\ncluster_enabled:0\r\n\r\n# Keyspace\r\n"


def test_reply_in_both_protocols() -> None:
    text = "# Cluster\r\ncluster_enabled:0\r\n"
    for proto in (2, 3):
        answer = table.answer(context(), FakeClient(proto=proto), [b"INFO", b"cluster"])
        assert answer == encode.verbatim(text.encode(), "txt", proto)


def test_server_of_redis() -> None:
    server = sections("server", ctx=context(server_version="7.0.15"))["Server"]
    assert server["redis_version"] == "7.0.15"
    assert server["redis_mode"] == "standalone"
    assert server["run_id"] == RUN_ID
    assert server["tcp_port"] == "7617"
    assert server["process_id"] == str(os.getpid())
    assert not {"valkey_version", "server_name", "server_mode"} & server.keys()


def test_the_process_is_the_proxys_whoever_answers() -> None:
    assert sections("server", ctx=context(process_id=4711))["Server"]["process_id"] == "4711"


def test_server_of_valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.serve.info.time.time", lambda: 1000.0 + 3 * 86400 + 5.5)
    ctx = context(server_name="valkey", valkey_version="9.1.2")
    server = sections("server", ctx=ctx)["Server"]
    assert (server["redis_version"], server["valkey_version"], server["server_name"]) == ("7.2.4", "9.1.2", "valkey")
    assert (server["redis_mode"], server["server_mode"]) == ("standalone", "standalone")
    assert (server["uptime_in_seconds"], server["uptime_in_days"]) == (str(3 * 86400 + 5), "3")


def test_only_known_figures() -> None:
    nothing = {"paused_reason": "none", "paused_actions": "none", "paused_timeout_milliseconds": "0"}
    assert sections("clients", "stats") == {"Clients": nothing, "Stats": {}}
    stats = {"connected_clients": 3, "total_commands_processed": 11, "proxy_workers": 2, "unheard_of": 1}
    found = sections("clients", "stats", "proxy", ctx=context(stats=lambda: stats))
    assert found["Clients"] == {"connected_clients": "3", **nothing}
    assert found["Stats"] == {}
    assert found["Proxy"]["proxy_workers"] == "2"
    assert found["Proxy"]["proxy_commands_processed"] == "11"
    assert "unheard_of" not in found["Proxy"]


def test_proxy_section_tells_the_topology() -> None:
    assert "proxy_shards" not in sections("proxy")["Proxy"]
    found = sections("proxy", ctx=context(**topology((0, 99), (200, 299), epoch=12)))["Proxy"]
    expected = {
        "proxy_shards": "2",
        "proxy_slots_covered": "200",
        "proxy_topology_epoch": "12",
        "proxy_version": "0.1.0",
    }
    assert expected.items() <= found.items()
    assert "proxy_topology_epoch" not in sections("proxy", ctx=context(**topology((0, 9), epoch=-1)))["Proxy"]


def test_memory_held_for_clients() -> None:
    stats = {"proxy_client_memory": 3 << 20, "proxy_client_memory_max": 1 << 30}
    found = sections("memory", "proxy", ctx=context(stats=lambda: stats))
    assert found["Memory"]["proxy_client_memory"] == str(3 << 20)
    assert found["Memory"]["proxy_client_memory_human"] == "3.00M"
    assert found["Memory"]["proxy_client_memory_max"] == str(1 << 30)
    assert int(found["Memory"]["proxy_used_memory_rss"]) > 1 << 20
    assert "used_memory" not in found["Memory"]
    assert "proxy_client_memory" not in found["Proxy"]
    assert "proxy_client_memory" not in sections("memory")["Memory"]


def test_nodes_section() -> None:
    nodes = [NodeState("10.0.0.1:7000", "primary", True, 2, 5), NodeState("[::1]:7001", "replica", False, 0, 0)]
    assert sections("nodes", ctx=context(nodes=lambda: nodes))["Nodes"] == {
        "node0": "addr=10.0.0.1:7000,role=primary,state=up,connections=2,pending=5",
        "node1": "addr=[::1]:7001,role=replica,state=down,connections=0,pending=0",
    }


def test_memory_and_cpu_are_this_process() -> None:
    found = sections("memory", "cpu")
    memory = found["Memory"]
    rss = int(memory["proxy_used_memory_rss"])
    assert 1 << 20 < rss <= int(memory["proxy_used_memory_rss_peak"])
    assert rss < int(memory["proxy_total_system_memory"])
    assert float(found["CPU"]["proxy_used_cpu_user"]) > 0


def test_info_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """platform.architecture() does, each time: milliseconds in which the worker serves nobody."""
    expected = platform.architecture()[0].removesuffix("bit")
    monkeypatch.setattr("subprocess.Popen", None)
    assert sections("server")["Server"]["arch_bits"] == expected


# -- what the nodes tell


def a_document(used: int, keys: int) -> Document:
    return {
        "memory": [f"used_memory:{used}", f"used_memory_human:{used}B"],
        "stats": ["total_connections_received:9", "instantaneous_ops_per_sec:5", "keyspace_hits:7"],
        "replication": ["role:slave", "connected_slaves:1", "master_repl_offset:10", "repl_backlog_histlen:4"],
        "keyspace": [f"db0:keys={keys},expires=0,avg_ttl=0"],
    }


class FakeInfos:
    """Fits NodeInfos; answers when the test says so."""

    def __init__(self, infos: Infos, known: bool = False) -> None:
        self.infos, self.known = infos, known
        self.waiting: list[tuple[bool, int, Any]] = []

    def fresh(self, whole: bool) -> Infos | None:
        return self.infos if self.known else None

    def wait(self, whole: bool, proto: int, done: Any) -> None:
        self.waiting.append((whole, proto, done))


def cluster_infos(*, missing: bool = False) -> Infos:
    nodes = [
        NodeInfo("10.0.0.1:7000", False, a_document(100, 3)),
        NodeInfo("10.0.0.2:7000", False, None if missing else a_document(300, 4)),
        NodeInfo("10.0.0.3:7000", True, a_document(1000, 50)),
    ]
    return Infos(nodes, True, 0.0)


def of_cluster(infos: Infos, **changes: Any) -> dict[str, dict[str, str]]:
    places = [(node.label, "replica" if node.replica else "primary") for node in infos.nodes]
    nodes = [NodeState(address, role, True, 1, 0) for address, role in places]
    ctx = context(nodes=lambda: nodes, **changes)
    return parsed(info.document(ctx, FakeClient(), ALL, infos))


def test_totals_are_of_the_primaries() -> None:
    stats = {"total_connections_received": 4, "total_net_input_bytes": 8, "instantaneous_ops_per_sec": 1}
    found = of_cluster(cluster_infos(), stats=lambda: stats)
    assert (found["Memory"]["used_memory"], found["Memory"]["used_memory_human"]) == ("400", "400B")
    assert found["Stats"] == {
        "total_connections_received": "4",
        "instantaneous_ops_per_sec": "10",
        "keyspace_hits": "14",
    }
    assert found["Keyspace"] == {"db0": "keys=7,expires=0,avg_ttl=0"}
    replication = found["Replication"]
    assert (replication["role"], replication["connected_slaves"]) == ("master", "0")
    assert (replication["master_repl_offset"], replication["master_replid"]) == ("20", RUN_ID)
    assert (found["Proxy"]["proxy_ops_per_sec"], found["Proxy"]["proxy_nodes_missing"]) == ("1", "0")
    assert found["Nodes"]["node2"].endswith(",pending=0,used_memory=1000,keys=50,ops_per_sec=5")
    assert not any("proxy_primaries_missing" in fields for fields in found.values())


def test_totals_that_lack_a_node_say_so() -> None:
    found = of_cluster(cluster_infos(missing=True))
    for section in ("Memory", "Stats", "Proxy"):
        assert found[section]["proxy_primaries_missing"] == "1"
    assert found["Keyspace"] == {"db0": "keys=3,expires=0,avg_ttl=0"}
    assert found["Nodes"]["node1"].endswith(",pending=0,missing=1")


@pytest.mark.parametrize(
    ("asked", "asks", "whole"),
    [
        (["server"], False, False),
        (["server", "clients", "cluster", "proxy", "nosuch"], False, False),
        (["memory"], True, False),
        ([], True, False),
        (["latencystats"], True, True),
        (["all"], True, True),
    ],
)
def test_who_is_asked(asked: list[str], asks: bool, whole: bool) -> None:
    infos = FakeInfos(cluster_infos())
    answer = info.info(context(infos=infos), FakeClient(proto=3), [b"INFO", *(word.encode() for word in asked)])
    assert isinstance(answer, Later if asks else bytes)
    assert [(one, proto) for one, proto, _ in infos.waiting] == ([(whole, 3)] if asks else [])


def test_not_before_what_the_client_has_under_way() -> None:
    infos = FakeInfos(cluster_infos())
    assert info.info(context(infos=infos), FakeClient(pending=1), [b"INFO"]) is None
    assert isinstance(info.info(context(infos=infos), FakeClient(pending=1), [b"INFO", b"server"]), bytes)
    assert infos.waiting == []


def test_who_repeats_it_at_once_gets_what_is_known() -> None:
    """... but not who has sent something else meanwhile, or another client."""
    infos = FakeInfos(cluster_infos(), known=True)
    ctx = context(infos=infos)
    client = FakeClient(total_commands=5)
    assert isinstance(info.info(ctx, client, [b"INFO"]), Later)
    ((_, _, done),) = infos.waiting
    done(infos.infos)
    for sent in (6, 7, 8):
        client.total_commands = sent
        assert isinstance(info.info(ctx, client, [b"INFO", b"memory"]), bytes)
    assert isinstance(info.info(ctx, FakeClient(id=8, total_commands=9), [b"INFO"]), Later)
    client.total_commands = 10
    assert isinstance(info.info(ctx, client, [b"INFO"]), Later)


def test_made_once_for_all_who_wait() -> None:
    counted = []
    infos = FakeInfos(cluster_infos())
    ctx = context(infos=infos, nodes=lambda: counted.append(1) or [])
    for number in range(5):
        info.info(ctx, FakeClient(id=number), [b"INFO"])
    for _, _, done in infos.waiting:
        done(infos.infos)
    assert counted == [1]
