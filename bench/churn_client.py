"""The load of --churn: connect, PING, PONG, disconnect, so many times a second, from a process of its own.

Why a process: bench.churn looks at the endpoint's processes meanwhile, and the cost of the load must not be charged to
them. Started by bench.churn as `python -m bench.churn_client PORT RATE SECONDS`; prints one line of JSON.

Ports: whoever closes first keeps the pair of addresses for 60 s (TIME_WAIT), and 5,000 connections per second for 30 s
would use up the 28,232 ports of one source address five times over. So every second connection ends with a reset
(SO_LINGER of 0), which leaves nothing behind, as a crashed client's does; and the others come in turn from SOURCES
addresses of 127.0.0.0/8, each with ports of its own: 75,000 of them are a third of what those have, and fewer than the
131,072 that the kernel keeps at all (tcp_max_tw_buckets). A longer run depends on tcp_tw_reuse, which allows loopback
to use such a port again after a second.

Invariants: at most IN_FLIGHT connections at a time; one that is not answered within ANSWER_S has failed; it ends
ANSWER_S after SECONDS at the latest.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter, deque

HOST = "127.0.0.1"
SOURCES = 8
IN_FLIGHT = 300  # below the proxies' backlog, so that no SYN is dropped and waits a second to be sent again
ANSWER_S = 5.0
PING, PONG = b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"
RESET = struct.pack("ii", 1, 0)
# Choose the port at connect(2), when both addresses are known; in Python's socket only from 3.12 on. ip(7)
IP_BIND_ADDRESS_NO_PORT = 24


class Visit:
    """One connection."""

    __slots__ = ("begun_s", "connecting", "done", "got", "number", "sock")

    def __init__(self, number: int, begun_s: float) -> None:
        self.number = number
        self.begun_s = begun_s
        self.got = b""
        self.connecting = False  # PING waits until the connection is there
        self.done = False
        self.sock = socket.socket()
        self.sock.setblocking(False)

    def connect(self, port: int) -> int:
        """The errno of connect(2); 0 and EINPROGRESS are none."""
        self.sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self.sock.bind((f"127.0.0.{1 + self.number // 2 % SOURCES}", 0))
        return self.sock.connect_ex((HOST, port))

    def close(self) -> None:
        """Closes, every second time with a reset."""
        self.done = True
        if self.number % 2:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


class Churn:
    """The whole run. `latencies_s`: from connect(2) to the whole answer."""

    def __init__(self, port: int, rate: float, seconds: float) -> None:
        self.port = port
        self.rate = rate
        self.seconds = seconds
        self.begun = 0
        self.latencies_s: list[float] = []
        self.failures: Counter[str] = Counter()
        self._open: dict[int, Visit] = {}
        self._oldest: deque[Visit] = deque()
        self._poll = select.epoll()

    def run(self) -> dict[str, object]:
        """Runs it and returns what is printed."""
        started = now = time.monotonic()
        end = started + self.seconds
        while now < end or self._open:
            if now < end:
                due = int((now - started) * self.rate) + 1 - self.begun
                for _ in range(min(due, IN_FLIGHT - len(self._open))):
                    self._begin()
            for descriptor, _ in self._poll.poll(0.001):
                self._event(self._open[descriptor])
            now = time.monotonic()
            while self._oldest and (self._oldest[0].done or now - self._oldest[0].begun_s > ANSWER_S):
                if not (visit := self._oldest.popleft()).done:
                    self._fail(visit, "not answered")
        self._poll.close()
        return self._outcome(max(now, end) - started)

    def _outcome(self, elapsed_s: float) -> dict[str, object]:
        latencies = sorted(self.latencies_s) or [0.0]
        used = os.times()
        return {
            "begun": self.begun,
            "answered": len(self.latencies_s),
            "failures": dict(self.failures),
            "rate": len(self.latencies_s) / elapsed_s,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
            "max_ms": latencies[-1] * 1e3,
            "cpu_s": used.user + used.system,
        }

    def _begin(self) -> None:
        visit = Visit(self.begun, time.monotonic())
        self.begun += 1
        code = visit.connect(self.port)
        self._open[visit.sock.fileno()] = visit
        self._oldest.append(visit)
        self._poll.register(visit.sock.fileno(), select.EPOLLIN)
        if code in (0, errno.EINPROGRESS):
            self._ask(visit)
        else:
            self._fail(visit, os.strerror(code))

    def _ask(self, visit: Visit) -> None:
        """Sends PING, or waits until that is possible: on loopback the handshake is over by now, mostly."""
        try:
            visit.sock.send(PING)
        except BlockingIOError:
            self._poll.modify(visit.sock.fileno(), select.EPOLLOUT)
            visit.connecting = True
        except OSError as error:
            self._fail(visit, error.strerror or str(error))

    def _event(self, visit: Visit) -> None:
        if visit.connecting:
            visit.connecting = False
            self._poll.modify(visit.sock.fileno(), select.EPOLLIN)
            self._ask(visit)
            return
        try:
            data = visit.sock.recv(256)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(visit, error.strerror or str(error))
            return
        visit.got += data
        if visit.got == PONG:
            self.latencies_s.append(time.monotonic() - visit.begun_s)
            self._forget(visit)
        elif not data:
            self._fail(visit, "closed without an answer")
        elif not PONG.startswith(visit.got):
            self._fail(visit, f"answered {visit.got[:60]!r}")

    def _fail(self, visit: Visit, reason: str) -> None:
        self.failures[reason] += 1
        self._forget(visit)

    def _forget(self, visit: Visit) -> None:
        del self._open[visit.sock.fileno()]  # closing takes it out of the epoll instance, too
        visit.close()


if __name__ == "__main__":
    print(json.dumps(Churn(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])).run()))
