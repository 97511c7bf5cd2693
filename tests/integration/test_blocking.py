"""Blocking commands of real clients against real servers: what one plain server does, the proxy does."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from proxy.resp import errors
from tests.support.cluster import Standalone, slot_of, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
PUSHED = [
    ("BLPOP k none{k} 0", "RPUSH k v", 2),
    ("BRPOP k 0", "RPUSH k v w", 2),
    ("BLMOVE k d{k} LEFT RIGHT 0", "RPUSH k v", 2),
    ("BRPOPLPUSH k d{k} 0", "RPUSH k v", 2),
    ("BLMPOP 0 1 k LEFT COUNT 2", "RPUSH k v", 2),
    ("BZPOPMIN k 0", "ZADD k 1.5 m 2 n", 2),
    ("BZPOPMAX k 0", "ZADD k 1.5 m 2 n", 2),
    ("BZMPOP 0 1 k MIN COUNT 2", "ZADD k 1.5 m", 2),
    ("XREAD BLOCK 0 STREAMS k $", "XADD k 1-1 f v", 2),
    ("XREAD COUNT 1 BLOCK 0 STREAMS k none{k} 0 0", "XADD k 1-1 f v", 2),
]
ENDED = [
    "BLPOP none 0.02",
    "BRPOP none 0.02",
    "BLMOVE none d{none} LEFT LEFT 0.02",
    "BRPOPLPUSH none d{none} 0.02",
    "BLMPOP 0.02 1 none LEFT",
    "BZPOPMIN none 0.02",
    "BZMPOP 0.02 1 none MAX",
    "XREAD BLOCK 20 STREAMS none $",
    "BLPOP none -1",
    "BLPOP none x",
    "BLPOP none 1e300",
    "BLPOP none nan",
    "BLPOP none",
    "BLMPOP 0 0 none LEFT",
    "BLMPOP 0 x none LEFT",
    "BLMPOP x 1 none LEFT",
    "BLMOVE none none UP LEFT 0",
    "XREAD BLOCK -1 STREAMS none $",
    "XREAD BLOCK x STREAMS none $",
    "XREADGROUP GROUP g c BLOCK 0 STREAMS none >",
    "BLPOP text 0",
    "BLPOP text list{text} 0",
    "WAIT x 0",
    "WAIT 0 x",
    "WAIT 0 -1",
    "WAIT",
    "CLIENT UNBLOCK x",
    "CLIENT UNBLOCK 999999",
    "CLIENT UNBLOCK 999999 x",
    "CLIENT UNBLOCK 999999 TIMEOUT",
]


def blocked_clients(side: ProxyDaemon | Standalone, count: int) -> None:
    with side.raw() as raw:
        wait_for(lambda: b"blocked_clients:%d\r\n" % count in raw.command("INFO", "clients"), 10, f"{count} blocked")


def blocked_on(node: EmbeddedNode) -> int:
    return int(node.info("clients")["blocked_clients"])


def leased(daemon: ProxyDaemon) -> int:
    values = daemon.metrics().items()
    return int(sum(value for name, value in values if 'purpose="leased"' in name and 'state="up"' in name))


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize(("frame", "push", "times"), PUSHED, ids=[case[0] for case in PUSHED])
def test_what_is_pushed_later_comes(
    proxy: ProxyDaemon, cluster: EmbeddedCluster, standalone: Standalone, proto: int, frame: str, push: str, times: int
) -> None:
    """Once by a push while it waits, once at once; byte for byte as one server."""
    seen = []
    for side in (proxy, standalone):
        with side.raw() as blocked, side.raw() as other:
            other.command("FLUSHALL")
            blocked.command("HELLO", proto)
            blocked.send(encode(*frame.split()))
            blocked_clients(side, 1)
            if side is proxy:  # and until the node has it: `$` means what is there by then
                wait_for(lambda: sum(map(blocked_on, cluster.primaries())) == 1, 10, "blocked at the node")
            other.command(*push.split())
            told = [blocked.frame()]
            other.command(*push.replace("1-1", "2-2").split())
            told.append(blocked.command(*frame.replace("$", "1-1").split()))
            seen.append(told)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("proto", [2, 3])
def test_what_ends_by_itself(proxy: ProxyDaemon, standalone: Standalone, proto: int) -> None:
    with proxy.raw() as through, standalone.raw() as direct:
        direct.command("FLUSHALL")
        for one in (through, direct):
            one.command("HELLO", proto)
            one.command("SET", "text", "x")
            one.command("RPUSH", "list{text}", "v")
        for line in ENDED:
            assert through.command(*line.split()) == direct.command(*line.split()), line


def test_groups_of_a_stream(proxy: ProxyDaemon) -> None:
    with proxy.client() as one, proxy.client(protocol=3) as two:
        one.xgroup_create("s", "g", mkstream=True)
        read: list[Any] = []
        reader = threading.Thread(target=lambda: read.append(two.xreadgroup("g", "c", {"s": ">"}, block=10_000)))
        reader.start()
        blocked_clients(proxy, 1)
        one.xadd("s", {"f": "v"}, id="1-1")
        reader.join()
        assert read == [{"s": [[("1-1", {"f": "v"})]]}]
        assert one.xack("s", "g", "1-1") == 1
        assert one.xreadgroup("g", "c", {"s": ">"}, block=20) == []


def test_a_pipeline_keeps_its_order(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """What stands before and behind a blocking command, on shared connections, is carried out before and behind it."""
    frames = [
        "RPUSH q 1", "BLPOP q 0", "RPUSH q 2", "LLEN q", "BLPOP q 0", "LLEN q", "BLPOP q 0.01", "SET a 1", "GET a",
        "MULTI", "BLPOP q 0", "RPUSH q 3", "BLPOP q 0", "WAIT 0 0", "EXEC", "WATCH q", "BLPOP q 0.01", "MULTI", "GET a",
        "EXEC", "PING",
    ]  # fmt: skip
    frames = [frame.replace(" a", " {q}a") for frame in frames]
    seen = []
    for one in (proxy.raw(), standalone.raw()):
        with one:
            one.command("FLUSHALL")
            one.send(b"".join(encode(*frame.split()) for frame in frames))
            seen.append(one.frames(len(frames)))
    assert seen[0] == seen[1]


def test_it_is_shown(proxy: ProxyDaemon) -> None:
    with proxy.raw() as blocked, proxy.raw() as other:
        number = blocked.command("CLIENT", "ID")[1:-2].decode()
        blocked.send(encode("BLPOP", "none", "0"))
        blocked_clients(proxy, 1)
        line = other.command("CLIENT", "LIST", "ID", number)
        assert b" flags=b " in line
        assert b" cmd=blpop " in line
        wait_for(lambda: proxy.metric("redis_proxy_blocked_clients") == 1, 5, "in the metrics")
        assert leased(proxy) >= 1
        blocked.close()
        blocked_clients(proxy, 0)
        wait_for(lambda: proxy.metric("redis_proxy_blocked_clients") == 0, 5, "out of the metrics")


@pytest.mark.parametrize("line", [*[case[0] for case in PUSHED if "0 0" not in case[0]], "WAIT 3 0"])
def test_client_unblock(proxy: ProxyDaemon, standalone: Standalone, line: str) -> None:
    """By the proxy's ids, whichever worker has the client; the answer is what a server makes of it."""
    ways = [(proto, mode) for proto in (2, 3) for mode in ("", "TIMEOUT", "ERROR")]
    seen: list[list[list[bytes]]] = [[], []]
    for side, told in zip((proxy, standalone), seen, strict=True):
        with contextlib.ExitStack() as stack:
            blocked, other = [stack.enter_context(side.raw()) for _ in ways], stack.enter_context(side.raw())
            other.command("FLUSHALL")
            for client, (proto, _) in zip(blocked, ways, strict=True):
                client.command("HELLO", proto)
            numbers = [client.command("CLIENT", "ID")[1:-2].decode() for client in blocked]
            for client in blocked:
                client.send(encode(*line.split()))
            blocked_clients(side, len(ways))
            for client, number, (_, mode) in zip(blocked, numbers, ways, strict=True):
                first = other.command("CLIENT", "UNBLOCK", number, *([mode] if mode else []))
                answer, again = client.frame(), other.command("CLIENT", "UNBLOCK", number)
                told.append([first, again, client.command("PING"), answer])
    for (_, mode), through, direct in zip(ways, *seen, strict=True):
        assert through[0] == b":1\r\n"
        if line.startswith("WAIT") and mode != "ERROR":
            direct[3] = b":1\r\n"  # the replicas that every shard has
        assert through == direct


def test_client_pause(proxy: ProxyDaemon) -> None:
    """Who is blocked stays so, who would block is held."""
    with proxy.raw() as blocked, proxy.raw() as later, proxy.raw() as other:
        blocked.send(encode("BLPOP", "none", "0"))
        blocked_clients(proxy, 1)
        assert other.command("CLIENT", "PAUSE", "10000", "WRITE") == b"+OK\r\n"
        later.send(encode("BLPOP", "none", "0.01"))
        time.sleep(0.1)
        later.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            later.sock.recv(1)
        later.sock.setblocking(True)
        assert other.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert later.frame() == b"*-1\r\n"
        assert other.command("RPUSH", "none", "v") == b":1\r\n"
        assert blocked.frame() == b"*2\r\n$4\r\nnone\r\n$1\r\nv\r\n"


# -- leaving


def answer_to_a_half_closed(side: ProxyDaemon | Standalone, frame: bytes) -> bytes:
    with side.raw() as client:
        client.send(frame)
        client.sock.shutdown(socket.SHUT_WR)
        return client.rest()


def test_half_closed_clients_are_closed_at_once(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """With what was there for them, and without what comes later."""
    for side in (proxy, standalone):
        with side.raw() as other:
            other.command("FLUSHALL")
            other.command("RPUSH", "k", "1")
            other.command("DEL", "none")
        frames = encode("BLPOP", "k", "0") + encode("BLPOP", "none", "0") + encode("SET", "none", "v")
        assert answer_to_a_half_closed(side, frames) == b"*2\r\n$1\r\nk\r\n$1\r\n1\r\n"
        with side.raw() as other:
            assert other.command("EXISTS", "none") == b":0\r\n"
            assert other.command("RPUSH", "none", "v") == b":1\r\n"
            assert other.command("LLEN", "none") == b":1\r\n"


@pytest.mark.parametrize("how", ["close", "reset", "kill"])
def test_nothing_is_popped_for_who_has_left(proxy: ProxyDaemon, cluster: EmbeddedCluster, how: str) -> None:
    owner = cluster.owner_of(slot_of("gone"))
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(proxy.raw())
        for _ in range(5):
            client = proxy.raw()
            number = client.command("CLIENT", "ID")[1:-2].decode()
            client.send(encode("BLPOP", "gone", "0"))
            wait_for(lambda: blocked_on(owner) == 1, 5, "blocked")
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if how == "kill":
                assert other.command("CLIENT", "KILL", "ID", number) == b":1\r\n"
            client.close()
            wait_for(lambda: blocked_on(owner) == 0, 5, "free")
            assert other.command("RPUSH", "gone", "v") == b":1\r\n"
            assert other.command("DEL", "gone") == b":1\r\n"
    blocked_clients(proxy, 0)


def test_what_was_popped_when_it_was_killed_still_comes(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """An element that is pushed while CLIENT KILL is on its way is the client's, or still in the list."""
    lost = 0
    with proxy.raw() as pusher, proxy.raw() as killer:
        pusher.command("FLUSHALL")
        for n in range(150):
            key = f"kill:{n}"
            with proxy.raw() as client:
                number = client.command("CLIENT", "ID")[1:-2].decode()
                client.send(encode("BLPOP", key, "0"))
                time.sleep(0.002)
                pusher.send(encode("RPUSH", key, "v"))
                time.sleep((n % 15) * 0.00004)
                assert killer.command("CLIENT", "KILL", "ID", number) in (b":1\r\n", b":0\r\n")
                assert killer.command("CLIENT", "LIST", "ID", number).split(b"\r\n")[1] == b""
                got = client.rest()
                lost += not got and pusher.frame() == b":1\r\n" and pusher.command("LLEN", key) == b":0\r\n"
                if got:
                    pusher.frame()
    assert lost == 0
    blocked_clients(proxy, 0)


def test_connections_are_used_again(cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy) -> None:
    daemon = start_proxy(cluster.seeds, workers=1)
    with daemon.client() as client:
        for _ in range(20):
            client.rpush("q", "v")
            assert client.blpop("q", 5) == ("q", "v")
            assert client.blpop("q", 0.001) is None
    for _ in range(5):
        gone = daemon.raw()
        gone.send(encode("BLPOP", "q", "0"))
        blocked_clients(daemon, 1)
        gone.close()
        blocked_clients(daemon, 0)
    wait_for(lambda: leased(daemon) == 1, 5, "one connection for all")


def test_the_cap_is_told_and_can_be_changed(cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy) -> None:
    daemon = start_proxy(cluster.seeds, {"backends": {"max_leased": 2}}, workers=1)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(3)]
        for client in clients[:2]:
            client.send(encode("BLPOP", "q", "0"))
        blocked_clients(daemon, 2)
        assert clients[2].command("BLPOP", "q", "0") == errors.NO_LEASE
        assert clients[2].command("PING") == b"+PONG\r\n"
        assert daemon.log_contains("no more connections for WATCH and blocking commands")
        daemon.reload({"backends": {"max_leased": 3}})
        clients[2].send(encode("BLPOP", "q", "0"))
        blocked_clients(daemon, 3)
        assert clients[0].sock.fileno() > 0


def test_sigterm_lets_them_finish_up_to_its_timeout(
    cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy
) -> None:
    daemon = start_proxy(cluster.seeds, {"drain": {"timeout": "2s"}})
    owner = cluster.owner_of(slot_of("q"))
    with daemon.raw() as soon, daemon.raw() as never:
        soon.send(encode("BLPOP", "q", "0"))
        never.send(encode("BLPOP", "p", "0"))
        blocked_clients(daemon, 2)
        daemon.signal(signal.SIGTERM)
        assert daemon.log_contains("drain")
        owner.command("RPUSH", "q", "v")
        assert soon.frame() == b"*2\r\n$1\r\nq\r\n$1\r\nv\r\n"
        assert never.rest() == errors.UNBLOCKED_CHANGED


def test_the_end_of_a_drain_loses_nothing(cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy) -> None:
    """What is pushed around it is some client's, or still in its list."""
    daemon = start_proxy(cluster.seeds, {"drain": {"timeout": "500ms"}})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(60)]
        for n, client in enumerate(clients):
            client.send(encode("BLPOP", f"drain:{n}", "0"))
        blocked_clients(daemon, 60)
        owners = [cluster.owner_of(slot_of(f"drain:{n}")) for n in range(60)]
        daemon.signal(signal.SIGTERM)
        time.sleep(0.48)
        for n, owner in enumerate(owners):
            owner.command("RPUSH", f"drain:{n}", "v")
            time.sleep(0.001)
        told = [client.rest() for client in clients]
        popped = sum(answer.startswith(b"*2\r\n") for answer in told)
        assert popped + told.count(b"") == 60  # told the end and no error, as by a server that shuts down
        assert popped + sum(owner.command("LLEN", f"drain:{n}") for n, owner in enumerate(owners)) == 60


# -- WAIT


@contextlib.contextmanager
def stopped(cluster: EmbeddedCluster, node: EmbeddedNode) -> Iterator[None]:
    cluster.pause(node)
    try:
        yield
    finally:
        cluster.resume(node)


def test_wait_is_for_this_clients_own_writes(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """On every shard it wrote to, and nowhere else; and nobody else is held back."""
    one, two, three = spread_keys()
    owner = cluster.owner_of(slot_of(one))
    (replica,) = cluster.replicas_of(owner)
    with proxy.raw() as raw, proxy.raw() as elsewhere, proxy.raw() as other, proxy.raw() as reader:
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        assert elsewhere.command("SET", two, "1") == b"+OK\r\n"
        assert elsewhere.command("WAIT", 1, 5000) == b":1\r\n"
        with stopped(cluster, replica):
            assert raw.command("SET", one, "1") == b"+OK\r\n"
            assert raw.command("WAIT", 1, 100) == b":0\r\n"
            assert reader.command("GET", one) == b"$1\r\n1\r\n"
            assert elsewhere.command("GET", one) == b"$1\r\n1\r\n"
            assert elsewhere.command("WAIT", 1, 5000) == b":1\r\n"  # it wrote to another shard only
            assert other.command("MSET", one, "1", three, "1") == b"+OK\r\n"
            other.send(encode("WAIT", 1, 0) + encode("PING"))
            blocked_clients(proxy, 1)
            assert reader.command("SET", three, "2") == b"+OK\r\n"
        assert other.frames(2) == [b":1\r\n", b"+PONG\r\n"]
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        assert raw.command("WAIT", 2, 50) == b":1\r\n"


@pytest.mark.parametrize("write", ["EVAL", "MULTI", "WATCH", "BLPOP"])
def test_wait_for_writes_of_every_kind(proxy: ProxyDaemon, cluster: EmbeddedCluster, write: str) -> None:
    (key, *_) = spread_keys()
    (replica,) = cluster.replicas_of(cluster.owner_of(slot_of(key)))
    lines = {
        "EVAL": [["EVAL", "return redis.call('incr', KEYS[1])", "1", key]],
        "MULTI": [["MULTI"], ["SET", key, "1"], ["EXEC"]],
        "WATCH": [["WATCH", key], ["MULTI"], ["SET", key, "1"], ["EXEC"]],
        "BLPOP": [["BLPOP", key, "1"]],
    }[write]
    with proxy.raw() as raw, proxy.raw() as other:
        other.command("RPUSH" if write == "BLPOP" else "GET", key, *(["1"] if write == "BLPOP" else []))
        assert other.command("WAIT", 1, 5000) == b":1\r\n"
        with stopped(cluster, replica):
            for words in lines:
                assert raw.command(*words)[:1] != b"-"
            assert raw.command("WAIT", 1, 100) == b":0\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"


def test_waitaof(proxy: ProxyDaemon, standalone: Standalone, raw: RawClient) -> None:
    (key, *_) = spread_keys()
    raw.command("SET", key, "1")
    if not isinstance_known(standalone):
        assert raw.command("WAITAOF", 0, 0, 10).startswith(b"-ERR unknown command 'WAITAOF'")
        return
    for words in ([0, 0, 100], [0, 1, 50], [1, 0, 0], [2, 0, 0], [0, 0, -1], ["x", 0, 0]):
        through = raw.command("WAITAOF", *words)
        with standalone.raw() as direct:
            direct.command("SET", key, "1")
            assert through == direct.command("WAITAOF", *words), words


def isinstance_known(standalone: Standalone) -> bool:
    with standalone.raw() as direct:
        return not direct.command("WAITAOF", 0, 0, 10).startswith(b"-ERR unknown")


def test_a_client_that_leaves_while_it_waits_for_replicas(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    (key, *_) = spread_keys()
    owner = cluster.owner_of(slot_of(key))
    with proxy.raw() as client:
        client.command("SET", key, "1")
        client.send(encode("WAIT", 5, 0))
        wait_for(lambda: blocked_on(owner) == 1, 5, "blocked")
    wait_for(lambda: blocked_on(owner) == 0, 5, "free")


# -- many clients


def leave_at_random(connect: Callable[[], RawClient], leavers: int, crowd: int = 20) -> int:
    """How many elements were popped for nobody, while a crowd waits, and one after the other leaves at random."""
    chance = random.Random(5)
    other = connect()
    other.command("DEL", "count")
    blocked: list[RawClient] = []
    got: list[int] = []
    pushed = left = 0

    def come() -> None:
        blocked.append(connect())
        blocked[-1].send(encode("BLPOP", "count", "0"))

    def take() -> None:
        for client in blocked:
            if select.select([client.sock], [], [], 0)[0]:
                got.append(int(client.frame().split(b"\r\n")[4]))
                client.send(encode("BLPOP", "count", "0"))

    for _ in range(crowd):
        come()
    while left < leavers:
        take()
        if chance.random() < 0.5:
            other.command("RPUSH", "count", str(pushed))
            pushed += 1
        else:
            client = chance.choice(blocked)
            if not select.select([client.sock], [], [], 0)[0]:
                client.close()
                blocked.remove(client)
                left += 1
                come()
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.002)
    for _ in range(10 * crowd):  # behind all of them, for every one who waits
        other.command("RPUSH", "count", "-1")
    for client in blocked:
        while (number := int(client.frame().split(b"\r\n")[4])) >= 0:
            got.append(number)
            client.send(encode("BLPOP", "count", "0"))
    other.command("DEL", "count")
    for client in [*blocked, other]:
        client.close()
    assert len(got) == len(set(got)), "an element came twice"
    return pushed - len(got)


@pytest.mark.alone
def test_a_thousand_clients_that_leave_at_random(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """What is popped for nobody are elements that crossed the news that the client has left, as with one server."""
    direct, through = leave_at_random(standalone.raw, 1000), leave_at_random(proxy.raw, 1000)
    print(f"popped for nobody: {direct} by one server, {through} by the proxy")
    assert through <= direct + 40
    blocked_clients(proxy, 0)


def test_many_clients_are_served_in_their_order(proxy: ProxyDaemon) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.raw()) for _ in range(100)]
        for client in clients:
            client.send(encode("BLPOP", "turn", "0"))
        blocked_clients(proxy, 100)
        other = stack.enter_context(proxy.raw())
        for n in range(100):
            other.command("RPUSH", "turn", str(n))
        answers = sorted(client.frame().split(b"\r\n")[4] for client in clients)
        assert answers == sorted(b"%d" % n for n in range(100))
