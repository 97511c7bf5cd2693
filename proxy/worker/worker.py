"""One event loop of the data path: everything a worker consists of put together, started, changed and ended.

Why: the one place that knows every part; the parts know each other only through the seams named in ARCHITECTURE.md.
Called by proxy.worker.main, which brings clients, settings and orders from the supervisor.

Invariants: start() returns when clients may come, with or without a topology; apply() drops no client and no request;
stop() leaves no task, timer, socket or reader behind and may be called at any time.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import socket
import traceback
from collections.abc import Sequence
from typing import Protocol

from proxy import __version__
from proxy.cluster.topology import Address, Node, NodeNames, Topology
from proxy.commands.lookup import CommandTable
from proxy.commands.rows import Row, merge_rows
from proxy.commands.table import ROWS, SOURCE
from proxy.config.models import Address as ListenAddress
from proxy.config.models import Settings
from proxy.control.command_table import load_rows
from proxy.control.node_health import NodeHealth
from proxy.control.tasks import background
from proxy.control.topology_refresh import TopologyRefresher
from proxy.forward.backend import Backend
from proxy.forward.buffer import trim
from proxy.forward.clients import accept, close_all, close_idle, close_lingering, drain, follow_reads
from proxy.forward.counters import Counters
from proxy.forward.datapath import ClientSettings, DataPath
from proxy.forward.exchange import Exchange
from proxy.forward.node import Node as DataNode
from proxy.forward.pipeline import BackendSettings
from proxy.forward.reactor import Reactor
from proxy.forward.router import Router
from proxy.resp import errors
from proxy.serve.context import ServeContext
from proxy.serve.responder import Desk
from proxy.system import log as logs
from proxy.system.sockets import spell
from proxy.worker import settings as parts
from proxy.worker.connector import BackendPool, keepalive
from proxy.worker.drain import NEW_S, Leaving
from proxy.worker.status import Figures

log = logs.get("worker")

_SWEEP_S = 0.05  # deadlines and stalls are noticed this late at most
_LINGER_S = 1.0  # a client that was told the end has this long to close
_FIRST_TOPOLOGY_S = 1.0  # start-up waits this long for the cluster before it takes clients without
_TRIM_S = 2.0
_NAMED_MAX = 100  # characters of what a redirection names that are logged
_COMMANDS_EVERY_S = 300.0
_COMMANDS_RETRY_S = 2.0


class WorkerPort(Protocol):
    """The supervisor's side of a worker; the calls must not block or raise."""

    def names(self, metrics: dict[str, int]) -> None:
        """Which command has which index in the counters; before the index is used."""

    def left(self, clients: int) -> None:
        """So many clients are gone since the last call."""

    def ready_changed(self) -> None:
        """What decides whether the proxy is ready has changed: the state is worth telling."""


class Worker:
    """See the module. Also the port through which the data path asks control for something.

    number: of the worker, for the log. run_id, started_s, process_id: the proxy's, for INFO. memory: for the counters.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        port: WorkerPort,
        *,
        number: int,
        run_id: str,
        started_s: float,
        process_id: int = 0,
        memory: mmap.mmap | None = None,
    ) -> None:
        self.settings = settings
        self.loop = loop
        self.port = port
        self.number = number
        requests = settings.requests
        self.counters = Counters(memory)
        self.reactor = Reactor(loop, pause_ns=parts.ns(settings.backends.batch_pause))
        self.backend_settings = BackendSettings(
            stall_ns=parts.ns(settings.backends.stall_timeout), max_window=settings.backends.max_window
        )
        self.router = Router(
            self.reactor,
            self.counters,
            self.backend_settings,
            connections=settings.backends.connections,
            failover_ns=parts.ns(requests.failover_timeout),
        )
        self.exchange = Exchange(
            self.reactor,
            self.router,
            self.counters,
            loop,
            backoff_min_ns=parts.ns(requests.retry_backoff_min),
            backoff_max_ns=parts.ns(requests.retry_backoff_max),
            max_redirections=requests.max_redirections,
            texts=errors.EXCHANGE_TEXTS,
        )
        self.router.port = self
        self.exchange.bind(self)
        self.parking = self.exchange.parking
        self.context = ServeContext(
            client_password=settings.clients.secret or None,
            server_version="7.0.0",
            proxy_version=__version__,
            started_s=started_s,
            run_id=run_id,
            process_id=process_id,
            unix_endpoint=parts.tcp_endpoint(settings),
        )
        self._rows: tuple[Sequence[Row], str] = (ROWS, SOURCE)  # the servers', once one has told them
        self.path = DataPath(
            self.reactor,
            self.exchange,
            self.counters,
            self._table(),
            Desk(self.context, on_notice=self._notice, on_raised=self._raised),
        )
        self.leaving = Leaving(loop, self.path, port.left)
        self._listeners = parts.listeners(settings)  # those that were removed included
        limits = parts.client_limits(settings)
        self._clients_of = {
            name: ClientSettings(reads=listener.reads, **limits) for name, listener in self._listeners.items()
        }
        self.pool = BackendPool(parts.pool_settings(settings), on_up=self._backend_up, on_trouble=self.stale)
        self.refresher = TopologyRefresher(parts.refresh_settings(settings), self._publish)
        self.health = NodeHealth(parts.health_settings(settings), self._health_changed)
        self.figures = Figures(
            self.path,
            self.parking,
            self.router,
            self.reactor,
            self.counters,
            self.refresher,
            settings.clients.max_clients,
        )
        self.context.stats = self.figures.stats
        self.context.nodes = self.figures.nodes
        self._readiness = self.figures.readiness
        self._names: NodeNames | None = None  # of the nodes of the topology
        self._limits = (0, 0)  # of the nodes, as last seen
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._commands_task: asyncio.Task[None] | None = None
        self._commands_due = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the topology is known, or the first wait for it is over."""
        self.reactor.start()
        await self.refresher.start()
        self._sweep()
        self._trim()
        if not await self.refresher.ready(_FIRST_TOPOLOGY_S):
            why = self.refresher.last_error or "no answer yet"
            log.warning("the seeds yield no node yet, serving without a topology", error=why)
        self._commands_task = background(self._keep_commands(), name="command-table")
        gc.collect()
        gc.freeze()  # what lives for the whole process need not be looked at again by every collection

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Parts with all clients; returns when the last is gone. See Leaving.drain."""
        await self.leaving.drain(spread_s, timeout_s)

    async def retire(self) -> None:
        """Returns when the last client is gone of its own accord."""
        await self.leaving.empty()

    async def stop(self) -> None:
        """Closes everything at once."""
        for timer in self._timers.values():
            timer.cancel()
        self.leaving.stop()
        if self._commands_task is not None:
            self._commands_task.cancel()
            await asyncio.gather(self._commands_task, return_exceptions=True)
        await self.refresher.stop()
        await self.health.stop()
        close_all(self.path)
        await self.pool.stop()
        self.router.close()
        self.parking.stop()  # after it: what the connections leave behind is parked
        self.reactor.stop()

    # -- clients -------------------------------------------------------------------------------------------------

    def take(self, listener: str, descriptors: Sequence[int], first_id: int) -> None:
        """Serves connected sockets that came by a listener, one that was removed meanwhile included.

        Their CLIENT IDs begin with first_id. One that cannot be served is closed and has left.
        """
        settings = self._clients_of.get(listener)
        if settings is None:
            # Removed before this worker was born. Reads from the primary are right for everybody.
            settings = self._clients_of[listener] = ClientSettings(**parts.client_limits(self.settings))
        for place, descriptor in enumerate(descriptors):
            with socket.socket(fileno=descriptor) as sock:
                try:
                    self._serve(sock, listener, settings, first_id + place)
                except OSError as error:
                    self.leaving.unserved()
                    logs.warn_limited(log, "take", "cannot serve a connection", error=error)
                else:
                    sock.detach()

    def _serve(self, sock: socket.socket, listener: str, settings: ClientSettings, client_id: int) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keepalive(sock, self.settings.clients.tcp_keepalive)
        nameless = ListenAddress(path=listener.removeprefix("unix:"))  # as clients of a Unix socket usually are
        try:
            peer = spell(sock.getpeername(), nameless)
        except OSError:
            peer = "?:0"  # gone again, as Redis spells it; the data path is about to see that
        here = spell(sock.getsockname(), nameless)
        client = accept(self.path, sock.fileno(), settings, peer, here, client_id)
        if self.leaving.draining:
            self.loop.call_later(NEW_S, drain, client)

    def _notice(self, event: str, address: str) -> None:
        logs.warn_limited(log, event, event, client=address)

    def _raised(self, what: str, error: BaseException) -> None:
        stack = "".join(traceback.format_exception(error)).strip()
        logs.warn_limited(log, f"raised:{what}", "an answer of the proxy's own failed", command=what, error=stack)

    # -- settings ------------------------------------------------------------------------------------------------

    def apply(self, settings: Settings) -> str:
        """New settings for everything, at once; what could not be done, "" = nothing. Raises nothing."""
        old, self.settings = self.settings, settings
        trouble = self._apply_log(settings) if settings.log != old.log else ""
        requests = settings.requests
        self.reactor.pause_ns = parts.ns(settings.backends.batch_pause)
        self.backend_settings.stall_ns = parts.ns(settings.backends.stall_timeout)
        self._limit()
        self.router.failover_ns = parts.ns(requests.failover_timeout)
        self.router.connections = settings.backends.connections
        self.parking.backoff_min_ns = parts.ns(requests.retry_backoff_min)
        self.parking.backoff_max_ns = parts.ns(requests.retry_backoff_max)
        self.exchange.redirect.max_redirections = requests.max_redirections
        self.figures.max_clients = settings.clients.max_clients
        self.context.client_password = settings.clients.secret or None
        self.context.unix_endpoint = parts.tcp_endpoint(settings)
        if settings.commands.allow != old.commands.allow:
            self.path.table = self._table()
        self._apply_to_clients(settings)
        if settings.clients.tcp_keepalive != old.clients.tcp_keepalive:
            self._apply_keepalive(settings.clients.tcp_keepalive)
        if (health := parts.health_settings(settings)) != self.health.settings:
            self.health.reconfigure(health)
        if (pool := parts.pool_settings(settings)) != self.pool.settings:
            self.pool.reconfigure(pool)
        if parts.connection_settings(settings) != parts.connection_settings(old):
            self._renew()
        if (refresh := parts.refresh_settings(settings)) != self.refresher.settings:
            self.refresher.reconfigure(refresh)
        if settings.clients != old.clients:
            self._commands_due.set()  # the nodes' limits may have been changed with ours
        return trouble

    def _apply_log(self, settings: Settings) -> str:
        wanted = settings.log
        try:
            logs.setup(wanted.level, wanted.format, wanted.file, worker=self.number)
        except OSError as error:
            log.error("cannot write the log, the old one stays", file=wanted.file, error=error.strerror)
            return f"cannot write the log {wanted.file}: {error.strerror}"
        return ""

    def _apply_to_clients(self, settings: Settings) -> None:
        """Limits hold for all clients; reads for those of the listener that have not chosen for themselves."""
        limits = parts.client_limits(settings)
        for present in self._clients_of.values():
            present.update(**limits)
        for name, listener in parts.listeners(settings).items():
            known = self._clients_of.get(name)
            if known is None:
                self._clients_of[name] = ClientSettings(reads=listener.reads, **limits)
            else:
                before = self._listeners[name].reads if name in self._listeners else "primary"
                known.update(reads=listener.reads)
                follow_reads(self.path, known, before)
            self._listeners[name] = listener

    def _apply_keepalive(self, seconds: float) -> None:
        for client in self.path.clients:
            sock = socket.socket(fileno=client.fd)
            try:
                keepalive(sock, seconds)
            except OSError:
                pass  # broken: the data path is about to learn of it
            finally:
                sock.detach()

    def _renew(self) -> None:
        """New connections to all nodes; the old ones end when what they carry is answered."""
        for backend in self.router.renew():
            if not backend.pending:
                self.pool.forget(backend)
        self.router.warm(2)

    # -- what the data path asks ---------------------------------------------------------------------------------

    def connect(self, backend: Backend) -> None:
        """A backend is wanted."""
        self.pool.connect(backend)

    def backend_lost(self, backend: Backend, reason: str) -> None:
        """A backend's connection is gone."""
        self.pool.lost(backend, reason)

    def node_gone(self, node: DataNode) -> None:
        """A node left the topology."""
        for backend in node.backends():
            if not backend.pending:
                self.pool.forget(backend)

    def stale(self, reason: str) -> None:
        """The topology may have changed."""
        self.refresher.trigger(reason)

    def resolve(self, host: str, port: int, node: DataNode) -> Address | None:
        """Which node of the topology a redirection names, however it is named; None = none of them.

        node: who gave it, of whose endpoint an empty host speaks.
        """
        found = None if self._names is None else self._names.find(host, port, node.address)
        if found is None:
            text = "a redirection names a node that is not in the topology"
            named = "".join(c if " " <= c <= "~" else "?" for c in f"{host}:{port}"[:_NAMED_MAX])
            logs.warn_limited(log, "redirection-unknown", text, named=named, node=node.label)
        return found

    def node_unfit(self, node: DataNode, reason: str) -> None:
        """A replica refused a read for a reason that will last a while; the next probe says when it is over."""
        if node.usable:
            node.usable = False
            log.info("replica not used for reads", node=node.label, reason=reason)

    # -- what control tells --------------------------------------------------------------------------------------

    def _publish(self, topology: Topology) -> None:
        self.router.publish(
            [
                (
                    None if shard.primary is None else shard.primary.address,
                    [replica.address for replica in shard.replicas],
                    shard.slots,
                )
                for shard in topology.shards
            ]
        )
        self._limit()
        self._names = NodeNames(topology, self.settings.cluster.address_map)
        before, self.context.topology = self.context.topology, topology
        if before is not None and not before.by_id.keys() & topology.by_id.keys():
            self._commands_due.set()  # another cluster has other servers
        self.health.set_nodes(topology.nodes())
        for node in topology.nodes():
            if node.role == "replica" and (known := self.router.nodes.get(node.address)) is not None:
                known.usable = self.health.usable(node.address)
        self.router.warm(2)
        self.parking.wake_all()

    def _health_changed(self, address: Address, usable: bool, reason: str) -> None:
        node = self.router.nodes.get(address)
        if node is not None and node.replica:
            node.usable = usable
            log.info(
                "replica is used for reads" if usable else "replica not used for reads",
                node=str(address),
                reason=reason,
            )

    def _backend_up(self, backend: Backend) -> None:
        log.debug("connected", node=backend.node.label, resp=backend.proto)
        self._limit()
        self.parking.wake_all()

    def _limit(self) -> None:
        """Puts what the nodes take at most in force, beside our own limits."""
        primaries = [node.address for node in self.router.nodes.values() if not node.replica]
        bulk, query = limits = self.pool.limits(primaries)
        self.path.limit(bulk, query)
        # A node that is paused reads on: a whole window may come to lie in its query buffer.
        window = self.settings.backends.max_window
        self.backend_settings.max_window = min(window, query // 2) if query else window
        if limits != self._limits:
            self._limits = limits
            clients = self.settings.clients
            if 0 < bulk < clients.max_bulk or 0 < query < clients.max_query:
                log.warning(
                    "the nodes take less than clients.max_bulk and clients.max_query, which is in force now",
                    proto_max_bulk_len=bulk,
                    client_query_buffer_limit=query,
                )

    def _table(self) -> CommandTable:
        """A table of the rows at hand, its new names told."""
        rows, source = self._rows
        known = len(self.counters.metrics)
        table = CommandTable(rows, source, self.counters.metrics, self.settings.commands.allow)
        if len(self.counters.metrics) > known:
            self.port.names(dict(self.counters.metrics))
        return table

    async def _keep_commands(self) -> None:
        """Takes the command table from the servers, and again from time to time: modules come and go."""
        while True:
            self._commands_due.clear()
            pause_s = _COMMANDS_RETRY_S
            for node in self._primaries():
                try:
                    loaded = await load_rows(node.address, parts.upstream_settings(self.settings))
                except Exception as error:  # also what a broken node makes a library raise: this task must go on
                    logs.warn_limited(
                        log, "commands", "node does not tell its commands", node=str(node.address), error=str(error)
                    )
                    continue
                self._rows = merge_rows(ROWS, loaded.rows), loaded.source
                self.path.table = self._table()
                self.context.server_version = loaded.redis_version or self.context.server_version
                self.context.server_name = loaded.server or "redis"
                self.context.valkey_version = loaded.version if loaded.server == "valkey" else ""
                pause_s = _COMMANDS_EVERY_S
                break
            for node in self._primaries():
                await self.pool.ask_limits(node.address, parts.upstream_settings(self.settings))
            self._limit()
            try:
                async with asyncio.timeout(pause_s):
                    await self._commands_due.wait()
            except TimeoutError:
                pass

    def _primaries(self) -> list[Node]:
        topology = self.refresher.topology
        if topology is None:
            return []
        return [node for node in topology.nodes() if node.role == "primary" and node.health != "fail"]

    # -- timers --------------------------------------------------------------------------------------------------

    def _sweep(self, due_s: float | None = None) -> None:
        now_s = self.loop.time()
        if due_s is not None:
            self.figures.lag_s = max(0.0, now_s - due_s)
        self.router.sweep()
        close_lingering(self.path, _LINGER_S)
        if idle_s := self.settings.clients.idle_timeout:
            close_idle(self.path, idle_s)
        if (readiness := self.figures.readiness) != self._readiness:
            self._readiness = readiness
            self.port.ready_changed()
        next_s = now_s + _SWEEP_S
        self._timers["sweep"] = self.loop.call_at(next_s, self._sweep, next_s)

    def _trim(self) -> None:
        trim()
        self._timers["trim"] = self.loop.call_later(_TRIM_S, self._trim)
