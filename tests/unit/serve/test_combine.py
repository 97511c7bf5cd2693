"""The ways to combine: values, forms in RESP2 and RESP3, and what becomes of errors."""

from __future__ import annotations

import pytest

from proxy.resp.encode import array, bulk, integer, map_, null, null_array, set_, simple, verbatim
from proxy.serve import combine
from proxy.serve.combine import BY_TIP, Combine, TooLong, Unexpected

NODES = ["10.0.0.1:7001", "10.0.0.2:7002", "[::1]:7003"]
ONE, TWO, ZERO = integer(1), integer(2), integer(0)
OK, NOTBUSY = simple("OK"), b"-NOTBUSY No scripts in execution right now.\r\n"
UNKILLABLE = b"-UNKILLABLE Sorry the script already executed write commands.\r\n"
DOWN = b"-CLUSTERDOWN The node for this command cannot be reached\r\n"


def made(how: Combine, *replies: bytes) -> bytes:
    return how(list(replies), NODES[: len(replies)])


@pytest.mark.parametrize(
    ("tip", "replies", "expected"),
    [
        ("agg_sum", [ONE, TWO, TWO], integer(5)),
        ("agg_sum", [integer(-3), ONE], integer(-2)),
        ("agg_sum", [integer(2**63 - 1), TWO], integer(2**63 - 1)),
        ("agg_sum", [array([ONE, TWO]), array([TWO, TWO])], array([integer(3), integer(4)])),
        ("agg_min", [TWO, ONE, TWO], ONE),
        ("agg_min", [array([TWO, ZERO]), array([ONE, TWO])], array([ONE, ZERO])),
        ("agg_max", [ONE, TWO, ZERO], TWO),
        ("agg_logical_and", [ONE, ONE], ONE),
        ("agg_logical_and", [ONE, ZERO], ZERO),
        ("agg_logical_and", [array([ONE, ONE, ZERO]), array([ONE, ZERO, ZERO])], array([ONE, ZERO, ZERO])),
        ("agg_logical_and", [b"#t\r\n", b"#f\r\n"], b"#f\r\n"),
        ("agg_logical_or", [ZERO, ONE], ONE),
        ("agg_logical_or", [ZERO, ZERO], ZERO),
        ("agg_logical_or", [b"#f\r\n", b"#t\r\n"], b"#t\r\n"),
        ("agg_logical_or", [array([]), array([])], array([])),
        ("all_succeeded", [OK, OK], OK),
        ("all_succeeded", [bulk("a"), bulk("b")], bulk("a")),
        ("one_succeeded", [NOTBUSY, OK, NOTBUSY], OK),
        ("one_succeeded", [DOWN, OK], OK),
        ("one_succeeded", [NOTBUSY, NOTBUSY], NOTBUSY),
        ("one_succeeded", [NOTBUSY, UNKILLABLE, NOTBUSY], UNKILLABLE[:-2] + b" (node 10.0.0.2:7002)\r\n"),
        ("one_succeeded", [NOTBUSY, NOTBUSY, DOWN], DOWN[:-2] + b" (node [::1]:7003)\r\n"),
    ],
)
def test_by_tip(tip: str, replies: list[bytes], expected: bytes) -> None:
    assert made(BY_TIP[tip], *replies) == expected


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([array([ONE]), array([]), array([TWO, ZERO])], array([ONE, TWO, ZERO])),
        ([array([array([ONE])]), array([bulk("*1\r\n")])], array([array([ONE]), bulk("*1\r\n")])),
        ([set_([ONE, TWO], 3), set_([TWO, ZERO], 3)], set_([ONE, TWO, ZERO], 3)),
        ([map_([(ONE, TWO)], 3), map_([(TWO, ONE), (ONE, ZERO)], 3)], map_([(ONE, ZERO), (TWO, ONE)], 3)),
        ([OK, OK], OK),
        ([null(2), null(2)], null(2)),
        ([null_array(2), array([ONE])], array([ONE])),
        ([null(3), array([ONE])], array([ONE])),
        ([ONE, TWO], array([ONE, TWO])),
        ([bulk("a"), bulk("b")], array([bulk("a"), bulk("b")])),
        ([ONE, null(2)], array([ONE, null(2)])),
    ],
)
def test_without_a_tip(replies: list[bytes], expected: bytes) -> None:
    assert made(combine.packed, *replies) == expected


def test_union_and_concatenation() -> None:
    assert made(combine.union, array([ONE, TWO]), array([TWO, ZERO])) == array([ONE, TWO, ZERO])
    assert made(combine.concatenated, array([ONE, TWO]), array([TWO])) == array([ONE, TWO, TWO])
    assert made(combine.concatenated, array([]), array([])) == array([])


EVERY = [*BY_TIP.values(), combine.packed, combine.union, combine.concatenated]
STRICT = [how for how in EVERY if how is not combine.one_succeeded]


@pytest.mark.parametrize("how", EVERY)
def test_an_error_of_all_is_passed_on_letter_for_letter(how: Combine) -> None:
    assert made(how, DOWN, DOWN, DOWN) == DOWN
    assert made(how, DOWN) == DOWN


@pytest.mark.parametrize("how", STRICT)
def test_an_error_of_one_is_the_answer_and_named(how: Combine) -> None:
    for reply in (ONE, array([ONE])):
        assert made(how, reply, DOWN, reply) == DOWN[:-2] + b" (node 10.0.0.2:7002)\r\n"
    assert made(how, ONE, b"!10\r\nERR a\r\nbcd\r\n", ONE) == b"-ERR a  bcd (node 10.0.0.2:7002)\r\n"
    assert made(how, DOWN, NOTBUSY) == DOWN[:-2] + b" (node 10.0.0.1:7001)\r\n"


def test_an_error_of_no_certain_node_is_not_named() -> None:
    assert combine.total([ONE, DOWN], ["", ""]) == DOWN


@pytest.mark.parametrize(
    ("how", "replies"),
    [
        (combine.total, [ONE, bulk("1")]),
        (combine.total, [ONE, null(2)]),
        (combine.total, [array([ONE]), array([ONE, TWO])]),
        (combine.total, [array([ONE]), ONE]),
        (combine.logical_and, [ONE, TWO]),
        (combine.logical_and, [OK, OK]),
        (combine.concatenated, [array([ONE]), OK]),
        (combine.concatenated, [null_array(2)]),
        (combine.concatenated, [array([ONE]), map_([(ONE, TWO)], 3)]),
        (combine.union, [map_([(ONE, ONE)], 3)]),
        (combine.concatenated, [b"*?\r\n.\r\n"]),
        (combine.union, [bulk("a")]),
    ],
)
def test_another_form_than_expected(how: Combine, replies: list[bytes]) -> None:
    with pytest.raises(Unexpected):
        made(how, *replies)


@pytest.mark.parametrize("kind", [b"~", b"%"])
def test_more_than_can_be_taken_apart(kind: bytes) -> None:
    reply = kind + b"2\r\n" + bulk(b"a" * (combine.READ_MOST // 4)) * (2 if kind == b"~" else 4)
    for how in (combine.union, combine.packed) if kind == b"~" else (combine.packed,):
        with pytest.raises(TooLong):
            made(how, reply, reply[:-9] + b"b" * 7 + b"\r\n")
    long = array([bulk(b"a" * combine.READ_MOST)])
    assert made(combine.concatenated, long, long) == array([bulk(b"a" * combine.READ_MOST)] * 2)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (bulk("a\r\nb"), b"a\r\nb"),
        (verbatim("abc", "txt", 3), b"abc"),
        (simple("abc"), b"abc"),
        (b"-ERR x\r\n", b"ERR x"),
        (b"!5\r\nERR x\r\n", b"ERR x"),
    ],
)
def test_text(frame: bytes, text: bytes) -> None:
    assert combine.text(frame) == text


@pytest.mark.parametrize("frame", [ONE, null(2), null(3), array([])])
def test_no_text(frame: bytes) -> None:
    with pytest.raises(Unexpected):
        combine.text(frame)
