"""The replying side of a client: order, streaming, back-pressure, limits."""

from __future__ import annotations

import pytest

from proxy.forward.clients import output_bytes
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, TEXTS, A, B, C, End, Play, Stage
from tests.support.dialogue import exchange

GET_A, GET_B, GET_C = (encode_command("GET", key) for key in (KEY_A, KEY_B, KEY_C))


def test_replies_come_in_the_order_of_the_commands(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B + encode_command("PING") + GET_C + encode_command("ECHO", "e") + encode_command("GET"))
    stage.turn()
    stage.node(C).send(bulk("3"))
    stage.turn()
    stage.node(B).send(b"-WRONGTYPE x\r\n")
    stage.turn()
    assert client.get() == b""
    assert stage.accepted.output_bytes == len(
        b"-WRONGTYPE x\r\n+PONG\r\n" + bulk("3") + bulk("e") + b"-ERR wrong number of arguments for 'get' command\r\n"
    )
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == (
        bulk("1")
        + b"-WRONGTYPE x\r\n+PONG\r\n"
        + bulk("3")
        + bulk("e")
        + b"-ERR wrong number of arguments for 'get' command\r\n"
    )
    assert stage.accepted.output_bytes == 0


@pytest.mark.parametrize("order", ["ABC", "ACB", "BAC", "BCA", "CAB", "CBA"])
def test_whatever_order_the_nodes_answer_in(play: Play, order: str) -> None:
    stage = play()
    client = stage.client()
    client.send((GET_A + GET_B + GET_C) * 3)
    stage.turn()
    nodes = {"A": stage.node(A), "B": stage.node(B), "C": stage.node(C)}
    for _ in range(3):
        for name in order:
            nodes[name].send(bulk(name))
            stage.turn(1)
    stage.turn()
    assert client.get() == (bulk("A") + bulk("B") + bulk("C")) * 3


def test_replies_of_a_batch_leave_together(play: Play) -> None:
    stage = play(packets=True)
    client = stage.client()
    client.send(GET_A + encode_command("PING") + GET_A)
    stage.turn()
    assert stage.node(A).packets() == [GET_A + GET_A]
    stage.node(A).send(bulk("1") + bulk("2"))
    stage.turn()
    assert client.packets() == [bulk("1") + b"+PONG\r\n" + bulk("2")]
    client.send(encode_command("PING") * 3)
    stage.turn()
    assert client.packets() == [b"+PONG\r\n" * 3]


def test_a_large_reply_is_passed_on_as_it_comes(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    reply = bulk(b"v" * 1_000_000)
    stage.node(B).send(bulk("next"))
    stage.node(A).send(reply[:8000])
    stage.turn()
    assert client.get() == b""  # too little to be worth it
    stage.node(A).send(reply[8000:20_000])
    stage.turn()
    assert client.get() == reply[:20_000]
    stage.pour(stage.node(A), reply[20_000:150_000])
    assert client.get() == reply[20_000:150_000]
    for n in range(150_000, len(reply), 50_000):
        stage.node(A).send(reply[n : n + 50_000])
        stage.turn()
        got = client.get()
        assert reply[n : n + 50_000] + (b"" if n + 50_000 < len(reply) else bulk("next")) == got
    assert stage.accepted.pending == 0


def test_a_large_reply_whose_turn_has_not_come_is_held(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    reply = bulk(b"v" * 100_000)
    stage.node(B).send(reply[:50_000])
    stage.turn()
    assert client.get() == b""
    assert stage.accepted.output_bytes == 50_000
    stage.node(A).send(bulk("first"))
    stage.turn()
    assert client.get() == bulk("first") + reply[:50_000]
    assert stage.accepted.output_bytes == 0
    stage.node(B).send(reply[50_000:])
    stage.turn()
    assert client.get() == reply[50_000:]


def test_a_reply_cut_in_the_middle_closes_the_client(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(A).send(bulk(b"v" * 50_000)[:20_000])
    stage.turn()
    stage.node(A).close()
    stage.turn()
    assert len(client.get()) == 20_000
    assert client.closed
    assert stage.count("closed")["reply_cut"] == 1
    assert stage.notices == ["client closed: the node was lost in the middle of its reply"]
    assert stage.count("retries")["connection_lost", "retried"] == 0


def test_a_held_reply_cut_after_its_turn_came(play: Play) -> None:
    """What was held has reached the client by then: it cannot be asked again."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(B).send(bulk(b"v" * 50_000)[:20_000])
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk(b"v" * 50_000)[:20_000]
    stage.node(B).close()
    stage.turn()
    assert client.closed
    assert stage.count("closed")["reply_cut"] == 1


def test_a_held_reply_cut_in_the_middle_is_asked_again(play: Play) -> None:
    """Nothing of it has reached the client: a read may be repeated, and what was held counts no longer."""
    stage = play(soft_output=60_000)
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(B).send(bulk(b"old" * 20_000)[:50_000])
    stage.turn()
    assert stage.accepted.output_bytes == 50_000
    stage.node(B).get()
    stage.node(B).close()
    stage.until(lambda: len(stage.nodes[B]) == 2 and stage.node(B).get() == GET_B)
    assert stage.accepted.output_bytes == 0
    stage.node(B).send(bulk(b"new" * 20_000))
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + bulk(b"new" * 20_000)
    assert stage.accepted.output_bytes == output_bytes(stage.path) == 0
    client.send(encode_command("PING"))
    stage.turn()
    assert client.get() == b"+PONG\r\n"


def test_a_held_reply_of_a_write_cut_in_the_middle(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + encode_command("GETDEL", KEY_B))
    stage.turn()
    stage.node(B).send(bulk(b"v" * 100_000)[:50_000])
    stage.turn()
    stage.node(B).close()
    stage.turn()
    assert stage.accepted.output_bytes == len(TEXTS["lost"])
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1") + TEXTS["lost"]
    assert stage.accepted.output_bytes == 0


def test_max_pending_pauses_and_half_of_it_resumes(play: Play) -> None:
    stage = play(max_pending=4)
    client = stage.client()
    client.send(GET_A * 10)
    stage.turn()
    node = stage.node(A)
    assert node.get() == GET_A * 4
    assert stage.accepted.pending == 4
    node.send(bulk("v"))
    stage.turn()
    assert node.get() == b""
    node.send(bulk("v"))
    stage.turn()
    assert node.get() == GET_A * 2
    for wanted in (b"", GET_A * 2, b"", GET_A * 2, b"", b"", b"", b""):
        node.send(bulk("v"))
        stage.turn()
        assert node.get() == wanted
    assert client.get() == bulk("v") * 10
    assert (stage.accepted.pending, stage.accepted.query_bytes) == (0, 0)


def test_max_pending_bytes_pauses(play: Play) -> None:
    stage = play(max_pending_bytes=5000)
    client = stage.client()
    frame = encode_command("SET", KEY_A, b"v" * 2000)
    client.send(frame * 6)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frame * 3  # the one that passes the limit is the last
    node.send(b"+OK\r\n")
    stage.turn()
    assert node.get() == b""
    node.send(b"+OK\r\n")
    stage.turn()
    assert node.get() == frame * 2
    client.send(encode_command("SET", KEY_A, b"v" * 9000))
    node.send(b"+OK\r\n" * 3)
    stage.turn()
    node.send(b"+OK\r\n")
    stage.turn()
    assert node.get() == frame + encode_command("SET", KEY_A, b"v" * 9000)
    node.send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n" * 7


def fill(stage: Stage, client: End) -> int:
    """Has the node answer with 10 KB values until the client, who does not read, is not read either; replies given."""
    given = 0
    while True:
        client.send(GET_A)
        stage.turn()
        asked = stage.node(A).get().count(GET_A)
        if not asked:
            return given
        stage.node(A).send(bulk(b"v" * 10_000) * asked)
        stage.turn()
        given += asked
        assert given < 1000


def test_soft_output_pauses_reading_and_taking_resumes_it(play: Play) -> None:
    stage = play(soft_output=100_000)
    client = stage.client()
    given = fill(stage, client)
    assert 100_000 < stage.accepted.output_bytes < 120_000
    assert output_bytes(stage.path) == stage.accepted.output_bytes
    client.send(encode_command("PING"))
    stage.turn()
    assert stage.accepted.pending == 0
    got = stage.drink(client)
    assert got == bulk(b"v" * 10_000) * given
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("last"))
    stage.turn()
    assert client.get() == bulk("last") + b"+PONG\r\n"
    assert stage.accepted.output_bytes == 0


def test_hard_output_closes(play: Play) -> None:
    stage = play(hard_output=500_000)
    client, other = stage.client(), stage.client()
    client.send(GET_A + GET_A)
    other.send(GET_A)
    stage.turn()
    reply = bulk(b"v" * 2_000_000)
    stage.pour(stage.node(A), reply)
    assert stage.count("closed")["output_limit"] == 1
    assert stage.notices == ["client closed: it does not take its replies (clients.output_hard_limit)"]
    assert len(stage.path.clients) == 1
    stage.node(A).send(bulk("dropped") + bulk("mine"))
    stage.turn()
    assert other.get() == bulk("mine")


@pytest.mark.parametrize("whole", [True, False])
def test_hard_output_counts_what_is_held(play: Play, whole: bool) -> None:
    stage = play(hard_output=50_000)
    client = stage.client()
    client.send(GET_A + GET_B + GET_B)
    stage.turn()
    stage.node(B).send(bulk(b"v" * 40_000))
    stage.turn()
    assert not client.closed
    stage.node(B).send(bulk(b"v" * 20_000)[: None if whole else -1])
    stage.turn()
    assert client.closed
    assert stage.count("closed")["output_limit"] == 1
    stage.node(A).send(bulk("1"))
    stage.node(B).send(b"" if whole else b"\n")
    stage.turn()
    assert stage.router.nodes[B].figures()["pending"] == 0


def test_hard_output_when_the_head_is_answered_at_last(play: Play) -> None:
    """The limit is found while what waited is put out: the first reply is 40 KB, and 40 KB are held."""
    stage = play(hard_output=400_000)
    client = stage.client()
    for _ in range(3):
        client.send(GET_B)
        stage.turn()
        stage.pour(stage.node(B), bulk(b"v" * 100_000))  # the kernel's buffer is full from here on
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(B).send(bulk(b"v" * 100_000))
    stage.turn()
    assert not stage.count("closed")["output_limit"]
    stage.pour(stage.node(A), bulk(b"v" * 300_000))
    assert stage.count("closed")["output_limit"] == 1


def test_large_replies_are_not_all_asked_for_at_once(play: Play) -> None:
    """reply_mean: a client whose replies are large has as many commands under way as its soft limit can bear."""
    stage = play(soft_output=100_000, max_pending=1000)
    client = stage.client()
    client.send(GET_A * 200)
    stage.turn()
    node = stage.node(A)
    asked = node.get().count(GET_A)
    assert asked == 7  # 8 * 100,000 bytes / 131,072 for a client that is not known yet
    answered = 0
    while answered < 150:
        node.send(bulk("v"))
        stage.turn()
        asked += node.get().count(GET_A)
        answered += 1
    assert asked == 200  # small replies: no reason to hold back
    node.send(bulk("v") * 50)
    stage.turn()
    assert client.get() == bulk("v") * 200


def test_a_later_command_does_not_overtake_a_redirected_one(play: Play) -> None:
    """Until the redirected command is answered, nothing new of its client is sent."""
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(encode_command("SET", KEY_A, "1"))
    stage.turn()
    stage.node(A).get()
    stage.node(A).send(b"-ASK %d %s\r\n" % (SLOT_A, str(B).encode()))
    stage.turn()
    client.send(encode_command("SET", KEY_A, "2") + encode_command("PING"))
    other.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    assert stage.node(B).get() == encode_command("ASKING") + encode_command("SET", KEY_A, "1")
    stage.node(B).send(b"+OK\r\n+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    assert stage.node(A).get() == encode_command("SET", KEY_A, "2")
    stage.node(A).send(b"$-1\r\n+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n+PONG\r\n"


def test_unsettled_ends_with_the_last_answer(play: Play) -> None:
    """Other commands under way are waited for too, then all is as before."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B)
    stage.turn()
    stage.node(A).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
    stage.turn()
    stage.node(A).send(bulk("1"))
    client.send(GET_C)
    stage.turn()
    assert client.get() == bulk("1")
    assert C not in stage.nodes
    stage.node(B).send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("2")
    assert stage.node(C).get() == GET_C
    client.send(GET_C)
    stage.turn()
    assert stage.node(C).get() == GET_C


def test_a_client_that_takes_nothing_is_closed_at_the_end_of_its_input(play: Play) -> None:
    """QUIT: closed by the flush that finds everything taken, however late that is."""
    stage = play()
    client = stage.client()
    client.send(GET_A + encode_command("QUIT"))
    stage.turn()
    stage.pour(stage.node(A), bulk(b"v" * 1_000_000))
    assert len(stage.path.clients) == 1
    assert stage.drink(client) == bulk(b"v" * 1_000_000) + b"+OK\r\n"
    stage.turn()
    assert not stage.path.clients
    assert stage.count("closed")["quit"] == 1


def test_a_burst_of_large_replies_after_small_ones(play: Play) -> None:
    """What its replies were like says nothing of the next burst: it begins with few of them under way."""
    stage = play()
    client = stage.client()
    for _ in range(2):
        client.send(GET_A * 50)
        stage.turn()
        exchange(stage, A, GET_A * 50, bulk("v") * 50)
        assert stage.drink(client) == bulk("v") * 50
    client.send(encode_command("GET", "{b}large") * 600)
    stage.turn()
    node = stage.node(A)
    asked = node.get().count(b"large")
    assert 1 <= asked <= 129  # 8 times the soft limit of 1 MB, 64 KB each
    large = bulk(b"v" * 1_000_000)
    for _ in range(20):  # a reader that takes nothing is asked nothing more for
        stage.pour(node, large)
        asked += node.get().count(b"large")
    assert asked <= 160
    assert stage.accepted.output_bytes > 15_000_000
    client.close()
    stage.turn()
    assert output_bytes(stage.path) == 0


def test_a_burst_of_small_replies_is_soon_all_under_way(play: Play) -> None:
    stage = play(max_pending=2000)
    client = stage.client()
    node = None
    for _ in range(2):
        client.send(GET_A * 1000)
        stage.turn()
        node = stage.node(A)
        asked = node.get().count(GET_A)
        rounds = 0
        while asked < 1000:
            node.send(bulk("v") * 32)
            stage.turn()
            asked += node.get().count(GET_A)
            rounds += 1
            assert rounds < 40
        node.send(bulk("v") * (1000 - 32 * rounds))
        stage.turn()
        assert stage.drink(client) == bulk("v") * 1000
