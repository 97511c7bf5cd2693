"""Order across a change of owner: clients of what is under way send nothing new that could overtake it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import Address
from proxy.resp.encode import encode_command, integer
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, KEY_C, THIRDS, A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, GET_C, SET_B, SET_C, D, moved, pending

RPUSH = [encode_command("RPUSH", KEY_A, n) for n in range(4)]
ANYWHERE = [encode_command("LOLWUT", "VERSION", n) for n in range(4)]
PUBLISH = [encode_command("PUBLISH", "channel", n) for n in range(4)]
FLOCK: list[Any] = [(A, [B], [(0, 8000)]), (C, [], [(8001, 16383)])]


def begun(stage: Stage, frame: bytes = RPUSH[0], **settings: Any) -> End:
    """A client with one command under way, which its node has."""
    client = stage.client(**settings)
    client.send(frame)
    stage.turn()
    return client


def waits(stage: Stage, client: End, frame: bytes) -> bool:
    """Whether a command of this client is held back; it is sent either way."""
    for ends in stage.nodes.values():
        for end in ends:
            end.get()
    client.send(frame)
    stage.turn()
    return not any(end.get() for ends in stage.nodes.values() for end in ends)


def test_learning_unsettles_those_of_the_slot_and_only_those(play: Play) -> None:
    stage = play()
    same, other, elsewhere = begun(stage), begun(stage, encode_command("SET", "f", "1")), begun(stage, SET_B)
    assert slot_of(b"f") < 5461
    mover = begun(stage, encode_command("GET", "{b}2"))
    stage.node(A).get()
    stage.node(A).send(integer(1) + b"+OK\r\n"[:0])
    stage.turn()
    assert same.get() == integer(1)
    same.send(RPUSH[1])
    stage.turn()
    assert stage.node(A).get() == RPUSH[1]
    stage.node(A).send(b"+OK\r\n" + moved(C))  # the other's SET, then the mover's GET
    stage.turn()
    assert other.get() == b"+OK\r\n"
    assert stage.node(C).get() == encode_command("GET", "{b}2")
    other.send(encode_command("SET", "f", "2"))
    stage.turn()
    assert stage.node(A).get() == encode_command("SET", "f", "2")
    assert waits(stage, same, RPUSH[2])
    assert not waits(stage, elsewhere, GET_A)  # its SET is of another slot: nothing of it could be overtaken
    stage.node(C).send(b"$-1\r\n" + b"$-1\r\n")
    stage.node(A).send(integer(2))
    stage.turn()
    assert (same.get(), mover.get()) == (integer(2), b"$-1\r\n")
    assert stage.node(C).get() == RPUSH[2]


@pytest.mark.parametrize("how", ["refresh", "role", "removal"])
def test_a_refresh_unsettles_those_whose_next_command_would_go_elsewhere(play: Play, how: str) -> None:
    """It may learn the new owner while the old one still says ASK."""
    stage = play()
    moving, staying = begun(stage), begun(stage, SET_C)
    stage.publish(
        {
            "refresh": [(A, [], [(0, 3299)]), (B, [], [(3300, 10922)]), THIRDS[2]],
            "role": [(B, [A], [(0, 10922)]), THIRDS[2]],
            "removal": [(B, [], [(0, 10922)]), THIRDS[2]],
        }[how]
    )
    assert waits(stage, moving, RPUSH[1])
    assert not waits(stage, staying, SET_C)
    stage.nodes[A][0].send(integer(1))
    stage.turn()
    assert moving.get() == integer(1)
    assert stage.node(B).get() == RPUSH[1]


@pytest.mark.parametrize("change", ["nothing", "another slot", "a replica more", "a new node"])
def test_a_refresh_that_changes_nothing_for_them_unsettles_nobody(play: Play, change: str) -> None:
    stage = play(shards=FLOCK)
    clients = [
        begun(stage),
        begun(stage, GET_A, reads="replica"),
        begun(stage, SET_C),
        begun(stage, encode_command("MGET", KEY_A, KEY_C)),
        begun(stage, ANYWHERE[0]),
    ]
    stage.publish(
        {
            "nothing": FLOCK,
            "another slot": [(A, [B], [(0, 7999)]), (C, [], [(8000, 16383)])],
            "a replica more": [(A, [B, D], [(0, 8000)]), (C, [], [(8001, 16383)])],
            "a new node": [*FLOCK, (D, [], [])],
        }[change]
    )
    for client, frame in zip(clients, [RPUSH[1], GET_A, SET_C, GET_C, ANYWHERE[1]], strict=True):
        assert not waits(stage, client, frame), frame


def test_reads_from_a_replica_that_left_its_shard(play: Play) -> None:
    """A read may be overtaken by a later one on another node: the second would see less than the first."""
    stage = play(shards=FLOCK)
    reader = begun(stage, GET_A, reads="replica")
    stage.publish([(A, [D], [(0, 8000)]), (C, [B], [(8001, 16383)])])
    assert waits(stage, reader, GET_A)


def test_parts_of_a_command_unsettle_their_client(play: Play) -> None:
    stage = play()
    client, mover = begun(stage, encode_command("MSET", KEY_A, "1", KEY_B, "2")), begun(stage, GET_A)
    stage.node(A).get()
    stage.node(B).get()
    stage.node(B).send(b"+OK\r\n")
    other = begun(stage, encode_command("SET", "f", "1"))
    stage.turn()
    stage.publish([(A, [], [(0, 3299)]), (B, [], [(3300, 10922)]), THIRDS[2]])
    assert waits(stage, client, GET_A)
    assert waits(stage, mover, GET_A)
    assert not waits(stage, other, SET_B)


@pytest.mark.parametrize(
    "often",
    [
        False,
        True,
    ],
)
def test_one_list_while_its_slot_is_moved_to_and_fro(play: Play, often: bool) -> None:
    """By others, with MOVED and with refreshes: what one client pushes is carried out in its order."""
    redirected = 0
    for seed in range(20):
        rng = random.Random(seed)
        stage = play(backoff_s=1000.0, timeout_s=5000.0, max_redirections=200)
        client, mover = stage.client(), stage.client()
        at, fresh = A, True
        done: list[bytes] = []
        sent = 0
        for _ in range(150):
            what = rng.random()
            if what < 0.4:
                client.send(encode_command("RPUSH", KEY_A, sent))
                sent += 1
            elif what < 0.6:
                mover.send(GET_A)
            elif what < 0.7:
                if often or fresh:
                    at, fresh = flipped(stage, at, done), False
            elif what < 0.75:
                stage.publish(THIRDS if at == A else [(C, [], [(0, 1)]), (B, [], [(3300, 3300)]), (A, [], [])])
            elif stage.nodes:
                serve(stage, rng.choice(list(stage.nodes)), at, done, 1)
            if rng.random() < 0.1:
                stage.parking.wake_all()
            stage.turn(1)
            fresh = fresh or not (pending(stage) or stage.parking.waiting)  # what is under way was not moved yet
        for _ in range(100):
            for address in list(stage.nodes):
                serve(stage, address, at, done, 100)
            stage.parking.wake_all()
            stage.turn(1)
        assert done == [b"%d" % n for n in range(sent)], seed
        assert client.get() == b"".join(integer(n + 1) for n in range(sent)), seed
        redirected += stage.count("redirections")["moved"]
    assert redirected > 100


def flipped(stage: Stage, at: Address, done: list[bytes]) -> Address:
    """The slot changes hands. Whoever gets it has answered what it refused before, and that has been read: otherwise
    the cluster itself would carry out two commands of one pipeline in the wrong order."""
    to = B if at == A else A
    while to in stage.nodes and serve(stage, to, at, done, 1000):
        stage.turn(4)
    return to


def serve(stage: Stage, address: Address, at: Address, done: list[bytes], most: int) -> int:
    """A node carries out what it has got: it owns the slot, or says who does. How many commands that was."""
    served = 0
    for end in stage.nodes[address]:
        held: list[bytes] = stage.__dict__.setdefault("held", {}).setdefault(end, [])
        held += [frame for frame, _ in CommandReader().feed(end.get())]
        for frame in held[:most]:
            words = frame.split(b"\r\n")[2::2]
            if address != at:
                end.send(moved(at))
            elif words[0] == b"GET":
                end.send(b"$-1\r\n")
            else:
                done.append(words[2])
                end.send(integer(len(done)))
        served += len(held[:most])
        del held[:most]
    return served


# -- keyless commands


def served(stage: Stage, client: End, n: int) -> Address:
    """Where it goes."""
    client.send(ANYWHERE[n])
    stage.turn()
    (place,) = (address for address, ends in stage.nodes.items() for end in ends if end.get() == ANYWHERE[n])
    return place


def test_what_any_primary_may_serve_keeps_to_one(play: Play) -> None:
    """However the list of primaries changes around it, and though it is not answered yet."""
    stage = play()
    clients = [stage.client() for _ in range(3)]
    places = [served(stage, client, 0) for client in clients]
    assert sorted(places) == [A, B, C]
    for shards in (
        [THIRDS[2], THIRDS[0], THIRDS[1]],
        [(D, [], [(0, 100)]), (A, [], [(101, 5460)]), *THIRDS[1:]],
        [(Address("10.0.0.0", 1), [], [(0, 50)]), *THIRDS[::-1]],
    ):
        stage.publish(shards)
        assert [served(stage, client, 1) for client in clients] == places


def test_what_is_published_follows_slot_0(play: Play) -> None:
    """Where the subscribers are heard from; behind what is under way elsewhere."""
    stage = play()
    client = stage.client()
    client.send(PUBLISH[0] + PUBLISH[1])
    stage.turn()
    assert stage.node(A).get() == PUBLISH[0] + PUBLISH[1]
    stage.publish([(B, [A], [(0, 8000)]), (C, [], [(8001, 16383)])])
    assert waits(stage, client, PUBLISH[2])
    stage.nodes[A][0].send(integer(0) * 2)
    stage.until(lambda: B in stage.nodes)
    stage.turn()
    assert client.get() == integer(0) * 2
    assert stage.node(B).get() == PUBLISH[2]


def test_a_primary_that_is_none_any_more(play: Play) -> None:
    """What is under way there is answered before anything goes elsewhere."""
    stage = play()
    clients = {served(stage, client, 0): client for client in [stage.client() for _ in range(3)]}
    stage.publish([(B, [A], [(0, 8000)]), (C, [], [(8001, 16383)])])
    assert waits(stage, clients[A], ANYWHERE[1])
    assert not waits(stage, clients[B], ANYWHERE[1])
    stage.nodes[A][0].send(integer(0))
    stage.turn()
    assert clients[A].get() == integer(0)
    second = [address for address, ends in stage.nodes.items() for end in ends if end.get() == ANYWHERE[1]]
    assert second in ([B], [C])
    (place,) = second
    assert served(stage, clients[A], 2) == place  # and there it stays


def test_keyless_commands_of_both_protocols(play: Play) -> None:
    stage = play()
    client = stage.client()
    place = served(stage, client, 0)
    stage.node(place).send(integer(0))
    stage.turn()
    client.send(encode_command("HELLO", "3"))
    stage.turn()
    assert served(stage, client, 1) == place
