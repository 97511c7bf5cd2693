"""SIGHUP: the configuration is read again and put in force whole, or refused whole.

Why: a bad file must change nothing and say why, a good one must drop no client. Called by supervisor.

Invariants: one reload at a time, requests meanwhile are one more; whatever can fail (reading, trying the
credentials and the addresses, resolving, binding, opening) is done before anything changes, and off the event loop;
what listens is compared with what should, not with what a configuration said before, so that the next reload mends what
this one could not; the service manager hears of the beginning and of the end of every reload; none begins while an
upgrade is under way, and one that is asked for then is the successor's, or, when the upgrade fails, done here after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from proxy.check import command_warnings
from proxy.config.diff import diff
from proxy.config.file import ConfigFaults
from proxy.config.models import Settings
from proxy.ipc.messages import NodeStatus
from proxy.system import limits
from proxy.system import log as logs
from proxy.system.sockets import Inherited, ListenError, Listening, open_listener, warn_somaxconn
from proxy.system.threads import in_thread

if TYPE_CHECKING:
    from proxy.supervisor.supervisor import Supervisor

log = logs.get("supervisor.reload")


_NAMED: Final = 8  # nodes in a reason
_ADDRESSES: Final = "cluster.address_map and cluster.endpoint"  # what decides where a node is dialled
_ANSWER_S: Final = 0.5  # how long the workers are waited for
READ_S: Final = 30.0  # a file may be on a disk, or a pipe, that never answers
_LOG_S: Final = 5.0  # for the first line of a new log


class Refused(Exception):
    """Nothing was changed; the text says why."""


class Incomplete(Exception):
    """The configuration is in force, but not everywhere; the text says why."""


class Reload:
    """See the module. load: reads the configuration, ConfigFaults; None: it came from the command line."""

    def __init__(self, supervisor: Supervisor, load: Callable[[], Settings] | None) -> None:
        self.successful = True  # as it is shown: the configuration it was started with counts
        self.success_s = time.time()
        self._supervisor = supervisor
        self._load = load
        self._attempts = 0
        self._begun_s = 0.0
        self._requests = self._covered = 0  # requests so far, and those that the last attempt was for
        self._error = ""
        self._partly = False  # the last one is in force in spite of its error
        self._faults: list[str] = []
        self._changes: list[str] = []
        self._again = False
        self._waits = False  # for the end of an upgrade
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Has the configuration read again, soon."""
        self._requests += 1
        if self._supervisor.upgrade.running:
            self._waits = True
            log.info("the reload waits: an upgrade is under way")
        else:
            self._begin()

    def upgrade_ended(self, successor: int) -> None:
        """What was asked for meanwhile is done by the successor, a pid, or, when that is 0, here."""
        waits, self._waits = self._waits, False
        if waits and successor:
            self.pass_on()
        elif waits and not self._supervisor.ending:
            self._begin()

    def pass_on(self) -> None:
        """Has the successor reload, which reads the same file."""
        log.info("the successor is asked to reload", successor=self._supervisor.upgrade.successor)
        self._supervisor.upgrade.pass_on(signal.SIGHUP)

    def _begin(self) -> None:
        if self._task is not None:
            self._again = True
        else:
            self._task = asyncio.create_task(self._run(), name="reload")

    async def idle(self) -> None:
        """Returns when no reload is under way."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    async def stop(self) -> None:
        """Ends the reload that is under way, undone as far as it is not in force."""
        if self._task is not None:
            self._again = False
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """For /api/state; at_s: when the configuration in force was taken. covered: which of the requests
        the last attempt was for, the newer ones are still to come. begun_s: when that began, by the machine's clock
        that never goes back (CLOCK_MONOTONIC); 0 = there was none."""
        return {
            "attempts": self._attempts,
            "requests": self._requests,
            "covered": self._covered,
            "begun_s": self._begun_s,
            "successful": self.successful,
            "at_s": self.success_s,
            "error": self._error,
            "partly": self._partly,
            "faults": self._faults,
            "changes": self._changes,
        }

    async def _run(self) -> None:
        try:
            while True:
                self._again = False
                await self._once()
                if not self._again:
                    return
        finally:
            self._task = None

    async def _once(self) -> None:
        supervisor = self._supervisor
        supervisor.notifier.reloading()
        error, self._partly, self._faults, self._changes = "", False, [], []
        requests, begun_s = self._requests, time.monotonic()
        outcome = "not reloaded, the old configuration stays in force"
        try:
            self._changes = await self._reload()
        except ConfigFaults as faults:
            self._faults = [str(fault) for fault in faults.faults]
            for fault in self._faults:
                log.error("fault in the configuration", fault=fault)
            error = f"{len(self._faults)} fault{'s' if len(self._faults) > 1 else ''} in the configuration"
        except Refused as refused:
            error = str(refused)
        except Incomplete as incomplete:
            error, outcome, self._partly = str(incomplete), "reloaded, but not everywhere", True
        except asyncio.CancelledError:
            error = "given up: the proxy ends"
            raise
        except Exception as failure:
            log.exception("the reload failed")
            error = f"a fault of the proxy's own, see the log: {failure!r}"
        finally:
            self._error, self.successful = error, not error
            self._attempts += 1
            self._covered, self._begun_s = requests, begun_s
            if error:
                log.error(outcome, reason=error)
            else:
                self.success_s = time.time()
                log.info("reloaded", changes=len(self._changes))
            supervisor.notifier.ready()

    async def _reload(self) -> list[str]:
        supervisor = self._supervisor
        if self._load is None:
            raise Refused("there is no file: the proxy was started with seeds on the command line")
        try:
            async with asyncio.timeout(READ_S):
                new = await in_thread(self._load, "reload")
        except TimeoutError:
            raise Refused(f"the configuration cannot be read within {READ_S:.0f} s") from None
        old = supervisor.settings
        login = await supervisor.control.try_login(new)
        if login.refused and not login.taken:
            raise Refused(f"cluster.password: the nodes refuse it: {next(iter(login.refused.values()))}")
        if login.unsaid and not login.taken and await self._works():
            # It may be right: but what works is not given up for what nobody has said a word to.
            raise Refused(f"cluster.password: no node has taken it yet: {_named(login.unsaid)}")
        moved = await supervisor.control.try_addresses(new)
        if moved.unsaid and not moved.taken and not moved.refused and await self._works():
            raise Refused(f"{_ADDRESSES}: no primary can be reached where they lead: {_named(moved.unsaid)}")
        opened = await self._open(new)
        await self._put_in_force(new, opened, list(login.refused))
        changes = diff(old, new)
        for change in changes:
            log.info("changed", key=change.key, old=change.old, new=change.new)
        for sentence in command_warnings(new):
            log.warning(sentence)
        # A rotation under way: those that refuse it, or say nothing, keep the connections they have.
        unsaid = await self._connected(login.unsaid)
        if troubles := [*_refused(login.refused), *_unsaid(unsaid), *_unreached(moved.unsaid)]:
            raise Incomplete("; ".join(troubles))
        return [f"{change.key}: {change.old} -> {change.new}" for change in changes]

    async def _works(self) -> bool:
        """Whether any worker has a connection to a node that owns slots, or has not found that it cannot have one."""
        return any(node.owner and not node.down_s for nodes in await self._nodes() for node in nodes.values())

    async def _connected(self, nodes: Mapping[str, str]) -> dict[str, str]:
        """Of these those that a worker is connected to."""
        told = await self._nodes() if nodes else []
        return {name: line for name, line in nodes.items() if any(name in one and one[name].up for one in told)}

    async def _nodes(self) -> list[Mapping[str, NodeStatus]]:
        """What each worker says of the nodes now."""
        pool = self._supervisor.pool
        await pool.ask(_ANSWER_S)
        return [worker.status.nodes for worker in pool.present if worker.status is not None]

    async def _open(self, new: Settings) -> list[Listening]:
        """What may fail, done; everything is as it was, and nothing stays open, when something does."""
        supervisor = self._supervisor
        old = supervisor.settings
        undo: list[Callable[[], object]] = []
        present = list(supervisor.listening)
        try:
            opened = await in_thread(lambda: _open_missing(new, present), "listeners", _close)
        except (ListenError, OSError) as error:
            raise Refused(_sentence(error)) from error
        undo += [one.close for one in opened]
        wanted = {str(listener.address): listener for listener in new.listeners}
        try:
            for one in opened:
                one.listen()  # connections wait in the kernel's queue meanwhile
            for one in supervisor.listening:
                before, after = one.listener, wanted.get(str(one.listener.address))
                if after is not None and after != before:
                    one.update(after)
                    undo.append(functools.partial(one.update, before))
            if new.log != old.log:
                try:
                    logs.setup(new.log.level, new.log.format, new.log.file)
                except OSError as error:
                    raise Refused(f"cannot write the log {new.log.file}: {error.strerror}") from error
                undo.append(functools.partial(logs.setup, old.log.level, old.log.format, old.log.file))
                if new.log.file not in ("", old.log.file) and (reason := await in_thread(_unwritable, "log")):
                    raise Refused(f"cannot write the log {new.log.file}: {reason}")
            await supervisor.move_admin(new.admin.address)
        except BaseException as error:
            for step in reversed(undo):
                with contextlib.suppress(ListenError, OSError):
                    step()
            if isinstance(error, ListenError | OSError):
                raise Refused(_sentence(error)) from error
            raise
        return opened

    async def _put_in_force(self, new: Settings, opened: list[Listening], keep: list[str]) -> None:
        """Cannot fail but by a worker that does not take its settings; every step is done whatever becomes of that."""
        supervisor = self._supervisor
        supervisor.settings = new
        supervisor.listening += opened
        supervisor.share_out()
        limits.share_limit(supervisor.pool.processes)
        supervisor.control.reconfigure(new)
        # New workers are started with the new settings, the others have them before a client comes by a new listener.
        supervisor.pool.resize(supervisor.shares.workers)
        try:
            troubles = await supervisor.pool.configure(supervisor.worker_settings, keep)
        finally:
            wanted = {str(listener.address) for listener in new.listeners}
            for one in list(supervisor.listening):
                if str(one.listener.address) not in wanted:
                    supervisor.acceptor.close(one)
                    supervisor.listening.remove(one)
                    log.info("listens no more", address=one.label)
                elif one.label not in supervisor.acceptor.listening and not supervisor.ending:
                    warn_somaxconn(one)
                    supervisor.acceptor.open(one)
        if troubles:
            raise Incomplete("; ".join(troubles))


def _open_missing(new: Settings, present: list[Listening]) -> list[Listening]:
    """The listeners that are not present, bound; for a thread, because names are resolved. ListenError, OSError."""
    wanted = {str(listener.address): listener for listener in new.listeners}
    there = {str(one.listener.address) for one in present}
    opened: list[Listening] = []
    # A listener may be written in another way: then its socket stays.
    given = [Inherited(one.sock.dup(), one.name) for one in present if str(one.listener.address) not in wanted]
    try:
        for address, listener in wanted.items():
            if address not in there:
                opened += open_listener(listener, given)
    except BaseException:
        for one in opened:
            one.close()
        raise
    finally:
        for left in given:
            left.sock.close()
    return opened


def _unwritable() -> str:
    return logs.unwritable(_LOG_S, f"nothing was written to it within {_LOG_S:.0f} s")


def _refused(refused: Mapping[str, str]) -> Iterator[str]:
    if refused:
        text = f"{len(refused)} nodes refuse it, and keep their old connections only"
        yield f"cluster.password: {text}: {_named(refused)}"


def _unsaid(unsaid: Mapping[str, str]) -> Iterator[str]:
    if unsaid:
        text = f"{len(unsaid)} nodes have not said whether they take it, and keep their old connections until they do"
        yield f"cluster.password: {text}: {_named(unsaid)}"


def _unreached(nodes: Mapping[str, str]) -> Iterator[str]:
    if nodes:
        yield f"{_ADDRESSES}: {len(nodes)} primaries cannot be reached where they lead: {_named(nodes)}"


def _named(lines: Mapping[str, str]) -> str:
    """The first nodes, each with its line."""
    named = "; ".join(f"{node}: {line}" for node, line in list(lines.items())[:_NAMED])
    return named + (f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")


def _close(opened: list[Listening]) -> None:
    for one in opened:
        one.close()


def _sentence(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
