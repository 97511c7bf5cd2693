"""Which replicas may be read from: up, loaded, and in touch with their primary.

Why: a replica that is down, loading, or cut off from its primary must not get reads, and the topology tells that late
(a majority has to vote), not at all (the link to the primary), or wrongly: Redis 7.0 calls a replica of an idle shard
"loading" because its replication offset is 0. Called by control_plane: set_nodes() after each topology, doubt() when a
worker was refused a read, on_change() back.

Invariants: a primary that has become a replica is not read from before a probe says so: one that has come back after
it hung may have writes that the cluster has lost. One connection and one task per replica, kept between probes, gone
with the replica; at most `concurrency` probes at a time; on_change() comes only when the answer changes, and must not
block. Before its first probe a replica is what the topology says, and so it is when it refuses to be asked (while its
password is changed, connections that carry reads go on); a probe overrules that until the topology gives the replica
up. That it is up again says nothing of whether it has its data: the next probe does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from proxy.cluster.topology import Address, Health, Node
from proxy.control.node_client import (
    ErrorReply,
    NodeAuthError,
    NodeClientError,
    NodeClientSettings,
    NodeRefusal,
    StandingClient,
)
from proxy.control.tasks import keep
from proxy.system.log import get, warn_limited

# The first probes of a new topology are spread over this long (or the interval, if that is shorter).
_FIRST_SPREAD_S = 0.2
_JITTER = 0.1

log = get("control.node_health")

OnChange = Callable[[Address, bool, str], None]


@dataclass(frozen=True)
class HealthSettings:
    """Seconds; timeout_s bounds connecting and each probe."""

    health_interval_s: float = 1.0
    timeout_s: float = 1.0
    concurrency: int = 8
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def upstream(self) -> NodeClientSettings:
        """How nodes are talked to."""
        return NodeClientSettings(self.username, self.password, self.timeout_s)


class _Watched:
    """A replica under watch."""

    __slots__ = ("address", "reason", "stale", "task", "told", "usable")

    def __init__(self, node: Node) -> None:
        self.address = node.address
        self.told: Health = node.health  # by the topology
        self.usable = True
        self.stale = False
        self.reason = "not probed yet"
        self.task: asyncio.Task[None] | None = None


class NodeHealth:
    """See the module. Needs a running loop from set_nodes() on."""

    def __init__(self, settings: HealthSettings, on_change: OnChange, *, rng: random.Random | None = None) -> None:
        self.settings = settings
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._watched: dict[Address, _Watched] = {}
        self._primaries: set[Address] = set()  # of the topology before
        self._ending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._changed = asyncio.Event()

    def reconfigure(self, settings: HealthSettings) -> None:
        """New settings (but for concurrency), at once: every replica is probed now, with the new credentials."""
        self.settings = settings
        self._changed.set()
        self._changed = asyncio.Event()

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """The nodes of the newest topology. Watches its replicas and lets go of what is none any more."""
        known = {node.address: node for node in nodes}
        replicas = {address: node for address, node in known.items() if node.role == "replica"}
        for address in self._watched.keys() - replicas.keys():
            watched = self._watched.pop(address)
            if watched.task is not None:
                watched.task.cancel()
                self._ending.add(watched.task)
                watched.task.add_done_callback(self._ending.discard)
            if address in known:
                self._set(watched, True, "is a primary now")
        for address, node in replicas.items():
            watching = self._watched.get(address)
            if watching is None:
                watching = self._watched[address] = _Watched(node)
                if address in self._primaries:
                    self._set(watching, False, "was a primary, is not probed yet")
                else:
                    self._set(watching, node.health == "online", f"{node.health} in the topology")
                watching.task = keep(partial(self._watch, watching), "node-health")
            elif watching.told != node.health:
                watching.told = node.health
                if node.health != "online":
                    self._set(watching, False, f"{node.health} in the topology")
        self._primaries = known.keys() - replicas.keys()

    def doubt(self, address: Address, reason: str) -> None:
        """A replica refused a read for a reason that will last a while; the next probe says when it is over."""
        watched = self._watched.get(address)
        if watched is not None:
            self._set(watched, False, reason)

    def usable(self, address: Address) -> bool:
        """Whether reads may go there; True for what is not watched."""
        watched = self._watched.get(address)
        return watched is None or watched.usable

    def stale(self, address: Address) -> bool:
        """Whether it is not usable only because it has lost touch with its primary: better than nobody."""
        watched = self._watched.get(address)
        return watched is not None and watched.stale

    def reason(self, address: Address) -> str:
        """Why it is usable or not, for people; "" for what is not watched."""
        watched = self._watched.get(address)
        return "" if watched is None else watched.reason

    async def stop(self) -> None:
        """Returns when every task and connection is gone."""
        self.set_nodes(())
        await asyncio.gather(*self._ending, return_exceptions=True)

    # --- inside

    def _set(self, watched: _Watched, usable: bool, reason: str, stale: bool = False) -> None:
        changed = (usable, stale) != (watched.usable, watched.stale)
        watched.usable, watched.reason, watched.stale = usable, reason, stale
        if changed:
            try:
                self._on_change(watched.address, usable, reason)
            except Exception:
                log.exception("telling a change of a node's health failed", node=watched.address)

    async def _watch(self, watched: _Watched) -> None:
        client, changed = StandingClient(watched.address), self._changed
        delay = self._rng.uniform(0, min(_FIRST_SPREAD_S, self.settings.health_interval_s))
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await changed.wait()
                async with self._slots:
                    changed = self._changed  # settings that come during the probe end the next pause at once
                    try:
                        verdict = await _probe(client, self.settings.upstream)
                    except NodeClientError as error:
                        verdict = None if isinstance(error, NodeRefusal) else (False, str(error), False)
                        self._report(watched.address, error)
                # The server would not say. (To a worker that it refuses, too, its connections are down.)
                if verdict is None:
                    verdict = (watched.told == "online", f"{watched.told} in the topology", False)
                self._set(watched, *verdict)
                delay = self.settings.health_interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        finally:
            await client.close()

    def _report(self, address: Address, error: NodeClientError) -> None:
        text = "node refuses to be asked" if isinstance(error, NodeRefusal) else "replica is down"
        text = "node refuses the upstream credentials" if isinstance(error, NodeAuthError) else text
        warn_limited(log, f"replica-down:{address}", text, node=address, error=error)


async def _probe(client: StandingClient, settings: NodeClientSettings) -> tuple[bool, str, bool] | None:
    """(usable, why, stale), None when the server refuses to say (an ACL without INFO)."""
    replies = await client.ask(settings, ("INFO", "replication"), ("INFO", "persistence"))
    if any(isinstance(reply, ErrorReply) for reply in replies):
        return None
    info = "".join(reply.decode("utf-8", "replace") for reply in replies if isinstance(reply, bytes))
    usable, why = judge(info)
    return usable, why, not usable and lost_touch(info)


def judge(info: str) -> tuple[bool, str]:
    """(usable, why) from the fields of INFO replication and INFO persistence (https://redis.io/docs/latest/commands/info/)."""
    fields = _fields(info)
    if fields.get("loading", "0") != "0":
        return False, "is loading its data"
    if fields.get("role") in ("slave", "replica"):
        if fields.get("master_sync_in_progress", "0") != "0":
            return False, "is syncing with its primary"
        if fields.get("master_link_status", "up") != "up":
            return False, "its link to its primary is down"
    return True, "ok"


def lost_touch(info: str) -> bool:
    """Whether a replica has all its data but no link to its primary, which it had: what it has is old, not wrong.

    One that never had a link may be empty: its master_link_down_since_seconds is -1 (replication.c, repl_down_since).
    """
    fields = _fields(info)
    if fields.get("role") not in ("slave", "replica") or fields.get("master_link_status", "up") == "up":
        return False
    if fields.get("loading", "0") != "0" or fields.get("master_sync_in_progress", "0") != "0":
        return False
    return not fields.get("master_link_down_since_seconds", "-1").startswith("-")


def _fields(info: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
