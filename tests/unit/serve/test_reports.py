"""Reports of several nodes made one: order, sums, histograms, in the forms of RESP2 and RESP3."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.decode import decode
from proxy.resp.encode import array, bulk, double, integer, map_, verbatim
from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import split_frames
from proxy.serve import reports
from proxy.serve.combine import BY_TIP, Combine, TooLong, Unexpected, concatenated, packed, union

NODES = ["10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003"]
FAILED = b"-ERR broken\r\n"


def made(how: Combine, *replies: bytes) -> bytes:
    return how(list(replies), NODES[: len(replies)])


def entry(id_: int, time_s: int) -> bytes:
    words = array([bulk("GET"), bulk("a\r\n:9")])
    return array([integer(id_), integer(time_s), integer(7), words, bulk("1.2.3.4:5"), bulk("")])


def pairs(*items: bytes, proto: int) -> bytes:
    return map_(zip(items[::2], items[1::2], strict=True), proto)


@pytest.mark.parametrize(("count", "ids"), [(-1, [9, 4, 8, 3]), (10, [9, 4, 8, 3]), (2, [9, 4]), (0, [])])
def test_the_slow_log_is_the_newest_first(count: int, ids: list[int]) -> None:
    log = made(
        reports.newest(count), array([entry(9, 105), entry(8, 103)]), array([]), array([entry(4, 105), entry(3, 9)])
    )
    assert [one[0] for one in decode(log)] == ids
    assert log.startswith(b"*%d\r\n" % len(ids))
    assert count != 2 or log == array([entry(9, 105), entry(4, 105)])


@pytest.mark.parametrize("reply", [array([integer(1)]), array([array([])]), array([array([bulk("a"), bulk("b")])])])
def test_no_slow_log(reply: bytes) -> None:
    with pytest.raises(Unexpected):
        made(reports.newest(1), reply)


def test_texts() -> None:
    assert made(reports.texts, bulk("fine\n"), bulk("fine\n")) == bulk("fine\n")
    both = "# Node 10.0.0.1:7001\nfine\n\n# Node 10.0.0.2:7002\nbad\n"
    assert made(reports.texts, bulk("fine\n"), bulk("bad\n")) == bulk(both)
    assert made(reports.texts, verbatim("fine", "txt", 3), verbatim("bad", "txt", 3)) == verbatim(both, "txt", 3)
    assert made(reports.texts, bulk("fine"), FAILED) == b"-ERR broken (node 10.0.0.2:7002)\r\n"


def test_graphs_are_of_the_nodes_that_have_samples() -> None:
    none = b"-ERR No samples available for event 'x'\r\n"
    assert made(reports.graphs, none, none) == none
    assert made(reports.graphs, none, bulk("graph")) == bulk("graph")
    assert made(reports.graphs, bulk("a"), none, bulk("b")) == bulk(
        "# Node 10.0.0.1:7001\na\n\n# Node 10.0.0.3:7003\nb\n"
    )
    assert made(reports.graphs, none, FAILED) == b"-ERR broken (node 10.0.0.2:7002)\r\n"
    assert made(reports.graphs, none, FAILED, bulk("a")) == b"-ERR broken (node 10.0.0.2:7002)\r\n"
    assert made(reports.graphs, FAILED, FAILED) == FAILED


def test_latency_latest() -> None:
    def event(name: str, *values: int) -> bytes:
        return array([bulk(name), *map(integer, values)])

    old = made(
        reports.latest, array([event("a", 10, 5, 9)]), array([event("b", 1, 1, 1), event("a", 12, 3, 30)]), array([])
    )
    assert old == array([event("a", 12, 3, 30), event("b", 1, 1, 1)])
    new = made(reports.latest, array([event("a", 10, 5, 9, 14, 2)]), array([event("a", 9, 3, 4, 7, 2)]))
    assert new == array([event("a", 10, 5, 9, 21, 4)])


def test_latency_history_is_the_oldest_first() -> None:
    def sample(time_s: int, ms: int) -> bytes:
        return array([integer(time_s), integer(ms)])

    history = made(reports.history, array([sample(1, 9), sample(5, 1)]), array([sample(3, 7)]), array([]))
    assert history == array([sample(1, 9), sample(3, 7), sample(5, 1)])


@pytest.mark.parametrize("proto", [2, 3])
def test_latency_histogram(proto: int) -> None:
    def command(calls: int, *buckets: int) -> bytes:
        told = pairs(*map(integer, buckets), proto=proto)
        return pairs(bulk("calls"), integer(calls), bulk("histogram_usec"), told, proto=proto)

    first = pairs(bulk("get"), command(10, 1, 4, 4, 10), bulk("set"), command(1, 8, 1), proto=proto)
    second = pairs(bulk("get"), command(5, 2, 3, 8, 5), proto=proto)
    expected = pairs(bulk("get"), command(15, 1, 4, 2, 7, 4, 13, 8, 15), bulk("set"), command(1, 8, 1), proto=proto)
    assert made(reports.histogram, first, second, pairs(proto=proto)) == expected


@pytest.mark.parametrize("proto", [2, 3])
def test_memory_stats(proto: int) -> None:
    def node(total: int, startup: int, keys: int, data: int, peak: int, ratio: float, *more: bytes) -> bytes:
        return pairs(
            bulk("peak.allocated"), integer(peak), bulk("total.allocated"), integer(total),
            bulk("startup.allocated"), integer(startup), *more, bulk("keys.count"), integer(keys),
            bulk("keys.bytes-per-key"), integer((total - startup) // keys if keys else 0),
            bulk("dataset.bytes"), integer(data),
            bulk("dataset.percentage"), double(100 * data / max(total - startup, 1), proto),
            bulk("peak.percentage"), double(100 * total / peak, proto),
            bulk("ratio"), double(ratio, proto), proto=proto,
        )  # fmt: skip

    db = [bulk("db.0"), pairs(bulk("main"), integer(3), bulk("expires"), integer(1), proto=proto)]
    both = [bulk("db.0"), pairs(bulk("main"), integer(6), bulk("expires"), integer(2), proto=proto)]
    first, second = node(300, 100, 4, 100, 400, 1.0, *db), node(100, 50, 6, 25, 100, 3.0, *db)
    third = node(100, 100, 0, 0, 300, 2.0)
    stats = made(reports.memory, first, second, third)
    fields = decode(stats)
    fields = fields if proto == 3 else dict(zip(fields[::2], fields[1::2], strict=True))
    assert fields[b"total.allocated"] == 500
    assert fields[b"peak.allocated"] == 800
    assert fields[b"keys.count"] == 10
    assert fields[b"keys.bytes-per-key"] == 25
    assert float(fields[b"dataset.percentage"]) == 50.0
    assert float(fields[b"peak.percentage"]) == 62.5
    assert float(fields[b"ratio"]) == 1.6  # by the bytes in use
    assert both[1] in stats
    assert stats[:1] == (b"*" if proto == 2 else b"%")
    assert (b",62.5\r\n" in stats) == (proto == 3)
    # One node's own answer is as it was, but for the shares, which are worked out anew.
    alone = decode(made(reports.memory, first))
    assert alone == decode(first)


def test_subscribers_are_added_up() -> None:
    one = array([bulk("a"), integer(1), bulk("b"), integer(0)])
    assert made(reports.subscribers, one, one) == array([bulk("a"), integer(2), bulk("b"), integer(0)])
    assert made(reports.subscribers, array([]), array([])) == array([])
    with pytest.raises(Unexpected):
        made(reports.subscribers, one, array([]))


@pytest.mark.parametrize(
    "how", [reports.latest, reports.history, reports.histogram, reports.memory, reports.subscribers, reports.newest(3)]
)
@pytest.mark.parametrize(
    "odd",
    [
        bulk("x"),
        integer(1),
        array([bulk("a"), array([bulk("b")])]),
        array([integer(1)]),
        array([array([])]),
        b"*-1\r\n",
    ],
)
def test_another_form_than_expected(how: Combine, odd: bytes) -> None:
    with pytest.raises(Unexpected):
        made(how, odd, odd)


def test_a_node_that_fails_is_named() -> None:
    for how in (reports.latest, reports.history, reports.histogram, reports.memory, reports.subscribers):
        assert made(how, array([]), FAILED) == b"-ERR broken (node 10.0.0.2:7002)\r\n"


NUMBER = st.integers(-(2**63), 2**63 - 1)
LEAF = st.one_of(
    NUMBER.map(integer),
    st.sampled_from([0, 1]).map(integer),
    st.sampled_from(
        [b"calls", b"histogram_usec", b"total.allocated", b"keys.count", b"1.5", b"inf", b"nan", b"1e400"]
    ).map(bulk),
    st.binary(max_size=5).map(bulk),
    st.sampled_from([b"_\r\n", b"$-1\r\n", b"*-1\r\n", b"#t\r\n", b",1.5\r\n", b",inf\r\n", b",nan\r\n", b"+OK\r\n"]),
    st.sampled_from([b"-ERR x\r\n", b"!5\r\nERR x\r\n", b"=7\r\ntxt:abc\r\n", b"(99999999999999999999\r\n"]),
)
FRAME = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6).map(array),
        st.lists(inner, max_size=6).map(lambda items: b"~%d\r\n" % len(items) + b"".join(items)),
        st.lists(st.tuples(inner, inner), max_size=4).map(lambda items: map_(items, 3)),
    ),
    max_leaves=20,
)
EVERY = [
    *BY_TIP.values(), packed, union, concatenated, reports.newest(2), reports.texts, reports.graphs, reports.latest,
    reports.history, reports.histogram, reports.memory, reports.subscribers,
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAME, min_size=1, max_size=3), st.sampled_from(EVERY))
def test_whatever_nodes_say_becomes_one_frame(replies: list[bytes], how: Combine) -> None:
    try:
        reply = how(replies, NODES[: len(replies)])
    except (Unexpected, TooLong, ProtocolFault):
        return
    assert split_frames(reply) == [reply]
