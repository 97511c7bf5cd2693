"""What is under way on one connection: the window and the queue, ghosts and cancelled places."""

from __future__ import annotations

import pytest

from proxy.forward.backend import BackendState
from proxy.forward.ports import PushPort
from proxy.resp.encode import bulk, encode_command, integer
from tests.support.datapath import KEY_A, SLOT_A, TEXTS, A, C, Play
from tests.support.dialogue import (
    GET_A,
    SET_A,
    always,
    arrive,
    connecting,
    exchange,
    pending,
    sized,
)


def test_a_timed_out_request_leaves_a_ghost(play: Play) -> None:
    """The late reply is dropped, whatever its size, and the next one goes to the right request."""
    stage = play(timeout_s=0.0)
    late, after = stage.client(), stage.client(timeout_ns=10**12)
    late.send(GET_A + SET_A)
    after.send(GET_A)
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert late.get() == TEXTS["timeout"] + TEXTS["timeout_sent"]
    assert stage.count("timeouts") == 2
    assert pending(stage) == 3
    stage.router.sweep()
    stage.turn()
    assert late.get() == b""
    large = bulk(b"v" * 30_000)
    stage.node(A).send(large[:20_000])
    stage.turn()
    stage.node(A).send(large[20_000:] + b"-MOVED 1 10.0.0.9:1\r\n" + bulk("right"))
    stage.turn()
    assert (late.get(), after.get()) == (b"", bulk("right"))
    assert stage.count("redirections")["moved"] == 0
    assert pending(stage) == 0


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_place_in_the_queue_may_time_out(play: Play, victim: int) -> None:
    stage = play()
    clients = [stage.client(timeout_ns=0 if n == victim else 10**12) for n in range(3)]
    for client in clients:
        client.send(GET_A)
        stage.turn(1)
    stage.turn()
    stage.router.sweep()
    clients.append(stage.client())
    clients[3].send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("0") + bulk("1") + bulk("2") + bulk("3"))
    stage.turn()
    wanted = [bulk(n) for n in range(4)]
    wanted[victim] = TEXTS["timeout"]
    assert [client.get() for client in clients] == wanted


def test_a_reply_that_has_begun_does_not_time_out(play: Play) -> None:
    stage = play(timeout_s=0.0)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    reply = bulk(b"v" * 20_000)
    stage.node(A).send(reply[:10_000])
    stage.turn()
    stage.router.sweep()
    stage.node(A).send(reply[10_000:])
    stage.turn()
    assert client.get() == reply
    assert stage.count("timeouts") == 0


def test_what_timed_out_unsent_is_never_sent(play: Play) -> None:
    """Its client was told that it did not happen: it must not happen later."""
    stage = play()
    stage.router.warm(2)
    stage.wanted.clear()  # the connection is under way
    clients = [stage.client(timeout_ns=10**12 if n % 2 else 0) for n in range(5)]
    for n, client in enumerate(clients):
        client.send(encode_command("SET", KEY_A, "v" * n))
        stage.turn(1)
    stage.router.sweep()
    stage.turn()
    assert [client.get() for client in clients] == [TEXTS["timeout"], b""] * 2 + [TEXTS["timeout"]]
    backend = stage.router.nodes[A].backends()[0]
    assert backend.pending == 2
    last = stage.client()
    last.send(GET_A)
    stage.connect(backend)
    stage.turn()
    assert stage.node(A).get() == encode_command("SET", KEY_A, "v") + encode_command("SET", KEY_A, "vvv") + GET_A
    stage.node(A).send(b"+1\r\n+3\r\n" + bulk("last"))
    stage.turn()
    assert [client.get() for client in [*clients, last]] == [b"", b"+1\r\n", b"", b"+3\r\n", b"", bulk("last")]


def test_a_half_sent_request_that_times_out_is_sent_whole(play: Play) -> None:
    """The node has the head of it, so the stream needs the rest; what follows unsent is taken back."""
    stage = play()
    stage.router.warm(2)
    stage.turn()
    late, never, after = stage.client(timeout_ns=0), stage.client(timeout_ns=0), stage.client(timeout_ns=10**12)
    large = encode_command("SET", KEY_A, b"v" * 1_000_000)
    stage.pour(late, large)
    never.send(SET_A)
    after.send(GET_A)
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert (late.get(), never.get()) == (TEXTS["timeout_sent"], TEXTS["timeout"])
    assert stage.drink(stage.node(A)) == large + GET_A
    stage.node(A).send(b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert (late.get(), never.get(), after.get()) == (b"", b"", bulk("1"))


def test_asking_goes_with_its_command_when_both_are_unsent(play: Play) -> None:
    stage = play()
    late, after = stage.client(timeout_ns=200_000_000), stage.client(timeout_ns=10**12)
    late.send(SET_A)
    stage.turn()
    stage.node(A).send(b"-ASK 3300 %s\r\n" % str(C).encode())
    stage.loop.run()  # followed, but the connection to the other node is not made yet
    assert stage.router.nodes[C].backends()[0].state == BackendState.CONNECTING
    wanted, stage.wanted = stage.wanted, []
    stage.until(lambda: late.get() == TEXTS["timeout"], sweep=True)
    after.send(encode_command("GET", "a"))
    stage.turn()
    stage.wanted = wanted
    stage.turn()
    assert stage.node(C).get() == encode_command("GET", "a")


# -- cancelled: timed out before anything was sent


@pytest.mark.parametrize("victims", ["0", "01", "4", "34", "1", "12", "13", "024", "01234", "0134"])
def test_no_byte_of_the_cancelled_is_sent(play: Play, victims: str) -> None:
    """At the head, at the end, several in a row; the others, and who comes later, are sent and paired as ever."""
    stage = play()
    backend = connecting(stage)
    clients = [stage.client(timeout_ns=0 if str(n) in victims else 10**12) for n in range(5)]
    for n, client in enumerate(clients):
        client.send(sized(10 * n, n))
        stage.turn(1)
    stage.router.sweep()
    stage.router.sweep()
    assert backend.pending == 5 - len(victims)
    clients.append(stage.client())
    clients[5].send(sized(50, 5))
    stage.turn(1)
    arrive(stage, backend)
    survivors = [n for n in range(6) if str(n) not in victims]
    assert stage.node(A).get() == b"".join(sized(10 * n, n) for n in survivors)
    stage.node(A).send(b"".join(integer(n) for n in survivors))
    stage.turn()
    assert [client.get() for client in clients] == [
        integer(n) if n in survivors else TEXTS["timeout"] for n in range(6)
    ]
    assert pending(stage) == 0


@pytest.mark.parametrize("victims", ["1", "12", "2", "3", "123", "13"])
def test_cancelled_behind_one_that_is_half_sent(play: Play, victims: str) -> None:
    """Sending stops before them and goes on behind them, in the middle of what the kernel takes."""
    stage = play()
    stage.router.warm(2)
    stage.turn()
    clients = [stage.client(timeout_ns=0 if str(n) in victims else 10**12) for n in range(4)]
    stage.pour(clients[0], sized(1_000_000, 0))
    for n in (1, 2, 3):
        clients[n].send(sized(300 * n, n))
        stage.turn(1)
    stage.router.sweep()
    survivors = [n for n in range(4) if str(n) not in victims]
    wanted = b"".join(sized(1_000_000 if n == 0 else 300 * n, n) for n in survivors)
    assert stage.drink(stage.node(A)) == wanted
    stage.node(A).send(b"".join(integer(n) for n in survivors))
    stage.turn()
    assert [client.get() for client in clients] == [
        integer(n) if n in survivors else TEXTS["timeout"] for n in range(4)
    ]


def test_cancelled_in_rounds(play: Play) -> None:
    """One sweep after the other, so that earlier ones lie before and behind later ones."""
    stage = play()
    backend = connecting(stage)
    clients = []
    for n in range(9):
        clients.append(stage.client(timeout_ns=(10**12, 1, 5_000_000)[n % 3]))
        clients[n].send(sized(n, n))
        stage.turn(1)
    stage.router.sweep()
    assert 3 <= backend.pending <= 6
    stage.until(lambda: backend.pending == 3, sweep=True)
    arrive(stage, backend)
    assert stage.node(A).get() == b"".join(sized(n, n) for n in (0, 3, 6))
    stage.node(A).send(b"+0\r\n+3\r\n+6\r\n")
    stage.turn()
    assert [client.get() for client in clients[::3]] == [b"+0\r\n", b"+3\r\n", b"+6\r\n"]


def test_a_connection_that_fails_with_cancelled_ones_in_its_queue(play: Play) -> None:
    """They are not handed to recovery: their clients have been told."""
    stage = play()
    backend = connecting(stage)
    stage.unreachable.add(A)
    clients = [stage.client(timeout_ns=0 if n % 2 else 10**12) for n in range(4)]
    for n, client in enumerate(clients):
        client.send(sized(n, n))
        stage.turn(1)
    stage.router.sweep()
    arrive(stage, backend)
    assert stage.parking.waiting == 2
    stage.unreachable.clear()
    exchange(stage, A, sized(0, 0) + sized(2, 2), b"+0\r\n+2\r\n")
    assert [client.get() for client in clients] == [b"+0\r\n", TEXTS["timeout"], b"+2\r\n", TEXTS["timeout"]]


def test_room_that_cancelling_makes(play: Play) -> None:
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    backend = connecting(stage)
    late, after = stage.client(timeout_ns=0), stage.client()
    late.send(sized(2000))
    stage.turn(1)
    after.send(SET_A)
    stage.turn(1)
    assert (stage.parking.waiting, backend.pending) == (0, 1)
    stage.router.sweep()
    stage.turn()
    assert (late.get(), stage.parking.waiting, backend.pending) == (TEXTS["timeout"], 0, 1)
    arrive(stage, backend)
    assert stage.node(A).get() == SET_A


def test_cancelled_with_a_prefix_and_with_replies_to_swallow(play: Play) -> None:
    stage = play()
    backend = connecting(stage)
    always(stage, (SLOT_A, SET_A + GET_A, 1))
    late, after = stage.client(timeout_ns=0), stage.client()
    late.send(encode_command("ECHO", "x"))
    stage.turn(1)
    after.send(encode_command("ECHO", "x"))
    stage.turn(1)
    stage.router.sweep()
    arrive(stage, backend)
    assert stage.node(A).get() == SET_A + GET_A
    stage.node(A).send(b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert (late.get(), after.get()) == (TEXTS["timeout"], bulk("1"))


def test_half_a_push_does_not_put_off_a_deadline(play: Play) -> None:
    stage = play(timeout_s=0.0)
    stage.router.pushes = PushPort(lambda backend, frame: None)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send((b">2\r\n+message\r\n" + bulk(b"m" * 20_000))[:15_000])
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert client.get() == TEXTS["timeout"]
