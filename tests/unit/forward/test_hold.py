"""CLIENT PAUSE in the data path: what waits, in which order it goes on, and what a held client may do meanwhile."""

from __future__ import annotations

import socket
import time

import pytest

from proxy.commands.lookup import CommandTable
from proxy.commands.rows import Row
from proxy.forward.clients import close_idle, drain
from proxy.forward.hold import pause, paused
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import SLOT_A, A, B, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B, PING, SET_A, exchange, moved, sized

NOTHING, WRITE, ALL = 0, 1, 2
LONG_NS = 3600 * 10**9
ECHO = encode_command("ECHO", "x")


def hold(stage: Stage, level: int, for_ns: int = LONG_NS) -> None:
    pause(stage.path, level, time.monotonic_ns() + for_ns)


def got(stage: Stage, node: object = A) -> bytes:
    """What its connections have got."""
    return b"".join(end.get() for end in stage.nodes.get(node, []))  # type: ignore[call-overload]


def test_nothing_is_paused(play: Play) -> None:
    stage = play()
    assert paused(stage.path) == (0, 0)
    pause(stage.path, ALL, time.monotonic_ns() - 1)  # over before it began
    assert paused(stage.path) == (0, 0)
    client = stage.client()
    client.send(PING)
    stage.turn()
    assert client.get() == b"+PONG\r\n"


def test_writes_wait_and_what_comes_behind_them(play: Play) -> None:
    """In order; what came before is answered, and a client that only reads goes on."""
    stage = play()
    client, reader = stage.client(), stage.client()
    hold(stage, WRITE)
    client.send(GET_A + SET_A + GET_B + PING)
    reader.send(GET_B)
    stage.turn()
    exchange(stage, A, GET_A, bulk("0"))
    exchange(stage, B, GET_B, bulk("r"))
    assert (client.get(), reader.get()) == (bulk("0"), bulk("r"))
    client.send(PING)
    stage.turn()
    assert client.get() == b""
    assert got(stage, A) == got(stage, B) == b""
    pause(stage.path, NOTHING, 0)
    stage.turn()
    exchange(stage, A, SET_A, b"+OK\r\n")
    exchange(stage, B, GET_B, bulk("2"))
    assert client.get() == b"+OK\r\n" + bulk("2") + b"+PONG\r\n+PONG\r\n"


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (("SET", "b", "1"), WRITE),
        (("MSET", "b", "1", "c", "2"), WRITE),
        (("DEL", "b", "c"), WRITE),
        (("EVAL", "x", "0"), WRITE),
        (("EVALSHA", "x", "1", "b"), WRITE),
        (("FCALL", "f", "0"), WRITE),
        (("PUBLISH", "c", "m"), WRITE),
        (("SPUBLISH", "c", "m"), WRITE),
        (("PFCOUNT", "b"), WRITE),
        (("NOSUCH.WRITE", "b"), WRITE),  # no table knows it: it may be one
        (("GET", "b"), ALL),
        (("MGET", "b", "c"), ALL),
        (("EVAL_RO", "x", "0"), ALL),
        (("PING",), ALL),
        (("PING", "x"), ALL),
        (("TIME",), ALL),
        (("QUIT",), ALL),
        (("RESET",), ALL),
        (("HELLO",), ALL),
        (("CLIENT", "ID"), ALL),
        (("CLIENT", "UNPAUSE"), ALL),
        (("COMMAND", "COUNT"), ALL),
        (("SHUTDOWN",), ALL),
    ],
    ids=str,
)
def test_what_is_held(play: Play, words: tuple[str, ...], level: int) -> None:
    for mode in (WRITE, ALL):
        stage = play()
        client = stage.client()
        hold(stage, mode)
        client.send(encode_command(*words))
        stage.turn()
        held = level <= mode
        assert stage.accepted.held_back == held, mode
        assert stage.accepted.total_commands == (not held)
        if held:
            assert client.get() == got(stage, A) == got(stage, B) == b""
            assert not client.closed


@pytest.mark.parametrize("words", [("GET",), ("SET", "b")])
def test_what_redis_refuses_before_it_holds_is_refused(play: Play, words: tuple[str, ...]) -> None:
    stage = play()
    client = stage.client()
    hold(stage, ALL)
    client.send(encode_command(*words))
    stage.turn()
    assert client.get() == b"-ERR wrong number of arguments for '%s' command\r\n" % words[0].lower().encode()


def test_no_auth_comes_first(play: Play) -> None:
    stage = play(password=True)
    client = stage.client()
    hold(stage, ALL)
    client.send(PING)
    stage.turn()
    assert client.get() == b"-NOAUTH Authentication required.\r\n"


def test_replies_under_way_still_come(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + SET_A)
    stage.turn()
    hold(stage, ALL)
    client.send(PING)
    exchange(stage, A, GET_A + SET_A, bulk("1") + b"+OK\r\n")
    assert client.get() == bulk("1") + b"+OK\r\n"
    pause(stage.path, NOTHING, 0)
    stage.turn()
    assert client.get() == b"+PONG\r\n"


def test_a_redirected_command_is_not_held(play: Play) -> None:
    """It was carried out before the pause."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    hold(stage, ALL)
    exchange(stage, A, SET_A, moved(B, SLOT_A))
    exchange(stage, B, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_it_ends_by_itself_and_no_deadline_ran(play: Play) -> None:
    stage = play(timeout_s=300.0)
    client = stage.client()
    hold(stage, ALL, 600 * 10**9)
    client.send(SET_A + GET_A)
    stage.until(lambda: stage.accepted.held_back)
    stage.pass_time(500.0, sweep=True)
    assert stage.accepted.held_back
    stage.pass_time(110.0, sweep=True)
    assert not stage.accepted.held_back
    assert paused(stage.path) == (0, 0)
    stage.turn()
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n" + bulk("1"))
    assert client.get() == b"+OK\r\n" + bulk("1")


def test_the_last_word_counts(play: Play) -> None:
    """pause() sets the state; that no pause becomes shorter is serve's to see to."""
    stage = play()
    client = stage.client()
    hold(stage, ALL)
    hold(stage, WRITE)
    assert paused(stage.path)[0] == WRITE
    client.send(PING + SET_A)
    stage.turn()
    assert client.get() == b"+PONG\r\n"
    hold(stage, ALL, 20_000_000)
    stage.until(lambda: not stage.accepted.held_back)
    stage.turn()
    exchange(stage, A, SET_A, b"+OK\r\n")


def test_a_held_client_is_not_read(play: Play) -> None:
    """What it goes on sending stays in the kernel: bounded memory, however long it lasts."""
    stage = play()
    client = stage.client()
    hold(stage, ALL)
    sent = 0
    for _ in range(2000):
        sent += client.offer(sized(10_000))
        stage.loop.run()
    assert stage.accepted.query_bytes < 600_000
    assert sent > stage.accepted.query_bytes
    client.close()
    stage.until(lambda: not stage.path.clients)
    assert stage.path.client_memory == 0


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_a_client_that_leaves_frees_everything(play: Play, how: str) -> None:
    """And what it had sent is not carried out, as Redis drops it."""
    stage = play()
    end = stage.client()
    hold(stage, WRITE)
    end.send(SET_A * 3)
    stage.turn()
    assert stage.accepted.held_back
    if how == "half":
        end.sock.shutdown(socket.SHUT_WR)
    else:
        end.close()
    stage.turn()
    assert not stage.path.clients
    assert stage.path.client_memory == 0
    pause(stage.path, NOTHING, 0)
    stage.turn()
    assert got(stage) == b""


def test_one_that_has_left_gets_what_was_asked_before(play: Play) -> None:
    stage = play()
    end = stage.client()
    hold(stage, WRITE)
    end.send(GET_A + SET_A)
    end.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert end.get() == bulk("1")
    assert end.closed
    assert not stage.path.clients


def test_a_killed_client_is_forgotten(play: Play) -> None:
    stage = play()
    stage.client().send(SET_A)
    hold(stage, ALL)
    stage.turn()
    stage.accepted.kill()
    assert not stage.accepted.held_back or stage.accepted.fd < 0
    pause(stage.path, NOTHING, 0)
    stage.turn()
    assert stage.count("closed")["killed"] == 1
    assert got(stage) == b""


def test_it_is_not_idle(play: Play) -> None:
    """As Redis: a client that waits is not closed for being silent."""
    stage = play()
    held, idle = stage.client(), stage.client()
    hold(stage, WRITE)
    held.send(SET_A)
    stage.turn()
    close_idle(stage.path, -1.0)
    stage.turn()
    assert idle.closed
    assert not held.closed
    stage.pass_time(200.0)
    pause(stage.path, NOTHING, 0)
    close_idle(stage.path, 150.0)  # in the same turn of the loop
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert held.get() == b"+OK\r\n"


def test_a_drained_client_is_parted_with(play: Play) -> None:
    """The end of the proxy does not wait for the end of the pause; what was held was not carried out."""
    stage = play()
    end = stage.client()
    hold(stage, WRITE)
    end.send(SET_A)
    stage.turn()
    drain(stage.accepted)
    stage.turn()
    assert end.closed
    end.close()
    stage.turn()
    assert not stage.path.clients
    assert got(stage) == b""


def test_all_go_on(play: Play) -> None:
    """More than go on in one turn; each once."""
    stage = play()
    hold(stage, ALL)
    clients = [stage.client() for _ in range(300)]
    for client in clients:
        client.send(PING + ECHO)
    stage.turn()
    assert all(client.held_back for client in stage.path.clients)
    pause(stage.path, NOTHING, 0)
    stage.loop.run()
    assert sum(client.held_back for client in stage.path.clients) > 0  # others have their turn in between
    stage.turn(10)
    assert {client.get() for client in clients} == {b"+PONG\r\n" + bulk("x")}


def test_a_new_pause_catches_those_that_have_not_gone_on(play: Play) -> None:
    stage = play()
    hold(stage, ALL)
    clients = [stage.client() for _ in range(300)]
    for client in clients:
        client.send(PING)
    stage.turn()
    pause(stage.path, NOTHING, 0)
    hold(stage, ALL)
    stage.turn(5)
    answered = sum(client.get() == b"+PONG\r\n" for client in clients)
    assert answered < 300
    assert not stage.loop.soon  # nobody turns round and round meanwhile
    pause(stage.path, NOTHING, 0)
    stage.turn(10)
    assert sum(client.get() == b"+PONG\r\n" for client in clients) == 300 - answered


def test_cut_anywhere(play: Play) -> None:
    said = GET_A + SET_A + b"PING\r\n" + SET_A
    for cut in range(len(said) + 1):
        stage = play()
        client = stage.client()
        hold(stage, WRITE)
        client.send(said[:cut])
        stage.turn()
        client.send(said[cut:])
        stage.turn()
        pause(stage.path, NOTHING, 0)
        answered: list[End] = []
        frames = b""
        for _ in range(6):
            stage.turn()
            if A in stage.nodes:
                new = stage.node(A).get()
                frames += new
                stage.node(A).send(b"+R\r\n" * new.count(b"*"))
        assert answered == []
        assert frames == GET_A + SET_A + SET_A, cut
        stage.turn()
        assert client.get() == b"+R\r\n+R\r\n+PONG\r\n+R\r\n", cut


def test_the_server_says_what_writes(play: Play) -> None:
    """A module's command, by the flags in the servers' own table."""
    stage = play()
    rows = (
        Row("m.read", 2, ("readonly",), 1, 1, 1),
        Row("m.write", 2, ("write",), 1, 1, 1),
    )
    stage.path.table = CommandTable(rows, "x", stage.counters.metrics)
    reader, writer = stage.client(), stage.client()
    hold(stage, WRITE)
    reader.send(encode_command("M.READ", "b"))
    writer.send(encode_command("M.WRITE", "b"))
    stage.turn()
    assert got(stage) == encode_command("M.READ", "b")
