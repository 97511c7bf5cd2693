"""CONFIG GET: which values are emptied, and that everything else is what the server said, byte by byte."""

from __future__ import annotations

from contextlib import closing

import pytest

from proxy.forward.ask import Ask
from proxy.resp.encode import array, bulk, encode_command, integer, simple
from proxy.resp.errors import ProtocolFault
from proxy.serve import config_get
from proxy.serve.responder import Responder
from tests.support.datapath import Stage
from tests.support.dialogue import answer
from tests.unit.serve.fakes import FakeClient, context

SECRETS = [
    "masterauth",
    "masteruser",
    "primaryauth",
    "primaryuser",
    "requirepass",
    "tls-client-key-file-pass",
    "tls-key-file-pass",
]


def reply(kind: bytes, *words: bytes | str) -> bytes:
    """`*`: flat, `%`: a map."""
    return b"%b%d\r\n" % (kind, len(words) // (2 if kind == b"%" else 1)) + b"".join(map(bulk, words))


@pytest.mark.parametrize("kind", [b"*", b"%"])
@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_emptied(kind: bytes, name: str) -> None:
    told = reply(kind, "maxmemory", "0", name.upper(), "sesame\r\n", "save", "", name, "sesame", "port", "1")
    expected = reply(kind, "maxmemory", "0", name.upper(), "", "save", "", name, "", "port", "1")
    assert config_get.without_secrets(told) == expected


@pytest.mark.parametrize("kind", [b"*", b"%"])
def test_what_follows_a_nul_is_no_name_of_its_own(kind: bytes) -> None:
    told = reply(kind, b"requirepass\0x", "sesame")
    assert config_get.without_secrets(told) == reply(kind, b"requirepass\0x", "")


@pytest.mark.parametrize(
    "told",
    [
        *(reply(kind, "maxmemory", "0", "save", "3600 1", "masterauth-not", "x") for kind in (b"*", b"%")),
        *(reply(kind, "maxmemory", "requirepass", "save", "masterauth") for kind in (b"*", b"%")),
        *(reply(kind, "requirepass", "", "masterauth", "") for kind in (b"*", b"%")),
        b"*0\r\n",
        b"%0\r\n",
        b"*-1\r\n",
        b"_\r\n",
        b"$-1\r\n",
        integer(1),
        simple("requirepass"),
        bulk("requirepass"),
        array([bulk("requirepass")]),
        array([integer(1), bulk("x"), b"*1\r\n$1\r\nx\r\n", bulk("y"), b"$-1\r\n", bulk("z")]),
    ],
)
def test_anything_else_is_as_it_came(told: bytes) -> None:
    assert config_get.without_secrets(told) == told


def test_only_the_secrets_bytes_change() -> None:
    odd = b"%4\r\n=7\r\ntxt:abc\r\n,1.50\r\n+requirepass\r\n+sesame\r\n+a\r\n:1\r\n+a\r\n#t\r\n"
    assert config_get.without_secrets(odd) == odd.replace(b"+sesame\r\n", b"$0\r\n\r\n")


def test_a_malformed_reply_is_not_shown() -> None:
    with pytest.raises(ProtocolFault):
        config_get.without_secrets(b"*2\r\nrequirepass\r\nsesame\r\n")


@pytest.mark.parametrize("words", [[b"CONFIG", b"GET", b"*"], [b"config", b"gEt", b"a", b"b"]])
def test_the_responder_asks_for_it(words: list[bytes]) -> None:
    assert isinstance(Responder(context()).answer(FakeClient(), words), Ask)


@pytest.mark.parametrize("words", [[b"CONFIG", b"GET"], [b"CONFIG"], [b"CONFIG", b"FOO", b"a", b"b"]])
def test_the_responder_asks_for_nothing_else(words: list[bytes]) -> None:
    made = Responder(context()).answer(FakeClient(), words)
    assert isinstance(made, bytes)
    assert made.startswith(b"-ERR ")


@pytest.mark.parametrize("failed", [b"-NOPERM this user has no permissions\r\n", b"-ERR requirepass\r\n"])
def test_through_the_data_path(failed: bytes) -> None:
    with closing(Stage()) as stage:
        client = stage.client()
        frame = encode_command("config", "Get", "requirepass", "save")
        for told, expected in (
            (reply(b"*", "requirepass", "sesame", "save", "x"), reply(b"*", "requirepass", "", "save", "x")),
            (failed, failed),
        ):
            client.send(frame)
            stage.turn()
            assert answer(stage, {frame: told}) == [frame]
            assert client.get() == expected
        client.send(encode_command("CONFIG", "GET"))
        stage.turn()
        assert client.get() == b"-ERR wrong number of arguments for 'config|get' command\r\n"


@pytest.mark.parametrize("words", [(b"CONFIG", b"GET\0", b"*"), (b"CONFIG", b"SET\0x", b"a", b"b"), (b"SHUTDOWN\0",)])
def test_a_nul_in_a_name_is_no_way_around(words: tuple[bytes, ...]) -> None:
    with closing(Stage()) as stage:
        client = stage.client()
        client.send(encode_command(*words))
        stage.turn()
        assert client.get().startswith(b"-ERR ")
        assert answer(stage, {}) == []
