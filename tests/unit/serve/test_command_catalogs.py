"""What is kept of COMMAND and COMMAND DOCS, and who is asked how often."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.resp.decode import decode
from proxy.resp.encode import array, bulk, integer, map_
from proxy.serve.command_catalogs import Catalog, CommandCatalogs, catalog_of_command, catalog_of_docs


def entry(name: str, *subs: bytes) -> bytes:
    return array([bulk(name), integer(-2), *[array([])] * 7, array(subs)])


def old_entry(name: str) -> bytes:
    """Before Redis 7."""
    return array([bulk(name), integer(2), array([]), integer(1), integer(1), integer(1), array([])])


CONFIG = entry("CONFIG", entry("config|get"), entry("SET"))  # Redis 7.0.0 left the container's name out
COMMAND = array([entry("get"), CONFIG, old_entry("old"), entry("debug")])


def docs(proto: int) -> bytes:
    def doc(*more: tuple[bytes, bytes]) -> bytes:
        return map_([(bulk("summary"), bulk("text")), *more], proto)

    subs = map_([(bulk("config|get"), doc()), (bulk("config|set"), doc())], proto)
    config = doc((bulk("subcommands"), subs))
    return map_([(bulk("get"), doc()), (bulk("config"), config), (bulk("debug"), doc())], proto)


def test_command_without_what_is_refused() -> None:
    made = catalog_of_command(COMMAND, {b"debug", b"config|set"})
    assert list(made.top) == [b"get", b"config", b"old"]
    assert made.get(b"get") == entry("get")
    assert made.get(b"old") == old_entry("old")
    assert made.get(b"config") == entry("CONFIG", entry("config|get"))
    assert made.get(b"config|get") == entry("config|get")
    assert made.get(b"config|set") is made.get(b"debug") is made.get(b"nosuch") is None
    whole = catalog_of_command(COMMAND, frozenset())
    assert array(whole.top.values()) == COMMAND


@pytest.mark.parametrize("proto", [2, 3])
def test_docs_without_what_is_refused(proto: int) -> None:
    made = catalog_of_docs(docs(proto), {b"debug", b"config|set"})
    assert list(made.top) == [b"get", b"config"]
    frame = made.get(b"config")
    assert frame is not None
    assert b"config|set" not in frame
    told = decode(b"*2\r\n" + frame)[1]
    subs = told[b"subcommands"] if proto == 3 else told[3]
    assert next(iter(subs)) == b"config|get"
    assert (made.get(b"config|get") or b"").startswith(bulk("config|get"))
    head = b"%3\r\n" if proto == 3 else b"*6\r\n"
    assert head + b"".join(catalog_of_docs(docs(proto), ()).top.values()) == docs(proto)


@pytest.mark.parametrize("reply", [b":1\r\n", b"+OK\r\n", array([integer(1)]), array([array([])])])
def test_what_is_no_table_raises(reply: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        catalog_of_command(reply, ())


class Server:
    """Fits AnyPrimary."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int, Any]] = []

    def ask(self, frame: bytes, proto: int, done: Any) -> None:
        self.asked.append((frame, proto, done))


def test_asked_once_and_kept_until_the_table_changes() -> None:
    server = Server()
    catalogs = CommandCatalogs(server)  # type: ignore[arg-type]
    rows, refused = object(), frozenset({b"debug"})
    told: list[Catalog | bytes] = []
    for _ in range(50):
        catalogs.ask((rows, refused), "command", 2, told.append)
    assert len(server.asked) == 1
    server.asked[0][2](COMMAND)
    assert len(told) == 50
    assert all(made is told[0] for made in told)
    catalogs.ask((rows, refused), "command", 2, told.append)
    assert told[50] is told[0]
    catalogs.ask((rows, refused), "command", 3, told.append)
    catalogs.ask((rows, refused), "docs", 2, told.append)
    catalogs.ask((rows, frozenset({b"get"})), "command", 2, told.append)
    catalogs.ask((object(), refused), "command", 2, told.append)
    assert [(b"DOCS" in frame, proto) for frame, proto, _ in server.asked] == [
        (False, 2),
        (False, 3),
        (True, 2),
        (False, 2),
    ]


def test_an_error_is_not_kept() -> None:
    server = Server()
    catalogs = CommandCatalogs(server)  # type: ignore[arg-type]
    basis: Any = (object(), frozenset())
    told: list[Catalog | bytes] = []
    catalogs.ask(basis, "command", 2, told.append)
    server.asked.pop()[2](b"-LOADING x\r\n")
    assert told == [b"-LOADING x\r\n"]
    catalogs.ask(basis, "command", 2, lambda made: 1 / 0)
    catalogs.ask(basis, "command", 2, told.append)
    with pytest.raises(ZeroDivisionError):
        server.asked.pop()[2](COMMAND)
    assert isinstance(told[1], Catalog)
    catalogs.ask(basis, "docs", 2, told.append)
    with pytest.raises(ValueError, match="no aggregate"):
        server.asked.pop()[2](b":1\r\n")
    assert told[2] == b"-ERR internal error\r\n"
