"""CLIENT REPLY: commands whose replies are dropped, for every way in which a reply is made."""

from __future__ import annotations

import random

import pytest

from proxy.forward.ask import Ask, Later
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, SLOT_B, A, B, Play, Stage
from tests.support.dialogue import GET_A, GET_B, GET_C, PING, SET_A, asking, exchange, moved, pending

OFF, ON, SKIP = (encode_command("CLIENT", "REPLY", mode) for mode in ("OFF", "ON", "SKIP"))
MGET = encode_command("MGET", KEY_A, KEY_B)
ECHO = encode_command("ECHO", "x")
LARGE = bulk(b"v" * 300_000)


def play_with(stage: Stage, data: bytes, size: int = 1 << 20) -> bytes:
    """What a client gets for its commands when every node answers whatever it gets with `bulk(its key)`."""
    client = stage.client()
    said = b""
    for at in range(0, len(data), size):
        client.send(data[at : at + size])
        for _ in range(4):
            stage.turn()
            for ends in stage.nodes.values():
                for end in ends:
                    end.send(replies(end.get()))
        said += stage.drink(client)
    return said


def replies(frames: bytes) -> bytes:
    from proxy.resp.readers import CommandReader

    said = []
    for frame, _ in CommandReader().feed(frames):
        words = frame.split(b"\r\n")[2::2]
        said.append(array([bulk(words[1])]) if words[0] == b"MGET" else bulk(words[-1]))
    return b"".join(said)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_off_and_on(play: Play, size: int) -> None:
    stage = play()
    data = GET_A + OFF + GET_A + MGET + PING + ECHO + b"NOSUCH\r\n" + OFF + SKIP + ON + GET_B + PING
    expected = bulk(KEY_A) + b"+OK\r\n" + bulk(KEY_B) + b"+PONG\r\n"
    assert play_with(stage, data, size) == expected
    assert stage.count("commands")["get"]["calls"] == 3
    assert stage.count("commands")["mget"]["calls"] == 1
    assert pending(stage) == 0


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_skip_is_for_the_next_command(play: Play, size: int) -> None:
    data = (
        SKIP + GET_A + GET_B  # one skipped
        + SKIP + SKIP + GET_A + ECHO  # SKIP is a command like any other, and the second one is for GET
        + SKIP + MGET + PING
        + SKIP + PING + GET_A
        + SKIP + encode_command("NOSUCH") + encode_command("GET")  # errors, too
        + SKIP + ON + PING  # ON is answered whatever was before it
    )  # fmt: skip
    expected = (
        bulk(KEY_B) + bulk("x") + b"+PONG\r\n" + bulk(KEY_A)
        + b"-ERR wrong number of arguments for 'get' command\r\n" + b"+OK\r\n+PONG\r\n"
    )  # fmt: skip
    assert play_with(play(), data, size) == expected


def test_an_empty_line_is_a_command_for_skip(play: Play) -> None:
    """As Redis, which resets its client after it."""
    assert play_with(play(), SKIP + b"\r\n" + PING) == b"+PONG\r\n"
    assert play_with(play(), SKIP + b"*0\r\n" + PING) == b"+PONG\r\n"


def test_bad_arguments_change_nothing(play: Play) -> None:
    data = encode_command("CLIENT", "REPLY", "x") + encode_command("CLIENT", "REPLY", "OFF", "x") + PING
    arity = b"-ERR wrong number of arguments for 'client|reply' command\r\n"
    assert play_with(play(), data) == b"-ERR syntax error\r\n" + arity + b"+PONG\r\n"
    assert play_with(play(), OFF + data + ON) == b"+OK\r\n"


def test_reset_ends_it(play: Play) -> None:
    reset = encode_command("RESET")
    assert play_with(play(), OFF + PING + reset + PING) == b"+RESET\r\n+PONG\r\n"
    # The reply that SKIP is for stays away: measured at both kinds of server.
    assert play_with(play(), SKIP + reset + PING) == b"+PONG\r\n"


def test_what_was_asked_before_is_answered_and_what_comes_after(play: Play) -> None:
    """The flag belongs to the request, not to the moment its reply comes."""
    stage = play()
    client = stage.client()
    client.send(GET_A + OFF + GET_A + GET_B + ON + GET_A)
    stage.turn()
    stage.node(B).send(bulk("hidden"))
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(bulk("1") + bulk("2"))
    stage.turn()
    assert client.get() == bulk("1") + b"+OK\r\n"
    stage.node(A).send(bulk("3"))
    stage.turn()
    assert client.get() == bulk("3")
    assert stage.accepted.output_bytes == 0


def test_large_replies_are_not_kept(play: Play) -> None:
    """Neither at the head of the order nor behind it, whole or in pieces."""
    stage = play(soft_output=1 << 20)
    client = stage.client()
    client.send(GET_A + OFF + GET_A + GET_B + ON)
    stage.turn()
    stage.pour(stage.node(B), LARGE[:-2])
    stage.pour(stage.node(A), bulk("1") + LARGE[:100_000])
    assert client.get() == bulk("1")
    assert stage.accepted.output_bytes == len(b"+OK\r\n")
    stage.pour(stage.node(A), LARGE[100_000:])
    stage.node(B).send(LARGE[-2:])
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert stage.accepted.output_bytes == 0


def test_a_node_lost_in_the_middle_is_no_reason_to_close(play: Play) -> None:
    """Nothing of the reply had reached the client: the read is done again."""
    stage = play()
    client = stage.client()
    client.send(OFF + GET_A + ON)
    stage.turn()
    stage.pour(stage.node(A), LARGE[:200_000])
    stage.node(A).get()
    stage.node(A).close()
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.pour(stage.node(A), LARGE)
    assert client.get() == b"+OK\r\n"


def test_redirected(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(OFF + SET_A + ON)
    stage.turn()
    exchange(stage, A, SET_A, moved(B, SLOT_A))
    exchange(stage, B, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_errors_are_counted(play: Play) -> None:
    stage = play()
    client = stage.client()
    wrong = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    client.send(OFF + GET_A + GET_B + MGET + encode_command("GET") + ON)
    stage.turn()
    stage.node(B).send(wrong + wrong)
    stage.turn()
    stage.node(A).send(wrong + wrong)
    stage.turn()
    assert client.get() == b"+OK\r\n"
    commands = stage.count("commands")
    assert commands["get"]["errors"]["WRONGTYPE"] == 2
    assert sum(commands["get"]["errors"].values()) == 3
    assert commands["mget"]["errors"] == {"WRONGTYPE": 1}


def test_asked_of_servers_or_answered_later(play: Play) -> None:
    """Rounds too."""
    stage = play()
    later = Later()
    turn = iter(
        [
            Ask([(SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0)], lambda found: Ask([(SLOT_A, SET_A, 0)])),
            later,
            bulk("now"),
        ]
    )
    asking(stage, lambda args: next(turn))
    client = stage.client()
    client.send(OFF + ECHO * 3 + ON)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    exchange(stage, B, GET_B, bulk("2"))
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b""
    later.answer(bulk("late"))
    stage.turn()
    assert client.get() == b"+OK\r\n"


def test_a_push_is_no_reply(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(OFF + GET_A)
    stage.turn()
    frame = b">2\r\n+message\r\n" + bulk("x")
    stage.accepted.push(frame)
    stage.turn()
    assert client.get() == frame
    stage.accepted.push(frame, True)
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == frame


@pytest.mark.parametrize("mode", [OFF, SKIP])
def test_malformed_input_closes_without_a_word(play: Play, mode: bytes) -> None:
    """(A real server says nothing either, and then forgets to close.)"""
    stage = play()
    client = stage.client()
    client.send(GET_A + mode + b"*1\r\nx\r\n")
    stage.turn()
    assert not client.closed
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == bulk("1")
    assert client.closed


def test_quit_closes_without_a_word(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(OFF + GET_A + encode_command("QUIT") + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == b""
    assert client.closed


def test_thousands(play: Play) -> None:
    """More than may be under way: the client is stopped and goes on, though nothing is ever sent to it."""
    stage = play(max_pending=64)
    assert play_thousands(stage, OFF + GET_A * 5000 + ON) == b"+OK\r\n"
    assert stage.count("commands")["get"]["calls"] == 5000
    assert play_thousands(stage, (SKIP + GET_A + GET_B + SKIP + PING) * 1000) == bulk("1") * 1000
    assert play_thousands(stage, (SKIP + ECHO) * 3000 + PING) == b"+PONG\r\n"


def play_thousands(stage: Stage, data: bytes) -> bytes:
    client = stage.client()
    said, sent = b"", 0
    idle = 0
    while idle < 1000:
        took = client.offer(data[sent : sent + 60_000])
        sent += took
        stage.turn(1)
        for ends in stage.nodes.values():
            for end in ends:
                end.send(bulk("1") * (got := end.get()).count(b"*2\r\n"))
                took += len(got)
        new = client.get()
        said += new
        idle = 0 if took or new or stage.accepted.pending else idle + 1
    assert sent == len(data)
    return said


def test_any_sequence(play: Play) -> None:
    """Against the rule said plainly, in any order of answers and cuts."""
    for seed in range(60):
        chance = random.Random(seed)
        stage = play()
        client = stage.client()
        expected, data, off, skip, skip_next = [], [], False, False, False
        for n in range(chance.randrange(1, 60)):
            kind = chance.choice(["get", "get", "mget", "ping", "off", "on", "skip", "skip"])
            frame, reply = {
                "get": (chance.choice([GET_A, GET_B, GET_C]), b""),
                "mget": (MGET, array([bulk(KEY_A), bulk(KEY_B)])),
                "ping": (encode_command("PING", str(n)), bulk(str(n))),
                "off": (OFF, b""),
                "on": (ON, b"+OK\r\n"),
                "skip": (SKIP, b""),
            }[kind]
            if kind == "get":
                reply = bulk({GET_A: KEY_A, GET_B: KEY_B, GET_C: KEY_C}[frame])
            if kind == "on":
                off = skip = False
            off = off or kind == "off"
            if kind == "skip" and not off:
                skip_next = True
            if not off and not skip:
                expected.append(reply)
            skip, skip_next = skip_next, False
            data.append(frame)
        sent = b"".join(data)
        said = b""
        waiting: list[tuple[object, bytes]] = []
        while sent or waiting or stage.accepted.pending:
            cut = chance.randrange(1, 200)
            client.send(sent[:cut])
            sent = sent[cut:]
            stage.turn()
            for ends in stage.nodes.values():
                for end in ends:
                    if got := end.get():
                        waiting.append((end, replies(got)))
            if waiting and chance.random() < 0.7:
                end, answer = waiting[0] if chance.random() < 0.5 else waiting[-1]
                if next(pair[0] for pair in waiting if pair[0] is end) is end:
                    first = next(n for n, pair in enumerate(waiting) if pair[0] is end)
                    end, answer = waiting.pop(first)
                    end.send(answer)  # type: ignore[attr-defined]
            stage.turn()
            said += client.get()
        assert said + client.get() == b"".join(expected), seed
