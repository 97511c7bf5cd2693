"""Asks in several rounds, error replies that are wanted, and a reply that comes from elsewhere."""

from __future__ import annotations

import pytest

from proxy.forward.ask import Ask, Later
from proxy.forward.request import live
from proxy.resp.encode import array, bulk, encode_command, integer
from tests.support.datapath import SLOT_A, SLOT_B, TEXTS, A, B, C, Play
from tests.support.dialogue import GET_A, GET_B, INTERNAL, PING, always, asking, exchange, moved

ECHO = encode_command("ECHO", "x")
ERROR = b"-ERR of this node\r\n"


def test_a_second_round_answers_for_the_first(play: Play) -> None:
    """In its place among the client's replies, with what came behind it held back."""
    stage = play()

    def more(replies: list[bytes]) -> Ask:
        assert replies == [integer(1)]
        return Ask([(SLOT_B, GET_B, 0)], finish=lambda found: array([*replies, *found]))

    always(stage, (SLOT_A, GET_A, 0), finish=more)
    client = stage.client()
    client.send(PING + ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, integer(1))
    assert client.get() == b"+PONG\r\n"
    exchange(stage, B, GET_B, bulk("2"))
    assert client.get() == array([integer(1), bulk("2")]) + b"+PONG\r\n"
    assert stage.count("commands")["echo"]["calls"] == 1


def test_the_last_round_may_have_no_finish_and_go_everywhere(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: Ask([("primaries", PING, 0)]))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, integer(1))
    for address in (C, B, A):
        exchange(stage, address, PING, b"+%d\r\n" % address.port)
    assert client.get() == b"+%d\r\n" % A.port


@pytest.mark.parametrize("primary", [False, True])
def test_a_read_for_a_slot_may_be_for_its_primary_only(play: Play, primary: bool) -> None:
    """In every round, for a client that reads from replicas."""
    stage = play(shards=[(A, [B], [(0, 16383)])])
    part = (SLOT_A, GET_A, 0)

    def more(replies: list[bytes]) -> Ask:
        return Ask([part], read=True, primary=primary)

    stage.responder.answer = lambda client, args: Ask([part], finish=more, read=True, primary=primary)
    client = stage.client(reads="replica")
    client.send(ECHO)
    stage.turn()
    for number in (1, 2):
        exchange(stage, A if primary else B, GET_A, integer(number))
    assert client.get() == integer(2)


def test_a_client_that_leaves_between_two_rounds(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: Ask([(SLOT_B, GET_B, 0)]))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, integer(1))
    client.close()
    stage.turn()
    exchange(stage, B, GET_B, bulk("2" * 1000))
    stage.turn()
    assert live() == stage.live


@pytest.mark.parametrize("made", [None, 5, "text", Ask([("nowhere", PING, 0)]), Ask([(SLOT_A, b"", 0)])])
def test_a_further_round_that_makes_no_sense(play: Play, made: object) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: made)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, integer(1))
    assert client.get() == INTERNAL + b"+PONG\r\n"
    assert stage.count("internal_errors") == 1


def test_a_round_that_nobody_is_there_for(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: Ask([]))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, integer(1))
    assert client.get() == b"-CLUSTERDOWN The cluster is down\r\n+PONG\r\n"


def test_an_error_is_the_answer_unless_it_is_wanted(play: Play) -> None:
    for errors in (False, True):
        stage = play()
        always(stage, (SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0), finish=b"".join, errors=errors)
        client = stage.client()
        client.send(ECHO)
        stage.turn()
        exchange(stage, A, GET_A, ERROR)
        exchange(stage, B, GET_B, integer(2))
        assert client.get() == (ERROR + integer(2) if errors else ERROR)
        assert stage.count("commands")["echo"]["errors"] == {"ERR": 1}


def test_an_error_of_a_certain_node_is_wanted_as_it_is(play: Play) -> None:
    """A redirection of a part for a node is no reason to go elsewhere."""
    stage = play()
    asking(stage, lambda args: Ask([(stage.router.nodes[A], GET_A, 0)], finish=lambda r: bulk(r[0]), errors=True))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, moved(B))
    assert client.get() == bulk(moved(B))


def test_a_part_that_is_refused_by_us_is_an_error_too(play: Play) -> None:
    stage = play()
    always(stage, (5000, GET_A, 0), finish=lambda replies: bulk(replies[0]), errors=True)
    stage.publish([(A, [], [(0, 100)])])
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    assert client.get() == bulk(TEXTS["uncovered"])


def test_where_the_parts_went(play: Play) -> None:
    stage = play()
    ask = Ask([("primaries", PING, 0), ("any", PING, 0)], finish=b"".join)
    asking(stage, lambda args: ask)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    assert sorted(ask.labels) == sorted(["", str(A), str(B), str(C)])


def test_replies_that_are_together_too_long(play: Play) -> None:
    """An error that says so, and neither the client's end nor memory for it."""
    stage = play(hard_output=400_000)
    always(stage, (SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0), finish=b"".join)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk(b"1" * 60_000))
    assert stage.path.client_memory > 60_000
    exchange(stage, B, GET_B, bulk(b"2" * 60_000))
    said = client.get()
    assert said == b"-ERR the nodes' replies to this command are together too long\r\n+PONG\r\n"
    assert stage.path.client_memory == 0
    client.send(PING)
    stage.turn()
    assert client.get() == b"+PONG\r\n"


# -- a reply from elsewhere


@pytest.mark.parametrize("early", [True, False])
def test_a_later_reply_has_its_place(play: Play, early: bool) -> None:
    stage = play()
    later = Later()
    asking(stage, lambda args: later)
    if early:
        later.answer(bulk("1"))
        later.answer(bulk("another"))
    client = stage.client()
    client.send(PING + ECHO + PING)
    stage.turn()
    assert client.get() == b"+PONG\r\n" + (bulk("1") + b"+PONG\r\n" if early else b"")
    later.answer(bulk("1"))
    later.answer(bulk("another"))
    stage.turn()
    assert client.get() == (b"" if early else bulk("1") + b"+PONG\r\n")


@pytest.mark.parametrize("early", [True, False])
def test_a_later_reply_may_lead_to_the_servers(play: Play, early: bool) -> None:
    stage = play()
    later = Later()
    asking(stage, lambda args: later)
    further = Ask([(SLOT_A, GET_A, 0)], finish=lambda replies: array(replies))
    if early:
        later.answer(further)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    if not early:
        later.answer(further)
        stage.turn()
    exchange(stage, A, GET_A, integer(1))
    assert client.get() == array([integer(1)])


def test_a_later_error_is_counted_as_one(play: Play) -> None:
    stage = play()
    later = Later()
    asking(stage, lambda args: later)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    later.answer(ERROR)
    stage.turn()
    assert client.get() == ERROR
    assert stage.count("commands")["echo"]["errors"] == {"ERR": 1}


def test_a_later_reply_for_a_client_that_has_left(play: Play) -> None:
    for made in (bulk("1"), Ask([(SLOT_A, GET_A, 0)])):
        stage = play()
        later = Later()
        asking(stage, lambda args, later=later: later)
        client = stage.client()
        client.send(ECHO)
        stage.turn()
        client.close()
        stage.turn()
        later.answer(made)
        stage.turn()
        assert live() == stage.live
        assert stage.nodes == {}


@pytest.mark.parametrize("made", [None, 5, Ask([("nowhere", PING, 0)])])
def test_a_later_reply_that_makes_no_sense(play: Play, made: object) -> None:
    stage = play()
    later = Later()
    asking(stage, lambda args: later)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    later.answer(made)
    stage.turn()
    assert client.get() == INTERNAL + b"+PONG\r\n"


def test_a_later_may_be_a_barrier(play: Play) -> None:
    """What the client has sent behind it waits; without, it is sent at once."""
    for barrier in (False, True):
        stage = play()
        later = Later(barrier=barrier)
        asking(stage, lambda args, later=later: later)  # type: ignore[misc]
        client = stage.client()
        client.send(ECHO + GET_A)
        stage.turn()
        assert (A in stage.nodes) != barrier
        later.answer(bulk("x"))
        stage.turn()
        exchange(stage, A, GET_A, bulk("1"))
        assert client.get() == bulk("x") + bulk("1")


def test_a_later_knows_whether_its_client_is_there(play: Play) -> None:
    stage = play()
    later = Later()
    asking(stage, lambda args: later)
    client = stage.client()
    assert later.wanted
    client.send(ECHO)
    stage.turn()
    assert later.wanted
    client.close()
    stage.turn()
    assert not later.wanted
    later.answer(bulk("x"))


def test_one_at_a_time(play: Play) -> None:
    """What Python combines is combined for one command of a client after the other, however many it sends."""
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=b"".join)
    client = stage.client()
    client.send(ECHO * 3)
    stage.turn()
    for _ in range(3):
        exchange(stage, A, GET_A, integer(1))
    assert client.get() == integer(1) * 3


def test_more_words_than_are_looked_at(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0))
    client = stage.client()
    stage.pour(client, encode_command("SCRIPT", "EXISTS", *["a"] * 20_000) + PING)
    said = stage.drink(client)
    assert said == b"-ERR too many arguments for a command that the proxy itself answers\r\n+PONG\r\n"
    assert stage.nodes == {}
