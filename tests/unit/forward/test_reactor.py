"""Batches: who is flushed when, and what becomes of descriptors that are closed in the middle of one."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket

import pytest

from proxy.forward.reactor import Reactor
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, A, Loop, Play

GET_A = encode_command("GET", KEY_A)
PING = encode_command("PING")


def test_one_batch_for_all_that_is_ready(play: Play) -> None:
    stage = play(packets=True)
    stage.router.warm(2)
    stage.turn()
    clients = [stage.client() for _ in range(50)]
    for client in clients:
        client.send(GET_A)
    batches, events = stage.reactor.batches, stage.reactor.events
    stage.loop.run()
    assert stage.reactor.batches == batches + 1
    assert stage.reactor.events == events + 50
    assert stage.node(A).packets() == [GET_A * 50]


def test_more_than_one_epoll_wait_can_take(play: Play) -> None:
    stage = play()
    clients = [stage.client() for _ in range(300)]
    for client in clients:
        client.send(PING)
    stage.loop.run()
    assert [client.get() for client in clients] == [b"+PONG\r\n"] * 300


def test_what_is_touched_outside_a_batch_is_flushed_soon(play: Play) -> None:
    """By one call_soon, however many peers and however often."""
    stage = play(timeout_s=0.0)
    one, two = stage.client(), stage.client()
    for client in (one, two):
        client.send(GET_A)
    stage.turn()
    assert stage.loop.soon == []
    stage.router.sweep()
    assert len(stage.loop.soon) == 1
    assert one.get() == b""
    stage.loop.run()
    assert one.get() == two.get() != b""


def test_a_peer_closed_by_anothers_event_in_the_same_batch(play: Play) -> None:
    """Its own event, later in the batch, is passed over, and its number is not given away before the batch ends."""
    stage = play()
    clients = [stage.client() for _ in range(20)]
    inside = list(stage.path.clients)
    numbers = {client.fd for client in inside}
    fresh: list[int] = []

    class Killer(type(stage.responder)):  # type: ignore[misc]
        def answer(self, client: object, args: list[bytes]) -> bytes:
            for other in inside:
                if other is not client:
                    other.kill()
            near, far = socket.socketpair()
            fresh.extend((near.fileno(), far.fileno()))
            near.close()
            far.close()
            return b"+KILLED\r\n"

    stage.path.responder = Killer(stage.context)
    for client in clients:
        client.send(encode_command("ECHO", "x"))
    stage.turn()
    assert len(fresh) == 2
    assert not numbers & set(fresh)
    assert sorted(client.get() for client in clients) == [b""] * 19 + [b"+KILLED\r\n"]
    assert len(stage.path.clients) == 1


def test_descriptors_are_really_closed_when_the_batch_ends(play: Play) -> None:
    stage = play()
    clients = [stage.client() for _ in range(100)]
    numbers = [client.fd for client in stage.path.clients]
    for client in clients:
        client.close()
    assert stage.reactor.open_peers == 100
    stage.turn()
    assert stage.reactor.open_peers == 0
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_killed_outside_a_batch(play: Play) -> None:
    stage = play()
    client = stage.client()
    number = stage.accepted.fd
    stage.accepted.kill()
    assert stage.accepted.fd == -1
    os.fstat(number)  # not yet
    stage.loop.run()
    assert client.closed
    assert stage.reactor.open_peers == 0


def test_start_and_stop() -> None:
    loop = Loop()
    reactor = Reactor(loop)  # type: ignore[arg-type]
    reactor.start()
    (descriptor,) = loop.readers
    assert select.select([descriptor], [], [], 0) == ([], [], [])
    reactor.stop()
    assert loop.readers == {}
    assert (reactor.batches, reactor.events, reactor.open_peers) == (0, 0, 0)
    del reactor
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_nothing_is_read_while_stopped(play: Play) -> None:
    stage = play()
    client = stage.client()
    stage.reactor.stop()
    client.send(PING)
    stage.turn()
    assert client.get() == b""
    stage.reactor.start()
    stage.turn()
    assert client.get() == b"+PONG\r\n"


def test_on_a_real_loop(play: Play) -> None:
    """The nested epoll descriptor is all that the loop watches."""
    stage = play()
    ((descriptor, ready),) = stage.loop.readers.items()
    near, far = socket.socketpair()
    client = stage.take(near, far)

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ready)
        await loop.sock_sendall(client.sock, PING)
        said = await asyncio.wait_for(loop.sock_recv(client.sock, 100), 10)
        loop.remove_reader(descriptor)
        return said

    assert asyncio.run(talk()) == b"+PONG\r\n"


def test_what_nodes_and_clients_say_in_one_batch(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("1"))
    client.send(PING)
    stage.loop.run()
    assert client.get() == bulk("1") + b"+PONG\r\n"
