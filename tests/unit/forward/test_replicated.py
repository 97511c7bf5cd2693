"""WAIT and WAITAOF on the stage: whom they ask, what comes before them, and one answer of many."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.forward.replicated import COVER
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, PING, REFUSALS, SET_A, SET_B, moved

WAIT = encode_command("WAIT", "1", "100")
COVERED = b"+PONG\r\n+OK\r\n"


Written = tuple[Any, bytes, bytes]


def writer(stage: Stage, *writes: Written) -> End:
    """A client that has written this, each to one node, which gave these answers."""
    client = stage.client()
    for address, frame, answer in writes:
        client.send(frame)
        stage.turn()
        node = stage.node(address)
        assert node.get() == frame
        node.send(answer)
        stage.turn()
        assert client.get() == answer
    return client


def test_the_shards_it_wrote_to_are_asked_behind_a_write_that_changes_nothing(play: Play) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"), (B, SET_B, b"+OK\r\n"))
    client.send(WAIT + PING)
    stage.turn()
    for address, count in ((A, 3), (B, 2)):
        assert stage.node(address).get() == COVER + WAIT
        assert client.get() == b""
        stage.node(address).send(COVERED + b":%d\r\n" % count)
        stage.turn()
    assert client.get() == b":2\r\n+PONG\r\n"
    assert C not in stage.nodes
    assert stage.count("blocked") == 0


@pytest.mark.parametrize("reads", [(), ((A, GET_A, bulk("1")),)])
def test_who_wrote_nowhere_is_told_the_fewest_of_all(play: Play, reads: tuple[Written, ...]) -> None:
    stage = play()
    client = writer(stage, *reads)
    client.send(WAIT)
    stage.turn()
    for address, count in ((A, 2), (B, 0), (C, 1)):
        assert stage.node(address).get() == WAIT
        stage.node(address).send(b":%d\r\n" % count)
    stage.turn()
    assert client.get() == b":0\r\n"


def test_what_another_client_wrote_does_not_count(play: Play) -> None:
    stage = play()
    writer(stage, (A, SET_A, b"+OK\r\n"))
    client = writer(stage, (B, SET_B, b"+OK\r\n"))
    client.send(WAIT)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (b"", COVER + WAIT)


def test_a_write_that_was_redirected_counts_where_it_was_carried_out(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    assert stage.node(A).get() == SET_A
    stage.node(A).send(moved(B))
    stage.turn()
    assert stage.node(B).get() == SET_A
    stage.node(B).send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    client.send(WAIT)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (b"", COVER + WAIT)


@pytest.mark.parametrize(
    ("shards", "asked"),
    [
        ([(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])], [B]),
        ([(B, [], [(0, 10922)]), (C, [], [(10923, 16383)])], [B, C]),
    ],
    ids=["demoted", "gone"],
)
def test_its_node_has_lost_its_role(play: Play, shards: list[object], asked: list[object]) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"))
    stage.publish(shards)
    client.send(WAIT)
    stage.turn()
    for address in asked:
        assert stage.node(address).get() == COVER + WAIT
        stage.node(address).send(COVERED + b":1\r\n")
    stage.turn()
    assert client.get() == b":1\r\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"-NOPERM no permissions\r\n", b"-NOPERM no permissions\r\n"),
        (b"-OOM command not allowed\r\n", b"-OOM command not allowed\r\n"),
        (b"-ERR unknown command 'FUNCTION'\r\n", b":1\r\n"),  # before Redis 7: PING was enough
    ],
)
def test_what_cannot_be_covered_says_nothing(play: Play, line: bytes, told: bytes) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"))
    client.send(WAIT)
    stage.turn()
    stage.node(A).send(b"+PONG\r\n" + line + b":1\r\n")
    stage.turn()
    assert client.get() == told


def test_an_error_is_the_answer_and_ends_the_others(play: Play) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"), (B, SET_B, b"+OK\r\n"))
    client.send(WAIT)
    stage.turn()
    stage.node(A).send(COVERED + REFUSALS["readonly"])
    stage.turn()
    assert client.get() == REFUSALS["readonly"]
    assert stage.node(B).get() == COVER + WAIT
    assert stage.node(B).closed


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        (b"*2\r\n:1\r\n:0\r\n", b"*2\r\n:0\r\n:2\r\n", b"*2\r\n:0\r\n:0\r\n"),
        (b":1\r\n", b"+OK\r\n", errors.BAD_PART),
        (b":1\r\n", b"*2\r\n:0\r\n:2\r\n", errors.BAD_PART),
        (b"*0\r\n", b":1\r\n", errors.BAD_PART),
    ],
)
def test_many_answers_as_one(play: Play, one: bytes, two: bytes, told: bytes) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"), (B, SET_B, b"+OK\r\n"))
    client.send(encode_command("WAITAOF", "0", "1", "100"))
    stage.turn()
    stage.node(A).send(COVERED + one)
    stage.node(B).send(COVERED + two)
    stage.turn()
    assert client.get() == told


def test_lost_while_it_waits_it_is_asked_again(play: Play) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"))
    client.send(WAIT)
    stage.turn()
    stage.node(A).close()
    stage.until(lambda: len(stage.nodes[A]) == 3)
    stage.turn()
    again = stage.node(A).get()
    assert again.startswith(COVER + encode_command("WAIT", "1", "100")[:20])
    stage.node(A).send(COVERED + b":1\r\n")
    stage.turn()
    assert client.get() == b":1\r\n"


def test_unblocked_everywhere(play: Play) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"), (B, SET_B, b"+OK\r\n"))
    common = {address: stage.node(address) for address in (A, B)}
    client.send(WAIT)
    stage.turn()
    for number, address in enumerate((A, B)):
        for lease in stage.router.nodes[address].backends():
            if lease.leased:
                lease.client_id = number + 1
    told: list[bool] = []
    stage.accepted.unblock(False, told.append)
    stage.turn()
    for number, address in enumerate((A, B)):
        assert common[address].get() == encode_command("CLIENT", "UNBLOCK", str(number + 1), "TIMEOUT")
        stage.node(address).send(COVERED + b":%d\r\n" % number)
        common[address].send(b":1\r\n")
        stage.turn()
    assert (client.get(), told) == (b":0\r\n", [True])


def test_nobody_to_ask(play: Play) -> None:
    stage = play([])
    client = stage.client()
    client.send(WAIT)
    stage.turn()
    assert client.get() == errors.EXCHANGE_TEXTS["unknown"]


def test_a_client_that_leaves(play: Play) -> None:
    stage = play()
    client = writer(stage, (A, SET_A, b"+OK\r\n"), (B, SET_B, b"+OK\r\n"))
    client.send(WAIT)
    stage.turn()
    stage.accepted.kill()
    stage.turn()
    assert stage.node(A).get() == stage.node(B).get() == COVER + WAIT
    assert (stage.node(A).closed, stage.node(B).closed, stage.count("blocked")) == (True, True, 0)
