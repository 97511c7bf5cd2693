"""What becomes of a request that cannot simply be sent and answered: redirections, refusals, losses, deadlines."""

from __future__ import annotations

import time

import pytest

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import Address
from proxy.forward.backend import BackendState
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, TEXTS, THIRDS, A, B, C, Play, Stage

D = Address("10.0.0.4", 7004)
ASKING = encode_command("ASKING")
GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))
SET_A = encode_command("SET", KEY_A, "1")
REFUSALS = {
    "tryagain": b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    "clusterdown": b"-CLUSTERDOWN The cluster is down\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "readonly": b"-READONLY You can't write against a read only replica.\r\n",
    "masterdown": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
}


def moved(address: Address | str, slot: int = SLOT_A) -> bytes:
    return b"-MOVED %d %s\r\n" % (slot, str(address).encode())


def ask(address: Address | str, slot: int = SLOT_A) -> bytes:
    return b"-ASK %d %s\r\n" % (slot, str(address).encode())


def exchange(stage: Stage, address: Address, wanted: bytes, answer: bytes) -> None:
    """The node's newest connection gets something (in time), and answers."""
    got = bytearray()

    def come() -> bool:
        for end in stage.nodes.get(address, []):
            got.extend(end.get())
        return bool(got)

    stage.until(come)
    assert bytes(got) == wanted
    stage.node(address).send(answer)
    stage.turn(2)


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
    stage.router.publish([(D, [], [(0, 5460)]), *THIRDS[1:]])
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, D, SET_A + GET_A, b"+OK\r\n" + bulk("1"))
    assert client.get() == b"+OK\r\n" + bulk("1")


def test_moved_to_a_node_that_stays_unknown(play: Play) -> None:
    """The client gets the server's own line when its time is over."""
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
    assert said == line
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


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
@pytest.mark.parametrize("line", [moved, ask])
def test_redirections_are_limited(play: Play, limit: int, line: object) -> None:
    """The server's own error reaches the client; which node is asked next depends on the round."""
    stage = play(max_redirections=limit)
    client = stage.client()
    client.send(SET_A)
    rounds = 0
    last = b""
    while not (said := client.get()):
        stage.turn(1)
        for address, ends in list(stage.nodes.items()):
            for end in ends:
                got = end.get()
                if not got:
                    continue
                assert got in (SET_A, ASKING + SET_A)
                rounds += 1
                to = {A: B, B: C, C: A}[address]
                last = moved(to) if line is moved else ask(to)
                end.send((b"+OK\r\n" if got != SET_A else b"") + last)
        assert rounds < 20
    assert said == last
    assert rounds == limit + 1
    stage.turn(10)
    assert client.get() == b""
    assert stage.count("commands")["set"]["errors"] == {"MOVED" if line is moved else "ASK": 1}


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
@pytest.mark.parametrize("timeout_s", [0.0, 0.1])
def test_refused_until_the_deadline(play: Play, word: str, timeout_s: float) -> None:
    """Given up with what the server said last."""
    stage = play(timeout_s=timeout_s, backoff_s=1.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS[word])
    assert stage.hear(client) == REFUSALS[word]
    assert stage.node(A).get() == b""
    retries = stage.count("retries")
    assert (retries[word, "retried"], retries[word, "gave_up"]) == (1 if timeout_s else 0, 1)
    assert stage.count("timeouts") == (1 if timeout_s else 0)
    assert stage.count("commands")["set"]["errors"] == {word.upper(): 1}


def test_parked_requests_wait_longer_each_time(play: Play) -> None:
    """Backoff doubles up to its maximum; a change of anything ends the wait."""
    stage = play(backoff_s=3600.0, timeout_s=10_000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["loading"])
    stage.turn(20)
    assert (stage.node(A).get(), stage.parking.waiting) == (b"", 1)
    stage.parking.wake_all()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_a_replica_that_refuses_reads_is_reported(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica")
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    exchange(stage, B, GET_A * 2, REFUSALS["loading"] + REFUSALS["masterdown"])
    assert stage.unfit == ["loading", "link to the primary down"]
    exchange(stage, A, GET_A * 2, bulk("1") + bulk("2"))
    assert client.get() == bulk("1") + bulk("2")


def test_a_lost_write_that_was_sent_is_never_repeated(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(SET_A + GET_A + SET_A)
    other.send(GET_A)
    stage.turn()
    assert sorted(stage.node(A).get()) == sorted((SET_A + GET_A) * 2)
    stage.node(A).close()
    exchange(stage, A, GET_A * 2, bulk("1") + bulk("1"))
    assert client.get() == TEXTS["lost"] + bulk("1") + TEXTS["lost"]
    assert other.get() == bulk("1")
    stage.turn(10)
    assert (client.get(), stage.node(A).get()) == (b"", b"")
    retries = stage.count("retries")
    assert (retries["connection_lost", "unsafe"], retries["connection_lost", "retried"]) == (2, 2)
    assert stage.lost_for == ["closed by the node"]


def test_a_node_that_cannot_be_reached_and_recovers(play: Play) -> None:
    stage = play()
    stage.unreachable.add(A)
    client = stage.client()
    client.send(SET_A + GET_B)
    stage.turn()
    assert stage.router.nodes[A].down
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.node(B).send(bulk("2"))
    stage.turn(20)
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.unreachable.clear()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n" + bulk("2")
    assert not stage.router.nodes[A].down
    assert stage.count("retries")["node_down", "retried"] > 0


def test_a_node_that_stays_down_until_the_deadline(play: Play) -> None:
    stage = play(timeout_s=0.02)
    stage.unreachable.add(A)
    client = stage.client()
    client.send(SET_A + GET_A)
    assert stage.hear(client, 2 * len(TEXTS["down"])) == TEXTS["down"] * 2
    assert stage.nodes == {}
    gave_up = [count for (_, outcome), count in stage.count("retries").items() if outcome == "gave_up"]
    assert (sum(gave_up), stage.count("timeouts")) == (2, 2)


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


def test_a_later_write_does_not_overtake_a_parked_one(play: Play) -> None:
    """The next attempt to connect is under way when the second one comes: it would be sent first."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    stage.unreachable.add(A)
    other, client = stage.client(), stage.client()
    other.send(GET_A)
    stage.turn()
    writes = [encode_command("SET", KEY_A, n) for n in range(3)]
    client.send(writes[0])
    stage.turn()
    assert stage.parking.waiting == 2
    (backend,) = stage.wanted
    stage.wanted = []
    backend.state = BackendState.CONNECTING
    client.send(writes[1] + writes[2])
    stage.turn()
    stage.unreachable.clear()
    stage.wanted = [backend]
    stage.turn()
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, A, GET_A + writes[0], b"$-1\r\n+0\r\n")
    exchange(stage, A, writes[1] + writes[2], b"+1\r\n+2\r\n")
    assert client.get() == b"+0\r\n+1\r\n+2\r\n"


def test_a_redirected_write_does_not_overtake_a_parked_one_of_its_slot(play: Play) -> None:
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    first, second = (encode_command("SET", KEY_A, n) for n in range(2))
    client.send(first + second)
    stage.turn()
    exchange(stage, A, first + second, REFUSALS["tryagain"] + b"-MOVED %d %s\r\n" % (SLOT_A, str(B).encode()))
    assert stage.parking.waiting == 2
    assert stage.node(B).get() == b""
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, B, first + second, b"+0\r\n+1\r\n")
    assert client.get() == b"+0\r\n+1\r\n"


def test_wake_all_keeps_the_order(play: Play) -> None:
    """Writes of one client to one key are executed in the order in which they were sent."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    writes = [encode_command("SET", KEY_A, n) for n in range(6)]
    client.send(b"".join(writes))
    stage.turn()
    exchange(stage, A, b"".join(writes), REFUSALS["clusterdown"] * 6)
    assert stage.parking.waiting == 6
    for _ in range(2):
        stage.parking.wake_all()
        stage.turn()
        exchange(stage, A, b"".join(writes), REFUSALS["clusterdown"] * 6)
        assert stage.parking.waiting == 6
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn(1)
    stage.parking.wake_all()  # waits in a connection that fails
    stage.turn(1)
    stage.parking.wake_all()  # is parked again, the node being down
    assert stage.parking.waiting == 6
    stage.unreachable.clear()
    stage.turn()
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, A, b"".join(writes), b"".join(b"+%d\r\n" % n for n in range(6)))
    assert client.get() == b"".join(b"+%d\r\n" % n for n in range(6))


def test_what_is_parked_for_a_client_that_left_is_dropped(play: Play) -> None:
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["loading"])
    assert stage.parking.waiting == 1
    client.close()
    stage.turn()
    stage.parking.wake_all()
    stage.turn()
    assert (stage.node(A).get(), stage.parking.waiting) == (b"", 0)


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


def test_the_reason_given_up_for_is_the_last(play: Play) -> None:
    stage = play(timeout_s=0.1, backoff_s=1.0)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, REFUSALS["loading"])
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn()
    stage.parking.wake_all()
    assert stage.hear(client) == REFUSALS["loading"]
    retries = stage.count("retries")
    assert [key for key, count in retries.items() if key[1] == "gave_up" and count] == [("node_down", "gave_up")]


def test_limits_may_be_changed(play: Play) -> None:
    """They hold from the next redirection, or the next time something is parked, on."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    stage.exchange.redirect.max_redirections = 0
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, moved(B))
    assert client.get() == moved(B)
    stage.parking.backoff_min_ns = stage.parking.backoff_max_ns = 1000
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A, REFUSALS["loading"])
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_stop_ends_what_is_parked(play: Play) -> None:
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client, gone = stage.client(), stage.client()
    for one in (client, gone):
        one.send(SET_A)
    stage.turn()
    exchange(stage, A, SET_A * 2, REFUSALS["loading"] * 2)
    gone.close()
    stage.turn()
    stage.parking.stop()
    stage.turn()
    assert client.get() == REFUSALS["loading"]
    assert (stage.parking.waiting, stage.loop.timers) == (0, [])
