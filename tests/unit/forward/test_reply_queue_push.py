"""Pushes to a client: their place among its replies, and what they count for."""

from __future__ import annotations

import random
import socket

import pytest

from proxy.forward.clients import drain
from proxy.forward.request import live
from proxy.resp.encode import array, bulk, encode_command
from proxy.resp.readers import ReplyReader
from tests.support.datapath import KEY_A, KEY_B, A, B, C, Play
from tests.support.dialogue import GET_A, GET_B, GET_C, PING

LARGE = bulk(b"v" * 30_000)


def push(n: object, size: int = 0) -> bytes:
    return b">2\r\n+message\r\n" + bulk(str(n).encode() + b"p" * size)


def test_an_idle_client_gets_it_at_once(play: Play) -> None:
    stage = play()
    client = stage.client()
    stage.accepted.push(push(1))
    assert client.get() == b""
    stage.loop.run()
    assert client.get() == push(1)
    stage.accepted.push(push(2), True)
    stage.accepted.push(push(3, 100_000))
    stage.turn()
    assert stage.drink(client) == push(2) + push(3, 100_000)
    assert stage.accepted.output_bytes == 0


def test_between_two_replies(play: Play) -> None:
    """Before replies that have not begun: those may take long, and the push is news now."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A + PING)
    stage.turn()
    stage.accepted.push(push(1))
    stage.turn()
    assert client.get() == push(1)
    stage.node(A).send(bulk("1"))
    stage.turn()
    stage.accepted.push(push(2))
    stage.turn()
    assert client.get() == bulk("1") + push(2)
    stage.node(A).send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("2") + b"+PONG\r\n"
    assert stage.count("inflight") == 0


def test_never_inside_a_reply(play: Play) -> None:
    """One that has begun to reach the client is ended first."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    stage.node(A).send(LARGE[:10_000])
    stage.turn()
    assert client.get() == LARGE[:10_000]
    for n in range(3):
        stage.accepted.push(push(n))
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(LARGE[10_000:20_000])
    stage.turn()
    assert client.get() == LARGE[10_000:20_000]
    stage.node(A).send(LARGE[20_000:] + bulk("2"))
    stage.turn()
    assert client.get() == LARGE[20_000:] + push(0) + push(1) + push(2) + bulk("2")


def test_a_reply_that_begins_while_it_waits_its_turn_has_not_begun(play: Play) -> None:
    """Part of the second reply is held; the client has seen nothing of it."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(B).send(LARGE[:20_000])
    stage.turn()
    stage.accepted.push(push(1))
    stage.turn()
    assert client.get() == push(1)
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + LARGE[:20_000]
    stage.accepted.push(push(2))
    stage.turn()
    assert client.get() == b""
    stage.node(B).send(LARGE[20_000:])
    stage.turn()
    assert client.get() == LARGE[20_000:] + push(2)


def test_behind_the_replies_that_were_given(play: Play) -> None:
    """A message published after the reply was made must not be seen before that reply; others do not wait."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B + PING + GET_C)
    stage.turn()
    stage.node(B).send(bulk("2"))
    stage.turn()
    stage.accepted.push(push("behind"), True)
    stage.turn()
    assert client.get() == b""
    stage.node(C).send(bulk("3"))
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2") + b"+PONG\r\n" + push("behind") + bulk("3")


def test_not_behind_what_is_only_half_given(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B + GET_B)
    stage.turn()
    stage.node(B).send(bulk("2") + LARGE[:20_000])
    stage.turn()
    stage.accepted.push(push(1), True)
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2") + push(1) + LARGE[:20_000]
    stage.node(B).send(LARGE[20_000:])
    stage.turn()
    assert client.get() == LARGE[20_000:]


@pytest.mark.parametrize("behind", [False, True])
def test_pushes_keep_their_own_order(play: Play, behind: bool) -> None:
    """One that need not wait does not overtake one that must."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(B).send(bulk("2"))
    stage.turn()
    stage.accepted.push(push(1), True)
    stage.accepted.push(push(2), behind)
    stage.accepted.push(push(3))
    stage.turn()
    assert client.get() == b""
    client.send(PING)
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2") + push(1) + push(2) + push(3) + b"+PONG\r\n"


def test_a_command_with_parts_is_one_reply(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("MGET", KEY_A, KEY_B) + PING)
    stage.turn()
    stage.node(A).send(array([bulk("1")]))
    stage.turn()
    stage.accepted.push(push(1))
    stage.turn()
    assert client.get() == push(1)
    stage.node(B).send(array([bulk("2")]))
    stage.turn()
    assert client.get() == array([bulk("1"), bulk("2")]) + b"+PONG\r\n"


def test_after_a_reply_that_does_not_fit_the_kernels_buffer(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    large = bulk(b"v" * 1_000_000)
    stage.pour(stage.node(A), large)
    assert stage.accepted.output_bytes
    stage.accepted.push(push(1, 50_000))
    stage.turn()
    assert stage.drink(client) == large + push(1, 50_000)


@pytest.mark.parametrize("wait", [False, True])
def test_they_count_against_the_hard_limit(play: Play, wait: bool) -> None:
    """A subscriber that takes nothing is closed, whether they wait for their turn or for the kernel."""
    stage = play(hard_output=100_000)
    client = stage.client()
    if wait:
        client.send(GET_A)
        stage.turn()
        stage.node(A).send(LARGE[:10_000])
        stage.turn()
    for n in range(1000):
        stage.accepted.push(push(n, 20_000))
        if stage.accepted.fd < 0:
            break
        stage.turn(1)
    assert n > 3
    stage.turn()
    assert stage.count("closed")["output_limit"] == 1
    assert not stage.path.clients
    if wait:
        assert n == 4
        stage.node(A).send(LARGE[10_000:])
        stage.turn()
    assert live() == stage.live


def test_after_the_end_nothing_happens(play: Play) -> None:
    stage = play()
    client = stage.client()
    inside = stage.accepted
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(LARGE[:10_000])
    stage.turn()
    inside.push(push(1))  # waits, and goes with the client
    inside.kill()
    inside.push(push(2))
    inside.push(push(3), True)
    stage.turn()
    assert client.get() == LARGE[:10_000]
    assert inside.output_bytes == 0
    stage.node(A).send(LARGE[10_000:])
    stage.turn()
    assert live() == stage.live


def test_they_are_no_commands(play: Play) -> None:
    """Not under way, not measured, and no reason to pause or to stay open."""
    stage = play(max_pending=2)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(LARGE[:10_000])
    stage.turn()
    for n in range(10):
        stage.accepted.push(push(n))
    assert (stage.accepted.pending, stage.count("inflight")) == (1, 1)
    client.send(PING)
    stage.turn()
    assert stage.accepted.pending == 2
    stage.node(A).send(LARGE[10_000:])
    stage.turn()
    assert client.get() == LARGE + b"".join(push(n) for n in range(10)) + b"+PONG\r\n"
    calls = {name: command["calls"] for name, command in stage.count("commands").items() if command["calls"]}
    assert calls == {"get": 1, "ping": 1}


def test_a_client_that_ended_its_input_or_drains_gets_them_before_its_last_reply(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    stage.accepted.push(push(1))
    drain(stage.accepted)
    stage.accepted.push(push(2))
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == push(1) + push(2) + bulk("1")
    assert client.closed
    stage.accepted.push(push(3))
    stage.turn()


def test_many_at_random(play: Play) -> None:
    """Whatever comes in whatever order: replies in theirs, pushes in theirs, none inside another."""
    for seed in range(30):
        rng = random.Random(seed)
        stage = play()
        client = stage.client()
        inside = stage.accepted
        sent, given = 0, {A: b"", B: b""}
        replies: list[bytes] = []
        pushed: list[bytes] = []
        for step in range(120):
            what = rng.random()
            if what < 0.4:
                key, address = rng.choice([(KEY_A, A), (KEY_B, B)])
                client.send(encode_command("GET", key))
                replies.append(bulk(f"r{sent}" + "v" * rng.choice([1, 50, 9000, 30_000])))
                given[address] += replies[-1]
                sent += 1
            elif what < 0.6:
                pushed.append(push(step, rng.choice([0, 10, 20_000])))
                inside.push(pushed[-1], rng.random() < 0.5)
            elif what < 0.9 and stage.nodes:
                address = rng.choice(list(stage.nodes))
                cut = rng.choice([1, 10, 5000, 40_000])
                stage.node(address).send(given[address][:cut])
                given[address] = given[address][cut:]
            stage.turn(1)
        stage.turn()
        for address in stage.nodes:
            stage.pour(stage.node(address), given[address])
        said, rest = ReplyReader(), stage.drink(client)
        frames = [frame for frame, _, _ in said.feed(rest)]
        assert b"".join(frames) == rest, seed
        assert [frame for frame in frames if frame.startswith(b">")] == pushed, seed
        assert [frame for frame in frames if not frame.startswith(b">")] == replies, seed
