"""The generator: what it asks, merges and writes."""

from __future__ import annotations

import io
from typing import Any

import pytest

from proxy.commands.generate import Source, _reply, ask, main, merge, render
from proxy.commands.rows import (
    Row,
    index_keynum,
    index_range,
    keyword_range,
    row,
    rows_from_command_reply,
    unknown_spec,
)
from tests.support.cluster import Standalone


def rows_in(text: str) -> tuple[Row, ...]:
    names: dict[str, Any] = {}
    exec(compile(text, "table.py", "exec"), names)
    rows: tuple[Row, ...] = names["ROWS"]
    return rows


def test_what_is_written_reads_back_the_same() -> None:
    rows = [
        row("a", -1, ""),
        row('"b\\', 2, "readonly " * 20, (1, -1, 2), tips="x:y z"),
        row("c", -2, "", specs=(index_range(1, -1, 1, 2, "RO"), keyword_range("KW", -2, 0, 1, 0, ""))),
        row("d", -2, "", specs=(index_keynum(1, 0, 1, 2, "RW access"), unknown_spec("incomplete"))),
        row("e", -2, "", subcommands=(row("e|f", 2, "", specs=(index_range(2, 0, 1, 0, ""),)), row("e|g", 2, ""))),
    ]
    text = render("some server", rows)
    assert rows_in(text) == tuple(rows)
    assert max(len(line) for line in render("x", rows[2:]).splitlines()) <= 120


def test_of_several_servers_the_highest_version_decides() -> None:
    old = Source("redis 7.0.15", (7, 0, 15), [row("a", 1, "write"), row("gone", 1, "")])
    new = Source("valkey 9.1.2", (9, 1, 2), [row("a", 2, "readonly"), row("new", 1, "")])
    for order in ([old, new], [new, old]):
        title, rows = merge(order)
        assert title == "redis 7.0.15, valkey 9.1.2"
        assert rows == [row("a", 2, "readonly"), row("gone", 1, ""), row("new", 1, "")]


def test_from_a_server(standalone: Standalone, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{standalone.port}"
    assert main([address]) == 0
    source = ask(address)
    assert source.version > (6,)
    assert rows_in(capsys.readouterr().out) == tuple(sorted(source.rows, key=lambda r: r.name))


def test_without_a_server_it_says_how_to_be_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_replies() -> None:
    wire = b"*2\r\n*10\r\n$3\r\nGET\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*0\r\n*-1\r\n$-1\r\n"
    reply = _reply(io.BytesIO(wire))
    assert rows_from_command_reply(reply) == [row("get", 2, "readonly", (1, 1, 1))]


@pytest.mark.parametrize(
    ("wire", "says"), [(b"-NOAUTH Authentication required.\r\n", "NOAUTH"), (b"", "closed"), (b"HTTP/1.1\r\n", "RESP2")]
)
def test_a_server_that_does_not_tell(wire: bytes, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        _reply(io.BytesIO(wire))
