"""What can be seen of a run without its process; tests/daemon has the rest."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.notify import Notifier
from proxy.run import tell

LIMITS = """
import resource, sys
from proxy import log, run
soft, hard, wanted = map(int, sys.argv[1:])
log.setup("info", "logfmt")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
run.raise_descriptor_limit(wanted)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "raised", "missing"),
    [(64, 256, 128, 128, 0), (128, 256, 64, 128, 0), (64, 256, 256, 256, 0), (64, 256, 300, 256, 44)],
)
def test_descriptor_limit(soft: int, hard: int, wanted: int, raised: int, missing: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(soft), str(hard), str(wanted)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(raised), str(hard)]
    if missing:
        assert f"limit={raised} wanted={wanted} missing={missing}\n" in done.stderr
        assert "level=warning" in done.stderr
    else:
        assert done.stderr == ""


def test_a_loop_that_hangs_sends_no_sign_of_life(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    worker: Any = SimpleNamespace(
        path=SimpleNamespace(clients=set()), router=SimpleNamespace(slots=SimpleNamespace(covered=0))
    )

    async def life(manager: socket.socket) -> None:
        telling = asyncio.create_task(tell(notifier, worker))
        loop = asyncio.get_running_loop()
        assert [await loop.sock_recv(manager, 100) for _ in range(3)] == [
            b"WATCHDOG=1",
            b"STATUS=0 clients, 0 of 16384 slots",
            b"WATCHDOG=1",
        ]
        time.sleep(3 * notifier.watchdog_interval_s)  # hangs
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        worker.path.clients.add(1)
        assert [await loop.sock_recv(manager, 100) for _ in range(2)] == [
            b"WATCHDOG=1",
            b"STATUS=1 clients, 0 of 16384 slots",
        ]
        telling.cancel()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        asyncio.run(life(manager))
        notifier.close()
