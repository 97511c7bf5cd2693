"""Windows that are full: what is not begun waits with its client, what is goes on; nobody else is held."""

from __future__ import annotations

import gc
import socket

import pytest

from proxy.cluster.slot import slot_of
from proxy.forward.client import Client
from proxy.forward.clients import drain
from proxy.forward.request import live
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, SLOT_A, TEXTS, A, B, C, End, Play, Stage
from tests.support.dialogue import (
    ASKING,
    GET_A,
    GET_B,
    PING,
    SET_A,
    ask,
    exchange,
    pending,
    sized,
)


def test_a_full_window_is_waited_for_in_order(play: Play) -> None:
    """Whoever finds it full begins nothing: not parked, not pending; and they go on in the order in which they came."""
    stage = play(max_window=2000, backoff_s=1000.0, timeout_s=5000.0)
    clients, insides = [], []
    for _ in range(6):
        clients.append(stage.client())
        insides.append(stage.accepted)
    frames = [sized(900, n) for n in range(6)]
    for client, frame in zip(clients, frames, strict=True):
        client.send(frame + GET_A)
        stage.turn(1)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frames[0] + GET_A + frames[1] + GET_A + frames[2]
    assert [inside.pending for inside in insides] == [2, 2, 1, 0, 0, 0]
    assert (stage.parking.waiting, pending(stage), stage.count("inflight")) == (0, 5, 5)
    node.send(b"+OK\r\n")
    stage.turn()
    assert node.get() == b""  # half of it must be free, else every answer would wake everybody
    node.send(bulk("0") + b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert node.get() == GET_A + frames[3] + GET_A + frames[4]
    assert [inside.pending for inside in insides] == [0, 0, 2, 2, 1, 0]
    node.send(b"+OK\r\n" + bulk("2") + b"+OK\r\n" + bulk("3") + b"+OK\r\n")
    stage.turn()
    assert node.get() == GET_A + frames[5] + GET_A
    node.send(bulk("4") + b"+OK\r\n" + bulk("5"))
    stage.turn()
    assert [client.get() for client in clients] == [b"+OK\r\n" + bulk(n) for n in range(6)]
    assert (stage.parking.waiting, pending(stage)) == (0, 0)
    assert not any(stage.count("retries").values())


def full(stage: Stage, size: int = 1500) -> End:
    """A client that has filled A's window; its node has got all of it."""
    client = stage.client()
    client.send(sized(size))
    stage.turn()
    assert stage.node(A).get() == sized(size)
    return client


def test_who_waits_longer_goes_first(play: Play) -> None:
    """In rounds: what fills the window anew leaves the others where they were in the order."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    clients = [stage.client() for _ in range(5)]
    for n, client in enumerate(clients):
        client.send(sized(600, n))
        stage.turn(1)
    for first, last in ((0, 2), (2, 4), (4, 5)):
        stage.node(A).send(b"+OK\r\n" * (1 if first == 0 else 2))
        stage.turn()
        assert stage.node(A).get() == b"".join(sized(600, n) for n in range(first, last))
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert [client.get() for client in clients] == [b"+OK\r\n"] * 5


def test_a_full_window_holds_nobody_else(play: Play) -> None:
    """What goes to other nodes goes; only a client's own order holds what stands behind what waits."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    filler, waits, other = full(stage), stage.client(), stage.client()
    waits.send(PING + SET_A + GET_B + PING)
    stage.turn()
    other.send(GET_B + PING)
    stage.turn()
    exchange(stage, B, GET_B, bulk("b"))
    assert (waits.get(), other.get()) == (b"+PONG\r\n", bulk("b") + b"+PONG\r\n")
    assert (stage.node(A).get(), stage.node(B).get()) == (b"", b"")
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    exchange(stage, A, SET_A, b"+1\r\n")
    exchange(stage, B, GET_B, bulk("b"))
    assert (filler.get(), waits.get()) == (b"+OK\r\n", b"+1\r\n" + bulk("b") + b"+PONG\r\n")


@pytest.mark.parametrize("name", ["MGET", "MSET", "DEL"])
def test_a_split_command_waits_whole(play: Play, name: str) -> None:
    """When any part of it would go to a full connection, none is sent."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    client = stage.client()
    inside = stage.accepted
    client.send(encode_command(name, *([KEY_B, "1", KEY_A, "2"] if name == "MSET" else [KEY_B, KEY_A])))
    stage.turn()
    assert [end.get() for ends in stage.nodes.values() for end in ends] == [b""] * len(stage.nodes)
    assert (stage.parking.waiting, inside.pending, pending(stage)) == (0, 0, 1)
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    said = {"MGET": array([bulk("v")]), "MSET": b"+OK\r\n", "DEL": integer(1)}[name]
    for address in (A, B):
        assert len(CommandReader().feed(stage.node(address).get())) == 1
        stage.node(address).send(said)
    stage.turn()
    assert client.get() == {"MGET": array([bulk("v")] * 2), "MSET": b"+OK\r\n", "DEL": integer(2)}[name]


def test_as_much_input_as_comes_while_it_waits_is_not_read(play: Play) -> None:
    """The kernel keeps it: a client that waits is not a way to fill memory."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    before = stage.count("client_in")
    taken = 0
    for _ in range(100):
        taken += client.offer(PING * 5000)
        stage.turn(1)
    assert stage.count("client_in") == before
    assert taken < 2_000_000
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get().startswith(b"+OK\r\n+PONG\r\n")


def test_who_leaves_while_waiting(play: Play) -> None:
    """What was not begun is never sent; whoever waits behind goes on."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    gone, stays = stage.client(), stage.client()
    gone.send(sized(10, "gone"))
    stage.turn()
    stays.send(SET_A)
    stage.turn()
    gone.close()
    stage.turn()
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    got = stage.node(A).get()
    assert got in (SET_A, sized(10, "gone") + SET_A)  # a half-closed client may still read
    stage.node(A).send(b"+OK\r\n" * (2 if got != SET_A else 1))
    stage.turn()
    assert stays.get() == b"+OK\r\n"


def test_who_says_goodbye_while_waiting_is_still_served(play: Play) -> None:
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    client = stage.client()
    client.send(SET_A + GET_A)
    stage.turn()
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    assert not client.closed
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    exchange(stage, A, SET_A + GET_A, b"+1\r\n" + bulk("2"))
    assert client.get() == b"+1\r\n" + bulk("2")
    stage.turn()
    assert client.closed


@pytest.mark.parametrize("size", [900_000, 1_100_000])
@pytest.mark.parametrize("under_way", [False, True])
def test_who_says_goodbye_with_much_that_waits(play: Play, size: int, under_way: bool) -> None:
    """Above 1 MB with nothing under way he has most likely left: it is not kept for nobody."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    filler = stage.client()
    client = stage.client()
    if under_way:
        client.send(GET_B)
        stage.turn()
        assert stage.node(B).get() == GET_B
    filler.send(sized(1500))
    stage.turn()
    assert stage.node(A).get() == sized(1500)
    stage.pour(client, sized(size, "much"))
    assert stage.node(A).get() == b""
    closed = stage.count("closed")["client"]
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    kept = size < 1 << 20 or under_way
    assert stage.count("closed")["client"] == closed + (not kept)
    if under_way:
        stage.node(B).send(bulk("b"))
        stage.turn()
        assert stage.count("closed")["client"] == closed + (size > 1 << 20)
        kept = size < 1 << 20
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert stage.drink(stage.node(A)) == (sized(size, "much") if kept else b"")
    if kept:
        stage.node(A).send(b"+OK\r\n")
        stage.turn()
        assert client.get() == (bulk("b") if under_way else b"") + b"+OK\r\n"


def test_drain_while_waiting(play: Play) -> None:
    """What has come already is still carried out, or the client is let go; it is not held for ever."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full(stage)
    client = stage.client()
    inside = stage.accepted
    client.send(SET_A)
    stage.turn()
    drain(inside)
    stage.turn()
    assert not client.closed
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"
    stage.turn()
    assert client.closed


def test_what_was_begun_is_parked_until_the_deadline(play: Play) -> None:
    """Redirected to a node that takes nothing: its client is told so; who has not begun waits on."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=400.0)
    full_b = stage.client(timeout_ns=10**15)
    full_b.send(encode_command("SET", KEY_B, b"v" * 1500))
    stage.turn()
    moving, waits = stage.client(), stage.client()
    moving.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, b"-MOVED %d %s\r\n" % (SLOT_A, str(B).encode()))
    waits.send(GET_B)
    stage.turn()
    assert (stage.parking.waiting, waits.get()) == (1, b"")
    stage.pass_time(390.0)
    assert (stage.parking.waiting, moving.get()) == (1, b"")
    stage.pass_time(20.0)
    assert stage.hear(moving) == errors.NODE_BUSY
    gave_up = {key for key, count in stage.count("retries").items() if key[1] == "gave_up" and count}
    assert gave_up == {("node_busy", "gave_up")}
    assert stage.count("retries")["node_busy", "retried"] == 1
    assert (waits.get(), stage.parking.waiting) == (b"", 0)
    exchange(stage, B, encode_command("SET", KEY_B, b"v" * 1500), b"+OK\r\n")
    exchange(stage, B, GET_B, bulk("b"))
    assert (full_b.get(), waits.get()) == (b"+OK\r\n", bulk("b"))


@pytest.mark.parametrize("name", ["MGET", "MSET"])
@pytest.mark.parametrize("busy", [False, True])
def test_one_command_larger_than_the_window_goes_whole(play: Play, name: str, busy: bool) -> None:
    """Its parts would wait for one another otherwise; when the window is full before it, all of it waits."""
    stage = play(max_window=1000, timeout_s=5000.0)
    client, other = stage.client(), stage.client()
    if busy:
        other.send(sized(1500))
        stage.turn()
    keys = [f"{{{n}}}{'k' * 300}" for n in range(40)]
    client.send(encode_command(name, *(word for key in keys for word in ([key] if name == "MGET" else [key, "v"]))))
    stage.turn()
    if busy:
        exchange(stage, A, sized(1500), b"+OK\r\n")
        stage.turn()
    parts = 0
    for address in (A, B, C):
        frames = CommandReader().feed(stage.node(address).get())
        assert sum(len(frame) for frame, _ in frames) > 2000
        parts += len(frames)
        stage.node(address).send((array([bulk("v")]) if name == "MGET" else b"+OK\r\n") * len(frames))
    assert parts == len({slot_of(key.encode()) for key in keys}) > 30
    stage.turn()
    assert client.get() == (array([bulk("v")] * 40) if name == "MGET" else b"+OK\r\n")
    assert stage.count("retries")["node_busy", "gave_up"] == 0


def test_nothing_of_a_client_that_left_waits_for_room(play: Play) -> None:
    """12 clients that come, send much and leave: what waits for them is dropped, never sent."""
    stage = play(max_window=100_000, backoff_s=1000.0, timeout_s=5000.0)
    stage.router.warm(2)
    stage.turn()
    for n in range(12):
        client = stage.client()
        stage.pour(client, sized(90_000, n))
        client.close()
        stage.turn()
    node = stage.node(A)
    got = stage.drink(node)
    assert got == sized(90_000, 0) + sized(90_000, 1)
    node.send(b"+OK\r\n+OK\r\n")
    stage.turn()
    assert (stage.parking.waiting, node.get(), live()) == (0, b"", stage.live)


def test_a_window_that_was_full_when_the_connection_is_lost(play: Play) -> None:
    """There is room on the next one: nobody waits for his backoff."""
    stage = play(max_window=100, backoff_s=1000.0, timeout_s=5000.0)
    one, two = stage.client(), stage.client()
    one.send(sized(200))
    stage.turn()
    two.send(SET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.parking.waiting, pending(stage)) == (sized(200), 0, 1)
    stage.node(A).close()
    stage.turn(6)
    assert one.get() == TEXTS["lost"]
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert two.get() == b"+OK\r\n"


def test_asking_for_a_node_whose_window_is_full(play: Play) -> None:
    """The prefix is not left there without its command."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    one, two = stage.client(), stage.client()
    one.send(encode_command("SET", KEY_B, b"v" * 1500))
    two.send(SET_A)
    stage.turn()
    assert stage.node(B).get() == encode_command("SET", KEY_B, b"v" * 1500)
    exchange(stage, A, SET_A, ask(B))
    assert (stage.node(B).get(), stage.parking.waiting) == (b"", 1)
    stage.node(B).send(b"+OK\r\n")  # room: tried again where it belongs
    stage.turn()
    exchange(stage, A, SET_A, ask(B))
    exchange(stage, B, ASKING + SET_A, b"+OK\r\n+OK\r\n")
    assert (one.get(), two.get()) == (b"+OK\r\n", b"+OK\r\n")


def test_who_leaves_while_there_is_no_room_is_not_kept(play: Play) -> None:
    """A node that hangs may keep a window full for long, and clients that leave come back as new ones."""

    def known() -> int:
        gc.collect()
        return sum(isinstance(one, Client) for one in gc.get_objects())

    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    stage.client().send(sized(2000))
    stage.turn()
    before = known()
    for _ in range(20):
        client = stage.client()
        client.send(SET_A)
        stage.turn()
        client.close()
        stage.turn()
    assert len(stage.path.clients) == 1
    assert known() <= before + 1  # `accepted` is the stage's own
