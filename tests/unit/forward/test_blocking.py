"""Blocking commands on the stage: on a connection of their own, followed, ended, given back."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.forward.backend import BackendState
from proxy.forward.blocking import look
from proxy.forward.clients import close_lingering, drain
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command, null_array
from tests.support.blocked import NODE_ID, POP, POPPED, blocked, free, leases, shared, unblock
from tests.support.datapath import KEY_A, KEY_B, SLOT_A, A, B, C, Play
from tests.support.dialogue import ASKING, GET_A, PING, REFUSALS, ask, moved, sent_while_down


def test_it_waits_on_a_connection_that_is_taken_again(play: Play) -> None:
    stage = play(timeout_s=0.0, stall_s=0.0)
    common = shared(stage)
    client, node = blocked(stage)
    for _ in range(3):
        stage.router.sweep()
        stage.turn()
    assert client.get() == b""
    node.send(POPPED)
    stage.turn()
    assert client.get() == POPPED
    free(stage)
    client.send(POP)
    stage.turn()
    assert (node.get(), common.get(), len(stage.nodes[A])) == (POP, b"", 2)
    node.send(POPPED)
    stage.turn()
    assert client.get() == POPPED


def test_it_is_a_barrier(play: Play) -> None:
    """What was sent before comes first, what is sent behind it waits."""
    stage = play()
    client = stage.client()
    client.send(GET_A + POP + GET_A + PING)
    stage.turn()
    common = stage.node(A)
    assert common.get() == GET_A
    assert len(stage.nodes[A]) == 1
    common.send(bulk("1"))
    stage.turn()
    node = stage.node(A)
    assert (node.get(), common.get()) == (POP, b"")
    node.send(POPPED)
    stage.turn()
    assert common.get() == GET_A
    common.send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("1") + POPPED + bulk("2") + b"+PONG\r\n"


def test_a_long_element_is_passed_on_as_it_comes(play: Play) -> None:
    stage = play()
    client, node = blocked(stage)
    reply = array([bulk("b"), bulk("v" * 100_000)])
    stage.pour(node, reply[:50_000])
    assert client.get()
    stage.pour(node, reply[50_000:])
    free(stage)
    assert leases(stage)[0].state == BackendState.UP


def test_lost_in_the_middle_of_a_long_element(play: Play) -> None:
    stage = play()
    client, node = blocked(stage)
    stage.pour(node, array([bulk("b"), bulk("v" * 100_000)])[:50_000])
    stage.drink(client)
    node.close()
    stage.turn()
    assert client.closed
    assert stage.count("closed")["reply_cut"] == 1
    assert stage.count("blocked") == 0


@pytest.mark.parametrize(
    "frame",
    [
        encode_command("BLPOP", KEY_A, KEY_B, "0"),
        encode_command("XREAD", "BLOCK", "0", "STREAMS", KEY_A, KEY_B, "$", "$"),
    ],
)
def test_keys_of_several_slots(play: Play, frame: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(frame + PING)
    stage.turn()
    assert client.get() == errors.CROSSSLOT + b"+PONG\r\n"
    assert stage.nodes == {}


def test_the_cap(play: Play) -> None:
    stage = play()
    stage.path.leases.most = 1
    blocked(stage)
    other = stage.client()
    other.send(POP + PING)
    stage.turn()
    assert other.get() == errors.NO_LEASE + b"+PONG\r\n"
    assert stage.path.leases.refused == 1


# -- redirected, refused, lost


def test_moved_is_followed_with_the_time_that_is_left(play: Play) -> None:
    stage = play()
    client, node = blocked(stage, encode_command("BLPOP", KEY_A, "100"))
    node.send(moved(B))
    stage.turn()
    words = stage.node(B).get().split(b"\r\n")
    assert words[2] == b"BLPOP"
    assert 90 < float(words[6]) <= 100
    assert words[5] == b"$%d" % len(words[6])
    stage.node(B).send(POPPED)
    stage.turn()
    assert client.get() == POPPED
    assert next(first for first, last, label in stage.router.owners() if label == str(B)) == SLOT_A
    assert len(leases(stage)) == 1  # which is as good as before


def test_ask_is_followed(play: Play) -> None:
    stage = play()
    client, node = blocked(stage)
    node.send(ask(B))
    stage.turn()
    assert stage.node(B).get() == ASKING + POP
    stage.node(B).send(b"+OK\r\n" + POPPED)
    stage.turn()
    assert client.get() == POPPED
    client.send(POP)
    stage.turn()
    assert node.get() == POP


def test_nodes_that_do_not_agree(play: Play) -> None:
    """They are asked again and again, for as long as other commands are; then they get the same error as those."""
    stage = play(timeout_s=0.05)
    client = stage.client()
    client.send(POP)
    got = b""

    def over() -> bool:
        nonlocal got
        for address, other in ((A, B), (B, A)):
            for end in stage.nodes.get(address, []):
                for _ in range(end.get().count(POP)):
                    end.send(moved(other))
        got += client.get()
        return bool(got)

    stage.until(over)
    assert got == errors.REDIRECTED_IN_VAIN
    free(stage)


@pytest.mark.parametrize("refusal", sorted(REFUSALS))
def test_what_is_refused_for_now_is_tried_again(play: Play, refusal: str) -> None:
    stage = play()
    client, node = blocked(stage)
    node.send(REFUSALS[refusal])
    stage.until(lambda: len(leases(stage)) == 1 and (got := node.get()) and got == POP)
    node.send(POPPED)
    stage.turn()
    assert client.get() == POPPED


def test_unblocked_by_its_node_is_the_answer(play: Play) -> None:
    stage = play()
    client, node = blocked(stage)
    node.send(errors.UNBLOCKED_CHANGED)
    stage.turn()
    assert client.get() == errors.UNBLOCKED_CHANGED
    free(stage)


def test_lost_while_it_is_blocked(play: Play) -> None:
    """It may have been executed: never sent again."""
    stage = play()
    client, node = blocked(stage)
    node.close()
    stage.turn(5)
    assert client.get() == errors.UNBLOCKED_CHANGED
    assert len(stage.nodes[A]) == 1
    free(stage)


def test_not_sent_yet_is_tried_again(play: Play) -> None:
    stage = play()
    client = sent_while_down(stage, POP)
    assert stage.accepted.blocked
    assert client.get() == b""
    stage.unreachable.clear()
    stage.until(lambda: A in stage.nodes)
    stage.turn()
    assert stage.node(A).get() == POP
    stage.node(A).send(POPPED)
    stage.turn()
    assert client.get() == POPPED


def test_a_node_that_stays_down(play: Play) -> None:
    stage = play(timeout_s=0.05)
    stage.unreachable.add(A)
    client = stage.client()
    client.send(POP)
    got: list[bytes] = []
    stage.until(lambda: got.append(client.get()) or any(got))
    assert b"".join(got) == errors.EXCHANGE_TEXTS["down"]
    free(stage)


@pytest.mark.parametrize("shards", [[], [(B, [], [(16000, 16383)])]])
def test_nobody_has_the_slot(play: Play, shards: list[object]) -> None:
    stage = play(shards)
    client = stage.client()
    client.send(POP)
    stage.turn()
    assert client.get() == errors.EXCHANGE_TEXTS["uncovered" if shards else "unknown"]
    free(stage)


def test_a_node_that_hangs_beyond_the_timeout(play: Play) -> None:
    stage = play(timeout_s=0.0)
    client, _ = blocked(stage, encode_command("BLPOP", KEY_A, "0.01"))
    got: list[bytes] = []
    stage.until(lambda: got.append(client.get()) or any(got), sweep=True)
    assert b"".join(got) == errors.EXCHANGE_TEXTS["timeout_sent"]
    stage.router.sweep()
    assert leases(stage) == []  # the late reply must not be the next client's


@pytest.mark.parametrize("how", ["role", "slot", "removal"])
def test_a_node_that_hangs_and_loses_its_role(play: Play, how: str) -> None:
    stage = play()
    client, _ = blocked(stage)
    rest = [(A, [], [(16001, 16383)])] if how == "slot" else []
    stage.publish([(B, [A] if how == "role" else [], [(0, 16000)]), *rest])
    look(stage.path)
    stage.turn()
    assert client.get() == b""
    stage.until(lambda: look(stage.path, 0.01) or not stage.accepted.blocked)
    stage.turn()
    assert client.get() == errors.UNBLOCKED_CHANGED


# -- the client leaves


def test_end_of_input_ends_it_at_once(play: Play) -> None:
    """By CLIENT UNBLOCK on another connection; its own is free then."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    client.sock.shutdown(1)
    stage.turn()
    assert common.get() == unblock()
    assert stage.accepted.blocked
    node.send(errors.UNBLOCKED)
    common.send(b":1\r\n")
    stage.turn()
    free(stage)
    assert len(leases(stage)) == 1
    assert stage.accepted not in stage.path.clients


@pytest.mark.parametrize("first", ["lease", "question"])
def test_half_closed_ones_are_told_nothing(play: Play, first: str) -> None:
    """As Redis: closed without an answer, and what was sent behind it is not carried out."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    client.send(GET_A)
    stage.turn()
    client.sock.shutdown(1)
    stage.turn()
    assert common.get() == unblock()
    ends = [(node, errors.UNBLOCKED), (common, b":1\r\n")]
    for end, line in ends if first == "lease" else ends[::-1]:
        end.send(line)
        stage.turn()
    assert (client.get(), client.closed, common.get()) == (b"", True, b"")
    assert stage.accepted not in stage.path.clients


def test_what_was_popped_before_the_end_of_input_still_comes(play: Play) -> None:
    stage = play()
    common = shared(stage)
    client = stage.client()
    client.send(POP)
    client.sock.shutdown(1)
    stage.turn(1)
    leases(stage)[0].client_id = NODE_ID
    stage.turn()
    node = stage.node(A)
    stage.until(lambda: common.get() == unblock())
    node.send(POPPED)
    common.send(b":0\r\n")
    stage.turn()
    assert (client.get(), client.closed) == (POPPED, True)
    stage.until(lambda: len(leases(stage)) == 1)


def test_the_node_has_not_read_it_yet(play: Play) -> None:
    """It says that nobody is blocked: it is asked again."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    client.sock.shutdown(1)
    stage.turn(1)
    for _ in range(3):
        stage.until(lambda: common.get() == unblock())
        common.send(b":0\r\n")
    stage.until(lambda: common.get() == unblock())
    common.send(b":1\r\n")
    node.send(errors.UNBLOCKED)
    stage.turn()
    free(stage)


@pytest.mark.parametrize("reply", [b"-NOPERM no\r\n", b":2\r\n", b"lost", b"unknown"])
def test_a_node_that_does_not_unblock(play: Play, reply: bytes) -> None:
    """Its connection is closed: that ends the wait, too."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    if reply == b"unknown":
        leases(stage)[0].client_id = 0
    client.sock.shutdown(1)
    stage.turn()
    if reply == b"lost":
        stage.unreachable.add(A)
        common.close()
        stage.until(lambda: not stage.accepted.blocked, sweep=True)
    elif reply != b"unknown":
        common.send(reply)
    stage.turn()
    free(stage)
    assert node.closed


def test_drained_clients_get_their_answer(play: Play) -> None:
    stage = play()
    client, node = blocked(stage)
    drain(stage.accepted)
    stage.turn()
    assert not client.closed
    node.send(POPPED)
    stage.turn()
    assert client.get() == POPPED
    close_lingering(stage.path, 0.0)


# -- CLIENT UNBLOCK


@pytest.mark.parametrize(("mode", "reply"), [("TIMEOUT", null_array(2)), ("ERROR", errors.UNBLOCKED)])
def test_unblocked_by_another_client(play: Play, mode: str, reply: bytes) -> None:
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    told: list[bool] = []
    stage.accepted.unblock(mode == "ERROR", told.append)
    stage.accepted.unblock(mode == "ERROR", told.append)
    stage.turn()
    assert common.get() == unblock(mode)
    node.send(reply)
    stage.turn()
    assert (client.get(), told) == (reply, [])
    client.send(POP)
    stage.turn()
    assert stage.node(A) is not node  # nobody has it before it is known that nothing more comes to it
    common.send(b":1\r\n")
    stage.turn()
    assert told == [True, True]
    stage.node(A).send(POPPED)
    stage.turn()
    assert client.get() == POPPED


def test_it_was_answered_before(play: Play) -> None:
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    told: list[bool] = []
    stage.accepted.unblock(False, told.append)
    node.send(POPPED)
    stage.turn()
    common.send(b":0\r\n")
    stage.turn()
    assert (client.get(), told) == (POPPED, [False])
    assert len(leases(stage)) == 1


@pytest.mark.parametrize(("error", "reply"), [(False, null_array(2)), (True, errors.UNBLOCKED)])
def test_unblocked_where_the_node_does_not(play: Play, error: bool, reply: bytes) -> None:
    stage = play()
    client, node = blocked(stage)
    leases(stage)[0].client_id = 0
    told: list[bool] = []
    stage.accepted.unblock(error, told.append)
    stage.turn()
    assert (client.get(), told, node.closed) == (reply, [True], True)


def test_nobody_is_blocked(play: Play) -> None:
    stage = play()
    stage.client()
    told: list[bool] = []
    stage.accepted.unblock(True, told.append)
    assert told == [False]


def test_a_node_that_lags_behind_names_one_that_has_failed(play: Play) -> None:
    """As with any command (test_silence_decided): it is not believed, or the slot's other commands would go there."""
    shards: list[Any] = [(A, [], [(0, 10922)]), (C, [B], [(10923, 16383)])]
    stage = play(shards)
    client, node = blocked(stage)
    stage.publish(shards, frozenset([B]))
    node.send(moved(B))
    stage.turn()
    assert [primary.address for primary in stage.router.primaries] == [A, C]
    assert B not in stage.nodes
    assert "moved" in stage.stale_for
    assert stage.node(A).get() == POP
    stage.node(A).send(POPPED)
    stage.turn()
    assert client.get() == POPPED
