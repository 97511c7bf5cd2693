"""Which backend serves a request: slots, read policies, roles, nodes that come and go."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.forward.backend import BackendState
from proxy.forward.router import READ_POLICIES
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, SLOT_B, TEXTS, THIRDS, A, B, C, Play, Stage

D = Address("10.0.0.1", 7004)
GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))
SET_A = encode_command("SET", KEY_A, "1")
FLOCK = [(A, [B, C], [(0, 16383)])]  # a primary and two replicas


def asked(stage: Stage, frame: bytes) -> list[Address]:
    """The nodes that got the frame; their connections are read empty."""
    stage.turn()
    return [address for address, ends in stage.nodes.items() for end in ends for _ in range(end.get().count(frame))]


def reader(stage: Stage, frame: bytes, times: int = 1, **settings: object) -> list[Address]:
    """The nodes that as many new clients are sent to; nobody answers."""
    for _ in range(times):
        stage.client(**settings).send(frame)
    return sorted(asked(stage, frame))


def test_each_slot_has_its_node(play: Play) -> None:
    stage = play()
    stage.client().send(GET_A + GET_B + GET_C)
    stage.turn()
    assert [stage.node(n).get() for n in (A, B, C)] == [GET_A, GET_B, GET_C]
    assert stage.router.slots.covered == 16384
    assert [node.address for node in stage.router.primaries] == [A, B, C]
    assert [shard.primary.address for shard in stage.router.shards if shard.primary] == [A, B, C]


def test_without_a_topology(play: Play) -> None:
    stage = play([])
    client = stage.client()
    client.send(GET_A + encode_command("PING") + encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    assert not stage.router.known
    assert client.get() == errors.CLUSTERDOWN + b"+PONG\r\n" + errors.CLUSTERDOWN
    assert set(stage.stale_for) == {"unknown"}


def test_a_slot_that_nobody_serves(play: Play) -> None:
    stage = play(shards=[(A, [], [(0, 5460)]), (None, [], [(5461, 10922)])], timeout_s=0.0)
    client = stage.client()
    client.send(GET_C + encode_command("DEL", KEY_A, KEY_C))
    stage.turn()
    assert client.get() == b"-CLUSTERDOWN Hash slot not served\r\n"
    assert stage.stale_for == ["uncovered", "uncovered"]
    stage.node(A).send(b":1\r\n")
    stage.turn()
    assert client.get() == b"-CLUSTERDOWN Hash slot not served\r\n"
    client.send(GET_B)  # the shard is known, its primary is not: there may be one in time
    stage.turn()
    assert client.get() == TEXTS["down"]


def test_a_shard_without_a_primary_waits_for_one(play: Play) -> None:
    stage = play(shards=[(None, [B], [(0, 16383)])])
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.publish([(B, [], [(0, 16383)])])
    stage.parking.wake_all()
    stage.turn()
    assert stage.node(B).get() == SET_A


def test_keyless_commands_go_to_any_primary_that_is_up(play: Play) -> None:
    stage = play()
    frame = encode_command("CONFIG", "GET", "maxmemory")
    assert reader(stage, frame, 6) == [A, A, B, B, C, C]
    assert reader(stage, encode_command("EVAL", "return 1", "0"), 3) == [A, B, C]
    for node in (A, C):
        stage.node(node).send(b"*0\r\n" * 2 + b":1\r\n")  # so that reads lost elsewhere are sent here
    stage.turn()
    stage.unreachable.add(B)
    stage.node(B).close()
    stage.until(lambda: stage.router.nodes[B].down)
    assert set(reader(stage, frame, 6)) == {A, C}
    for node in (A, C):
        stage.unreachable.add(node)
        stage.node(node).close()
    stage.until(lambda: all(node.down for node in stage.router.primaries))
    client = stage.client()
    client.send(frame)
    stage.turn()
    assert client.get() == b""  # waits
    stage.unreachable.clear()
    stage.until(lambda: asked(stage, frame))


def test_no_primaries_at_all(play: Play) -> None:
    stage = play(shards=[(None, [B], [(0, 16383)])])
    client = stage.client()
    client.send(encode_command("CONFIG", "GET", "maxmemory"))
    stage.turn()
    assert client.get() == b"-CLUSTERDOWN Hash slot not served\r\n"


@pytest.mark.parametrize(
    ("policy", "read", "write"),
    [
        ("primary", [A] * 6, [A]),
        ("prefer_primary", [A] * 6, [A]),
        ("replica", [B, B, B, C, C, C], [A]),
        ("prefer_replica", [B, B, B, C, C, C], [A]),
        ("any", [A, A, B, B, C, C], [A]),
    ],
)
def test_read_policies(play: Play, policy: str, read: list[Address], write: list[Address]) -> None:
    assert policy in READ_POLICIES
    stage = play(shards=FLOCK)
    assert reader(stage, GET_A, 6, reads=policy) == read
    assert reader(stage, SET_A, 1, reads=policy) == write
    for address in (B, C):
        for backend in stage.router.nodes[address].backends():
            assert backend.readonly


def test_a_read_goes_where_the_fewest_are_pending(play: Play) -> None:
    stage = play(shards=FLOCK)
    client = stage.client(reads="replica")
    client.send(GET_A * 7)
    got = asked(stage, GET_A)
    assert sorted((got.count(B), got.count(C))) == [3, 4]
    stage.node(B).send(bulk("v") * got.count(B))
    stage.turn()
    client.send(GET_A * 3)
    assert asked(stage, GET_A) == [B] * 3  # B has none, C at least three


@pytest.mark.parametrize(
    ("policy", "one_unfit", "both_unfit"),
    [
        ("replica", {C}, set()),
        ("prefer_replica", {C}, {A}),
        ("any", {A, C}, {A}),
        ("prefer_primary", {A}, {A}),
    ],
)
def test_replicas_that_are_not_fit_or_down(
    play: Play, policy: str, one_unfit: set[Address], both_unfit: set[Address]
) -> None:
    stage = play(shards=FLOCK)
    stage.router.nodes[B].usable = False
    assert set(reader(stage, GET_A, 6, reads=policy)) == one_unfit
    stage.router.nodes[B].usable = True
    stage.router.nodes[C].usable = False
    stage.unreachable.add(B)
    for end in stage.nodes.get(B, []):
        end.close()
    stage.client(reads="replica").send(GET_A)
    stage.until(lambda: stage.router.nodes[B].down)
    waiting = stage.parking.waiting
    assert set(reader(stage, GET_A, 6, reads=policy)) == both_unfit
    assert stage.parking.waiting == waiting + (0 if both_unfit else 6)
    stage.unreachable.clear()
    stage.until(lambda: not stage.parking.waiting)
    assert set(asked(stage, GET_A)) == {B}


def test_prefer_primary_reads_from_a_replica_when_the_primary_is_down(play: Play) -> None:
    stage = play(shards=FLOCK)
    stage.unreachable.add(A)
    writer = stage.client()
    writer.send(SET_A)
    stage.until(lambda: stage.router.nodes[A].down)
    writer.close()  # or the read below would keep its place behind the write that waits for A
    assert set(reader(stage, GET_A, 4, reads="prefer_primary")) == {B, C}
    for address in (B, C):
        stage.router.nodes[address].usable = False
    assert reader(stage, GET_A, 1, reads="prefer_primary") == []
    for address in (B, C):
        stage.router.nodes[address].usable = True
    stage.until(lambda: asked(stage, GET_A))


def test_a_client_changes_its_policy(play: Play) -> None:
    stage = play(shards=FLOCK)
    client = stage.client()
    inside = stage.accepted
    assert (inside.reads, inside.listener_reads) == ("primary", "primary")
    inside.set_reads("replica")
    client.send(GET_A)
    assert asked(stage, GET_A)[0] in (B, C)
    assert (inside.reads, inside.listener_reads) == ("replica", "primary")
    with pytest.raises(ValueError, match="not in tuple"):
        inside.set_reads("nearest")


def test_several_connections_a_client_keeps_to_one(play: Play) -> None:
    stage = play(connections=2)
    one, two = stage.client(), stage.client()
    for _ in range(3):
        one.send(SET_A)
        two.send(GET_A)
        stage.turn()
    assert sorted(end.get() for end in stage.nodes[A]) == sorted([SET_A * 3, GET_A * 3])
    assert len(stage.router.nodes[A].backends()) == 2


def test_publish_keeps_what_has_not_changed(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    node = stage.router.nodes[A]
    stage.publish([(B, [], [(0, 5460)]), (A, [], [(5461, 10922)]), (C, [], [(10923, 16383)])])
    assert stage.router.nodes[A] is node
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("old"))
    stage.turn()
    assert client.get() == bulk("old")
    assert stage.node(B).get() == GET_A
    assert len(stage.nodes[A]) == 1


def test_a_node_that_left_is_drained(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(GET_A)
    stage.turn()
    node = stage.router.nodes[A]
    backend = node.backends()[0]
    stage.publish([(B, [], [(0, 16383)])])
    stage.turn()
    stage.router.sweep()
    assert (node.gone, backend.state, A in stage.router.nodes) == (True, BackendState.UP, False)
    client.send(GET_A)  # waits for the first: it must not overtake it
    other.send(GET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (GET_A, GET_A)
    stage.node(A).send(bulk("1"))
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert (client.get(), other.get()) == (bulk("1"), bulk("2"))
    assert stage.node(B).get() == GET_A
    stage.node(B).send(bulk("3"))
    stage.turn()
    assert client.get() == bulk("3")
    assert backend.state == BackendState.CLOSED
    assert stage.node(A).closed
    assert stage.lost_for == []
    stage.router.sweep()
    assert node.backends() == []
    stage.publish(THIRDS)
    assert stage.router.nodes[A] is not node


def test_a_draining_connection_that_is_lost_is_not_made_again(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + SET_A)
    stage.turn()
    stage.publish([(B, [], [(0, 16383)])])
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    assert len(stage.nodes[A]) == 1
    assert stage.node(B).get() == GET_A
    stage.node(B).send(bulk("v"))
    stage.turn()
    assert client.get() == bulk("v") + TEXTS["lost"]


def test_what_waits_for_a_connection_to_a_node_that_left_goes_elsewhere(play: Play) -> None:
    """Nobody connects a node that is gone: it would wait until its deadline."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.loop.run()
    (backend,) = stage.router.nodes[A].backends()
    assert (backend.state, backend.pending) == (BackendState.CONNECTING, 1)
    stage.wanted.clear()
    stage.publish([(B, [], [(0, 16383)])])
    stage.turn()
    assert backend.state == BackendState.CLOSED
    assert stage.node(B).get() == SET_A


def test_a_role_change_makes_new_connections(play: Play) -> None:
    """READONLY holds for a connection's life: a demoted primary needs it, a promoted replica must not have it."""
    stage = play(shards=[(A, [B], [(0, 16383)])])
    writer, reading = stage.client(), stage.client(reads="replica")
    writer.send(SET_A)
    reading.send(GET_A)
    stage.turn()
    late_writer, late_reading = stage.client(), stage.client(reads="replica")
    old = [stage.router.nodes[n].backends()[0] for n in (A, B)]
    stage.publish([(B, [A], [(0, 16383)])])
    late_writer.send(SET_A)
    late_reading.send(GET_A)
    stage.turn()
    assert [len(stage.nodes[n]) for n in (A, B)] == [2, 2]
    assert (stage.nodes[A][1].get(), stage.nodes[B][1].get()) == (GET_A, SET_A)
    new = [stage.router.nodes[n].backends()[0] for n in (A, B)]
    assert [b.readonly for b in old + new] == [False, True, True, False]
    stage.nodes[A][0].send(b"+OK\r\n")
    stage.nodes[B][0].send(bulk("1"))
    stage.turn()
    assert (writer.get(), reading.get()) == (b"+OK\r\n", bulk("1"))
    assert [b.state for b in old] == [BackendState.CLOSED] * 2
    stage.router.sweep()
    assert [len(stage.router.nodes[n].backends()) for n in (A, B)] == [1, 1]


def test_an_idle_connection_of_a_former_role_is_closed_at_once(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    stage.router.warm(2)
    stage.turn()
    stage.publish([(B, [A], [(0, 16383)])])
    stage.turn()
    assert stage.node(A).closed
    assert stage.router.nodes[A].backends() == []


def test_a_node_down_for_longer_than_the_failover_deadline(play: Play) -> None:
    """First it is waited for, then its requests fail at once, and it recovers with the connection."""
    stage = play(failover_s=400.0, timeout_s=5000.0)
    stage.unreachable.add(A)
    first, second = stage.client(), stage.client()
    first.send(SET_A)
    stage.turn(2)
    assert (first.get(), stage.parking.waiting) == (b"", 1)
    stage.pass_time(420.0)
    assert first.get() == TEXTS["down"]
    assert stage.count("retries")["node_down", "gave_up"] == 1
    second.send(GET_A + GET_B)
    stage.turn(1)
    assert second.get() == TEXTS["down"]  # at once
    stage.turn()
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert second.get() == bulk("2")
    stage.unreachable.clear()
    stage.turn()
    second.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A


def test_warm_connects_the_primaries(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 8000)]), (C, [], [(8001, 16383)]), (D, [], [])], connections=2)
    stage.router.warm(2)
    stage.turn()
    assert {address: len(ends) for address, ends in stage.nodes.items()} == {A: 2, C: 2}
    stage.router.warm(3)
    stage.turn()
    assert {address: len(ends) for address, ends in stage.nodes.items()} == {A: 4, C: 4}
    assert {b.proto for b in stage.router.nodes[A].backends()} == {2, 3}


def test_a_shard_without_slots_learns_its_first(play: Play) -> None:
    stage = play(shards=[(A, [], [(0, 16383)]), (D, [], [])])
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).get()
    stage.node(A).send(b"-MOVED %d %s\r\n" % (SLOT_A, str(D).encode()))
    stage.turn()
    assert stage.node(D).get() == GET_A
    assert len(stage.router.shards) == 2


def test_a_known_shard_without_slots_becomes_a_primary_with_its_first(play: Play) -> None:
    stage = play(shards=[(A, [], [(0, 16383)]), (D, [], [])])
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(A).send(b"".join(b"-MOVED %d %s\r\n" % (slot, str(D).encode()) for slot in (SLOT_A, SLOT_B)))
    stage.turn()
    assert stage.node(D).get() == GET_A + GET_B
    assert [node.address for node in stage.router.primaries] == [A, D]


def test_close_hands_everything_to_recovery(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(SET_A + GET_B)
    stage.turn()
    stage.router.close()
    stage.parking.stop()
    stage.turn()
    assert client.get() == TEXTS["lost"] + TEXTS["down"]
    assert stage.node(A).get() + stage.node(B).get() == SET_A + GET_B
    assert stage.node(A).closed
