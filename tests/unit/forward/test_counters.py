"""What is counted, and what it is called."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys

import pytest

from proxy.admin.snapshot import CommandValues, CounterValues
from proxy.forward.counters import (
    BOUNDS_S,
    CLOSE_REASON_NAMES,
    COUNTERS_SIZE,
    ERROR_KINDS,
    REDIRECTION_NAMES,
    RETRY_OUTCOME_NAMES,
    RETRY_REASON_NAMES,
    Counters,
)
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, A, Play

GET_A = encode_command("GET", KEY_A)


def test_fresh_counters_are_all_there_and_zero() -> None:
    counters = Counters()
    values = counters.snapshot()
    assert values["commands"] == {
        "other": {"calls": 0, "errors": {}, "buckets": [0] * (len(BOUNDS_S) + 1), "sum_s": 0.0, "split": 0}
    }
    assert values.keys() == CounterValues.__annotations__.keys()
    assert values["commands"]["other"].keys() == CommandValues.__annotations__.keys()
    assert values["closed"] == dict.fromkeys(CLOSE_REASON_NAMES, 0)
    assert values["redirections"] == dict.fromkeys(REDIRECTION_NAMES[1:], 0)
    assert values["retries"] == {(r, o): 0 for r in RETRY_REASON_NAMES for o in RETRY_OUTCOME_NAMES}
    assert {values[name] for name in ("accepted", "rejected", "client_in", "client_out", "timeouts", "inflight")} == {0}
    assert list(BOUNDS_S) == sorted(BOUNDS_S)
    assert len(set(ERROR_KINDS)) == len(ERROR_KINDS)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        *((f"-{kind} text\r\n", kind) for kind in ERROR_KINDS[:-1] if kind not in ("MOVED", "ASK")),
        ("-ERR\r\n", "ERR"),
        ("-\r\n", "other"),
        ("- ERR\r\n", "other"),
        ("-err x\r\n", "other"),
        ("-ER x\r\n", "other"),
        ("-ERRO x\r\n", "other"),
        ("-BUSYKEYS x\r\n", "other"),
    ],
)
def test_errors_are_counted_by_their_first_word(play: Play, line: str, kind: str) -> None:
    stage = play(timeout_s=0.0)  # what would be retried is given up at once
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(line.encode())
    stage.turn()
    assert client.get() == line.encode()
    assert stage.count("commands")["get"]["errors"] == {kind: 1}


def test_errors_of_our_own_count_for_their_command(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(
        encode_command("GET")
        + encode_command("nonsense", KEY_A)
        + encode_command("RENAME", KEY_A, KEY_B)
        + encode_command("PING")
    )
    stage.turn()
    stage.node(A).send(b"-ERR unknown command\r\n")
    stage.turn()
    commands = stage.count("commands")
    assert {name: commands[name]["errors"] for name in ("get", "other", "rename", "ping")} == {
        "get": {"ERR": 1},
        "other": {"ERR": 1},
        "rename": {"CROSSSLOT": 1},
        "ping": {},
    }
    assert {name: commands[name]["calls"] for name in ("get", "other", "rename", "ping", "set")} == {
        "get": 1,
        "other": 1,
        "rename": 1,
        "ping": 1,
        "set": 0,
    }


def test_a_nested_error_is_no_error(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    stage.node(A).send(b"*1\r\n-ERR x\r\n" + bulk("-ERR x"))
    stage.turn()
    assert client.get() == b"*1\r\n-ERR x\r\n" + bulk("-ERR x")
    assert stage.count("commands")["get"]["errors"] == {}


def test_durations_fall_into_their_buckets(play: Play) -> None:
    """What takes at least 20 ms is in no bucket below, and in the sum."""
    stage = play(timeout_s=0.02)
    client = stage.client()
    client.send(encode_command("PING") + GET_A)
    stage.until(lambda: stage.count("timeouts"), sweep=True)
    assert client.get().startswith(b"+PONG\r\n-ERR timed out")
    commands = stage.count("commands")
    assert commands["ping"]["buckets"] == [1] + [0] * len(BOUNDS_S)
    assert commands["ping"]["sum_s"] == 0
    buckets = commands["get"]["buckets"]
    assert sum(buckets) == 1
    assert buckets.index(1) >= next(n for n, bound in enumerate(BOUNDS_S) if bound >= 0.02)
    assert 0.02 <= commands["get"]["sum_s"] < 10


def test_bytes_both_ways(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("PING") + GET_A + GET_A[:5])
    stage.turn()
    large = bulk(b"v" * 50_000)
    stage.node(A).send(large)
    stage.turn()
    client.get()
    assert {name: stage.count(name) for name in ("client_in", "client_out", "backend_in", "backend_out")} == {
        "client_in": len(encode_command("PING") + GET_A) + 5,
        "client_out": len(b"+PONG\r\n" + large),
        "backend_in": len(large),
        "backend_out": len(GET_A),
    }


def test_inflight_counts_what_clients_wait_for(play: Play) -> None:
    stage = play()
    one, two = stage.client(), stage.client()
    one.send(GET_A + encode_command("PING") + encode_command("DEL", KEY_A, KEY_B))
    two.send(GET_A)
    stage.turn()
    assert stage.count("inflight") == 4
    two.close()
    stage.turn()
    assert stage.count("inflight") == 3
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert stage.count("inflight") == 1
    assert one.get() == bulk("1") + b"+PONG\r\n"


def test_connections_are_counted(play: Play) -> None:
    stage = play()
    for _ in range(3):
        stage.client()
    stage.path.reject()
    assert (stage.count("accepted"), stage.count("rejected")) == (3, 1)


def test_metrics_keep_their_index_when_the_table_changes(play: Play) -> None:
    stage = play()
    before = dict(stage.counters.metrics)
    type(stage.path.table)([], "other", stage.counters.metrics)
    assert stage.counters.metrics == before
    assert before["other"] == 0
    assert len(set(before.values())) == len(before)


def test_commands_never_answered_cost_no_list(play: Play) -> None:
    stage = play()
    stage.client().send(encode_command("PING"))
    stage.turn()
    commands = stage.count("commands")
    assert len(commands) > 100
    assert len({id(command["buckets"]) for command in commands.values()}) == 2
    assert sum(commands["ping"]["buckets"]) == 1
    assert commands["get"]["buckets"] == [0] * (len(BOUNDS_S) + 1)


READER = """
import json, mmap, sys
from proxy.forward.counters import COUNTERS_SIZE, Counters
counters = Counters(mmap.mmap(int(sys.argv[1]), COUNTERS_SIZE))
counters.metrics = {"get": int(sys.argv[2])}
values = counters.snapshot()
print(json.dumps([values["commands"], values["closed"]["client"], values["inflight"], values["client_out"]]))
"""


def test_another_process_reads_them(play: Play) -> None:
    """Also after the one who counted has gone: the memory is a file's."""
    fd = os.memfd_create("counters")
    try:
        os.ftruncate(fd, COUNTERS_SIZE)
        stage = play(memory=mmap.mmap(fd, COUNTERS_SIZE))
        client, waiting = stage.client(), stage.client()
        client.send(GET_A * 3)
        stage.turn()
        stage.node(A).send(bulk("1") + b"-LOADED x\r\n-ERR x\r\n")
        stage.turn()
        client.close()
        waiting.send(GET_A)
        stage.turn()
        told = [sys.executable, "-c", READER, str(fd), str(stage.counters.metrics["get"])]
        commands, closed, inflight, client_out = json.loads(subprocess.check_output(told, pass_fds=(fd,), text=True))
        mine = stage.count("commands")["get"]
        assert mine["calls"] == 3
        assert commands == {"get": mine}
        assert mine["errors"] == {"ERR": 1, "other": 1}
        assert (closed, inflight, client_out) == (1, 1, len(bulk("1") + b"-LOADED x\r\n-ERR x\r\n"))
    finally:
        os.close(fd)


def test_a_second_look_at_the_same_memory(play: Play) -> None:
    memory = mmap.mmap(-1, COUNTERS_SIZE + 4096)
    stage = play(memory=memory)
    other = Counters(memory)
    assert other.snapshot()["commands"].keys() == {"other"}
    other.metrics = stage.counters.metrics
    stage.client().send(encode_command("PING"))
    stage.turn()
    assert other.snapshot() == stage.counters.snapshot()
    assert other.snapshot()["commands"]["ping"]["calls"] == 1


def test_memory_of_zeros_can_be_read_at_once() -> None:
    """The main process looks at a worker's counters before that has begun."""
    for memory in (mmap.mmap(-1, COUNTERS_SIZE), memoryview(bytearray(COUNTERS_SIZE))):
        counters = Counters(memory)
        assert (counters.accepted, counters.gone) == (0, 0)
        assert counters.snapshot()["closed"]["memory_limit"] == 0


def test_clients_that_have_left_are_counted_whatever_took_them(play: Play) -> None:
    """Of clients handed over, those that are gone: told without a message, as of now."""
    memory = mmap.mmap(-1, COUNTERS_SIZE)
    stage = play(memory=memory)
    seen = Counters(memory)
    clients = [stage.client() for _ in range(4)]
    killed = stage.accepted
    assert (seen.accepted, seen.gone) == (4, 0)
    clients[0].close()
    clients[1].send(b"*x\r\n")
    clients[2].send(encode_command("QUIT"))
    stage.turn()
    assert (seen.accepted, seen.gone) == (4, 3)
    killed.kill()
    assert (seen.accepted, seen.gone) == (4, 4)
    stage.path.reject()
    assert (seen.accepted, seen.gone) == (4, 5)
    assert (stage.counters.accepted, stage.counters.gone) == (4, 5)
    assert sum(seen.snapshot()["closed"].values()) + seen.snapshot()["rejected"] == seen.gone
    assert stage.path.closed == 4


def test_the_memory_is_held_as_long_as_the_counters_live() -> None:
    memory = mmap.mmap(-1, COUNTERS_SIZE)
    counters = Counters(memory)
    with pytest.raises(BufferError):
        memory.close()
    assert counters.snapshot()["accepted"] == 0
    del counters
    memory.close()


def test_memory_that_will_not_do() -> None:
    with pytest.raises(ValueError, match=f"need {COUNTERS_SIZE} bytes of memory, not {COUNTERS_SIZE - 1}"):
        Counters(mmap.mmap(-1, COUNTERS_SIZE - 1))
    with pytest.raises(ValueError, match="write"):
        Counters(mmap.mmap(-1, COUNTERS_SIZE, access=mmap.ACCESS_READ))
    with pytest.raises(ValueError, match="aligned"):
        Counters(memoryview(mmap.mmap(-1, COUNTERS_SIZE + 8))[1:])
    with pytest.raises(TypeError):
        Counters(COUNTERS_SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 1024, 1 << 70])
def test_an_index_there_is_no_room_for(index: int) -> None:
    counters = Counters()
    counters.metrics = {"other": 0, "get": index}
    with pytest.raises(IndexError, match="get"):
        counters.snapshot()
