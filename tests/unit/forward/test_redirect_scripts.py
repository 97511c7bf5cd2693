"""Who is believed that names another node: the server, and a script only when its node says the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.cluster.topology import Address
from proxy.forward.request import live
from proxy.resp import errors
from proxy.resp.encode import array, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, SLOT_B, SLOT_C, A, B, C, End, Play, Stage
from tests.support.dialogue import (
    ASKING,
    EXISTS_A,
    GET_A,
    GET_B,
    PING,
    REFUSALS,
    SET_A,
    always,
    ask,
    exchange,
    moved,
)

SCRIPTS = [
    encode_command(name, body, "1", KEY_A, "x")
    for name, body in (("EVAL", "return 1"), ("EVALSHA", "f" * 40), ("FCALL", "f"))
]
SCRIPTS_RO = [encode_command(f"{name}_RO", "f", "1", KEY_A) for name in ("EVAL", "EVALSHA", "FCALL")]


def goes_to(stage: Stage, key: bytes) -> list[Address]:
    """Where another client's GET of a key goes."""
    frame = encode_command("GET", key)
    client = stage.client()
    client.send(frame)
    stage.turn()
    places = [address for address, ends in stage.nodes.items() for end in ends if frame in end.get()]
    for address in places:
        stage.node(address).send(b"$-1\r\n")
    stage.turn()
    client.close()
    stage.turn()
    return places


@pytest.mark.parametrize("slot", [SLOT_B, SLOT_C, 0])
def test_moved_of_another_slot_is_followed_but_not_learnt(play: Play, slot: int) -> None:
    """Neither for the slot it names nor for the one that was asked for."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(C, slot))
    exchange(stage, C, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"
    assert [goes_to(stage, key) for key in (KEY_A, KEY_B, KEY_C)] == [[A], [B], [C]]
    assert stage.stale_for == ["moved"]


@pytest.mark.parametrize("frame", [encode_command("BLPOP", KEY_A, "0"), encode_command("WATCH", KEY_A)])
@pytest.mark.parametrize("slot", [SLOT_B, SLOT_C, 0])
def test_nor_is_it_on_a_connection_of_the_clients_own(play: Play, frame: bytes, slot: int) -> None:
    """A broken node would have the commands of others sent to itself."""
    stage = play()
    client = stage.client()
    client.send(frame)
    stage.turn()
    exchange(stage, A, frame, moved(A, slot))
    exchange(stage, A, frame, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"
    assert [goes_to(stage, key) for key in (KEY_A, KEY_B, KEY_C)] == [[A], [B], [C]]
    assert stage.stale_for == ["moved"]


@pytest.mark.parametrize("frame", SCRIPTS + SCRIPTS_RO)
@pytest.mark.parametrize("line", [moved, ask])
def test_a_script_is_run_once_more_on_its_own_word(play: Play, frame: bytes, line: Callable[..., bytes]) -> None:
    """Its node does not say the same when it is asked itself: nobody's commands go elsewhere for it."""
    stage = play()
    client = stage.client()
    client.send(frame)
    stage.turn()
    exchange(stage, A, frame, line(B))
    exchange(stage, A, EXISTS_A, b":1\r\n")
    exchange(stage, A, frame, line(C))
    exchange(stage, A, EXISTS_A, b":1\r\n")
    stage.turn(6)
    assert client.get() == line(C)
    assert list(stage.nodes) == [A]
    assert goes_to(stage, KEY_A) == [A]


@pytest.mark.parametrize("frame", SCRIPTS + SCRIPTS_RO)
def test_what_its_node_says_of_a_scripts_slot_is_followed(play: Play, frame: bytes) -> None:
    """As often as for any command, and learnt: the slot really moves."""
    stage = play()
    client = stage.client()
    client.send(frame)
    stage.turn()
    exchange(stage, A, frame, moved(C))
    exchange(stage, A, EXISTS_A, moved(B))  # its own word, and not the script's
    exchange(stage, B, frame, ask(A))
    exchange(stage, B, EXISTS_A, ask(C))
    exchange(stage, C, ASKING + frame, b"+OK\r\n:1\r\n")
    assert client.get() == b":1\r\n"
    assert goes_to(stage, KEY_A) == [B]


@pytest.mark.parametrize(
    "answer", [b"-ERR no\r\n", b"+OK\r\n", b"*0\r\n", moved(B, SLOT_B), b"$70000\r\n" + b"x" * 70000 + b"\r\n"]
)
def test_a_node_that_does_not_vouch_for_a_script(play: Play, answer: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(SCRIPTS[0] + PING)
    stage.turn()
    for _ in range(2):  # it is sent once more
        assert stage.hear(stage.node(A), len(SCRIPTS[0])) == SCRIPTS[0]
        stage.pour(stage.node(A), moved(B))
        assert stage.hear(stage.node(A), len(EXISTS_A)) == EXISTS_A
        stage.pour(stage.node(A), answer)
    assert stage.drink(client) == moved(B) + b"+PONG\r\n"
    assert list(stage.nodes) == [A]


@pytest.mark.parametrize("how", ["client leaves", "node lost", "time is over"])
def test_while_a_node_is_asked_about_a_script(play: Play, how: str) -> None:
    stage = play(timeout_s=400.0, backoff_s=1000.0)
    client = stage.client()
    client.send(SCRIPTS[0])
    stage.turn()
    exchange(stage, A, SCRIPTS[0], moved(B))
    if how == "client leaves":
        client.close()
        stage.turn()
        exchange(stage, A, EXISTS_A, moved(B))
        stage.turn()
        assert (live(), list(stage.nodes)) == (stage.live, [A])
    elif how == "node lost":
        stage.node(A).close()
        stage.until(lambda: len(stage.nodes[A]) == 2)
        stage.parking.wake_all()
        exchange(stage, A, EXISTS_A, moved(B))
        exchange(stage, B, SCRIPTS[0], b":1\r\n")
        assert client.get() == b":1\r\n"
    else:
        stage.pass_time(500.0, sweep=True)
        assert client_said(client)


def test_what_was_sent_behind_a_script_in_doubt_does_not_overtake(play: Play) -> None:
    """A pipeline to one key is carried out in its order, whatever takes longer."""
    stage = play()
    client = stage.client()
    client.send(SCRIPTS[0] + SET_A + GET_B)
    stage.turn()
    exchange(stage, A, SCRIPTS[0] + SET_A, moved(B) + moved(B))
    exchange(stage, A, EXISTS_A + PING, b"")
    exchange(stage, B, GET_B, b"$-1\r\n")  # of another slot
    stage.node(A).send(moved(B) + b"+PONG\r\n")
    exchange(stage, B, SCRIPTS[0] + SET_A, b":1\r\n+OK\r\n")
    assert client.get() == b":1\r\n+OK\r\n$-1\r\n"
    assert stage.parking.doubts == {}


def test_what_is_sent_once_more_is_not_overtaken(play: Play) -> None:
    """The node knows nothing of a redirection: it is the script's turn again, and then that of what came behind it."""
    stage = play()
    client = stage.client()
    client.send(SCRIPTS[0] + SET_A)
    stage.turn()
    exchange(stage, A, SCRIPTS[0] + SET_A, ask(B) + ask(B))
    exchange(stage, A, EXISTS_A + PING, b":1\r\n+PONG\r\n")
    exchange(stage, A, SCRIPTS[0] + SET_A, b":1\r\n+OK\r\n")
    assert client.get() == b":1\r\n+OK\r\n"
    assert [end.get() for end in stage.nodes.get(B, [])] in ([], [b""])


def test_what_is_parked_stays_behind_a_script_in_doubt(play: Play) -> None:
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client, other = stage.client(), stage.client()
    other.send(SET_A)
    client.send(SCRIPTS[0] + GET_A)
    stage.turn()
    exchange(stage, A, SET_A + SCRIPTS[0] + GET_A, REFUSALS["tryagain"] + moved(B) + REFUSALS["tryagain"])
    exchange(stage, A, EXISTS_A, b"")
    stage.parking.wake_all()
    exchange(stage, A, SET_A, b"")  # sent before it
    assert (stage.parking.waiting, len(stage.parking.doubts)) == (1, 1)
    stage.node(A).send(moved(B) + b"+OK\r\n")
    stage.until(lambda: stage.parking.waiting == 2)  # one by one, from now on
    stage.parking.wake_all()
    exchange(stage, B, SCRIPTS[0] + GET_A, b":1\r\n$1\r\n1\r\n")
    assert other.get() == b"+OK\r\n"
    assert client.get() == b":1\r\n$1\r\n1\r\n"


def test_a_script_in_doubt_is_asked_for_with_all_its_keys(play: Play) -> None:
    """Of several only one may have moved (ASK: Redis 6.2 says so of all then)."""
    stage = play()
    client = stage.client()
    frame = encode_command("EVAL", "return 1", "2", KEY_A, "{b}2", "argument")
    client.send(frame)
    stage.turn()
    exchange(stage, A, frame, ask(B))
    exchange(stage, A, encode_command("EXISTS", KEY_A, "{b}2"), ask(B))
    exchange(stage, B, ASKING + frame, b"+OK\r\n:1\r\n")
    assert client.get() == b":1\r\n"


def test_a_node_that_is_gone_before_it_answers_for_a_script(play: Play) -> None:
    """Half of the time is the node's, the rest is for whoever has taken over; no MOVED reaches the client."""
    stage = play(timeout_s=1000.0, stall_s=5000.0, failover_s=5000.0)
    client = stage.client()
    client.send(SCRIPTS[0])
    stage.turn()
    exchange(stage, A, SCRIPTS[0], moved(B))
    exchange(stage, A, EXISTS_A, b"")
    stage.publish([(B, [], [(0, 16383)])])
    stage.pass_time(600.0, sweep=True)
    stage.turn()
    assert B in stage.nodes
    exchange(stage, B, SCRIPTS[0], b":1\r\n")
    assert client.get() == b":1\r\n"


def client_said(client: End) -> bool:
    return client.get() == moved(B)


@pytest.mark.parametrize("frame", SCRIPTS)
def test_what_no_server_says_of_a_script_is_its_own(play: Play, frame: bytes) -> None:
    """Another slot than its own: a forgery, which is an ordinary error and no reason for anything."""
    stage = play()
    client = stage.client()
    client.send(frame)
    stage.turn()
    exchange(stage, A, frame, moved(B, SLOT_C))
    assert client.get() == moved(B, SLOT_C)
    assert (stage.stale_for, stage.count("redirections")["moved"], list(stage.nodes)) == ([], 0, [A])


def test_a_keyless_script_has_no_slot_to_be_moved(play: Play) -> None:
    stage = play()
    client = stage.client()
    frame = encode_command("EVAL", "return redis.error_reply('MOVED 15495 10.6.6.6:6379')", "0")
    client.send(frame)
    stage.turn()
    (place,) = stage.nodes
    exchange(stage, place, frame, moved("10.6.6.6:6379", SLOT_C))
    assert client.get() == moved("10.6.6.6:6379", SLOT_C)
    assert (stage.stale_for, list(stage.router.nodes)) == ([], [A, B, C])


@pytest.mark.parametrize("host", ["10.6.6.6", "a..b", "x" * 200, "\xff", "-", "[::1]", "10.0.0.1"])
@pytest.mark.parametrize("frame", [SET_A, SCRIPTS[0]])
def test_unknown_hosts_are_never_nodes(play: Play, frame: bytes, host: str) -> None:
    """Not dialled, not known, in no figure; a refresh is asked for, and the client is told when time is over."""
    stage = play(backoff_s=1000.0, timeout_s=150.0)
    client = stage.client()
    client.send(frame)
    stage.turn()
    line = b"-MOVED %d %s:6379\r\n" % (SLOT_A, host.encode("latin-1"))
    exchange(stage, A, frame, line)
    if frame != SET_A:
        exchange(stage, A, EXISTS_A, line)
    stage.pass_time(200.0)
    assert stage.hear(client) == errors.REDIRECTED_IN_VAIN
    assert list(stage.router.nodes) == [A, B, C]
    assert set(stage.nodes) == {A}
    assert stage.stale_for == ["moved"]
    assert stage.wanted == []


@pytest.mark.parametrize("read_only", SCRIPTS_RO)
@pytest.mark.parametrize("word", ["loading", "masterdown"])
def test_a_script_makes_no_replica_unfit(play: Play, read_only: bytes, word: str) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="replica")
    client = stage.client()
    client.send(read_only)
    stage.turn()
    exchange(stage, B, read_only, REFUSALS[word])
    exchange(stage, B, read_only, b":1\r\n")
    assert (client.get(), stage.unfit) == (b":1\r\n", [])


@pytest.mark.parametrize(
    "line",
    [
        b"-TRYAGAIN later\r\n",
        b"-LOADING x\r\n",
        b"-CLUSTERDOWN\r\n",
        b"-READONLY You can't write\r\n",
        b"-MASTERDOWN Link\r\n",
        b"-TRYAGAIN Multiple keys request during rehashing of slot \r\n",
    ],
)
@pytest.mark.parametrize("frame", [SCRIPTS[0], SET_A])
def test_only_the_servers_own_words_are_a_refusal(play: Play, line: bytes, frame: bytes) -> None:
    """A script that had its effect and says so is not run again (INCR was, 53 times)."""
    stage = play()
    client = stage.client()
    client.send(frame + PING)
    stage.turn()
    exchange(stage, A, frame, line)
    stage.turn(6)
    assert client.get() == line + b"+PONG\r\n"
    assert (stage.node(A).get(), sum(stage.count("redirections").values())) == (b"", 0)


def test_a_fan_out_is_not_led_elsewhere(play: Play) -> None:
    """A node's own answer is wanted, and not another's in its place."""
    stage = play()
    always(stage, ("primaries", PING, 0), finish=array)
    client = stage.client()
    client.send(encode_command("ECHO", "x"))
    stage.turn()
    for address in (A, B):
        exchange(stage, address, PING, b"+PONG\r\n")
    exchange(stage, C, PING, moved(A))
    stage.turn(6)
    assert stage.node(A).get() == b""
    assert client.get() == moved(A)


@pytest.mark.parametrize("frame", SCRIPTS_RO)
def test_a_script_that_a_replica_refuses_for_its_flags_goes_to_the_primary(play: Play, frame: bytes) -> None:
    """A replica answers MOVED to a script that may write, and knows the slot all the same."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="replica")
    client = stage.client()
    client.send(frame)
    stage.turn()
    exchange(stage, B, frame, moved(A))
    exchange(stage, B, EXISTS_A, b":0\r\n")
    exchange(stage, A, frame, b"-ERR Can not execute a script with write flag using *_ro command.\r\n")
    assert client.get() == b"-ERR Can not execute a script with write flag using *_ro command.\r\n"
    assert stage.stale_for == []
