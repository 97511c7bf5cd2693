"""Where the admin server listens: addresses that can and cannot be had, moves, and sockets given to a successor."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest
import uvloop

from proxy.admin import listener
from proxy.admin.http import AdminServer
from proxy.embedded import free_port
from tests.unit.admin.serving import (
    Proxy,
    admin_of,
    answer,
    asking,
    base,
    connection,
    get,
    serve,
    server_of,
)

# ---- addresses


def no_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return True
    return False


needs_ipv6 = pytest.mark.skipif(no_ipv6(), reason="no IPv6 loopback")


@needs_ipv6
def test_ipv6_address() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        assert (await get(f"{base(server, '[::1]')}/livez"))[0] == 200

    serve(check, "[::1]:0")


def test_a_name_means_all_its_addresses() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        for sock in server.sockets:
            host, port = sock.getsockname()[:2]
            assert (await get(f"http://{f'[{host}]' if ':' in host else host}:{port}/livez"))[0] == 200
        assert {sock.getsockname()[0] for sock in server.sockets} == {
            where[0] for *_, where in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM) if not no_ipv6()
        } or no_ipv6()

    serve(check, "localhost:0")


def test_one_address_of_a_name_that_is_not_ours_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        here, elsewhere = [
            socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0] for host in ("127.0.0.1", "192.0.2.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [elsewhere, here])
        await server.move("two.example:0")
        assert [sock.getsockname()[0] for sock in server.sockets] == ["127.0.0.1"]

    async def main() -> None:
        proxy = Proxy()
        async with server_of(proxy) as server:
            await check(proxy, server)

    uvloop.run(main())


def taken() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("taken", "the address is in use; is another proxy running[?]"),
        ("192.0.2.1:9617", "this machine does not have the address"),
        (f"{'a' * 64}:9617", "(this is not a host name|the name could not be looked up: .+)"),
    ],
)
def test_an_address_that_cannot_be_had_is_said_clearly(address: str, reason: str) -> None:
    async def main(address: str) -> None:
        proxy = Proxy()
        server = admin_of(proxy)
        with pytest.raises(OSError, match=rf"cannot listen on admin\.address {address}: {reason}") as caught:
            await server.prepare(address)
        assert str(caught.value) == caught.value.strerror  # without "[Errno 98]"
        assert (server.port, server.sockets) == (0, [])
        await server.stop()

    with taken() as sock:
        uvloop.run(main(f"127.0.0.1:{sock.getsockname()[1]}" if address == "taken" else address))


def test_a_name_that_is_not_looked_up_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_RESOLVE_S", 0.1)

    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: over.wait(10))

    async def main() -> None:
        with pytest.raises(OSError, match=r"slow\.example:1: the name could not be looked up within 0\.1 s$"):
            await admin_of(Proxy()).prepare("slow.example:1")

    uvloop.run(main())  # its end does not wait for the resolver
    assert not over.is_set()
    over.set()


def test_after_stop_the_port_is_free() -> None:
    async def main() -> None:
        proxy = Proxy()
        async with server_of(proxy) as server:
            address = f"127.0.0.1:{server.port}"
        async with server_of(proxy, address) as server:
            assert address.endswith(f":{server.port}")

    uvloop.run(main())


# ---- prepared


def test_nobody_is_answered_before_start() -> None:
    async def main() -> None:
        proxy = Proxy()
        server = admin_of(proxy)
        try:
            await server.prepare("127.0.0.1:0")
            assert len(server.sockets) == 1
            async with connection(server.port, asking("/livez")) as (reader, _):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.2)
                assert proxy.asked == []
                await server.start()
                assert (await answer(reader))[1] == b"live\n"
        finally:
            await server.stop()

    uvloop.run(main())


def test_stop_release_and_discard_before_start_free_the_port() -> None:
    async def main() -> None:
        server = admin_of(Proxy())
        for give_up in (server.stop, server.release, server.discard):
            await server.prepare("127.0.0.1:0")
            port = server.port
            await give_up()
            assert (server.port, server.sockets) == (0, [])
            await until(lambda port=port: refused(port))
            await server.start()  # nothing is prepared any more
            assert server.port == 0

    uvloop.run(main())


def test_an_address_can_be_prepared_again() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        first, address = server.port, free_address()
        for _ in range(3):
            await server.prepare(address)
        await server.discard()
        await server.start()
        assert server.port == first
        await server.move(address)
        assert (await get(f"http://{address}/livez"))[0] == 200

    serve(check)


def test_what_is_prepared_later_counts() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        first, given_up = server.port, free_port()
        await server.prepare(f"127.0.0.1:{given_up}")
        assert (await get(f"{base(server)}/livez"))[0] == 200
        assert server.port == first  # until start()
        await server.prepare(free_address())
        await until(lambda: refused(given_up))
        await server.start()
        assert server.port not in (0, first, given_up)
        assert (await get(f"{base(server)}/livez"))[0] == 200
        await until(lambda: refused(first))

    serve(check)


def test_what_cannot_be_prepared_changes_nothing() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        with taken() as sock, pytest.raises(OSError, match="the address is in use"):
            await server.prepare(f"127.0.0.1:{sock.getsockname()[1]}")
        await server.start()
        assert (await get(f"{base(server)}/livez"))[0] == 200

    serve(check)


def test_given_sockets_that_cannot_be_used_are_closed() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
            with pytest.raises(OSError, match=r"^cannot listen on admin\.address 127\.0\.0\.1:1: the socket given "):
                await admin_of(Proxy()).prepare("127.0.0.1:1", [wrong])
            assert wrong.fileno() == -1

    uvloop.run(main())


# ---- moving


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def refused(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == errno.ECONNREFUSED


async def until(condition: Callable[[], bool]) -> None:
    """The kernel is told of a closed socket a turn of the loop later."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_move() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        old = server.port
        await server.move(free_address())
        assert server.port not in (0, old)
        assert (await get(f"{base(server)}/livez"))[0] == 200
        await until(lambda: refused(old))

    serve(check)


def test_move_to_where_it_is_changes_nothing() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        sockets = server.sockets
        await server.move("127.0.0.1:0")
        assert server.sockets == sockets
        assert (await get(f"{base(server)}/livez"))[0] == 200

    serve(check)


def test_a_move_that_fails_leaves_all_as_it_was() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        before = server.sockets
        with taken() as sock, pytest.raises(OSError, match="cannot listen on admin"):
            await server.move(f"127.0.0.1:{sock.getsockname()[1]}")
        assert server.sockets == before
        assert (await get(f"{base(server)}/livez"))[0] == 200
        await server.move(free_address())
        assert (await get(f"{base(server)}/livez"))[0] == 200

    serve(check)


@pytest.mark.parametrize(("here", "there"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_a_move_between_one_and_all_addresses_of_the_same_port(here: str, there: str) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        port = server.port
        await server.move(f"{there}:{port}")
        assert [sock.getsockname() for sock in server.sockets] == [(there, port)]
        assert (await get(f"{base(server)}/livez"))[0] == 200
        # And it is no more shared than before.
        for host in (here, there):
            with pytest.raises(OSError, match="in use"):
                await admin_of(proxy).prepare(f"{host}:{port}")

    serve(check, f"{here}:0")


def test_requests_under_way_outlive_a_move() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        port = server.port
        proxy.gate.clear()
        async with connection(port, asking("/livez")) as (reader, _):
            await proxy.was_asked()
            await server.move(free_address())
            proxy.gate.set()
            said = await reader.read()  # to the end: the connection is closed after it
            assert said.startswith(b"HTTP/1.1 200 OK")
            assert said.endswith(b"\r\n\r\nlive\n")

    serve(check)


@pytest.mark.usefixtures("impatient")
def test_idle_connections_end_some_time_after_a_move() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, asking("/nosuch")) as (reader, _):
            await reader.readuntil(b"not found\n")
            await server.move(free_address())
            assert await reader.read() == b""

    serve(check)


def test_a_request_still_on_its_way_is_answered_after_a_move() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, b"GET /livez HTTP/1.1\r\n") as (reader, writer):
            assert (await get(f"{base(server)}/livez"))[0] == 200  # so the one before it has been accepted
            await server.move(free_address())
            writer.write(b"Host: x\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\nlive\n")

    serve(check)


@pytest.mark.usefixtures("impatient")
def test_many_moves_keep_nothing() -> None:
    addresses = [free_address() for _ in range(12)]  # before descriptors are counted: each port is claimed with one

    async def check(proxy: Proxy, server: AdminServer) -> None:
        async def once() -> None:
            await server.move(addresses.pop())
            assert (await get(f"{base(server)}/livez"))[0] == 200

        await once()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            await once()
        await until(lambda: all(one.closed for one in server._released))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        await once()
        assert len(server._released) == 1

    serve(check)


def duplicates(server: AdminServer) -> list[socket.socket]:
    """As another process has them: descriptors of the same sockets."""
    return [socket.socket(fileno=os.dup(sock.fileno())) for sock in server.sockets]


def test_sockets_are_taken_over_without_a_refusal() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        address = f"127.0.0.1:{server.port}"
        proxy.gate.clear()
        under_way = asyncio.create_task(get(f"{base(server)}/livez"))
        await proxy.was_asked()
        newer = Proxy()
        successor = admin_of(newer)
        try:
            await successor.prepare(address, duplicates(server))
            await successor.start()
            await server.release()
            assert (server.sockets, server.port) == ([], 0)
            for _ in range(20):
                assert (await get(f"http://{address}/readyz"))[0] == 200
            assert newer.asked == ["ready"] * 20
            proxy.gate.set()
            assert (await under_way)[0] == 200
            await successor.move(address)
            assert (await get(f"http://{address}/readyz"))[0] == 200
        finally:
            await successor.stop()

    serve(check)


def test_it_can_listen_again_after_release() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        address = f"127.0.0.1:{server.port}"
        await server.release()
        await until(lambda: refused(int(address.rpartition(":")[2])))
        await server.move(address)
        assert (await get(f"http://{address}/livez"))[0] == 200

    serve(check)
