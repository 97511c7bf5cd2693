"""How much is held, for whom and for how long: shares of nodes, pipelines that have waited in vain, what is counted."""

from __future__ import annotations

import time

import pytest

from proxy.resp import errors
from proxy.resp.encode import encode_command
from tests.support.cluster import slot_of
from tests.support.datapath import KEY_A, KEY_B, KEY_C, A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B, REFUSALS, SET_A, SET_B, exchange, moved, sent_while_down

HELD = errors.NODE_DOWN_HELD
PATIENT = {"backoff_s": 1000.0, "timeout_s": 5000.0, "failover_s": 5000.0}
KEYS_A = list({slot: n for n in range(9000) if (slot := slot_of(f"k{n}")) <= 5460}.values())  # one of each slot of A
SETS = {address: encode_command("SET", key, "1") for address, key in ((A, KEY_A), (B, KEY_B), (C, KEY_C))}


def hold(stage: Stage, frame: bytes, times: int) -> list[End]:
    """So many clients send it; those that are held, the others having been refused."""
    held = []
    for _ in range(times):
        client = stage.client()
        client.send(frame)
        stage.turn(6)
        if got := client.get():
            assert got == HELD
        else:
            held.append(client)
    return held


def lose_reads(stage: Stage, clients: int, times: int) -> None:
    """Each of so many clients has so many GETs under way at node A when that is lost."""
    for _ in range(clients):
        stage.client().send(GET_A * times)
        stage.turn()
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn(6)


def number(stage: Stage, address: object) -> int:
    return stage.router.nodes[address].number  # type: ignore[index]


class TestBounds:
    def test_one_dead_shard_leaves_room_for_the_next(self, play: Play) -> None:
        """Each may have what is left for the others: a half alone, and the next one half of the rest."""
        stage = play(**PATIENT)
        stage.parking.max_held = 16
        stage.unreachable |= {A, B, C}
        assert len(hold(stage, SETS[A], 12)) == 8
        assert len(hold(stage, SETS[B], 12)) == 4
        assert len(hold(stage, SETS[C], 12)) == 2
        assert len(hold(stage, SETS[A], 1)) == 0
        assert stage.parking.waiting == 14
        assert stage.parking.held_of(number(stage, A)) == (8, 8 * len(SETS[A]))
        assert stage.parking.held_of(number(stage, C)) == (2, 2 * len(SETS[C]))
        assert stage.count("refusals")["too_many_held"] == 4 + 8 + 10 + 1
        assert sum(stage.count("holds").values()) == 14

    def test_bytes_count_too(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held_bytes = 4000
        stage.unreachable |= {A, B}
        big = encode_command("SET", KEY_A, b"x" * 2100)  # more than a half by itself: of such, there is one
        assert len(hold(stage, big, 3)) == 1
        assert len(hold(stage, encode_command("SET", KEY_A, b"x" * 900), 9)) == 2
        assert len(hold(stage, SETS[A], 1)) == 1
        assert len(hold(stage, encode_command("SET", KEY_B, b"x" * 900), 9)) == 2
        assert stage.parking.held_bytes == sum(stage.parking.held_of(number(stage, one))[1] for one in (A, B))

    @pytest.mark.parametrize("first", [20, 2100, 9000])
    def test_one_is_held_however_long_it_is(self, play: Play, first: int) -> None:
        """Whatever else is held for other nodes; and it takes nothing away from those that come after it."""
        stage = play(**PATIENT)
        stage.parking.max_held_bytes = 4000
        stage.unreachable |= {A, B}
        assert len(hold(stage, encode_command("SET", KEY_B, b"x" * 900), 9)) == 3
        assert len(hold(stage, encode_command("SET", KEY_A, b"x" * first), 1)) == 1
        assert len(hold(stage, SETS[A], 3)) == 3
        assert len(hold(stage, encode_command("SET", KEY_A, b"x" * 9000), 2)) == (first < 2100)

    def test_one_client_leaves_room_for_others(self, play: Play) -> None:
        """It has half of its node's share at most."""
        stage = play(**PATIENT)
        stage.parking.max_held = 16
        stage.unreachable |= {A, B}
        parts = stage.client()
        parts.send(SETS[A] * 9)
        stage.turn()
        assert stage.parking.held_of(number(stage, A))[0] == 4
        for _ in range(3):  # a look at them changes nothing
            stage.parking.wake_all()
            stage.turn()
        others = hold(stage, SETS[A], 9)
        assert len(others) == 4
        parts.close()
        stage.turn()
        stage.parking.wake_all()
        assert stage.parking.waiting == len(others)
        assert len(hold(stage, SETS[A], 9)) == 8 - len(others)

    def test_two_large_clients_leave_room_too(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held = 36
        lose_reads(stage, 2, 14)
        assert stage.parking.held_of(number(stage, A))[0] == 14  # 9 of the first
        assert len(hold(stage, SETS[A], 9)) == 18 - 14

    def test_any_number_of_large_clients_leaves_room_for_small_ones(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held = 400
        lose_reads(stage, 8, 30)
        assert stage.parking.held_of(number(stage, A))[0] == 5 * 30 + 16 + 16 + 9
        assert len(hold(stage, SETS[A], 20)) == 9

    def test_the_parts_of_one_command_are_held_together(self, play: Play) -> None:
        """Beyond any share, as long as an eighth of the whole is left; nobody's share is smaller for it."""
        stage = play(**PATIENT)
        stage.parking.max_held = 4000
        stage.unreachable |= {A, B}
        huge = encode_command("MGET", *(b"k%d" % n for n in KEYS_A[:1700]))
        for held in (1700, 3400, 3500):
            stage.pour(stage.client(), huge)
            stage.turn(6)
            assert stage.parking.waiting == stage.parking.held_of(number(stage, A))[0] == held
        assert stage.count("refusals")["too_many_held"] == 3 * 1700 - 3500
        for _ in range(3):  # a look at them changes nothing
            stage.parking.wake_all()
            stage.turn()
        assert stage.parking.waiting == 3500
        assert len(hold(stage, SETS[B], 9)) == 9
        assert len(hold(stage, SETS[A], 500)) == 491
        assert stage.parking.waiting == 4000  # and that is all there is, in any case
        stage.unreachable.clear()
        stage.turn(6)
        stage.parking.wake_all()
        stage.turn(6)
        assert (stage.parking.waiting, stage.parking.held_bytes) == (0, 0)

    def test_the_bytes_of_one_command_are_held_together(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held_bytes = 80_000
        stage.unreachable |= {A}
        for size in (2000, 1500, 4000):
            pairs = [word for n in KEYS_A[:17] for word in (b"k%d" % n, b"x" * size)]
            stage.client().send(encode_command("MSET", *pairs))
            stage.turn(6)
            assert (stage.count("refusals")["too_many_held"] > 0) == (size == 4000)
        assert 17 * 3500 < stage.parking.held_bytes <= 80_000 + 4100  # the longest is not counted
        assert len(hold(stage, SETS[A], 9)) == 9

    def test_behind_another_command_they_are_held_one_by_one(self, play: Play) -> None:
        """Only of the oldest command of a client they count as one: a pipeline of huge ones has its share, no more."""
        stage = play(**PATIENT)
        stage.parking.max_held = 400
        stage.unreachable |= {A}
        client = stage.client()
        client.send(SETS[A] + encode_command("MGET", *(b"k%d" % n for n in KEYS_A[:300])))
        stage.turn(6)
        assert stage.parking.waiting == 100

    def test_the_bytes_of_one_client_leave_room_for_others(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held_bytes = 8000
        stage.unreachable |= {A}
        stage.client().send(encode_command("SET", KEY_A, b"x" * 900) * 9)
        stage.turn()
        assert stage.parking.held_of(number(stage, A))[0] == 3
        assert len(hold(stage, encode_command("SET", KEY_A, b"x" * 900), 9)) == 2

    def test_what_is_held_stays_held(self, play: Play) -> None:
        """Others that come, a look at it, or a lower limit take nothing away from it; it goes on in its order."""
        stage = play(**PATIENT)
        stage.parking.max_held = 10
        stage.unreachable |= {A, B}
        clients = hold(stage, SETS[A], 5) + hold(stage, SETS[B], 2)
        stage.parking.max_held = 1
        for _ in range(3):
            stage.parking.wake_all()
            stage.turn()
        assert stage.parking.waiting == 7
        assert stage.parking.held_of(number(stage, A))[0] == 5
        stage.unreachable.clear()
        stage.turn(6)
        stage.parking.wake_all()
        exchange(stage, A, SETS[A] * 5, b"+OK\r\n" * 5)
        exchange(stage, B, SETS[B] * 2, b"+OK\r\n" * 2)
        assert [client.get() for client in clients] == [b"+OK\r\n"] * 7
        assert (stage.parking.waiting, stage.parking.held_bytes) == (0, 0)
        assert stage.parking.held_of(number(stage, A)) == (0, 0)

    def test_the_server_s_own_words_come_first(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held = 2
        first, second = stage.client(), stage.client()
        first.send(SET_A)
        second.send(SET_A)
        stage.turn()
        exchange(stage, A, SET_A * 2, REFUSALS["loading"] * 2)
        assert (first.get(), second.get()) == (b"", REFUSALS["loading"])
        assert stage.count("holds")["loading"] == 1
        assert stage.count("refusals")["too_many_held"] == 1
        stage.parking.wake_all()
        exchange(stage, A, SET_A, b"+OK\r\n")
        assert first.get() == b"+OK\r\n"

    def test_a_client_that_leaves_frees_its_place(self, play: Play) -> None:
        stage = play(**PATIENT)
        stage.parking.max_held = 2
        stage.unreachable.add(A)
        (client,) = hold(stage, SET_A, 2)
        client.close()
        stage.turn()
        stage.parking.wake_all()
        assert len(hold(stage, SET_A, 2)) == 1


class TestWhatIsHeldForANodeThatIsDown:
    def test_it_is_not_tried_before_a_probe_has_succeeded(self, play: Play) -> None:
        stage = play(failover_s=100.0, timeout_s=100.0)
        client = sent_while_down(stage, SET_A, 30)
        retried = stage.count("retries")["node_down", "retried"]
        stage.turn(30)
        assert stage.count("retries")["node_down", "retried"] == retried <= 2
        assert stage.count("holds")["connection_lost"] == 1
        stage.unreachable.clear()
        exchange(stage, A, SET_A, b"+OK\r\n")
        assert client.get() == b"+OK\r\n"

    def test_it_follows_its_slot(self, play: Play) -> None:
        """The slot is another node's now: nothing waits for the dead one any more."""
        stage = play(failover_s=100.0, timeout_s=100.0)
        client = sent_while_down(stage, SET_A, 9)
        assert stage.parking.held_of(number(stage, A))[0] == 1
        stage.publish([(B, [], [(0, 16383)]), (A, [], [])])
        exchange(stage, B, SET_A, b"+OK\r\n")
        assert client.get() == b"+OK\r\n"

    def test_a_command_that_comes_later_is_refused_at_once(self, play: Play) -> None:
        stage = play(failover_s=0.05, timeout_s=100.0)
        client = sent_while_down(stage, SET_A, 0)
        assert stage.hear(client) == errors.NODE_DOWN
        client.send(SET_A)
        stage.turn(1)
        assert client.get() == errors.NODE_DOWN
        assert stage.count("refusals")["node_down"] == 2


class TestPipelines:
    """One of them waits for one deadline, however many of its commands are for a shard that does not answer."""

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_hundred_commands_of_a_dead_shard(self, play: Play, kept: bool) -> None:
        stage = play(timeout_s=200.0, failover_s=10_000.0)
        stage.unreachable.add(A)
        hold(stage, GET_A, 1)  # the node is known to be down: else the first of them would go out together
        client = stage.client()
        client.send((SET_A + (GET_B if kept else b"")) * 100)
        got = b""
        replies = 200 if kept else 100

        def answered() -> bool:
            nonlocal got
            for end in stage.nodes.get(B, []):
                end.send(b"$-1\r\n" * (len(end.get()) // len(GET_B)))
            got += client.get()
            return got.count(b"\r\n") == replies

        stage.until(lambda: stage.pass_time(20.0) or answered())
        assert stage.ahead_ns < 25 * 200 * 10**9
        assert got == (errors.NODE_DOWN + (b"$-1\r\n" if kept else b"")) * 100
        refusals = stage.count("refusals")
        assert (refusals["held_too_long"], refusals["pipeline"]) == (1 + 1, 99)
        # The next one has seen that and is sent all the same: it is held anew.
        stage.settings.update(timeout_ns=10**15)
        client.send(SET_A)
        stage.turn(6)
        assert (client.get(), stage.parking.waiting) == (b"", 1)
        stage.unreachable.clear()
        exchange(stage, A, SET_A, b"+OK\r\n")
        assert client.get() == b"+OK\r\n"

    def test_a_client_that_never_rests(self, play: Play) -> None:
        """One connection for a whole application has always something under way: what it sends later is held anew."""
        stage = play(timeout_s=100.0, failover_s=10_000.0)
        stage.unreachable.add(A)
        hold(stage, GET_A, 1)
        client = stage.client()
        client.send(SET_A + GET_B)
        stage.turn(6)
        stage.pass_time(150.0)
        assert stage.count("refusals")["held_too_long"] == 2
        stage.settings.update(timeout_ns=10**15)
        stage.turn()
        assert (client.get(), stage.node(B).get()) == (errors.NODE_DOWN, GET_B)
        client.send(SET_A)
        stage.turn(6)
        assert stage.parking.waiting == 1
        stage.node(B).send(b"$-1\r\n")
        stage.unreachable.clear()
        exchange(stage, A, SET_A, b"+OK\r\n")
        assert client.get() == b"$-1\r\n+OK\r\n"

    def test_what_a_node_refuses(self, play: Play) -> None:
        """CLUSTERDOWN of a node that is well: each is asked once, and waits no more."""
        stage = play(timeout_s=0.1)
        client = stage.client()
        client.send(SET_A * 100)
        got = b""

        def answered() -> bool:
            nonlocal got
            for end in stage.nodes.get(A, []):
                end.send(REFUSALS["clusterdown"] * (len(end.get()) // len(SET_A)))
            got += client.get()
            return got.count(b"\r\n") == 100

        began_s = time.monotonic()
        stage.until(answered)
        assert got == REFUSALS["clusterdown"] * 100
        assert time.monotonic() - began_s < 50 * 0.1

    def test_a_redirection_is_followed_all_the_same(self, play: Play) -> None:
        stage = play(timeout_s=0.1, failover_s=1000.0)
        stage.unreachable.add(A)
        client = stage.client()
        client.send(SET_A + SET_B)
        assert stage.hear(client) == errors.NODE_DOWN
        exchange(stage, B, SET_B, moved(C, 7365))
        exchange(stage, C, SET_B, b"+OK\r\n")
        assert client.get() == b"+OK\r\n"

    def test_a_timeout_at_a_hung_node_counts(self, play: Play) -> None:
        """The node takes commands and does not answer; then it is gone, and nobody waits a second time."""
        stage = play(timeout_s=0.1, failover_s=1000.0, max_pending=1)
        client = stage.client()
        client.send(GET_A + SET_A)
        stage.turn()
        stage.unreachable.add(A)
        assert stage.node(A).get() == GET_A
        got = bytearray()

        def told() -> bool:
            got.extend(client.get())
            return bool(got)

        stage.until(told, sweep=True)
        assert bytes(got) == errors.TIMED_OUT
        stage.node(A).close()
        stage.turn(9)
        assert stage.hear(client) in (errors.NODE_DOWN, errors.MAYBE_EXECUTED)


def test_a_split_command_whose_shard_has_no_room(play: Play) -> None:
    """A part that is refused fails the whole, in Redis's way: never a nil in its place."""
    stage = play(**PATIENT)
    stage.parking.max_held = 2
    stage.unreachable.add(A)
    hold(stage, SET_A, 1)
    client = stage.client()
    client.send(encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    exchange(stage, B, encode_command("MGET", KEY_B), b"*1\r\n$-1\r\n")
    assert client.get() == HELD


def test_reads_of_replicas_count_for_their_shard(play: Play) -> None:
    stage = play([(A, [], [(0, 16383)])], reads="replica", **PATIENT)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    assert stage.parking.held_of(number(stage, A)) == (1, len(GET_A))
