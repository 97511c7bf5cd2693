"""What the service manager is told: sd_notify(3) in plain Python, a datagram of assignments to $NOTIFY_SOCKET.

Why: with Type=notify, systemd waits for READY=1, shows STATUS and ends a service whose watchdog falls silent; a library
for one sendto(2) would be one more thing to install. Called by run and the supervisor.

Invariants:
- Nothing here raises or blocks: a manager that is absent or busy is no reason to stop serving.
- A change of state (ready, reloading, stopping) that cannot be sent goes out, in order, before whatever is sent next;
  a status or a watchdog ping that cannot be sent is forgotten, for the next one replaces it.
- The variables are taken out of the environment: a child must not speak for the daemon.
- One process speaks for the service at a time. A successor (system.successor) says READY=1 to its predecessor, which
  passes it on with the successor's pid (hand_over) and is silent from then on; the successor speaks from then on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping

from proxy.system.process import MANAGER, PREDECESSOR, is_predecessor

_STATUS_S = 5.0  # between two looks at the status, when no watchdog asks for more
_AGAIN_S = 60.0  # after which a status that has not changed is said again
_READY = "READY=1"
_OWED = 8  # changes of state kept for a manager that does not read


class Notifier:
    """The connection to the service manager; does nothing when there is none.

    sd_notify(3) and sd_watchdog_enabled(3) say what the variables and assignments mean. Of the addresses, a path and an
    abstract name (`@`) are understood; vsock, which is for whole machines, counts as none.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        where = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        # sockets.inherited() takes PREDECESSOR away, before or after this.
        manager, parent = environ.pop(MANAGER, None), environ.get(PREDECESSOR)
        self._predecessor = b""  # where it listens, until READY=1 has been said there
        if is_predecessor(parent) or (parent is None and manager is not None):
            self._predecessor = _name(where)
            where = manager or ""
        self._judge = self._predecessor
        self._manager = _name(where)
        self._sock: socket.socket | None = None
        self._owed: deque[str] = deque(maxlen=_OWED)
        self._silent = False
        if self._predecessor or self._manager:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)
        expected = bool(self._manager) and usec.isascii() and usec.isdigit() and pid in ("", str(os.getpid()))
        # Seconds of silence after which the manager ends the service; 0.0: it expects no pings. Ping at half of it.
        self.watchdog_interval_s = int(usec) / 1e6 if expected else 0.0
        # The manager's variables, for a successor (system.successor.spawn); empty = there is none.
        self.manager: dict[str, str] = {"NOTIFY_SOCKET": where} if self._manager else {}
        if self.watchdog_interval_s:
            self.manager["WATCHDOG_USEC"] = usec

    @property
    def active(self) -> bool:
        """Whether anybody is told anything."""
        return self._sock is not None and bool(self._predecessor or self._manager)

    def ready(self) -> None:
        """Start-up, or a reload, is done. A successor's first one goes to its predecessor."""
        self._change(_READY)

    def on_trial(self) -> bool:
        """Whether the predecessor still listens, and has not handed over: until then its end is this process's, too."""
        if not self._judge:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                probe.connect(self._judge)
        except ConnectionRefusedError:
            self._judge = b""  # for good: the name may be somebody else's later
        except OSError:  # of descriptors there are none
            pass
        return bool(self._judge)

    def reloading(self) -> None:
        """A reload begins; ready() must follow. Type=notify-reload does not accept it without its time (v253)."""
        self._change(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._change("STOPPING=1")

    def hand_over(self, pid: int) -> None:
        """The successor, that process, serves; the last thing this process says: its end is not the service's.

        What is already on its way goes out with the calls that follow. WATCHDOG=1 gives the successor time to ping.
        """
        self._change(f"MAINPID={pid}\n{_READY}\nWATCHDOG=1")
        self._silent = True

    def status(self, text: str) -> None:
        """One line for `systemctl status`; before a successor is ready, for its predecessor (ReadySocket.status)."""
        self._flush()
        self._say(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """A sign of life."""
        self._flush()
        self._say("WATCHDOG=1")

    def close(self) -> None:
        """Tells nothing from now on, but for what is still owed if it can be sent now."""
        if self._sock is not None:
            self._flush()
            self._sock.close()
            self._sock = None

    def _change(self, state: str) -> None:
        if not self._silent:
            self._owed.append(state)
        self._flush()

    def _say(self, state: str) -> None:
        if not self._silent:
            self._send(state)

    def _flush(self) -> None:
        while self._owed and self._send(self._owed[0]):
            if self._owed.popleft() == _READY:
                self._predecessor = b""

    def _send(self, state: str) -> bool:
        """Whether it is done with: sent, or nobody will ever take it."""
        where = self._predecessor or self._manager
        if self._sock is None or not where:
            return True
        try:
            self._sock.sendto(state.encode(errors="replace"), where)
        except BlockingIOError:  # it is full
            return False
        except OSError:  # no such socket, or nobody reads it: a manager may come back, a predecessor does not
            return bool(self._predecessor)
        return True


def _name(where: str) -> bytes:
    """A NOTIFY_SOCKET as the kernel has it; empty when there is none, or none that is understood."""
    if where[:1] == "@":
        return b"\0" + os.fsencode(where[1:])
    return os.fsencode(where) if where[:1] == "/" else b""


async def tell(notifier: Notifier, live: Callable[[], bool], status: Callable[[], str]) -> None:
    """Pings the watchdog while live() says so, and tells status() when it has changed; ends only by cancellation.

    Also when it has not changed for a minute: what a successor says before systemd knows that it is the main process
    now is not heard.
    """
    interval_s = notifier.watchdog_interval_s
    pause_s = min(_STATUS_S, interval_s / 2) if interval_s else _STATUS_S
    told, told_at = "", 0.0
    while True:
        if interval_s and live():
            notifier.watchdog()
        now, at = status(), time.monotonic()
        if now != told or at >= told_at + _AGAIN_S:
            told, told_at = now, at
            notifier.status(now)
        await asyncio.sleep(pause_s)
