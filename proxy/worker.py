"""One event loop: everything of the proxy put together, started, kept going and stopped.

Why: the one place that knows every part; the parts know each other only through the seams named in ARCHITECTURE.md.
Called by cli, which gives it the bound sockets and the settings.

Invariants: start() returns when clients are taken, with or without a topology; stop() leaves no task, timer, socket or
reader behind and may be called at any time after start().
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy import __version__
from proxy.admin.http import AdminServer
from proxy.admin.metrics import Snapshot, build_registry
from proxy.cluster.topology import Address, Node, Topology, map_address
from proxy.commands.lookup import CommandTable
from proxy.commands.rows import merge_rows
from proxy.commands.table import ROWS, SOURCE
from proxy.config import Settings
from proxy.control.backend_pool import BackendPool, PoolSettings, keepalive
from proxy.control.command_table import load_rows
from proxy.control.node_health import HealthSettings, NodeHealth
from proxy.control.topology_refresh import RefreshSettings, TopologyRefresher
from proxy.control.upstream import UpstreamError, UpstreamSettings
from proxy.forward.backend import Backend, BackendSettings
from proxy.forward.backend import Node as DataNode
from proxy.forward.buffer import trim
from proxy.forward.clients import accept, close_all, close_idle, output_bytes
from proxy.forward.counters import BOUNDS_S, Counters
from proxy.forward.datapath import ClientSettings, DataPath
from proxy.forward.reactor import Reactor
from proxy.forward.retry import Retry
from proxy.forward.router import Router
from proxy.log import get, warn_limited
from proxy.resp import errors
from proxy.serve.context import NodeState, ServeContext
from proxy.serve.desk import Desk
from proxy.sockets import Listening, spell

log = get(__name__)

_SWEEP_S = 0.05  # deadlines and stalls are noticed this late at most
_FIRST_TOPOLOGY_S = 1.0  # start-up waits this long for the cluster before it takes clients without
_TRIM_S = 2.0
_COMMANDS_EVERY_S = 300.0
_COMMANDS_RETRY_S = 2.0
_ACCEPT_BATCH = 64


class Worker:
    """See the module. Also the port through which the data path asks control for something."""

    def __init__(self, settings: Settings, listening: Sequence[Listening], loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.listening = listening
        self.loop = loop
        self.started_s = time.time()
        self.lag_s = 0.0
        self.draining = False
        requests = settings.requests
        cluster = settings.cluster
        self.counters = Counters()
        self.reactor = Reactor(loop)
        self.router = Router(
            self.reactor,
            self.counters,
            BackendSettings(stall_ns=ns(settings.backends.stall_timeout)),
            connections=settings.backends.connections,
            failover_ns=ns(requests.failover_timeout),
        )
        self.retry = Retry(
            self.reactor,
            self.router,
            self.counters,
            loop,
            backoff_min_ns=ns(requests.retry_backoff_min),
            backoff_max_ns=ns(requests.retry_backoff_max),
            max_redirections=requests.max_redirections,
            texts=errors.RETRY_TEXTS,
        )
        self.router.port = self
        self.retry.bind(self)
        self.context = ServeContext(
            client_password=settings.clients.secret or None,
            server_version="7.0.0",
            proxy_version=__version__,
            started_s=self.started_s,
            run_id=secrets.token_hex(20),
            stats=self.stats,
            nodes=self.node_states,
            unix_endpoint=tcp_endpoint(listening),
        )
        self.desk = Desk(self.context, on_notice=self._notice)
        self.path = DataPath(
            self.reactor,
            self.retry,
            self.counters,
            CommandTable(ROWS, SOURCE, self.counters.metrics, settings.commands.allow),
            self.desk,
        )
        self.client_settings = [client_settings(settings, place) for place in range(len(settings.listeners))]
        self.pool = BackendPool(
            PoolSettings(
                connect_timeout_s=settings.backends.connect_timeout,
                backoff_min_s=settings.backends.backoff_min,
                backoff_max_s=settings.backends.backoff_max,
                keepalive_s=settings.backends.keepalive,
                client_name=settings.backends.client_name,
                username=cluster.username,
                password=cluster.secret,
            ),
            on_up=self._backend_up,
            on_trouble=self.stale,
        )
        self.refresher = TopologyRefresher(
            RefreshSettings(
                seeds=tuple(Address(seed.host, seed.port) for seed in cluster.seeds),
                refresh_interval_s=cluster.refresh_interval,
                min_gap_s=cluster.refresh_min_gap,
                timeout_s=cluster.refresh_timeout,
                username=cluster.username,
                password=cluster.secret,
                address_map=cluster.address_map,
                endpoint=cluster.endpoint,
            ),
            self._publish,
        )
        self.health = NodeHealth(
            HealthSettings(
                health_interval_s=settings.backends.health_interval,
                timeout_s=settings.backends.connect_timeout,
                username=cluster.username,
                password=cluster.secret,
            ),
            self._health_changed,
        )
        self.admin: AdminServer | None = None
        if settings.admin.address is not None:
            self.admin = AdminServer(
                str(settings.admin.address), build_registry(self.snapshot, BOUNDS_S), lambda: True, self.ready
            )
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._commands_task: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes clients. OSError, with a sentence as its text, when the admin address cannot be had."""
        if self.admin is not None:
            await self.admin.start()
        self.reactor.start()
        await self.refresher.start()
        self._sweep()
        self._trim()
        if not await self.refresher.ready(_FIRST_TOPOLOGY_S):
            log.warning("no topology yet, serving without", error=self.refresher.last_error)
        self._commands_task = asyncio.create_task(self._keep_commands(), name="command-table")
        gc.collect()
        gc.freeze()  # what lives for the whole process need not be looked at again by every collection
        for place, one in enumerate(self.listening):
            one.listen()
            self.loop.add_reader(one.sock.fileno(), self._accept, one, self.client_settings[place])
            log.info("listening", address=one.label)

    async def stop(self) -> None:
        """Closes everything at once."""
        for one in self.listening:
            self.loop.remove_reader(one.sock.fileno())
            one.close()
        for timer in self._timers.values():
            timer.cancel()
        if self._commands_task is not None:
            self._commands_task.cancel()
            await asyncio.gather(self._commands_task, return_exceptions=True)
        await self.refresher.stop()
        await self.health.stop()
        close_all(self.path)
        await self.pool.stop()
        self.router.close()
        self.retry.stop()  # after it: what the connections leave behind is parked
        self.reactor.stop()
        if self.admin is not None:
            await self.admin.stop()

    # -- clients -------------------------------------------------------------------------------------------------

    def _accept(self, one: Listening, settings: ClientSettings) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, where = one.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, mostly: the connection stays in the backlog, and the next event tries again.
                warn_limited(log, "accept", "cannot accept a connection", address=one.label, error=str(error))
                return
            self._welcome(sock, where, one, settings)

    def _welcome(self, sock: socket.socket, where: object, one: Listening, settings: ClientSettings) -> None:
        sock.setblocking(False)
        if len(self.path.clients) >= self.settings.clients.max_clients:
            self.path.reject()
            with contextlib.suppress(OSError):
                sock.send(errors.MAX_CLIENTS)
            sock.close()
            warn_limited(log, "max-clients", "client refused: max number of clients reached")
            return
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keepalive(sock, self.settings.clients.tcp_keepalive)
            accept(self.path, sock.fileno(), settings, spell(where, one.listener.address), spell(sock.getsockname()))
        except OSError as error:
            sock.close()
            warn_limited(log, "accept", "cannot serve a connection", error=str(error))
            return
        sock.detach()

    def _notice(self, event: str, address: str) -> None:
        warn_limited(log, event, event, client=address)

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

    def resolve(self, host: str, port: int, node: DataNode) -> Address:
        """Where a redirection leads; an empty host means the node that gave it."""
        cluster = self.settings.cluster
        if not host:
            return Address(node.address.host, port)
        return map_address(Address(host, port), cluster.address_map)

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
        self.context.topology = topology
        self.health.set_nodes(topology.nodes())
        for node in topology.nodes():
            if node.role == "replica" and (known := self.router.nodes.get(node.address)) is not None:
                known.usable = self.health.usable(node.address)
        self.router.warm(2)
        self.retry.wake_all()

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
        self.retry.wake_all()

    async def _keep_commands(self) -> None:
        """Takes the command table from the servers, and again from time to time: modules come and go."""
        upstream = UpstreamSettings(
            self.settings.cluster.username, self.settings.cluster.secret, self.settings.cluster.refresh_timeout
        )
        while True:
            pause_s = _COMMANDS_RETRY_S
            for node in self._primaries():
                try:
                    loaded = await load_rows(node.address, upstream)
                except UpstreamError as error:
                    warn_limited(
                        log, "commands", "node does not tell its commands", node=str(node.address), error=str(error)
                    )
                    continue
                self.path.table = CommandTable(
                    merge_rows(ROWS, loaded.rows), loaded.source, self.counters.metrics, self.settings.commands.allow
                )
                self.context.server_version = loaded.redis_version or self.context.server_version
                self.context.server_name = loaded.server or "redis"
                self.context.valkey_version = loaded.version if loaded.server == "valkey" else ""
                pause_s = _COMMANDS_EVERY_S
                break
            await asyncio.sleep(pause_s)

    def _primaries(self) -> list[Node]:
        topology = self.refresher.topology
        if topology is None:
            return []
        return [node for node in topology.nodes() if node.role == "primary" and node.health != "fail"]

    # -- timers --------------------------------------------------------------------------------------------------

    def _sweep(self, due_s: float | None = None) -> None:
        now_s = self.loop.time()
        if due_s is not None:
            self.lag_s = max(0.0, now_s - due_s)
        self.router.sweep()
        if idle_s := self.settings.clients.idle_timeout:
            close_idle(self.path, idle_s)
        next_s = now_s + _SWEEP_S
        self._timers["sweep"] = self.loop.call_at(next_s, self._sweep, next_s)

    def _trim(self) -> None:
        trim()
        self._timers["trim"] = self.loop.call_later(_TRIM_S, self._trim)

    # -- figures -------------------------------------------------------------------------------------------------

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether clients should be sent here, and why not."""
        topology = self.refresher.topology
        covered = self.router.slots.covered
        details = {
            "listening": [one.label for one in self.listening],
            "topology_known": topology is not None,
            "topology_fresh": self.refresher.fresh,
            "slots_covered": covered,
            "draining": self.draining,
            "last_error": self.refresher.last_error,
        }
        ready = topology is not None and self.refresher.fresh and covered == 16384 and not self.draining
        return ready, details

    def stats(self) -> Mapping[str, int | float]:
        """Figures for INFO, under Redis's names."""
        values = self.counters.snapshot()
        return {
            "connected_clients": len(self.path.clients),
            "maxclients": self.settings.clients.max_clients,
            "total_connections_received": values["accepted"],
            "total_commands_processed": sum(command["calls"] for command in values["commands"].values()),
            "total_net_input_bytes": values["client_in"],
            "total_net_output_bytes": values["client_out"],
            "rejected_connections": values["rejected"],
            "proxy_commands_in_flight": values["inflight"],
            "proxy_requests_waiting": self.retry.waiting,
            "proxy_event_batches": self.reactor.batches,
            "proxy_events": self.reactor.events,
        }

    def node_states(self) -> list[NodeState]:
        """The nodes for INFO."""
        states = []
        for node in self.router.nodes.values():
            figures = node.figures()
            states.append(
                NodeState(node.label, figures["role"], figures["up"], figures["connections"]["up"], figures["pending"])
            )
        return states

    def snapshot(self) -> Snapshot:
        """Everything a scrape shows."""
        counters = self.counters.snapshot()
        counters["output_bytes"] = output_bytes(self.path)
        topology = self.refresher.topology
        nodes = {}
        for node in self.router.nodes.values():
            figures = node.figures()
            figures["connections"] = {("shared", state): n for state, n in figures["connections"].items()}
            nodes[node.label] = figures
        return {
            "version": __version__,
            "connections": len(self.path.clients),
            "event_loop_lag_s": self.lag_s,
            "counters": counters,
            "nodes": nodes,
            "topology": {
                "slots_covered": self.router.slots.covered,
                "epoch": topology.epoch if topology is not None else 0,
                "last_success_s": self.refresher.last_success or None,
                "refreshes": dict(self.refresher.outcomes),
            },
        }


def ns(seconds: float) -> int:
    """Seconds as the data path's nanoseconds."""
    return round(seconds * 1e9)


def tcp_endpoint(listening: Sequence[Listening]) -> tuple[str, int] | None:
    """(ip, port) a cluster-aware client that came by a Unix socket can use; None without a TCP listener."""
    for one in listening:
        if one.sock.family != socket.AF_UNIX:
            ip, port = one.sock.getsockname()[:2]
            return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip), port
    return None


def client_settings(settings: Settings, place: int) -> ClientSettings:
    """What holds for the clients of one listener."""
    clients = settings.clients
    return ClientSettings(
        reads=settings.listeners[place].reads,
        password=bool(clients.secret),
        max_pending=clients.max_pending,
        max_pending_bytes=clients.max_pending_bytes,
        soft_output=clients.output_soft_limit,
        hard_output=clients.output_hard_limit,
        max_query=clients.max_query,
        max_bulk=clients.max_bulk,
        max_arguments=clients.max_arguments,
        timeout_ns=ns(settings.requests.timeout),
    )
