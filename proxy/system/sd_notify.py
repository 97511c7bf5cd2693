"""What the service manager is told: sd_notify(3) in plain Python, a datagram of assignments to $NOTIFY_SOCKET.

Why: with Type=notify, systemd waits for READY=1, shows STATUS and ends a service whose watchdog falls silent; a library
for one sendto(2) would be one more thing to install. Called by proxy.run
and proxy.supervisor.life.

Invariants:
- Nothing here raises or blocks: a manager that is absent or busy is no reason to stop serving.
- A change of state (ready, reloading, stopping) that cannot be sent goes out, in order, before whatever is sent next;
  a status or a watchdog ping that cannot be sent is forgotten, for the next one replaces it.
- The variables are taken out of the environment: a child must not speak for the daemon.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping

_STATUS_S = 5.0  # between two looks at the status, when no watchdog asks for more
_OWED = 8  # changes of state kept for a manager that does not read


class Notifier:
    """The connection to the service manager; does nothing when there is none.

    sd_notify(3) and sd_watchdog_enabled(3) say what the variables and assignments mean. Of the addresses, a path and an
    abstract name (`@`) are understood; vsock, which is for whole machines, counts as none.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        where = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._sock: socket.socket | None = None
        self._where = b""
        self._owed: deque[str] = deque(maxlen=_OWED)
        if where[:1] in ("/", "@"):
            self._where = os.fsencode(where) if where[0] == "/" else b"\0" + os.fsencode(where[1:])
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)
        expected = self.active and usec.isascii() and usec.isdigit() and pid in ("", str(os.getpid()))
        # Seconds of silence after which the manager ends the service; 0.0: it expects no pings. Ping at half of it.
        self.watchdog_interval_s = int(usec) / 1e6 if expected else 0.0

    @property
    def active(self) -> bool:
        """Whether anybody is told anything."""
        return self._sock is not None

    def ready(self) -> None:
        """Start-up, or a reload, is done."""
        self._change("READY=1")

    def reloading(self) -> None:
        """A reload begins; ready() must follow. Type=notify-reload does not accept it without its time (v253)."""
        self._change(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._change("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._flush()
        self._send(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """A sign of life."""
        self._flush()
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Tells nothing from now on."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _change(self, state: str) -> None:
        self._owed.append(state)
        self._flush()

    def _flush(self) -> None:
        while self._owed and self._send(self._owed[0]):
            self._owed.popleft()

    def _send(self, state: str) -> bool:
        """Whether it is done with: sent, or nobody will ever take it."""
        if self._sock is None:
            return True
        try:
            self._sock.sendto(state.encode(errors="replace"), self._where)
        except OSError:  # no such socket, nobody reads it, or it is full
            return False
        return True


async def tell(notifier: Notifier, live: Callable[[], bool], status: Callable[[], str]) -> None:
    """Pings the watchdog while live() says so, and tells status() when it has changed; ends only by cancellation."""
    interval_s = notifier.watchdog_interval_s
    pause_s = min(_STATUS_S, interval_s / 2) if interval_s else _STATUS_S
    told = ""
    while True:
        if interval_s and live():
            notifier.watchdog()
        now = status()
        if now != told:
            told = now
            notifier.status(now)
        await asyncio.sleep(pause_s)
