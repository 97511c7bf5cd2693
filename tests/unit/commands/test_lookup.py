"""Finding commands by name in the compiled table."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands import lookup
from proxy.commands.dispositions import CommandClass, CommandFlag
from proxy.commands.lookup import CommandTable
from proxy.commands.rows import KeySpec, Row, row
from proxy.commands.table import ROWS, SOURCE

TABLE = CommandTable(ROWS, SOURCE, {})
TOP = [r.name for r in ROWS]
SUBS = [s.name for r in ROWS for s in r.subcommands]


def name_of(*args: bytes) -> str:
    return TABLE.lookup(*args)["name"]


def test_the_numbers_of_python_and_c_are_the_same() -> None:
    assert {c.name: c.value for c in CommandClass} == lookup._C_CLASSES
    assert {f.name: f.value for f in CommandFlag} == lookup._C_FLAGS


def test_the_table_has_every_row() -> None:
    assert sorted(TABLE.names()) == sorted(TOP + SUBS)
    assert len(TABLE) == len(TOP) + len(SUBS)
    assert TABLE.source == SOURCE


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title, str.swapcase])
def test_names_are_found_in_any_case(spell: object) -> None:
    assert callable(spell)
    assert [name_of(spell(n).encode(), b"~") for n in TOP] == TOP
    assert [name_of(*(spell(part).encode() for part in n.split("|"))) for n in SUBS] == SUBS


def test_only_letters_have_a_case() -> None:
    for name in TOP:
        for i, char in enumerate(name.encode()):
            if not chr(char).isalpha():
                other = bytearray(name.encode())
                other[i] = char ^ 0x20
                assert name_of(bytes(other)) == ""


def test_near_misses_are_unknown() -> None:
    known = set(TOP)
    for name in TOP:
        raw = name.encode()
        for near in (raw[:-1], raw[1:], raw + b"x", raw[:-1] + b"\0", b"\0" + raw, raw + b" ", raw * 9):
            if near.partition(b"\0")[0].decode() not in known:
                assert name_of(near) == ""
        for i in range(len(raw)):
            assert name_of(raw[:i] + bytes([raw[i] | 0x80]) + raw[i + 1 :]) == ""


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_find_what_a_dictionary_finds(name: bytes, sub: bytes) -> None:
    lowered, sub_lowered = name.lower().decode("latin-1"), sub.lower().decode("latin-1")
    found = name_of(name, sub)
    if lowered not in TOP:
        assert found == ""
    else:
        full = f"{lowered}|{sub_lowered}"
        assert found == (full if full in SUBS else lowered)


@given(st.sampled_from(TOP + SUBS), st.randoms(use_true_random=False))
def test_mixed_case(name: str, random: object) -> None:
    mixed = "".join(c.upper() if random.random() < 0.5 else c for c in name)  # type: ignore[attr-defined]
    assert name_of(*mixed.encode().split(b"|")) == name


def test_an_unknown_command_is_a_write_of_its_first_argument() -> None:
    assert TABLE.lookup(b"NOSUCH", b"key", b"x") == {
        "name": "",
        "klass": CommandClass.FORWARD,
        "flags": CommandFlag.WRITE,
        "arity": -1,
        "only_key": -1,
        "metric": 0,
    }
    assert TABLE.keys(b"NOSUCH", b"key", b"x") == [1]
    assert TABLE.keys(b"NOSUCH") == []
    assert name_of(b"") == ""
    assert name_of(b"x" * 5000) == ""


def test_a_command_needs_an_argument() -> None:
    with pytest.raises(ValueError, match="at least one argument"):
        TABLE.lookup()
    with pytest.raises(ValueError, match="at least one argument"):
        TABLE.keys()


def test_a_row() -> None:
    facts = TABLE.lookup(b"HSET", b"k", b"f", b"v")
    assert facts == {
        "name": "hset",
        "klass": CommandClass.FORWARD,
        "flags": CommandFlag.KNOWN | CommandFlag.WRITE,
        "arity": -4,
        "only_key": 1,
        "metric": facts["metric"],
    }


def test_a_subcommands_own_row() -> None:
    facts = TABLE.lookup(b"OBJECT", b"Encoding", b"k")
    assert (facts["name"], facts["arity"], facts["only_key"]) == ("object|encoding", 3, 2)
    assert TABLE.lookup(b"CONFIG", b"SET", b"a", b"b")["klass"] is CommandClass.UNSERVED
    assert TABLE.lookup(b"CONFIG", b"GET", b"a")["klass"] is CommandClass.LOCAL


def test_the_literal_full_name_is_unknown_as_on_a_server() -> None:
    assert name_of(b"object|encoding", b"k") == ""
    assert name_of(b"config|get") == ""


@pytest.mark.parametrize(
    ("args", "name", "klass"),
    [
        ((b"CLIENT",), "client", CommandClass.LOCAL),
        ((b"CLIENT", b"FOO"), "client", CommandClass.LOCAL),
        ((b"CLIENT", b""), "client", CommandClass.LOCAL),
        ((b"CLIENT", b"x" * 70), "client", CommandClass.LOCAL),
        ((b"CLUSTER", b"FOO"), "cluster", CommandClass.LOCAL),
        ((b"COMMAND", b"FOO"), "command", CommandClass.ANY),
        ((b"CONFIG", b"FOO"), "config", CommandClass.ANY),
        ((b"DEBUG", b"SLEEP"), "debug", CommandClass.REFUSED),
        ((b"OBJECT", b"FOO", b"k"), "object", CommandClass.ANY),
        ((b"GET", b"FOO"), "get", CommandClass.FORWARD),
    ],
)
def test_an_unknown_subcommand_is_its_containers(args: tuple[bytes, ...], name: str, klass: CommandClass) -> None:
    facts = TABLE.lookup(*args)
    assert (facts["name"], facts["klass"]) == (name, klass)
    assert CommandFlag.KNOWN in facts["flags"]


def test_allowing_lifts_refusals() -> None:
    table = CommandTable(ROWS, SOURCE, {}, allow=["DEBUG", "cluster failover"])
    assert table.lookup(b"DEBUG", b"SLEEP")["klass"] is CommandClass.ANY
    assert table.lookup(b"CLUSTER", b"FAILOVER")["klass"] is CommandClass.ANY
    assert table.lookup(b"CLUSTER", b"RESET")["klass"] is CommandClass.REFUSED
    assert table.lookup(b"SAVE")["klass"] is CommandClass.REFUSED


def test_metrics_are_stable_across_tables() -> None:
    metrics: dict[str, int] = {}
    first = CommandTable([row("b", 1, ""), row("a", 1, "")], "one", metrics)
    assert metrics == {"other": 0, "b": 1, "a": 2}
    second = CommandTable([row("c", 1, ""), row("a", 1, "")], "two", metrics)
    assert metrics == {"other": 0, "b": 1, "a": 2, "c": 3}
    assert (first.lookup(b"a")["metric"], second.lookup(b"A")["metric"], second.lookup(b"c")["metric"]) == (2, 2, 3)


def test_metrics_are_capped() -> None:
    metrics: dict[str, int] = {}
    table = CommandTable([row(f"c{i}", 1, "") for i in range(2000)], "many", metrics)
    assert len(metrics) == 1024
    assert sorted(metrics.values()) == list(range(1024))
    assert table.lookup(b"c1022")["metric"] == 1023
    assert table.lookup(b"c1023")["metric"] == 0
    assert CommandTable([row("late", 1, ""), row("c5", 1, "")], "more", metrics).lookup(b"c5")["metric"] == 6
    assert len(metrics) == 1024


def test_every_subcommand_has_a_metric_of_its_own() -> None:
    metrics: dict[str, int] = {}
    CommandTable(ROWS, SOURCE, metrics)
    assert set(metrics) == {"other", *TOP, *SUBS}


def test_names_of_any_length_are_kept_apart() -> None:
    names = [f"{'x' * n}{tail}" for n in range(62) for tail in ("a", "b")]
    table = CommandTable([row(n, 1, "") for n in names], "long", {})
    assert [table.lookup(n.upper().encode())["name"] for n in names] == names


def test_rows_that_do_not_fit_are_left_out() -> None:
    fits, too_long = "y" * 63, "z" * 64
    table = CommandTable([row(fits, 1, ""), row(too_long, 1, ""), row("", 1, "")], "edge", {})
    assert table.names() == [fits]
    assert table.lookup(too_long.encode())["name"] == ""


def test_a_keyword_that_does_not_fit_leaves_out_its_spec() -> None:
    specs = (KeySpec("keyword", 1, "K" * 24, "range", 0, 1, 0),)
    assert CommandTable([row("m", -2, "", specs=specs)], "edge", {}).keys(b"m", b"a", b"b") == [1]


def test_of_two_rows_with_one_name_the_last_counts() -> None:
    table = CommandTable([row("a", 1, ""), row("a", 2, "")], "twice", {})
    assert len(table) == 1
    assert table.lookup(b"a")["arity"] == 2


def test_an_empty_table_knows_nothing() -> None:
    table = CommandTable([], "none", {})
    assert table.names() == []
    assert table.lookup(b"GET", b"k")["name"] == ""


def test_a_row_that_cannot_be_built_leaves_nothing_behind() -> None:
    bad = Row("b", 2**40, (), 1, 1, 1)
    with pytest.raises(OverflowError):
        CommandTable([row("a", 1, "", (1, 1, 1), specs=(KeySpec("index", 1, "", "range", 0, 1, 0),)), bad], "bad", {})
    gc.collect()


def test_only_key_is_for_exactly_one_key() -> None:
    keys = {n: TABLE.lookup(*n.encode().split(b"|"))["only_key"] for n in TOP + SUBS}
    assert {n: keys[n] for n in ("get", "set", "xadd", "object|freq", "xgroup|create", "spublish")} == {
        "get": 1,
        "set": 1,
        "xadd": 1,
        "object|freq": 2,
        "xgroup|create": 2,
        "spublish": 1,
    }
    assert {keys[n] for n in ("mget", "del", "sort", "georadius", "migrate", "zunionstore", "eval", "rename")} == {-1}
    assert {keys[n] for n in ("ping", "publish", "config|get", "client", "flushall")} == {0}


@pytest.mark.parametrize("tail", [b"\0", b"\0x", b"\0" * 100, b"\0get"])
def test_a_name_ends_at_a_nul_as_on_a_server_that_compares_c_strings(tail: bytes) -> None:
    for name, klass in (("shutdown", "REFUSED"), ("multi", "TRANSACTION"), ("get", "FORWARD"), ("select", "LOCAL")):
        facts = TABLE.lookup(name.upper().encode() + tail, b"k")
        assert (facts["name"], facts["klass"].name) == (name, klass)
    for name, klass in (("config|set", "UNSERVED"), ("config|get", "LOCAL"), ("acl|setuser", "REFUSED")):
        container, sub = name.encode().split(b"|")
        for words in ((container, sub + tail), (container + tail, sub), (container + tail, sub + tail)):
            facts = TABLE.lookup(*words, b"k")
            assert (facts["name"], facts["klass"].name) == (name, klass)
    assert name_of(b"nosuch" + tail) == ""
    assert name_of(tail) == ""
    assert name_of(b"config", tail) == "config"
