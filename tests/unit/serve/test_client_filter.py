"""The filters of CLIENT LIST and KILL: read, sent, applied."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.resp import errors
from proxy.serve import client_filter
from proxy.serve.client_filter import Filter
from tests.unit.serve.fakes import FakeClient, context

NOW_S = 2000.0
TEXTS = ("ADDR", "LADDR", "NAME", "LIB-NAME", "LIB-VER", "IP")


def parsed(*words: str | bytes, skip_me: bool = False, **ctx: Any) -> Filter | bytes:
    raw = [word.encode() if isinstance(word, str) else word for word in words]
    return client_filter.parse(context(**ctx), FakeClient(id=7), raw, skip_me=skip_me)


def fits(client: FakeClient, *words: str | bytes, **ctx: Any) -> bool:
    wanted = parsed(*words, **ctx)
    assert isinstance(wanted, Filter)
    return client_filter.tester(client_filter.decode(client_filter.encode(wanted)))(client, NOW_S)


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        ({}, (), True),
        ({"id": 3}, ("ID", "3"), True),
        ({"id": 3}, ("id", "4", "3", "5"), True),
        ({"id": 3}, ("ID", "4", "ID", "3"), True),
        ({"id": 3}, ("ID", "4"), False),
        ({"id": 3}, ("NOT-ID", "4", "5"), True),
        ({"id": 3}, ("not-id", "4", "3"), False),
        ({"id": 3}, ("ID", "3", "NOT-ID", "3"), False),
        ({}, ("TYPE", "normal"), True),
        ({}, ("TYPE", "NORMAL"), True),
        ({}, ("TYPE", "master"), False),
        ({}, ("TYPE", "primary"), False),
        ({}, ("TYPE", "slave"), False),
        ({}, ("TYPE", "replica"), False),
        ({}, ("TYPE", "pubsub"), False),
        ({}, ("TYPE", "master", "TYPE", "normal"), True),
        ({}, ("NOT-TYPE", "normal"), False),
        ({}, ("NOT-TYPE", "replica"), True),
        ({}, ("USER", "default"), True),
        ({}, ("NOT-USER", "default"), False),
        ({}, ("ADDR", "127.0.0.1:40001"), True),
        ({}, ("ADDR", "127.0.0.1"), False),
        ({}, ("NOT-ADDR", "1:1"), True),
        ({"address": "unix:/a"}, ("ADDR", "/a:0"), True),
        ({}, ("LADDR", "127.0.0.1:7617"), True),
        ({}, ("LADDR", "x"), False),
        ({}, ("IP", "127.0.0.1"), True),
        ({}, ("IP", "127.0.0"), False),
        ({"address": "[::1]:5"}, ("IP", "::1"), True),
        ({"address": "unix:/a"}, ("IP", "/a"), False),
        ({"address": "unix:/a"}, ("NOT-IP", "/a"), True),
        ({"name": b"x"}, ("NAME", "x"), True),
        ({"name": b"x"}, ("NAME", "X"), False),
        ({}, ("NAME", ""), False),  # it has none: not an empty one
        ({}, ("NOT-NAME", "x"), True),
        ({"lib_name": b"l"}, ("LIB-NAME", "l"), True),
        ({}, ("LIB-NAME", ""), False),
        ({"lib_ver": b"1"}, ("NOT-LIB-VER", "1"), False),
        ({}, ("FLAGS", "N"), True),
        ({}, ("FLAGS", ""), True),
        ({"no_evict": True}, ("FLAGS", "N"), False),
        ({"no_evict": True, "no_touch": True}, ("FLAGS", "Te"), True),
        ({"no_evict": True}, ("FLAGS", "Te"), False),
        ({"held_back": True}, ("FLAGS", "b"), True),
        ({}, ("NOT-FLAGS", "N"), False),
        ({}, ("DB", "0"), True),
        ({"db": 3}, ("DB", "3"), True),
        ({"db": 3}, ("NOT-DB", "3"), False),
        ({}, ("CAPA", ""), True),
        ({}, ("CAPA", "r"), False),
        ({"redirects": True}, ("CAPA", "r"), True),
        ({"age_s": 10.5}, ("MAXAGE", "10"), True),
        ({"age_s": 10.5}, ("MAXAGE", "11"), False),
        ({"last_active_s": NOW_S - 10}, ("IDLE", "10"), True),
        ({"last_active_s": NOW_S - 10}, ("IDLE", "11"), False),
        ({"id": 7}, ("SKIPME", "yes"), False),
        ({"id": 7}, ("SKIPME", "no"), True),
        ({"id": 8}, ("SKIPME", "YES"), True),
        ({"name": b"x"}, ("NAME", "x", "TYPE", "normal", "MAXAGE", "1", "NOT-ID", "9"), True),
        ({"name": b"x"}, ("NAME", "x", "DB", "1"), False),
    ],
    ids=str,
)
def test_who_is_meant(change: dict[str, Any], words: tuple[str, ...], expected: bool) -> None:
    assert fits(FakeClient(**change), *words, databases=16) is expected


def test_skipme_by_default() -> None:
    wanted = parsed(skip_me=True)
    assert isinstance(wanted, Filter)
    assert wanted.skip == 7


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("TYPE",), "syntax error"),
        (("NOT-SKIPME", "yes"), "syntax error"),
        (("NOT-MAXAGE", "5"), "syntax error"),
        (("NOT-IDLE", "5"), "syntax error"),
        (("NOT-NOT-ID", "5"), "syntax error"),
        (("NOT-", "5"), "syntax error"),
        (("", ""), "syntax error"),
        (("ID", "5", "x"), "syntax error"),
        (("ID", "18446744073709551616"), "syntax error"),
        (("ID", "-5"), "client-id should be greater than 0"),
        (("MAXAGE", "9223372036854775808"), "maxage is not an integer or out of range"),
        (("DB", "16"), "DB number should be between 0 and 15"),
        (("DB", "-1"), "DB number should be between 0 and 15"),
        (("USER", b"a\0b"), "No such user 'a'"),
        (("TYPE", b"a\r\nb"), "Unknown client type 'a  b'"),
        (("FLAGS", b"\xff"), b"Unknown flags found in the provided filter: \xff"),
        (("ID", *["1"] * 40_000), "the filters are too long, the limit is 65536 bytes"),
        (("NAME", "x" * 65_536), "the filters are too long, the limit is 65536 bytes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_errors(words: tuple[str, ...], text: str | bytes) -> None:
    raw = text.encode() if isinstance(text, str) else text
    assert parsed(*words, databases=16) == errors.line(b"ERR " + raw)


@pytest.mark.parametrize("filler", [b"", b"\0", b"\r\n", b"\xff" * 9, b"-", b"0", b"%s", b"NOT-ID", b"9" * 300])
def test_no_input_raises(filler: bytes) -> None:
    names = ["ID", "SKIPME", "MAXAGE", "IDLE", "DB", "TYPE", "USER", "FLAGS", "CAPA", *sorted(TEXTS)]
    for name in [*names, *(f"NOT-{name}" for name in names)]:
        for words in ((name,), (name, filler), (filler, name), (name, filler, filler), (name, "1", filler)):
            wanted = parsed(*words)
            if isinstance(wanted, Filter):
                client_filter.tester(client_filter.decode(client_filter.encode(wanted)))(FakeClient(), NOW_S)
            else:
                assert wanted.startswith(b"-ERR ")
                assert wanted.count(b"\r\n") == 1
