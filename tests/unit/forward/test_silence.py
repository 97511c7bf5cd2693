"""Nodes that say nothing: what is held back, read elsewhere, told to control."""

from __future__ import annotations

import time
from typing import Any

import pytest

from proxy.resp.encode import bulk, encode_command
from tests.support.blocked import POP, POPPED
from tests.support.datapath import KEY_A, TEXTS, A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, SET_A
from tests.unit.forward.test_tracking import tracking

OK = b"+OK\r\n"
PAIR: list[Any] = [(A, [B], [(0, 10922)]), (C, [], [(10923, 16383)])]
SILENT_S = 0.03


def silent(stage: Stage, frame: bytes = SET_A, **settings: Any) -> tuple[End, End]:
    """A client that has sent something to A, which says nothing and is suspected; and A's end."""
    client = stage.client(**settings)
    client.send(frame)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frame
    stage.until(lambda: A in stage.suspects, sweep=True)
    assert stage.router.nodes[A].silent
    return client, node


def sweeps(stage: Stage, seconds: float = 3 * SILENT_S) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        stage.router.sweep()
        stage.turn(1)


def test_nothing_more_is_sent_until_it_is_heard(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    one, node = silent(stage)
    other = stage.client()
    other.send(GET_A + SET_A)
    sweeps(stage)
    assert node.get() == b""
    node.send(OK)
    stage.turn()
    assert one.get() == OK
    assert node.get() == GET_A + SET_A
    assert not stage.router.nodes[A].silent
    node.send(bulk("1") + OK)
    stage.turn()
    assert other.get() == bulk("1") + OK
    assert stage.lost_for == []


def test_half_a_command_is_sent_to_its_end(play: Play) -> None:
    """A node that does not read for a while has no answer to give before it has the rest."""
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    frame = encode_command("SET", KEY_A, b"x" * 3_000_000)
    stage.pour(client, frame)
    sweeps(stage)
    node = stage.node(A)
    assert stage.drink(node) == frame
    node.send(OK)
    stage.turn()
    assert client.get() == OK


def test_one_that_closes_connections_is_not_silent(play: Play) -> None:
    """Control is told of it all the same: by `silent` it sees which it is."""
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.until(lambda: A in stage.suspects, sweep=True)
    assert not stage.router.nodes[A].silent


def test_control_is_told_now_and_then(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    told_s: list[float] = []
    stage.suspected = lambda node: told_s.append(time.monotonic())  # type: ignore[method-assign]
    client = stage.client()
    client.send(SET_A)
    stage.until(lambda: len(told_s) == 3, sweep=True)
    # Each pause began before the sweep that told of the first, and the sweep's own time is a little before ours.
    assert (told_s[2] - told_s[0]) / 2 > 0.2
    stage.node(A).send(OK)
    stage.turn()
    sweeps(stage, 0.3)
    assert len(told_s) == 3


def test_a_primary_that_cannot_be_reached_is_told_too(play: Play) -> None:
    stage = play(PAIR)
    stage.unreachable.add(A)
    stage.client().send(SET_A)
    stage.until(lambda: stage.suspects == [A], sweep=True)


@pytest.mark.parametrize("frame", [encode_command("BLPOP", KEY_A, 0), b""])
def test_who_owes_nothing_is_not_silent(play: Play, frame: bytes) -> None:
    """What blocks may take its time."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.client().send(SET_A)
    stage.turn()
    stage.node(A).send(OK)
    stage.turn()
    client = stage.client()
    client.send(frame)
    stage.turn()
    sweeps(stage)
    assert stage.suspects == []


def test_what_comes_on_another_connection_counts(play: Play) -> None:
    """One connection may be held up, by CLIENT PAUSE for example; its node is alive."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.client().send(SET_A)
    stage.turn()
    other = stage.client()
    stage.accepted.set_proto(3)
    other.send(GET_A)
    stage.turn()
    give_up = time.monotonic() + 3 * SILENT_S
    while (begun_s := time.monotonic()) < give_up:
        stage.node(A).send(bulk("1"))
        other.send(GET_A)
        stage.turn(2)
        stage.router.sweep()
        if time.monotonic() - begun_s > SILENT_S / 2:  # we have stood still ourselves
            stage.suspects.clear()
    assert stage.suspects == []


def test_a_process_that_stood_still_itself_suspects_nobody(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.node(A).send(OK)
    time.sleep(2 * SILENT_S)
    stage.router.sweep()
    stage.turn()
    assert stage.suspects == []
    assert client.get() == OK


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["prefer_primary", "any"])
def test_reads_go_elsewhere_and_late_replies_nowhere(play: Play, reads: str) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    if reads == "any":
        stage.router.nodes[B].usable = False  # so that the first comes to A
    client = stage.client(reads=reads)
    client.send(SET_A + GET_A)
    stage.turn()
    node = stage.node(A)
    assert node.get() == SET_A + GET_A
    stage.router.nodes[B].usable = True
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    assert stage.node(B).get() == GET_A
    other = stage.client(reads=reads)
    other.send(GET_A)
    stage.turn()
    assert stage.node(B).get() == GET_A
    stage.node(B).send(bulk("b") * 2)
    stage.turn()
    assert other.get() == bulk("b")
    assert client.get() == b""  # its SET comes first
    node.send(OK + bulk("late"))
    stage.turn()
    assert client.get() == OK + bulk("b")
    client.send(GET_A)
    stage.turn()
    assert not stage.router.nodes[A].silent


def test_a_silent_replica_is_not_read_from(play: Play) -> None:
    stage = play([(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])], silent_s=SILENT_S)
    client = stage.client(reads="prefer_replica")
    client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    stage.node(B).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")
    client.send(GET_A)
    stage.turn()
    assert stage.node(B).get() == GET_A * 2
    stage.node(B).send(bulk("1"))
    stage.node(A).send(bulk("late"))
    stage.turn()
    assert client.get() == bulk("1")
    client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A  # it is back


def test_reads_of_primaries_wait(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client, node = silent(stage, GET_A)
    sweeps(stage)
    assert B not in stage.nodes
    node.send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")


def test_a_reply_that_has_begun_to_reach_the_client_is_not_asked_for_elsewhere(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client(reads="prefer_primary")
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(b"$20000\r\n" + b"x" * 10000)
    stage.turn()
    stage.until(lambda: A in stage.suspects, sweep=True)
    sweeps(stage)
    assert B not in stage.nodes
    stage.node(A).send(b"x" * 10000 + b"\r\n")
    stage.turn()
    assert client.get() == bulk("x" * 20000)


def test_a_read_that_was_not_sent_goes_elsewhere_and_is_never_sent(play: Play) -> None:
    """It was held back, and then a replica became fit."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.router.nodes[B].usable = False
    one, node = silent(stage)
    other = stage.client(reads="prefer_primary")
    other.send(GET_A)
    sweeps(stage)
    assert (node.get(), B in stage.nodes) == (b"", False)
    stage.router.nodes[B].usable = True
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    stage.node(B).send(bulk("1"))
    node.send(OK)
    stage.turn()
    assert (one.get(), other.get(), node.get()) == (OK, bulk("1"), b"")


@pytest.mark.parametrize("reads", ["prefer_replica", "replica", "prefer_primary", "any"])
def test_a_replica_that_lost_its_primary_is_better_than_nobody(play: Play, reads: str) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    node = stage.router.nodes[B]
    node.usable, node.stale = False, True
    stage.unreachable.add(A)
    stage.client().send(GET_A)
    stage.turn()
    client = stage.client(reads=reads)
    client.send(GET_A)
    stage.turn()
    stage.node(B).send(bulk("old"))
    stage.turn()
    assert client.get() == bulk("old")


@pytest.mark.parametrize("reads", ["prefer_replica", "prefer_primary", "any"])
def test_but_worse_than_the_primary(play: Play, reads: str) -> None:
    stage = play(PAIR)
    node = stage.router.nodes[B]
    node.usable, node.stale = False, True
    stage.client(reads=reads).send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    assert B not in stage.nodes


# -- over, though nothing has come ------------------------------------------------------------------------------------


def test_what_was_held_back_is_sent_when_there_is_more_patience(play: Play) -> None:
    """As after a reload (backends.suspect_timeout): no byte of the node's ends the suspicion."""
    stage = play(PAIR, silent_s=SILENT_S)
    one, node = silent(stage)
    other = stage.client()
    other.send(GET_A)
    stage.turn()
    stage.backend_settings.silent_ns = 10**10
    sweeps(stage)
    assert not stage.router.nodes[A].silent
    node.send(OK)
    stage.turn()
    assert (one.get(), node.get()) == (OK, GET_A)


def test_what_blocks_behind_a_late_reply(play: Play) -> None:
    """A client's own connection owes a reply that was given up, and then may take its time: it is no suspect any more,
    and must not stay one for ever."""
    stage = play(PAIR, silent_s=SILENT_S, timeout_s=0.1)
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    node = stage.node(A)
    assert node.get() == GET_A
    stage.until(lambda: stage.router.nodes[A].silent, sweep=True)
    stage.until(lambda: client.get() == TEXTS["timeout"], sweep=True)
    client.send(POP)
    stage.turn()
    sweeps(stage)
    node.send(bulk("late"))
    stage.turn()
    assert node.get() == POP
    node.send(POPPED)
    stage.turn()
    assert client.get() == POPPED
