"""What is done with each class of command, what must wait before it is, and a responder that raises."""

from __future__ import annotations

import socket

import pytest

from proxy.forward.ask import Ask
from proxy.forward.clients import drain
from proxy.forward.request import live
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, SLOT_A, TEXTS, A, B, Play, Stage
from tests.support.dialogue import GET_A, GET_B, INTERNAL, PING, SET_A, asking, exchange


def test_answers_of_our_own(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(
        encode_command("PING")
        + encode_command("PING", "hi")
        + encode_command("PING", "a", "b")
        + encode_command("GET")
        + encode_command("ECHO", "x")
        + encode_command("RENAME", KEY_A, KEY_B)
        + encode_command("OBJECT", "ENCODING")
        + encode_command("MSET", KEY_A, "1", KEY_B)
        + b"*0\r\n*-1\r\n"
    )
    stage.turn()
    assert client.get() == (
        b"+PONG\r\n"
        b"$2\r\nhi\r\n"
        b"-ERR wrong number of arguments for 'ping' command\r\n"
        b"-ERR wrong number of arguments for 'get' command\r\n"
        b"$1\r\nx\r\n"
        b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
        b"-ERR wrong number of arguments for 'object|encoding' command\r\n"
        b"-ERR wrong number of arguments for 'mset' command\r\n"
    )
    assert stage.nodes == {}


def test_block_only_blocks_where_it_is_an_option(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("XREAD", "STREAMS", "{b}block", "0"))
    stage.turn()
    assert stage.node(A).get() == encode_command("XREAD", "STREAMS", "{b}block", "0")
    assert not stage.accepted.blocked
    other = stage.client()
    other.send(encode_command("XREAD", "BLOCK", "0", "STREAMS", KEY_A, "$"))
    stage.turn()
    assert stage.accepted.blocked
    assert (len(stage.nodes[A]), client.get(), other.get()) == (2, b"", b"")


def test_a_password_is_asked_for(play: Play) -> None:
    stage = play()
    stage.context.client_password = "secret"
    client = stage.client(password=True)
    client.send(GET_A + encode_command("AUTH", "wrong") + encode_command("AUTH", "secret") + GET_A)
    stage.turn()
    assert client.get() == errors.NOAUTH + errors.WRONGPASS + b"+OK\r\n"
    assert stage.node(A).get() == GET_A


def test_hello_moves_it_to_resp3_backends(play: Play) -> None:
    stage = play()
    client, plain = stage.client(), stage.client()
    client.send(encode_command("HELLO", "3") + GET_A)
    plain.send(GET_A)
    stage.turn()
    three, two = stage.nodes[A]
    assert [b.proto for b in stage.router.nodes[A].backends()] == [2, 3]
    assert two.get() == three.get() == GET_A
    three.send(b"_\r\n")
    stage.turn()
    said = client.get()
    assert said.startswith(b"%7\r\n")
    assert said.endswith(b"_\r\n")
    client.send(encode_command("RESET") + GET_A)
    stage.turn()
    assert client.get() == b"+RESET\r\n"
    assert two.get() == GET_A
    assert three.get() == b""


@pytest.mark.parametrize(("first", "change"), [(2, ["HELLO", "3"]), (3, ["HELLO", "2"]), (3, ["RESET"])])
def test_a_change_of_protocol_waits_for_what_is_under_way(play: Play, first: int, change: list[str]) -> None:
    """The other protocol has other connections: a later command for the same key must not overtake on one."""
    stage = play()
    client = stage.client()
    client.send(encode_command("HELLO", str(first)))
    stage.turn()
    client.get()
    client.send(encode_command("SET", KEY_A, "1") + encode_command(*change) + GET_A)
    stage.turn()
    assert [end.get() for end in stage.nodes[A]] == [encode_command("SET", KEY_A, "1")]
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert stage.node(A).get() == GET_A
    assert len(stage.nodes[A]) == 2
    stage.node(A).send(bulk("1"))
    stage.turn()
    said = client.get()
    assert said.startswith(b"+OK\r\n")
    assert said.endswith(bulk("1"))


def test_http_is_no_redis(play: Play) -> None:
    stage = play()
    for line in (b"POST / HTTP/1.1\r\n", b"Host: here\r\n"):
        client = stage.client()
        client.send(line + b"SET b 1\r\n")
        stage.turn()
        assert client.closed
    assert stage.count("closed")["cross_protocol"] == 2
    assert stage.nodes == {}
    assert stage.notices == ["possible cross-protocol attack: POST or Host: received"] * 2


# -- what must wait: a barrier

HELLO3, HELLO2, RESET = encode_command("HELLO", "3"), encode_command("HELLO", "2"), encode_command("RESET")


@pytest.mark.parametrize("cut", [0, 1, 5, 14, 15, 21, 22, 27, 30])
@pytest.mark.parametrize("change", [HELLO3, RESET, b"hello 3\r\n", b"ReSeT\r\n"])
def test_a_barrier_waits_and_is_carried_out_once(play: Play, cut: int, change: bytes) -> None:
    """Its frame cut anywhere, inline too; what comes behind it waits with it, and replies come in order."""
    stage = play()
    client = stage.client()
    inside = stage.accepted
    behind = change + PING + SET_A
    client.send(GET_A + GET_B + behind[:cut])
    stage.turn()
    client.send(behind[cut:])
    stage.turn()
    assert inside.total_commands == 2
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert (inside.total_commands, client.get()) == (2, b"")
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert inside.total_commands == 5
    assert stage.node(A).get() == SET_A
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    said = client.get()
    assert said.startswith(bulk("1") + bulk("2"))
    assert said.endswith(b"+PONG\r\n+OK\r\n")
    name = "reset" if b"reset" in change.lower() else "hello"
    assert said.count(b"+RESET") + said.count(b"%7") == 1
    assert stage.count("commands")[name]["calls"] == 1
    assert (inside.query_bytes, inside.pending, inside.proto) == (0, 0, 2 if name == "reset" else 3)


def test_with_nothing_under_way_there_is_nothing_to_wait_for(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(HELLO3 + PING + RESET + PING + HELLO2 + HELLO3 + PING)
    stage.turn()
    assert client.get().count(b"+PONG\r\n") == 3
    assert stage.accepted.total_commands == 7


def test_several_barriers_one_after_the_other(play: Play) -> None:
    """Each waits for what stands before it, and the commands between go to the connections they should."""
    stage = play()
    client = stage.client()
    client.send(SET_A + HELLO3 + SET_A + RESET + SET_A + HELLO3 + PING)
    for n in range(3):
        stage.turn()
        three = n == 1
        places = [backend.proto for backend in stage.router.nodes[A].backends() if backend.pending]
        assert places == [3 if three else 2]
        ends = dict(zip([2, 3], stage.nodes[A], strict=False))
        assert ends[places[0]].get() == SET_A
        ends[places[0]].send(b"+%d\r\n" % n)
    stage.turn()
    said = client.get()
    assert [said.index(b"+%d\r\n" % n) for n in range(3)] == sorted(said.index(b"+%d\r\n" % n) for n in range(3))
    assert said.endswith(b"+PONG\r\n")
    assert stage.accepted.total_commands == 7


def test_behind_an_answer_of_our_own_that_waits(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + PING + RESET)
    stage.turn()
    assert stage.accepted.total_commands == 2
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == bulk("1") + b"+PONG\r\n+RESET\r\n"


@pytest.mark.parametrize("how", ["leaves", "killed", "reset by timeout"])
def test_a_client_that_goes_while_a_barrier_waits(play: Play, how: str) -> None:
    stage = play(timeout_s=0.0)
    client = stage.client()
    inside = stage.accepted
    client.send(GET_A + HELLO3 + PING)
    stage.turn()
    if how == "leaves":
        client.close()
    elif how == "killed":
        inside.kill()
    else:
        stage.router.sweep()
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    stage.turn()
    if how == "reset by timeout":
        said = client.get()
        assert said.startswith(TEXTS["timeout"] + b"%7")
        assert said.endswith(b"+PONG\r\n")
        assert inside.total_commands == 3
    else:
        assert (inside.total_commands, inside.fd, inside.proto) == (1, -1, 2)


@pytest.mark.parametrize("how", ["drained", "half closed"])
def test_a_client_that_ends_while_a_barrier_waits(play: Play, how: str) -> None:
    """What was read is carried out, the barrier and what is behind it too."""
    stage = play()
    client = stage.client()
    client.send(GET_A + HELLO3 + GET_B)
    stage.turn()
    if how == "drained":
        drain(stage.accepted)
    else:
        client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    assert not client.closed
    exchange(stage, A, GET_A, bulk("1"))
    exchange(stage, B, GET_B, bulk("2"))
    said = client.get()
    assert said.startswith(bulk("1") + b"%7")
    assert said.endswith(bulk("2"))
    assert client.closed
    if how == "half closed":
        assert not stage.path.clients


def test_a_barrier_while_a_reply_is_not_taken(play: Play) -> None:
    """Answered is enough; it need not have been taken."""
    stage = play()
    client = stage.client()
    client.send(GET_A + HELLO3 + PING)
    stage.turn()
    large = bulk(b"v" * 700_000)
    stage.pour(stage.node(A), large)
    assert stage.accepted.total_commands == 3
    assert stage.drink(client).endswith(b"+PONG\r\n")


# -- a responder that raises


class Fault(Exception):
    """A defect of proxy.serve."""


def broken(stage: Stage, *methods: str) -> None:
    """These methods of the responder raise."""

    def fail(self: object, *args: object) -> bytes:
        raise Fault

    stage.path.responder = type("Broken", (type(stage.responder),), dict.fromkeys(methods, fail))(
        stage.context, on_raised=lambda what, error: stage.raised.append((what, error))
    )


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    ("method", "frame", "what"),
    [
        ("answer", encode_command("ECHO", "x"), "ECHO"),
        ("answer", b"time\r\n", "time"),
        ("answer", HELLO3, "HELLO"),
        ("refuse", encode_command("GET"), "GET"),
        ("refuse", encode_command("SHUTDOWN"), "SHUTDOWN"),
        ("refuse", encode_command("MSET", KEY_A, "1", KEY_B), "MSET"),
        ("refuse", encode_command("OBJECT", "ENCODING"), "OBJECT"),
    ],
)
def test_a_responder_that_raises(play: Play, method: str, frame: bytes, what: str, waiting: bool) -> None:
    """Its client is told, later replies stay in their places, and the log hears of it."""
    stage = play()
    client = stage.client()
    broken(stage, method)
    client.send((GET_A if waiting else b"") + frame * 2 + PING + GET_B)
    stage.turn()
    if waiting:
        assert client.get() == b""
        exchange(stage, A, GET_A, bulk("1"))
    exchange(stage, B, GET_B, bulk("2"))
    assert client.get() == (bulk("1") if waiting else b"") + INTERNAL * 2 + b"+PONG\r\n" + bulk("2")
    assert stage.count("internal_errors") == 2
    assert [name for name, _ in stage.raised] == [what] * 2
    assert all(isinstance(error, Fault) for _, error in stage.raised)


@pytest.mark.parametrize("value", ["text", 5, [b"+OK\r\n"], bytearray(b"+OK\r\n")])
def test_a_responder_that_answers_with_what_is_no_reply(play: Play, value: object) -> None:
    stage = play()
    client = stage.client()
    asking(stage, lambda args: value)
    client.send(encode_command("ECHO", "x") + PING)
    stage.turn()
    assert client.get() == INTERNAL + b"+PONG\r\n"
    assert stage.count("internal_errors") == 1


def test_a_responder_that_raises_for_malformed_input(play: Play) -> None:
    """The client is closed all the same, after what it had asked for."""
    stage = play()
    client = stage.client()
    broken(stage, "fault")
    client.send(GET_A + b"*x\r\n" + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get().startswith(bulk("1"))
    assert client.closed
    assert stage.count("closed")["protocol_error"] == 1
    assert (stage.count("internal_errors"), len(stage.raised)) == (1, 1)


def test_malformed_input_is_answered_though_the_responder_raises(play: Play) -> None:
    stage = play()
    client = stage.client()
    broken(stage, "fault")
    client.send(b"*x\r\n")
    stage.turn()
    assert client.get() == INTERNAL


def test_a_responder_that_raises_when_a_client_is_closed(play: Play) -> None:
    """The client is gone all the same, and whoever waits for clients to go is told."""
    stage = play()
    told: list[int] = []
    stage.path.on_close = lambda: told.append(stage.path.closed)
    client, other = stage.client(), stage.client()
    broken(stage, "closed")
    client.send(encode_command("QUIT"))
    other.close()
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert told == [1, 2]
    assert (stage.count("internal_errors"), [name for name, _ in stage.raised]) == (2, ["close", "close"])
    assert not stage.path.clients


def test_a_responder_that_says_not_now_to_an_idle_client(play: Play) -> None:
    stage = play()
    client = stage.client()
    asking(stage, lambda args: None)
    client.send(encode_command("ECHO", "x") + PING)
    stage.turn()
    assert client.get() == INTERNAL + b"+PONG\r\n"


def test_a_responder_that_asks_for_a_client_it_has_closed(play: Play) -> None:
    stage = play()
    client = stage.client()
    inside = stage.accepted

    def make(args: list[bytes]) -> Ask:
        inside.kill()
        return Ask([(SLOT_A, GET_A, 0)])

    asking(stage, make)
    client.send(encode_command("ECHO", "x"))
    stage.turn()
    assert stage.nodes == {}
    assert live() == stage.live
