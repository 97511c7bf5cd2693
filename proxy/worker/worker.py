"""One event loop of the data path: everything a worker consists of put together, started, changed and ended.

Why: the one place that knows every part; the parts know each other only through the seams named in ARCHITECTURE.md.
Called by worker.conversation, which brings what the main process says.

Invariants: after start() clients may come, with or without a topology; apply() drops no client and no request; stop()
leaves no task, timer, socket or reader behind and may be called at any time. Nothing here asks a server anything: the
main process does that once for all workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import msgspec

from proxy import __version__
from proxy.cluster.node_names import NodeNames
from proxy.cluster.topology import Address
from proxy.commands.dispositions import OWN_ROWS
from proxy.commands.lookup import CommandTable
from proxy.forward.backend import Backend
from proxy.forward.clients import accept, close_all, drain, follow_reads
from proxy.forward.counters import Counters
from proxy.forward.datapath import ClientSettings, DataPath
from proxy.forward.exchange import Exchange
from proxy.forward.hold import pause
from proxy.forward.node import Node
from proxy.forward.pipeline import BackendSettings
from proxy.forward.question import ask_node
from proxy.forward.reactor import Reactor
from proxy.forward.router import Router
from proxy.forward.tracking import DATABASES_MAX
from proxy.ipc.messages import Commands, KeyspaceEvents, NodeFacts, Start, Topology
from proxy.ipc.settings import WorkerSettings
from proxy.resp import errors
from proxy.serve.any_primary import AnyPrimary
from proxy.serve.command_catalogs import CommandCatalogs
from proxy.serve.context import ServeContext
from proxy.serve.local import log_out
from proxy.serve.node_infos import NodeInfos
from proxy.serve.responder import Responder
from proxy.serve.table import ANSWERERS
from proxy.serve.words import ADMIN_USER
from proxy.system import log as logs
from proxy.system.faults import Faults
from proxy.system.tcp import keepalive
from proxy.worker.connector import Connector
from proxy.worker.drain import NEW_S, Leaving
from proxy.worker.inquiries import Inquiries
from proxy.worker.leases import LeaseWatch
from proxy.worker.monitors import Monitors
from proxy.worker.node_pauses import NodePauses
from proxy.worker.pauses import Pauses
from proxy.worker.renewal import Renewal
from proxy.worker.report import Reports
from proxy.worker.rounds import Rounds
from proxy.worker.scripts import WorkerScripts
from proxy.worker.settings import client_limits, ns, of_a_connection
from proxy.worker.spare import SpareConnections
from proxy.worker.status import WorkerStatus
from proxy.worker.subscriptions import Subscriptions

log = logs.get("worker")

_LOADING_S: Final = 0.5  # a primary that is loading is spared reads that may go elsewhere for so long
_NAMED_MAX: Final = 100  # characters of what a redirection names that are logged


class Worker:
    """See the module. Also the port through which the data path asks for something.

    send: takes a Report, a Question, an Answer or ScriptNews. memory: for the counters; None = of its own. backlog:
    bytes that were sent and not taken.
    """

    def __init__(
        self,
        start: Start,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[msgspec.Struct], None],
        faults: Faults,
        memory: mmap.mmap | None = None,
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        self.settings = settings = start.settings
        self.loop = loop
        self._number, self._faults = start.worker, faults
        self.counters = Counters(memory)
        faults.count = self.counters.fault
        self.reactor = Reactor(loop)
        self.backend_settings = BackendSettings(stall_ns=0)
        connections = settings.backends.connections
        self.router = Router(self.reactor, self.counters, self.backend_settings, connections=connections, failover_ns=0)
        self.exchange = Exchange(
            self.reactor,
            self.router,
            self.counters,
            loop,
            backoff_min_ns=0,
            backoff_max_ns=0,
            max_redirections=0,
            texts=errors.EXCHANGE_TEXTS,
        )
        self.router.port = self
        self.exchange.bind(self)
        self.context = ServeContext(None, "7.0.0", __version__, start.started_s, start.run_id, start.process_id)
        responder = Responder(self.context, on_notice=self._notice, on_raised=faults.show)
        self.path = DataPath(self.reactor, self.exchange, self.counters, CommandTable((), "", {}), responder)
        answerers = {kind: partial(answerer, self.context) for kind, answerer in ANSWERERS.items()}
        self.inquiries = Inquiries(loop, send, answerers, backlog=backlog, on_raised=faults.show)
        self.context.inquire, self.context.clients = self.inquiries.inquire, lambda: self.path.clients
        self.pauses = Pauses(self.path, logged=start.worker == 0)
        self.context.pause, self.context.paused = self.pauses.set, self.pauses.now
        self.monitors = self.context.monitors = Monitors(loop, self.path, send, backlog)
        self.lease_watch = LeaseWatch(self.path)
        self.leaving = Leaving(loop, self.path, self._lift)
        self.connector = Connector(
            settings.backends,
            on_up=self._backend_up,
            on_refused=self.router.refuse,
            on_trouble=self.stale,
            on_fault=faults,
        )
        self.subscriptions = self.context.pubsub = Subscriptions(
            loop, self.router, settings.backends, stale=self.stale, resolve=self.resolve, raised=faults.show
        )
        self.subscriptions.hub.bind(self.path)
        upstream, logged = self.subscriptions.upstream, start.worker == 0
        self.node_pauses = self.context.node_pauses = NodePauses(
            loop, self.path, self.router, self.connector.forget, upstream, self.stale, logged=logged
        )
        self.context.keyspace_events = partial(self._keyspace_events, send)
        self.status = WorkerStatus(self.path, self.exchange, self.reactor, self.counters, settings.clients)
        self.status.hub, self.status.interrupted = (
            self.subscriptions.hub,
            lambda: self.subscriptions.upstream.interrupted,
        )
        self.status.monitors = lambda: len(self.monitors)
        self.status.node_ids = lambda: self.node_pauses.ids
        self.status.troubles = self.connector.troubles
        self._renewal = Renewal(self.router, self.connector, self._renew, loop.time)
        self.status.outdated = lambda: self._renewal.waiting
        looks = (self.lease_watch.look, self.pauses.look, self.node_pauses.look, self._renewal.look)
        self._rounds = Rounds(loop, self.path, self.router, self.status, lambda: self.settings.clients, looks)
        self.context.stats, self.context.nodes = self.status.stats, self.status.nodes
        self.context.spare_connections = SpareConnections(self.router)
        self.context.infos = self.infos = NodeInfos(
            lambda: self.router.nodes.values(),
            partial(ask_node, self.exchange, raised=faults.show),
            loop.call_later,
            loop.time,
            faults.show,
        )
        primary = AnyPrimary(lambda: self.router.primaries, partial(ask_node, self.exchange, raised=faults.show))
        self.context.catalogs = CommandCatalogs(primary)
        self.context.owners = self.router.owners
        self._reports = Reports(loop, send, backlog)
        self.scripts = self.context.scripts = WorkerScripts(
            loop,
            send,
            self.exchange.scripts,
            self.exchange.parking,
            faults.show,
            limit=settings.script_memory,
            generation=start.script_generation,
        )
        self._names: NodeNames | None = None
        self._nodes: dict[str, Node] = {}  # of the topology, by label
        self._limits = (0, 0)
        self._clients_of: dict[str, ClientSettings] = {}  # by listener, those that were removed included,
        self._reads: dict[str, str] = {}  # as is this
        self.use_commands(start.commands)
        self._tune()

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, start: Start) -> None:
        """Begins to serve with what came with the message; connections to the primaries are on their way."""
        self.reactor.start()
        if start.topology is not None:
            self.publish(start.topology)
        self.learn(start.facts)
        self._rounds.start()
        gc.freeze()  # what lives for the whole process need not be looked at again by every collection
        gc.enable()  # see worker.main

    async def stop(self) -> None:
        """Closes everything at once."""
        self._rounds.stop()
        if self._reports.timer is not None:
            self._reports.timer.cancel()
        self.infos.stop()
        self.inquiries.stop()
        self.subscriptions.stop()
        close_all(self.path)
        self.monitors.stop()
        pause(self.path, 0, 0)
        await self.connector.stop()
        self.router.close()
        self.exchange.parking.stop()  # after it: what the connections leave behind is parked
        self.reactor.stop()

    async def _lift(self) -> None:
        """Nothing holds a client back any more: this worker is to end."""
        self.node_pauses.lift()
        await self.pauses.lift()

    # -- clients -------------------------------------------------------------------------------------------------

    def take(self, listener: str, descriptors: Sequence[int], first_id: int, clients: int) -> None:
        """Serves connected sockets that came by a listener, one that was removed meanwhile included.

        Their CLIENT IDs begin with first_id. One that cannot be served is closed and counted as rejected; so are all
        when fewer descriptors than `clients` arrived: this process has no room for more.
        """
        if len(descriptors) < clients:
            for descriptor in descriptors:
                os.close(descriptor)
            for _ in range(clients):
                self.path.reject()
            logs.warn_limited(log, "no-room", "clients turned away: out of file descriptors", clients=clients)
            return
        settings = self._clients_of.get(listener)
        if settings is None:
            # Removed before this worker was born. Reads from the primary are right for everybody.
            settings = self._clients_of[listener] = ClientSettings(**client_limits(self.settings))
        for place, descriptor in enumerate(descriptors):
            with socket.socket(fileno=descriptor) as sock:
                try:
                    self._serve(sock, listener, settings, first_id + place)
                    sock.detach()
                except OSError as error:
                    self.path.reject()
                    logs.warn_limited(log, "take", "cannot serve a connection", error=error.strerror)
                except Exception as error:
                    self.path.reject()
                    self._faults("serving a connection", error)
        self.lease_watch.share()

    def _serve(self, sock: socket.socket, listener: str, settings: ClientSettings, client_id: int) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keepalive(sock, self.settings.clients.tcp_keepalive)
        try:
            peer = _spelt(sock.getpeername(), listener)
        except OSError:
            peer = "?:0"  # gone again, as Redis spells it; the data path is about to see that
        here = _spelt(sock.getsockname(), listener)
        client = accept(self.path, sock.fileno(), settings, peer, here, client_id)
        if self.leaving.draining:
            self.loop.call_later(NEW_S, drain, client)

    def _notice(self, event: str, address: str) -> None:
        logs.warn_limited(log, event, event, client=address)

    # -- what the main process knows -----------------------------------------------------------------------------

    def publish(self, topology: Topology) -> None:
        """Another topology. No loop over slots or ranges: this holds up every client."""
        told = [(Address(node.host, node.port), node) for node in topology.nodes]
        roles = [(address, node.replica) for address, node in told]
        failing = {address for address, node in told if node.failing}
        self.router.publish(roles, topology.shards, topology.owners, failing)
        self._nodes = {node.label: node for node in self.router.nodes.values()}
        for address, entry in told:
            node = self.router.nodes[address]
            node.usable, node.stale = entry.usable, entry.stale
        nodes = [(address, node.announced_port, node.hosts) for address, node in told]
        self._names = NodeNames(topology.names, nodes)
        self.context.shards, self.context.epoch = len(topology.shards), topology.epoch
        self.context.slots_covered = topology.covered
        self._limit()
        self.connector.ids = {str(address): entry.id for address, entry in told}
        self.node_pauses.follow(told)
        self.router.warm(2)
        self.subscriptions.upstream.topology_changed()
        self._rounds.keep_up()
        self.exchange.parking.wake_all()

    def learn(self, facts: NodeFacts) -> None:
        """What was learnt about single nodes."""
        for label, usable in facts.usable.items():
            if (node := self._nodes.get(label)) is not None and node.replica:
                node.usable, node.stale = usable, facts.stale.get(label, False)
        self.context.databases = min(facts.databases, DATABASES_MAX) or self.context.databases
        if facts.limits:
            self.connector.learn_limits(facts.limits)
            self._limit()

    def use_commands(self, commands: Commands) -> None:
        """Another command table, and what INFO and HELLO say of the servers."""
        self._commands = commands
        self.path.table = self._table()
        self.context.server_version = commands.redis_version or self.context.server_version
        self.context.server_name = commands.server_name or "redis"
        self.context.valkey_version = commands.valkey_version
        rows = {row.name.encode(): row for row in commands.rows}
        for row in commands.rows:
            rows |= {sub.name.encode(): sub for sub in row.subcommands}
        self.context.rows = rows

    def _table(self) -> CommandTable:
        commands = self._commands
        self.counters.metrics = commands.metrics
        settings = self.settings
        rows = (*commands.rows, *OWN_ROWS)
        table = CommandTable(rows, commands.source, commands.metrics, settings.allow, settings.deny)
        self.context.refused = frozenset(table.refused())
        return table

    def _limit(self) -> None:
        """Puts what the nodes take at most in force, beside our own limits."""
        limits = self.connector.limits({label for label, node in self._nodes.items() if not node.replica})
        bulk, query = limits
        self.path.limit(bulk, query)
        # A node that is paused reads on: a whole window may come to lie in its query buffer.
        window = self.settings.backends.max_window
        self.backend_settings.max_window = min(window, query // 2) if query else window
        clients = self.settings.clients
        less = 0 < bulk < clients.max_bulk or 0 < query < clients.max_query
        if limits != self._limits and less and self._number == 0:  # the others find the same
            text = "the nodes take less than clients.max_bulk and clients.max_query, which is in force now"
            log.warning(text, proto_max_bulk_len=bulk, client_query_buffer_limit=query)
        self._limits = limits

    # -- settings ------------------------------------------------------------------------------------------------

    def apply(self, settings: WorkerSettings, keep: Collection[str] = ()) -> str:
        """New settings for everything, at once; what could not be done, "" = nothing. keep: see messages.Configure."""
        old, self.settings = self.settings, settings
        trouble = self.apply_log() if settings.log != old.log else ""
        self._tune()
        if (settings.allow, settings.deny) != (old.allow, old.deny):
            self.path.table = self._table()
        if settings.script_memory != old.script_memory:
            self.scripts.resize(settings.script_memory)
        if settings.clients.tcp_keepalive != old.clients.tcp_keepalive:
            self._apply_keepalive()
        if settings.backends != old.backends:
            self.connector.reconfigure(settings.backends)
            self.subscriptions.upstream.settings = settings.backends
        if of_a_connection(settings.backends) != of_a_connection(old.backends):
            self._renewal.begin(keep)
        else:
            self._renewal.follow(keep)
        return trouble

    def _renew(self, labels: Collection[str]) -> None:
        self.path.leases.renew(labels)
        for backend in self.router.renew(labels):  # the old ones end when what they carry is answered
            if not backend.pending:
                self.connector.forget(backend)
        self.router.warm(2)
        self.subscriptions.upstream.renew(labels)

    def _tune(self) -> None:
        """What the parts can be told at any time."""
        backends, requests, clients = self.settings.backends, self.settings.requests, self.settings.clients
        self.reactor.pause_ns = ns(backends.batch_pause)
        self.backend_settings.stall_ns = ns(backends.stall_timeout)
        self.backend_settings.silent_ns = ns(backends.suspect_timeout)
        self.router.connections = backends.connections
        self.path.leases.most = backends.max_leased
        self.lease_watch.tune()
        self.router.failover_ns = ns(requests.failover_timeout)
        self.exchange.parking.backoff_min_ns = ns(requests.retry_backoff_min)
        self.exchange.parking.backoff_max_ns = ns(requests.retry_backoff_max)
        self.exchange.redirect.max_redirections = requests.max_redirections
        self.exchange.parking.max_held = requests.max_held
        self.exchange.parking.max_held_bytes = requests.max_held_bytes
        self.path.max_memory = clients.max_memory
        self.path.most_left = clients.max_left
        self.subscriptions.tune(self.settings)
        self.status.limits = clients
        self.context.client_password = clients.password or None
        if self.context.admin_password != (clients.admin_password or None):
            self.context.admin_password = clients.admin_password or None
            log_out(self.context, ADMIN_USER)
        self.context.unix_endpoint = self.settings.endpoint
        self._limit()
        # Limits hold for all clients; reads for those of the listener that have not chosen for themselves.
        limits = client_limits(self.settings)
        for present in self._clients_of.values():
            present.update(**limits)
        for name, reads in self.settings.listeners.items():
            if (known := self._clients_of.get(name)) is None:
                self._clients_of[name] = ClientSettings(reads=reads, **limits)
            else:
                known.update(reads=reads)
                follow_reads(self.path, known, self._reads.get(name, "primary"))
            self._reads[name] = reads

    def apply_log(self) -> str:
        """Logs as the settings say; why not, if that cannot be done."""
        wanted = self.settings.log
        try:
            logs.setup(wanted.level, wanted.format, wanted.file, worker=self._number)
        except OSError as error:
            log.error("cannot write the log, it goes where it went before", file=wanted.file, error=error.strerror)
            return f"cannot write the log {wanted.file}: {error.strerror}"
        return ""

    def _apply_keepalive(self) -> None:
        for client in self.path.clients:
            sock = socket.socket(fileno=client.fd)
            with contextlib.suppress(OSError):  # broken: the data path is about to learn of it
                keepalive(sock, self.settings.clients.tcp_keepalive)
            sock.detach()

    # -- what the data path asks ---------------------------------------------------------------------------------

    def connect(self, backend: Backend) -> None:
        """A backend is wanted."""
        self.connector.connect(backend)

    def backend_lost(self, backend: Backend, reason: str) -> None:
        """A backend's connection is gone."""
        self.connector.lost(backend, reason)
        if backend.duty:
            self.subscriptions.upstream.lost(backend)

    def node_gone(self, node: Node) -> None:
        """A node left the topology."""
        for backend in node.backends():
            if not backend.pending:
                self.connector.forget(backend)

    def suspected(self, node: Node) -> None:
        """A node says nothing, or is a primary that closes connections or takes none."""
        self._reports.add(**{"silent" if node.silent else "unreached": node.label})

    def stale(self, reason: str) -> None:
        """The topology may have changed."""
        self._reports.add(reason)

    def resolve(self, host: str, port: int, node: Node) -> Address | None:
        """Which node of the topology a redirection names; None = none of them. node: who gave it."""
        found = None if self._names is None else self._names.find(host, port, node.address)
        if found is None:
            text = "a redirection names a node that is not in the topology"
            named = "".join(c if " " <= c <= "~" else "?" for c in f"{host}:{port}"[:_NAMED_MAX])
            logs.warn_limited(log, "redirection-unknown", text, named=named, node=node.label)
        return found

    def node_unfit(self, node: Node, reason: str) -> None:
        """A node refused for a reason that will last: reads that may go elsewhere do.

        Of a replica the main process says when that is over; a primary is tried again now and then.
        """
        if node.usable:
            node.usable = node.stale = False
            if node.replica:
                self._reports.add(unfit=node.label, why=reason)
            else:
                self.loop.call_later(_LOADING_S, self._fit_again, node)

    @staticmethod
    def _fit_again(node: Node) -> None:
        if not node.replica:
            node.usable = True

    @staticmethod
    def _keyspace_events(send: Callable[[msgspec.Struct], None], value: bytes, unconfirmed: list[str]) -> None:
        if unconfirmed:
            text = "not all nodes have confirmed notify-keyspace-events: the main process tells them again"
            logs.warn_limited(log, "events", text, nodes=" ".join(unconfirmed)[:400])
        send(KeyspaceEvents(value, not unconfirmed))

    def _backend_up(self, backend: Backend) -> None:
        self._renewal.up(backend)
        self.subscriptions.upstream.up(backend)
        log.debug("connected", node=backend.node.label, resp=backend.proto)
        self._limit()
        self.exchange.parking.wake_all()


def _spelt(where: object, listener: str) -> str:
    """A socket's address; clients of a Unix socket usually have none, and are called by their listener."""
    if isinstance(where, tuple):
        return str(Address(where[0], where[1]))
    return f"unix:{where}" if isinstance(where, str) and where else f"unix:{listener.removeprefix('unix:')}"
