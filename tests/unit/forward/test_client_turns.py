"""A client's turn: so much work per batch, the rest in the next ones, behind everybody else."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from proxy.forward.clients import drain
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from proxy.resp.readers import ReplyReader
from tests.support.datapath import KEY_A, A, End, Play, Stage
from tests.support.dialogue import GET_A, PING, SET_A, asking, exchange

TIME = encode_command("TIME")
ECHO = encode_command("ECHO", "x")
FLOOD = 10_000


def times(said: bytes) -> int:
    """How many replies of TIME that is; nothing else is in it."""
    frames = [frame for frame, _, _ in ReplyReader().feed(said)]
    assert b"".join(frames) == said
    assert all(frame.startswith(b"*2\r\n") for frame in frames)
    return len(frames)


def flooding(stage: Stage, client: End, frames: bytes) -> None:
    """Has the client send it all without a turn of the data path."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    assert client.offer(frames) == len(frames)


def heard(stage: Stage, client: End, condition: Callable[[], object]) -> bytes:
    """Turns until something is so; what has come meanwhile."""
    parts: list[bytes] = []

    def drunk() -> object:
        parts.append(stage.drink(client))
        return condition()

    stage.until(drunk)
    return b"".join(parts) + stage.drink(client)


@pytest.mark.parametrize("frame", [TIME, b"TIME\r\n", b"PING\r\n", PING, GET_A])
def test_a_flood_has_one_turn_per_batch(play: Play, frame: bytes) -> None:
    """Others are answered between; nothing is lost of it, and it comes in order."""
    stage = play(soft_output=1 << 40, max_pending=1 << 30, max_pending_bytes=1 << 40)
    flood, other = stage.client(), stage.client()
    inside = stage.accepted
    flooder = next(client for client in stage.path.clients if client is not inside)
    flooding(stage, flood, frame * (FLOOD - 1) + ECHO)
    turns, last, batch, said = 0, 0, stage.reactor.batches, []
    while flooder.total_commands < FLOOD:
        other.send(PING)
        stage.loop.run()
        assert other.get() == b"+PONG\r\n", turns
        assert 0 < flooder.total_commands - last <= 512 * (stage.reactor.batches - batch)
        last, batch = flooder.total_commands, stage.reactor.batches
        said.append(flood.get())
        turns += 1
    assert flooder.total_commands == FLOOD
    assert stage.reactor.batches >= FLOOD // 512
    stage.turn()
    if frame == GET_A:
        stage.pour(stage.node(A), bulk("v") * (FLOOD - 1))
    said.append(stage.drink(flood))
    whole = b"".join(said)
    assert whole.endswith(b"$1\r\nx\r\n")
    whole = whole.removesuffix(b"$1\r\nx\r\n")
    if frame.endswith(b"TIME\r\n"):
        assert times(whole) == FLOOD - 1
    else:
        assert whole == (bulk("v") if frame == GET_A else b"+PONG\r\n") * (FLOOD - 1)


def test_another_batch_is_asked_for_once(play: Play) -> None:
    """However long a flood lasts, the loop's own callbacks come between two batches."""
    stage = play(soft_output=1 << 40)
    client = stage.client()
    flooding(stage, client, TIME * 5000)
    for _ in range(10):
        batches = stage.reactor.batches
        stage.loop.run()
        assert len(stage.loop.soon) <= 1
        assert stage.reactor.batches - batches <= 2


def test_what_python_answers_costs_more(play: Play) -> None:
    stage = play(soft_output=1 << 40, max_pending=1 << 30, max_pending_bytes=1 << 40)
    done = {}
    for frame in (PING, TIME, b"PING\r\n"):
        client = stage.client()
        flooding(stage, client, frame * 2000)
        batch = stage.reactor.batches
        stage.loop.run()
        done[frame] = stage.accepted.total_commands // (stage.reactor.batches - batch)
        stage.accepted.kill()
        stage.turn()
    assert done[TIME] * 10 < done[PING]
    assert done[TIME] < done[b"PING\r\n"] < done[PING] <= 512


@pytest.mark.parametrize(("most_ns", "order"), [(1 << 60, "1234"), (1, "4123")])
def test_no_time_for_python_puts_off_who_wants_an_answer_of_its_own(play: Play, most_ns: int, order: str) -> None:
    """One such answer is made in any batch, the others wait for the next ones; what is forwarded overtakes them."""
    stage = play(python_most_ns=most_ns)
    clients = [stage.client() for _ in range(4)]
    for n, client in enumerate(clients, 1):
        client.send((TIME if n < 4 else b"") + encode_command("GET", "{b}" + str(n)))
    stage.turn()
    assert [times(client.get()) for client in clients] == [1, 1, 1, 0]
    assert stage.node(A).get() == b"".join(encode_command("GET", "{b}" + n) for n in order)


def test_large_commands_are_counted_by_their_bytes(play: Play) -> None:
    """60 of 20 KB each are in the receive buffer; not all are carried out at once."""
    stage = play(max_pending_bytes=1 << 40, max_window=1 << 30)
    client = stage.client()
    stage.router.warm(2)
    stage.turn()
    frame = encode_command("SET", KEY_A, b"v" * 100_000)
    flooding(stage, client, frame * 30)
    stage.loop.run()
    first = stage.accepted.total_commands
    stage.until(lambda: stage.accepted.total_commands == 30)
    assert first < 30
    assert stage.drink(stage.node(A)) == frame * 30


def test_two_floods_have_equal_turns(play: Play) -> None:
    stage = play(soft_output=1 << 40)
    one = stage.client()
    first = stage.accepted
    two = stage.client()
    second = stage.accepted
    for client in (one, two):
        flooding(stage, client, TIME * 3000)
    while min(first.total_commands, second.total_commands) < 3000:
        stage.loop.run()
        assert abs(first.total_commands - second.total_commands) <= 128
        one.get(), two.get()


def test_the_end_of_input_while_it_waits_for_its_turn(play: Play) -> None:
    stage = play(soft_output=1 << 40)
    client = stage.client()
    flooding(stage, client, TIME * 5000 + encode_command("PING")[:-1])
    client.sock.shutdown(socket.SHUT_WR)
    assert times(heard(stage, client, lambda: not stage.path.clients)) == 5000
    assert stage.count("closed")["client"] == 1


@pytest.mark.parametrize("inline", [False, True])
def test_drained_while_it_waits_for_its_turn(play: Play, inline: bool) -> None:
    """What was read is answered, though it had to wait; then it is told the end."""
    stage = play(soft_output=1 << 40)
    client = stage.client()
    inside = stage.accepted
    flooding(stage, client, (b"TIME\r\n" if inline else TIME) * 3000)
    stage.loop.run()
    read = inside.query_bytes
    assert read > 0
    drain(inside)
    answered = times(heard(stage, client, lambda: stage.path.lingering))
    assert answered == inside.total_commands == stage.count("client_in") // len(b"TIME\r\n" if inline else TIME)
    assert inside.query_bytes == 0
    client.close()
    stage.turn()
    assert stage.count("closed")["shutdown"] == 1


@pytest.mark.parametrize("how", ["kill", "leave", "quit"])
def test_gone_while_it_waits_for_its_turn(play: Play, how: str) -> None:
    stage = play(soft_output=1 << 40)
    client, other = stage.client(), stage.client()
    inside = next(one for one in stage.path.clients if one is not stage.accepted)
    flooding(stage, client, (ECHO + PING) * 1000 + GET_A)
    stage.loop.run()
    done = inside.total_commands
    assert 0 < done < 2001
    if how == "kill":
        inside.kill()
    elif how == "leave":
        client.close()
    else:
        inside.close_after_reply()
    other.send(PING)
    stage.turn(20)
    assert inside.fd == -1
    assert inside.total_commands == done if how != "leave" else inside.total_commands < 2001
    assert (other.get(), stage.nodes) == (b"+PONG\r\n", {})


def test_a_killer_and_its_victim_in_the_list_of_those_that_wait(play: Play) -> None:
    """The victim's turn has come in the same batch; it is passed over."""
    stage = play(soft_output=1 << 40)
    killer, victim = stage.client(), stage.client()
    inside = stage.accepted
    count = [0]

    def make(args: list[bytes]) -> bytes:
        count[0] += 1
        if count[0] == 200:
            inside.kill()
        return b"+OK\r\n"

    asking(stage, make)
    flooding(stage, killer, ECHO * 400)
    flooding(stage, victim, TIME * 4000)
    stage.until(lambda: count[0] == 400)
    stage.turn()
    assert killer.get() == b"+OK\r\n" * 400
    assert victim.closed or times(stage.drink(victim)) < 4000
    assert inside.total_commands < 4000


def test_a_turn_ends_in_the_middle_of_a_frame(play: Play) -> None:
    """Half a frame at the end of what was read, in each possible place: neither order nor bytes suffer."""
    stage = play(soft_output=1 << 40)
    frames = (TIME + SET_A) * 300
    for cut in range(len(frames) - len(TIME + SET_A), len(frames) + 1, 5):
        client = stage.client()
        client.send(frames[:cut])
        stage.loop.run()
        client.send(frames[cut:] + PING)
        stage.until(lambda: stage.accepted.total_commands == 601)
        stage.turn()
        exchange(stage, A, SET_A * 300, b"+OK\r\n" * 300)
        assert stage.drink(client).count(b"+OK\r\n") == 300
        client.close()
        stage.turn()


def test_nothing_is_left_to_do_when_nobody_waits(play: Play) -> None:
    """The loop is not asked for another batch for its own sake."""
    stage = play(soft_output=1 << 40)
    client = stage.client()
    flooding(stage, client, TIME * 500)
    stage.loop.run()
    assert stage.loop.soon
    stage.until(lambda: stage.accepted.total_commands == 500)
    stage.turn()
    batches = stage.reactor.batches
    stage.turn(10)
    assert (stage.reactor.batches, stage.loop.soon) == (batches, [])
    assert times(client.get()) == 500


def test_a_client_that_has_not_logged_in_has_no_more(play: Play) -> None:
    stage = play(soft_output=1 << 40)
    client, other = stage.client(password=True), stage.client()
    flooding(stage, client, b"TIME\r\n" * 5000)
    stage.loop.run()
    other.send(PING)
    stage.loop.run()
    assert other.get() == b"+PONG\r\n"
    stage.until(lambda: stage.count("commands")["time"]["calls"] == 5000)
    assert stage.drink(client) == errors.NOAUTH * 5000
