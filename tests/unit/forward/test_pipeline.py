"""What is under way on one connection: the window and the queue, ghosts and cancelled places."""

from __future__ import annotations

import pytest

from proxy.cluster.slot import slot_of
from proxy.forward.backend import Backend, BackendState
from proxy.forward.ports import PushPort
from proxy.forward.request import live
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, SLOT_A, TEXTS, A, B, C, Play, Stage
from tests.support.dialogue import ASKING, GET_A, PING, SET_A, always, ask, exchange, pending


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
    late, after = stage.client(timeout_ns=20_000_000), stage.client(timeout_ns=10**12)
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


# -- windows


def sized(size: int, n: object = "v") -> bytes:
    """A write of about that size."""
    return encode_command("SET", KEY_A, str(n).encode().ljust(size, b"."))


def connecting(stage: Stage) -> Backend:
    """A's connection, under way for as long as the test leaves it so."""
    stage.router.warm(2)
    wanted, stage.wanted = stage.wanted, []
    (backend,) = (backend for backend in wanted if backend.node.address == A)
    return backend


def arrive(stage: Stage, backend: Backend) -> None:
    stage.connect(backend)
    stage.turn()


def test_a_full_window_parks_and_goes_on_in_order(play: Play) -> None:
    """The first that finds it full waits, its client sends nothing that could overtake, and so do others in turn."""
    stage = play(max_window=2000, backoff_s=1000.0, timeout_s=5000.0)
    clients = [stage.client() for _ in range(6)]
    frames = [sized(900, n) for n in range(6)]
    for client, frame in zip(clients, frames, strict=True):
        client.send(frame + GET_A)
        stage.turn(1)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frames[0] + GET_A + frames[1] + GET_A + frames[2]
    assert stage.parking.waiting == 4  # the third one's GET, and three writes
    assert stage.count("retries")["node_busy", "retried"] == 4
    node.send(b"+OK\r\n")
    stage.turn()
    assert node.get() == b""  # half of it must be free, else every answer would wake everybody
    node.send(bulk("0") + b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert node.get() == GET_A + frames[3] + frames[4]
    assert stage.parking.waiting == 1
    node.send(b"+OK\r\n" + bulk("2") + b"+OK\r\n+OK\r\n")
    stage.turn()
    assert node.get() == GET_A + GET_A + frames[5]
    node.send(bulk("3") + bulk("4") + b"+OK\r\n")
    stage.turn()
    exchange(stage, A, GET_A, bulk("5"))
    assert [client.get() for client in clients] == [b"+OK\r\n" + bulk(n) for n in range(6)]
    assert (stage.parking.waiting, stage.parking.bytes, pending(stage)) == (0, 0, 0)


def test_a_full_window_until_the_deadline(play: Play) -> None:
    """A node that takes nothing: its clients are told that it is busy."""
    stage = play(max_window=1000, timeout_s=0.02)
    client, other = stage.client(timeout_ns=10**12), stage.client()
    client.send(sized(2000))
    stage.turn()
    other.send(SET_A)
    assert stage.hear(other) == TEXTS["full"]
    assert stage.node(A).get() == sized(2000)
    gave_up = {key for key, count in stage.count("retries").items() if key[1] == "gave_up" and count}
    assert gave_up == {("node_busy", "gave_up")}


def test_only_so_many_bytes_are_parked(play: Play) -> None:
    """What comes then fails at once; what is parked already goes on."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    stage.parking.max_bytes = 3000
    clients = [stage.client() for _ in range(5)]
    frames = [sized(1600, n) for n in range(5)]
    for client, frame in zip(clients, frames, strict=True):
        client.send(frame + PING)
        stage.turn(1)
    stage.turn()
    assert [client.get() for client in clients] == [b""] * 3 + [TEXTS["full"] + b"+PONG\r\n"] * 2
    assert (stage.parking.waiting, stage.parking.bytes) == (2, len(frames[1] + frames[2]))
    assert stage.count("retries")["node_busy", "gave_up"] == 2
    for n in range(3):
        exchange(stage, A, frames[n], b"+OK\r\n")
    stage.turn()
    assert [client.get() for client in clients[:3]] == [b"+OK\r\n+PONG\r\n"] * 3


@pytest.mark.parametrize("name", ["MGET", "MSET"])
@pytest.mark.parametrize("busy", [False, True])
def test_one_command_larger_than_the_window_goes_whole(play: Play, name: str, busy: bool) -> None:
    """Its parts would wait for one another otherwise; when the window is full before it, all of it waits."""
    stage = play(max_window=1000, timeout_s=5000.0)
    client, other = stage.client(), stage.client()
    if busy:
        other.send(sized(1500))
        stage.turn()
    keys = [f"{{{n}}}{'k' * 300}" for n in range(40)]
    client.send(encode_command(name, *(word for key in keys for word in ([key] if name == "MGET" else [key, "v"]))))
    stage.turn()
    if busy:
        exchange(stage, A, sized(1500), b"+OK\r\n")
        stage.turn()
    parts = 0
    for address in (A, B, C):
        frames = CommandReader().feed(stage.node(address).get())
        assert sum(len(frame) for frame, _ in frames) > 2000
        parts += len(frames)
        stage.node(address).send((array([bulk("v")]) if name == "MGET" else b"+OK\r\n") * len(frames))
    assert parts == len({slot_of(key.encode()) for key in keys}) > 30
    stage.turn()
    assert client.get() == (array([bulk("v")] * 40) if name == "MGET" else b"+OK\r\n")
    assert stage.count("retries")["node_busy", "gave_up"] == 0


def test_nothing_of_a_client_that_left_waits_for_room(play: Play) -> None:
    """12 clients that come, send much and leave: what is parked for them is dropped, never sent."""
    stage = play(max_window=100_000, backoff_s=1000.0, timeout_s=5000.0)
    stage.router.warm(2)
    stage.turn()
    for n in range(12):
        client = stage.client()
        stage.pour(client, sized(90_000, n))
        client.close()
        stage.turn()
    node = stage.node(A)
    got = stage.drink(node)
    assert got == sized(90_000, 0) + sized(90_000, 1)
    node.send(b"+OK\r\n+OK\r\n")
    stage.turn()
    assert (stage.parking.waiting, stage.parking.bytes, node.get(), live()) == (0, 0, b"", stage.live)


def test_a_window_that_was_full_when_the_connection_is_lost(play: Play) -> None:
    """There is room on the next one: nobody waits for his backoff."""
    stage = play(max_window=100, backoff_s=1000.0, timeout_s=5000.0)
    one, two = stage.client(), stage.client()
    one.send(sized(200))
    stage.turn()
    two.send(SET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.parking.waiting) == (sized(200), 1)
    stage.node(A).close()
    stage.turn(6)
    assert one.get() == TEXTS["lost"]
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert two.get() == b"+OK\r\n"


def test_asking_for_a_node_whose_window_is_full(play: Play) -> None:
    """The prefix is not left there without its command."""
    stage = play(max_window=1000, backoff_s=1000.0, timeout_s=5000.0)
    one, two = stage.client(), stage.client()
    one.send(encode_command("SET", KEY_B, b"v" * 1500))
    two.send(SET_A)
    stage.turn()
    assert stage.node(B).get() == encode_command("SET", KEY_B, b"v" * 1500)
    exchange(stage, A, SET_A, ask(B))
    assert (stage.node(B).get(), stage.parking.waiting) == (b"", 1)
    stage.node(B).send(b"+OK\r\n")  # room: tried again where it belongs
    stage.turn()
    exchange(stage, A, SET_A, ask(B))
    exchange(stage, B, ASKING + SET_A, b"+OK\r\n+OK\r\n")
    assert (one.get(), two.get()) == (b"+OK\r\n", b"+OK\r\n")


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
    assert backend.pending == 6 or backend.pending == 3
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
    assert stage.parking.waiting == 1
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
