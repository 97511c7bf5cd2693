"""COMMAND replies of several servers and shapes, read as rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands.rows import KeySpec, Row, merge_rows, row, rows_from_command_reply, unknown_spec
from proxy.commands.table import ROWS

GET_SPEC = KeySpec("index", 1, "", "range", 0, 1, 0, ("RO", "access"))

# Redis 6.2 and 7.0 over RESP2, and 7.0 over RESP3 as a client library decodes it.
GET_62 = [b"get", 2, [b"readonly", b"fast"], 1, 1, 1, [b"@read"]]
EVAL_62 = [b"eval", -3, [b"noscript", b"may_replicate", b"movablekeys"], 0, 0, 0, [b"@slow"]]
BLPOP_62 = [b"blpop", -3, [b"write", b"noscript"], 1, -2, 1, [b"@write"]]
OBJECT_62 = [b"object", -2, [b"readonly", b"random"], 2, 2, 1, [b"@keyspace"]]
SPEC_7 = [
    b"flags", [b"RO", b"access"],
    b"begin_search", [b"type", b"index", b"spec", [b"index", 1]],
    b"find_keys", [b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", 1, b"limit", 0]],
]  # fmt: skip
GET_7 = [b"get", 2, [b"readonly", b"fast"], 1, 1, 1, [b"@read"], [], [SPEC_7], []]
GET_RESP3 = [
    "get", 2, {"readonly", "fast"}, 1, 1, 1, {"@read"}, [],
    [
        {
            "flags": {"RO", "access"},
            "begin_search": {"type": "index", "spec": {"index": 1}},
            "find_keys": {"type": "range", "spec": {"lastkey": 0, "keystep": 1, "limit": 0}},
        }
    ],
    [],
]  # fmt: skip
CONFIG_7 = [
    b"CONFIG", -2, [], 0, 0, 0, [], [], [],
    [
        [b"config|get", -3, [b"admin"], 0, 0, 0, [], [], [], []],
        [b"SET", -4, [b"admin"], 0, 0, 0, [], [b"request_policy:all_nodes"], [], []],
    ],
]  # fmt: skip


def only(reply: list[Any]) -> Row:
    (made,) = rows_from_command_reply(reply)
    return made


def test_an_entry_with_key_specs() -> None:
    assert only([GET_7]) == Row("get", 2, ("readonly", "fast"), 1, 1, 1, (), (GET_SPEC,), (), ("read",))


def test_resp3_shapes_give_the_same_facts() -> None:
    made = only([GET_RESP3])
    assert made._replace(flags=()) == only([GET_7])._replace(flags=())
    assert set(made.flags) == {"readonly", "fast"}


def test_subcommands_get_their_full_names_in_lower_case() -> None:
    made = only([CONFIG_7])
    assert made.name == "config"
    assert [s.name for s in made.subcommands] == ["config|get", "config|set"]
    assert made.subcommands[1].request_policy == "all_nodes"
    assert made.subcommands[1].response_policy == ""


def test_before_redis_7_the_specs_come_from_first_last_and_step() -> None:
    assert only([GET_62]).specs is None
    assert only([GET_62]).key_specs() == (KeySpec("index", 1, "", "range", 0, 1, 0),)
    assert only([BLPOP_62]).key_specs() == (KeySpec("index", 1, "", "range", -2, 1, 0),)
    assert only([OBJECT_62]).key_specs() == (KeySpec("index", 2, "", "range", 0, 1, 0),)
    assert only([EVAL_62]).key_specs() == (unknown_spec(""),)
    assert only([EVAL_62]).keyed


@pytest.mark.parametrize(
    "entry",
    [
        None,
        b"get",
        [],
        [b"get", 2, [b"readonly"]],
        [b"", 2, [], 1, 1, 1, []],
        [None, 2, [], 1, 1, 1, []],
        [b"get", b"2", [], 1, 1, 1, []],
        [b"get", 2, [], None, 1, 1, []],
        [b"get", 2**40, [], 1, 1, 1, []],
        [b"a|b", 2, [], 1, 1, 1, []],
    ],
)
def test_malformed_entries_are_skipped(entry: object) -> None:
    assert [r.name for r in rows_from_command_reply([entry, GET_7])] == ["get"]


def test_malformed_specs_are_skipped_and_unknown_kinds_kept_as_unknown() -> None:
    future = [b"flags", [b"RO"], b"begin_search", [b"type", b"oracle"], b"find_keys", [b"type", b"range"]]
    bad = [*GET_7[:8], [None, [b"flags"], future, SPEC_7], []]
    assert only([bad]).specs == (unknown_spec("RO"), GET_SPEC)


WORD = st.sampled_from([b"get", b"flags", b"type", b"begin_search", b"index"])
JUNK = st.recursive(
    st.none() | st.integers() | st.binary(max_size=8) | st.text(max_size=8) | WORD,
    lambda inner: st.lists(inner, max_size=11) | st.dictionaries(st.binary(max_size=4), inner, max_size=3),
    max_leaves=40,
)


@given(JUNK)
def test_no_reply_is_fatal(reply: object) -> None:
    assert isinstance(rows_from_command_reply(reply), list)
    assert isinstance(rows_from_command_reply([reply]), list)


@given(JUNK, JUNK, JUNK, JUNK)
def test_no_entry_is_fatal(flags: object, tips: object, specs: object, subs: object) -> None:
    made = rows_from_command_reply([[b"x", -1, flags, 1, 1, 1, [], tips, specs, subs]])
    assert [r.name for r in made] == ["x"]
    assert hash(made[0]) == hash(made[0])


def test_merging_takes_the_union_and_the_newer_row() -> None:
    older = [row("a", 1, "write"), row("b", 2, "write")]
    newer = [row("c", 1, ""), row("b", 3, "readonly")]
    assert merge_rows(older, newer) == [row("a", 1, "write"), row("b", 3, "readonly"), row("c", 1, "")]


def test_merging_unites_subcommands() -> None:
    older = [row("config", -2, "", subcommands=(row("config|get", -3, ""), row("config|set", -4, "")))]
    newer = [row("config", -2, "", subcommands=(row("config|get", -3, "admin"), row("config|new", 2, "")))]
    (merged,) = merge_rows(older, newer)
    assert [(s.name, s.flags) for s in merged.subcommands] == [
        ("config|get", ("admin",)),
        ("config|new", ()),
        ("config|set", ()),
    ]


def test_an_old_server_is_completed_from_the_built_in_table() -> None:
    merged = {r.name: r for r in merge_rows(ROWS, rows_from_command_reply([EVAL_62, BLPOP_62, OBJECT_62]))}
    known = {r.name: r for r in ROWS}
    assert merged["eval"].specs == known["eval"].specs
    assert merged["eval"].flags == ("noscript", "may_replicate", "movablekeys")
    assert merged["blpop"].flags == ("write", "noscript", "blocking")
    assert merged["object"].subcommands == known["object"].subcommands
    assert merged["quit"] == known["quit"]
