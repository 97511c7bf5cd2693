"""What is subscribed at the nodes, and where: by topics that are wanted, kept through losses and changes.

Why: ten thousand subscribers of one channel cost the cluster one subscription per worker, made again wherever it can be
had when a connection is lost, a primary changes or a slot moves. Used by worker.subscriptions, which knows the clients;
worker.feed is one connection.

Where a topic is subscribed: ordinary channels and patterns at `main`, one connection to any node; shard channels at
the primary of their slot; events of the keyspace at every primary, by their own name or pattern where only events can
fit, else (`*`) by the hub's taps. So no event and no message comes twice, and no ordinary message comes but once.

Invariants: only nodes of the published topology are dialled; while something that was in force is not, that is one
incident, logged once and counted with its time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, Protocol

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import Address
from proxy.forward.backend import Backend, BackendState
from proxy.forward.hub import CHANNELS, MAIN, NODE, PATTERNS, SHARDS, TAPS, Hub
from proxy.forward.node import Node
from proxy.forward.router import Router
from proxy.forward.topics import Topic
from proxy.ipc.settings import Backends
from proxy.resp.glob import literal_prefix
from proxy.system.log import get, warn_limited
from proxy.worker.feed import Feed, Key, Order
from proxy.worker.interruption import Interruption
from proxy.worker.slices import PAUSE_S, Slices

LOOK_S: Final = 0.5
PING_S: Final = 1.0  # between two questions whether a node is alive ...
SILENT_S: Final = 3.0  # ... and the time it has for an answer
RETRY_S: Final = 0.05
REFUSED_S: Final = 5.0  # after so long what was refused is asked for again ...
REFUSED_MOST: Final = 500  # ... but no more than that, of each connection
LIVED_S: Final = 1.0

# Refusals that pass: the topology is changing.
PASSING: Final = (b"-MOVED ", b"-ASK ", b"-CLUSTERDOWN ", b"-TRYAGAIN ", b"-LOADING ", b"-MASTERDOWN ", b"-READONLY ")
EVENTS: Final = (b"__keyspace@", b"__keyevent@")
TAP_KEYS: Final = tuple((PATTERNS, tap) for tap in TAPS)

log = get("worker.subscriptions")


def scope(kind: int, name: bytes) -> str:
    """`events`: only names of events can fit; `wide`: such names and others; `ordinary`: no such name."""
    if kind == SHARDS:
        return "ordinary"
    literal, whole = (name, True) if kind == CHANNELS else literal_prefix(name)
    if literal.startswith(EVENTS):
        return "events"
    return "wide" if not whole and any(event.startswith(literal) for event in EVENTS) else "ordinary"


class Wanting(Protocol):
    """Who wants topics: worker.subscriptions."""

    def in_force(self, topic: Topic) -> None:
        """The topic may be in force now."""

    def refused(self, topic: Topic, error: bytes) -> None:
        """The nodes refuse it."""

    def waited_for(self) -> list[Topic]:
        """Topics that somebody waits for."""


class Upstream:
    """See the module.

    stale(reason): the topology may have changed; resolve(host, port, node): which address of the topology a redirection
    names, or None.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        hub: Hub,
        slices: Slices,
        wanting: Wanting,
        settings: Backends,
        *,
        stale: Callable[[str], None],
        resolve: Callable[[str, int, Node], Address | None],
    ) -> None:
        self.settings = settings
        self.hub = hub
        self._loop = loop
        self._router = router
        self._slices = slices
        self._wanting = wanting
        self._stale = stale
        self._resolve = resolve
        self._main = Feed(hub, MAIN, None, self._answered)
        self._nodes: dict[Node, Feed] = {}
        self._owner: dict[Topic, Feed] = {}  # of shard channels
        self._homeless: set[Topic] = set()  # shard channels whose slot nobody owns
        self._events: set[Key] = set()
        self._flushing: asyncio.Handle | None = None
        self._retrying: set[Feed] = set()  # that have been refused something, and will ask again
        self._opening: set[Feed] = set()  # that have no connection, and will try again
        self._cut = 0  # Hub.wide.cut as it was last told
        self._timers: set[asyncio.TimerHandle] = set()
        self._look: asyncio.TimerHandle | None = None
        self._interruption = Interruption(hub)
        self._ended = False

    def stop(self) -> None:
        """Ends everything."""
        self._ended = True
        for timer in (*self._timers, self._flushing, self._look):
            if timer is not None:
                timer.cancel()
        for feed in self._feeds():
            feed.shut()

    @property
    def interrupted(self) -> bool:
        """Whether something that was in force is not."""
        return self._interruption.lasts

    def names(self, kind: int) -> Iterator[bytes]:
        """What is subscribed at any node though no client is: what is about to be ended, and the taps."""
        for feed in self._feeds():
            yield from (name for one, name in feed.parting if one == kind)
        if kind == PATTERNS:
            yield from TAPS

    def places(self, kind: int, name: bytes) -> list[str]:
        """The nodes at which it is, one for each connection."""
        key = (kind, name)
        return [feed.node.label for feed in self._feeds() if key in feed.have and feed.node is not None]

    # -- where topics are subscribed -----------------------------------------------------------------------------

    def place(self, topic: Topic) -> None:
        """A new topic is wanted."""
        key = (topic.kind, topic.name)
        where = scope(*key)
        if topic.kind == SHARDS:
            self._settle(topic)
        elif where == "events":
            topic.events = True
            self._events.add(key)
            for feed in self._nodes.values():
                feed.want(key)
        else:
            self._main.want(key)
            if where == "wide":
                if not topic.wide:
                    self.hub.widen(topic)
                for feed in self._nodes.values():
                    for tap in TAP_KEYS:
                        feed.want(tap)
        self._flush()

    def release(self, topic: Topic) -> None:
        """Not wanted any more, if nobody is left."""
        if topic.members or topic.waiting:
            return
        self.hub.drop(topic)
        key = (topic.kind, topic.name)
        self._homeless.discard(topic)
        if topic.kind == SHARDS:
            if (owner := self._owner.pop(topic, None)) is not None:
                owner.unwant(key)
        elif topic.events:
            self._events.discard(key)
            if not (key in TAP_KEYS and self.hub.wide.topics):
                self._unwant(key)
        else:
            self._main.unwant(key)
            if topic.wide and not self.hub.wide.topics:
                for tap in TAP_KEYS:
                    if tap not in self._events:
                        self._unwant(tap)
        self._flush()

    def _unwant(self, key: Key) -> None:
        for feed in self._nodes.values():
            feed.unwant(key)

    def _settle(self, topic: Topic, node: Node | None = None) -> None:
        """A shard channel is wanted at the primary of its slot. node: who that is, if it is known better."""
        key = (topic.kind, topic.name)
        before = self._owner.get(topic)
        owner = self._nodes.get(node or self.hub.primary_of(slot_of(topic.name)))  # type: ignore[arg-type]
        if owner is before and owner is not None:
            owner.want(key)
            return
        if before is not None:
            before.unwant(key)
            del self._owner[topic]
        if topic.source is not None:
            topic.source = None
            self._interruption.begins("a slot has moved", None)
        if owner is None:
            self._homeless.add(topic)
            self._stale("uncovered")
            return
        self._homeless.discard(topic)
        self._owner[topic] = owner
        owner.want(key)
        if owner.has(key):
            topic.source = owner.backend  # it was to be ended, but is wanted again in time

    def in_force(self, topic: Topic, *, part: bool = False) -> bool:
        """Whether the nodes send what is published from now on; part: or some of the nodes it takes."""
        key = (topic.kind, topic.name)
        if topic.kind == SHARDS:
            # (Of a lost connection it is left as it was.)
            owner = self._owner.get(topic)
            return owner is not None and topic.source is not None and topic.source is owner.backend
        enough = any if part else all
        if topic.events:
            return bool(self._nodes) and enough(feed.has(key) for feed in self._nodes.values())
        if not self._main.has(key):
            return False
        if not topic.wide or part:
            return True
        return all(feed.has(tap) for feed in self._nodes.values() for tap in TAP_KEYS)

    # -- what nodes say ------------------------------------------------------------------------------------------

    def heard(self, backend: Backend, word: bytes, name: bytes | None) -> None:
        feed = self._feed_of(backend)
        if feed is None or name is None:
            return
        ended = feed.heard(word, name)
        if ended is not None:
            topic = self.hub.topics[ended[0]].get(ended[1])
            if topic is not None and ended in feed.wanted:
                topic.source = None
                self._interruption.begins("the node has ended a subscription", feed.node)
                self._stale("moved")
                feed.again(ended)
                self._flush()

    def _answered(self, feed: Feed, order: Order, reply: bytes) -> None:
        """A command is over: all of its names are confirmed, or it was refused."""
        if feed.backend is None or feed.backend.state == BackendState.CLOSED:
            return  # lost() is on its way, or has been
        if reply.startswith(b"-"):
            self._refused(feed, order, reply)
        elif order.on:
            feed.failures = 0
            for name in order.names:
                topic = self.hub.topics[order.kind].get(name)
                if topic is not None and order.kind == SHARDS and self._owner.get(topic) is feed:
                    topic.source = feed.backend
                if topic is not None and topic.waiting:
                    self._wanting.in_force(topic)
                if (order.kind, name) in TAP_KEYS:
                    self._tapped()
        self._whole()

    def _tapped(self, error: bytes = b"") -> None:
        """A tap is in force; or is refused, and with it the wide patterns that wait for it."""
        for topic in self._wanting.waited_for():
            if topic.wide:
                self._wanting.refused(topic, error) if error else self._wanting.in_force(topic)

    def _refused(self, feed: Feed, order: Order, reply: bytes) -> None:
        keys = [(order.kind, name) for name in order.names]
        if len(keys) > 1:  # one of them may be why
            feed.alone.update(keys)
            for key in keys:
                feed.again(key)
            return
        ((kind, name),) = keys
        topic = self.hub.topics[kind].get(name)
        if reply.startswith(PASSING):
            self._stale("moved" if reply.startswith(b"-MOVED ") else "clusterdown")
            if topic is not None and kind == SHARDS and reply.startswith(b"-MOVED "):
                self._settle(topic, self._named(reply, feed))
            self._later(RETRY_S, self._again, feed, (kind, name))
            self._flush()
            return
        if order.on:
            key = (kind, name)
            feed.given_up[key] = None
            if topic is not None:
                self._wanting.refused(topic, reply)
            if key in TAP_KEYS:
                self._tapped(reply)
            if key in feed.wanted:  # by clients that had it
                text = "a node refuses a subscription that clients have"
                said = reply[1:200].decode("ascii", "replace").strip()
                warn_limited(log, "refused", text, node=feed.node.label if feed.node else "", error=said)
                self._interruption.begins("a node refuses it", feed.node)
                self._retry(feed)
            else:
                feed.given_up.pop(key, None)

    def _retry(self, feed: Feed) -> None:
        """What it refuses is asked for again after a while."""
        if feed not in self._retrying:
            self._retrying.add(feed)
            self._later(REFUSED_S, self._reconsider, feed)

    def _reconsider(self, feed: Feed) -> None:
        self._retrying.discard(feed)
        if feed.reconsider(REFUSED_MOST):
            self._retry(feed)
            self._flush()

    def _named(self, reply: bytes, feed: Feed) -> Node | None:
        """The node of the topology that a MOVED names."""
        host, _, port = reply.split()[-1].decode("ascii", "replace").rpartition(":")
        if not port.isdigit() or feed.node is None:
            return None
        address = self._resolve(host, int(port), feed.node)
        return None if address is None else self._router.nodes.get(address)

    def _again(self, feed: Feed, key: Key) -> None:
        topic = self.hub.topics[key[0]].get(key[1])
        if topic is not None and key[0] == SHARDS:
            self._settle(topic)
        feed.again(key)
        self._flush()

    # -- connections ---------------------------------------------------------------------------------------------

    def _feeds(self) -> list[Feed]:
        return [self._main, *self._nodes.values()]

    def _feed_of(self, backend: Backend) -> Feed | None:
        if self._main.backend is backend:
            return self._main
        feed = self._nodes.get(backend.node)
        return feed if feed is not None and feed.backend is backend else None

    def _flush(self) -> None:
        """Sends what is to be sent, once what is being done is done."""
        if self._flushing is None and not self._ended:
            self._flushing = self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._flushing = None
        now_s = self._loop.time()
        for feed in self._feeds():
            if feed.backend is not None and feed.backend.state == BackendState.CLOSED:
                self.lost(feed.backend)  # it could not be connected
            if feed.backend is not None:
                if not feed.flush():
                    self._later(PAUSE_S, self._flush)
            elif feed.wanted:
                self._open(feed, now_s)
        if self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_after)

    def _open(self, feed: Feed, now_s: float) -> None:
        if feed is self._main and (feed.node is None or feed.failures or feed.node.gone):
            feed.node = self._any_primary(feed.node)
        if feed.node is None:
            return  # the next topology
        if feed.opens_at_s <= now_s:
            feed.open(now_s)
        elif feed not in self._opening:
            self._opening.add(feed)
            self._later(feed.opens_at_s - now_s, self._reopen, feed)

    def _reopen(self, feed: Feed) -> None:
        self._opening.discard(feed)
        self._flush()

    def _any_primary(self, not_this: Node | None) -> Node | None:
        """The primary of slot 0, where PUBLISH goes (forward.dispatch), or another one when that was just lost."""
        primaries = [node for node in self._router.primaries if node is not not_this and not node.paused]
        primaries = primaries or self._router.primaries
        home = self.hub.primary_of(0)
        if home is not None and home in primaries and home.up:
            return home
        return random.choice([node for node in primaries if node.up] or primaries) if primaries else None

    def lost(self, backend: Backend) -> None:
        """A connection is gone, or could not be made; others than the hub's are not meant."""
        feed = self._feed_of(backend)
        if feed is None or self._ended:
            return
        now_s = self._loop.time()
        self._shut(feed, "the connection was lost")
        if now_s - feed.opened_s < LIVED_S:
            longest = min(self.settings.backoff_min * 2.0 ** min(feed.failures, 30), self.settings.backoff_max)
            feed.opens_at_s = now_s + longest * (0.5 + random.random() / 2)
        feed.failures += 1
        self._flush()

    def _shut(self, feed: Feed, why: str) -> None:
        if feed.shut():
            self._interruption.begins(why, feed.node)

    def up(self, backend: Backend) -> None:
        """A connection to some node is made, one of ours or another."""
        now_s = self._loop.time()
        if (feed := self._feed_of(backend)) is not None:
            feed.opened_s = now_s
        elif (feed := self._nodes.get(backend.node)) is not None and feed.opens_at_s > now_s:
            feed.opens_at_s = now_s  # it can be reached again
            self._flush()

    def recall(self, node: Node) -> None:
        """A paused node is about to be used again: what belongs there is subscribed there first."""
        if node is self.hub.primary_of(0) and self._main.node is not node and self._main.wanted:
            self._shut(self._main, "they move back to a node that is about to be resumed")
            self._main.node = node
        for feed in [feed for feed in self._feeds() if feed.node is node]:
            feed.failures, feed.opens_at_s = 0, 0.0
        self._flush()

    def topology_changed(self) -> None:
        """Another topology is in force."""
        primaries = self._router.primaries
        if self._main.node is not None and self._main.node.gone:
            self._shut(self._main, "the node has left the cluster")
        for node in [node for node in self._nodes if node not in primaries]:
            feed = self._nodes.pop(node)
            self._shut(feed, "the node is no primary any more")
            for topic in [topic for topic, owner in self._owner.items() if owner is feed]:
                del self._owner[topic]
                self._homeless.add(topic)
        for node in primaries:
            if node not in self._nodes:
                feed = self._nodes[node] = Feed(self.hub, NODE, node, self._answered)
                for key in (*self._events, *(TAP_KEYS if self.hub.wide.topics else ())):
                    feed.want(key)
        if self.hub.topics[SHARDS]:
            self._slices.do(self._settle_all())
        self._flush()

    def _settle_all(self) -> Iterator[None]:
        for topic in list(self.hub.topics[SHARDS].values()):
            if topic.members or topic.waiting:
                self._settle(topic)
            yield
        self._flush()
        self._whole()

    def renew(self, labels: Collection[str]) -> None:
        """Connections are made otherwise from now on: those to these nodes are replaced."""
        for feed in self._feeds():
            if feed.backend is not None and feed.backend.node.label in labels:
                self._shut(feed, "connections are renewed")
                feed.failures, feed.opens_at_s = 0, 0.0
        self._flush()

    def _look_after(self) -> None:
        """Whether the nodes are alive, and whether anything is left to be looked after."""
        self._look = None
        now_s = self._loop.time()
        self.hub.sweep()
        if (cut := self.hub.wide.cut) != self._cut:
            text = "events of the keyspace were not compared with all wide patterns: too many, or too long"
            warn_limited(log, "cut", text, events=cut - self._cut, patterns=len(self.hub.wide.topics))
            self._cut = cut
        for feed in self._feeds():
            backend = feed.backend
            if backend is None:
                continue
            if not feed.wanted and not feed.have:
                feed.shut()  # nobody needs it any more
            elif backend.state == BackendState.CLOSED:
                self.lost(backend)
            elif feed.up and feed.pinged_s is None and now_s - feed.opened_s > PING_S / 2:
                feed.ping(now_s)
            elif feed.pinged_s is not None and now_s - feed.pinged_s > SILENT_S and not self.hub.deaf:
                warn_limited(log, "silent", "a node does not answer, its subscriptions move", node=backend.node.label)
                self.lost(backend)
        self._whole()
        if any(feed.backend is not None or feed.wanted for feed in self._feeds()):
            self._look = self._loop.call_later(LOOK_S, self._look_after)
            self._flush()

    # -- incidents -----------------------------------------------------------------------------------------------

    def _whole(self) -> None:
        """Whether everything is in force again."""
        if self._interruption.lasts and not self._homeless and all(feed.whole for feed in self._feeds()):
            self._interruption.ends()

    def _later(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            call(*args)

        timer = self._loop.call_later(delay_s, run)
        self._timers.add(timer)
