"""A connection to a node: pipelining, pairing, what is passed on when, losses, deadlines, its figures."""

from __future__ import annotations

import os

import pytest

from proxy.forward.backend import BackendState
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, SLOT_A, TEXTS, A, B, End, Play, Stage
from tests.support.dialogue import ASKING, GET_A, REFUSALS, SET_A, always, ask, exchange, moved


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


@pytest.mark.parametrize("size", [8000, 8191, 8192, 8193, 20_000, 100_000])
def test_an_error_below_8_kb_is_never_passed_on_in_pieces(play: Play, size: int) -> None:
    """It might be a redirection; a longer one is none, and is streamed, but counts as an error all the same."""
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    line = b"-ERR ".ljust(size - 2, b"x") + b"\r\n"
    stage.node(A).send(line[:-2])
    stage.turn()
    begun = client.get()
    assert (begun != b"") == (size - 2 >= 8192)
    stage.node(A).send(line[-2:])
    stage.turn()
    assert begun + client.get() == line
    assert stage.count("commands")["get"]["errors"] == {"other" if begun else "ERR": 1}
    client.send(SET_A)
    stage.turn()
    exchange(stage, A, GET_A + SET_A, b"+OK\r\n")
    assert (client.get(), stage.lost_for) == (b"+OK\r\n", [])


@pytest.mark.parametrize("line", [moved(B), REFUSALS["loading"]])
def test_what_is_so_long_does_not_redirect(play: Play, line: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    long = line[:-2] + b" " + b"x" * 9000 + b"\r\n"
    stage.node(A).send(long[:8500])
    stage.turn()
    assert client.get() == long[:8500]
    stage.node(A).send(long[8500:])
    stage.turn(6)
    assert client.get() == long[8500:]
    assert B not in stage.nodes
    assert (stage.parking.waiting, stage.stale_for, sum(stage.count("redirections").values())) == (0, [], 0)


@pytest.mark.parametrize("kind", [b"+", b"-", b"("])
def test_an_endless_line_is_passed_on_as_it_comes(play: Play, kind: bytes) -> None:
    """Nothing of it is kept; a connection that is lost in the middle of it takes its client with it."""
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(GET_A)
    stage.turn()
    other.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A * 2
    begin, more = kind + b"ERR ", b"x" * 50_000
    stage.node(A).send(begin)
    got = b""
    for _ in range(60):
        stage.node(A).send(more)
        stage.turn(2)
        got += stage.drink(client)
    assert got == begin + more * 60
    stage.node(A).close()
    stage.turn(6)
    assert (client.get(), client.closed) == (b"", True)
    exchange(stage, A, GET_A, bulk("1"))
    assert other.get() == bulk("1")
    assert stage.lost_for == ["closed by the node"]


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
    assert stage.lost_for == [UNEARNED] * 2
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("1") + b"+OK\r\n")
    stage.turn()
    assert client.get() == bulk("1")
    assert stage.lost_for == [UNEARNED] * 3


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


# -- replies to what was not, or not wholly, sent

UNEARNED = "a reply to what was not wholly sent"
HALF = "an error for a command that was not wholly sent"
MEGABYTE = encode_command("SET", KEY_A, b"v" * 1_000_000)  # more than the kernel takes


def half_sent(stage: Stage, frame: bytes = MEGABYTE) -> End:
    """A client whose command has reached its node in part."""
    stage.router.warm(2)
    stage.turn()
    client = stage.client()
    stage.pour(client, frame)
    return client


@pytest.mark.parametrize("reply", [b"-ERR Protocol error: invalid bulk length\r\n", b"-ERR " + b"x" * 9000 + b"\r\n"])
@pytest.mark.parametrize("cut", [0, 1, 8300])
def test_an_error_for_half_a_command_is_the_last_of_the_connection(play: Play, reply: bytes, cut: int) -> None:
    """Delivered, for it says why; what stands behind it was not sent and goes on the next connection."""
    stage = play()
    client = half_sent(stage)
    other = stage.client()
    other.send(SET_A + GET_A)
    stage.turn()
    cut = min(cut, len(reply) - 1)
    stage.node(A).send(reply[:cut])
    stage.turn()
    assert stage.lost_for == []
    stage.node(A).send(reply[cut:] + b"+surplus\r\n")
    stage.turn(6)
    assert stage.lost_for == [HALF]
    assert client.get() == reply
    assert stage.drink(stage.node(A)) == SET_A + GET_A
    stage.node(A).send(b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert other.get() == b"+OK\r\n" + bulk("1")
    assert sum(stage.count("commands")["set"]["errors"].values()) == 1
    assert stage.count("backend_out") < 2_000_000  # no memory behind the window


WHOLE = [b"+OK\r\n", b"$-1\r\n", b"*2\r\n-ERR nested\r\n:1\r\n", bulk(b"x" * 5000)]


@pytest.mark.parametrize("reply", WHOLE + [bulk(b"x" * 200_000)[:cut] for cut in (1, 5, 30, 9000, 150_000)])
def test_a_reply_to_half_a_command(play: Play, reply: bytes) -> None:
    """Nothing of it is delivered, and the command, which the node cannot stand, is not sent again; others are."""
    stage = play()
    client, other = half_sent(stage), stage.client()
    other.send(SET_A)
    stage.turn()
    stage.node(A).offer(reply)
    stage.turn(6)
    assert stage.lost_for == [UNEARNED]
    assert client.get() == TEXTS["lost"]
    assert stage.drink(stage.node(A)) == SET_A
    assert stage.count("retries")["connection_lost", "unsafe"] == 1
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert (client.get(), other.get()) == (b"", b"+OK\r\n")


def test_half_a_command_lost_twice_fails(play: Play) -> None:
    """Perhaps the node cannot stand it: it ends two connections that others share, and no more."""
    stage = play()
    client, other = half_sent(stage), stage.client()
    other.send(SET_A)
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    assert client.get() == b""
    stage.node(A).close()
    stage.turn(6)
    assert client.get() == TEXTS["lost"]
    assert stage.node(A).get() == SET_A
    assert stage.count("retries")["connection_lost", "unsafe"] == 1


@pytest.mark.parametrize("reply", [b"+OK\r\n", b"-ERR no\r\n", b"-ER", b"$10\r\nabc", bulk(b"x" * 20_000)[:15_000]])
def test_a_reply_before_anything_of_its_command_was_sent(play: Play, reply: bytes) -> None:
    """The head of the queue is wholly unsent: what has come is nobody's."""
    stage = play()
    stage.router.warm(2)
    stage.turn()
    one, two = stage.client(), stage.client()
    one.send(GET_A)
    stage.turn()
    stage.node(A).get()
    two.send(SET_A)  # is read first, and sent when the batch ends
    stage.node(A).send(bulk("1") + reply)
    stage.loop.run()
    assert stage.lost_for == [UNEARNED]
    exchange(stage, A, SET_A, b"+done\r\n")
    assert (one.get(), two.get()) == (bulk("1"), b"+done\r\n")
    assert stage.nodes[A][0].get() == b""


REFUSED = b"-ERR max number of clients reached\r\n"


def half_a_transaction(stage: Stage) -> End:
    """A client whose MULTI, large write and EXEC have reached their node in part."""
    always(stage, (SLOT_A, encode_command("MULTI") + MEGABYTE + encode_command("EXEC"), 2))
    stage.router.warm(2)
    stage.turn()
    client = stage.client()
    client.send(encode_command("ECHO", "x"))
    stage.turn()
    return client


def test_replies_within_half_a_transaction(play: Play) -> None:
    """MULTI's was earned before all of it was sent; the last reply says why the connection is of no use."""
    stage = play()
    client = half_a_transaction(stage)
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert (stage.lost_for, client.get()) == ([], b"")
    got = stage.drink(stage.node(A))
    assert got == encode_command("MULTI") + MEGABYTE + encode_command("EXEC")
    stage.node(A).send(b"+QUEUED\r\n*1\r\n+OK\r\n")
    stage.turn()
    assert (client.get(), stage.lost_for, len(stage.nodes[A])) == (b"*1\r\n+OK\r\n", [], 1)


def test_a_last_reply_to_half_a_transaction(play: Play) -> None:
    """Its swallowed ones come before: none of what stands for EXEC's is taken for it, unless it is an error."""
    stage = play()
    client = half_a_transaction(stage)
    stage.node(A).send(b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n")
    stage.turn(6)
    assert (client.get(), stage.lost_for) == (TEXTS["lost"], [UNEARNED])
    assert stage.drink(stage.node(A)) == b""


def test_a_node_that_refuses_half_a_transaction(play: Play) -> None:
    stage = play()
    client = half_a_transaction(stage)
    stage.node(A).send(b"+OK\r\n+QUEUED\r\n" + REFUSED + b"+surplus\r\n")
    stage.turn(6)
    assert (client.get(), stage.lost_for) == (REFUSED, [HALF])


HUGE = encode_command("SET", KEY_A, b"v" * 5_000_000)


def asked_half(stage: Stage, frame: bytes = HUGE) -> End:
    """A client whose large write was redirected by ASK to B, which has it in part and has been silent."""
    stage.router.warm(2)
    stage.turn()
    client = stage.client()
    sent, got = 0, b""
    while len(got) < len(frame):
        sent += client.offer(frame[sent : sent + 65536])
        stage.turn(1)
        got += stage.node(A).get()
    assert got == frame
    stage.node(A).send(ask(B))
    stage.turn()
    return client


def test_asking_is_answered_before_all_of_its_command_was_sent(play: Play) -> None:
    """A server answers ASKING as soon as it has it: this cost the connection, and the write."""
    stage = play()
    client = asked_half(stage)
    node = stage.node(B)
    got = node.sock.recv(len(ASKING))
    assert got == ASKING
    node.send(b"+OK\r\n")
    stage.turn(1)
    assert (stage.lost_for, client.get()) == ([], b"")
    assert stage.drink(node) == HUGE
    node.send(b"$3\r\nset\r\n")
    stage.turn()
    assert (client.get(), stage.lost_for) == (b"$3\r\nset\r\n", [])
    assert len(stage.nodes[B]) == 1
    client.send(GET_A)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == bulk("1")
    assert stage.count("retries")["connection_lost", "unsafe"] == 0


@pytest.mark.parametrize("reply", [b"+OK\r\n", b"$10\r\nab", bulk(b"x" * 20_000)])
def test_what_follows_askings_reply_too_early(play: Play, reply: bytes) -> None:
    stage = play()
    client = asked_half(stage)
    stage.node(B).send(b"+OK\r\n" + reply)
    stage.turn(6)
    assert (client.get(), stage.lost_for) == (TEXTS["lost"], [UNEARNED])
    assert HUGE not in stage.drink(stage.node(A)) + stage.drink(stage.node(B))


def test_an_error_that_follows_askings_reply_too_early(play: Play) -> None:
    stage = play()
    client = asked_half(stage)
    stage.node(B).send(b"+OK\r\n" + REFUSED)
    stage.turn(6)
    assert (client.get(), stage.lost_for) == (REFUSED, [HALF])


@pytest.mark.parametrize("line", [moved(B), ask(B)])
def test_a_redirection_of_half_a_command_is_followed(play: Play, line: bytes) -> None:
    stage = play()
    client = half_sent(stage)
    stage.node(A).send(line)
    stage.turn(6)
    prefix = ASKING if line == ask(B) else b""
    assert stage.drink(stage.node(B)) == prefix + MEGABYTE
    stage.node(B).send(b"+OK\r\n" * (2 if prefix else 1))
    stage.turn()
    assert (client.get(), stage.lost_for) == (b"+OK\r\n", [HALF])
