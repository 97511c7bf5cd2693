"""CONFIG SET: which parameters are refused, and that the rest goes to every node."""

from __future__ import annotations

import pytest

from proxy.forward.ask import Ask
from proxy.serve import config_guard, config_set
from tests.unit.serve.fakes import FakeClient, context

ARGS = [b"CONFIG", b"SET"]


@pytest.mark.parametrize(
    "name",
    [
        *("requirepass", "RequirePass", "requirepass\0x", "masterauth", "port", "maxclients"),
        *("tls-port", "cluster-port"),
        *("client-output-buffer-limit", "client-query-buffer-limit", "maxmemory-clients", "proto-max-bulk-len"),
        "timeout",
    ],
)
@pytest.mark.parametrize("before", [[], [b"maxmemory", b"0"]])
def test_who_can_reach_the_servers_is_not_for_clients(name: str, before: list[bytes]) -> None:
    shown = name.lower().partition("\0")[0]
    assert config_guard.refusal([*ARGS, *before, name.encode(), b"sesame", b"save", b""]) == (
        f"-ERR CONFIG SET failed (possibly related to argument '{shown}') - not allowed through this proxy\r\n".encode()
    )


@pytest.mark.parametrize(
    "words", [[b"maxmemory", b"requirepass"], [b"notify-keyspace-events", b"KEA"], [b"requirepass-not", b"x"], [b"a"]]
)
def test_other_parameters_go_to_the_servers(words: list[bytes]) -> None:
    assert config_guard.refusal([*ARGS, *words]) is None
    assert isinstance(config_set.answer(context(), FakeClient(), [*ARGS, *words]), Ask)


def test_the_error_is_one_line() -> None:
    made = config_guard.refusal([*ARGS, b"tls-\r\n+OK\r\n" + b"x" * 10_000, b"1"])
    assert made is not None
    assert made.count(b"\r\n") == 1
    assert len(made) < 300
