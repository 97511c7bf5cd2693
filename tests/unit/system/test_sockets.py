"""Listening sockets on loopback: opened at every address of a name, taken over, refused with a reason.

test_sockets_unix.py has what concerns the file of a Unix socket.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.system import sockets
from proxy.system.address import format_address
from proxy.system.sockets import (
    LISTENER,
    SYSTEMD,
    ListenError,
    Listening,
    warn_somaxconn,
)
from tests.support.listening import HOST, by_predecessor, by_systemd, connects, events, listener

# Opened by ourselves


def test_tcp_is_bound_at_once_and_listens_when_told(opened: Callable[..., Listening]) -> None:
    listening = opened(f"{HOST}:0")
    where = listening.sock.getsockname()
    assert not connects(where)
    listening.listen()
    assert connects(where)
    assert listening.label == f"{HOST}:{where[1]}"
    assert listening.sock.getblocking() is False
    assert listening.sock.get_inheritable() is False
    listening.close()
    assert not connects(where)
    listening.close()


def test_ipv6_is_ipv6_only(opened: Callable[..., Listening]) -> None:
    try:
        listening = opened("[::]:0")
    except ListenError as error:
        pytest.skip(str(error))
    port = listening.sock.getsockname()[1]
    listening.listen()
    assert listening.label == f"[::]:{port}"
    assert connects(("::1", port), socket.AF_INET6)
    assert not connects((HOST, port))


def test_a_port_in_use(opened: Callable[..., Listening], bound: Callable[..., socket.socket]) -> None:
    port = bound((HOST, 0)).getsockname()[1]
    with pytest.raises(ListenError) as raised:
        opened(f"{HOST}:{port}")
    assert str(raised.value) == f"cannot listen on {HOST}:{port}: the address is in use; is another proxy running?"


def test_an_address_that_is_not_ours(opened: Callable[..., Listening]) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1:1: Cannot assign requested address$"):
        opened("192.0.2.1:1")  # TEST-NET-1, RFC 5737


def test_a_name_that_is_none(opened: Callable[..., Listening]) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on no\.invalid:1: \S+"):
        opened("no.invalid:1")


# A name with several addresses


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has every name mean these (family, host), with the port that was asked for."""

    def start(*places: tuple[int, str]) -> None:
        def answer(host: str, port: int, **options: Any) -> list[Any]:
            return [
                (family, socket.SOCK_STREAM, 6, "", (where, port, 0, 0) if ":" in where else (where, port))
                for family, where in places
            ]

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return start


V4, OTHER_V4, V6 = (socket.AF_INET, HOST), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")
NO_FAMILY = 9  # AF_X25: this machine's kernel says to it what one without IPv6 says to that


def lacks(family: int) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return True
    return False


def test_every_address_of_a_name_is_listened_on(
    resolve: Callable[..., None], opened_all: Callable[..., list[Listening]]
) -> None:
    places = [V4, OTHER_V4, V4] if lacks(socket.AF_INET6) else [V4, OTHER_V4, V4, V6]  # the one twice, as in /etc/hosts
    resolve(*places)
    found = opened_all("proxy.example:0")
    hosts = [host for _, host in dict.fromkeys(places)]
    ports = {one.sock.getsockname()[1] for one in found}
    assert [one.sock.getsockname()[0] for one in found] == hosts
    assert len(ports) == 1
    assert [one.label for one in found] == [format_address((host, *ports)) for host in hosts]
    for one in found:
        one.listen()
        assert connects(one.sock.getsockname(), one.sock.family)


def test_all_addresses_or_none(
    resolve: Callable[..., None], opened_all: Callable[..., list[Listening]], bound: Callable[..., socket.socket]
) -> None:
    port = bound(("127.0.0.2", 0)).getsockname()[1]
    resolve(V4, OTHER_V4)
    with pytest.raises(ListenError, match=rf"^cannot listen on proxy\.example:{port}: the address is in use; "):
        opened_all(f"proxy.example:{port}")
    bound((HOST, port))  # without SO_REUSEADDR: nothing is left there


def test_an_address_of_another_machine_is_not_passed_over(
    resolve: Callable[..., None], opened_all: Callable[..., list[Listening]]
) -> None:
    resolve(V4, (socket.AF_INET, "192.0.2.1"))
    with pytest.raises(ListenError, match="Cannot assign requested address"):
        opened_all("proxy.example:0")


@pytest.mark.skipif(not lacks(NO_FAMILY), reason="the machine lacks no family")
def test_a_family_the_machine_lacks_is_passed_over(
    resolve: Callable[..., None], opened_all: Callable[..., list[Listening]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    resolve((NO_FAMILY, "::1"), V4)
    [listening] = opened_all("proxy.example:0")
    assert listening.label.startswith(f"{HOST}:")
    assert events(caplog, logging.INFO) == [
        ("address not used: the machine lacks its family", {"address": "[::1]:0", "listener": "proxy.example:0"})
    ]
    resolve((NO_FAMILY, "::1"))
    with pytest.raises(ListenError, match="Address family not supported"):
        opened_all("proxy.example:0")


SWITCHED_OFF = """
import ctypes, fcntl, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000):  # CLONE_NEWNET
    sys.exit(77)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
try:
    with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as switch:
        switch.write("1")
except OSError:
    sys.exit(77)
from proxy.config.models import Listener
from proxy.system.sockets import open_listener

both = [(family, socket.SOCK_STREAM, 6, "", where) for family, where in (
    (socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0)))]
socket.getaddrinfo = lambda *words, **options: both
for one in open_listener(Listener(address="localhost:0")):
    print(one.label.rpartition(":")[0])
    one.close()
"""


def test_ipv6_switched_off() -> None:
    """Where the family is there and has no addresses, as in many a container."""
    done = subprocess.run([sys.executable, "-c", SWITCHED_OFF], capture_output=True, text=True, timeout=30)
    if done.returncode == 77:
        pytest.skip("no network of one's own to switch it off in")
    assert (done.stdout, done.returncode) == (f"{HOST}\n", 0), done.stderr


def test_a_free_port_is_free_at_every_address(
    resolve: Callable[..., None],
    opened_all: Callable[..., list[Listening]],
    bound: Callable[..., socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's first choice is in use at the second address: another one is found."""
    resolve(V4, OTHER_V4)
    real = sockets._bound
    in_the_way: list[socket.socket] = []

    def then_occupied(family: int, where: tuple[Any, ...]) -> socket.socket:
        sock = real(family, where)
        if not in_the_way:
            in_the_way.append(bound(("127.0.0.2", sock.getsockname()[1])))
        return sock

    monkeypatch.setattr(sockets, "_bound", then_occupied)
    ports = {one.sock.getsockname()[1] for one in opened_all("proxy.example:0")}
    assert len(ports) == 1
    assert not ports & {in_the_way[0].getsockname()[1]}


def test_what_is_taken_over_and_what_is_not_of_one_name(
    resolve: Callable[..., None], opened_all: Callable[..., list[Listening]], bound: Callable[..., socket.socket]
) -> None:
    first = bound((HOST, 0))
    port = first.getsockname()[1]
    second = bound(("127.0.0.2", port))
    resolve(V4, (socket.AF_INET, "127.0.0.3"), OTHER_V4)
    given = by_systemd(first) + by_predecessor(second)
    found = opened_all(f"proxy.example:{port}", given)
    assert [one.label for one in found] == [f"{HOST}:{port}", f"127.0.0.3:{port}", f"127.0.0.2:{port}"]
    assert (found[0].sock, found[2].sock) == (first, second)
    assert [one.origin for one in found] == [SYSTEMD, "", LISTENER]
    assert [one.name for one in found] == [SYSTEMD, LISTENER, LISTENER]
    assert given == []


def test_one_listens_where_another_does(opened: Callable[..., Listening]) -> None:
    """Both can be bound; the kernel objects only when the second begins to listen."""
    first = opened(f"{HOST}:0")
    port = first.sock.getsockname()[1]
    second = opened(f"0.0.0.0:{port}")
    first.listen()
    with pytest.raises(ListenError, match=rf"^cannot listen on 0\.0\.0\.0:{port}: the address is in use; "):
        second.listen()


def test_new_options_do_not_make_it_listen(opened: Callable[..., Listening]) -> None:
    listening = opened(f"{HOST}:0")
    listening.update(listener(f"{HOST}:0", backlog=9))
    assert not connects(listening.sock.getsockname())
    listening.listen()
    assert connects(listening.sock.getsockname())


# The kernel's limit


def test_a_backlog_above_the_kernels_limit(opened: Callable[..., Listening], caplog: pytest.LogCaptureFixture) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    fits, cut = opened(f"{HOST}:0", backlog=most), opened(f"{HOST}:0", backlog=most + 1)
    warn_somaxconn(fits)
    assert events(caplog) == []
    warn_somaxconn(cut)
    message = "the kernel's net.core.somaxconn is below the listener's backlog"
    assert events(caplog) == [(message, {"address": cut.label, "backlog": most + 1, "somaxconn": most})]


def test_a_limit_that_cannot_be_read(
    tmp_path: Path,
    opened: Callable[..., Listening],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sockets, "_SOMAXCONN", tmp_path / "none")
    warn_somaxconn(opened(f"{HOST}:0", backlog=2**31 - 1))
    assert events(caplog) == []
