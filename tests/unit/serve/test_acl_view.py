"""The proxy's one user; the texts are compared with servers in tests/integration/test_command_info.py."""

from __future__ import annotations

import pytest

from proxy.commands.table import ROWS
from proxy.resp.decode import decode
from proxy.serve import table
from tests.unit.serve.fakes import FakeClient, context

ROWS_BY_NAME = {r.name.encode(): r for top in ROWS for r in (top, *top.subcommands)}


def ask(*words: str, proto: int = 2, **changes: object) -> bytes:
    ctx = context(rows=ROWS_BY_NAME, **changes)
    answer = table.answer(ctx, FakeClient(proto=proto), [b"ACL", *(word.encode() for word in words)])
    assert isinstance(answer, bytes)
    return answer


@pytest.mark.parametrize(("password", "flags"), [(None, [b"on", b"nopass"]), ("secret", [b"on"])])
def test_no_password_is_shown(password: str | None, flags: list[bytes]) -> None:
    user = decode(ask("GETUSER", "default", client_password=password))
    assert user[:4] == [b"flags", flags, b"passwords", []]
    rule = decode(ask("LIST", client_password=password))
    assert rule == [b" ".join([b"user default", *flags, b"~* &* +@all"])]


def test_databases_since_valkey_9_1() -> None:
    for version, told in (("", False), ("9.0.4", False), ("9.1.0", True), ("10.0.0", True), ("junk", False)):
        assert (b"databases" in ask("GETUSER", "default", valkey_version=version)) is told


def test_getuser_in_resp3() -> None:
    user = decode(ask("GETUSER", "default", proto=3))
    assert (user[b"commands"], user[b"keys"], user[b"selectors"]) == (b"+@all", b"~*", [])
    assert ask("GETUSER", "x", proto=3) == b"_\r\n"
    assert ask("GETUSER", "x") == b"$-1\r\n"


@pytest.mark.parametrize(("version", "who"), [("7.0.15", b"This user"), ("7.2.4", b"User default")])
def test_dryrun_of_what_is_refused(version: str, who: bytes) -> None:
    refused = frozenset({b"get", b"config|get"})
    for words, name in ((("get", "k"), b"get"), (("CONFIG", "GET", "x"), b"config|get")):
        said = ask("DRYRUN", "default", *words, server_version=version, refused=refused)
        assert decode(said) == who + b" has no permissions to run the '" + name + b"' command"
    assert ask("DRYRUN", "default", "set", "k", "v", refused=refused) == b"+OK\r\n"
    assert ask("DRYRUN", "default", "config|get", "x") == b"-ERR Command 'config|get' not found\r\n"


@pytest.mark.parametrize("name", ["a\r\nb", "\0", "x" * 10_000])
def test_any_bytes(name: str) -> None:
    for words in (("GETUSER", name), ("DRYRUN", name, "get", "k"), ("DRYRUN", "default", name, "k"), ("LOG", name)):
        assert ask(*words).count(b"\r\n") == 1


def test_a_name_is_shown_to_its_first_nul() -> None:
    assert ask("DRYRUN", "default", "a\0b", "k") == b"-ERR Command 'a' not found\r\n"
    assert ask("DRYRUN", "no\0\r\nx", "get", "k") == b"-ERR User 'no' not found\r\n"
    assert ask("DRYRUN", "default", "x" * 300 + "\r\ny", "k") == b"-ERR Command '" + b"x" * 300 + b"  y' not found\r\n"
