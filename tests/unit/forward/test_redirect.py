"""What a node's error line means for a request: followed, waited for, or the client's."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from proxy.cluster.slot import slot_of
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, THIRDS, A, B, C, Play, Stage
from tests.support.dialogue import (
    ASKING,
    GET_A,
    GET_B,
    REFUSALS,
    SET_A,
    D,
    ask,
    exchange,
    moved,
)


def test_moved_is_followed_and_learnt_at_once(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    other.send(GET_A + encode_command("GET", "{b}2"))  # same slot: goes to the right node from now on
    stage.turn()
    exchange(stage, B, SET_A + GET_A + encode_command("GET", "{b}2"), b"+OK\r\n" + bulk("1") + bulk("2"))
    assert (client.get(), other.get()) == (b"+OK\r\n", bulk("1") + bulk("2"))
    assert stage.stale_for == ["moved"]
    assert stage.count("redirections")["moved"] == 1
    assert stage.count("commands")["set"]["errors"] == {}


def test_moved_to_a_node_nobody_knows(play: Play) -> None:
    """It is not dialled for an error line's sake, but waited for until a topology names it."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A + GET_A)
    stage.turn()
    exchange(stage, A, SET_A + GET_A, moved(D) + moved(D))
    stage.turn()
    assert stage.parking.waiting == 2
    assert D not in stage.nodes
    assert D not in stage.router.nodes
    assert stage.stale_for == ["moved", "moved"]
    stage.publish([(D, [], [(0, 5460)]), *THIRDS[1:]])
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, D, SET_A + GET_A, b"+OK\r\n" + bulk("1"))
    assert client.get() == b"+OK\r\n" + bulk("1")


def test_moved_to_a_node_that_stays_unknown(play: Play) -> None:
    """When its time is over the client is told so: the server's own line means nothing to a client of one server."""
    stage = play(timeout_s=0.05)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    line = moved(D)
    give_up = time.monotonic() + 10
    while not (said := client.get()):
        assert time.monotonic() < give_up
        for end in stage.nodes[A]:
            for _ in range(end.get().count(GET_A)):
                end.send(line)
        stage.turn(1)
    assert said == errors.REDIRECTED_IN_VAIN
    assert D not in stage.nodes


def test_moved_to_itself_and_without_a_host(play: Play) -> None:
    """An empty host is the node that said so; its own window may move while the bytes are queued there again."""
    stage = play()
    client = stage.client()
    large = encode_command("SET", KEY_A, b"v" * 50_000)
    client.send(large + GET_A)
    stage.turn()
    exchange(stage, A, large + GET_A, moved(":7001") + bulk("v"))
    exchange(stage, A, large, moved("?:7001"))
    exchange(stage, A, large, b"+OK\r\n")
    assert client.get() == b"+OK\r\n" + bulk("v")
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, moved(":7003"))
    assert stage.router.nodes.keys() == {A, B, C}
    exchange(stage, C, GET_A, bulk("3"))
    assert client.get() == bulk("3")


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_replica_that_says_it_is_the_primary(play: Play, size: int) -> None:
    """Its READONLY connection is of no use then, yet the bytes of the command still stand in that one's window."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="replica")
    client = stage.client()
    frame = encode_command("GET", b"k" * size)
    client.send(frame)
    stage.turn()
    exchange(stage, B, frame, moved(B, slot_of(b"k" * size)))
    exchange(stage, B, frame, bulk("v"))
    assert client.get() == bulk("v")
    assert [len(stage.nodes[B]), stage.nodes[B][0].closed] == [2, True]
    assert not stage.router.nodes[B].replica
    assert stage.lost_for == []


def test_moved_promotes_a_replica(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    client, reader = stage.client(), stage.client(reads="replica")
    reader.send(GET_A)
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    assert stage.nodes[B][0].get() == GET_A
    assert stage.nodes[B][1].get() == SET_A
    stage.nodes[B][0].send(bulk("old"))
    stage.nodes[B][1].send(b"+OK\r\n")
    stage.turn()
    assert (client.get(), reader.get()) == (b"+OK\r\n", bulk("old"))
    assert stage.nodes[B][0].closed


def test_ask_is_followed_for_once(play: Play) -> None:
    """ASKING and its command adjacent, whatever else goes there; the slot stays where it was."""
    stage = play(packets=True)
    stage.router.warm(2)
    stage.turn()
    clients = [stage.client() for _ in range(3)]
    for client in clients:
        client.send(SET_A)
    stage.turn()
    assert stage.node(A).packets() == [SET_A * 3]
    clients.append(stage.client())
    stage.node(A).send(ask(B) * 3)
    clients[3].send(GET_B)
    stage.turn()
    (packet,) = stage.node(B).packets()
    assert sorted(packet.split(ASKING + SET_A)) == [b"", b"", b"", GET_B]
    first = packet.partition(GET_B)[0].count(ASKING)
    stage.node(B).send(b"+OK\r\n+OK\r\n" * first + bulk("b") + b"+OK\r\n+OK\r\n" * (3 - first))
    stage.turn()
    assert [client.get() for client in clients] == [b"+OK\r\n"] * 3 + [bulk("b")]
    clients[0].send(SET_A)
    stage.turn()
    assert stage.node(A).get() == SET_A
    assert stage.stale_for == []
    assert stage.count("redirections")["ask"] == 3


def test_asking_refused(play: Play) -> None:
    """Whatever is said to ASKING is dropped; what is said to the command counts."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, ask(B))
    exchange(stage, B, ASKING + SET_A, b"-ERR This instance has cluster support disabled\r\n-ERR no\r\n")
    assert client.get() == b"-ERR no\r\n"


def led_round(stage: Stage, line: Callable[..., bytes]) -> list[bytes]:
    """Every node sends each SET_A that it has got to the next node; what was said."""
    said = []
    for address, ends in list(stage.nodes.items()):
        for end in ends:
            if not (got := end.get()):
                continue
            assert got in (SET_A, ASKING + SET_A)
            said.append(line({A: B, B: C, C: A}[address]))
            end.send((b"+OK\r\n" if got != SET_A else b"") + said[-1])
    return said


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
@pytest.mark.parametrize("line", [moved, ask])
def test_redirections_are_limited(play: Play, limit: int, line: Callable[..., bytes]) -> None:
    """Then it waits, and begins anew; from the third in a row on each waits, too."""
    stage = play(max_redirections=limit, backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    for waits in range(4):
        rounds = []
        while not stage.parking.waiting:
            rounds += led_round(stage, line)
            assert len(rounds) <= limit + 1
            stage.turn()
        if limit < 3 or waits == 0:
            assert len(rounds) == min(limit, 2) + 1
        stage.turn(10)
        assert (led_round(stage, line), client.get()) == ([], b"")
        assert stage.count("retries")["moved", "retried"] == waits + 1
        stage.parking.wake_all()
        stage.turn()
    (node,) = (address for address, ends in stage.nodes.items() for end in ends if end.get())
    stage.node(node).send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert stage.count("commands")["set"]["errors"] == {}


@pytest.mark.parametrize("limit", [0, 1, 5])
@pytest.mark.parametrize("line", [moved, ask])
def test_redirections_are_followed_until_the_deadline(play: Play, limit: int, line: Callable[..., bytes]) -> None:
    """One error reaches the client, once; how often nodes are asked is bounded by backoff."""
    stage = play(max_redirections=limit, timeout_s=200.0, backoff_s=10.0, backoff_max_s=10.0)
    client = stage.client()
    client.send(SET_A)
    said: list[bytes] = []
    got = b""

    def told() -> bool:
        nonlocal got
        stage.pass_time(1.0)
        said.extend(led_round(stage, line))
        got += client.get()
        return got != b""

    stage.until(told)
    assert got == errors.REDIRECTED_IN_VAIN
    assert limit + 1 < len(said) < 100
    stage.turn(10)
    assert (client.get(), stage.parking.waiting, led_round(stage, line)) == (b"", 0, [])
    assert stage.count("commands")["set"]["errors"] == {"CLUSTERDOWN": 1}
    assert stage.count("retries")["moved", "gave_up"] == 1


def test_two_nodes_that_name_each_other_are_given_time(play: Play) -> None:
    """While a slot changes hands: from the second round on it waits a little, or as long as nothing changes."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    exchange(stage, B, SET_A, moved(A))
    exchange(stage, A, SET_A, moved(B))
    stage.turn()
    assert (stage.node(B).get(), stage.parking.waiting) == (b"", 1)
    stage.parking.wake_all()
    exchange(stage, B, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_two_nodes_that_name_each_other_until_the_deadline(play: Play) -> None:
    """Whoever waits for them gets an error that means something to it when time is over."""
    stage = play(backoff_s=1000.0, timeout_s=1.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    exchange(stage, B, SET_A, moved(A))
    exchange(stage, A, SET_A, moved(B))
    assert stage.parking.waiting == 1
    assert stage.hear(client) == errors.REDIRECTED_IN_VAIN


@pytest.mark.parametrize("line", [b"-MOVED 99999 a:1\r\n", b"-MOVED 1\r\n", b"-ASK 1 nohost\r\n", b"-MOVEDX 1 a:1\r\n"])
def test_what_only_looks_like_a_redirection(play: Play, line: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, line)
    assert client.get() == line


@pytest.mark.parametrize("word", list(REFUSALS))
def test_refused_for_a_while(play: Play, word: str) -> None:
    """Nothing was executed: it is sent again, a write too, until it is answered."""
    stage = play()
    client = stage.client()
    client.send(SET_A)
    for _ in range(4):
        exchange(stage, A, SET_A, REFUSALS[word])
        assert client.get() == b""
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"
    assert stage.count("redirections")[word] == 4
    assert stage.count("retries")[word, "retried"] == 4
    assert set(stage.stale_for) == ({word} if word in ("readonly", "clusterdown") else set())
    assert stage.parking.waiting == 0
    assert stage.count("commands")["set"]["errors"] == {}


@pytest.mark.parametrize("word", list(REFUSALS))
@pytest.mark.parametrize("timeout_s", [0.0, 400.0])
def test_refused_until_the_deadline(play: Play, word: str, timeout_s: float) -> None:
    """Given up with what the server said last."""
    stage = play(timeout_s=timeout_s, backoff_s=1000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS[word])
    stage.pass_time(1.25 * timeout_s)
    assert stage.hear(client) == REFUSALS[word]
    assert stage.node(A).get() == b""
    retries = stage.count("retries")
    assert (retries[word, "retried"], retries[word, "gave_up"]) == (1 if timeout_s else 0, 1)
    assert stage.count("timeouts") == 1  # also when it is over before it could wait for the first time
    assert stage.count("commands")["set"]["errors"] == {word.upper(): 1}


def test_a_replica_that_refuses_reads_is_reported(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica")
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    exchange(stage, B, GET_A * 2, REFUSALS["loading"] + REFUSALS["masterdown"])
    assert stage.unfit == ["loading", "link to the primary down"]
    exchange(stage, A, GET_A * 2, bulk("1") + bulk("2"))
    assert client.get() == bulk("1") + bulk("2")


@pytest.mark.parametrize("word", ["loading", "clusterdown"])
@pytest.mark.parametrize("reads", ["any", "prefer_primary"])
def test_a_primary_that_is_loading_is_spared_reads(play: Play, reads: str, word: str) -> None:
    """One with slots says CLUSTERDOWN until it has loaded. What may go elsewhere does; writes wait for it."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads=reads)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    if A in stage.nodes:
        exchange(stage, A, GET_A, REFUSALS[word])
        assert len(stage.unfit) == 1
    stage.router.nodes[A].usable = False
    exchange(stage, B, GET_A, bulk("1"))
    for _ in range(5):
        client.send(GET_A)
        stage.turn()
        exchange(stage, B, GET_A, bulk("1"))
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["loading"])
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == bulk("1") * 6 + b"+OK\r\n"


def test_a_write_says_nothing_of_reads(play: Play) -> None:
    """A node that is cut off from the others may go on answering reads (cluster-allow-reads-when-down)."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_primary")
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["clusterdown"])
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert (client.get(), stage.unfit) == (b"+OK\r\n", [])


def test_moved_to_a_node_that_is_down(play: Play) -> None:
    """A failover's usual beginning: it is waited for."""
    stage = play()
    stage.unreachable.add(B)
    stage.router.warm(2)
    stage.turn()
    assert stage.router.nodes[B].down
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    assert stage.parking.waiting == 1
    stage.unreachable.clear()
    exchange(stage, B, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_a_redirection_for_nobody_is_not_followed(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(SET_A + SET_A)
    stage.turn()
    client.close()
    stage.turn()
    exchange(stage, A, SET_A * 2, moved(B) + REFUSALS["tryagain"])
    assert B not in stage.nodes
    assert stage.parking.waiting == 0


@pytest.mark.parametrize("line", [moved, ask])
def test_redirected_to_a_node_that_has_been_down_for_long(play: Play, line: Callable[..., bytes]) -> None:
    """It is not waited for, as by any other command that is for it (a slot that was being moved there, say)."""
    stage = play(failover_s=0.0, timeout_s=5000.0)
    stage.unreachable.add(B)
    other = stage.client()
    other.send(GET_B)
    assert stage.hear(other) == errors.NODE_DOWN
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, line(B))
    assert stage.hear(client) == errors.NODE_DOWN
    refusals = stage.count("refusals")
    assert (refusals["node_down"], refusals["held_too_long"]) == (2, 0)


def test_a_refused_write_is_not_sent_right_before_its_deadline(play: Play) -> None:
    """It might not be answered in time, and its client would not know whether it was executed."""
    stage = play(timeout_s=0.1, backoff_s=0.06, backoff_max_s=0.06)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["loading"])
    assert stage.hear(client) == REFUSALS["loading"]
    assert stage.node(A).get() == b""


@pytest.mark.parametrize("reads", ["any", "prefer_primary", "prefer_replica"])
def test_a_replica_cut_off_from_a_primary_that_is_loading(play: Play, reads: str) -> None:
    """Unfit, but the last resort: no read fails while any node of the shard answers."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads=reads, backoff_s=0.001)
    stage.router.nodes[A].usable = stage.router.nodes[B].usable = False
    stage.router.nodes[B].stale = True
    client = stage.client()
    client.send(GET_A)

    def answered() -> bytes:
        for address, line in ((A, REFUSALS["clusterdown"]), (B, bulk("1"))):
            for end in stage.nodes.get(address, []):
                for _ in range(end.get().count(GET_A)):
                    end.send(line)
        return client.get()

    got = b""
    give_up = time.monotonic() + 10
    while not (got := answered()):
        assert time.monotonic() < give_up
        stage.turn(1)
    assert got == bulk("1")
