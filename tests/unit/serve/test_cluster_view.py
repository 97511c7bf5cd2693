"""The virtual node: where it says it is, and whether cluster-aware clients can live with it."""

from __future__ import annotations

import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster

from proxy.serve import cluster_view, table
from proxy.serve.context import ServeContext
from tests.support.cluster import Standalone
from tests.unit.serve.fakes import RUN_ID, FakeClient, context, topology

WHOLE = topology((0, 8191), (8192, 16383))


@pytest.mark.parametrize(
    ("local_address", "unix_endpoint", "expected"),
    [
        ("127.0.0.1:7617", None, ("127.0.0.1", 7617)),
        ("10.1.2.3:1", ("127.0.0.1", 7617), ("10.1.2.3", 1)),
        ("[::1]:7617", None, ("::1", 7617)),
        ("::1:7617", None, ("::1", 7617)),
        ("[fe80::1%eth0]:7617", None, ("fe80::1%eth0", 7617)),
        ("[::ffff:10.1.2.3]:7617", None, ("10.1.2.3", 7617)),
        ("::FFFF:10.1.2.3:7617", None, ("10.1.2.3", 7617)),
        ("unix:/run/proxy.sock", ("127.0.0.1", 7617), ("127.0.0.1", 7617)),
        ("unix:/run/a:1.sock", None, ("", 0)),
    ],
)
def test_endpoint_of(local_address: str, unix_endpoint: tuple[str, int] | None, expected: tuple[str, int]) -> None:
    assert cluster_view.endpoint_of(local_address, unix_endpoint) == expected


def ask(ctx: ServeContext, client: FakeClient, *words: str) -> bytes:
    return table.answer(ctx, client, [b"CLUSTER", *(word.encode() for word in words)])


def test_the_id_is_the_same_for_every_client_and_another_after_a_restart() -> None:
    first = ask(context(), FakeClient(), "MYID")
    assert first == ask(context(), FakeClient(id=8, proto=3, local_address="10.0.0.1:1"), "MYID")
    assert first != ask(context(run_id=RUN_ID[::-1]), FakeClient(), "MYID")
    node = first.split(b"\r\n")[1]
    assert len(node) == 40
    assert int(node, 16) > 0
    for words in ("SLOTS", "SHARDS", "NODES"):
        assert node in ask(context(), FakeClient(), words)


@pytest.mark.parametrize(
    ("known", "state", "covered", "epoch"),
    [
        ({}, "fail", 0, 0),
        (topology((0, 99), epoch=-1), "fail", 100, 0),
        (topology((0, 16382)), "fail", 16383, 5),
        (WHOLE, "ok", 16384, 5),
    ],
)
def test_info_tells_what_is_covered(known: dict[str, Any], state: str, covered: int, epoch: int) -> None:
    lines = ask(context(**known), FakeClient(), "INFO").decode().split("\r\n")
    assert f"cluster_state:{state}" in lines
    assert f"cluster_slots_ok:{covered}" in lines
    assert f"cluster_slots_fail:{16384 - covered}" in lines
    assert f"cluster_current_epoch:{epoch}" in lines


class MiniProxy(socketserver.ThreadingTCPServer):
    """What the proxy answers itself comes from local.answer, all else from one standalone server."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, backend: Standalone) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.backend = backend
        self.ctx = context(**WHOLE)
        self.served: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Connection(socketserver.StreamRequestHandler):
    server: MiniProxy

    def handle(self) -> None:
        host, port = self.request.getsockname()
        client = FakeClient(local_address=f"{host}:{port}")
        with self.server.backend.raw() as backend:
            while not client.closing and (head := self.rfile.readline()):
                words = []
                for _ in range(int(head[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2])
                name = words[0].lower()
                if name != b"command" and (name in table.COMMANDS or name in table.CONTAINERS):
                    self.server.served.append(b" ".join(words[:2]).lower())
                    answer = table.answer(self.server.ctx, client, words)
                    if name == b"hello" and client.proto == 3:
                        backend.command("HELLO", 3)
                else:
                    answer = backend.command(*words)
                self.wfile.write(answer)


@pytest.fixture
def mini(standalone: Standalone) -> Iterator[MiniProxy]:
    with MiniProxy(standalone) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_cluster(mini: MiniProxy, protocol: int) -> None:
    with RedisCluster(host="127.0.0.1", port=mini.port, protocol=protocol, decode_responses=True) as client:
        assert client.set("foo", "1") is True
        assert client.get("foo") == "1"
        assert client.mget_nonatomic("foo", "bar") == ["1", None]
        assert [node.port for node in client.get_nodes()] == [mini.port]
        assert client.cluster_info()["cluster_state"] == "ok"
        [(address, node)] = client.cluster_nodes().items()
        assert address == f"127.0.0.1:{mini.port}"
        assert node["node_id"] == cluster_view.node_id(mini.ctx)
        assert node["slots"] == [["0", "16383"]]
        [shard] = client.cluster_shards()
        assert shard["nodes"][0]["endpoint"] == "127.0.0.1"
        assert client.cluster_keyslot("foo") == 12182
    assert b"cluster slots" in mini.served


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(mini: MiniProxy, protocol: int) -> None:
    with redis.Redis(port=mini.port, protocol=protocol, decode_responses=True, client_name="me") as client:
        assert client.get("none") is None
        assert client.client_getname() == "me"
        assert client.client_info()["lib-name"].startswith("redis-py")
        assert client.info("cluster") == {"cluster_enabled": 0}
        assert client.info()["redis_version"] == "7.2.4"
        assert len(client.time()) == 2
        assert client.echo("x") == "x"


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not on PATH")
@pytest.mark.parametrize("options", [[], ["-c"], ["-3"], ["-c", "-3"]], ids=str)
def test_redis_cli(mini: MiniProxy, options: list[str]) -> None:
    script = "set foo 1\nget foo\nclient setname me\nclient getname\ncluster keyslot foo\ncluster nodes\n"
    done = subprocess.run(
        ["redis-cli", "-p", str(mini.port), *options],
        input=script,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert done.stdout.split("\n")[:5] == ["OK", "1", "OK", "me", "12182"]
    assert "myself,master - 0 0 5 connected 0-16383" in done.stdout
    assert done.stderr == ""


def test_a_socket_address_has_the_expected_shape(mini: MiniProxy) -> None:
    with socket.create_connection(("127.0.0.1", mini.port)) as sock:
        sock.sendall(b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n")
        answer = sock.recv(4096)
    node = cluster_view.node_id(mini.ctx).encode()
    assert answer == (
        b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$9\r\n127.0.0.1\r\n:%d\r\n$40\r\n%b\r\n*0\r\n" % (mini.port, node)
    )


@pytest.mark.parametrize("sub", ["REPLICAS", "SLAVES", "COUNT-FAILURE-REPORTS"])
def test_questions_about_a_node_are_for_the_one_there_is(sub: str) -> None:
    me = RUN_ID[::-1]
    nothing = b":0\r\n" if sub.startswith("COUNT") else b"*0\r\n"
    assert ask(context(), FakeClient(), sub, me) == nothing
    for other in (RUN_ID, me.upper() + "x", ""):
        assert ask(context(), FakeClient(), sub, other) == b"-ERR Unknown node %b\r\n" % other.encode()
    assert ask(context(), FakeClient(), sub, "no\0\r\n") == b"-ERR Unknown node no\r\n"


def test_nothing_is_linked_or_moved() -> None:
    rows = {b"cluster|getslotmigrations": None, b"cluster|myshardid": None}
    assert ask(context(), FakeClient(), "LINKS") == b"*0\r\n"
    assert ask(context(rows=rows), FakeClient(), "GETSLOTMIGRATIONS") == b"*0\r\n"
    shard = ask(context(rows=rows), FakeClient(), "MYSHARDID")
    assert shard.startswith(b"$40\r\n")
    assert shard != ask(context(rows=rows), FakeClient(), "MYID")


@pytest.mark.parametrize("sub", ["GETSLOTMIGRATIONS", "MYSHARDID"])
def test_what_the_servers_do_not_have(sub: str) -> None:
    assert ask(context(rows={}), FakeClient(), sub).startswith(b"-ERR unknown subcommand '%b'" % sub.encode())
