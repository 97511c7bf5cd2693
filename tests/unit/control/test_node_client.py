from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import uvloop

from proxy.cluster.topology import Address
from proxy.control.node_client import (
    LINE_MOST,
    ErrorReply,
    NodeAuthError,
    NodeClientError,
    NodeClientSettings,
    NodeRefusal,
    connect,
    node_client,
)
from proxy.embedded import HOST, EmbeddedCluster, default_server, free_port, wait_for
from tests.support.fake_node import SILENCE, Cut, FakeNode
from tests.support.resolver import HANGS, fake_resolver

QUICK = NodeClientSettings(timeout_s=0.2)
PATIENT = NodeClientSettings(timeout_s=5.0)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as started:
        yield started


def at(node: FakeNode) -> Address:
    return Address(HOST, node.port)


def closed(node: FakeNode) -> bool:
    """Every connection the node accepted has come to its end."""
    return all(session.sock.fileno() == -1 for session in node.sessions)


def test_replies_in_order_and_errors_as_values(node: FakeNode) -> None:
    node.on("ECHO", b"*2\r\n:1\r\n*2\r\n$-1\r\n$2\r\n\xff\xfe\r\n")

    async def scene() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            assert upstream.address == at(node)
            for _ in range(2):
                pong, error, nested, key = await upstream.ask(("PING",), ("NOSUCH", 1), ("ECHO", b"x"), ("GET", "k"))
                assert pong == b"PONG"
                assert isinstance(error, ErrorReply)
                assert str(error) == "ERR unknown command 'NOSUCH', with args beginning with: "
                assert nested == [1, [None, b"\xff\xfe"]]
                assert key is None

    asyncio.run(scene())
    # Nothing is said but what was asked: no CLIENT SETINFO, no HELLO.
    assert [words[0] for words in node.received] == [b"PING", b"NOSUCH", b"ECHO", b"GET"] * 2
    wait_for(lambda: closed(node), 5.0, "the connection is closed")


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        (NodeClientSettings(), []),
        (NodeClientSettings(username="bob"), []),
        (NodeClientSettings(password="s3"), [[b"AUTH", b"s3"]]),
        (NodeClientSettings(username="bob", password="s3"), [[b"AUTH", b"bob", b"s3"]]),
    ],
)
def test_authentication(node: FakeNode, settings: NodeClientSettings, sent: list[list[bytes]]) -> None:
    async def scene() -> None:
        async with node_client(at(node), settings) as upstream:
            await upstream.ask(("PING",))

    asyncio.run(scene())
    assert node.received == [*sent, [b"PING"]]


def test_wrong_and_missing_password() -> None:
    with EmbeddedCluster(default_server(), primaries=1, replicas=0, password="s3cret") as cluster:
        address = Address(HOST, cluster.nodes[0].port)

        async def ask(password: str, username: str = "") -> list[object]:
            settings = NodeClientSettings(username, password, timeout_s=5.0)
            async with node_client(address, settings) as upstream:
                return await upstream.ask(("PING",))

        assert asyncio.run(ask("s3cret")) == [b"PONG"]
        assert asyncio.run(ask("s3cret", "default")) == [b"PONG"]
        with pytest.raises(NodeAuthError, match=r"^NOAUTH Authentication required") as missing:
            asyncio.run(ask(""))
        with pytest.raises(NodeAuthError, match=r"^WRONGPASS invalid username-password pair") as wrong:
            asyncio.run(ask("guess-me"))
        assert "guess-me" not in repr(missing.value) + repr(wrong.value)


def test_a_password_the_server_does_not_want(node: FakeNode) -> None:
    text = b"ERR AUTH <password> called without any password configured for the default user. Are you sure?"
    node.on("AUTH", b"-" + text + b"\r\n")
    with pytest.raises(NodeClientError, match="without any password configured"):
        asyncio.run(connect(at(node), NodeClientSettings(password="s3", timeout_s=5.0)))
    wait_for(lambda: closed(node), 5.0, "the connection is closed")


def test_an_endless_error_is_cut(node: FakeNode) -> None:
    """It goes to the log; the beginning says what it is."""
    node.on("AUTH", b"-ERR " + b"x" * 1_000_000 + b"\r\n").on("ECHO", b"-NOPERM " + b"y" * 1_000_000 + b"\r\n")
    with pytest.raises(NodeRefusal, match=r"^ERR x+$") as refused:
        asyncio.run(connect(at(node), NodeClientSettings(password="s3", timeout_s=5.0)))
    assert len(str(refused.value)) <= LINE_MOST

    async def scene() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            (error,) = await upstream.ask(("ECHO", "x"))
            assert str(error).startswith("NOPERM y")
            assert len(str(error)) <= LINE_MOST

    asyncio.run(scene())


def test_nobody_there() -> None:
    with pytest.raises(NodeClientError, match=r"^Connection refused$"):
        asyncio.run(connect(Address(HOST, free_port()), PATIENT))


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(NodeClientError, match=r"(?i)name|host"):
        asyncio.run(connect(Address("no-such-host.invalid", 6379), PATIENT))


def test_silence_ends_in_time(node: FakeNode) -> None:
    node.on("PING", SILENCE)
    node.on("AUTH", SILENCE)

    async def scene(settings: NodeClientSettings) -> None:
        async with node_client(at(node), settings) as upstream:
            await upstream.ask(("PING",))

    for settings in (QUICK, NodeClientSettings(password="s3", timeout_s=0.2)):
        started = time.monotonic()
        with pytest.raises(NodeClientError, match="does not answer in time"):
            asyncio.run(scene(settings))
        assert time.monotonic() - started < 2.0
    wait_for(lambda: closed(node), 5.0, "the connections are closed")


def test_a_connection_that_was_reset_meanwhile(node: FakeNode) -> None:
    """uvloop says RuntimeError then."""

    async def scene() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            await upstream.ask(("PING",))
            upstream._connection._writer.transport.abort()
            await asyncio.sleep(0)
            await upstream.ask(("PING",))

    with (
        pytest.raises(NodeClientError, match="Connection reset by peer"),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(scene())


@pytest.mark.parametrize("data", [b"", b"*2\r\n:1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\n", b"\x00" * 100])
def test_broken_answers(node: FakeNode, data: bytes) -> None:
    node.on("PING", Cut(data))

    async def scene() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            await upstream.ask(("PING",))

    with pytest.raises(NodeClientError):
        asyncio.run(scene())


@pytest.mark.parametrize(
    "text", [b"LOADING Redis is loading the dataset in memory", b"ERR max number of clients reached"]
)
def test_a_node_that_is_not_ready_for_anyone(node: FakeNode, text: bytes) -> None:
    node.on("PING", b"-" + text + b"\r\n")

    async def scene() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            await upstream.ask(("PING",))

    with pytest.raises(NodeClientError, match=text.decode()):
        asyncio.run(scene())


def test_cancelling_closes(node: FakeNode) -> None:
    node.on("PING", SILENCE)

    async def scene() -> None:
        async def ask() -> None:
            async with node_client(at(node), PATIENT) as upstream:
                await upstream.ask(("PING",))

        task = asyncio.create_task(ask())
        await asyncio.to_thread(node.await_seen, "PING")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    wait_for(lambda: closed(node), 5.0, "the connection is closed")


def test_no_password_in_a_repr() -> None:
    assert "s3cret" not in repr(NodeClientSettings(password="s3cret"))


def test_cancelling_at_any_moment(node: FakeNode) -> None:
    """redis-py's own timeouts would let some of these pass: asyncio.wait_for() of Python 3.11 forgets a cancellation
    that comes together with the result, and a task that asks again and again would never end."""

    async def forever() -> None:
        async with node_client(at(node), PATIENT) as upstream:
            while True:
                await upstream.ask(("PING",), ("PING",))

    async def scene() -> None:
        for steps in range(60):
            task = asyncio.create_task(forever())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5.0)
            forgotten = not done
            if forgotten:
                task.cancel()
                await asyncio.wait([task])
            assert not forgotten, f"the cancellation after {steps} steps was lost"

    asyncio.run(scene())


def test_a_name_that_hangs_has_its_last_address(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address("known.test", node.port)

    async def scene() -> None:
        resolver.answers["known.test"] = HOST
        for _ in range(2):
            async with node_client(address, NodeClientSettings(timeout_s=1.0)) as upstream:
                assert upstream.address == address
                assert await upstream.ask(("PING",)) == [b"PONG"]
            resolver.answers["known.test"] = HANGS
        resolver.answers["new.test"] = HANGS
        with pytest.raises(NodeClientError, match=r"new\.test:1 does not answer in time"):
            await connect(Address("new.test", 1), QUICK)

    with fake_resolver(monkeypatch) as resolver:
        uvloop.run(scene())  # its end does not wait for the resolver either


def test_every_address_of_a_name_is_tried(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        resolver.answers["two.test"] = ["127.9.9.9", HOST]
        async with node_client(Address("two.test", node.port), PATIENT) as upstream:
            assert await upstream.ask(("PING",)) == [b"PONG"]
        with pytest.raises(NodeClientError, match="Connection refused"):
            await connect(Address("two.test", free_port()), PATIENT)

    with fake_resolver(monkeypatch) as resolver:
        uvloop.run(scene())
