"""The control plane put together: topology, health of the replicas and the servers' commands, learnt once per proxy.

Why: the workers are given ready values (DESIGN 2), so that neither probes nor refreshes multiply with them and no fault
here can drop a client. Called by supervisor: start, reconfigure, stop; report() when a worker has seen something.

Invariants: `commands`, `facts` and `topology` are at any time all that a new worker needs; send() is told every change
of them before they change, so that what cannot be sent is never kept, and must not block; nothing here ends because of
what a node answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.cluster.topology import Address, Node, Topology
from proxy.cluster.topology_replies import AddressRules
from proxy.commands.dispositions import OWN_ROWS
from proxy.commands.lookup import CommandTable
from proxy.commands.rows import Row, merge_rows
from proxy.commands.table import ROWS, SOURCE
from proxy.config.models import Settings
from proxy.control.command_table import load_limits, load_rows
from proxy.control.credentials import Tried, tried
from proxy.control.identity import ids
from proxy.control.keyspace_events import KeyspaceEvents
from proxy.control.node_health import NodeHealth
from proxy.control.publish import publication
from proxy.control.settings import health_settings, node_client_settings, refresh_settings
from proxy.control.suspects import Suspects
from proxy.control.tasks import keep
from proxy.control.topology_refresh import TopologyRefresher
from proxy.ipc import messages
from proxy.system.log import get, warn_limited

COMMANDS_EVERY_S = 300.0  # modules come and go
COMMANDS_RETRY_S = 2.0

log = get("control")

Send = Callable[[messages.Topology | messages.Commands | messages.NodeFacts], None]


class ControlPlane:
    """See the module. One per proxy; needs a running loop from start() on."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self._settings = settings
        self._send = send
        self._metrics: dict[str, int] = {"other": 0}
        self._due = asyncio.Event()
        self._commands_task: asyncio.Task[None] | None = None
        self._cluster: Topology | None = None  # as published last
        self._taking = False  # a topology, which says itself how its replicas are
        self.refresher = TopologyRefresher(refresh_settings(settings), self._publish)
        self.health = NodeHealth(health_settings(settings), self._health_changed)
        self.suspects = Suspects(health_settings(settings), self.refresher.suspect)
        self.events = KeyspaceEvents(
            lambda: [node.address for node in self._cluster.nodes() if node.health != "fail"] if self._cluster else [],
            lambda: node_client_settings(self._settings),
        )
        self.topology: messages.Topology | None = None
        self.facts = messages.NodeFacts(usable={}, limits={})
        self.commands = messages.Commands(ROWS, SOURCE, self._registered(ROWS), "redis", "7.0.0", "")

    async def start(self) -> None:
        """Begins to learn, and returns at once: see ready()."""
        await self.refresher.start()
        self._commands_task = keep(self._keep_commands, "command-table")

    async def ready(self, timeout_s: float) -> bool:
        """Waits for the first topology, at most timeout_s."""
        return await self.refresher.ready(timeout_s)

    async def stop(self) -> None:
        """Returns when every task and connection is gone."""
        if self._commands_task is not None:
            self._commands_task.cancel()
            await asyncio.gather(self._commands_task, return_exceptions=True)
        await self.refresher.stop()
        await self.health.stop()
        await self.suspects.stop()
        await self.events.stop()

    def reconfigure(self, settings: Settings) -> None:
        """New settings, at once."""
        old, self._settings = self._settings, settings
        if (health := health_settings(settings)) != self.health.settings:
            self.health.reconfigure(health)
            self.suspects.reconfigure(health)
        if (refresh := refresh_settings(settings)) != self.refresher.settings:
            self.refresher.reconfigure(refresh)
        if settings.clients != old.clients or settings.cluster != old.cluster:
            self._due.set()  # the nodes' limits may have been changed with ours

    async def try_login(self, settings: Settings) -> Tried:
        """Which nodes new settings would lock us out of; returns within some 2 s.

        They are tried at nodes that are known and at the new seeds, those in force already, too: they may have been put
        in force, or changed at the servers, node by node. These count as taken: there is nothing to keep instead, and
        a node that says nothing is no news.
        """
        wanted = node_client_settings(settings)
        same = wanted.same_login(node_client_settings(self._settings))
        if same and not wanted.password:
            return Tried({}, True)
        told = await self._try(settings)
        return Tried(told.refused, True) if same else told

    async def try_addresses(self, settings: Settings) -> Tried:
        """What the primaries say where new settings would have them dialled; nothing when that stays as it is, or
        nobody tells; within some seconds."""
        old, new = self.refresher.settings, refresh_settings(settings)
        told = None
        if (old.endpoint, old.address_map) != (new.endpoint, new.address_map) and not await self._leaves(settings):
            told = await self.refresher.read_by(AddressRules(new.endpoint, new.address_map))
        shards = told.shards if told is not None else ()
        primaries = [shard.primary.address for shard in shards if shard.slots and shard.primary is not None]
        return await tried(primaries, node_client_settings(settings), settings.backends.client_name)

    async def refused(self) -> str:
        """A node's line where the servers refuse the credentials in force; "" = some take them, or none says."""
        login = await self._try(self._settings)
        return "" if login.taken else next(iter(login.refused.values()), "")

    async def _leaves(self, settings: Settings) -> bool:
        """Whether new seeds belong to another cluster, so that it does not matter what ours makes of the settings."""
        new = refresh_settings(settings)
        if self._cluster is None or new.seeds == self.refresher.settings.seeds:
            return False
        told = await ids(new.seeds, node_client_settings(settings))
        return bool(told) and told.isdisjoint(self._cluster.by_id)

    async def _try(self, settings: Settings) -> Tried:
        ours = self._cluster.nodes() if self._cluster is not None and not await self._leaves(settings) else ()
        known = sorted(ours, key=lambda node: node.health == "fail")
        seeds = refresh_settings(settings).seeds
        nodes = list(dict.fromkeys([*(node.address for node in known), *seeds]))
        return await tried(nodes, node_client_settings(settings), settings.backends.client_name)

    def report(self, report: messages.Report | messages.KeyspaceEvents) -> None:
        """What a worker has seen."""
        if isinstance(report, messages.KeyspaceEvents):
            self.events.remember(report.value, whole=report.whole)
            return
        for sign in report.signs:
            self.refresher.trigger(sign)
        for address, reason in report.unfit.items():
            self.health.doubt(Address.parse(address), reason)
        for address in report.silent:
            self.suspects.suspect(Address.parse(address), "it is silent")
        for address in report.unreached:
            self.suspects.suspect(Address.parse(address), "it closes connections, or takes none")

    def follow(self, tracking: int) -> None:
        """So many clients track keys: what they have in their caches must not outlast a slot's move for long."""
        self.refresher.follow(tracking > 0)

    # -- the topology ------------------------------------------------------------------------------------------------

    def _publish(self, topology: Topology) -> None:
        before, self._cluster = self._cluster, topology
        if before is None or not before.by_id.keys() & topology.by_id.keys():
            self._due.set()  # another cluster has other servers
        self._taking = True
        try:
            self.health.set_nodes(topology.nodes())
        finally:
            self._taking = False
        owners = [shard.primary for shard in topology.shards if shard.slots and shard.primary is not None]
        doubted = [node.address for node in owners if node.doubted or node.health == "fail"]
        self.suspects.set_nodes([node.address for node in owners], doubted)
        self.events.look()
        told = publication(topology, self._settings.cluster.address_map, self.health.usable, self.health.stale)
        self._send(told)
        self.topology = told
        here = {str(node.address) for node in topology.nodes()}
        limits = {address: told for address, told in self.facts.limits.items() if address in here}
        databases = self.facts.databases
        # Who is usable is in the topology.
        self.facts = messages.NodeFacts(usable={}, limits=limits, databases=databases)

    def _health_changed(self, address: Address, usable: bool, reason: str) -> None:
        text = "replica is used for reads" if usable else "replica not used for reads"
        log.info(text, node=str(address), reason=reason)
        told = messages.NodeFacts(usable={str(address): usable})
        if self.health.stale(address):
            told.stale[str(address)] = True
        self._send(told)
        self.facts.usable[str(address)] = usable
        self.facts.stale |= told.stale
        if not told.stale:
            self.facts.stale.pop(str(address), None)
        if not usable and not self._taking:  # it may be back elsewhere: nobody misses one that is not read from
            self.refresher.trigger("lost")
        if usable and not self._taking and self._given_up(address):
            self.refresher.trigger("back")  # the workers shun it until the cluster takes it back

    def _given_up(self, address: Address) -> bool:
        nodes = self._cluster.nodes() if self._cluster is not None else ()
        return any(node.address == address and node.health == "fail" for node in nodes)

    # -- what the servers say of themselves --------------------------------------------------------------------------

    async def _keep_commands(self) -> None:
        """Takes commands and limits from the servers, and again from time to time."""
        while True:
            self._due.clear()
            pause_s = COMMANDS_EVERY_S if await self._learn_commands() else COMMANDS_RETRY_S
            await self._learn_limits()
            try:
                async with asyncio.timeout(pause_s):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _learn_commands(self) -> bool:
        """Asks one primary after the other; whether one of them has told."""
        for node in self._primaries():
            try:
                loaded = await load_rows(node.address, node_client_settings(self._settings))
            except Exception as error:  # whatever a node or a library makes of it, it is no answer
                text = "node does not tell its commands"
                warn_limited(log, "commands", text, node=str(node.address), error=str(error))
                continue
            rows = tuple(merge_rows(ROWS, loaded.rows))
            name = loaded.server or "redis"
            redis_version = loaded.redis_version or self.commands.redis_version
            valkey_version = loaded.version if name == "valkey" else ""
            told = messages.Commands(rows, loaded.source, self._registered(rows), name, redis_version, valkey_version)
            if told != self.commands:
                self._send(told)
                self.commands = told
            return True
        return False

    async def _learn_limits(self) -> None:
        limits, databases = {}, 0
        for node in self._primaries():
            try:
                told, several = await load_limits(node.address, node_client_settings(self._settings))
            except Exception as error:
                log.debug("node does not tell what it takes", node=str(node.address), error=str(error))
                continue
            if any(told) and told != self.facts.limits.get(str(node.address)):
                limits[str(node.address)] = told
            databases = min(databases or several, several or databases)  # what all of them have
        if limits or (databases and databases != self.facts.databases):
            databases = databases or self.facts.databases
            self._send(messages.NodeFacts(usable={}, limits=limits, databases=databases))
            self.facts.limits.update(limits)
            self.facts.databases = databases

    def _registered(self, rows: tuple[Row, ...]) -> dict[str, int]:
        """The counters' indexes by name, those of new commands added; an index once given is never another's.

        It is one and the same dict each time: whoever reads a worker's counters by it knows new commands, too.
        """
        CommandTable((*rows, *OWN_ROWS), "", self._metrics)
        return self._metrics

    def _primaries(self) -> list[Node]:
        nodes = self._cluster.nodes() if self._cluster is not None else ()
        return [node for node in nodes if node.role == "primary" and node.health != "fail"]
