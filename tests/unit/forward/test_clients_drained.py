"""Clients that are drained: what had come is answered, then they are told the end."""

from __future__ import annotations

import os
import random
import socket
import struct
import time

import pytest

from proxy.forward.clients import close_all, close_idle, close_lingering, drain
from proxy.forward.hold import pause
from proxy.resp.encode import bulk, encode_command
from proxy.resp.readers import CommandReader, ReplyReader
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, A, B, C, End, Play, Stage

GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))
SET_A = encode_command("SET", KEY_A, "1")
PING = encode_command("PING")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return server.accept()[0], far


def told_the_end(stage: Stage, client: End) -> bool:
    """Whether the client sees its end, though the descriptor is still open."""
    return client.closed and stage.path.closed == 0 and len(stage.path.clients) == 1


def test_an_idle_client_is_told_the_end_and_lingers(play: Play) -> None:
    """What it sends meanwhile is thrown away; it is closed when it closes."""
    stage = play()
    client = stage.client()
    drain(stage.accepted)
    drain(stage.accepted)
    assert stage.accepted.draining
    stage.turn()
    assert told_the_end(stage, client)
    before = stage.count("client_in")
    client.send(SET_A * 1000)
    stage.turn()
    assert told_the_end(stage, client)
    assert stage.count("client_in") == before
    assert stage.nodes == {}
    client.close()
    stage.turn()
    assert (stage.path.closed, stage.count("closed")["shutdown"]) == (1, 1)
    drain(stage.accepted)  # has left: nothing happens
    stage.turn()
    assert (stage.path.closed, stage.reactor.open_peers) == (1, 0)


def test_what_has_come_is_answered_and_nothing_else(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + PING + GET_B + encode_command("MGET", KEY_A, KEY_B) + SET_A[:-3])
    stage.turn()
    drain(stage.accepted)
    stage.turn()
    client.send(SET_A[-3:] + PING)
    stage.turn()
    assert not client.closed
    stage.node(B).send(bulk("2") + b"*1\r\n" + bulk("b"))
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(bulk("1") + b"*1\r\n" + bulk("a"))
    stage.turn()
    assert client.get() == bulk("1") + b"+PONG\r\n" + bulk("2") + b"*2\r\n" + bulk("a") + bulk("b")
    assert told_the_end(stage, client)
    assert stage.node(A).get().count(SET_A) == 0
    assert stage.accepted.query_bytes == 0


def test_what_lies_unread_when_one_is_drained_is_answered(play: Play) -> None:
    stage = play()
    client = stage.client()
    stage.turn()
    client.send(PING)
    drain(stage.accepted)
    stage.turn()
    assert client.get() == b"+PONG\r\n"
    assert told_the_end(stage, client)


@pytest.mark.parametrize("last", ["", "QUIT", "end"])
def test_what_lies_unread_of_one_that_was_held_is_answered(play: Play, last: str) -> None:
    """A held client is not read; the pause may end with the proxy."""
    stage = play()
    client = stage.client()
    pause(stage.path, 2, time.monotonic_ns() + 10**12)
    client.send(PING)
    stage.turn()
    assert stage.accepted.held_back
    client.send(PING + (encode_command(last) if last == "QUIT" else b""))
    if last == "end":
        client.sock.shutdown(socket.SHUT_WR)
    pause(stage.path, 0, 0)
    drain(stage.accepted)
    stage.turn()
    assert client.get() == b"+PONG\r\n" * 2 + (b"+OK\r\n" if last == "QUIT" else b"")
    assert client.closed


def test_all_that_lies_unread_is_answered(play: Play) -> None:
    """More than is read at once, more commands than make a turn; what comes afterwards is not read."""
    stage = play(max_pending=1 << 20, max_pending_bytes=1 << 30, soft_output=1 << 40)
    near, far = tcp_pair()
    for side, option in ((far, socket.SO_SNDBUF), (near, socket.SO_RCVBUF)):
        side.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    client = stage.take(near, far)
    stage.turn()
    count = 40_000
    client.sock.sendall(PING * count)
    drain(stage.accepted)
    stage.loop.run()
    client.send(PING * 10)
    got = b""
    while not stage.path.lingering:
        stage.turn(1)
        got += client.get()
    got += client.get()
    assert count <= got.count(b"+PONG\r\n") <= count + 10  # the last read may bring some more
    assert client.closed


def test_a_long_command_that_waits_for_room_is_answered(play: Play) -> None:
    """Longer than what is kept for a client that has left: this one has not."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    full = stage.client()
    full.send(encode_command("SET", KEY_A, b"v" * 1500))
    stage.turn()
    stage.node(A).get()
    client = stage.client()
    long = encode_command("SET", KEY_A, b"w" * (3 << 20))
    stage.pour(client, long)
    assert stage.accepted.query_bytes == len(long)
    drain(stage.accepted)
    stage.turn()
    assert not client.closed
    stage.node(A).send(b"+OK\r\n")
    assert stage.hear(stage.node(A), len(long)) == long
    stage.node(A).send(b"+OK\r\n")
    assert stage.hear(client, 5) == b"+OK\r\n"
    assert client.closed


def test_what_had_to_wait_is_answered_too(play: Play) -> None:
    """Commands behind back-pressure; what comes later is not heard."""
    stage = play(max_pending=2)
    near, far = tcp_pair()
    client = stage.take(near, far)
    client.send(b"".join(encode_command("SET", KEY_A, n) for n in range(9)) + GET_A[:7])
    stage.until(lambda: stage.accepted.query_bytes)
    drain(stage.accepted)
    client.send(GET_A[7:] + PING)
    got = b""
    reader = CommandReader()
    while not client.closed:
        stage.turn()
        for _, words in reader.feed(stage.node(A).get()):
            assert words[0] == b"SET"
            stage.node(A).send(bulk(words[2]))
        got += client.get()
    assert got == b"".join(bulk(str(n)) for n in range(9))
    assert told_the_end(stage, client)


def test_replies_are_not_destroyed_by_what_the_client_goes_on_sending(play: Play) -> None:
    """A close with unread input would be a reset, and the client could lose replies it has not read."""
    stage = play()
    near, far = tcp_pair()
    client = stage.take(near, far)
    client.send(GET_A)
    stage.until(lambda: stage.accepted.pending)
    drain(stage.accepted)
    stage.turn()
    reply = bulk(b"v" * 30_000)
    client.send(GET_B * 1000)
    stage.node(A).send(reply)
    stage.until(lambda: stage.path.lingering)
    client.send(GET_B * 1000)
    stage.turn()
    got = b""
    while part_of := far.recv(1 << 20):  # a reset would raise
        got += part_of
    assert got == reply
    far.shutdown(socket.SHUT_WR)
    stage.until(lambda: stage.path.closed)
    assert stage.count("closed")["shutdown"] == 1


def test_lingering_has_an_end(play: Play) -> None:
    stage = play()
    clients = [stage.client() for _ in range(3)]
    inside = list(stage.path.clients)
    drain(inside[0])
    drain(inside[1])
    stage.turn()
    close_lingering(stage.path)
    close_idle(stage.path, 0)
    assert len(stage.path.clients) == 2  # idle is another matter
    assert stage.path.lingering == {inside[0], inside[1]}
    close_lingering(stage.path, 0)
    stage.turn()
    assert (stage.path.clients, stage.path.lingering, stage.reactor.open_peers) == (set(), set(), 0)
    assert all(client.closed for client in clients)
    closed = stage.count("closed")
    assert (closed["shutdown"], closed["idle"]) == (2, 1)


def test_parting_with_a_client_that_ended_its_input(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    drain(stage.accepted)
    stage.turn()
    assert not client.closed
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")
    assert client.closed
    assert (stage.path.closed, stage.count("closed")["client"]) == (1, 1)


@pytest.mark.parametrize("late", [False, True])
def test_quit_and_parting(play: Play, late: bool) -> None:
    """Whichever comes first: what was asked before QUIT is answered, what follows is not carried out."""
    stage = play(max_pending=1)
    client = stage.client()
    client.send(GET_A + encode_command("QUIT") + SET_A)
    stage.turn()
    if not late:
        drain(stage.accepted)
        stage.turn()
    stage.node(A).send(bulk("1"))
    stage.loop.run()
    drain(stage.accepted)
    stage.turn()
    assert client.get() == bulk("1") + b"+OK\r\n"
    assert client.closed
    client.close()
    stage.turn()
    assert stage.count("closed")["quit"] == 1
    assert stage.node(A).get() == GET_A


def test_malformed_input_that_had_to_wait(play: Play) -> None:
    stage = play(max_pending=1)
    client = stage.client()
    client.send(GET_A + b"*1\r\n:4\r\n")
    stage.turn()
    drain(stage.accepted)
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + b"-ERR Protocol error: expected '$', got ':'\r\n"
    client.close()
    stage.turn()
    assert stage.count("closed")["protocol_error"] == 1


def test_parting_in_the_middle_of_redirections(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(SET_A + encode_command("DEL", KEY_A, KEY_C) + GET_B)
    stage.turn()
    drain(stage.accepted)
    stage.node(A).send(
        b"-MOVED %d %s\r\n" % (SLOT_A, str(B).encode())
        + b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"
    )
    stage.turn()
    stage.node(C).close()  # the part of DEL that was sent there may have been executed
    stage.turn()
    assert stage.node(B).get().startswith(GET_B + SET_A)
    stage.node(B).send(bulk("2") + b"+OK\r\n:1\r\n")
    stage.turn()
    said = client.get()
    assert said.startswith(b"+OK\r\n-ERR connection to the node was lost")
    assert said.endswith(bulk("2"))
    assert told_the_end(stage, client)


def test_a_client_that_does_not_take_its_replies_stays(play: Play) -> None:
    """Until it does, or the worker has no more time."""
    stage = play()
    clients = [stage.client() for _ in range(2)]
    for client in clients:
        client.send(GET_A)
    stage.turn()
    reply = bulk(b"v" * 2_000_000)
    stage.pour(stage.node(A), reply * 2)
    for inside in stage.path.clients:
        drain(inside)
    stage.turn()
    close_lingering(stage.path, 0)
    stage.turn()
    assert (len(stage.path.clients), stage.path.lingering) == (2, set())
    assert stage.drink(clients[0]) == reply
    stage.turn()
    assert len(stage.path.lingering) == 1
    close_all(stage.path)
    stage.turn()
    assert (stage.path.closed, stage.count("closed")["shutdown"]) == (2, 2)


@pytest.mark.parametrize("when", ["before", "lingering"])
def test_a_parting_client_that_is_reset(play: Play, when: str) -> None:
    stage = play()
    near, far = tcp_pair()
    client = stage.take(near, far)
    if when == "before":
        client.send(GET_A)
        stage.until(lambda: stage.accepted.pending)
    drain(stage.accepted)
    stage.turn()
    assert len(stage.path.lingering) == (when == "lingering")
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    stage.until(lambda: stage.path.closed)
    assert stage.count("closed")["shutdown" if when == "lingering" else "client"] == 1


def test_many_partings_leave_nothing_behind(play: Play) -> None:
    stage = play()
    before = len(os.listdir("/proc/self/fd"))
    for n in range(200):
        client = stage.client()
        drain(stage.accepted)
        stage.turn()
        assert told_the_end(stage, client) or n
        if n % 2:
            client.close()
        else:
            close_lingering(stage.path, 0)
        stage.turn()
        client.close()
        stage.ends.clear()
    assert (stage.path.closed, stage.path.clients, stage.path.lingering) == (200, set(), set())
    assert stage.reactor.open_peers == 0
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seed", range(40))
def test_whatever_was_read_is_answered_in_order(play: Play, seed: int) -> None:
    """Random pipelines, cuts and partings: as many replies as whole commands were read, each the right one."""
    chance = random.Random(seed)
    stage = play(
        max_pending=chance.choice([1, 3, 1024]),
        max_pending_bytes=chance.choice([100, 1 << 20]),
        soft_output=chance.choice([50, 1 << 20]),
    )
    frames, wanted = [], []
    for n in range(chance.randrange(1, 60)):
        key = chance.choice([KEY_A, KEY_B, KEY_C])
        value = b"%d" % n + b"v" * chance.choice([1, 200, 20_000])
        words = chance.choice([[b"PING", value], [b"GETSET", key, value], [b"ECHO", value], [b"GETDEL", key, value]])
        frames.append(encode_command(*words))
        wanted.append(bulk(value) if words[0] != b"GETDEL" else None)
    client = stage.client()
    stream = b"".join(frames)
    sent = 0
    parts_at = chance.randrange(len(stream) + 1)
    nodes: dict[End, CommandReader] = {}
    said = b""
    while not client.closed:
        if sent < len(stream):
            sent += client.offer(stream[sent : sent + chance.choice([1, 30, 1000, 30_000])])
        stage.turn(1)
        if sent >= parts_at:
            drain(stage.accepted)
        for ends in stage.nodes.values():
            for end in ends:
                if chance.random() < 0.7:
                    for _, words in nodes.setdefault(end, CommandReader()).feed(end.get()):
                        end.send(bulk(words[2]))
        if chance.random() < 0.7:
            said += client.get()
    read = stage.count("client_in")
    while read and frames and read >= len(frames[0]):
        read -= len(frames.pop(0))
    assert [reply for reply, _, _ in ReplyReader().feed(said)] == [
        reply or b"-ERR wrong number of arguments for 'getdel' command\r\n"
        for reply in wanted[: len(wanted) - len(frames)]
    ]
    assert told_the_end(stage, client)
