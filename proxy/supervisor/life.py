"""The supervisor: everything around the workers put together, from start to exit code.

Why: DESIGN 2: configuration, listening sockets, signals, the workers' lives, admin HTTP and the service manager belong
to one process that has nothing to do with the data path. Called by proxy.run.

Invariants: run() returns an exit code and leaves no process, task or socket behind; clients are accepted only when a
worker can take them; /metrics and the probes answer from before the first client until after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from proxy import __version__
from proxy.config.models import Settings
from proxy.supervisor.acceptor import Doors
from proxy.supervisor.crew import Crew, CrewError
from proxy.supervisor.figures import Figures
from proxy.supervisor.forks import Forks
from proxy.supervisor.front import Front
from proxy.supervisor.handover import HandoverServer, Taken
from proxy.supervisor.reload import Reload
from proxy.system import log as logs
from proxy.system.cpus import granted
from proxy.system.sd_notify import Notifier, tell
from proxy.system.sockets import Listening, warn_somaxconn

log = logs.get("supervisor")

SPREAD: Final = 0.8  # of drain.timeout: the last to get its turn has the rest of it to finish
_REAP_S: Final = 1.0
TURN_S: Final = 0.02  # between two clients' turns at most: a few need not wait for a whole drain.timeout


class StartError(Exception):
    """The proxy cannot start; the text is one sentence for the operator."""


class Supervisor:
    """See the module. Everything it is given is closed by proxy.run, but for what it opens itself."""

    def __init__(
        self,
        settings: Settings,
        listening: list[Listening],
        forks: Forks,
        notifier: Notifier,
        *,
        taken: Taken | None = None,
        surplus: Sequence[Listening] = (),
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self.settings = settings
        self.listening = listening  # shared with proxy.run, which closes what is in it at the end
        self.forks = forks
        self.notifier = notifier
        self.started_s = time.time()
        self.serving = False  # clients come, and a predecessor has been told to go
        self.draining = False
        self.loop: asyncio.AbstractEventLoop
        self.crew: Crew
        self.doors: Doors
        self.handover: HandoverServer | None = None
        self._taken = taken
        self._surplus = surplus
        self._reread = reread
        self._asked_to_end = 0
        self._replaced = False
        self._reporting: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._now = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, early: Sequence[int]) -> int:
        """From start to end. early: signals that came before there was a loop."""
        self.loop = loop = asyncio.get_running_loop()
        self.figures = Figures(self)
        self.front = Front(self.figures)
        self.crew = Crew(
            loop,
            self.forks,
            self.settings,
            run_id=secrets.token_hex(20),
            started_s=self.started_s,
            on_change=self._crew_changed,
            on_state=self.figures.dead.changed,
            on_dead=self.figures.dead.add,
            on_ended=self.front.process_ended,
        )
        self.doors = Doors(loop, self.crew, max_clients=self.settings.clients.max_clients)
        self.reload = Reload(self, self._reread)
        tasks: list[asyncio.Task[None]] = []
        try:
            self._obey(early)
            if not self._asked_to_end:
                await self._start(tasks)
                await self._wake.wait()
                if self.serving:
                    await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.handover is not None:
                self.handover.close()
            self.doors.close_all()
            await self.crew.stop()
            await self.front.close()
        log.info("stopped")
        return 0

    async def _start(self, tasks: list[asyncio.Task[None]]) -> None:
        workers = self.workers(self.settings)
        self.crew.begin(workers)
        handed = self._handed_front()
        if not handed:
            await self.front.open(self.settings.admin.address)  # while the workers come up
        if not await self._started():
            return
        for one in self.listening:
            warn_somaxconn(one)
            self.doors.open(one)
        if self._taken is not None and (trouble := self._taken.ready()) is not None:
            if self._taken.refused:
                raise StartError(f"the hand-over failed: {trouble}")
            log.warning("the predecessor went before it was told to", reason=trouble)
        for one in self._surplus:
            log.info("listens no more", address=one.label)
            one.close()
        if handed:
            await self.front.open(self.settings.admin.address, handed)  # not before: the predecessor answers there
        self.serving = True
        if self.settings.handover:
            self.handover = self.offer(self.settings.handover, self._taken)
        log.info("started", version=__version__, workers=workers)
        self.notifier.ready()
        tasks.append(asyncio.create_task(self.reload.serve(), name="reload"))
        if self.notifier.active:
            telling = tell(self.notifier, lambda: self.figures.live()[0], self.figures.status)
            tasks.append(asyncio.create_task(telling, name="notify"))

    def _handed_front(self) -> list[socket.socket]:
        """The predecessor's admin sockets, if ours are to be at the same address."""
        if self._taken is None:
            return []
        wanted = str(self.settings.admin.address)
        named = {sock: name for kind, name, sock in self._taken.sockets if kind == "admin"}
        handed = self._taken.of("admin")
        for sock in handed:
            if named[sock] != wanted:
                sock.close()
        return [sock for sock in handed if named[sock] == wanted]

    async def _started(self) -> bool:
        """Waits for the workers; False when a signal ends the wait."""
        waits = {asyncio.ensure_future(self.crew.first()), asyncio.create_task(self._wake.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, CrewError):
                raise StartError(str(outcome))
        return not self._asked_to_end

    async def _drain(self) -> None:
        """Lets everybody finish (see `drain:`); a second signal ends it at once."""
        drain = self.settings.drain
        self.draining = True
        log.info("draining", clients=self.crew.clients, delay_s=drain.delay, timeout_s=drain.timeout)
        self.notifier.stopping()
        last = asyncio.create_task(self._part(), name="drain")
        now = asyncio.create_task(self._now.wait())
        try:
            await asyncio.wait({last, now}, return_when=asyncio.FIRST_COMPLETED)
            if last.done():
                last.result()
        finally:
            for task in (last, now):
                task.cancel()
            await asyncio.gather(last, now, return_exceptions=True)
        if self._now.is_set():
            log.warning("ended at once", clients=self.crew.clients)

    async def _part(self) -> None:
        """Ends the listeners, then the workers."""
        drain = self.settings.drain
        if not self._replaced:
            await asyncio.sleep(drain.delay)
        if self._replaced:
            self.doors.close_all()  # the successor takes what waits in the kernel's queues
            await self.front.release()
        else:
            if self.handover is not None:
                if self.handover.taking:  # it will serve when we are gone, and needs the files
                    for one in self.listening:
                        one.disown()
                self.handover.close()
            self.doors.drain_backlog()
        await self.crew.drain(min(SPREAD * drain.timeout, TURN_S * self.crew.clients), drain.timeout)

    # -- signals -------------------------------------------------------------------------------------------------

    def _obey(self, early: Sequence[int]) -> None:
        obeyed = {
            signal.SIGTERM: self.end,
            signal.SIGINT: self.end,
            signal.SIGHUP: lambda: self.reload.ask(),
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._report,
        }
        for number, obey in obeyed.items():
            self.loop.add_signal_handler(number, obey)
        if os.getpid() == 1:
            self._reap()
        for came in early:
            obeyed[signal.Signals(came)]()

    def end(self) -> None:
        """SIGTERM, SIGINT: drain and end; the second time, end at once."""
        self._asked_to_end += 1
        self._wake.set()
        if self._asked_to_end > 1:
            self._now.set()

    def _reopen(self) -> None:
        logs.reopen()
        self.crew.reopen()

    def _report(self) -> None:
        self._reporting = asyncio.create_task(self.figures.report(), name="report")

    def _reap(self) -> None:
        """Process 1 of a container inherits everybody's orphans, the workers of a fork server that was killed."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        self.loop.call_later(_REAP_S, self._reap)  # uvloop keeps SIGCHLD for itself

    # -- hand-over -----------------------------------------------------------------------------------------------

    def offer(self, path: str, taken: Taken | None = None) -> HandoverServer:
        """Waits at the path for a successor."""
        return HandoverServer(self.loop, path, self._offered, self._handed_over, taken=taken)

    def _offered(self) -> list[tuple[str, str, int]]:
        # The file of a Unix socket that came from systemd is systemd's, whoever listens.
        sockets = [
            ("listener" if one.file or not one.listener.address.path else "inherited", one.label, one.sock.fileno())
            for one in self.listening
        ]
        return sockets + [("admin", str(self.settings.admin.address), sock.fileno()) for sock in self.front.sockets]

    def _handed_over(self) -> None:
        log.info("a successor has taken the listening sockets over")
        self._replaced = True
        for one in self.listening:
            one.disown()
        self._wake.set()

    # -- figures -------------------------------------------------------------------------------------------------

    @staticmethod
    def workers(settings: Settings) -> int:
        """How many workers these settings mean on this machine."""
        return granted() if settings.workers == "auto" else settings.workers

    def _crew_changed(self) -> None:
        self.crew.rejected = self.doors.rejected
        self.doors.members_changed()
