"""Who is asked for what, in how many rounds, and what becomes of nodes that fail and of clients that leave."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.commands.dispositions import CommandClass, classify
from proxy.commands.lookup import CommandTable
from proxy.commands.rows import Row, row
from proxy.commands.table import ROWS
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.readers import CommandReader
from proxy.serve import table
from proxy.serve.all_shards import COMMANDS, CONTAINERS, by_tip
from proxy.worker.spare import SpareConnections
from tests.support.datapath import THIRDS, A, B, C, End, Stage
from tests.unit.serve.fakes import FakeClient, context

D = Address("10.0.0.4", 7004)  # A's replica, where there is one
ALL = {r.name.encode(): r for top in ROWS for r in (top, *top.subcommands)}
OK = b"+OK\r\n"
DBSIZE, RANDOMKEY, KEYS = encode_command("DBSIZE"), encode_command("RANDOMKEY"), encode_command("KEYS", "*")
CLUSTERDOWN = b"-CLUSTERDOWN The cluster is down\r\n"
BAD_PART = b"-ERR a node answered part of this command in an unexpected form\r\n"
REPLICATED = [(A, [D], [(0, 5460)]), *THIRDS[1:]]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with closing(Stage(REPLICATED)) as made:
        know(made)
        yield made
        assert made.raised == []


def know(stage: Stage, *more: Row, allow: tuple[str, ...] = ()) -> None:
    """Gives the stage a command table: the built-in one and what a test adds."""
    rows = [*ROWS, *more]
    stage.path.table = CommandTable(rows, "", stage.counters.metrics, allow)
    stage.context.rows = {r.name.encode(): r for top in rows for r in (top, *top.subcommands)}


def send(stage: Stage, client: End, *words: str | bytes) -> bytes:
    frame = encode_command(*words)
    client.send(frame)
    stage.turn()
    return frame


def asked(stage: Stage) -> dict[Address, list[bytes]]:
    """What every node has got since it was looked at last."""
    stage.turn()
    got = {}
    for address, ends in stage.nodes.items():
        frames = [frame for end in ends for frame, _ in CommandReader().feed(end.get())]
        if frames:
            got[address] = frames
    return got


def replies(stage: Stage, told: dict[Address, bytes]) -> None:
    for address, reply in told.items():
        stage.node(address).send(reply)
        stage.turn()


PRIMARIES = "dbsize/keys a*/flushall/flushdb async/memory purge/memory stats/script exists x/script load x"
FUNCTIONS = "function delete x/function flush/function load x/function restore x"
EVERY_NODE = "script flush/config set a b/config resetstat/config rewrite/slowlog get/slowlog len/slowlog reset"
MORE_NODES = (
    "commandlog len slow/"
    "latency latest/latency reset/latency histogram/pubsub channels/pubsub numpat/pubsub numsub a/latency doctor"
)


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        *((words, {A, B, C}) for words in f"{PRIMARIES}/{FUNCTIONS}".split("/")),
        *((words, {A, B, C, D}) for words in f"{EVERY_NODE}/{MORE_NODES}".split("/")),
    ],
)
def test_who_is_asked(stage: Stage, words: str, nodes: set[Address]) -> None:
    client = stage.client()
    frame = send(stage, client, *words.split())
    assert asked(stage) == {node: [frame] for node in nodes}
    replies(stage, dict.fromkeys(nodes, b"-ERR as one likes it\r\n"))
    assert client.get() == b"-ERR as one likes it\r\n"


@pytest.mark.parametrize("words", ["function list", "function dump", "function stats"])
def test_one_is_asked(stage: Stage, words: str) -> None:
    client = stage.client()
    frame = send(stage, client, *words.split())
    ((node, frames),) = asked(stage).items()
    assert frames == [frame]
    replies(stage, {node: array([])})
    assert client.get() == array([])


def test_the_answers_may_come_in_any_order(stage: Stage) -> None:
    client = stage.client()
    send(stage, client, "DBSIZE")
    send(stage, client, "PING")
    assert asked(stage) == {node: [DBSIZE] for node in (A, B, C)}
    replies(stage, {C: integer(3), A: integer(1)})
    assert client.get() == b""
    replies(stage, {B: integer(2)})
    assert client.get() == integer(6) + b"+PONG\r\n"


def test_a_node_that_fails_is_named(stage: Stage) -> None:
    client = stage.client()
    send(stage, client, "FLUSHALL")
    replies(stage, {A: OK, B: b"-MISCONF no\r\n", C: OK})
    assert client.get() == b"-MISCONF no (node 10.0.0.1:7002)\r\n"


def test_a_node_that_cannot_be_reached_is_named() -> None:
    with closing(Stage(failover_s=0.000001)) as stage:
        know(stage)
        stage.unreachable.add(C)
        client = stage.client()
        send(stage, client, "DBSIZE")
        stage.until(lambda: A in stage.nodes and B in stage.nodes)
        replies(stage, {A: integer(1), B: integer(2)})
        got = stage.hear(client)
        assert got == b"-CLUSTERDOWN The node for this command cannot be reached (node 10.0.0.1:7003)\r\n"


def test_a_shard_without_a_primary_is_not_left_out() -> None:
    with closing(Stage([(A, [], [(0, 5460)]), (None, [D], [(5461, 16383)])])) as stage:
        know(stage)
        client = stage.client()
        for words in (["DBSIZE"], ["RANDOMKEY"], ["FLUSHALL"]):
            send(stage, client, *words)
            assert client.get() == CLUSTERDOWN
        assert asked(stage) == {}
        stage.publish(THIRDS)
        send(stage, client, "DBSIZE")
        assert set(asked(stage)) == {A, B, C}
        replies(stage, dict.fromkeys((A, B, C), integer(1)))
        assert client.get() == integer(3)


def test_a_reply_of_another_form(stage: Stage) -> None:
    client = stage.client()
    for words, odd in ((["DBSIZE"], b"+1\r\n"), (["KEYS", "*"], integer(1)), (["RANDOMKEY"], bulk("x"))):
        send(stage, client, *words)
        replies(stage, dict.fromkeys((A, B, C), odd))
        assert client.get() == BAD_PART


# -- RANDOMKEY


@pytest.mark.parametrize(("proto", "nothing"), [(2, b"$-1\r\n"), (3, b"_\r\n")])
def test_random_key(stage: Stage, proto: int, nothing: bytes) -> None:
    client = stage.client()
    client.send(encode_command("HELLO", proto))
    stage.turn()
    client.get()
    # All have none.
    send(stage, client, "RANDOMKEY")
    assert asked(stage) == {node: [DBSIZE] for node in (A, B, C)}
    replies(stage, dict.fromkeys((A, B, C), integer(0)))
    assert client.get() == nothing
    # One has some.
    send(stage, client, "RANDOMKEY")
    replies(stage, {A: integer(0), B: integer(7), C: integer(0)})
    assert asked(stage)[B][-1] == RANDOMKEY
    replies(stage, {B: bulk("k")})
    assert client.get() == bulk("k")
    # Those have none any more: each is asked once.
    send(stage, client, "RANDOMKEY")
    assert asked(stage) == {node: [DBSIZE] for node in (A, B, C)}
    replies(stage, {A: integer(1), B: integer(1000), C: integer(0)})
    seen = []
    for _ in range(2):
        ((node, frames),) = asked(stage).items()
        assert frames == [RANDOMKEY]
        seen.append(node)
        assert client.get() == b""
        replies(stage, {node: nothing})
    assert sorted(seen) == [A, B]
    assert client.get() == nothing
    # One fails.
    send(stage, client, "RANDOMKEY")
    assert set(asked(stage)) == {A, B, C}
    replies(stage, {A: integer(1), B: b"-ERR x\r\n", C: integer(1)})
    assert client.get() == b"-ERR x (node 10.0.0.1:7002)\r\n"
    send(stage, client, "RANDOMKEY")
    assert set(asked(stage)) == {A, B, C}
    replies(stage, {A: integer(0), B: integer(0), C: integer(1)})
    assert asked(stage) == {C: [RANDOMKEY]}
    replies(stage, {C: b"-ERR x\r\n"})
    assert client.get() == b"-ERR x (node 10.0.0.1:7003)\r\n"


def test_random_key_is_fair_over_the_keys(stage: Stage) -> None:
    random.seed(11)
    client = stage.client()
    counts = {A: 10, B: 60, C: 30}
    drawn = dict.fromkeys(counts, 0)
    for _ in range(600):
        send(stage, client, "RANDOMKEY")
        replies(stage, {node: integer(count) for node, count in counts.items()})
        (node,) = [node for node, frames in asked(stage).items() if frames[-1] == RANDOMKEY]
        drawn[node] += 1
        replies(stage, {node: bulk("k")})
        assert client.get() == bulk("k")
    for node, count in counts.items():
        assert abs(drawn[node] - 6 * count) < 75, drawn


# -- what is held


def test_a_client_that_leaves_frees_what_is_held() -> None:
    with closing(Stage()) as stage:
        know(stage)
        client = stage.client()
        send(stage, client, "KEYS", "*")
        before = stage.path.client_memory
        stage.pour(stage.node(A), array([bulk(b"k" * 1000)] * 3000))
        stage.pour(stage.node(B), array([bulk(b"k" * 1000)] * 3000)[:-7])
        assert stage.path.client_memory > before + 5_000_000
        client.close()
        stage.turn()
        assert stage.path.client_memory < 100_000
        replies(stage, {B: bulk(b"k" * 1000)[-7:], C: array([])})


def test_replies_that_are_too_long_together_are_an_error() -> None:
    with closing(Stage(hard_output=1_000_000)) as stage:
        know(stage)
        client = stage.client()
        send(stage, client, "KEYS", "*")
        for node in (A, B, C):
            stage.pour(stage.node(node), array([bulk(b"k" * 100)] * 1000))
        assert client.get() == b"-ERR the nodes' replies to this command are together too long\r\n"
        send(stage, client, "KEYS", "*")
        replies(stage, {A: array([bulk("a")]), B: array([]), C: array([bulk("c")])})
        assert client.get() == array([bulk("a"), bulk("c")])


def test_replies_that_are_too_long_to_be_taken_apart(stage: Stage) -> None:
    client = stage.client()
    send(stage, client, "SLOWLOG", "GET")
    for node in (A, B, C, D):
        stage.pour(stage.node(node), array([bulk(b"k" * 1000)] * 3000))
    assert client.get() == b"-ERR the nodes' replies to this command are together too long\r\n"


# -- many words


@pytest.mark.parametrize("count", [1, 1000, 1001, 2500])
def test_many_words_are_asked_for_in_rounds(stage: Stage, count: int) -> None:
    names = [b"c%d" % n for n in range(count)]
    client = stage.client()
    stage.pour(client, encode_command("Pubsub", "NumSub", *names))
    for begin in range(0, count, 1000):
        some = names[begin : begin + 1000]
        told = asked(stage)
        assert told == {node: [encode_command("Pubsub", "NumSub", *some)] for node in (A, B, C, D)}
        assert client.get() == b""
        for node in told:
            flat = [frame for name in some for frame in (bulk(name), integer(int(name[1:])))]
            stage.pour(stage.node(node), array(flat))
    expected = array([frame for name in names for frame in (bulk(name), integer(4 * int(name[1:])))])
    assert stage.drink(client) == expected


def test_many_scripts_are_asked_for_in_rounds(stage: Stage) -> None:
    client = stage.client()
    stage.pour(client, encode_command("SCRIPT", "EXISTS", *[b"x"] * 1500))
    for size in (1000, 500):
        assert set(asked(stage)) == {A, B, C}
        for node in (A, B, C):
            stage.pour(stage.node(node), array([integer(1), integer(node is not C)] * (size // 2)))
    assert stage.drink(client) == array([integer(1), integer(0)] * 750)
    stage.pour(client, encode_command("SCRIPT", "EXISTS", *[b"x"] * 1500))
    replies(stage, {A: array([integer(1)] * 1000), B: b"-ERR x\r\n", C: array([integer(1)] * 1000)})
    assert client.get() == b"-ERR x (node 10.0.0.1:7002)\r\n"


def test_one_command_in_rounds_at_a_time(stage: Stage) -> None:
    client = stage.client()
    frame = encode_command("SCRIPT", "EXISTS", *[b"x"] * 1001)
    stage.pour(client, encode_command("DBSIZE") + frame + frame)
    for size in (0, 1000, 1, 1000, 1):
        assert {node: len(frames) for node, frames in asked(stage).items()} == {A: 1, B: 1, C: 1}
        for node in (A, B, C):
            stage.pour(stage.node(node), array([integer(1)] * size) if size else integer(1))
    assert stage.drink(client) == integer(3) + array([integer(1)] * 1001) * 2


def test_subscribers_of_no_channel(stage: Stage) -> None:
    client = stage.client()
    send(stage, client, "PUBSUB", "NUMSUB")
    replies(stage, dict.fromkeys((A, B, C, D), array([])))
    assert client.get() == array([])


# -- slots, scripts


def test_the_slots_owner_is_asked(stage: Stage) -> None:
    client = stage.client()
    for slot, node in ((0, A), (5461, B), (16383, C)):
        frame = send(stage, client, "CLUSTER", "CountKeysInSlot", str(slot))
        assert asked(stage) == {node: [frame]}
        replies(stage, {node: integer(slot)})
        assert client.get() == integer(slot)
    for slot in ("-1", "16384", "x", "01", str(2**70)):
        frame = send(stage, client, "CLUSTER", "GETKEYSINSLOT", slot, "3")
        ((node, frames),) = asked(stage).items()
        assert frames == [frame]
        replies(stage, {node: b"-ERR Invalid slot\r\n"})
        assert client.get() == b"-ERR Invalid slot\r\n"


@pytest.mark.parametrize("what", ["SCRIPT", "FUNCTION"])
def test_kill_comes_by_connections_of_its_own(stage: Stage, what: str) -> None:
    stage.context.spare_connections = SpareConnections(stage.router)
    client = stage.client()
    for _ in range(2):  # the second time they are there
        frame = send(stage, client, what, "KILL")
        stage.turn()
        assert asked(stage) == {node: [frame] for node in (A, B, C)}
        for node, reply in ((A, b"-NOTBUSY x\r\n"), (B, OK), (C, b"-NOTBUSY x\r\n")):
            stage.node(node).send(reply)
        stage.turn()
        assert client.get() == OK
        assert {len(node.backends()) for node in stage.router.primaries} == {1}
        assert all(backend.leased for node in stage.router.primaries for backend in node.backends())
    send(stage, client, "DBSIZE")
    assert {len(ends) for address, ends in stage.nodes.items() if address != D} == {2}
    replies(stage, dict.fromkeys((A, B, C), integer(0)))
    assert client.get() == integer(0)
    send(stage, client, what, "KILL")
    for node in (A, B, C):
        stage.nodes[node][0].send(b"-UNKILLABLE y\r\n" if node is C else b"-NOTBUSY x\r\n")
    stage.turn()
    assert client.get() == b"-UNKILLABLE y (node 10.0.0.1:7003)\r\n"


def test_kill_without_a_primary(stage: Stage) -> None:
    assert table.answer(context(), FakeClient(), [b"SCRIPT", b"KILL"]) == CLUSTERDOWN


def test_spare_connections_are_made_anew_and_given_up(stage: Stage) -> None:
    spare = SpareConnections(stage.router)
    first = spare()
    assert spare() == first
    first[0].close()
    second = spare()
    assert second[0] is not first[0]
    assert second[1:] == first[1:]
    stage.publish(THIRDS[:2])
    assert spare() == second[:2]
    assert second[2].state == first[0].state  # closed


def test_no_debugging_session(stage: Stage) -> None:
    client = stage.client()
    send(stage, client, "SCRIPT", "DEBUG", "YES")
    assert client.get() == b"-ERR command 'script|debug' is not allowed through this proxy\r\n"


# -- by tip


@pytest.mark.parametrize(
    ("tips", "told", "expected"),
    [
        ("request_policy:all_shards response_policy:agg_sum", [1, 2, 3], integer(6)),
        ("request_policy:all_shards response_policy:agg_min", [5, 2, 3], integer(2)),
        ("request_policy:multi_shard response_policy:agg_max", [5, 2, 3], integer(5)),
        ("request_policy:special response_policy:agg_logical_or", [0, 1, 0], integer(1)),
        ("request_policy:all_shards", [1, 2, 3], array([integer(1), integer(2), integer(3)])),
        ("request_policy:all_shards response_policy:special", [3, 3, 3], integer(3)),
        ("request_policy:all_shards response_policy:newer_than_this", [3, 3, 3], integer(3)),
    ],
)
def test_a_command_nobody_decided_on(stage: Stage, tips: str, told: list[int], expected: bytes) -> None:
    know(
        stage, row("m.all", -2, "readonly", tips=tips), row("m", -2, "", subcommands=(row("m|sub", -2, "", tips=tips),))
    )
    client = stage.client()
    for words in (["M.All", "x"], ["M", "SUB", "x"]):
        frame = send(stage, client, *words)
        assert asked(stage) == {node: [frame] for node in (A, B, C)}
        replies(stage, {node: integer(count) for node, count in zip((A, B, C), told, strict=True)})
        assert client.get() == expected
    send(stage, client, "M.ALL")
    assert client.get() == b"-ERR wrong number of arguments for 'm.all' command\r\n"


def test_all_nodes_are_the_replicas_too(stage: Stage) -> None:
    know(stage, row("m.all", 1, "", tips="request_policy:all_nodes response_policy:all_succeeded"))
    client = stage.client()
    send(stage, client, "M.ALL")
    assert set(asked(stage)) == {A, B, C, D}
    replies(stage, dict.fromkeys((A, B, C, D), OK))
    assert client.get() == OK


@pytest.mark.parametrize("name", [b"client|setname", b"cluster|slot-stats", b"get", b"mget", b"lolwut", b"nosuch"])
def test_never_by_tip(name: bytes) -> None:
    assert by_tip(context(rows=ALL), name) is None


@pytest.mark.parametrize(
    "words", [["SAVE"], ["BGSAVE"], ["ACL", "SETUSER", "x"], ["ACL", "LOAD"], ["SWAPDB", "0", "1"]]
)
def test_what_is_allowed_goes_to_all(stage: Stage, words: list[str]) -> None:
    client = stage.client()
    send(stage, client, *words)
    assert client.get().endswith(b"is not allowed through this proxy\r\n")
    know(stage, allow=("save", "bgsave", "swapdb", "acl"))
    send(stage, client, *words)
    nodes = {A, B, C, D} if words[0] == "ACL" else {A, B, C}
    assert set(asked(stage)) == nodes
    replies(stage, dict.fromkeys(nodes, OK))
    assert client.get() == OK


# -- the table


def test_arities_are_those_of_the_servers() -> None:
    assert {name: arity for name, (arity, _) in COMMANDS.items() if name in ALL and ALL[name].arity != arity} == {}
    assert set(COMMANDS) - set(ALL) == {b"sflush"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_whatever_is_left_to_serve_is_served_or_refused_in_words(name: bytes) -> None:
    """None of the built-in table raises here, and what tips or the table say is asked of somebody."""
    if classify(ALL[name]) is not CommandClass.LOCAL or name in (b"quit", b"reset"):
        return
    words = name.split(b"|") + [b"1"] * (abs(ALL[name].arity) - name.count(b"|") - 1)
    made: Any = table.answer(context(rows=ALL), FakeClient(), words)
    assert made is not None
    if name in COMMANDS and name not in (b"script|debug", b"script|kill", b"function|kill"):
        assert not isinstance(made, bytes)


@pytest.mark.parametrize("container", sorted(CONTAINERS))
def test_containers_alone_and_with_what_is_unknown(container: bytes) -> None:
    ctx = context(rows=ALL)
    alone = table.answer(ctx, FakeClient(), [container])
    assert alone == b"-ERR wrong number of arguments for '" + container + b"' command\r\n"
    for sub in (b"nosuch", b"get\0", b"\xff", b""):
        made = table.answer(ctx, FakeClient(), [container, sub])
        assert isinstance(made, bytes)
        assert made.startswith(b"-ERR unknown subcommand '")


def test_what_is_kept_for_an_answer_is_gone_with_it() -> None:
    """No cycle: a large FUNCTION RESTORE must not live until the next garbage collection."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        ask: Any = table.answer(context(), FakeClient(), [b"DBSIZE"])
        finish = ask.finish
        assert finish.labels is ask.labels
        gone = weakref.ref(finish)
        del ask, finish
        assert gone() is None
    finally:
        gc.enable()
