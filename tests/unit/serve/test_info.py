"""INFO: which sections, in which order, and that no figure is made up."""

from __future__ import annotations

import os
import platform

import pytest

from proxy.resp import encode
from proxy.serve import info, table
from proxy.serve.context import NodeState, ServeContext
from tests.unit.serve.fakes import RUN_ID, FakeClient, context, topology

ALL = ["Server", "Clients", "Memory", "Stats", "Replication", "CPU", "Cluster", "Keyspace", "Proxy", "Nodes"]


def sections(*asked: str, ctx: ServeContext | None = None) -> dict[str, dict[str, str]]:
    """Section -> field -> value, in the order they came."""
    text = info.document(ctx or context(), FakeClient(), [section.encode() for section in asked])
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
        ((), ALL),
        (("default",), ALL),
        (("ALL",), ALL),
        (("everything", "server"), ALL),
        (("server",), ["Server"]),
        (("KEYSPACE", "clients", "keyspace"), ["Clients", "Keyspace"]),
        (("nosuch",), []),
        (("nosuch", "cpu"), ["CPU"]),
        (("",), []),
        (("persistence", "commandstats"), []),
    ],
)
def test_sections(asked: tuple[str, ...], expected: list[str]) -> None:
    assert list(sections(*asked)) == expected


def test_sections_are_parted_by_an_empty_line() -> None:
    text = info.document(context(), FakeClient(), [b"cluster", b"keyspace"])
    assert text == "# Cluster\r\ncluster_enabled:0\r\n\r\n# Keyspace\r\n"


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
    assert sections("clients", "stats") == {"Clients": {}, "Stats": {}}
    stats = {"connected_clients": 3, "total_commands_processed": 11, "proxy_workers": 2, "unheard_of": 1}
    found = sections("clients", "stats", "proxy", ctx=context(stats=lambda: stats))
    assert found["Clients"] == {"connected_clients": "3"}
    assert found["Stats"] == {"total_commands_processed": "11"}
    assert found["Proxy"]["proxy_workers"] == "2"
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
    assert int(found["Memory"]["used_memory"]) > 1 << 20
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
    assert 1 << 20 < int(memory["used_memory_rss"]) <= int(memory["used_memory_peak"])
    assert int(memory["used_memory_rss"]) < int(memory["total_system_memory"])
    assert float(found["CPU"]["used_cpu_user"]) > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.00K"),
        (1388472, "1.32M"),
        (25276502016, "23.54G"),
        (1024**4, "1.00T"),
        (3 * 1024**5, "3.00P"),
        (1024**6, "1024.00P"),
    ],
)
def test_human(size: int, text: str) -> None:
    assert info.human(size) == text


def test_info_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """platform.architecture() does, each time: milliseconds in which the worker serves nobody."""
    expected = platform.architecture()[0].removesuffix("bit")
    monkeypatch.setattr("subprocess.Popen", None)
    assert sections("server")["Server"]["arch_bits"] == expected
