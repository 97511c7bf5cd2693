"""Names of nodes to addresses, without one name's resolver holding up another name, the event loop or the end.

Why: getaddrinfo(3) cannot be interrupted and takes 10 s and more where a name server is gone. The event loop's own
pool has 4 threads, which the retries for one such name fill: then no name resolves, and the end of the process waits.
Called by worker.connector and, for control, by node_client and topology_refresh.

Invariants: an address written in figures needs no thread; a name is looked up once at a time, whatever its port, for
all who ask, and goes on when they have gone; each lookup has a daemon thread, for which the end of the process does not
wait. There are MOST_LOOKUPS threads at most; further names wait for one, in the order of asking. What a name had is
kept, for the _MOST_KNOWN names that were looked up last.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from typing import Any, Final

from proxy.system.log import get, warn_limited

MOST_LOOKUPS: Final = 128
_MOST_KNOWN: Final = 4096

log = get("system.names")

Where = tuple[Any, ...]  # as connect() of a socket takes it: (host, port) or (host, port, flow, scope)
Found = list[tuple[int, Where]]  # (address family, where), in the resolver's order; not empty


class _Lookup:
    """One name on its way; begun: time.monotonic(). Those who wait for it come and go."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.begun = time.monotonic()
        self.waiters: set[asyncio.Future[Found]] = set()
        self.answer: Found | OSError | None = None  # None = it is on its way


class Names:
    """See the module. Used by one event loop at a time."""

    def __init__(self, most: int = MOST_LOOKUPS) -> None:
        self._most = most
        self._lock = threading.Lock()  # of what follows
        self._under_way: dict[str, _Lookup] = {}
        self._waiting: deque[_Lookup] = deque()  # of those under way, the ones without a thread
        self._threads = 0
        self._known: dict[str, tuple[Found, float]] = {}  # and when that was told, time.monotonic()
        self._overdue: set[str] = set()

    async def resolve(self, host: str, port: int, patience_s: float | None = None) -> Found:
        """The addresses of the host with this port. OSError when there are none, or nobody can tell.

        patience_s: when the answer takes longer, or is that the resolver cannot tell for now, the name's last known
        addresses are it. None, or without such: waits for the answer, for any time.
        """
        if (found := _in_figures(host)) is None:
            found = await self._resolve(host, patience_s)
        return [(family, (where[0], port, *where[2:])) for family, where in found]

    def overdue(self, host: str) -> bool:
        """Whether what resolve() gave last were last known addresses, and no answer has come since."""
        return host in self._overdue

    async def _resolve(self, host: str, patience_s: float | None) -> Found:
        known = None if patience_s is None else self._known.get(host)
        lookup = self._lookup(host)
        if known is None or patience_s is None:
            return await self._answer(lookup)
        try:
            async with asyncio.timeout(max(0.0, lookup.begun + patience_s - time.monotonic())):
                return await self._answer(lookup)
        except TimeoutError:
            reason = "no answer in time"
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                raise
            reason = str(error.strerror)
        with self._lock:
            if host in self._known:  # so it stays bounded
                self._overdue.add(host)
        text = "name cannot be resolved, its last known addresses are used"
        found, told_s = known
        age_s = int(time.monotonic() - told_s)
        warn_limited(log, f"overdue:{host}", text, name=host, reason=reason, age_s=age_s)
        return found

    async def _answer(self, lookup: _Lookup) -> Found:
        waiter: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        with self._lock:
            if lookup.answer is None:
                lookup.waiters.add(waiter)
            else:
                _tell(waiter, lookup.answer)
        try:
            return await waiter
        finally:
            with self._lock:
                lookup.waiters.discard(waiter)

    def _lookup(self, host: str) -> _Lookup:
        with self._lock:
            if (lookup := self._under_way.get(host)) is not None:
                return lookup
            lookup = self._under_way[host] = _Lookup(host)
            if self._threads == self._most:
                self._waiting.append(lookup)
                return lookup
            self._threads += 1
        try:
            threading.Thread(target=self._run, args=(lookup,), name="resolver", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            with self._lock:
                self._threads -= 1
                del self._under_way[host]
            lookup.answer = socket.gaierror(socket.EAI_AGAIN, str(error))
        return lookup

    def _run(self, first: _Lookup) -> None:
        """In a thread of its own: this lookup, and then those that wait for a thread."""
        lookup: _Lookup | None = first
        while lookup is not None:
            answer: Found | OSError
            try:
                answer = _ask(lookup.host)
            except OSError as error:
                answer = error
            except Exception as error:  # UnicodeError: nothing that can be looked up
                answer = socket.gaierror(socket.EAI_NONAME, str(error))
            lookup = self._ended(lookup, answer)

    def _ended(self, lookup: _Lookup, answer: Found | OSError) -> _Lookup | None:
        """In its thread. The next one for the thread; None: it ends."""
        with self._lock:
            lookup.answer = answer
            del self._under_way[lookup.host]
            if not isinstance(answer, OSError):
                self._overdue.discard(lookup.host)
                self._known.pop(lookup.host, None)  # the one that was learnt last stands last
                self._known[lookup.host] = answer, time.monotonic()
                if len(self._known) > _MOST_KNOWN:
                    forgotten = next(iter(self._known))
                    del self._known[forgotten]
                    self._overdue.discard(forgotten)
            for waiter in lookup.waiters:
                with contextlib.suppress(RuntimeError):  # its loop has ended
                    waiter.get_loop().call_soon_threadsafe(_tell, waiter, answer)
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None


def _tell(waiter: asyncio.Future[Found], answer: Found | OSError) -> None:
    if waiter.done():  # cancelled
        return
    if isinstance(answer, OSError):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)


def _ask(host: str) -> Found:
    # As bytes: Python's codec for other names is a megabyte that a worker does without.
    name = host.encode("ascii" if host.isascii() else "idna")
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    found: Found = list(dict.fromkeys((int(family), where) for family, *_, where in answers))
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
    return found


def _in_figures(host: str) -> Found | None:
    """None when the host is a name."""
    bare, _, scope = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, bare)
        except (OSError, ValueError):
            continue
        if scope:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return [(int(family), where) for family, *_, where in answers]
        return [(int(family), (host, 0) if family == socket.AF_INET else (host, 0, 0, 0))]
    return None


names: Final = Names()  # of this process
