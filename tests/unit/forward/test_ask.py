"""What proxy.serve asks of the servers for one command: swallowed replies, a transform of the reply, where it goes."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.forward.request import live
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import SLOT_A, SLOT_B, SLOT_C, TEXTS, A, B, C, Play
from tests.support.dialogue import (
    ASKING,
    GET_A,
    GET_B,
    GET_C,
    INTERNAL,
    PING,
    REFUSALS,
    SET_A,
    D,
    always,
    ask,
    exchange,
    moved,
    pending,
)

MULTI, EXEC = encode_command("MULTI"), encode_command("EXEC")
ECHO = encode_command("ECHO", "x")
BLOCK = MULTI + SET_A + GET_A + EXEC  # three replies are dropped, the fourth counts
QUEUED = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n"
DONE = array([b"+OK\r\n", bulk("1")])
ABORT = b"-EXECABORT Transaction discarded because of previous errors.\r\n"


# -- swallowed replies


def test_replies_are_swallowed_and_the_last_counts(play: Play) -> None:
    """Cut anywhere; with commands of others before and behind, whose replies are not taken for it."""
    for cut in range(len(QUEUED + DONE) + 1):
        stage = play()
        always(stage, (SLOT_A, BLOCK, 3))
        client, other = stage.client(), stage.client()
        other.send(GET_A)
        stage.turn(1)
        client.send(ECHO + GET_A)
        stage.turn()
        assert stage.node(A).get() == GET_A + BLOCK + GET_A
        stage.node(A).send(bulk("0") + (QUEUED + DONE)[:cut])
        stage.turn()
        stage.node(A).send((QUEUED + DONE)[cut:] + bulk("2"))
        stage.turn()
        assert (client.get(), other.get()) == (DONE + bulk("2"), bulk("0")), cut
    assert stage.count("commands")["echo"]["calls"] == 1
    assert pending(stage) == 0


def test_large_replies_are_swallowed_too(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A * 3, 2))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    stage.pour(stage.node(A), bulk(b"1" * 20_000) + array([bulk(b"2" * 400_000)]) + bulk(b"3" * 30_000))
    assert stage.drink(client) == bulk(b"3" * 30_000) + b"+PONG\r\n"


@pytest.mark.parametrize("which", [1, 2])
def test_an_ordinary_first_error_is_told_with_the_last_reply(play: Play, which: int) -> None:
    """EXEC alone says only that something was refused, and its client has been told QUEUED."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    said = [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", ABORT]
    said[which] = b"-ERR unknown command\r\n"
    exchange(stage, A, BLOCK, b"".join(said))
    assert client.get() == b"-EXECABORT Transaction discarded because of: unknown command\r\n+PONG\r\n"
    assert stage.count("commands")["echo"]["errors"] == {"EXECABORT": 1}
    assert sum(stage.count("redirections").values()) == 0


def test_a_last_reply_that_is_no_error_counts_whatever_was_swallowed(play: Play) -> None:
    """Something was carried out: it must not be sent again, were it ten times redirected before."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, BLOCK, b"+OK\r\n" + moved(B) + REFUSALS["tryagain"] + array([]))
    assert client.get() == array([])
    assert list(stage.nodes) == [A]
    assert (stage.parking.waiting, stage.stale_for) == (0, [])


@pytest.mark.parametrize("which", [1, 2])
def test_moved_while_it_was_queued_sends_it_whole_to_the_new_owner(play: Play, which: int) -> None:
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    said = [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", ABORT]
    said[which] = moved(B)
    exchange(stage, A, BLOCK, b"".join(said))
    exchange(stage, B, BLOCK, QUEUED + DONE)
    assert client.get() == DONE
    assert stage.count("redirections")["moved"] == 1
    client.send(GET_A)  # learnt
    stage.turn()
    exchange(stage, B, GET_A, bulk("1"))


def test_the_first_error_decides_and_not_a_later_one(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO + ECHO)
    stage.turn()
    first = b"+OK\r\n" + moved(B) + moved(C) + ABORT
    exchange(stage, A, BLOCK * 2, first + b"+OK\r\n-ERR no\r\n" + moved(C) + ABORT)
    assert stage.node(B).get() == BLOCK
    assert C not in stage.nodes
    stage.node(B).send(QUEUED + DONE)
    stage.turn()
    assert client.get() == DONE + b"-EXECABORT Transaction discarded because of: no\r\n"


def test_what_was_remembered_is_forgotten_when_it_is_sent_again(play: Play) -> None:
    """The second attempt fails for a reason of its own: no third one for the first one's reason."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, BLOCK, b"+OK\r\n" + moved(B) + b"+QUEUED\r\n" + ABORT)
    exchange(stage, B, BLOCK, QUEUED + b"-WRONGTYPE x\r\n")
    assert client.get() == b"-WRONGTYPE x\r\n"
    stage.turn(6)
    assert (stage.node(A).get(), stage.node(B).get()) == (b"", b"")


def test_asking_goes_before_all_of_it(play: Play) -> None:
    """The prefix's reply is swallowed besides its own, and no error of the prefix is taken for one of its own."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, BLOCK, b"+OK\r\n" + ask(B) + b"+QUEUED\r\n" + ABORT)
    exchange(stage, B, ASKING + BLOCK, moved(C) + QUEUED + ABORT)
    assert client.get() == ABORT
    assert C not in stage.nodes
    client.send(ECHO)  # not learnt, and without the prefix it is as it was
    stage.turn()
    exchange(stage, A, BLOCK, b"+OK\r\n" + ask(B) + b"+QUEUED\r\n" + ABORT)
    exchange(stage, B, ASKING + BLOCK, b"+OK\r\n+OK\r\n+QUEUED\r\n" + REFUSALS["tryagain"] + ABORT)
    exchange(stage, A, BLOCK, QUEUED + DONE)
    assert client.get() == DONE
    assert stage.count("redirections")["ask"] == 2


@pytest.mark.parametrize("word", list(REFUSALS))
def test_refused_while_it_was_queued(play: Play, word: str) -> None:
    """Parked and sent again whole, until it is carried out."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO + SET_A)
    stage.turn()
    exchange(stage, A, BLOCK + SET_A, b"+OK\r\n" + REFUSALS[word] + b"+QUEUED\r\n" + ABORT + b"+OK\r\n")
    for _ in range(2):
        exchange(stage, A, BLOCK, b"+OK\r\n" + REFUSALS[word] + b"+QUEUED\r\n" + ABORT)
        assert client.get() == b""
    exchange(stage, A, BLOCK, QUEUED + DONE)
    assert client.get() == DONE + b"+OK\r\n"
    assert stage.count("retries")[word, "retried"] == 3


def test_a_refusal_that_stays_is_told_in_the_words_of_the_server(play: Play) -> None:
    stage = play(timeout_s=0.0)
    always(stage, (SLOT_A, BLOCK, 3))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, BLOCK, b"+OK\r\n" + REFUSALS["tryagain"] + b"+QUEUED\r\n" + ABORT)
    assert client.get() == REFUSALS["tryagain"]


@pytest.mark.parametrize("come", [0, 1, 2, 3])
def test_its_ghost_swallows_the_rest(play: Play, come: int) -> None:
    """A timed-out one takes the place of as many replies as had not come yet, and of the last."""
    stage = play(timeout_s=0.0)
    always(stage, (SLOT_A, BLOCK, 3))
    late, after = stage.client(), stage.client(timeout_ns=10**12)
    late.send(ECHO)
    after.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == BLOCK + GET_A
    said = [b"+OK\r\n", b"+QUEUED\r\n", moved(B), ABORT]
    stage.node(A).send(b"".join(said[:come]))
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert late.get() == TEXTS["timeout_sent"]
    stage.node(A).send(b"".join(said[come:]) + bulk("right"))
    stage.turn(6)
    assert (late.get(), after.get()) == (b"", bulk("right"))
    assert B not in stage.nodes
    assert pending(stage) == 0


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("come", [0, 2])
def test_lost_in_the_middle(play: Play, read: bool, come: int) -> None:
    """Sent again whole when that is safe; the replies that had come are swallowed anew."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3), read=read)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, BLOCK, b"".join([b"+OK\r\n", b"-ERR x\r\n"][:come]))
    stage.nodes[A][0].close()
    stage.turn(6)
    if not read:
        assert client.get() == TEXTS["lost"]
        return
    exchange(stage, A, BLOCK, QUEUED + DONE)
    assert client.get() == DONE


def test_a_client_that_leaves_in_the_middle_of_it(play: Play) -> None:
    """Nothing is resent for it, and what follows gets its own replies."""
    stage = play()
    always(stage, (SLOT_A, BLOCK, 3))
    client, other = stage.client(), stage.client()
    client.send(ECHO)
    stage.turn()
    other.send(GET_A)
    stage.turn()
    client.close()
    stage.turn()
    exchange(stage, A, BLOCK + GET_A, b"+OK\r\n" + moved(B) + b"+QUEUED\r\n" + ABORT + bulk("1"))
    assert other.get() == bulk("1")
    assert B not in stage.nodes
    assert live() == stage.live


# -- where it goes


def join(replies: list[bytes]) -> bytes:
    return array(replies)


def test_several_slots(play: Play) -> None:
    """Replies in the order of the parts, whatever order they come in."""
    stage = play()
    always(stage, (SLOT_C, GET_C, 0), (SLOT_A, SET_A + GET_A, 1), (SLOT_B, GET_B, 0), finish=join)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, B, GET_B, bulk("b"))
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n" + bulk("a"))
    exchange(stage, C, GET_C, bulk("c"))
    assert client.get() == array([bulk("c"), bulk("a"), bulk("b")])


def test_without_a_transform_the_first_part_is_the_answer(play: Play) -> None:
    stage = play()
    always(stage, ("primaries", PING, 0))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, C, PING, b"+c\r\n")
    exchange(stage, A, PING, b"+a\r\n")
    assert client.get() == b""
    exchange(stage, B, PING, b"+b\r\n")
    assert client.get() == b"+a\r\n"


@pytest.mark.parametrize(("where", "nodes"), [("primaries", [A, C]), ("nodes", [A, B, C, D])])
def test_every_primary_or_every_node(play: Play, where: str, nodes: list[Address]) -> None:
    """A replica is none of the primaries, nor is a primary without slots; with others in one Ask it keeps its place."""
    stage = play(shards=[(A, [B], [(0, 8000)]), (C, [], [(8001, 16383)]), (D, [], [])])
    always(stage, (SLOT_A, GET_A, 0), (where, PING, 0), finish=join)
    client = stage.client(reads="any")
    client.send(ECHO)
    stage.turn()
    assert set(stage.nodes) == set(nodes)
    for n, address in enumerate(nodes):
        exchange(stage, address, GET_A + PING if address == A else PING, (bulk("v") if address == A else b"") + bulk(n))
    assert client.get() == array([bulk("v"), *[bulk(n) for n in range(len(nodes))]])


def test_one_node_and_no_other(play: Play) -> None:
    """A replica too; not the owner of anything. It is waited for while it is down."""
    stage = play(shards=[(A, [B], [(0, 16383)])])
    always(stage, (stage.router.nodes[B], PING, 0))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, B, PING, b"+b\r\n")
    assert client.get() == b"+b\r\n"
    stage.unreachable.add(B)
    stage.node(B).close()
    stage.until(lambda: stage.router.nodes[B].down)
    client.send(ECHO)
    stage.turn()
    assert (client.get(), stage.parking.waiting, list(stage.nodes)) == (b"", 1, [B])
    stage.unreachable.clear()
    exchange(stage, B, PING, b"+back\r\n")
    assert client.get() == b"+back\r\n"


def test_a_node_that_has_left(play: Play) -> None:
    stage = play()
    gone = stage.router.nodes[C]
    always(stage, (gone, PING, 0))
    client = stage.client()
    stage.publish([(A, [], [(0, 8000)]), (B, [], [(8001, 16383)])])
    client.send(ECHO + PING)
    stage.turn()
    assert client.get() == TEXTS["gone"] + b"+PONG\r\n"
    assert stage.nodes == {}


def test_any_primary(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    always(stage, ("any", PING, 0))
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, PING, b"+a\r\n")
    assert client.get() == b"+a\r\n"


def test_resp3_clients_ask_on_resp3_connections(play: Play) -> None:
    stage = play()
    always(stage, ("primaries", PING, 0), finish=join)
    client = stage.client()
    client.send(encode_command("HELLO", "3") + ECHO)
    stage.turn()
    assert {backend.proto for node in stage.router.nodes.values() for backend in node.backends()} == {3}
    for address in (A, B, C):
        exchange(stage, address, PING, b"#t\r\n")
    assert client.get().endswith(array([b"#t\r\n"] * 3))


@pytest.mark.parametrize("where", ["primaries", "nodes"])
@pytest.mark.parametrize("shards", [[], [(None, [], [(0, 16383)])]])
def test_nobody_to_ask(play: Play, where: str, shards: list[object]) -> None:
    stage = play(shards=shards)
    always(stage, (where, PING, 0))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    assert client.get() == b"-CLUSTERDOWN The cluster is down\r\n+PONG\r\n"
    assert stage.count("commands")["echo"]["errors"] == {"CLUSTERDOWN": 1}


def test_nowhere_to_send_it(play: Play) -> None:
    """All parts fail while they are submitted; the first one's error is the answer."""
    stage = play(shards=[(A, [], [(16000, 16383)])])
    always(stage, (SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0), finish=join)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    assert client.get() == TEXTS["uncovered"] + b"+PONG\r\n"
    assert live() == stage.live


# -- what makes no sense


@pytest.mark.parametrize(
    "parts",
    [
        [("everywhere", PING, 0)],
        [(None, PING, 0)],
        [(1.5, PING, 0)],
        [(SLOT_A, PING)],
        [(SLOT_A, PING, -1)],
        [(SLOT_A, PING, "1")],
        [(SLOT_A, GET_A, 0), ("nowhere", PING, 0)],
        [(1 << 40, PING, 0)],
        [5],
    ],
)
def test_an_ask_that_makes_no_sense(play: Play, parts: list[object]) -> None:
    """Nothing of it is sent; its client is told, and what it asks next is answered."""
    stage = play()
    always(stage, *parts)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    assert client.get() == INTERNAL + b"+PONG\r\n"
    assert stage.nodes == {}
    assert stage.count("internal_errors") == 1
    assert [what.lower() for what, _ in stage.raised] == ["echo"]
    assert live() == stage.live


@pytest.mark.parametrize("slot", [-1, 16384, 30000])
def test_a_slot_that_there_is_not(play: Play, slot: int) -> None:
    stage = play()
    always(stage, (slot, PING, 0))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    assert client.get() == INTERNAL + b"+PONG\r\n"
    assert stage.nodes == {}


@pytest.mark.parametrize("frame", ["text", None, 5])
def test_a_frame_that_is_none(play: Play, frame: object) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), (SLOT_B, frame, 0))
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    said = client.get()
    leaked = live() - stage.live
    stage.live += leaked  # the stage would stumble over it, too
    assert said == INTERNAL + b"+PONG\r\n"
    assert (stage.nodes, leaked) == ({}, 0)
