"""Something happens to the proxy's own processes in the middle of a failover: nothing hangs, nothing is done twice, and
afterwards all is as it was."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest
import uvloop

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import slot_of
from tests.support.processes import session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode

StartProxy = Callable[..., ProxyDaemon]
CLIENTS = 24
HANGS_S = 12.0  # requests.timeout, twice, and some
MOMENTS_S = {"at once": 0.0, "before it is noticed": 0.6, "as it is over": 1.7}
LATER = [pytest.param(moment, marks=pytest.mark.long) for moment in list(MOMENTS_S)[::2]]


class Counting:
    """Clients that INCR a key each, connect again when they are cut off, and count what became of each request."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.answered = [0] * CLIENTS  # INCRs
        self.last = [0] * CLIENTS  # what the last one said
        self.unknown = [0] * CLIENTS  # that may have been executed
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.gone = 0  # clients that found nobody to connect to
        self._stop = False
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self) -> Counting:
        self._thread.start()
        wait_for(lambda: min(self.answered) > 20, 20, "busy")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @staticmethod
    def key(number: int) -> str:
        return f"counting:{number}"

    def all_advance(self) -> None:
        """Every client is served again."""
        goals = [n + 20 for n in self.answered]
        wait_for(
            lambda: all(n >= goal for n, goal in zip(self.answered, goals, strict=True)), 25, "all clients are served"
        )

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        refused_s = 0.0
        while not self._stop:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
                refused_s = 0.0
            except OSError:
                refused_s = refused_s or time.monotonic()
                if time.monotonic() - refused_s > 2:
                    self.gone += 1
                    return
                await asyncio.sleep(0.02)
                continue
            try:
                while not self._stop and await self._ask(number, reader, writer):
                    pass
            finally:
                writer.close()

    async def _ask(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is over."""
        writer.write(encode("INCR", self.key(number)))
        try:
            async with asyncio.timeout(HANGS_S):
                line = await reader.readuntil(b"\r\n")
        except TimeoutError:
            self.wrong.append(f"client {number}: not answered in {HANGS_S} s")
            return False
        except (OSError, asyncio.IncompleteReadError):
            self.unknown[number] += 1
            return False
        if line.startswith(b":"):
            value = int(line[1:])
            if value > self.answered[number] + self.unknown[number] + 1:
                self.wrong.append(f"client {number}: {value} after {self.answered[number]}, {self.unknown[number]}")
            self.answered[number] += 1
            self.last[number] = value
        else:
            self.errors.append(line.decode())
            self.unknown[number] += b"may have been executed" in line
        await asyncio.sleep(0.001)
        return True

    def check(self, cluster: EmbeddedCluster, lost_slots: set[int]) -> None:
        """lost_slots: whose primary was killed: of these the cluster may have lost what it had not replicated."""
        assert self.wrong == []
        for number in range(CLIENTS):
            slot = slot_of(self.key(number))
            held = int(cluster.owner_of(slot).command("GET", self.key(number)) or 0)
            assert held <= self.answered[number] + self.unknown[number], "something was executed twice"
            assert held >= (self.last[number] if slot in lost_slots else self.answered[number]), "something was lost"


@pytest.fixture
def quick(server: str) -> Iterator[EmbeddedCluster]:
    """Fails over after a second."""
    with EmbeddedCluster(server, node_timeout_ms=1000, options={"cluster-require-full-coverage": "no"}) as started:
        yield started


def killed_primary(cluster: EmbeddedCluster, moment: str) -> set[int]:
    """Kills one, and waits for the moment; its slots."""
    victim = cluster.primaries()[0]
    slots = set(cluster.slots_of(victim))
    cluster.kill(victim)
    time.sleep(MOMENTS_S[moment])
    return slots


@pytest.mark.parametrize("moment", ["before it is noticed", *LATER])
def test_a_worker_is_killed(quick: EmbeddedCluster, start_proxy: StartProxy, moment: str) -> None:
    daemon = start_proxy(quick.seeds)
    with Counting(daemon.address) as counting:
        slots = killed_primary(quick, moment)
        victim = daemon.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        counting.all_advance()
        counting.stop()
        wait_for(lambda: len(daemon.worker_pids()) == 2, 10, "replaced")
        assert victim not in daemon.worker_pids()
        counting.check(quick, slots)


@pytest.mark.parametrize("moment", ["before it is noticed", *LATER])
def test_a_reload(quick: EmbeddedCluster, start_proxy: StartProxy, moment: str) -> None:
    daemon = start_proxy(quick.seeds)
    with Counting(daemon.address) as counting:
        slots = killed_primary(quick, moment)
        daemon.reload({"backends": {"client_name": "renamed"}, "requests": {"timeout": "6s"}})  # new connections, too
        counting.all_advance()
        counting.stop()
        counting.check(quick, slots)
        others = [n for n in range(CLIENTS) if slot_of(counting.key(n)) not in slots]
        assert sum(counting.unknown[n] for n in others) == 0  # what is under way on the old connections is answered


@pytest.mark.parametrize("moment", ["before it is noticed", *LATER])
def test_an_upgrade(quick: EmbeddedCluster, start_proxy: StartProxy, moment: str) -> None:
    daemon = start_proxy(quick.seeds)
    with Counting(daemon.address) as counting:
        slots = killed_primary(quick, moment)
        successor = daemon.upgrade()
        counting.all_advance()
        assert daemon.exit_code("the upgrade") == 0
        counting.all_advance()
        counting.stop()
        counting.check(quick, slots)
        assert len(successor.worker_pids()) == 2
        successor.terminate()
    assert session_members(daemon.session) == []


@pytest.mark.parametrize("moment", ["before it is noticed", *LATER])
def test_a_drain(quick: EmbeddedCluster, start_proxy: StartProxy, moment: str) -> None:
    daemon = start_proxy(quick.seeds)
    with Counting(daemon.address) as counting:
        slots = killed_primary(quick, moment)
        begun_s = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begun_s < 5  # drain.timeout is 2 s
        wait_for(lambda: counting.gone == CLIENTS, 10, "nobody is left")
        counting.stop()
        assert "Traceback" not in daemon.log
        assert session_members(daemon.session) == []
        wait_for(lambda: all(quick.owner_of(slot).alive for slot in slots), 20, "failed over")
        counting.check(quick, slots)
