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
    "topology": {
        "known": True,
        "fresh": False,
        "slots_covered": 16384,
        "epoch": 7,
        "last_success_s": 91_000.0,
        "error": "10.0.0.1:1: timed out",
    },
    "nodes": [
        {"address": "10.0.0.1:1", "role": "primary", "up": True, "connections": 2, "pending": 0, "connect_failures": 4}
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

workers: 2 of 2 running, 1 restarts
  number  pid  clients  silent  lag  leaving
  0       10   7        0.0123  0    no
  1       11   12345    0.5     -    yes

clients: 12352 of at most 20000, memory 3.0mb of 1.0gb
  rejected       max_clients 3

topology: known, stale, 16384 slots covered, epoch 7, learnt 1h 1m ago
  error          10.0.0.1:1: timed out
  address     role     up   connections  pending  connect failures
  10.0.0.1:1  primary  yes  2            0        4

reload: 2 attempts, the last 1m 1s ago
  error          1 fault
  f:1: a
upgrade: idle
log: 0 lines dropped"""
    )


def test_what_is_missing_is_shown_as_such():
    shown = page({"proxy": {"draining": True}, "workers": {"each": [5, {}]}, "nodes": None, "clients": 5}, 0.0)
    assert shown.startswith("redis-proxy -, pid -, up -, draining\n")
    assert "of any\n" in shown
    assert "reload: none\n" in shown


def test_nothing_forges_a_line():
    state = STATE | {"nodes": [{"address": "evil\nlog: 5\x1b[2J", "role": "primary"}]}
    assert "evil?log: 5?[2J" in page(state, 0.0)
