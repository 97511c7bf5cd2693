"""The reading side of a client: bytes in, frames, commands on their way, and how it ends."""

from __future__ import annotations

import socket
import struct

import pytest

from proxy.forward.clients import close_all, output_bytes
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return server.accept()[0], far


def connected(stage: Stage, *addresses: object) -> None:
    """Has the backends of all primaries connected."""
    stage.router.warm(2)
    stage.turn()


def test_a_command_travels_as_it_came(play: Play) -> None:
    stage = play()
    client = stage.client()
    spelt = b"*3\r\n$3\r\nsEt\r\n$1\r\nb\r\n$2\r\n\r\n\r\n"
    client.send(spelt)
    stage.turn()
    assert stage.node(A).get() == spelt
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert list(stage.nodes) == [A]


def test_a_frame_may_be_cut_anywhere(play: Play) -> None:
    stage = play()
    frames = encode_command("SET", KEY_A, b"some\r\nvalue") + b"PING\r\n" + GET_A
    for cut in range(len(frames) + 1):
        client = stage.client()
        client.send(frames[:cut])
        stage.turn()
        client.send(frames[cut:])
        stage.turn()
        assert stage.node(A).get() == encode_command("SET", KEY_A, b"some\r\nvalue") + GET_A, cut
        stage.node(A).send(b"+OK\r\n" + bulk("x"))
        stage.turn()
        assert client.get() == b"+OK\r\n+PONG\r\n" + bulk("x"), cut
        client.close()
        stage.turn()


def test_two_clients_byte_by_byte_by_turns(play: Play) -> None:
    """Neither spoils the other's half-read arguments: the vector they share is given to who is in mid-frame."""
    stage = play()
    one, two = stage.client(), stage.client()
    first = encode_command("SET", KEY_A, b"1" * 20, "EX", "100") + encode_command("MGET", KEY_A, KEY_B)
    second = encode_command("MSET", KEY_A, b"x", KEY_B, b"y") + encode_command("GETRANGE", KEY_A, "0", "1")
    for n in range(max(len(first), len(second))):
        one.send(first[n : n + 1])
        two.send(second[n : n + 1])
        stage.turn(1)
    stage.turn()
    assert sorted(stage.node(A).get().split(b"*")[1:]) == sorted(
        (
            encode_command("SET", KEY_A, b"1" * 20, "EX", "100")
            + encode_command("MGET", KEY_A)
            + encode_command("MSET", KEY_A, "x")
            + encode_command("GETRANGE", KEY_A, "0", "1")
        ).split(b"*")[1:]
    )
    assert sorted(stage.node(B).get().split(b"*")[1:]) == sorted(
        (encode_command("MGET", KEY_B) + encode_command("MSET", KEY_B, "y")).split(b"*")[1:]
    )


def test_a_whole_frame_of_another_comes_between_the_halves(play: Play) -> None:
    stage = play()
    one, two = stage.client(), stage.client()
    frame = encode_command("SET", KEY_A, "value", "KEEPTTL")
    for cut in range(1, len(frame)):
        one.send(frame[:cut])
        stage.turn(1)
        two.send(encode_command("PING", "in between") + GET_B)
        stage.turn()
        one.send(frame[cut:])
        stage.turn()
        assert stage.node(A).get() == frame
        assert stage.node(B).get() == GET_B
        assert two.get() == bulk("in between")
        stage.node(A).send(b"+OK\r\n")
        stage.node(B).send(b"$-1\r\n")
        stage.turn()
        assert (one.get(), two.get()) == (b"+OK\r\n", b"$-1\r\n")


def test_a_large_request_waits_until_it_is_whole(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    connected(stage)
    frame = encode_command("SET", KEY_A, bytes(range(256)) * (5 << 12))
    assert len(frame) > 5 << 20
    stage.pour(client, frame[:-1])
    assert stage.node(A).get() == b""
    assert stage.accepted.query_bytes == 0  # the other's
    other.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    client.send(frame[-1:])
    stage.turn()
    assert stage.drink(stage.node(A)) == frame
    stage.node(A).send(bulk("v") + b"+OK\r\n")
    stage.turn()
    assert (client.get(), other.get()) == (b"+OK\r\n", bulk("v"))


def test_inline_commands(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(b'\r\n  \r\nset b "a b\\x00"\r\nPING\n')
    stage.turn()
    assert stage.node(A).get() == encode_command("set", KEY_A, b"a b\0")
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n+PONG\r\n"
    client.send(b"GET 'b\r\nPING\r\n")
    stage.turn()
    assert client.get() == b"-ERR Protocol error: unbalanced quotes in request\r\n"
    assert client.closed
    assert stage.notices == ["protocol error"]


def test_quit_answers_what_was_asked_before_and_ignores_the_rest(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + encode_command("QUIT") + encode_command("SET", KEY_A, "never"))
    stage.turn()
    assert stage.node(A).get() == GET_A
    assert not client.closed
    stage.node(A).send(bulk("v"))
    stage.turn()
    assert client.get() == bulk("v") + b"+OK\r\n"
    assert client.closed
    assert stage.count("closed")["quit"] == 1


def test_the_end_of_input_waits_for_replies(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B + b"*1\r\n$4\r\nPI")
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert not client.closed
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk("2")
    assert client.closed
    assert stage.count("closed")["client"] == 1


def test_the_end_of_input_while_paused(play: Play) -> None:
    """What was sent before the end is all carried out, though it was not read at once."""
    stage = play(max_pending=1)
    client = stage.client()
    client.send(GET_A * 5)
    client.sock.shutdown(socket.SHUT_WR)
    for _ in range(5):
        stage.turn()
        assert stage.node(A).get() == GET_A
        assert not client.closed
        stage.node(A).send(b"$-1\r\n")
    stage.turn()
    assert client.get() == b"$-1\r\n" * 5
    assert client.closed


def test_malformed_input_is_told_after_what_was_asked_before(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + b"*1\r\n:4\r\nPING\r\n" + GET_B)
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(bulk("v"))
    stage.turn()
    assert client.get() == bulk("v") + b"-ERR Protocol error: expected '$', got ':'\r\n"
    assert client.closed
    assert list(stage.nodes) == [A]
    assert stage.count("closed")["protocol_error"] == 1


def test_a_client_leaves_with_requests_in_flight(play: Play) -> None:
    """What it asked for is answered to nobody; who comes next gets its own replies."""
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(GET_A + GET_B + encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    client.close()
    stage.turn()
    assert stage.count("inflight") == 0
    assert len(stage.path.clients) == 1
    other.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("1") + b"*1\r\n" + bulk("2") + bulk("3"))
    stage.node(B).send(bulk("4") + b"*1\r\n" + bulk("5"))
    stage.turn()
    assert other.get() == bulk("3")


def test_a_reset_connection(play: Play) -> None:
    stage = play()
    near, far = tcp_pair()
    client = stage.take(near, far)
    client.send(GET_A)
    stage.turn()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    stage.until(lambda: not stage.path.clients)
    assert stage.count("closed")["client"] == 1
    stage.node(A).send(bulk("v"))
    stage.turn()
    assert stage.router.nodes[A].figures()["pending"] == 0


@pytest.mark.parametrize("step", [100, 100_000])
def test_a_command_longer_than_allowed(play: Play, step: int) -> None:
    stage = play()
    client = stage.client(max_query=2000)
    frame = encode_command("SET", KEY_A, b"v" * 10_000)
    for n in range(0, len(frame) - 1, step):
        client.send(frame[n : min(n + step, len(frame) - 1)])
        stage.turn(1)
    stage.turn()
    assert client.closed
    assert stage.count("closed")["query_limit"] == 1
    assert stage.notices == ["client closed: its command is too long (clients.max_query)"]


def test_a_whole_batch_longer_than_max_query_is_served(play: Play) -> None:
    """The limit is for input that is no whole command, not for what waits while reading pauses."""
    stage = play()
    client = stage.client(max_query=100, max_pending=2)
    client.send(GET_A * 50 + encode_command("PING"))
    for _ in range(25):
        stage.turn()
        assert stage.node(A).get() == GET_A * 2
        stage.node(A).send(b"$-1\r\n" * 2)
    stage.turn()
    assert client.get() == b"$-1\r\n" * 50 + b"+PONG\r\n"


def test_an_idle_client_holds_nothing(play: Play) -> None:
    stage = play()
    client = stage.client()
    inside = stage.accepted
    client.send(GET_A[:9])
    stage.turn()
    assert inside.query_bytes == 9
    client.send(GET_A[9:])
    stage.turn()
    assert (inside.query_bytes, inside.pending) == (0, 1)
    stage.node(A).send(bulk("v" * 1000))
    stage.turn()
    assert client.get() == bulk("v" * 1000)
    assert (inside.query_bytes, inside.output_bytes, inside.pending) == (0, 0, 0)
    assert output_bytes(stage.path) == 0
    assert (inside.total_commands, inside.last_command) == (1, "get")


def test_kill_from_within_and_from_outside(play: Play) -> None:
    stage = play()
    one, two = stage.client(), stage.client()
    stage.accepted.kill()
    stage.accepted.kill()
    stage.turn()
    assert two.closed
    one.send(GET_A)
    stage.turn()
    close_all(stage.path)
    stage.turn()
    assert one.closed
    assert stage.count("closed") | {"killed": 1, "shutdown": 1} == stage.count("closed")


def test_a_client_closed_by_its_own_command(play: Play) -> None:
    stage = play()
    client = stage.client()
    inside = stage.accepted

    class Killer(type(stage.responder)):  # type: ignore[misc]
        def answer(self, client: object, args: list[bytes]) -> bytes:
            inside.kill()
            return b"+OK\r\n"

    stage.path.responder = Killer(stage.context)
    client.send(GET_A[:5])
    stage.turn()
    client.send(GET_A[5:] + encode_command("ECHO", "x") + GET_B)
    stage.turn()
    assert client.get() == b""
    assert client.closed
    assert list(stage.nodes) == [A]


def test_many_commands_in_many_small_pieces(play: Play) -> None:
    """More than one receive buffer, cut where it happens."""
    stage = play(max_pending=1 << 20, max_pending_bytes=1 << 30, soft_output=1 << 30)
    client: End = stage.client()
    frames = b"".join(encode_command("SET", KEY_A, b"v" * (n % 3000)) for n in range(1000))
    stage.pour(client, frames)
    assert stage.drink(stage.node(A)) == frames
    stage.node(A).send(b"+OK\r\n" * 1000)
    stage.turn()
    assert client.get() == b"+OK\r\n" * 1000
    assert list(stage.nodes) == [A]
    assert C not in stage.nodes
