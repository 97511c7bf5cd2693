"""What clients subscribe to and part with, told them in Redis's form: the hub's bookkeeping of clients.

Why: a SUBSCRIBE must not be confirmed before the nodes send what is published from then on. Called by serve.pubsub (as
ServeContext.pubsub) and by worker.worker; worker.upstream has the subscriptions at the nodes, proxy.forward.hub gives
out the messages.

Invariants:
- A SUBSCRIBE is confirmed when the nodes have confirmed all of its names, or fails as a whole, within its deadline.
- A topic is wanted at the nodes as long as it has members, or a SUBSCRIBE waits for it.
- Long work (many names) is done in slices; its client is not read meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from proxy.cluster.topology import Address
from proxy.forward.ask import Later
from proxy.forward.client import Client
from proxy.forward.hub import CHANNELS, PATTERNS, SHARDS, Hub
from proxy.forward.node import Node
from proxy.forward.router import Router
from proxy.forward.topics import Topic
from proxy.ipc.settings import Backends, WorkerSettings
from proxy.resp import errors
from proxy.worker.feed import SUBSCRIBE, UNSUBSCRIBE
from proxy.worker.slices import Slices
from proxy.worker.upstream import Upstream, scope

AT_ONCE: Final = 100  # names that are dealt with in one go
WIDE_MOST: Final = 1000  # patterns of one client that fit events of the keyspace and other names: see forward.topics


def confirmation(proto: int, word: str, name: bytes | None, count: int) -> bytes:
    """What a client is told of one name."""
    head = b">3" if proto == 3 else b"*3"
    told = (b"_" if proto == 3 else b"$-1") if name is None else b"$%d\r\n%b" % (len(name), name)
    return b"%b\r\n$%d\r\n%b\r\n%b\r\n:%d\r\n" % (head, len(word), word.lower().encode(), told, count)


class _Subscribing:
    """A SUBSCRIBE under way. left: topics that are not in force yet."""

    __slots__ = ("client", "kind", "later", "left", "timer", "topics")

    def __init__(self, client: Client, kind: int) -> None:
        self.client = client
        self.kind = kind
        self.topics: list[Topic] = []
        self.left: set[Topic] = set()
        self.later: Later | None = None
        self.timer: asyncio.TimerHandle | None = None


class Subscriptions:
    """See the module, and worker.upstream for stale and resolve.

    raised(what, error): a fault of ours. timeout_s, most: requests.timeout, clients.max_subscriptions.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        settings: Backends,
        *,
        stale: Callable[[str], None],
        resolve: Callable[[str, int, Node], Address | None],
        raised: Callable[[str, BaseException], None],
    ) -> None:
        self.timeout_s = 5.0
        self.most = 100_000
        self.slices = Slices(loop, raised)
        self.hub = Hub(lambda backend, word, name: self.upstream.heard(backend, word, name), raised)
        self.upstream = Upstream(loop, router, self.hub, self.slices, self, settings, stale=stale, resolve=resolve)
        self._loop = loop
        self._waiting: dict[Topic, list[_Subscribing]] = {}

    def tune(self, settings: WorkerSettings) -> None:
        """What may change at any time."""
        clients = settings.clients
        self.timeout_s, self.most = settings.requests.timeout, clients.max_subscriptions
        before = self.hub.hard_limit, self.hub.soft_limit
        self.hub.hard_limit, self.hub.soft_limit = clients.pubsub_output_limit, clients.pubsub_soft_limit
        self.hub.soft_ns = round(clients.pubsub_soft_time * 1e9)
        if (self.hub.hard_limit, self.hub.soft_limit) < before or self.hub.soft_limit < before[1]:
            self.slices.do(self._weigh_all())
        self.upstream.settings = settings.backends

    def _weigh_all(self) -> Iterator[None]:
        """Who has more than it may now, be it that nothing more comes."""
        clients = self.hub.everybody()
        for at in range(0, len(clients), AT_ONCE):
            self.hub.look_at(clients[at : at + AT_ONCE])
            yield

    def stop(self) -> None:
        """Ends everything."""
        self.slices.stop()
        for waiting in self._waiting.values():
            for one in waiting:
                if one.timer is not None:
                    one.timer.cancel()
        self.upstream.stop()

    # -- for PUBSUB ----------------------------------------------------------------------------------------------

    def names(self, kind: int) -> list[bytes]:
        """What clients or the worker itself are subscribed to. A copy: of half a million it takes some ms."""
        topics = self.hub.topics[kind]
        return [*topics, *{name for name in self.upstream.names(kind) if name not in topics}]

    def figures(self, kind: int, name: bytes) -> tuple[int, int]:
        """(clients that are subscribed, connections of this worker that are)."""
        topic = self.hub.topics[kind].get(name)
        return 0 if topic is None else len(topic.members), len(self.upstream.places(kind, name))

    def places(self, kind: int, name: bytes) -> list[str]:
        """The nodes that these connections lead to."""
        return self.upstream.places(kind, name)

    # -- worker.upstream tells ------------------------------------------------------------------------------------

    def in_force(self, topic: Topic) -> None:
        """The topic may be in force now."""
        if self.upstream.in_force(topic):
            for one in self._waiting.pop(topic, ()):
                self._ready(one, topic)

    def refused(self, topic: Topic, error: bytes) -> None:
        """The nodes refuse it."""
        for one in self._waiting.pop(topic, ()):
            one.left.discard(topic)
            self._fail(one, error)

    def waited_for(self) -> list[Topic]:
        """Topics that somebody waits for."""
        return list(self._waiting)

    # -- clients -------------------------------------------------------------------------------------------------

    def subscribe(self, client: Client, kind: int, names: list[bytes]) -> bytes | Later:
        """Subscribes a client that has nothing under way to all of these, or answers with an error."""
        known = client.subscriber.topics[kind] if client.subscriber is not None else ()
        if len({name for name in names if name not in known}) + sum(client.subscriptions) > self.most:
            return errors.line(f"ERR too many subscriptions of one client, the limit is {self.most}")
        if kind == PATTERNS:
            wide = client.subscriber.wide if client.subscriber is not None else 0
            wide += sum(scope(kind, name) == "wide" for name in names if name not in known)
            if wide > WIDE_MOST:
                return errors.line(f"ERR too many patterns of one client that fit keyspace events, at most {WIDE_MOST}")
        one = _Subscribing(client, kind)
        if len(names) <= AT_ONCE:
            self._begin(one, names)
            if not one.left:
                for _ in self._complete(one):
                    pass
                return b""
        one.later = Later(barrier=True)
        one.timer = self._loop.call_later(self.timeout_s, self._too_late, one)
        if len(names) > AT_ONCE:
            self.slices.do(self._begin_slowly(one, names))
        return one.later

    def _begin_slowly(self, one: _Subscribing, names: list[bytes]) -> Iterator[None]:
        one.left.add(guard := Topic(one.kind, b""))  # so that it is not complete before all names are there
        for at in range(0, len(names), AT_ONCE):
            if one.later is None:
                return  # it is over
            self._begin(one, names[at : at + AT_ONCE])
            yield
        self._ready(one, guard)

    def _begin(self, one: _Subscribing, names: Iterable[bytes]) -> None:
        for name in names:
            topic = self.hub.topic(one.kind, name)
            topic.waiting += 1
            one.topics.append(topic)
            if topic.waiting == 1 and not (topic.members and self.upstream.in_force(topic)):
                self.upstream.place(topic)
            if not self.upstream.in_force(topic):
                one.left.add(topic)
                self._waiting.setdefault(topic, []).append(one)

    def _ready(self, one: _Subscribing, topic: Topic) -> None:
        one.left.discard(topic)
        if not one.left:
            self.slices.do(self._complete(one))

    def _complete(self, one: _Subscribing) -> Iterator[None]:
        """The client is subscribed from now on, and told so."""
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        client, kind, proto = one.client, one.kind, one.client.proto
        counts = client.subscriptions
        count = counts[SHARDS] if kind == SHARDS else counts[CHANNELS] + counts[PATTERNS]
        topics, one.topics = one.topics, []
        for at in range(0, len(topics), AT_ONCE):
            frames = []
            for topic in topics[at : at + AT_ONCE]:
                topic.waiting -= 1
                count += self.hub.join(client, topic)
                frames.append(confirmation(proto, SUBSCRIBE[kind], topic.name, count))
                self.upstream.release(topic)
            client.push(b"".join(frames))
            yield
        if one.later is not None:
            later, one.later = one.later, None
            later.answer(b"")

    def _fail(self, one: _Subscribing, error: bytes) -> None:
        """It is subscribed to none of these by this command."""
        if one.timer is not None:
            one.timer.cancel()
        topics, one.topics = one.topics, []
        self._wait_no_more(one)
        for topic in topics:
            topic.waiting -= 1
            self.upstream.release(topic)
        if one.later is not None:
            later, one.later = one.later, None
            later.answer(error)

    def _wait_no_more(self, one: _Subscribing) -> None:
        for topic in one.left:
            if (waiting := self._waiting.get(topic)) is not None and one in waiting:
                waiting.remove(one)
                if not waiting:
                    del self._waiting[topic]
        one.left = set()

    def _too_late(self, one: _Subscribing) -> None:
        """The time is over. What is in force in part will do: some node is down, and is waited for by all."""
        one.timer = None
        begun = one.left <= set(one.topics)  # all of its names are there
        if begun and one.topics and all(self.upstream.in_force(topic, part=True) for topic in one.topics):
            self._wait_no_more(one)
            self.slices.do(self._complete(one))
        else:
            self._fail(one, errors.NODE_DOWN)

    def unsubscribe(self, client: Client, kind: int, names: list[bytes] | None) -> bytes | Later:
        """Unsubscribes a client that has nothing under way from these; None: from all of the kind."""
        if names is None:
            names = list(client.subscriber.topics[kind]) if client.subscriber is not None else []
            if not names:
                client.push(confirmation(client.proto, UNSUBSCRIBE[kind], None, self._count(client, kind)))
                return b""
        if len(names) <= AT_ONCE:
            self._part(client, kind, names)
            return b""
        later = Later(barrier=True)

        def work(names: list[bytes]) -> Iterator[None]:
            for at in range(0, len(names), AT_ONCE):
                self._part(client, kind, names[at : at + AT_ONCE])
                yield
            later.answer(b"")

        self.slices.do(work(names))
        return later

    @staticmethod
    def _count(client: Client, kind: int) -> int:
        counts = client.subscriptions
        return counts[SHARDS] if kind == SHARDS else counts[CHANNELS] + counts[PATTERNS]

    def _part(self, client: Client, kind: int, names: list[bytes]) -> None:
        frames = []
        for name in names:
            topic = client.subscriber.topics[kind].get(name) if client.subscriber is not None else None
            if topic is not None and self.hub.part(client, topic):
                self.upstream.release(topic)
            frames.append(confirmation(client.proto, UNSUBSCRIBE[kind], name, self._count(client, kind)))
        client.push(b"".join(frames))

    def forget(self, client: Client, reply: bytes) -> bytes | Later:
        """RESET: subscribed to nothing any more, without a word but the reply."""
        work = self._leave(client)
        if next(work, self) is self:
            return reply
        later = Later(barrier=True)

        def slowly() -> Iterator[None]:
            yield from work
            later.answer(reply)

        self.slices.do(slowly())
        return later

    def closed(self, client: Client) -> None:
        """It has left."""
        work = self._leave(client)
        if next(work, self) is not self:
            self.slices.do(work)

    def _leave(self, client: Client) -> Iterator[None]:
        subscriber = self.hub.leave(client)
        if subscriber is None:
            return
        done = 0
        for topics in subscriber.topics:
            while topics:
                _, topic = topics.popitem()
                if self.hub.part(client, topic):
                    self.upstream.release(topic)
                done += 1
                if done % AT_ONCE == 0:
                    yield
