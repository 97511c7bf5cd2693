"""The keys of commands, against what real servers say of the same arguments (COMMAND GETKEYS)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands.lookup import CommandTable
from proxy.commands.rows import (
    KeySpec,
    Row,
    index_keynum,
    index_range,
    keyword_range,
    merge_rows,
    row,
    rows_from_command_reply,
    unknown_spec,
)
from proxy.commands.table import ROWS, SOURCE
from proxy.embedded import free_port, wait_for
from tests.support.cluster import Standalone, servers, slot_of

Call = tuple[bytes, ...]

TABLE = CommandTable(ROWS, SOURCE, {})
KEYED = {r.name: r for top in ROWS for r in (top, *top.subcommands) if r.specs}
CASES_PER_COMMAND = 60
# What may stand where an option, a count or a key is expected; no number the servers read leniently ("01", "+1").
WORDS = [
    b"STORE", b"store", b"StoreDist", b"STREAMS", b"streams", b"KEYS", b"GET", b"BY", b"LIMIT", b"COUNT", b"BLOCK",
    b"GROUP", b"NOACK", b"AUTH", b"AUTH2", b"COPY", b"REPLACE", b"0", b"1", b"2", b"3", b"7", b"-1", b"abc", b"",
    b"99999999999999999999",
]  # fmt: skip


def getkeys(client: redis.Redis, calls: Sequence[Call]) -> list[Any]:
    pipe: Any = client.pipeline(transaction=False)
    for call in calls:
        pipe.execute_command("COMMAND", "GETKEYS", *call)
    answers: list[Any] = pipe.execute(raise_on_error=False)
    return answers


def is_not_key(r: Row) -> bool:
    return any("not_key" in s.flags for s in r.specs or ())


def well_formed(r: Row, keys: int) -> Call:
    """A call of this command with about so many keys, made by its specs."""
    args: list[bytes] = list(r.name.encode().split(b"|"))
    specs = [s for s in r.specs or () if s.complete and not (r.name == "migrate" and s.begin == "keyword")]

    def put(at: int, value: bytes) -> None:
        while len(args) <= at:
            args.append(b"arg%d" % len(args))
        args[at] = value

    for s in specs:
        at = s.at if s.begin == "index" else max(len(args), s.at)
        if s.begin == "keyword":
            put(at, s.keyword.encode())
            at += 1
        if s.find == "keynum":
            put(at + s.last, b"%d" % keys)
            for n in range(keys * s.step):
                put(at + s.limit + n, b"key%d" % n)
        elif s.last >= 0:
            put(at + s.last, b"last")
        elif s.limit:
            for n in range(keys * s.limit):
                put(at + n, b"key%d" % n)
        else:
            for n in range(keys * s.step - 1 - s.last):
                put(at + n, b"key%d" % n)
        if r.name.startswith("georadius"):
            break  # STORE and STOREDIST exclude each other; test_georadius has them both
    while len(args) < abs(r.arity):
        args.append(b"arg%d" % len(args))
    return tuple(args)


def random_calls(r: Row, rng: random.Random) -> Iterator[Call]:
    head = tuple(r.name.encode().split(b"|"))
    for keys in (1, 2, 3, 10):
        if r.arity < 0 or len(well_formed(r, keys)) == r.arity:
            yield well_formed(r, keys)
    movable = "movablekeys" in r.flags
    for _ in range(CASES_PER_COMMAND if movable else CASES_PER_COMMAND // 6):
        if rng.random() < 0.5:
            call = list(well_formed(r, rng.randint(0, 4)))
            for _ in range(rng.randint(0, 2)):
                call[rng.randrange(len(head), len(call))] = rng.choice(WORDS)
            if r.arity < 0:
                call += rng.choices([*WORDS, b"k"], k=rng.randint(0, 4))
        else:
            n = (r.arity if r.arity > 0 else rng.randint(-r.arity, -r.arity + 8)) - len(head)
            call = [*head, *(rng.choice(WORDS) if rng.random() < 0.6 else b"k%d" % i for i in range(n))]
        if len(call) == r.arity or (r.arity < 0 and len(call) >= -r.arity):
            yield tuple(call)


def comparable(r: Row, call: Call) -> bool:
    # GETKEYS goes by key specs where it can, the check of slots (and so the proxy) by the server's own functions: these
    # calls, which only end in an error, tell them apart.
    lowered = [a.lower() for a in call]
    if r.name.startswith("georadius"):
        stores = [i for i, a in enumerate(lowered) if a in (b"store", b"storedist")]
        return len(stores) < 2 and (r.name != "georadius" or stores != [5])
    if r.name == "pfmerge" and len(call) == 2:
        return False
    if r.name == "migrate" and lowered[-1] == b"keys":
        return False
    if r.name.startswith("xread"):
        return b"streams" not in lowered[1 : r.specs[0].at if r.specs else 1] and lowered.count(b"streams") == 1
    # A count of 0 is an error (or a script without keys): the server stops at it, we keep what other specs found.
    return not (b"0" in call and len(r.specs or ()) > 1 and any(s.find == "keynum" for s in r.specs or ()))


def test_the_servers_find_the_same_keys(standalone: Standalone) -> None:
    rng = random.Random(20)
    with redis.Redis(host="127.0.0.1", port=standalone.port, protocol=2) as client:
        client.response_callbacks.clear()
        rows = rows_from_command_reply(client.execute_command("COMMAND"))
        of_server = CommandTable(rows, "server", {})
        keyed = [r for top in rows for r in (top, *top.subcommands) if r.specs and not is_not_key(r)]
        calls = [(r.name, call) for r in keyed for call in random_calls(r, rng) if comparable(r, call)]
        answers = getkeys(client, [call for _, call in calls])
    compared: dict[str, int] = {}
    for (name, call), answer in zip(calls, answers, strict=True):
        for table in (TABLE, of_server):
            found = table.keys(*call)
            if isinstance(answer, Exception):
                assert not found, (call, found, str(answer))
            else:
                # For a script an impossible count is an empty list to the server, not an error.
                assert [call[i] for i in found or ()] == answer, (call, found)
                compared[name] = compared.get(name, 0) + bool(answer)
    assert {r.name for r in keyed if not compared.get(r.name)} == set(), "no call with keys compared"
    assert len(compared) > 150


@pytest.mark.parametrize(
    ("call", "keys"),
    [
        ("GET k", [1]),
        ("MGET a b c", [1, 2, 3]),
        ("MSET a 1 b 2", [1, 3]),
        ("BITOP AND d a b", [2, 3, 4]),
        ("RENAME a b", [1, 2]),
        ("OBJECT ENCODING k", [2]),
        ("XGROUP CREATE k g 0", [2]),
        ("SPUBLISH channel message", [1]),
        ("PUBLISH channel message", []),
        ("PING", []),
        ("EVAL s 2 a b c", [3, 4]),
        ("EVAL s 0", []),
        ("EVAL s 0 a b", []),
        ("EVAL s x a", None),
        ("EVAL s -1 a", None),
        ("EVAL s 2 a", None),
        ("EVAL s 18446744073709551617 a", None),
        ("EVAL s 01 a b", [3]),
        ("EVAL s +2 a b", [3, 4]),
        ("EVAL s 1.5 a b", [3]),
        ("EVAL s 4294967297 a b", [3]),
        ("EVAL s -0 a b", None),
        ("EVAL s + a", None),
        ("ZUNIONSTORE d 01 a", [1, 3]),
        ("PFMERGE d", [1]),
        ("EVAL s", None),
        ("FCALL f 1 k a", [3]),
        ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", [1, 3, 4]),
        ("ZINTER 2 a b WITHSCORES", [2, 3]),
        ("ZDIFF 0", []),
        ("LMPOP 2 a b LEFT", [2, 3]),
        ("ZMPOP 1 a MIN", [2]),
        ("SINTERCARD 3 a b c LIMIT 1", [2, 3, 4]),
        ("MSETEX 2 a 1 b 2 PX 100", [2, 4]),
        ("XREAD COUNT 2 STREAMS a b 0 0", [4, 5]),
        ("XREAD STREAMS a b 0", [2]),
        ("XREADGROUP GROUP g streams STREAMS a >", [5]),
        ("XREADGROUP BLOCK 0 GROUP g streams STREAMS a >", [7]),
        ("XREADGROUP NOACK GROUP streams STREAMS COUNT STREAMS CLAIM 5 streams a b > >", [10, 11]),
        ("xreadgroup group STREAMS c streams STREAMS >", [5]),
        ("XREAD COUNT STREAMS BLOCK streams STREAMS a 0", [6]),
        ("XREAD STREAMS STREAMS 0", [2]),
        ("XREADGROUP STREAMS a >", [2]),
        ("XREAD NEWOPTION STREAMS a b 0 0", [3, 4]),
        ("XREAD STREAMS", []),
        ("XREAD COUNT 1", []),
        ("SORT k", [1]),
        ("SORT k BY w_* GET # LIMIT 0 5 ALPHA STORE d", [1, 11]),
        ("SORT k STORE a STORE b", [1, 5]),
        ("SORT k BY STORE GET STORE", [1]),
        ("SORT k STORE", [1]),
        ("SORT_RO k BY w_* GET STORE", [1]),
        ("GEORADIUS k 1 2 3 m STORE d", [1, 7]),
        ("GEORADIUS k 1 2 3 m STORE d STOREDIST e", [1, 9]),
        ("GEORADIUSBYMEMBER k store 3 m storedist e", [1, 6]),
        ("MIGRATE h 1 k 0 10", [3]),
        ("MIGRATE h 1 k 0 10 COPY AUTH KEYS", [3]),
        ("MIGRATE h 1 '' 0 10 REPLACE AUTH2 KEYS KEYS KEYS a b", [11, 12]),
        ("MIGRATE h 1 k 0 10 KEYS a", None),
        ("GET", None),
        ("MGET", None),
        ("SORT", None),
        ("GEORADIUS", None),
        ("MIGRATE", None),
    ],
)
def test_keys(call: str, keys: list[int] | None) -> None:
    assert TABLE.keys(*(b"" if w == "''" else w.encode() for w in call.split())) == keys


class Gappy(Standalone):
    """A cluster of one node, which serves all slots but that of one key."""

    def __init__(self, server: str, key: bytes) -> None:
        super().__init__(server)
        self._missing = slot_of(key)

    def __enter__(self) -> Gappy:
        super().__enter__()
        with self.raw() as client:
            served = (0, self._missing - 1, self._missing + 1, 16383)
            assert client.command("CLUSTER", "ADDSLOTSRANGE", *(str(n) for n in served)) == b"+OK\r\n"
            wait_for(lambda: b"cluster_state:ok" in client.command("CLUSTER", "INFO"), 10, "cluster of one")
        return self

    def _settings(self) -> list[str]:
        cluster = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        return [*super()._settings(), *cluster, "--cluster-port", str(free_port())]


@pytest.mark.parametrize("kind", sorted(servers()))
def test_a_streams_option_is_told_from_a_group_of_that_name(kind: str) -> None:
    """The check of slots goes by the options in their order, where GETKEYS goes by the first word STREAMS."""
    rng = random.Random(5)
    words = [b"STREAMS", b"streams", b"GROUP", b"BLOCK", b"COUNT", b"NOACK", b"k", b"g", b"1", b">"]
    with Gappy(servers()[kind], b"k") as server, server.raw() as client:
        for _ in range(1000):
            options = [[b"BLOCK", b"1"], [b"COUNT", b"2"], [b"GROUP", rng.choice(words), rng.choice(words)], [b"NOACK"]]
            rng.shuffle(options)
            if rng.random() < 0.2:
                options.insert(rng.randint(0, 4), [rng.choice(words)])
            call = (b"XREADGROUP", *chain(*options), b"STREAMS", *rng.choices(words, k=rng.choice([2, 2, 3, 4])))
            answer = client.command(*call)
            keys = [call[i] for i in TABLE.keys(*call) or ()]
            if answer.startswith(b"-CLUSTERDOWN Hash slot not served"):
                assert keys[0] == b"k", call
            elif answer.startswith(b"-CROSSSLOT"):
                assert len({slot_of(key) for key in keys}) > 1, call
            elif answer.startswith(b"-NOGROUP"):
                assert keys[0] != b"k", call
                assert len({slot_of(key) for key in keys}) == 1, call
            else:
                assert answer.startswith(b"-ERR "), call


def keys_of(made: Row, call: str) -> list[int] | None:
    return CommandTable([made], "synthetic", {}).keys(*call.encode().split())


@pytest.mark.parametrize(
    ("specs", "call", "keys"),
    [
        # JSON.MSET, JSON.MGET and TS.MADD, as their modules declare them
        ((index_range(1, -1, 3, 0, ""),), "m k1 p v k2 p v", [1, 4]),
        ((index_range(1, -2, 1, 0, ""),), "m k1 k2 path", [1, 2]),
        ((index_range(1, -1, 3, 0, ""),), "m k1 t v k2 t v k3 t v", [1, 4, 7]),
        ((index_range(2, 0, 1, 0, ""),), "m sub k", [2]),
        ((index_range(1, 3, 2, 0, ""),), "m a b c d e", [1, 3]),
        ((index_range(1, -1, 1, 3, ""),), "m a b c d e f", [1, 2]),
        ((index_range(1, -1, 1, 1, ""),), "m a b c", [1, 2, 3]),
        ((index_range(1, -2, 1, 0, ""),), "m k", None),
        ((index_range(5, 0, 1, 0, ""),), "m a", None),
        ((index_range(0, 0, 1, 0, ""),), "m a", None),
        ((index_range(-1, 0, 1, 0, ""),), "m a", None),
        # from left and right; the keyword must not be the last word
        ((keyword_range("KEYS", 1, -1, 1, 0, ""),), "m a keys b c", [3, 4]),
        ((keyword_range("keys", 3, 0, 1, 0, ""),), "m KEYS x Keys b c", [4]),
        ((keyword_range("KEYS", 1, 0, 1, 0, ""),), "m a KEYS", []),
        ((keyword_range("KEYS", 1, 0, 1, 0, ""),), "m a b c", []),
        ((keyword_range("KEYS", 9, 0, 1, 0, ""),), "m KEYS b c", []),
        ((keyword_range("KEYS", -2, -1, 1, 0, ""),), "m KEYS x KEYS b", [4]),
        ((keyword_range("KEYS", -2, -1, 1, 0, ""),), "m a KEYS x y z", [3, 4, 5]),
        ((keyword_range("KEYS", -9, -1, 1, 0, ""),), "m a KEYS x", []),
        ((keyword_range("KEYS", 1, 5, 1, 0, ""),), "m KEYS x", None),
        ((index_keynum(1, 0, 1, 2, ""),), "m 2 a 1 b 2", [2, 4]),
        ((index_keynum(1, 0, 1, 2, ""),), "m 3 a 1 b 2", None),
        ((index_keynum(1, 1, 2, 1, ""),), "m o 2 a b", [3, 4]),
        ((index_keynum(1, 0, -5, 1, ""),), "m 1 a", None),
        ((index_keynum(1, -9, 1, 1, ""),), "m 1 a", None),
        ((index_keynum(1, 0, 1, 1, ""),), "m 01 a", [2]),
        ((index_range(1, 0, 1, 0, ""), index_keynum(2, 0, 1, 1, "")), "m d 1 a", [1, 3]),
        ((index_range(1, 0, 1, 0, ""), index_keynum(2, 0, 1, 1, "")), "m d x a", None),
        ((index_range(1, 0, 1, 0, ""), index_keynum(2, 0, 1, 1, "")), "m d 0", [1]),
        # what cannot be told is left to the server
        ((unknown_spec("incomplete"), index_range(2, 0, 1, 0, "")), "m a b c", [2]),
        ((unknown_spec(""),), "m a b", [1]),
        ((unknown_spec(""),), "m", []),
        ((index_range(1, -1, 1, 0, "not_key"),), "m a b", [1, 2]),
    ],
)
def test_key_specs(specs: tuple[KeySpec, ...], call: str, keys: list[int] | None) -> None:
    assert keys_of(row("m", -1, "write", specs=specs), call) == keys


@pytest.mark.parametrize(
    ("made", "call", "keys"),
    [
        (Row("m", -1, (), 1, 1, 1), "m a b", [1]),
        (Row("m", -1, (), 1, -1, 1), "m a b", [1, 2]),
        (Row("m", -1, (), 1, -1, 3), "m a p v b p v", [1, 4]),
        (Row("m", -1, (), 1, -2, 1), "m a b 0", [1, 2]),
        (Row("m", -1, (), 2, 3, 1), "m x a b y", [2, 3]),
        (Row("m", -1, (), 1, -1, 0), "m a b", [1, 2]),
        (Row("m", -1, (), 0, 0, 0), "m a b", []),
        (Row("m", -1, ("movablekeys",), 0, 0, 0), "m a b", [1]),
        (Row("m", -1, ("movablekeys",), 2, 2, 1), "m a b", [2]),
    ],
)
def test_old_servers_first_last_and_step(made: Row, call: str, keys: list[int]) -> None:
    assert keys_of(made, call) == keys


def test_eval_of_an_old_server_has_its_keys() -> None:
    old = rows_from_command_reply([[b"eval", -3, [b"noscript", b"movablekeys"], 0, 0, 0, []]])
    assert CommandTable(merge_rows(ROWS, old), "6.2", {}).keys(b"EVAL", b"s", b"1", b"k", b"a") == [3]


@pytest.mark.parametrize(
    ("call", "blocks"),
    [
        ("XREAD BLOCK 0 STREAMS k $", True),
        ("XREAD COUNT 1 block 0 STREAMS k $", True),
        ("xread bLoCk 5 streams k $", True),
        ("XREAD BLOCK\0x 5 STREAMS k $", True),
        ("XREAD STREAMS k $", False),
        ("XREAD COUNT 1 STREAMS BLOCK $", False),
        ("XREAD COUNT BLOCK STREAMS k $", False),
        ("XREAD STREAMS BLOCK BLOCK", False),
        ("XREAD Streams BLOCK\0 0", False),
        ("XREADGROUP GROUP streams c BLOCK 0 STREAMS k >", True),
        ("XREADGROUP GROUP g STREAMS block 0 STREAMS k >", True),
        ("xreadgroup BLOCK 0 group g c STREAMS k >", True),
        ("XREADGROUP group BLOCK BLOCK noack Block 0 STREAMS k >", True),
        ("XREADGROUP GROUP BLOCK BLOCK STREAMS k >", False),
        ("XREADGROUP GROUP g BLOCK STREAMS k >", False),
        ("XREADGROUP Group block c NoAck count 5 streams BLOCK >", False),
        ("XREADGROUP NOACK GROUP g c STREAMS k >", False),
        ("XREADGROUP GROUP g c CLAIM 5 BLOCK 0 STREAMS k >", True),
        ("XREADGROUP GROUP g c CLAIM BLOCK STREAMS k >", False),
        # an error to today's servers
        ("XREAD NEWOPTION 5 STREAMS k $", False),
        ("XREAD NEWOPTION 5 BLOCK 0 STREAMS k $", True),
        ("XREAD NEWOPTION 5 STREAMS BLOCK $", True),
        ("XREAD GROUP BLOCK c STREAMS k $", True),
        ("XREAD GROUP g c STREAMS k $", False),
        ("XREAD NOACK STREAMS block $", True),
        ("XREADGROUP GROUP BLOCK", False),
        ("XREADGROUP GROUP g c BLOCK", True),
        ("XREAD BLOCKS 0 STREAMS k $", False),
        ("XREAD BLOC BLOCK", True),
        ("XREAD", False),
        ("XREADGROUP", False),
    ],
)
def test_who_asks_to_block(call: str, blocks: bool) -> None:
    assert CommandTable.asks_to_block(*call.encode().split(b" ")) is blocks


@pytest.mark.parametrize("option", [b"BLOCK", b"block", b"bLOck", b"BLOCK\0", b"block\0STREAMS"])
def test_servers_that_block_are_asked_to(standalone: Standalone, option: bytes) -> None:
    calls: list[Call] = [
        (b"XREAD", option, b"40", b"STREAMS", b"stream", b"$"),
        (b"XREAD", b"COUNT", b"1", option, b"40", b"STREAMS", b"stream", b"$"),
        (b"XREADGROUP", b"GROUP", b"streams", option, option, b"40", b"STREAMS", b"stream", b">"),
        (b"XREADGROUP", b"NOACK", option, b"40", b"GROUP", b"streams", b"c", b"STREAMS", b"stream", b">"),
    ]
    with standalone.raw() as client:
        client.command("XGROUP", "CREATE", "stream", "streams", "$", "MKSTREAM")
        for call in calls:
            began = time.monotonic()
            assert client.command(*call) == b"*-1\r\n"
            assert time.monotonic() - began > 0.03, call
            assert CommandTable.asks_to_block(*call), call


def test_a_word_ends_at_a_nul_as_it_does_for_the_servers() -> None:
    assert TABLE.keys(b"SORT", b"k", b"STORE\0x", b"d") == [1, 3]
    assert TABLE.keys(b"XREAD", b"STREAMS\0x", b"k", b"0") == [2]
    assert TABLE.keys(b"SORT", b"k", b"STORE", b"d\0x") == [1, 3]


def test_many_keys() -> None:
    call = [b"MGET", *(b"%d" % n for n in range(100_000))]
    assert TABLE.keys(*call) == list(range(1, 100_001))


NUMBER = st.integers(-6, 6) | st.sampled_from([2**31 - 1, -(2**31)])
SPEC = st.builds(
    KeySpec,
    st.sampled_from(["index", "keyword", "unknown"]),
    NUMBER,
    st.just("KW"),
    st.sampled_from(["range", "keynum", "unknown"]),
    NUMBER,
    NUMBER,
    NUMBER,
)
ARG = st.sampled_from([b"KW", b"kw", b"0", b"1", b"2", b"9999999999", b"", b"x"])


@given(st.lists(SPEC, max_size=4), st.lists(ARG, max_size=8))
def test_no_specs_lead_outside_the_arguments(specs: list[KeySpec], args: list[bytes]) -> None:
    table = CommandTable([row("m", -1, "write", specs=tuple(specs))], "any", {})
    found = table.keys(b"m", *args)
    assert found is None or all(1 <= i <= len(args) for i in found)


@given(st.sampled_from(sorted(KEYED)), st.lists(st.sampled_from([*WORDS, b"k"]), max_size=12))
def test_no_arguments_lead_outside(name: str, args: list[bytes]) -> None:
    call = [*name.encode().split(b"|"), *args]
    found = TABLE.keys(*call)
    assert found is None or all(1 <= i < len(call) for i in found)
    CommandTable.asks_to_block(*call)
