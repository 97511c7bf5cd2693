"""proxy.system.address: socket addresses as text. What Address itself does is in tests/unit/config/test_units.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proxy.system.address import Address, format_address


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (("127.0.0.1", 1), "127.0.0.1:1"),
        (("::1", 1, 0, 0), "[::1]:1"),
        ("/run/sock", "unix:/run/sock"),
        (b"\0abstract", "unix:@abstract"),
        ("", "unix:"),
    ],
)
def test_socket_addresses(where: object, text: str) -> None:
    assert format_address(where) == text


def test_a_client_of_a_unix_socket_has_no_address_of_its_own() -> None:
    assert format_address("", Address(path="/run/sock")) == "unix:/run/sock"
    assert format_address(("127.0.0.1", 1), Address(path="/run/sock")) == "127.0.0.1:1"


def test_it_imports_nothing_that_a_worker_has_not() -> None:
    code = "import sys, proxy.system.address; print(*sorted(sys.modules))"
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in told if name.startswith("proxy")} == {"proxy", "proxy.system", "proxy.system.address"}
    assert not {"ipaddress", "pathlib", "socket", "asyncio", "logging", "ctypes"} & set(told)
