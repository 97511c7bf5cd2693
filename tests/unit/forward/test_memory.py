"""The bound on what all clients together may hold: what is counted, who is stopped, who is closed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.forward.clients import drain
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, A, B, C, End, Play, Stage, Timer
from tests.support.dialogue import GET_A, GET_B, PING, always, moved

KB, MB = 1 << 10, 1 << 20
BIG = bulk(b"x" * (6 * MB))


def counted(stage: Stage) -> int:
    """What is held, which must be the sum of what is held for each."""
    each = [client.memory for client in stage.path.clients]
    assert min(each, default=0) >= 0
    assert sum(each) == stage.path.client_memory
    return sum(each)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def closed(stage: Stage) -> int:
    """Clients closed for the limit."""
    return int(stage.count("closed")["memory_limit"])


def without_turns(stage: Stage) -> None:
    """No time passes: none of those that are stopped is read for a while."""
    stage.loop.call_later = lambda delay_s, call: Timer(call)  # type: ignore[method-assign]


def offered(stage: Stage, streams: dict[End, bytes]) -> dict[End, int]:
    """Every client sends what the data path reads of its stream, in pieces of 64 KB and in turn; how much that is.

    Ends when nothing is read any more for some turns (those who are stopped are read now and then).
    """
    sent = dict.fromkeys(streams, 0)
    idle = 0
    while idle < 20:
        moved_on = 0
        for end, data in streams.items():
            if sent[end] < len(data) and not end.closed:
                moved_on += (n := end.offer(data[sent[end] : sent[end] + 64 * KB]))
                sent[end] += n
        stage.turn(1)
        counted(stage)
        idle = 0 if moved_on else idle + 1
    return sent


# -- what is counted


Hold = Callable[[Stage, End], Iterator[int]]


def half_a_command(stage: Stage, client: End) -> Iterator[int]:
    frame = encode_command("SET", KEY_A, b"x" * (200 * KB))
    stage.pour(client, frame[:-1])
    yield 200 * KB
    client.send(frame[-1:])
    stage.turn()
    stage.drink(stage.node(A))
    stage.node(A).send(b"+OK\r\n")


def many_arguments(stage: Stage, client: End) -> Iterator[int]:
    stage.pour(client, b"*100001\r\n$3\r\nDEL\r\n" + b"$1\r\nb\r\n" * 99_000)
    yield 99_000 * (7 + 16)
    client.send(b"$1\r\nb\r\n" * 1000)
    stage.turn()
    stage.drink(stage.node(A))
    stage.node(A).send(b":1\r\n")


def output_not_taken(stage: Stage, client: End) -> Iterator[int]:
    client.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (2 * MB)))
    yield MB


def a_reply_that_waits(stage: Stage, client: End) -> Iterator[int]:
    client.send(GET_A + GET_B)
    stage.turn()
    stage.pour(stage.node(B), bulk(b"x" * MB))
    yield MB
    stage.node(A).send(b"$-1\r\n")


def parts_of_a_reply(stage: Stage, client: End) -> Iterator[int]:
    client.send(encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    stage.pour(stage.node(B), b"*1\r\n" + bulk(b"x" * MB))
    yield MB
    stage.node(A).send(b"*1\r\n$-1\r\n")


def parts_of_a_command(stage: Stage, client: End) -> Iterator[int]:
    stage.pour(client, encode_command("DEL", *(b"key:%d" % n for n in range(5000))))
    yield 3000 * 250
    for node in (A, B, C):
        stage.node(node).send(b":1\r\n" * stage.drink(stage.node(node)).count(b"DEL"))
        stage.turn()


def a_parked_command(stage: Stage, client: End) -> Iterator[int]:
    stage.pour(client, encode_command("SET", KEY_A, b"x" * MB))
    stage.drink(stage.node(A))
    stage.node(A).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
    yield MB
    stage.parking.wake_all()
    stage.turn()
    stage.drink(stage.node(A))
    stage.node(A).send(b"+OK\r\n")


def parked_parts(stage: Stage, client: End) -> Iterator[int]:
    stage.pour(client, encode_command("MSET", KEY_A, b"x" * MB, KEY_B, b"x" * MB))
    for node in (A, B):
        stage.drink(stage.node(node))
        stage.node(node).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
    yield 2 * MB
    stage.parking.wake_all()
    stage.turn()
    for node in (A, B):
        stage.drink(stage.node(node))
        stage.node(node).send(b"+OK\r\n")


def long_refusals(stage: Stage, client: End) -> Iterator[int]:
    client.send(GET_A * 20)
    stage.turn()
    stage.pour(stage.node(A), (b"-CLUSTERDOWN " + b"x" * (60 * KB) + b"\r\n") * 20)
    yield 20 * 60 * KB
    stage.parking.wake_all()
    stage.turn()
    stage.node(A).send(b"$-1\r\n" * 20)


def many_requests(stage: Stage, client: End) -> Iterator[int]:
    client.send(GET_A * 1000)
    stage.turn()
    yield 1000 * 250
    stage.node(A).send(b"$-1\r\n" * 1000)


def pushes_behind_a_reply(stage: Stage, client: End) -> Iterator[int]:
    client.send(encode_command("HELLO", "3") + GET_A)
    stage.turn()
    reply = bulk(b"x" * 100_000)
    stage.pour(stage.node(A), reply[:-2])
    for _ in range(1000):
        stage.accepted.push(b">2\r\n+a\r\n" + bulk(b"b" * 250))
    yield 1000 * 250
    stage.node(A).send(reply[-2:])


def an_answer_asked_of_all_nodes(stage: Stage, client: End) -> Iterator[int]:
    always(stage, ("nodes", PING, 0), finish=b"".join)
    client.send(encode_command("ECHO", "x"))
    stage.turn()
    for node in (A, B):
        stage.pour(stage.node(node), bulk(b"x" * MB))
    yield 2 * MB
    stage.node(C).send(b"+PONG\r\n")


def long_names(stage: Stage, client: End) -> Iterator[int]:
    for words in (("SETNAME", b"x" * 4096), ("SETINFO", "LIB-NAME", b"y" * 4096), ("SETINFO", "LIB-VER", b"z" * 4096)):
        stage.pour(client, encode_command("CLIENT", *words))
    yield 3 * 4096
    for words in (("SETNAME", b""), ("SETINFO", "LIB-NAME", b""), ("SETINFO", "LIB-VER", b"")):
        client.send(encode_command("CLIENT", *words))


HOLDS: list[Hold] = [
    half_a_command,
    many_arguments,
    output_not_taken,
    a_reply_that_waits,
    parts_of_a_reply,
    parts_of_a_command,
    a_parked_command,
    parked_parts,
    long_refusals,
    many_requests,
    pushes_behind_a_reply,
    an_answer_asked_of_all_nodes,
    long_names,
]


@pytest.mark.parametrize("hold", HOLDS, ids=lambda hold: hold.__name__)
@pytest.mark.parametrize("end", ["it leaves", "it is killed", "it is answered"])
def test_what_is_held_for_a_client_is_counted(play: Play, hold: Hold, end: str) -> None:
    """All of it, whatever it is, and not much more; until it is given back, or the client has left."""
    stage = play(timeout_s=1000.0, backoff_s=1000.0, soft_output=1 << 30)
    client = stage.client()
    accepted = stage.accepted
    steps = hold(stage, client)
    least = next(steps)
    stage.turn(1)
    assert least <= counted(stage) <= 2.5 * least + 300 * KB
    if end == "it is killed":
        accepted.kill()
    elif end == "it leaves":
        client.close()
        stage.until(lambda: accepted.fd < 0)
    else:
        with contextlib.suppress(StopIteration):
            next(steps)
        stage.turn()
        while not client.closed and (accepted.pending or accepted.output_bytes):
            stage.drink(client)
            stage.turn()
        assert accepted.fd >= 0
    assert (accepted.memory, counted(stage)) == (0, 0)


# -- what is done about it


def test_without_a_limit_nobody_is_stopped_or_closed(play: Play) -> None:
    stage = play()
    assert stage.path.max_memory == 0
    clients = [stage.client() for _ in range(4)]
    for client in clients:
        client.send(GET_A)
        stage.turn()
        stage.pour(stage.node(A), BIG)
    assert counted(stage) > 20 * MB
    assert {len(stage.drink(client)) for client in clients} == {len(BIG)}


@pytest.mark.alone  # the process's memory is measured, which others use as well
def test_clients_that_ask_for_much_and_never_read(play: Play) -> None:
    """4 x 128 x 6 MB: without the limit 3 GB were held."""
    limit = 256 * MB
    stage = play(timeout_s=1000.0)
    stage.path.max_memory = limit
    deaf = {stage.client(): stage.accepted for _ in range(4)}
    other = stage.client()
    for client in deaf:
        client.send(GET_A * 128)
    stage.turn()
    asked = stage.node(A).get().count(b"GET")
    assert asked > 4 * 60
    base, most, most_resident = resident(), 0, 0
    stream = memoryview(BIG)
    for n in range(asked):
        left = stream
        while left:
            with contextlib.suppress(BlockingIOError):
                left = left[stage.node(A).sock.send(left) :]
            stage.turn(1)
            most = max(most, counted(stage))
        most_resident = max(most_resident, resident() - base)
        if n % 20 == 0:
            other.send(GET_B)
            stage.turn()
            stage.node(B).send(b"$1\r\n1\r\n")
            stage.turn()
            assert other.get() == b"$1\r\n1\r\n"
    print(f"held {most / MB:.0f} MB, {closed(stage)} closed, resident {most_resident / MB:.0f} MB")
    assert 0.8 * limit < most < limit
    assert most_resident < limit + 32 * MB
    assert closed(stage) == sum(client.fd < 0 for client in deaf.values()) > 0
    assert stage.notices.count("client closed: all clients together hold too much (clients.max_memory)") == closed(
        stage
    )
    assert stage.path.client_memory < limit


@pytest.mark.alone  # the process's memory is measured, which others use as well
def test_many_clients_that_send_half_a_command(play: Play) -> None:
    """200 x 1 of 2 MB, and 32 MB in all."""
    limit = 32 * MB
    stage = play(timeout_s=1000.0)
    stage.path.max_memory = limit
    other = stage.client()
    half = encode_command("SET", KEY_A, b"x" * (2 * MB))[:MB]
    most, base = 0, resident()
    clients = {stage.client(): half for _ in range(200)}
    sent = offered(stage, clients)
    assert counted(stage) < limit
    assert resident() - base < limit + 32 * MB
    assert closed(stage) == sum(client.closed for client in clients) > 100
    other.send(PING)
    stage.turn()
    assert other.get() == b"+PONG\r\n"
    assert not other.closed
    kept = [client for client in clients if not client.closed]
    assert len(kept) > limit // (2 * MB)
    assert {sent[client] for client in kept} == {MB}  # nobody waits for ever
    print(f"{len(kept)} kept, {most}")


def test_a_command_larger_than_the_limit(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    stage.path.max_memory = 16 * MB
    client, others = stage.client(), [stage.client() for _ in range(20)]
    offered(stage, {client: encode_command("SET", KEY_A, b"x" * (17 * MB))})
    assert client.closed
    assert (closed(stage), counted(stage)) == (1, 0)
    assert not any(other.closed for other in others)


@pytest.mark.parametrize("idle", [0, 50])
def test_a_command_that_just_fits(play: Play, idle: int) -> None:
    """It is stopped at 85 %, among clients that hold less; yet it can only get rid of what it holds by going on."""
    stage = play(timeout_s=1000.0)
    stage.path.max_memory = 16 * MB
    client, others = stage.client(), [stage.client() for _ in range(idle)]
    for other in others:
        other.send(b"*")
    frame = encode_command("SET", KEY_A, b"x" * (15 * MB))
    assert offered(stage, {client: frame}) == {client: len(frame)}
    assert stage.drink(stage.node(A)) == frame
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert closed(stage) == 0
    assert not any(other.closed for other in others)


def test_reading_stops_for_the_largest_and_goes_on_below(play: Play) -> None:
    """Nobody is closed below the limit, and nobody waits when it is over."""
    limit = 16 * MB
    stage = play(timeout_s=1000.0, soft_output=1 << 30)
    without_turns(stage)
    stage.path.max_memory = limit
    large = [stage.client() for _ in range(2)]
    small = [stage.client() for _ in range(20)]
    for client in large:
        client.send(GET_A)
        stage.turn()
        stage.pour(stage.node(A), BIG)  # neither of them takes it
    stage.turn()
    before = counted(stage)
    assert before < 0.85 * limit
    third = stage.client()
    third.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (2 * MB + 256 * KB)))
    assert 0.85 * limit < counted(stage) < limit
    stage.node(A).get()
    ends = [*large, *small]
    for client in ends:
        client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A * len(small)
    for _ in small:
        stage.node(A).send(b"$1\r\n1\r\n")
    stage.turn()
    assert {client.get() for client in small} == {b"$1\r\n1\r\n"}
    assert len(stage.drink(large[0])) == len(BIG)  # that is enough
    stage.turn()
    assert stage.node(A).get() == GET_A * 2
    stage.node(A).send(b"$1\r\n1\r\n" * 2)
    stage.turn()
    assert stage.drink(large[1]) == BIG + b"$1\r\n1\r\n"
    assert large[0].get() == b"$1\r\n1\r\n"
    stage.drink(third)
    assert (closed(stage), counted(stage)) == (0, 0)


def test_the_largest_is_closed_and_the_next(play: Play) -> None:
    """And not more of them than need be; also when the limit is made smaller."""
    stage = play(timeout_s=1000.0)
    clients, accepted = [], []
    for size in (1, 9, 2, 7, 4):
        clients.append(stage.client())
        accepted.append(stage.accepted)
        clients[-1].send(GET_A)
        stage.turn()
        stage.pour(stage.node(A), bulk(b"x" * (size * MB)))
    held = counted(stage)
    stage.path.max_memory = 2 * held
    stage.turn()
    assert closed(stage) == 0
    stage.path.max_memory = held - 1
    stage.turn()
    assert [client.fd < 0 for client in accepted] == [False, True, False, False, False]
    stage.path.max_memory = 6 * MB
    stage.turn()
    assert [client.fd < 0 for client in accepted] == [False, True, False, True, True]
    stage.path.max_memory = 0
    assert closed(stage) == 3
    with pytest.raises(ValueError, match="-1"):
        stage.path.max_memory = -1
    assert stage.path.max_memory == 0
    assert len(stage.drink(clients[2])) > 2 * MB


def test_a_limit_that_is_lifted_has_everybody_read_again(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    without_turns(stage)
    stage.path.max_memory = 8 * MB
    client, idle = stage.client(), stage.client()
    client.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (7 * MB)))
    stage.node(A).get()
    client.send(GET_B)
    stage.turn()
    assert B not in stage.nodes
    stage.path.max_memory = 0
    stage.turn()
    stage.drink(client)
    assert stage.node(B).get() == GET_B
    assert not idle.closed


def test_the_parts_of_one_that_is_closed_go_at_once(play: Play) -> None:
    """What is parked or gathered for a client that was closed does not cost another one its place."""
    stage = play(timeout_s=1000.0, backoff_s=1000.0)
    stage.path.max_memory = 16 * MB
    small = stage.client()
    small.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (3 * MB)))
    client = stage.client()
    stage.pour(client, encode_command("MSET", KEY_A, b"x" * (5 * MB), KEY_B, b"x" * (5 * MB)))
    for node in (A, B):
        stage.drink(stage.node(node))
        stage.node(node).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
        stage.turn(1)
    assert counted(stage) > 12 * MB
    stage.path.max_memory = 11 * MB
    stage.turn(1)
    assert client.closed
    assert not small.closed
    assert 2 * MB < counted(stage) < 5 * MB


def test_no_timer_is_left_when_the_reactor_stops(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    stage.path.max_memory = 8 * MB
    client = stage.client()
    stage.client()
    client.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (7 * MB)))
    assert stage.loop.timers
    stage.reactor.stop()
    stage.turn()
    assert not stage.loop.timers


def test_one_that_is_stopped_is_drained(play: Play) -> None:
    """Whole commands of it that were read are carried out, and it does not wait for the others."""
    stage = play(timeout_s=1000.0)
    without_turns(stage)
    stage.path.max_memory = 8 * MB
    client, accepted = stage.client(), stage.accepted
    stage.client()
    client.send(GET_A)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"x" * (7 * MB)))
    drain(accepted)
    stage.turn()
    assert len(stage.drink(client)) > 7 * MB
    stage.turn()
    assert client.closed
    assert closed(stage) == 0


def test_redirected_bytes_are_counted_while_they_are_kept(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    client = stage.client()
    stage.pour(client, encode_command("SET", KEY_A, b"x" * MB))
    stage.drink(stage.node(A))
    stage.node(A).send(moved(A))  # to itself: the bytes leave the window and come back
    stage.turn()
    assert counted(stage) < 100 * KB
    assert len(stage.drink(stage.node(A))) > MB
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert (client.get(), counted(stage)) == (b"+OK\r\n", 0)
