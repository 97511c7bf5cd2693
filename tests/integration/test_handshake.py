"""HELLO and AUTH: what every client library does first, in Redis's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word

PASSWORD = "s3cret word"


def hello_fields(frame: bytes) -> dict[bytes, bytes]:
    """HELLO's simple fields by name; both shapes (flat array, map) list name and value in turn."""
    lines = frame.split(b"\r\n")[1:-1]
    words = [line for line in lines if not line.startswith((b"$", b"*"))]
    return dict(zip(words[::2], words[1::2], strict=False))


@pytest.mark.parametrize(("protocol", "shape"), [(2, b"*14\r\n"), (3, b"%7\r\n")])
def test_hello_says_who_is_there(protocol: int, shape: bytes, raw: RawClient, cluster: EmbeddedCluster) -> None:
    frame = raw.command("HELLO", protocol)
    assert frame.startswith(shape)
    fields = hello_fields(frame)
    assert fields[b"proto"] == b":%d" % protocol
    assert fields[b"mode"] == b"standalone"
    assert fields[b"role"] == b"master"
    assert fields[b"server"] in (b"redis", b"valkey")
    assert fields[b"version"][:1].isdigit()
    assert int(fields[b"id"][1:]) > 0
    assert frame.endswith(b"$7\r\nmodules\r\n*0\r\n")


def test_hello_alone_tells_the_current_protocol(raw: RawClient) -> None:
    assert raw.command("HELLO").startswith(b"*14\r\n")
    raw.command("HELLO", 3)
    assert raw.command("HELLO").startswith(b"%7\r\n")
    assert raw.command("GET", "none") == b"_\r\n"
    raw.command("HELLO", 2)
    assert raw.command("GET", "none") == b"$-1\r\n"


def test_hello_in_a_pipeline_changes_what_follows_it(raw: RawClient) -> None:
    raw.command("HSET", "h", "f", "v")
    raw.send(b"HGETALL h\r\nHELLO 3\r\nHGETALL h\r\nHELLO 2\r\nHGETALL h\r\n")
    two, hello, three, back, again = raw.frames(5)
    assert (two[:2], hello[:2], three[:2], back[:3], again[:2]) == (b"*2", b"%7", b"%1", b"*14", b"*2")


def test_a_refused_hello_changes_nothing(raw: RawClient) -> None:
    assert raw.command("HELLO", 4) == b"-NOPROTO unsupported protocol version\r\n"
    assert raw.command("HELLO", 3, "SETNAME", "bad name").startswith(b"-ERR Client names cannot contain")
    assert raw.command("GET", "none") == b"$-1\r\n"
    assert raw.command("CLIENT", "GETNAME") == b"$-1\r\n"


def test_hello_sets_the_name(raw: RawClient) -> None:
    assert raw.command("HELLO", 3, "SETNAME", "me").startswith(b"%7")
    assert raw.command("CLIENT", "GETNAME") == b"$2\r\nme\r\n"


def test_hello_with_auth_where_no_password_is_set(raw: RawClient, standalone: Standalone) -> None:
    with standalone.raw() as direct:
        for words in (("default", "anything"), ("nobody", "anything")):
            through = raw.command("HELLO", 3, "AUTH", *words)
            expected = direct.command("HELLO", 3, "AUTH", *words)
            assert through[:1] == expected[:1]
            if expected.startswith(b"-"):
                assert through == expected


@pytest.fixture(scope="module")
def locked_proxy(cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(cluster.seeds, {"clients": {"password": PASSWORD}}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def locked_server(server: str) -> Iterator[Standalone]:
    with Standalone(server, PASSWORD) as started:
        yield started


# Each is one connection's dialogue: the proxy must answer it as a server with requirepass does.
DIALOGUES: dict[str, list[tuple[Word, ...]]] = {
    "a command before AUTH": [("GET", "k"), ("SET", "k", "v"), ("PING",), ("ECHO", "x"), ("TIME",)],
    "an unknown command before AUTH": [("NOSUCH", "x"), ("nosuch",)],
    "a faulty command before AUTH": [("GET",), ("MGET",), ("CLIENT", "NOSUCH")],
    "handshake before AUTH": [("CLIENT", "ID"), ("CLIENT", "SETNAME", "x"), ("SELECT", 0), ("COMMAND", "COUNT")],
    "HELLO before AUTH": [("HELLO",), ("HELLO", 2), ("HELLO", 3), ("HELLO", 4), ("HELLO", "x"), ("GET", "k")],
    "wrong password": [("AUTH", "wrong"), ("GET", "k")],
    "wrong user": [("AUTH", "nobody", PASSWORD), ("GET", "k")],
    "wrong password in HELLO": [("HELLO", 3, "AUTH", "default", "wrong"), ("GET", "k")],
    "too many arguments": [("AUTH", "a", "b", "c"), ("AUTH",)],
    "AUTH": [("AUTH", PASSWORD), ("PING",)],
    "AUTH with user": [("AUTH", "default", PASSWORD), ("PING",)],
    "AUTH then a wrong AUTH stays in": [("AUTH", PASSWORD), ("AUTH", "wrong"), ("PING",)],
    "RESET logs out": [("AUTH", PASSWORD), ("RESET",), ("PING",)],
    "QUIT": [("QUIT",)],
    "RESET before AUTH": [("RESET",), ("PING",)],
}

NOAUTH_FIRST = ("an unknown command before AUTH", "a faulty command before AUTH")


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue_with_a_password(name: str, locked_proxy: ProxyDaemon, locked_server: Standalone) -> None:
    with locked_proxy.raw() as through, locked_server.raw() as direct:
        for words in DIALOGUES[name]:
            expected = direct.command(*words)
            if name in NOAUTH_FIRST and not expected.startswith(b"-NOAUTH"):
                pytest.skip("this server is older than NOAUTH before any other fault")
            assert (words, through.command(*words)) == (words, expected)


@pytest.mark.parametrize("protocol", [2, 3])
def test_hello_with_the_password_opens(protocol: int, locked_proxy: ProxyDaemon) -> None:
    with locked_proxy.raw() as client:
        frame = client.command("HELLO", protocol, "AUTH", "default", PASSWORD, "SETNAME", "me")
        assert hello_fields(frame)[b"proto"] == b":%d" % protocol
        assert client.command("SET", "k", "v") == b"+OK\r\n"
        assert client.command("CLIENT", "GETNAME") == b"$2\r\nme\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("username", [None, "default"])
def test_redis_py_logs_in(protocol: int, username: str | None, locked_proxy: ProxyDaemon) -> None:
    with locked_proxy.client(protocol=protocol, username=username, password=PASSWORD) as client:
        assert client.set("k", "v") is True
        assert client.get("k") == "v"


def test_redis_py_with_a_wrong_password(locked_proxy: ProxyDaemon) -> None:
    with locked_proxy.client(password="wrong") as client, pytest.raises(redis.AuthenticationError):
        client.get("k")


def test_a_pipeline_with_auth_in_it(locked_proxy: ProxyDaemon) -> None:
    with locked_proxy.raw() as client:
        client.send(b'GET k1\r\nAUTH "%s"\r\nSET k1 v\r\nGET k1\r\n' % PASSWORD.encode())
        assert client.frames(4) == [b"-NOAUTH Authentication required.\r\n", b"+OK\r\n", b"+OK\r\n", b"$1\r\nv\r\n"]


@pytest.mark.parametrize(
    "data",
    [b"*11\r\n", b"*1\r\n$20000\r\n", b"*1000000\r\n", b"*10\r\n$16385\r\n"],
    ids=["11 arguments", "20,000 bytes", "a million arguments", "16,385 bytes"],
)
def test_large_input_before_auth_is_cut_off_as_redis_does(
    data: bytes, locked_proxy: ProxyDaemon, locked_server: Standalone
) -> None:
    with locked_proxy.raw() as through, locked_server.raw() as direct:
        through.send(data)
        direct.send(data)
        assert through.rest() == direct.rest()


def test_the_password_never_shows(locked_proxy: ProxyDaemon) -> None:
    assert PASSWORD not in locked_proxy.log


def test_redis_py_default_handshake(proxy: ProxyDaemon) -> None:
    """redis-py 8 asks for RESP3 and sends CLIENT SETINFO: no setting at all must be needed."""
    with redis.Redis(host="127.0.0.1", port=proxy.port) as client:
        assert client.set("k", "v") is True
        assert client.get("k") == b"v"


def test_upstream_password(server: str, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """Only the proxy needs the servers' password; its clients do not."""
    with EmbeddedCluster(server, replicas=0, node_timeout_ms=15000, password="upstream") as cluster:
        daemon = start_proxy(cluster.seeds, {"cluster": {"password": "upstream"}})
        with daemon.client(protocol=3) as client:
            assert client.set("k", "v") is True
            assert client.mget("k", "a", "b") == ["v", None, None]
