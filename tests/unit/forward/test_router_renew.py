"""Router.renew: new connections to every node, under whatever is under way."""

from __future__ import annotations

import random

import pytest

from proxy.forward.backend import BackendState
from proxy.resp.encode import bulk, encode_command
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, KEY_C, TEXTS, A, B, End, Play

GET_A, GET_B = (encode_command("GET", key) for key in (KEY_A, KEY_B))
SET_A = encode_command("SET", KEY_A, "1")


def test_renewed_connections_are_made_on_first_use_and_the_old_ones_drain(play: Play) -> None:
    stage = play()
    first, second = stage.client(), stage.client()
    first.send(GET_A + GET_B)
    stage.turn()
    stage.router.connections = 2
    old = stage.router.renew()
    assert [backend.node.address for backend in old] == [A, B]
    stage.turn()
    assert [len(ends) for ends in stage.nodes.values()] == [1, 1]
    first.send(SET_A)
    second.send(GET_A)
    stage.turn()
    assert stage.nodes[A][0].get() == GET_A
    assert stage.node(A).get() == GET_A  # who has nothing under way waits for nobody
    stage.nodes[A][0].send(bulk("1"))
    stage.turn()
    assert (first.get(), stage.nodes[A][0].closed) == (bulk("1"), True)
    assert stage.nodes[B][0].get() == GET_B
    stage.nodes[B][0].send(bulk("2"))
    stage.turn()
    assert sorted(end.get() for end in stage.nodes[A][1:]) == [b"", SET_A]
    assert [backend.state for backend in old] == [BackendState.CLOSED] * 2
    stage.router.sweep()
    assert [len(stage.router.nodes[n].backends()) for n in (A, B)] == [2, 0]
    assert stage.lost_for == []
    for end in stage.nodes[A][1:]:
        end.send(b"+OK\r\n")
    stage.turn()
    assert (first.get(), second.get()) == (bulk("2") + b"+OK\r\n", b"+OK\r\n")


def test_other_nodes_keep_their_connections(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    old = stage.router.renew([str(B)])
    assert [backend.node.address for backend in old] == [B]
    stage.node(A).send(bulk("1"))
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2")
    assert [backend.state for backend in old] == [BackendState.CLOSED]
    assert [backend.state for backend in stage.router.nodes[A].backends()] == [BackendState.UP]


def test_nodes_that_are_not_renewed_keep_the_order_on_several_connections(play: Play) -> None:
    """Fewer connections are wanted by now, but these stay: each client's commands stay on the one they were on."""
    stage = play(connections=2)
    first, second = stage.client(), stage.client()
    for client in (first, second):
        client.send(SET_A)
    stage.turn()
    stage.router.connections = 1
    assert stage.router.renew([]) == []
    for client in (first, second):
        client.send(GET_A)
    stage.turn()
    assert [end.get() for end in stage.nodes[A]] == [SET_A + GET_A] * 2


def test_a_later_command_does_not_overtake_on_a_renewed_connection(play: Play) -> None:
    """Parts of a split command count as under way, too; and what was read meanwhile is not forgotten."""
    stage = play()
    client = stage.client()
    delete = encode_command("DEL", KEY_A, KEY_B)
    client.send(delete)
    stage.turn()
    stage.router.renew()
    client.send(SET_A + GET_A)
    stage.turn()
    stage.node(B).send(b":1\r\n")
    stage.turn()
    assert len(stage.nodes[A]) == 1
    assert stage.node(A).get() == encode_command("DEL", KEY_A)
    stage.node(A).send(b":1\r\n")
    stage.turn()
    assert stage.node(A).get() == SET_A + GET_A
    stage.node(A).send(b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert client.get() == b":2\r\n+OK\r\n" + bulk("1")


def test_what_waits_for_a_connection_waits_for_the_new_one(play: Play) -> None:
    stage = play()
    client = stage.client()
    writes = [encode_command("SET", KEY_A, n) for n in range(6)]
    client.send(writes[0] + writes[1])
    stage.loop.run()
    for n in range(2, 6):
        (backend,) = stage.router.nodes[A].backends()
        assert (backend.state, backend.pending) == (BackendState.CONNECTING, 2)
        assert stage.router.renew() == [backend]
        assert backend.state == BackendState.CLOSED
        client.send(writes[n])  # is not read before the two are answered
        stage.parking.wake_all()
    stage.turn()
    assert len(stage.nodes[A]) == 1
    assert stage.node(A).get() == writes[0] + writes[1]
    stage.node(A).send(b"+0\r\n+1\r\n")
    stage.turn()
    assert client.get() == b"+0\r\n+1\r\n"
    assert stage.node(A).get() == b"".join(writes[2:])


def test_what_is_parked_survives_a_renewal(play: Play) -> None:
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A + GET_B)
    stage.turn()
    stage.node(A).get()
    stage.node(A).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
    stage.turn()
    stage.router.renew()
    assert stage.parking.waiting == 1
    client.send(GET_A)
    stage.parking.wake_all()
    stage.turn()
    assert (len(stage.nodes[A]), stage.node(A).get()) == (2, SET_A)
    stage.node(A).send(b"+OK\r\n")
    stage.nodes[B][0].send(bulk("2"))
    stage.turn()
    assert client.get() == b"+OK\r\n" + bulk("2")
    assert stage.node(A).get() == GET_A


def test_a_renewal_gives_nodes_that_are_down_another_chance(play: Play) -> None:
    """Wrong credentials look like that; the right ones would never be tried if its requests were refused at once."""
    stage = play(failover_s=0.01)
    stage.unreachable.add(A)
    client = stage.client()
    client.send(GET_A)
    stage.until(lambda: client.get() == TEXTS["down"])
    stage.router.renew()
    assert not stage.router.nodes[A].down
    stage.unreachable.clear()
    client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A


@pytest.mark.parametrize("seed", range(30))
def test_renewing_under_load_loses_nothing_and_keeps_the_order(play: Play, seed: int) -> None:
    """Each client counts up in keys of its own; a node sees every number of a key once, and in order."""
    chance = random.Random(seed)
    stage = play(connections=chance.choice([1, 2, 3]), max_pending=chance.choice([2, 1024]))
    keys = [KEY_A, KEY_B, KEY_C, b"{b}x", b"{c}x", b"{a}x"]
    ends = [stage.client(max_pending=stage.settings.max_pending) for _ in range(4)]
    streams, wanted = [], []
    for n in range(len(ends)):
        frames, replies = [], []
        for place in range(100):
            name = chance.choice(keys) + b":%d" % n
            frames.append(encode_command("SET", name, place))
            replies.append(bulk(str(place)))
        streams.append(b"".join(frames))
        wanted.append(b"".join(replies))
    got = [b"" for _ in ends]
    last: dict[bytes, int] = {}
    readers: dict[End, CommandReader] = {}
    renewed = 0
    while any(len(a) < len(b) for a, b in zip(got, wanted, strict=True)):
        for n, end in enumerate(ends):
            size = chance.choice([0, 1, 20, 300])
            streams[n] = streams[n][end.offer(streams[n][:size]) :]
        stage.turn(1)
        if chance.random() < 0.2:
            stage.router.connections = chance.choice([1, 2, 3])
            stage.router.renew()
            renewed += 1
        if chance.random() < 0.3:
            stage.parking.wake_all()
        connections = [end for ends_of in stage.nodes.values() for end in ends_of]
        for end in chance.sample(connections, len(connections) // 2):
            for _, words in readers.setdefault(end, CommandReader()).feed(end.get()):
                assert last.get(words[1], -1) < int(words[2]), (words, "was overtaken, or came twice")
                last[words[1]] = int(words[2])
                end.send(bulk(words[2]))
        for n, end in enumerate(ends):
            got[n] += end.get()
        stage.router.sweep()
    assert got == wanted
    assert renewed > 2
    assert stage.count("retries")["connection_lost", "unsafe"] == 0
    stage.turn()
    stage.router.sweep()
    held = sum(len(node.backends()) for node in stage.router.nodes.values())
    assert held <= 3 * stage.router.connections  # what was replaced is gone
