# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Messages of channels: from the pushes of a few connections to the nodes to all the clients that are subscribed.

    node --push--> Backend --> Hub.pushed --> Topic --> members: ReplyQueue.push ... end of batch: one send(2) each
                                  |              '--> queue, as long as others are being given out
                                  '--> what is no message: heard(...)  (proxy.worker.subscriptions)

A RESP3 client gets the node's own bytes; for RESP2 the first of them is `*`. One message is for all members before the
next begins, so each client has them in the order in which they came; but in turns, `TURN` units of work in a batch, so
that ten thousand members hold nobody up. Meanwhile it waits, once for all members. Several messages in a row for the
same topic are given out together. When more than `most_waiting` bytes wait, the connections are not read: the nodes
keep what comes, within their own limits (client-output-buffer-limit pubsub).

Duties of the connections: `main`, one for the worker, has all channels and patterns; `node`, one for each primary,
has shard channels and the events of the keyspace. The events are told by their node alone, everything else by every
node. So events count from `node` only, and everything else from `main` only. Wide patterns (`*`) fit both: their
events come by the taps, two patterns that fit all events, and are matched in turns (proxy.forward.topics). (What a
client publishes under an event's name comes from every primary.)

A client that leaves takes its memberships with it in time; none of them is given anything once it is closed.
"""
cimport cython
from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX
from libc.string cimport memcmp

from proxy.cluster.slot cimport SLOTS
from proxy.forward.buffer cimport buffer_len
from proxy.forward.counters cimport CLOSE_PUBSUB_LIMIT
from proxy.forward.datapath cimport DataPath
from proxy.forward.node cimport Node
from proxy.forward.pipeline cimport ENQUEUED
from proxy.forward.reactor cimport monotonic_ns
from proxy.forward.reply_queue cimport PUSH_SOON
from proxy.forward.request cimport (
    REQ_READ, STATE_ANSWERED, TARGET_LEASE, Request, request_free, request_hold, request_move, request_new,
    request_unhold,
)
from proxy.forward.topics cimport Message, Subscriber, Topic, Wide, is_confirmation, is_event
from proxy.resp.push_words cimport Word, words_of

cdef enum:
    TURN = 256              # units of a turn, some 0.6 ms: a GET meanwhile waits for two or three of them
    COST_SEND = 4           # ... a client that has nothing else to be sent in this batch: a send(2)
    COST_BYTES = 13         # ... and 2^13 bytes are a unit more
    AT_ONCE = 64            # members that a message is given to without being queued
    TOGETHER = 65536        # bytes of messages that are given out together
    OVERHEAD = 200          # bytes of memory that a queued message takes besides its own, and a membership
    ERROR_MOST = 65536      # bytes of an answer to SUBSCRIBE
    WORD_MOST = 24

TAPS = (b"__keyspace@*", b"__keyevent@*")
cdef bytes TAP_SPACE = TAPS[0]
cdef bytes TAP_EVENT = TAPS[1]
CHANNELS, PATTERNS, SHARDS = CHANNEL, PATTERN, SHARD
MAIN, NODE = DUTY_MAIN, DUTY_NODE


@cython.final
@cython.no_gc
cdef class Order(Sink):
    """A command of the hub's own to a node; done(reply, +OK when pushes were the answer)."""

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        if r.hold_len + n <= ERROR_MOST:
            request_hold(r, p, n)
        if not final:
            return
        request_move(r, STATE_ANSWERED)
        try:
            reply = PyBytes_FromStringAndSize(r.hold, <Py_ssize_t> r.hold_len)
            request_free(r)
            done, self.done = self.done, None
            done(reply)
        except Exception as problem:
            self.raised("subscriptions", problem)
        self.done = self.raised = None
        Py_DECREF(self)

    cdef void withdraw(self, Request* r) noexcept:
        request_unhold(r)

    cdef bint alive(self) noexcept:
        return True


@cython.final
cdef class Turns(Peer):
    """The hub's turns: a peer without a socket, as the reactor knows no other kind of thing that has turns."""

    def __cinit__(self, Hub hub):
        self.hub = hub
        self.fd = 0             # it counts as open; nothing is done with it

    cdef void go_on(self) noexcept:
        self.hub.go_on()


@cython.final
cdef class Hub(PushPort):
    """One per worker. call(backend, word, name or None): a push that is no message; raised(what, error)."""

    def __init__(self, call, raised):
        super().__init__(call, raised)
        self.topics = ({}, {}, {})
        self.wide = Wide()
        self.subscriptions = [0, 0, 0]
        self.sources = set()
        self.slow = {}
        self.queue = deque()
        self.hard_limit = self.soft_limit = self.soft_ns = INT64_MAX
        self.most_waiting = 16 << 20

    def bind(self, DataPath path not None):
        """The clients' data path."""
        self.router = path.exchange.router
        self.reactor = path.reactor
        self.counts = path.counts
        self.clients = path.clients
        self.turns = Turns(self)
        self.turns.reactor = path.reactor

    # -- upstream ------------------------------------------------------------------------------------------------

    def open(self, Node node not None, int duty):
        """A connection to the node for this duty; connected when something is sent."""
        cdef Router router = self.router
        cdef Backend source = Backend(router.reactor, node, None, 3, 0, router.recovery, router.port, router.counters,
                                      router.settings, self)
        source.duty = duty
        node.leases.append(source)
        self.sources.add(source)
        if self.deaf:
            source.listen(False)
        return source

    def close(self, Backend source not None):
        """Nothing of it counts any more."""
        self.sources.discard(source)
        source.close()

    def send(self, Backend source not None, bytes frame not None, done):
        """A command; done(reply): its answer, `+OK` for what only pushes answer (confirm), or an error.

        Perhaps before this returns. The connection decides how long it may take.
        """
        cdef Order order = Order.__new__(Order)
        cdef Request* r = request_new()
        if r == NULL:
            raise MemoryError
        order.done = done
        order.raised = self.raised
        r.sink = <void*> order
        r.start_ns = monotonic_ns()
        r.deadline_ns = INT64_MAX
        r.target = TARGET_LEASE
        r.lease = <void*> source
        r.slot = -1
        r.proto = 3
        r.flags = REQ_READ
        r.len = len(frame)
        Py_INCREF(order)
        source.demand()
        if source.enqueue(r, frame, len(frame)) != ENQUEUED:
            order.deliver(r, b"-ERR full\r\n", 11, True, True)

    def confirm(self, Backend source not None):
        """The oldest command sent there has been answered by pushes. False: it cannot have been."""
        return source.confirmed()

    def primary_of(self, int slot):
        """The slot's primary, or None."""
        return self.router.primary_of(slot) if 0 <= slot < SLOTS else None

    def interrupted(self, double seconds):
        """Counts that subscriptions were not in force."""
        self.counts.interruptions += 1
        self.counts.interrupted_ms += <uint64_t> max(0.0, seconds * 1e3)

    # -- who is subscribed ---------------------------------------------------------------------------------------

    def topic(self, int kind, bytes name not None):
        """The topic of that name, made when there is none."""
        cdef dict known = self.topics[kind]
        topic = known.get(name)
        if topic is None:
            topic = known[name] = Topic(kind, name)
        return topic

    def drop(self, Topic topic not None):
        """Forgets a topic without members."""
        if self.topics[topic.kind].get(topic.name) is topic:
            del self.topics[topic.kind][topic.name]
        self.wide.drop(topic)

    def widen(self, Topic topic not None):
        """The pattern fits events and other names."""
        self.wide.add(topic)

    def join(self, Client client not None, Topic topic not None):
        """Subscribes the client from now on. False: it was, or it is closed."""
        cdef Subscriber subscriber
        cdef size_t size
        if client in topic.members or client.fd < 0:
            return False
        if client.subscriber is None:
            client.subscriber = Subscriber()
        subscriber = <Subscriber> client.subscriber
        subscriber.topics[topic.kind][topic.name] = topic
        topic.members[client] = self.number
        topic.newest = self.number
        topic.changes += 1
        self.subscriptions[topic.kind] += 1
        subscriber.wide += topic.glob is not None
        size = OVERHEAD + <size_t> PyBytes_GET_SIZE(topic.name)
        client.subscribed += size
        self.reactor.memory += <int64_t> size
        return True

    def part(self, Client client not None, Topic topic not None):
        """Unsubscribes it at once. False: it was not subscribed."""
        cdef Subscriber subscriber = <Subscriber> client.subscriber
        cdef size_t size
        if topic.members.pop(client, None) is None:
            return False
        topic.changes += 1
        self.subscriptions[topic.kind] -= 1
        if subscriber is not None:
            if subscriber.topics[topic.kind].pop(topic.name, None) is not None:
                subscriber.wide -= topic.glob is not None
            size = OVERHEAD + <size_t> PyBytes_GET_SIZE(topic.name)
            client.subscribed -= size
            self.reactor.memory -= <int64_t> size
            if not subscriber.topics[0] and not subscriber.topics[1] and not subscriber.topics[2]:
                client.subscriber = None
        return True

    def leave(self, Client client not None):
        """It is subscribed to nothing any more: what it was subscribed to, each to be parted with; None = nothing."""
        subscriber = client.subscriber
        self.slow.pop(client, None)
        if subscriber is None:
            return None
        client.subscriber = None
        self.reactor.memory -= <int64_t> client.subscribed
        client.subscribed = 0
        return subscriber

    # -- messages ------------------------------------------------------------------------------------------------

    cdef void pushed(self, Peer backend, const char* p, size_t n) noexcept:
        try:
            if not self.message(<Backend> backend, p, n):
                (<Backend> backend).lose("a push of unknown form")
        except Exception as error:
            if self.raised is not None:
                self.raised("push", error)
        if self.waiting > self.most_waiting and not self.deaf:
            self.counts.fan_out_pauses += 1
            self.listen(False)

    cdef bint message(self, Backend source, const char* p, size_t n):
        """A whole push: given out, or told. False when it is of no known form."""
        cdef Word words[4]
        cdef size_t count = 0
        cdef int found = words_of(p, n, words, &count)
        cdef const char* word
        cdef const char* name
        cdef object topic
        if found < 1 or words[0].len > WORD_MOST:
            return False
        if source not in self.sources:
            return True                     # it was closed, or is another's
        word = p + words[0].off
        if found == 3 and count == 3:
            name = p + words[1].off
            if words[0].len == 7 and memcmp(word, b"message", 7) == 0:
                if is_event(name, words[1].len) == (source.duty == DUTY_NODE):
                    topic = (<dict> self.topics[CHANNEL]).get(name[:words[1].len])
                    if topic is not None:
                        self.publish(<Topic> topic, p, n)
                return True
            if words[0].len == 8 and memcmp(word, b"smessage", 8) == 0:
                topic = (<dict> self.topics[SHARD]).get(name[:words[1].len])
                if topic is not None and (<Topic> topic).source is source:
                    self.publish(<Topic> topic, p, n)
                return True
        elif found == 4 and count == 4 and words[0].len == 8 and memcmp(word, b"pmessage", 8) == 0:
            name = p + words[1].off
            if is_event(p + words[2].off, words[2].len) != (source.duty == DUTY_NODE):
                return True
            topic = (<dict> self.topics[PATTERN]).get(name[:words[1].len])
            if topic is not None and (<Topic> topic).events == (source.duty == DUTY_NODE):
                self.publish(<Topic> topic, p, n)
            if self.wide.topics and source.duty == DUTY_NODE and (
                name[:words[1].len] == TAP_SPACE or name[:words[1].len] == TAP_EVENT
            ):
                self.tapped(p[words[2].off:words[2].off + words[2].len], p[words[3].off:n])
            return True
        if self.call is not None and is_confirmation(word, words[0].len):
            self.call(source, word[:words[0].len],
                      p[words[1].off:words[1].off + words[1].len] if found >= 2 else None)
        return True

    cdef void tapped(self, bytes channel, bytes tail):
        """An event, for the wide patterns that fit it: matched in its turn. tail: its payload and what ends it."""
        cdef Message m = Message.__new__(Message)
        m.channel = channel
        m.push = tail
        if not self.wide.wait(m):
            return
        self.number += 1
        m.number = self.number
        self.queue.append(m)
        self.waiting += len(channel) + len(tail) + OVERHEAD
        self.reactor.more(self.turns)

    cdef void publish(self, Topic topic, const char* p, size_t n):
        """To all members: now when they are few and nothing waits, else in turns."""
        cdef Message m
        cdef bytes array
        cdef Client client
        cdef Py_ssize_t members = len(topic.members)
        self.counts.messages += 1
        if members == 0:
            return
        self.number += 1
        self.renew_budget()
        if (self.members is None and not self.queue and self.wide.event is None and members <= AT_ONCE
                and self.budget > 0):
            array = None
            for client in list(topic.members):
                if client.proto != 3 and array is None:
                    array = b"*" + p[1:n]
                self.give(client, p, NULL if array is None else PyBytes_AS_STRING(array), n)
            return
        m = Message.__new__(Message)
        m.topic = topic
        m.push = p[:n]
        m.number = self.number
        self.queue.append(m)
        self.waiting += <int64_t> (n + OVERHEAD)
        self.reactor.more(self.turns)

    cdef void renew_budget(self) noexcept:
        if self.budget_in != self.reactor.batches:
            self.budget_in = self.reactor.batches
            self.budget = TURN

    cdef void give(self, Client client, const char* push, const char* array, size_t n) noexcept:
        """One message, or several, to one client; push: for RESP3, array: for RESP2."""
        if client.fd < 0 or client.closing or client.lingering_ns:
            return
        self.budget -= 1 + <int> (n >> COST_BYTES)
        if not client.touched:
            self.budget -= COST_SEND
        self.counts.deliveries += 1
        client.replies.push(push if client.proto == 3 else array, n, PUSH_SOON)
        if client.fd >= 0 and <int64_t> (client.replies.held + buffer_len(&client.replies.out)) > self.soft_limit:
            self.weigh(client)

    cdef void weigh(self, Client client) noexcept:
        """It has not taken more than it may for long."""
        cdef int64_t held = <int64_t> (client.replies.held + buffer_len(&client.replies.out))
        if held > self.hard_limit:
            client.close(CLOSE_PUBSUB_LIMIT)
        elif client not in self.slow:
            self.slow[client] = self.reactor.now

    def everybody(self):
        """A list of all clients."""
        return list(self.clients)

    def look_at(self, list clients not None):
        """The limits of what they may not have taken have changed."""
        cdef Client client
        for client in clients:
            if client.fd >= 0 and client.subscriber is not None and (
                <int64_t> (client.replies.held + buffer_len(&client.replies.out)) > self.soft_limit
            ):
                self.weigh(client)

    def sweep(self):
        """Closes who has been above the soft limit for too long; to be called some times a second."""
        cdef Client client
        cdef int64_t held
        for client, since_ns in list(self.slow.items()):
            held = <int64_t> (client.replies.held + buffer_len(&client.replies.out))
            if client.fd < 0 or held <= self.soft_limit:
                del self.slow[client]
            elif held > self.hard_limit or self.reactor.now - <int64_t> since_ns > self.soft_ns:
                del self.slow[client]
                client.close(CLOSE_PUBSUB_LIMIT)

    # -- in turns ------------------------------------------------------------------------------------------------

    cdef bint next_wave(self):
        """Takes up what has waited longest: a message, with those right behind it that are for the same topic.

        Or the next pattern that fits the event that is being matched. False: there is nothing, or the turn is over.
        """
        cdef Message m
        cdef Topic topic
        cdef size_t size
        cdef list parts
        cdef bytes frame
        while True:
            if self.wide.event is not None:
                m = self.wide.event
                topic = self.wide.next(&self.budget)
                if topic is not None:
                    self.counts.messages += 1
                    self.bound = 0
                    frame = self.wide.frame_of(m, topic)
                    self.put(topic, m.number, frame, b"*" + frame[1:])
                    return True
                if self.wide.event is not None:
                    return False
                self.waiting -= len(m.channel) + len(m.push) + OVERHEAD
            if not self.queue:
                return False
            m = self.queue.popleft()
            topic = m.topic
            if topic is None:
                self.wide.begin(m)
                continue
            size = len(m.push)
            self.bound = <int64_t> (size + OVERHEAD)
            if not topic.members:
                self.waiting -= self.bound
                continue
            if self.queue and topic.newest < m.number and (<Message> self.queue[0]).topic is topic:
                parts = [m.push]
                number = m.number
                while self.queue and size < TOGETHER and (<Message> self.queue[0]).topic is topic:
                    m = self.queue.popleft()
                    parts.append(m.push)
                    size += <size_t> len(m.push)
                    self.bound += <int64_t> len(m.push) + OVERHEAD
                self.put(topic, number, b"".join(parts), b"*" + b"*".join([part[1:] for part in parts]))
            else:
                self.put(topic, m.number, m.push, b"*" + m.push[1:])
            return True

    cdef void put(self, Topic topic, uint64_t number, bytes push, bytes array):
        """Begins to give this out. number: of the first message in it."""
        self.given = topic
        self.first = number
        self.changes = topic.changes
        self.members = list(topic.members)
        self.at = 0
        self.push = push
        self.array = array

    cdef void go_on(self) noexcept:
        """As much as a turn allows, and another turn for what is left."""
        cdef Client client
        cdef const char* push
        cdef const char* array
        cdef size_t n
        cdef Py_ssize_t count
        self.renew_budget()
        try:
            while self.budget > 0 and (self.members is not None or self.next_wave()):
                push = self.push
                array = self.array
                n = <size_t> PyBytes_GET_SIZE(self.push)
                count = len(self.members)
                while self.at < count and self.budget > 0:
                    client = <Client> self.members[self.at]
                    self.at += 1
                    if self.given.changes != self.changes or self.given.newest >= self.first:
                        since = self.given.members.get(client)
                        if since is None or <uint64_t> since >= self.first:
                            continue        # it has left, or came after the message
                    self.give(client, push, array, n)
                if self.at >= count:
                    self.waiting -= self.bound
                    self.members = None
                    self.given = None
                    self.push = self.array = None
        except Exception as error:          # want of memory
            self.members = None
            if self.raised is not None:
                self.raised("fan-out", error)
        if self.members is not None or self.queue or self.wide.event is not None:
            self.reactor.more(self.turns)
        if self.deaf and self.waiting <= self.most_waiting // 2:
            self.listen(True)

    cdef void listen(self, bint wanted) noexcept:
        cdef Backend source
        self.deaf = not wanted
        for source in self.sources:
            source.listen(wanted)
