"""SIGHUP: the configuration is read again and put in force whole, or refused whole.

Why: a bad file must change nothing and say why, a good one must drop no client. Called by proxy.supervisor.life.

Invariants: one reload at a time, requests meanwhile are one more; whatever can fail (reading, binding, opening) is done
before anything changes; the service manager hears of the beginning and of the end of every reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.config.diff import diff
from proxy.config.models import ConfigFaults, Settings
from proxy.supervisor.handover import HandoverError, HandoverServer
from proxy.system import limits as descriptors
from proxy.system import log as logs
from proxy.system.sockets import ListenError, Listening, open_listener, warn_somaxconn

if TYPE_CHECKING:
    from proxy.supervisor.life import Supervisor

log = logs.get("supervisor.reload")


class Refused(Exception):
    """Nothing was changed; the text says why."""


class Reload:
    """See the module. reread: reads the configuration, ConfigFaults; None: it came from the command line."""

    def __init__(self, supervisor: Supervisor, reread: Callable[[], Settings] | None) -> None:
        self.successful = True  # as it is shown: the configuration it was started with counts
        self.success_s = time.time()
        self._supervisor = supervisor
        self._reread = reread
        self._wanted = asyncio.Event()

    def ask(self) -> None:
        """Has the configuration read again, soon."""
        self._wanted.set()

    async def serve(self) -> None:
        """Reloads whenever asked; ends only by cancellation."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._once()

    async def _once(self) -> None:
        supervisor = self._supervisor
        if supervisor.draining:
            log.warning("not reloaded: the proxy is draining")
            return
        supervisor.notifier.reloading()
        try:
            changes = await self._reload()
        except Refused as refused:
            self.successful = False
            log.error("not reloaded, the old configuration stays in force", reason=str(refused))
        except Exception:
            self.successful = False
            log.exception("the reload failed")
        else:
            self.successful = True
            self.success_s = time.time()
            log.info("reloaded", changes=len(changes))
        finally:
            if not supervisor.draining:
                supervisor.notifier.ready()

    async def _reload(self) -> list[str]:
        supervisor = self._supervisor
        if self._reread is None:
            raise Refused("there is no file: the proxy was started with seeds on the command line")
        if supervisor.handover is not None and supervisor.handover.taking:
            raise Refused("a successor is taking the listening sockets over")
        try:
            new = self._reread()
        except ConfigFaults as faults:
            for fault in faults.faults:
                log.error("fault in the configuration", fault=str(fault))
            count = len(faults.faults)
            raise Refused(f"{count} fault{'s' if count > 1 else ''} in the configuration") from None
        changes = diff(supervisor.settings, new)
        for change in changes:
            log.info("changed", key=change.key, old=change.old, new=change.new)
        opened, handover = await self._open(new)
        await self._put_in_force(new, opened, handover)
        return [change.key for change in changes]

    async def _open(self, new: Settings) -> tuple[list[Listening], HandoverServer | None]:
        """What may fail, done; everything is as it was, and nothing stays open, when something does."""
        supervisor = self._supervisor
        old = supervisor.settings
        wanted = {str(listener.address): listener for listener in new.listeners}
        known = {str(listener.address) for listener in old.listeners}
        opened: list[Listening] = []
        handover = None
        undo: list[Callable[[], None]] = []
        # A listener may be spelt in another way: then its socket stays.
        given = [one.sock.dup() for one in supervisor.listening if str(one.listener.address) not in wanted]
        try:
            for address, listener in wanted.items():
                if address not in known:
                    opened += open_listener(listener, given)
            for one in opened:
                one.listen()  # connections wait in the kernel's queue meanwhile
            for one in supervisor.listening:
                before, after = one.listener, wanted.get(str(one.listener.address))
                if after is not None and after != before:
                    one.update(after)
                    undo.append(functools.partial(one.update, before))
            if new.handover and new.handover != old.handover:
                handover = supervisor.offer(new.handover)
            if new.log != old.log:
                logs.setup(new.log.level, new.log.format, new.log.file)
                undo.append(functools.partial(logs.setup, old.log.level, old.log.format, old.log.file))
            await supervisor.front.move(new.admin.address)
        except (ListenError, HandoverError, OSError) as error:
            for step in reversed(undo):
                with contextlib.suppress(ListenError, OSError):
                    step()
            for one in opened:
                one.close()
            if handover is not None:
                handover.close()
            raise Refused(str(error)) from error
        finally:
            for sock in given:
                sock.close()
        return opened, handover

    async def _put_in_force(self, new: Settings, opened: list[Listening], handover: HandoverServer | None) -> None:
        supervisor = self._supervisor
        old, supervisor.settings = supervisor.settings, new
        descriptors.raise_limit(new.clients.max_clients)
        descriptors.share_limit([*supervisor.crew.pids, *filter(None, [supervisor.forks.pid])])
        supervisor.doors.max_clients = new.clients.max_clients
        if new.handover != old.handover:
            if supervisor.handover is not None:
                supervisor.handover.close()
            supervisor.handover = handover
        # New workers are born with the new settings, the others have them before a client comes by a new listener.
        supervisor.crew.resize(supervisor.workers(new))
        for trouble in await supervisor.crew.apply(new):
            log.error("the new configuration is not in force everywhere", reason=trouble)
        supervisor.listening += opened
        if supervisor.draining:  # meanwhile: whoever ends the run closes them
            return
        for one in opened:
            warn_somaxconn(one)
            supervisor.doors.open(one)
        wanted = {str(listener.address) for listener in new.listeners}
        for one in list(supervisor.listening):
            if str(one.listener.address) not in wanted:
                supervisor.doors.close(one)
                supervisor.listening.remove(one)
                log.info("listens no more", address=one.label)
