"""Requests that wait for a better moment: how long and in which order."""

from __future__ import annotations

import pytest

from proxy.forward.backend import BackendState
from proxy.resp.encode import encode_command
from tests.support.datapath import KEY_A, SLOT_A, A, B, Play
from tests.support.dialogue import GET_A, REFUSALS, SET_A, SET_B, exchange


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


def test_those_of_one_slot_go_on_together(play: Play) -> None:
    """Whenever each was parked: the slot may change hands while the first is under way."""
    stage = play(backoff_s=800.0, timeout_s=9000.0)
    client = stage.client()
    first, second = (encode_command("SET", KEY_A, n) for n in range(2))
    client.send(first + second)
    stage.turn()
    exchange(stage, A, first + second, REFUSALS["tryagain"])
    stage.pass_time(100.0)
    stage.node(A).send(REFUSALS["tryagain"])
    stage.turn(2)
    assert stage.parking.waiting == 2
    stage.pass_time(900.0)
    exchange(stage, A, first + second, b"+0\r\n+1\r\n")
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


def test_the_reason_given_up_for_is_the_last(play: Play) -> None:
    stage = play(timeout_s=500.0, backoff_s=1000.0)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, REFUSALS["loading"])
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn()
    stage.parking.wake_all()
    stage.turn()
    stage.pass_time(600.0)
    assert stage.hear(client) == REFUSALS["loading"]
    retries = stage.count("retries")
    assert [key for key, count in retries.items() if key[1] == "gave_up" and count] == [("node_down", "gave_up")]


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


WRITES = [encode_command("SET", KEY_A, n) for n in range(4)]


@pytest.mark.parametrize("why", ["not reached", "lost unsent", "refused"])
def test_who_is_parked_first_is_not_always_the_first(play: Play, why: str) -> None:
    """The last of one client's writes finds the window full and is not begun; then the earlier ones come back."""
    stage = play(max_window=80, backoff_s=1000.0, timeout_s=5000.0)
    stage.router.warm(2)
    (backend,) = (backend for backend in stage.wanted if backend.node.address == A)
    stage.wanted.clear()
    client = stage.client()
    client.send(b"".join(WRITES[:4]))
    stage.turn()
    assert (backend.pending, stage.parking.waiting, stage.accepted.pending) == (3, 0, 3)
    if why == "refused":
        stage.connect(backend)
        stage.turn()
        exchange(stage, A, b"".join(WRITES[:3]), REFUSALS["loading"] * 3)
    else:
        stage.unreachable.add(A)
        stage.connect(backend)
        stage.turn(1)
        stage.unreachable.clear()
    done = b""
    for _ in range(8):
        stage.parking.wake_all()
        stage.turn()
        got = stage.node(A).get()
        done += got
        stage.node(A).send(b"+OK\r\n" * got.count(b"SET"))
        stage.turn()
    assert done == b"".join(WRITES[:4])
    assert client.get() == b"+OK\r\n" * 4


def test_any_number_of_bytes_may_be_parked(play: Play) -> None:
    """What has begun is never given up for its size: 5 x 5 MB that a loading node refuses."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0, max_window=64 << 20)
    frame = encode_command("SET", KEY_A, b"v" * 5_000_000)
    clients = [stage.client() for _ in range(5)]
    for client in clients:
        sent = got = 0
        while got < len(frame):
            sent += client.offer(frame[sent : sent + 65536])
            stage.turn(1)
            got += len(stage.node(A).get()) if A in stage.nodes else 0
        assert got == len(frame)
    stage.node(A).send(REFUSALS["loading"] * 5)
    stage.turn()
    assert [client.get() for client in clients] == [b""] * 5
    assert stage.parking.waiting == 5
    assert stage.count("retries")["loading", "gave_up"] == 0
    stage.parking.wake_all()
    stage.turn()
    assert stage.drink(stage.node(A)) == frame * 5
    stage.node(A).send(b"+OK\r\n" * 5)
    stage.turn()
    assert [client.get() for client in clients] == [b"+OK\r\n"] * 5


def test_those_of_one_slot_keep_their_order_and_others_go_first(play: Play) -> None:
    """Each has its own time; one whose time has come waits for those before it in its slot, and for no others."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    first, second, other = stage.client(), stage.client(), stage.client()
    first.send(WRITES[0])
    stage.turn()
    exchange(stage, A, WRITES[0], REFUSALS["loading"])
    stage.parking.backoff_min_ns = stage.parking.backoff_max_ns = 1
    second.send(WRITES[1])
    other.send(SET_B)
    stage.turn()
    assert stage.node(A).get() == WRITES[1]  # what was not parked is not held back
    stage.node(A).send(REFUSALS["loading"])
    exchange(stage, B, SET_B, REFUSALS["loading"])
    exchange(stage, B, SET_B, b"+OK\r\n")
    stage.turn(6)
    assert (stage.node(A).get(), stage.parking.waiting) == (b"", 2)
    stage.parking.wake_all()
    stage.turn()
    exchange(stage, A, WRITES[0] + WRITES[1], b"+0\r\n+1\r\n")
    assert [client.get() for client in (first, second, other)] == [b"+0\r\n", b"+1\r\n", b"+OK\r\n"]
