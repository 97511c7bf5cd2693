"""The main process put together: everything around the workers, from start to exit code.

Why: configuration, listening sockets, signals, the control plane, the workers' lives, admin HTTP and the service
manager belong to one process that has nothing to do with the data path (DESIGN 2). Called by proxy.run.

Invariants: run() returns an exit code and leaves no process, task or socket behind; whatever can fail at the start has
been done before anybody is told that the proxy is ready; clients are accepted only when a worker can take them; probes
and /metrics answer from before the first client until after the last.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from proxy import __version__
from proxy.config.models import Settings
from proxy.config.units import Address
from proxy.control.control_plane import ControlPlane
from proxy.control.scripts import Scripts
from proxy.ipc.messages import Start, Status
from proxy.supervisor.acceptor import Acceptor
from proxy.supervisor.reload import Reload
from proxy.supervisor.settings import shares, worker_settings
from proxy.supervisor.status import StatusReport
from proxy.supervisor.upgrade import Upgrade
from proxy.supervisor.worker_pool import PoolError, WorkerPool
from proxy.system import log as logs
from proxy.system.handover import Handover
from proxy.system.process import reap_orphans
from proxy.system.sd_notify import Notifier, tell
from proxy.system.sockets import ADMIN, Listening, warn_somaxconn

if TYPE_CHECKING:
    from proxy.admin.http import AdminServer

log = logs.get("supervisor")

SPREAD: Final = 0.8  # of drain.timeout: the last to get its turn has the rest of it to finish
TURN_S: Final = 0.02  # between two clients' turns at most: a few need not wait for a whole drain.timeout
_FIRST_TOPOLOGY_S: Final = 1.0  # the start waits this long for the cluster before it takes clients without
_REAP_S: Final = 1.0


class StartError(Exception):
    """The proxy cannot start; the text is one sentence for the operator."""


class Supervisor:
    """See the module. `listening` is shared with proxy.run, which closes what is in it at the end.

    inherited_admin: sockets a predecessor gave for the admin address. surplus: its sockets that nobody wants any more.
    predecessor: its pid; 0 = there is none. before: what it tells.
    """

    def __init__(
        self,
        settings: Settings,
        listening: list[Listening],
        notifier: Notifier,
        *,
        source: str,
        load: Callable[[], Settings] | None,
        no_upgrade: str,
        inherited_admin: Sequence[Any] = (),
        surplus: Sequence[Listening] = (),
        predecessor: int = 0,
        before: Handover | None = None,
    ) -> None:
        self.settings = settings
        self.listening = listening
        self.notifier = notifier
        self.source = source
        self.started_s = time.time()
        self.run_id = secrets.token_hex(20)
        self.serving = False  # clients come
        self.draining = False
        self.shares = shares(settings)
        self.worker_settings = worker_settings(settings, self.shares)
        self.status = StatusReport(self)
        self.reload = Reload(self, load)
        self.upgrade = Upgrade(self, no_upgrade, predecessor, before or Handover())
        self._inherited_admin = inherited_admin
        self._surplus = surplus
        self._asked_to_end = False
        self._replaced = False
        self._reload_wanted = False  # by a signal during the start
        self._wake = asyncio.Event()
        self._doing: asyncio.Task[None] | None = None  # the start, then the drain
        self._admin: AdminServer
        self._process_ended: Callable[[int, float], None] = lambda pid, cpu_s: None

    @property
    def ending(self) -> bool:
        """Whether the end has begun, or is about to."""
        return self._wake.is_set()

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self, early: Sequence[int]) -> int:
        """From start to end. early: signals that came before there was a loop."""
        self.loop = loop = asyncio.get_running_loop()
        self.control = ControlPlane(self.settings, lambda message: self.pool.tell(message))
        self.scripts = Scripts(
            self.settings.commands.script_memory, lambda generation: self.pool.forget_scripts(generation)
        )
        self.pool = WorkerPool(
            loop,
            self._first_message,
            own_figures=lambda: {"rejected_connections": self.acceptor.rejected},
            on_change=lambda: self.acceptor.workers_changed(),
            on_report=self.control.report,
            on_script=self.scripts.heard,
            on_status=self._status_changed,
            on_gone=self.status.gone,
            on_ended=lambda pid, cpu_s: self._process_ended(pid, cpu_s),
            on_other_version=self.upgrade.ask,
            passing=self.upgrade.passing,
        )
        self.acceptor = Acceptor(
            loop,
            self.pool.candidates,
            lambda: self.pool.clients,
            max_clients=self.shares.max_clients,
            per_worker=self.shares.per_worker,
        )
        telling: asyncio.Task[None] | None = None
        try:
            self._obey(early)
            if not self.ending:
                await self._do(self._start())
            if self.serving and self.notifier.active:
                telling = asyncio.create_task(tell(self.notifier, self.status.alive, self.status.line), name="notify")
            await self._wake.wait()
            self.draining = self.serving
            # Before the drain: neither may open a listener or start a worker in it.
            await self.reload.stop()
            await self.upgrade.stop()
            if self.serving and not await self._do(self._drain()):
                log.warning("ended at once", clients=self.pool.clients)
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            self.acceptor.close_all(accept=False)
            await self.control.stop()
            await self.scripts.stop()
            await self.pool.stop()
            if hasattr(self, "_admin"):
                await self._admin.stop()
        log.info("stopped")
        return 0

    async def _start(self) -> None:
        await self.control.start()
        self.pool.begin(self.shares.workers)
        await self._prepare_admin()  # while the workers come up
        try:
            await self.pool.first()
        except PoolError as error:
            raise StartError(str(error)) from error
        if reason := await self.upgrade.unfit():
            raise StartError(reason)
        if not await self.control.ready(_FIRST_TOPOLOGY_S):
            why = self.control.refresher.last_error or "no answer yet"
            log.warning("the seeds yield no node yet, serving without a topology", error=why)
        for one in self.listening:
            warn_somaxconn(one)
            self.acceptor.open(one)
        if self.settings.admin.address is not None:
            await self._admin.start()
        self.serving = True
        for one in self._surplus:
            log.info("listens no more", address=one.label)
            one.close()
        log.info(
            "started",
            version=__version__,
            config=self.source,
            seeds=",".join(map(str, self.settings.cluster.seeds)),
            listeners=",".join(self.acceptor.listening),
            admin=str(self.settings.admin.address or "off"),
            workers=self.shares.workers,
            max_clients=self.shares.max_clients,
        )
        self.notifier.ready()
        if not gc.isenabled():  # see cli
            gc.freeze()  # what was imported lives as long as the process: no collection need look at it
            gc.enable()
        if self._reload_wanted:
            self.reload.ask()

    async def _prepare_admin(self) -> None:
        """Everything of the admin server that can fail."""
        self._admin, self._process_ended = _import_admin().admin_service(self.status)
        if self.settings.admin.address is not None:
            try:
                await self._admin.prepare(str(self.settings.admin.address), self._inherited_admin)
            except OSError as error:
                raise StartError(error.strerror or str(error)) from error

    async def _do(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does it; False when a signal has ended it before (see _end)."""
        self._doing = asyncio.create_task(work)
        await asyncio.wait((self._doing,))
        if self._doing.cancelled():
            return False
        self._doing.result()
        return True

    async def _drain(self) -> None:
        """Lets everybody finish (see `drain:`): ends the listeners, then the workers."""
        drain = self.settings.drain
        self.draining = True
        log.info("draining", clients=self.pool.clients, delay_s=drain.delay, timeout_s=drain.timeout)
        self.notifier.stopping()
        if self._replaced:
            self.acceptor.close_all(accept=False)  # the successor takes what waits in the kernel's queues
            await self._admin.release()
        else:
            await asyncio.sleep(drain.delay)
            self.acceptor.close_all(accept=True)
        await self.pool.drain(min(SPREAD * drain.timeout, TURN_S * self.pool.clients), drain.timeout)

    # -- what others ask of it ---------------------------------------------------------------------------------------

    def share_out(self) -> None:
        """After new settings: what they come to on this machine, in force here; the workers are told by the pool."""
        self.shares = shares(self.settings)
        self.worker_settings = worker_settings(self.settings, self.shares)
        self.scripts.resize(self.settings.commands.script_memory)
        self.acceptor.max_clients, self.acceptor.per_worker = self.shares.max_clients, self.shares.per_worker

    async def move_admin(self, address: Address | None) -> None:
        """Admin HTTP answers there from now on (None: nowhere); OSError, and all as it was, when it cannot."""
        if address is not None:
            await self._admin.move(str(address))
        else:
            await self._admin.release()

    def sockets(self) -> list[tuple[str, int]]:
        """(name, descriptor) of every listening socket, for a successor; see system.sockets.inherited."""
        found = [(one.name, one.sock.fileno()) for one in self.listening]
        return found + [(f"{ADMIN}{self.settings.admin.address}", sock.fileno()) for sock in self._admin.sockets]

    def replaced(self, successor: int) -> None:
        """A successor listens at the same sockets and is ready: this process drains."""
        self._replaced = True
        self.notifier.hand_over(successor)
        for one in self.listening:
            one.disown()
        self._wake.set()

    def _status_changed(self, old: Status, new: Status) -> None:
        self.status.past.changed(old, new)
        self.status.heard(new)
        told = (worker.status for worker in self.pool.present if worker.status is not old)
        tracking = sum(status.tracking_clients for status in told if status is not None)
        self.control.follow(tracking + new.tracking_clients)

    def _first_message(self, number: int) -> Start:
        control = self.control
        return Start(
            number,
            self.worker_settings,
            self.run_id,
            self.started_s,
            os.getpid(),
            control.commands,
            control.facts,
            control.topology,
            self.scripts.generation,
        )

    # -- signals -----------------------------------------------------------------------------------------------------

    def _obey(self, early: Sequence[int]) -> None:
        obeyed = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
        }
        for number, obey in obeyed.items():
            self.loop.add_signal_handler(number, obey)
        if os.getpid() == 1:
            self._reap()
        for came in early:
            obeyed[signal.Signals(came)]()

    def _end(self) -> None:
        """SIGTERM, SIGINT: drain and end; while starting, and the second time, end at once."""
        if self._doing is not None and (not self.serving or self._asked_to_end):
            self._doing.cancel()
        self._asked_to_end = True
        self._wake.set()

    def _reload(self) -> None:
        if self.upgrade.outlived:
            self.upgrade.pass_on(signal.SIGHUP)  # which says that it cannot be
        elif self.upgrade.successor:
            self.reload.pass_on()
        elif self.ending:
            log.warning("not reloaded: the proxy is draining")
        elif self.serving:
            self.reload.ask()
        else:
            self._reload_wanted = True

    def _upgrade(self) -> None:
        if self.serving and not self.ending:
            self.upgrade.ask()
        else:
            log.warning("not upgraded: the proxy is starting or ending")

    def _reopen(self) -> None:
        logs.reopen()
        self.pool.reopen()
        self.upgrade.reopen()

    def _reap(self) -> None:
        """Process 1 of a container inherits everybody's orphans; its own workers are waited for by the pool."""
        reap_orphans(self.pool.processes)
        self.loop.call_later(_REAP_S, self._reap)


def _import_admin() -> Any:
    """proxy.admin.service, which takes a while: to be called when the workers are starting and nobody is served yet.

    aiohttp's client, which is not used here, reads all of the system's certificates when it is imported: a third of
    the time, and 2 MB. For that moment there are none.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        return importlib.import_module("proxy.admin.service")
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)
