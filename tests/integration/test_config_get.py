"""CONFIG GET through the proxy: the servers' configuration, but not their passwords."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.embedded import EmbeddedCluster
from proxy.resp.decode import decode
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

PASSWORD = "the cluster's own"
SECRETS = {"requirepass", "masterauth", "masteruser", "primaryauth", "primaryuser"}


@pytest.fixture(scope="module")
def locked(server: str) -> Iterator[EmbeddedCluster]:
    """One primary, so that both ways ask the same server, with its passwords set."""
    options = {"masteruser": "somebody", "save": "3600 1"}
    with EmbeddedCluster(server, primaries=1, replicas=0, password=PASSWORD, options=options) as started:
        yield started


@pytest.fixture(scope="module")
def guard(locked: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(locked.seeds, {"cluster": {"password": PASSWORD}}) as daemon:
        yield daemon


@pytest.fixture(params=[2, 3])
def both(request: pytest.FixtureRequest, guard: ProxyDaemon, locked: EmbeddedCluster) -> Iterator[list[RawClient]]:
    """Through the proxy, and directly, in one protocol."""
    host, port = locked.seeds[0].rsplit(":", 1)
    with guard.raw() as through, RawClient((host, int(port))) as direct:
        assert direct.command("AUTH", PASSWORD) == b"+OK\r\n"
        for client in (through, direct):
            assert client.command("HELLO", request.param)[:1] in b"*%"
        yield [through, direct]


def options(frame: bytes) -> dict[bytes, bytes]:
    value = decode(frame)
    return value if isinstance(value, dict) else dict(zip(value[::2], value[1::2], strict=True))


@pytest.mark.parametrize("asked", [["maxmemory", "save"], ["maxmemory"], ["nosuch"], ["client-*", "MaxClients"], []])
def test_as_the_server_says(asked: list[str], both: list[RawClient]) -> None:
    through, direct = (client.command("CONFIG", "GET", *asked) for client in both)
    assert through == direct


@pytest.mark.parametrize(
    "asked",
    [["requirepass"], ["masterauth"], ["MasterAuth", "REQUIREPASS", "save"], ["*"], ["*pass*", "m*"], ["*auth"]],
)
def test_without_the_passwords(asked: list[str], both: list[RawClient]) -> None:
    through, direct = (client.command("CONFIG", "GET", *asked) for client in both)
    assert PASSWORD.encode() in direct
    assert PASSWORD.encode() not in through
    assert through[:1] == direct[:1]
    shown = options(through)
    assert list(shown) == list(options(direct))
    for name, value in options(direct).items():
        assert shown[name] == (b"" if name.decode().lower() in SECRETS else value), name


def test_the_servers_user_is_hidden_too(both: list[RawClient]) -> None:
    through, direct = (options(client.command("CONFIG", "GET", "masteruser")) for client in both)
    assert (through, direct) == ({b"masteruser": b""}, {b"masteruser": b"somebody"})


def test_no_name_with_a_nul_gets_at_it(both: list[RawClient]) -> None:
    """Some servers compare names as C strings, for one name in a few hundred: depending on the bucket it hashes to."""
    through = both[0]
    for n in range(20):
        names = [b"requirepass\0%d" % (n * 200 + k) for k in range(200)]
        assert PASSWORD.encode() not in through.command("CONFIG", "GET", *names)


def test_no_command_with_a_nul_is_one_that_is_not_served(both: list[RawClient]) -> None:
    """Valkey takes `SET\\0x` for CONFIG's SET every time, Redis one time in eight."""
    through, direct = both
    for n in range(100):
        assert through.command("CONFIG", b"SET\0%d" % n, "maxmemory-samples", 7).startswith(b"-ERR ")
        assert through.command("CONFIG", b"GET\0%d" % n, "requirepass").startswith(b"-ERR ")
    assert options(direct.command("CONFIG", "GET", "maxmemory-samples")) == {b"maxmemory-samples": b"5"}


def test_client_libraries(guard: ProxyDaemon) -> None:
    for protocol in (2, 3):
        with guard.client(protocol=protocol, decode_responses=True) as client:
            found = client.config_get("requirepass", "save")
            assert found == {"requirepass": "", "save": "3600 1"}


@pytest.mark.parametrize("name", ["requirepass", "masterauth", b"requirepass\0x", "port", "maxclients"])
def test_nobody_is_shut_out(name: str | bytes, both: list[RawClient]) -> None:
    """CONFIG SET requirepass would part the proxy from its servers, for all of its clients."""
    through, direct = both
    before = direct.command("CONFIG", "GET", "requirepass", "masterauth", "port", "maxclients")
    assert through.command("CONFIG", "SET", "maxmemory-samples", "6", name, "1").startswith(b"-ERR CONFIG SET failed")
    assert through.command("MULTI") == b"+OK\r\n"
    assert through.command("CONFIG", "SET", name, "1234").startswith(b"-ERR command 'config|set' is not possible")
    assert through.command("EXEC").startswith(b"-EXECABORT")
    assert direct.command("CONFIG", "GET", "requirepass", "masterauth", "port", "maxclients") == before
    assert options(direct.command("CONFIG", "GET", "maxmemory-samples")) == {b"maxmemory-samples": b"5"}
