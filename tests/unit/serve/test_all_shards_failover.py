"""What commands to several nodes do about nodes that are down: replicas are left out, primaries waited for and named,
and what was not executed follows its shard to the primary that took over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.resp import errors
from proxy.resp.encode import encode_command, integer
from proxy.resp.readers import CommandReader
from tests.support.datapath import THIRDS, A, B, C, End, Stage

D = Address("10.0.0.4", 7004)  # A's replica
NUMPAT, DBSIZE, FLUSHALL = encode_command("PUBSUB", "NUMPAT"), encode_command("DBSIZE"), encode_command("FLUSHALL")
REPLICATED = [(A, [D], [(0, 5460)]), *THIRDS[1:]]
FAILED_OVER = [(D, [A], [(0, 5460)]), *THIRDS[1:]]
READONLY = b"-READONLY You can't write against a read only replica.\r\n"
DOWN_A = b"-CLUSTERDOWN The node for this command cannot be reached (node 10.0.0.1:7001)\r\n"


@pytest.fixture
def play() -> Iterator[Callable[..., Stage]]:
    with ExitStack() as stack:

        def make(shards: Any = None, **options: Any) -> Stage:
            stage = Stage(shards or REPLICATED, **options)
            stack.callback(stage.close)
            return stage

        yield make


def send(stage: Stage, frame: bytes) -> End:
    client = stage.client()
    client.send(frame)
    stage.turn()
    return client


def answer(stage: Stage, told: dict[Address, bytes]) -> dict[Address, bytes]:
    """Every node answers what it has got with what is told for it; what each has got."""
    stage.turn()
    got: dict[Address, bytes] = {}
    for address, ends in stage.nodes.items():
        for end in ends:
            for frame, _ in CommandReader().feed(end.get()):
                got[address] = got.get(address, b"") + frame
                end.send(told[address])
    stage.turn()
    return got


def lose(stage: Stage, address: Address) -> None:
    """Its connections break, and there is no other."""
    stage.unreachable.add(address)
    for end in stage.nodes[address]:
        end.close()
    stage.until(lambda: stage.router.nodes[address].down)


def ones(*nodes: Address) -> dict[Address, bytes]:
    return dict.fromkeys(nodes, integer(1))


# -- replicas


def test_a_replica_that_is_known_to_be_down_is_left_out(play: Callable[..., Stage]) -> None:
    stage = play()
    client = send(stage, NUMPAT)
    assert answer(stage, ones(A, B, C, D)) == dict.fromkeys((A, B, C, D), NUMPAT)
    assert client.get() == integer(4)
    lose(stage, D)
    client = send(stage, NUMPAT)
    assert answer(stage, ones(A, B, C)) == dict.fromkeys((A, B, C), NUMPAT)
    assert (client.get(), stage.parking.waiting) == (integer(3), 0)
    stage.unreachable.clear()
    stage.until(lambda: not stage.router.nodes[D].down)
    client = send(stage, NUMPAT)
    assert answer(stage, ones(A, B, C, D)) == dict.fromkeys((A, B, C, D), NUMPAT)
    assert client.get() == integer(4)


def test_a_replica_that_is_unfit_is_left_out(play: Callable[..., Stage]) -> None:
    stage = play()
    stage.router.nodes[D].usable = False
    client = send(stage, NUMPAT)
    assert answer(stage, ones(A, B, C)) == dict.fromkeys((A, B, C), NUMPAT)
    assert client.get() == integer(3)


@pytest.mark.parametrize("shards", [[*THIRDS, (D, [], [])], REPLICATED])
def test_a_node_without_slots_that_is_found_to_be_down_is_not_waited_for(
    play: Callable[..., Stage], shards: Any
) -> None:
    """A replica, or an old primary after a failover."""
    stage = play(shards)
    stage.unreachable.add(D)
    client = send(stage, NUMPAT)
    assert answer(stage, ones(A, B, C)) == dict.fromkeys((A, B, C), NUMPAT)
    stage.until(lambda: stage.parking.waiting == 0)
    assert stage.hear(client) == integer(3)


def test_a_replica_that_is_lost_while_it_is_asked_is_left_out(play: Callable[..., Stage]) -> None:
    for frame in (NUMPAT, encode_command("LATENCY", "RESET")):  # that one is not sent twice
        stage = play()
        client = send(stage, frame)
        stage.unreachable.add(D)
        stage.node(D).close()
        assert set(answer(stage, ones(A, B, C))) == {A, B, C}
        assert stage.hear(client) == integer(3)


def test_a_replica_that_does_not_answer_in_time_is_left_out(play: Callable[..., Stage]) -> None:
    stage = play(timeout_s=100.0, stall_s=5000.0)
    client = send(stage, NUMPAT)
    for address in (A, B, C):
        stage.node(address).send(integer(1))
    stage.pass_time(150.0, sweep=True)
    assert stage.count("timeouts")
    assert stage.hear(client) == integer(3)


def test_what_a_replica_says_counts(play: Callable[..., Stage]) -> None:
    stage = play()
    client = send(stage, encode_command("CONFIG", "SET", "a", "b"))
    answer(stage, {**dict.fromkeys((A, B, C), b"+OK\r\n"), D: b"-ERR no\r\n"})
    assert client.get() == b"-ERR no (node 10.0.0.4:7004)\r\n"


def test_nobody_but_replicas_that_are_down(play: Callable[..., Stage]) -> None:
    """Somebody has to say it."""
    stage = play([(None, [D], [(0, 16383)])])
    stage.unreachable.add(D)
    client = send(stage, NUMPAT)
    assert stage.hear(client) == errors.NODE_DOWN
    stage.until(lambda: stage.router.nodes[D].down)
    client = send(stage, NUMPAT)
    assert stage.hear(client) == errors.CLUSTERDOWN


# -- primaries


def test_a_primary_that_is_down_is_waited_for_and_named(play: Callable[..., Stage]) -> None:
    for frame in (NUMPAT, DBSIZE):
        stage = play(timeout_s=100.0, failover_s=5000.0)
        stage.unreachable.add(A)
        client = send(stage, frame)
        answer(stage, ones(B, C, D))
        assert stage.parking.waiting == 1
        stage.pass_time(150.0)
        assert stage.hear(client) == DOWN_A
        assert stage.count("timeouts") == 1


def test_all_nodes_wait_for_a_primary_only_as_long_as_it_is_one(play: Callable[..., Stage]) -> None:
    """Its failure is told even then: whether its successor was asked is not looked at."""
    stage = play()
    stage.unreachable.add(A)
    client = send(stage, NUMPAT)
    answer(stage, ones(B, C, D))
    stage.publish(FAILED_OVER)
    assert stage.hear(client) == DOWN_A
    stage.until(lambda: stage.router.nodes[A].down)
    client = send(stage, NUMPAT)
    assert set(answer(stage, ones(B, C, D))) == {B, C, D}
    assert stage.hear(client) == integer(3)


@pytest.mark.parametrize("frame", [DBSIZE, FLUSHALL])
@pytest.mark.parametrize("after", [FAILED_OVER, [(D, [], [(0, 5460)]), *THIRDS[1:]]])
def test_what_was_not_executed_follows_its_shard(play: Callable[..., Stage], frame: bytes, after: Any) -> None:
    stage = play()
    stage.unreachable.add(A)
    client = send(stage, frame)
    assert answer(stage, ones(B, C)) == {B: frame, C: frame}
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.publish(after)
    assert answer(stage, ones(D)) == {D: frame}
    assert client.get() == integer(3 if frame == DBSIZE else 1)


def test_what_a_demoted_node_refuses_follows_its_shard(play: Callable[..., Stage]) -> None:
    stage = play()
    client = send(stage, FLUSHALL)
    ok = b"+OK\r\n"
    for address, reply in ((A, READONLY), (B, ok), (C, ok)):
        assert stage.node(address).get() == FLUSHALL
        stage.node(address).send(reply)
    stage.turn(1)
    stage.publish(FAILED_OVER)
    stage.until(lambda: D in answer(stage, {A: READONLY, D: ok}))
    assert stage.hear(client) == ok


def test_a_shards_first_slot_that_moves_takes_nothing_with_it(play: Callable[..., Stage]) -> None:
    """The node that has the rest still has keys of its own."""
    stage = play()
    stage.unreachable.add(A)
    client = send(stage, DBSIZE)
    answer(stage, ones(B, C))
    stage.publish([(A, [D], [(1, 5460)]), (B, [], [(0, 0), (5461, 10922)]), THIRDS[2]])
    assert answer(stage, {}) == {}
    stage.unreachable.clear()
    stage.until(lambda: answer(stage, ones(A)) == {A: DBSIZE})
    assert stage.hear(client) == integer(3)


def test_no_primary_is_asked_twice(play: Callable[..., Stage]) -> None:
    """B took over all the slots of A, and has its own part of the command already."""
    stage = play()
    stage.unreachable.add(A)
    client = send(stage, DBSIZE)
    assert set(answer(stage, ones(B, C))) == {B, C}
    stage.publish([(B, [A], [(0, 10922)]), THIRDS[2]])
    assert answer(stage, {}) == {}
    assert stage.hear(client) == errors.NODE_GONE[:-2] + b" (node 10.0.0.1:7001)\r\n"


def test_a_shard_without_a_primary_is_waited_for(play: Callable[..., Stage]) -> None:
    stage = play()
    stage.unreachable.add(A)
    client = send(stage, DBSIZE)
    answer(stage, ones(B, C))
    stage.publish([(None, [A, D], [(0, 5460)]), *THIRDS[1:]])
    assert (answer(stage, {}), stage.parking.waiting) == ({}, 1)
    stage.publish(FAILED_OVER)
    got: dict[Address, bytes] = {}
    stage.until(lambda: got.update(answer(stage, ones(D))) or got)  # it waited for a moment that the clock decides
    assert got == {D: DBSIZE}
    assert client.get() == integer(3)


def test_a_random_key_is_asked_for_where_the_keys_are_now(play: Callable[..., Stage]) -> None:
    """Both rounds, and of the primary whatever the client's read policy."""
    stage = play(reads="any")
    stage.unreachable.add(A)
    client = send(stage, encode_command("RANDOMKEY"))
    none = dict.fromkeys((B, C), integer(0))
    assert answer(stage, none) == dict.fromkeys((B, C), DBSIZE)
    stage.publish(FAILED_OVER)
    assert answer(stage, ones(D)) == {D: DBSIZE}
    assert answer(stage, {D: b"$1\r\nk\r\n"}) == {D: encode_command("RANDOMKEY")}
    assert client.get() == b"$1\r\nk\r\n"
