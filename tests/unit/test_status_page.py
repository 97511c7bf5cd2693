"""proxy.status_page: what a state looks like to people."""

from proxy.status_page import page

STATE = {
    "proxy": {
        "version": "1.2.3",
        "pid": 4711,
        "started_s": 1000.0,
        "run_id": "abc",
        "source": "/etc/redis-proxy/proxy.yaml",
        "draining": False,
        "listening": ["127.0.0.1:7617", "unix:/x"],
        "admin": "127.0.0.1:9617",
    },
    "workers": {
        "configured": 2,
        "running": 2,
        "restarts": 1,
        "each": [
            {"number": 0, "pid": 10, "clients": 7, "silent_s": 0.01234, "lag_s": 0.0, "leaving": False},
            {"number": 1, "pid": 11, "clients": 12345, "silent_s": 0.5, "lag_s": None, "leaving": True},
        ],
    },
    "clients": {
        "connected": 12352,
        "max": 20000,
        "memory": 3 << 20,
        "max_memory": 1 << 30,
        "rejected": {"max_clients": 3, "other": 0},
    },
    "commands": {
        "held": 3,
        "clients_paused": 0,
        "holds": {"connection_lost": 12, "loading": 0},
        "refusals": {"node_down": 2},
    },
    "topology": {
        "known": True,
        "fresh": True,
        "slots_covered": 16384,
        "down_s": 0.0,
        "epoch": 7,
        "last_success_s": 91_000.0,
        "error": "10.0.0.1:1: timed out",
    },
    "nodes": [
        {
            "address": "10.0.0.1:1",
            "role": "primary",
            "up": True,
            "connections": 2,
            "pending": 0,
            "connect_failures": 4,
            "down_s": 0.0,
            "suspected_s": 0.0,
            "paused": False,
            "held": 0,
            "held_bytes": 0,
        }
    ],
    "reload": {
        "attempts": 2,
        "successful": 1,
        "at_s": 94_600.0,
        "error": "1 fault",
        "faults": ["f:1: a"],
        "changes": [],
    },
    "upgrade": {"attempts": 0, "state": "idle", "error": "", "pid": 0},
    "log": {"dropped": 0},
}


def test_a_page():
    assert (
        page(STATE, 94_661.0)
        == """\
redis-proxy 1.2.3, pid 4711, up 1d 2h
  configuration  /etc/redis-proxy/proxy.yaml
  listening      127.0.0.1:7617, unix:/x
  admin          127.0.0.1:9617

wrong: nothing that the proxy knows of

workers: 2 of 2 running, 1 restarts
  number  pid  clients  silent  lag  leaving
  0       10   7        0.0123  0    no
  1       11   12345    0.5     -    yes

clients: 12352 of at most 20000, memory 3.0mb of 1.0gb
  rejected       max_clients 3

commands: 3 held until they can be sent, 0 clients wait for paused nodes
  held so far    connection_lost 12
  refused        node_down 2

topology: known, fresh, 16384 slots covered, epoch 7, learnt 1h 1m ago
  error          10.0.0.1:1: timed out
  address     role     up   connections  pending  held  connect failures
  10.0.0.1:1  primary  yes  2            0        0     4

reload: 2 attempts, the last 1m 1s ago
  error          1 fault
  f:1: a
upgrade: idle
log: 0 lines dropped"""
    )


def node(number: int, role: str = "primary", **more: object) -> dict[str, object]:
    return {"address": f"10.0.0.{number}:1", "role": role, "held": 0, "held_bytes": 0, **more}


def trouble(**parts: object) -> list[str]:
    """What stands under `wrong:`."""
    _, found, tail = page(STATE | parts, 94_661.0).partition("wrong:\n")
    return [line.strip() for line in tail.partition("\n\n")[0].splitlines()] if found else []


def test_what_is_wrong_comes_first_and_the_worst_of_it_first():
    assert trouble() == []
    topology = STATE["topology"] | {"fresh": False, "down_s": 75.4, "slots_covered": 10923}
    nodes = [
        node(1, "replica", down_s=3.2),
        node(2, down_s=0.4, held=12, held_bytes=4096, suspected_s=0.2),
        node(3, suspected_s=2.5),
        node(4, paused=True, suspected_s=9.0, down_s=9.0),
        node(5, held=1, held_bytes=90),
        node(6),
        node(7, outdated=True),
    ]
    assert trouble(topology=topology, nodes=nodes, workers=STATE["workers"] | {"running": 1}) == [
        "the topology has not been confirmed lately",
        "the nodes have said for 1m 15s that the cluster is down",
        "5461 slots have no primary",
        "primary 10.0.0.2:1: not reached for 0s, 12 commands (4.0kb) held for it",
        "primary 10.0.0.3:1: no answer to PING for 2s",
        "primary 10.0.0.4:1: paused by PROXY PAUSE",
        "primary 10.0.0.5:1: 1 commands (90b) held for it",
        "primary 10.0.0.7:1: has connections of before the last reload only",
        "replica 10.0.0.1:1: not reached for 3s",
        "1 workers are missing",
    ]
    each = [{"number": 0, "reaches_primary": True}, {"number": 1, "reaches_primary": False}, {"number": 2}]
    assert trouble(workers=STATE["workers"] | {"each": each}) == ["worker 1 reaches no primary"]
    each = [{"number": 0, "missed": []}, {"number": 1, "missed": ["10.0.0.2:1", "10.0.0.3\n:1"]}, {"missed": "x"}]
    assert trouble(workers=STATE["workers"] | {"each": each}) == [
        "worker 1 does not reach 10.0.0.2:1, 10.0.0.3?:1, which others do"
    ]
    assert trouble(proxy=STATE["proxy"] | {"log_error": "No space left on device"}) == [
        "the log cannot be written: No space left on device"
    ]
    assert trouble(topology={"known": False, "slots_covered": 0}) == ["no node has told the topology yet"]


def test_what_is_missing_is_shown_as_such():
    shown = page({"proxy": {"draining": True}, "workers": {"each": [5, {}]}, "nodes": None, "clients": 5}, 0.0)
    assert shown.startswith("redis-proxy -, pid -, up -, draining\n")
    assert "of any\n" in shown
    assert "wrong: nothing that the proxy knows of\n" in shown
    assert "reload: none\n" in shown


def test_nothing_forges_a_line():
    state = STATE | {"nodes": [{"address": "evil\nlog: 5\x1b[2J", "role": "primary"}]}
    assert "evil?log: 5?[2J" in page(state, 0.0)
