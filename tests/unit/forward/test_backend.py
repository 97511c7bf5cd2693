"""A connection to a node: pipelining, pairing, what is passed on when, losses, deadlines, its figures."""

from __future__ import annotations

import os

import pytest

from proxy.forward.backend import BackendState
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, TEXTS, A, B, C, Play, Stage

GET_A, GET_B = encode_command("GET", KEY_A), encode_command("GET", KEY_B)
SET_A = encode_command("SET", KEY_A, "1")


def pending(stage: Stage) -> int:
    return sum(int(node.figures()["pending"]) for node in stage.router.nodes.values())


def test_one_send_for_all_clients_of_a_batch(play: Play) -> None:
    stage = play(packets=True)
    stage.router.warm(2)
    stage.turn()
    clients = [stage.client() for _ in range(5)]
    for n, client in enumerate(clients):
        client.send(encode_command("SET", KEY_A, n) + GET_A)
    stage.turn()
    assert stage.node(A).packets() == [b"".join(encode_command("SET", KEY_A, n) + GET_A for n in range(5))]
    stage.node(A).send(b"+OK\r\n+1\r\n+OK\r\n+2\r\n+OK\r\n+3\r\n+OK\r\n+4\r\n+OK\r\n+5\r\n")
    stage.turn()
    assert [client.packets() for client in clients] == [[b"+OK\r\n+%d\r\n" % n] for n in range(1, 6)]


def test_what_waits_for_the_connection_leaves_together(play: Play) -> None:
    stage = play(packets=True)
    stage.unreachable.add(A)
    stage.router.warm(2)
    backend = stage.router.nodes[A].backends()[0]
    stage.wanted.clear()
    one, two = stage.client(), stage.client()
    one.send(GET_A)
    two.send(SET_A)
    stage.turn()
    assert (backend.state, backend.pending) == (BackendState.CONNECTING, 2)
    stage.unreachable.clear()
    stage.connect(backend)
    stage.turn()
    assert stage.node(A).packets() == [GET_A + SET_A]
    assert backend.state == BackendState.UP
    stage.node(A).send(b"+1\r\n+2\r\n")
    stage.turn()
    assert (one.get(), two.get()) == (b"+1\r\n", b"+2\r\n")


REPLIES = [
    b"+OK\r\n",
    b"-ERR bad\r\n",
    b":-12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$6\r\nab\r\ncd\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*2\r\n:1\r\n$1\r\nx\r\n-ERR nested\r\n",
    b"%1\r\n+k\r\n~1\r\n#t\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n",
    b"=5\r\ntxt:x\r\n",
]


def test_replies_cut_anywhere(play: Play) -> None:
    stage = play()
    clients = [stage.client() for _ in range(3)]
    stream = b"".join(REPLIES)
    for cut in range(len(stream) + 1):
        for n in range(len(REPLIES)):
            clients[n % 3].send(GET_A)
            stage.turn(1)
        stage.turn()
        node = stage.node(A)
        assert node.get() == GET_A * len(REPLIES)
        node.send(stream[:cut])
        stage.turn()
        node.send(stream[cut:])
        stage.turn()
        assert [client.get() for client in clients] == [b"".join(REPLIES[n::3]) for n in range(3)], cut
    assert len(stage.nodes[A]) == 1


def test_replies_byte_by_byte(play: Play) -> None:
    stage = play()
    client = stage.client()
    stream = b"".join(REPLIES)
    client.send(GET_A * len(REPLIES))
    stage.turn()
    got = b""
    for n in range(len(stream)):
        stage.node(A).send(stream[n : n + 1])
        stage.turn(1)
        got += client.get()
    assert got == stream


def test_replies_larger_than_the_receive_buffer(play: Play) -> None:
    stage = play()
    one, two = stage.client(), stage.client()
    one.send(GET_A)
    stage.turn()
    two.send(GET_A)
    stage.turn()
    large = b"*3\r\n" + bulk(os.urandom(300_000)) + bulk(b"\r\n" * 70_000) + bulk("end")
    got = b""
    for n in range(0, len(large), 40_000):
        stage.node(A).send(large[n : n + 40_000] + (bulk("two") if n + 40_000 >= len(large) else b""))
        stage.turn()
        got += one.get()
    assert got == large
    assert two.get() == bulk("two")


def test_an_error_is_never_passed_on_in_pieces(play: Play) -> None:
    """It might be a redirection. A line without an end breaks the protocol."""
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    line = b"-ERR " + b"x" * 100_000 + b"\r\n"
    stage.node(A).send(line[:-1])
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(line[-1:])
    stage.turn()
    assert client.get() == line
    client.send(SET_A)
    stage.turn()
    stage.pour(stage.node(A), b"-ERR " + b"x" * 140_000)
    assert client.get() == TEXTS["lost"]
    assert stage.lost_for == ["an endless line in a reply"]


def test_pushes_are_dropped(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nb\r\n"
    large = b">2\r\n+message\r\n" + bulk(b"m" * 30_000)
    stage.node(A).send(push + bulk("1") + push + large[:20_000])
    stage.turn()
    assert client.get() == bulk("1")
    stage.node(A).send(large[20_000:] + bulk("2") + push)
    stage.turn()
    assert client.get() == bulk("2")
    stage.node(A).send(push + push[:9])  # with nothing pending too
    stage.turn()
    stage.node(A).send(push[9:])
    stage.turn()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("3"))
    stage.turn()
    assert client.get() == bulk("3")
    assert stage.lost_for == []


@pytest.mark.parametrize("garbage", [b"hello\r\n", b"$-7\r\n", b"*x\r\n", b"\0", b"$3\r\nabcd\r\n"])
def test_garbage_costs_the_connection(play: Play, garbage: bytes) -> None:
    """A write that was sent is not repeated, a read is; both on a new connection with a clean stream."""
    stage = play()
    one, two, three = (stage.client() for _ in range(3))
    for client, frame in ((one, GET_A), (two, SET_A), (three, GET_A)):
        client.send(frame)
        stage.turn(1)
    stage.turn()
    stage.node(A).send(bulk("1") + garbage)
    stage.turn(6)
    assert stage.lost_for == ["a malformed reply"]
    stage.nodes[A][0].get()
    assert stage.nodes[A][0].closed
    assert (one.get(), two.get()) == (bulk("1"), TEXTS["lost"])
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("3"))
    stage.turn()
    assert three.get() == bulk("3")


def test_a_reply_that_nothing_was_asked_for(play: Play) -> None:
    stage = play()
    stage.router.warm(2)
    stage.turn()
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    stage.node(B).send(bulk(b"v" * 20_000)[:10_000])
    stage.turn()
    unasked = "a reply that nothing was asked for"
    assert stage.lost_for == [unasked, f"the beginning of {unasked}"]
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("1") + b"+OK\r\n")
    stage.turn()
    assert client.get() == bulk("1")
    assert len(stage.lost_for) == 3


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


def test_a_stalled_connection_is_given_up(play: Play) -> None:
    stage = play(stall_s=0.0)
    client = stage.client()
    client.send(GET_A + SET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A + SET_A
    stage.router.sweep()
    stage.turn(6)
    assert stage.lost_for == ["stalled: nothing came back in time"]
    assert stage.nodes[A][0].closed
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + TEXTS["lost"]
    stage.router.sweep()  # nothing pending: nothing stalls
    stage.turn()
    assert len(stage.lost_for) == 1


def test_what_was_unsent_is_sent_again_writes_too(play: Play) -> None:
    """Only what the kernel took of the window may have been executed."""
    stage = play()
    stage.router.warm(2)
    stage.turn()
    one, two, three = (stage.client() for _ in range(3))
    stage.pour(one, encode_command("SET", KEY_A, b"v" * 1_000_000))  # more than the kernel takes
    two.send(SET_A)
    three.send(GET_A)
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    assert one.get() == two.get() == three.get() == b""
    assert stage.drink(stage.node(A)) == encode_command("SET", KEY_A, b"v" * 1_000_000) + SET_A + GET_A
    stage.node(A).send(b"+1\r\n+2\r\n+3\r\n")
    stage.turn()
    assert [client.get() for client in (one, two, three)] == [b"+1\r\n", b"+2\r\n", b"+3\r\n"]
    assert stage.count("retries")["connection_lost", "retried"] == 3
    assert stage.count("retries")["connection_lost", "unsafe"] == 0


def test_figures(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    node = stage.router.nodes[A]
    assert (node.label, node.address, node.up, node.down, node.gone) == ("10.0.0.1:7001", A, False, False, False)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    figures = node.figures()
    assert figures["connections"] == {"idle": 0, "connecting": 0, "up": 1, "backoff": 0, "closed": 0}
    assert (figures["role"], figures["up"], figures["pending"]) == ("primary", True, 1)
    assert repr(node.backends()[0]) == "<Backend 10.0.0.1:7001 RESP2 up pending=1>"
    stage.node(A).send(bulk("1"))
    stage.turn()
    figures = node.figures()
    assert (figures["pending"], sum(figures["buckets"])) == (0, 1)
    assert 0 < figures["sum_s"] < 10
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn(1)
    stage.turn(1)
    figures = node.figures()
    assert figures["connections"]["backoff"] == 1
    assert (figures["up"], figures["connect_failures"] > 0, node.down) == (False, True, True)
    stage.unreachable.clear()
    stage.turn()
    assert (node.up, node.down) == (True, False)
    assert stage.router.nodes[B].figures()["role"] == "replica"


def test_a_closed_backend_takes_no_descriptor(play: Play) -> None:
    stage = play()
    stage.router.warm(2)
    backend = stage.router.nodes[A].backends()[0]
    backend.close()
    assert backend.state == BackendState.CLOSED
    with pytest.raises(OSError, match="cannot watch"):
        backend.attach(0)
    backend.connect_failed()
    assert backend.state == BackendState.CLOSED
    assert not stage.router.nodes[A].down
    with open(os.devnull) as file, pytest.raises(OSError, match="cannot watch"):
        stage.router.nodes[B].backends()[0].attach(file.fileno())
