"""Commands over many slots: how they are cut, and how one answer is made of many."""

from __future__ import annotations

import pytest

from proxy.forward.clients import output_bytes
from proxy.forward.request import live
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command, integer
from tests.support.datapath import KEY_A, KEY_B, KEY_C, SLOT_A, TEXTS, A, B, C, Play
from tests.support.dialogue import GET_A, PING, answer

BAD_PART = b"-ERR a node answered part of this command in an unexpected form\r\n"
MGET_A, MGET_B = encode_command("MGET", KEY_A), encode_command("MGET", KEY_B)
DEL_A, DEL_B = encode_command("DEL", KEY_A), encode_command("DEL", KEY_B)
MSET_A, MSET_B = encode_command("MSET", KEY_A, "1"), encode_command("MSET", KEY_B, "2")
MGET, DEL = encode_command("MGET", KEY_A, KEY_B), encode_command("DEL", KEY_A, KEY_B)
MSET = encode_command("MSET", KEY_A, "1", KEY_B, "2")


@pytest.mark.parametrize("name", ["DEL", "UNLINK", "EXISTS", "TOUCH"])
def test_sums(play: Play, name: str) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command(name, KEY_A, KEY_B, KEY_C, KEY_A))
    parts = {
        encode_command(name, KEY_A, KEY_A): integer(12345678901),
        encode_command(name, KEY_B): integer(0),
        encode_command(name, KEY_C): integer(1),
    }
    assert answer(stage, parts) == sorted(parts)
    assert client.get() == b":12345678902\r\n"


@pytest.mark.parametrize(
    ("frame", "parts", "wanted"),
    [
        (MGET, {MGET_A: array([bulk("1")]), MGET_B: b"-ERR two\r\n"}, b"-ERR two\r\n"),
        (MGET, {MGET_A: b"-NOPERM one\r\n", MGET_B: b"-ERR two\r\n"}, b"-NOPERM one\r\n"),
        (MSET, {MSET_A: b"+OK\r\n", MSET_B: b"-OOM x\r\n"}, b"-OOM x\r\n"),
        (DEL, {DEL_A: b"-ERR " + b"x" * 300 + b"\r\n", DEL_B: integer(1)}, b"-ERR " + b"x" * 300 + b"\r\n"),
        (DEL, {DEL_A: bulk("1"), DEL_B: integer(1)}, BAD_PART),
        (DEL, {DEL_A: b":-1\r\n", DEL_B: integer(1)}, BAD_PART),
        (DEL, {DEL_A: b"+QUEUED\r\n", DEL_B: b"+QUEUED\r\n"}, BAD_PART),
        (MGET, {MGET_A: array([]), MGET_B: array([bulk("2")])}, BAD_PART),
        (MGET, {MGET_A: b"*-1\r\n", MGET_B: array([bulk("2")])}, BAD_PART),
        (MGET, {MGET_A: b"$1\r\n1\r\n", MGET_B: array([bulk("2")])}, BAD_PART),
    ],
)
def test_a_failed_part_fails_the_whole(play: Play, frame: bytes, parts: dict[bytes, bytes], wanted: bytes) -> None:
    """With its own error, never with a nil or a 0 that looks like an answer."""
    stage = play()
    client = stage.client()
    client.send(frame + encode_command("PING"))
    answer(stage, parts)
    assert client.get() == wanted + b"+PONG\r\n"
    name = frame.split(b"\r\n")[2].decode().lower()
    assert stage.count("commands")[name]["errors"] == {wanted[1:].split()[0].decode(): 1}


def test_parts_may_come_in_pieces(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MGET)
    stage.turn()
    large = array([bulk(b"v" * 100_000)])
    for n in range(0, len(large), 30_000):
        stage.node(A).send(large[n : n + 30_000])
        stage.turn()
    stage.node(B).send(array([bulk("2")]))
    stage.turn()
    assert stage.drink(client) == array([bulk(b"v" * 100_000), bulk("2")])


def test_a_part_lost_in_the_middle_of_its_reply_is_asked_again_whole(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MGET)
    stage.turn()
    stage.node(A).get()
    stage.node(A).send(array([bulk(b"old" * 10_000)])[:20_000])
    stage.turn()
    stage.node(A).close()
    stage.turn(10)
    assert answer(stage, {MGET_A: array([bulk("new")]), MGET_B: array([bulk("2")])}) == [MGET_A, MGET_B]
    assert client.get() == array([bulk("new"), bulk("2")])


@pytest.mark.parametrize("began", [False, True])
def test_a_lost_part_of_a_write_may_have_been_executed(play: Play, began: bool) -> None:
    stage = play()
    client = stage.client()
    client.send(MSET)
    stage.turn()
    if began:
        stage.node(A).send(b"+" + b"x" * 10)
        stage.turn()
    stage.node(A).get()
    stage.node(A).close()
    stage.turn(6)
    assert answer(stage, {MSET_B: b"+OK\r\n"}) == [MSET_B]
    assert client.get() == TEXTS["lost"]


def test_parts_are_redirected_and_refused_each_for_itself(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MSET)
    stage.turn()
    moved = b"-MOVED %d %s\r\n" % (SLOT_A, str(C).encode())
    assert answer(stage, {MSET_A: moved, MSET_B: b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"}) == [
        MSET_A,
        MSET_B,
    ]
    stage.turn(3)
    assert stage.node(C).get() == MSET_A
    client.send(encode_command("GET", KEY_C))  # the client is unsettled: this must wait
    answer(stage, {MSET_B: b"+OK\r\n"})
    assert stage.node(C).get() == b""
    stage.node(C).send(b"-ASK %d %s\r\n" % (SLOT_A, str(B).encode()))
    assert answer(stage, {encode_command("ASKING"): b"+OK\r\n", MSET_A: b"+OK\r\n"})[-1] == MSET_A
    assert client.get() == b"+OK\r\n"
    assert answer(stage, {encode_command("GET", KEY_C): bulk("c")})
    assert client.get() == bulk("c")


def test_a_part_that_times_out_fails_the_whole(play: Play) -> None:
    stage = play(timeout_s=0.0)
    client = stage.client()
    client.send(MGET + DEL)
    stage.turn()
    stage.node(B).get()
    stage.node(B).send(array([bulk("2")]) + integer(1))
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert client.get() == TEXTS["timeout"] + TEXTS["timeout_sent"]
    stage.node(A).send(array([bulk("late")]) + integer(1))
    client.send(DEL)
    stage.turn()
    stage.node(A).send(integer(1))
    stage.node(B).send(integer(1))
    stage.turn()
    assert client.get() == integer(2)


def test_no_slot_is_served(play: Play) -> None:
    """All parts fail while they are being submitted."""
    stage = play(shards=[(A, [], [(16000, 16383)])])
    client = stage.client()
    client.send(MGET + encode_command("PING"))
    stage.turn()
    assert client.get() == errors.CLUSTERDOWN_UNSERVED + b"+PONG\r\n"


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_client_that_leaves_in_the_middle(play: Play, answered: int) -> None:
    """Before a part is answered, after one, after all while an earlier command holds the answer back."""
    stage = play()
    client = stage.client()
    first = encode_command("GET", KEY_C)
    client.send(first + MGET)
    stage.turn()
    if answered:
        stage.node(A).send(array([bulk("1")]))
    if answered == 2:
        stage.node(B).send(array([bulk("2")]))
    stage.turn()
    client.close()
    stage.turn()
    assert stage.count("inflight") == 0
    if answered < 2:
        stage.node(B).send(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
        stage.turn(6)
        stage.node(B).send(array([bulk("2")]))
    if not answered:
        stage.node(A).get()
        stage.node(A).close()
        stage.turn(6)
    stage.turn(6)
    answer(stage, {first: bulk("3"), MGET_A: array([bulk("1")]), MGET_B: array([bulk("2")])})
    assert sum(node.figures()["pending"] for node in stage.router.nodes.values()) == 0
    assert stage.parking.waiting == 0


@pytest.mark.parametrize("other", ["answered", "parked", "later"])
def test_a_client_that_leaves_while_a_part_is_parked(play: Play, other: str) -> None:
    """Nobody waits for the part any more: it ends when it would be sent again, whatever became of the other."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(MGET)
    second = array([bulk("2")])
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (MGET_A, MGET_B)
    stage.node(A).send(b"-LOADING Redis is loading the dataset in memory\r\n")
    if other != "later":
        stage.node(B).send(second if other == "answered" else b"-LOADING Redis is loading the dataset in memory\r\n")
    stage.turn()
    assert stage.parking.waiting == (2 if other == "parked" else 1)
    client.close()
    stage.turn()
    assert stage.parking.waiting == 0
    stage.parking.wake_all()
    if other == "later":
        stage.node(B).send(second)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (b"", b"")
    assert live() == stage.live


@pytest.mark.parametrize("fate", ["moved", "ask", "tryagain", "lost"])
def test_a_part_that_nobody_waits_for_is_not_sent_again(play: Play, fate: str) -> None:
    stage = play()
    client = stage.client()
    client.send(MGET)
    stage.turn()
    client.close()
    stage.turn()
    stage.node(A).get()
    if fate == "lost":
        stage.node(A).close()
    else:
        stage.node(A).send(b"-%s %d %s\r\n" % (fate.upper().encode(), SLOT_A, str(C).encode()))
    stage.turn(6)
    assert C not in stage.nodes
    assert (stage.node(A).get(), stage.parking.waiting) == (b"", 0)
    assert sum(stage.count("retries").values()) == 0
    stage.node(B).send(array([bulk("2")]))
    stage.turn()
    assert live() == stage.live


def test_resp3_parts(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("HELLO", "3"))
    stage.turn()
    client.get()
    client.send(MGET)
    answer(stage, {MGET_A: b"*1\r\n_\r\n", MGET_B: array([bulk("2")])})
    assert client.get() == b"*2\r\n_\r\n" + bulk("2")
    assert [b.proto for b in stage.router.nodes[A].backends()] == [3]


def test_replies_of_parts_count_as_output_that_is_held(play: Play) -> None:
    """Until the last part is answered nothing can leave: without a limit a long MGET would take any amount."""
    stage = play(hard_output=50_000)
    client, other = stage.client(), stage.client()
    client.send(MGET)
    stage.turn()
    stage.node(A).offer(array([bulk(b"x" * 60_000)]))
    stage.turn()
    assert client.closed
    assert stage.count("closed")["output_limit"] == 1
    stage.node(B).send(array([bulk(b"late")]))
    other.send(encode_command("GET", KEY_B))
    stage.turn()
    stage.node(B).send(bulk(b"right"))
    stage.turn()
    assert other.get() == bulk(b"right")


def test_what_parts_held_is_forgotten_with_the_answer(play: Play) -> None:
    stage = play(hard_output=50_000)
    client = stage.client()
    for _ in range(5):
        client.send(MGET)
        answer(stage, {MGET_A: array([bulk(b"a" * 15_000)]), MGET_B: array([bulk(b"b" * 15_000)])})
        assert client.get() == array([bulk(b"a" * 15_000), bulk(b"b" * 15_000)])
        assert stage.accepted.output_bytes == 0


# -- nobody waits any more


@pytest.mark.parametrize("form", ["whole", "in pieces", "first answered"])
def test_parts_of_a_client_that_left_are_not_held(play: Play, form: str) -> None:
    """What was held is given back at once, what comes later is dropped (it was 424 MB at a hard limit of 8)."""
    stage = play(shards=[(A, [], [(0, 16383)])])
    client, other = stage.client(), stage.client()
    client.send(encode_command("MGET", KEY_A, KEY_B, KEY_C))
    stage.turn()
    other.send(GET_A)
    stage.turn()
    node = stage.node(A)
    large = array([bulk(b"v" * 400_000)])
    if form != "whole":
        stage.pour(node, large + large[:200_000])
        assert output_bytes(stage.path) > 400_000
    client.close()
    stage.turn()
    assert output_bytes(stage.path) == 0
    if form == "whole":
        stage.pour(node, large * 3)
    elif form == "in pieces":
        stage.pour(node, large[200_000:400_000])
        assert output_bytes(stage.path) == 0
        stage.pour(node, large[400_000:] + large)
    else:
        stage.pour(node, large[200_000:] + b"-ERR no\r\n")
    assert output_bytes(stage.path) == 0
    node.send(bulk("mine"))
    stage.turn()
    assert other.get() == bulk("mine")
    assert live() == stage.live


@pytest.mark.parametrize("form", ["whole", "in pieces"])
def test_a_client_that_is_cut_off_for_what_its_parts_hold(play: Play, form: str) -> None:
    """By a part in the middle: the others' bytes go with it, and nothing more is held."""
    stage = play(shards=[(A, [], [(0, 16383)])], hard_output=500_000)
    client = stage.client()
    client.send(encode_command("MGET", KEY_A, KEY_B, KEY_C) + PING)
    stage.turn()
    node = stage.node(A)
    large = array([bulk(b"v" * 300_000)])
    stage.pour(node, large + (large if form == "whole" else large[:250_000]))
    assert stage.count("closed")["output_limit"] == 1
    assert (client.closed, output_bytes(stage.path)) == (True, 0)
    stage.pour(node, (b"" if form == "whole" else large[250_000:]) + large)
    assert output_bytes(stage.path) == 0
    assert live() == stage.live


def test_an_answer_larger_than_the_client_may_hold(play: Play) -> None:
    """The parts fit, what is made of them together with what is not yet taken does not."""
    stage = play(shards=[(A, [], [(0, 16383)])], hard_output=600_000)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    node = stage.node(A)
    stage.pour(node, bulk(b"w" * 700_000))  # most of it lies in the kernel's buffer
    left = stage.accepted.output_bytes
    client.send(encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    stage.pour(node, array([bulk(b"v" * ((600_000 - left) // 2))]) * 2)
    assert stage.count("closed")["output_limit"] == 1
    assert output_bytes(stage.path) == 0
    assert live() == stage.live
