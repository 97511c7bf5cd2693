"""What a client can make a server say is not believed: forged redirections and refusals, and hidden BLOCK options.

Why: a script chooses its own error line, and a group or a consumer may be called like an option. Issue 7: 0.1.0 dialled
the host that a script named, gave it the slot of every client and the cluster's password, ended workers on a host name
that no resolver takes, and repeated what a script had done up to fifty times.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import HOST, EmbeddedCluster, EmbeddedNode
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, bulk, encode

KEY = "a"
COUNTER = "{a}:executed"
SLOT = slot_of(KEY)
READERS = 4  # clients go to the worker with the fewest: each of two workers has some of these
PATIENCE_S = 20.0

BODY = "redis.call('incr', KEYS[1]); return redis.error_reply(ARGV[1])"
FUNCTION = (
    "#!lua name=forger\nredis.register_function('forge', function(KEYS, ARGV)"
    " redis.call('incr', KEYS[1]); return redis.error_reply(ARGV[1]) end)"
)


class Foreigner:
    """A listener outside the cluster: whoever connects is noted, with what it says."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._listener = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.heard.append(b"")
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(1)
                    self.heard[-1] = sock.recv(4096)


@pytest.fixture
def foreigner() -> Iterator[Foreigner]:
    listening = Foreigner()
    yield listening
    listening.close()


@pytest.fixture
def owner(cluster: EmbeddedCluster) -> EmbeddedNode:
    """The primary that owns the slot of KEY."""
    return cluster.owner_of(SLOT)


@pytest.fixture
def speakers(cluster: EmbeddedCluster) -> Iterator[dict[str, list[str]]]:
    """The ways to make a server answer with a line: the words before the number of keys. Known on all primaries."""
    sha = ""
    for node in cluster.primaries():
        sha = str(node.command("SCRIPT", "LOAD", BODY))
        node.command("FUNCTION", "LOAD", "REPLACE", FUNCTION)
    yield {"EVAL": ["EVAL", BODY], "EVALSHA": ["EVALSHA", sha], "FCALL": ["FCALL", "forge"]}
    for node in cluster.primaries():
        node.command("FUNCTION", "FLUSH")


def readers(proxy: ProxyDaemon, stack: contextlib.ExitStack) -> list[RawClient]:
    """Connected and served clients, some at each worker."""
    clients = [stack.enter_context(proxy.raw()) for _ in range(READERS)]
    for client in clients:
        assert client.command("SET", KEY, "mine") == b"+OK\r\n"
    return clients


def answered(client: RawClient, meanwhile: Callable[[], None]) -> bytes:
    """The client's next reply; the others send commands until it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while not select.select([client.sock], [], [], 0)[0]:
        assert time.monotonic() < deadline, "no reply to the forger"
        meanwhile()
    return client.frame()


def gets(node: EmbeddedNode) -> int:
    """GETs that reached the node, answered or redirected."""
    found = node.info("commandstats").get("cmdstat_get", {})
    return int(found.get("calls", 0)) + int(found.get("rejected_calls", 0))


def destination(name: str, cluster: EmbeddedCluster, owner: EmbeddedNode, foreigner: Foreigner) -> str:
    """host:port that a script names."""
    if name == "another node":
        return next(node.address for node in cluster.primaries() if node is not owner)
    return {"foreign": foreigner.address, "no host name": "a..b:1", "a long host name": "h" * 300 + ":6379"}[name]


@pytest.mark.parametrize("speaker", ["EVAL", "EVALSHA", "FCALL"])
@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
@pytest.mark.parametrize("where", ["foreign", "no host name", "a long host name", "another node"])
def test_a_script_cannot_redirect_anybody(
    speaker: str,
    kind: str,
    where: str,
    proxy: ProxyDaemon,
    cluster: EmbeddedCluster,
    owner: EmbeddedNode,
    speakers: dict[str, list[str]],
    foreigner: Foreigner,
) -> None:
    """Not to a foreign host, which is never connected to, nor to a node that is not the owner; it harms no worker."""
    target = destination(where, cluster, owner, foreigner)
    line = f"{kind} {SLOT} {target}"
    workers = proxy.worker_pids()
    others = [node for node in cluster.primaries() if node is not owner]
    with contextlib.ExitStack() as stack:
        clients = readers(proxy, stack)
        forger = stack.enter_context(proxy.raw(timeout_s=PATIENCE_S))
        assert forger.command("PING") == b"+PONG\r\n"
        strayed = [gets(node) for node in others]

        def others_read() -> None:
            for client in clients:
                assert client.command("GET", KEY) == bulk(b"mine")

        forger.send(encode(*speakers[speaker], 1, COUNTER, line))
        assert answered(forger, others_read).startswith(b"-")
        for _ in range(20):
            others_read()
        assert [gets(node) for node in others] == strayed  # the slot is where it was, for everybody
        assert clients[0].command("GET", COUNTER) in (bulk(b"1"), bulk(b"2"))
        assert forger.command("GET", KEY) == bulk(b"mine")  # and the forger has not lost its connection
    assert foreigner.heard == []
    assert proxy.worker_pids() == workers
    if where != "another node":
        named = target if where == "foreign" else target.rpartition(":")[0]
        assert named not in proxy.http("/metrics")[1]


def test_a_script_cannot_redirect_another_slot(
    proxy: ProxyDaemon, cluster: EmbeddedCluster, owner: EmbeddedNode, foreigner: Foreigner
) -> None:
    """MOVED with the number of a slot that the command has nothing to do with, to a foreign host and to a real node."""
    others = [node for node in cluster.primaries() if node is not owner]
    elsewhere = next(key for key in map(str, range(100)) if cluster.owner_of(slot_of(key)) is not owner)
    with contextlib.ExitStack() as stack:
        clients = readers(proxy, stack)
        forger = stack.enter_context(proxy.raw(timeout_s=PATIENCE_S))
        strayed = [gets(node) for node in others]

        def others_read() -> None:
            for client in clients:
                assert client.command("GET", KEY) == bulk(b"mine")

        for target in (foreigner.address, others[0].address):
            forger.send(encode("EVAL", BODY, 1, elsewhere, f"MOVED {SLOT} {target}"))
            assert answered(forger, others_read).startswith(b"-")
            for _ in range(20):
                others_read()
        assert [gets(node) for node in others] == strayed
    assert foreigner.heard == []


def test_many_forged_hosts_leave_no_trace(proxy: ProxyDaemon) -> None:
    """Not in the metrics, where a client could make any label, and no flood in the log."""
    count = 60
    before = proxy.http("/metrics")[1].count("\n")
    logged = len(proxy.log.splitlines())
    with proxy.raw(timeout_s=PATIENCE_S) as forger:
        for host in ("forged-{}.invalid:6379", "127.9.9.{}:1"):
            lines = [f"MOVED {SLOT} {host.format(n)}" for n in range(count)]
            forger.send(b"".join(encode("EVAL", BODY, 1, COUNTER, line) for line in lines))
            for reply in forger.frames(count):
                assert reply.startswith(b"-")
        assert forger.command("SET", KEY, "v") == b"+OK\r\n"
    body = proxy.http("/metrics")[1]
    assert "forged-" not in body
    assert "127.9.9." not in body
    assert body.count("\n") - before < count
    assert len(proxy.log.splitlines()) - logged < 10


@pytest.mark.parametrize("speaker", ["EVAL", "EVALSHA", "FCALL"])
@pytest.mark.parametrize("line", ["TRYAGAIN later", "CLUSTERDOWN x", "LOADING foo", "READONLY nope", "MASTERDOWN no"])
def test_a_script_that_speaks_of_a_refusal_is_executed_once(
    speaker: str, line: str, proxy: ProxyDaemon, speakers: dict[str, list[str]]
) -> None:
    """What a script did is not undone by its error line, so it must not be repeated."""
    with proxy.raw(timeout_s=PATIENCE_S) as raw:
        started = time.monotonic()
        answer = raw.command(*speakers[speaker], 1, COUNTER, line)
        assert raw.command("GET", COUNTER) == bulk(b"1")
        assert answer == f"-{line}\r\n".encode()
        assert time.monotonic() - started < 4  # of 5 that it would be tried again


@pytest.mark.parametrize("line", ["LOADING foo", "MASTERDOWN no"])
def test_a_script_makes_no_replica_unfit(
    line: str, cluster: EmbeddedCluster, empty: None, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    """`reads: replica` never uses the primary: if the replica were no longer used, reads would fail or wait."""
    daemon = start_proxy(cluster.seeds[:1], {"listeners": [{"reads": "replica"}]}, workers=1)
    with daemon.raw(timeout_s=PATIENCE_S) as forger, daemon.raw(timeout_s=PATIENCE_S) as other:
        assert other.command("GET", KEY) == b"$-1\r\n"
        started = time.monotonic()
        answer = forger.command("EVAL_RO", "return redis.error_reply(ARGV[1])", 1, KEY, line)
        for _ in range(20):
            assert other.command("GET", KEY) == b"$-1\r\n"
        assert answer == f"-{line}\r\n".encode()
        assert time.monotonic() - started < 4  # of 5 that it would be tried again


def test_a_value_too_long_for_the_nodes_is_its_clients_affair(
    server: str, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    """A server closes the connection on which a bulk is too long: that must not be a shared one."""
    limit = 1 << 20
    with EmbeddedCluster(
        server, primaries=1, replicas=0, node_timeout_ms=15000, options={"proto-max-bulk-len": str(limit)}
    ) as short:
        daemon = start_proxy(short.seeds, workers=1)
        with daemon.raw(timeout_s=PATIENCE_S) as other:
            count = 0
            answers = []
            for _ in range(5):
                with daemon.raw(timeout_s=PATIENCE_S) as large:
                    with contextlib.suppress(ConnectionError):  # it may be cut as soon as the length is seen
                        large.send(encode("SET", KEY, b"x" * (4 * limit)))
                    other.send(encode("INCR", COUNTER) * 10)
                    assert large.rest_or_frame()[:1] in b"-"
                    answers += other.frames(10)
                    count += 10
            assert answers == [b":%d\r\n" % (n + 1) for n in range(count)]
            assert other.command("SET", KEY, b"x" * (limit - 1)) == b"+OK\r\n"


# Hidden BLOCK options


@pytest.mark.parametrize(
    "words",
    [
        ["GROUP", "streams", "c", "BLOCK", 0, "STREAMS", KEY, ">"],
        ["GROUP", "STREAMS", "c", "COUNT", 1, "block", 0, "NOACK", "STREAMS", KEY, ">"],
        ["GROUP", "streams", "streams", "BLOCK", 0, "STREAMS", KEY, ">"],
    ],
    ids=str,
)
def test_a_group_called_streams_holds_nobody(words: list[str | int], proxy: ProxyDaemon, owner: EmbeddedNode) -> None:
    """Refused or served, but never on the connection that the others share."""
    group = str(words[1])
    with proxy.raw() as blocked, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.raw(timeout_s=PATIENCE_S)) for _ in range(READERS)]
        for client in clients:
            assert client.command("EXISTS", "{a}") == b":0\r\n"
        owner.command("XGROUP", "CREATE", KEY, group, "$", "MKSTREAM")
        blocked.send(encode("XREADGROUP", *words))
        try:
            select.select([blocked.sock], [], [], 0.2)  # a refusal, or time for it to reach the node
            for client in clients:
                started = time.monotonic()
                assert client.command("GET", "{a}other") == b"$-1\r\n"
                assert time.monotonic() - started < 5
        finally:
            owner.command("XADD", KEY, "*", "field", "value")  # whoever is held is released
        assert blocked.frame()[:1] in b"-*"


@pytest.mark.parametrize(
    ("group", "consumer", "options"),
    [
        ("g", "BLOCK", []),
        ("BLOCK", "c", []),
        ("block", "BLOCK", ["COUNT", 10]),
        ("g", "block", ["NOACK"]),
        ("COUNT", "BLOCK", ["COUNT", 10, "NOACK"]),
    ],
)
def test_a_consumer_called_block_is_served(
    group: str, consumer: str, options: list[str | int], proxy: ProxyDaemon, raw: RawClient
) -> None:
    assert raw.command("XGROUP", "CREATE", KEY, group, "$", "MKSTREAM") == b"+OK\r\n"
    assert raw.command("XADD", KEY, "1-1", "field", "value") == bulk(b"1-1")
    entry = b"*2\r\n$3\r\n1-1\r\n*2\r\n$5\r\nfield\r\n$5\r\nvalue\r\n"
    expected = b"*1\r\n*2\r\n$1\r\na\r\n*1\r\n" + entry
    assert raw.command("XREADGROUP", "GROUP", group, consumer, *options, "STREAMS", KEY, ">") == expected


def test_a_stream_called_block_is_read(raw: RawClient) -> None:
    """What follows STREAMS are names, whichever words they are."""
    assert raw.command("XADD", "BLOCK", "1-1", "field", "value") == bulk(b"1-1")
    assert raw.command("XREAD", "COUNT", 5, "STREAMS", "BLOCK", 0).startswith(b"*1\r\n*2\r\n$5\r\nBLOCK\r\n*1\r\n")
