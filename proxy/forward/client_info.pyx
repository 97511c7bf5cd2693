# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What proxy.serve reads of a client and changes: where it came from, what it says of itself, how it is doing.

Used for commands that the proxy answers itself (AUTH, HELLO, SELECT, CLIENT), never on the way of a forwarded one. The
texts are as long as the client likes: they are counted as memory held for it, while it is connected.
"""
import time

from proxy.cluster.redirection cimport REDIR_ASK, REDIR_MOVED, Redirection, parse_redirection
from proxy.forward.backend cimport BACKEND_CLOSED, Backend
from proxy.forward.buffer cimport buffer_len
from proxy.forward.counters cimport CLOSE_ERROR
from proxy.forward.node cimport Node
from proxy.forward.ports cimport DRAINED, EVICTED
from proxy.forward.queued cimport Queued
from proxy.forward.reply_queue cimport MUTE_NEXT, MUTE_OFF, PUSH_BEHIND, TELL_NEXT
from proxy.forward.request cimport OWN_FIRST, REQ_CACHING
from proxy.forward.router cimport READS_PRIMARY, Router

from proxy.forward.router import READ_POLICIES


cdef class ClientInfo(Outlet):
    """Never made by itself: Client is the one subclass."""

    def __cinit__(self):
        self.fd = -1
        self.user = "default"
        self.own_name = self.own_lib_name = self.own_lib_ver = b""
        self.created_s = time.monotonic()
        self.watching = -1

    @property
    def age_s(self):
        """Seconds since it connected, whatever the wall clock did meanwhile."""
        return time.monotonic() - self.created_s

    @property
    def last_active_s(self):
        """Unix time of the last input or output."""
        self.reactor.tick()
        return time.time() - (self.reactor.now - self.active_ns) / 1e9

    @property
    def last_command(self):
        """Name of the last command, "other" when the metrics have no name for it."""
        cdef dict names = self.path.metric_names
        if len(names) != len(self.path.counters.metrics):
            names = self.path.metric_names = {index: name for name, index in self.path.counters.metrics.items()}
        return names.get(self.last_metric, "other")

    @property
    def pending(self):
        """Commands under way."""
        return self.replies.inflight

    @property
    def output_bytes(self):
        """Reply bytes not taken yet."""
        return self.replies.held + buffer_len(&self.replies.out)

    @property
    def query_bytes(self):
        """Input bytes that are not carried out yet."""
        return buffer_len(&self.rest)

    @property
    def reads(self):
        """Name of the read policy in force."""
        return READ_POLICIES[self.wanted_policy]

    @property
    def listener_reads(self):
        """... and of the one it began with."""
        return READ_POLICIES[self.settings.reads]

    def set_reads(self, name):
        """Changes the read policy; raises ValueError for an unknown name."""
        self.wanted_policy = READ_POLICIES.index(name)
        self.policy = READS_PRIMARY if self.route >= OWN_FIRST else self.wanted_policy

    def set_proto(self, int proto):
        """Commands from now on go to backends of this protocol, 2 or 3. Before it, what was under way is answered."""
        self.proto = proto
        self.connect_anew()

    @property
    def db(self):
        """SELECT n. Before it is changed, what was under way is answered."""
        return self.own_db

    @db.setter
    def db(self, int number):
        if number != self.own_db:
            self.own_db = number
            self.connect_anew()

    @property
    def subscriptions(self):
        """(channels, patterns, shard channels) it is subscribed to."""
        subscriber = self.subscriber
        return (0, 0, 0) if subscriber is None else subscriber.counts

    def set_reply(self, str mode):
        """CLIENT REPLY: "on", "off" or "skip", which is for the command after the present one."""
        if mode == "on":
            self.replies.muted = 0
        elif mode == "off":
            self.replies.muted |= MUTE_OFF
        elif mode != "skip":
            raise ValueError(mode)
        elif not self.replies.muted & MUTE_OFF:
            self.replies.muted |= MUTE_NEXT

    cdef void carried_out(self) noexcept:
        """A command has been: what CLIENT REPLY SKIP said is for the next one, and what CLIENT CACHING said is over,
        unless it was of CLIENT itself, or a transaction has begun (as in Redis, resetClient)."""
        self.replies.next_command()
        if self.caching and self.transaction is None and not self.last_command.startswith("client"):
            self.caching = 0
        if not self.caching:
            self.replies.muted &= ~TELL_NEXT

    @property
    def name(self):
        return self.own_name

    @name.setter
    def name(self, bytes text not None):
        self.own_name = text
        self.count_texts()

    @property
    def lib_name(self):
        return self.own_lib_name

    @lib_name.setter
    def lib_name(self, bytes text not None):
        self.own_lib_name = text
        self.count_texts()

    @property
    def lib_ver(self):
        return self.own_lib_ver

    @lib_ver.setter
    def lib_ver(self, bytes text not None):
        self.own_lib_ver = text
        self.count_texts()

    cdef void count_texts(self) noexcept:
        """They have changed, or the client is closed."""
        cdef size_t now = len(self.own_name) + len(self.own_lib_name) + len(self.own_lib_ver) if self.fd >= 0 else 0
        self.reactor.memory += <ssize_t> now - <ssize_t> self.texts
        self.texts = now

    # -- CLIENT TRACKING -----------------------------------------------------------------------------------------

    def track(self, Tracking tracking):
        """Changes what is tracked (None: nothing); whether there is room for it. Nothing may be under way.

        What was cached before is invalidated. Its own connections are made when they are used, or for
        Tracking.primaries().
        """
        cdef bint before = self.tracking is not None
        self.untrack()
        if tracking is None:
            return True
        self.tracking = tracking
        self.path.tracking.add(self)
        if not self.own_connections():
            self.untrack()
            return False
        if before:
            tracking.flush(PUSH_BEHIND)
        return True

    @property
    def cached(self):
        """CLIENT CACHING was said, and holds for the next command, or transaction."""
        return self.caching != 0

    @cached.setter
    def cached(self, bint said):
        self.caching = REQ_CACHING if said else 0
        if said:
            self.replies.muted |= TELL_NEXT

    cdef bint own_connections(self):
        """For what it tracks, in its protocol and database: RESP2 has no pushes, so there is nobody to tell."""
        if self.proto == 3:
            if not self.path.leases.room_for_tracking() or not self.tracking.begin(
                self.path.exchange.router, self.replies, self.own_db
            ):
                return False
            self.route = <uint16_t> self.tracking.number
            self.policy = READS_PRIMARY
        return True

    cdef void connect_anew(self):
        """Its protocol or database is another one."""
        self.route = <uint16_t> self.own_db
        if self.tracking is None:
            return
        self.give_lease_back()                  # what it watched on one of them counts as changed
        self.tracking.end()
        self.policy = self.wanted_policy
        if not self.own_connections():
            self.shut(CLOSE_ERROR)              # it would wait for invalidations in vain
        elif self.proto == 3:
            self.tracking.flush(PUSH_BEHIND)

    cdef void untrack(self) noexcept:
        """Tracks nothing any more, also when it has left."""
        cdef Tracking tracking = self.tracking
        if tracking is None:
            return
        self.tracking = None
        self.caching = 0
        self.route = <uint16_t> self.own_db
        self.policy = self.wanted_policy
        self.path.tracking.discard(self)
        if self.lease is not None and self.lease.pool is not None:
            self.lease = None                   # one of those that are closed: its EXEC finds none
        tracking.end()

    # -- a transaction -------------------------------------------------------------------------------------------

    @property
    def multi(self):
        """Commands queued since MULTI; -1 outside of a transaction."""
        return -1 if self.transaction is None else <int> self.transaction.n

    def queue(self, list words not None):
        """Queues a command that the proxy answers itself, its words bytes: whether there was room for it."""
        return self.transaction.add_local(words, self.settings.max_query)

    def spoil(self):
        """A command between MULTI and EXEC was refused: so will EXEC be."""
        self.transaction.spoil()

    cdef void begin_multi(self) noexcept:
        self.transaction = Queued()
        self.transaction.count(&self.reactor.memory)

    cdef void end_multi(self) noexcept:
        if self.transaction is not None:
            self.transaction.drop()
            self.transaction = None

    cdef void leave(self) noexcept:
        """A transaction is over, and with it whatever is watched."""
        self.end_multi()
        self.give_lease_back()

    cdef size_t queued_bytes(self) noexcept:
        """What is held for its transaction."""
        return 0 if self.transaction is None else self.transaction.frames.cap + self.transaction.texts

    # -- a blocking command --------------------------------------------------------------------------------------

    @property
    def blocked(self):
        """Whether it waits for the reply to a blocking command."""
        return self.wait is not None

    def unblock(self, bint error, told not None):
        """CLIENT UNBLOCK; told(whether that ended a blocking command) is called once, within some seconds."""
        if self.wait is None:
            told(False)
        else:
            self.wait.unblock(error, told)

    def evict(self):
        """Ends its blocking command as a node does that loses its role; whether that gives a connection free."""
        if self.wait is None or self.route >= OWN_FIRST:
            return False
        self.wait.part(EVICTED)
        return True

    def dismiss(self):
        """Ends its blocking command, if there is one, and with it a client that is drained: the proxy ends."""
        if self.wait is not None:
            self.wait.part(DRAINED)

    # -- a connection of its own ---------------------------------------------------------------------------------

    def take_lease(self, Node node not None):
        """Gives it a connection of its own to the node; whether there was one to be had."""
        self.give_lease_back()
        if self.route >= OWN_FIRST:             # what is read there is tracked, too
            self.lease = self.path.exchange.router.own_backend(node, self.route)
        else:
            self.lease = self.path.leases.take(node, self.proto, self.own_db)
        return self.lease is not None

    def lease_slot(self, int slot):
        """A connection of its own to the primary of a slot; why there is none: "busy", "uncovered", "unknown"."""
        cdef Router router = self.path.exchange.router
        cdef Node node = router.primary_of(slot)
        if node is None:
            self.path.exchange.redirect.port.stale("uncovered")
            return "uncovered" if router.known else "unknown"
        return "" if self.take_lease(node) else "busy"

    def lease_redirected(self, bytes line not None, int slot):
        """... to the node that a MOVED or ASK of its leased connection names; why not: "busy", "unknown".

        slot: that of the command, of which a MOVED is learnt. A broken node says it of another's.
        """
        cdef Redirection to
        cdef int kind = 0
        cdef Node node = None
        if self.lease is not None:
            node = self.path.exchange.redirect.named(line, self.lease.node, &kind)
        if node is None:
            return "unknown"
        if kind == REDIR_MOVED and parse_redirection(line, len(line), &to) == kind and to.slot == slot:
            self.path.exchange.router.learn(slot, node)
        if not self.take_lease(node):
            return "busy"
        self.asking = kind == REDIR_ASK
        return ""

    def lease_tuned(self):
        """Its connection has been told the client's protocol and database."""
        self.lease.proto = self.proto
        self.lease.db = self.own_db

    def leased_at(self, int slot):
        """Whether its connection still leads to where commands for the slot are carried out."""
        if self.lease is None or self.lease.state == BACKEND_CLOSED:
            return False
        return self.asking or self.path.exchange.router.primary_of(slot) is self.lease.node

    def forfeit(self):
        """Closes its connection; what it watched counts as changed."""
        if self.lease is not None:
            self.lease.close()
            self.lease = None

    def release(self, bint executed=False):
        """Gives its connection back. executed: EXEC has ended there what was watched, else it is told to."""
        if executed:
            self.watching = -1
        self.give_lease_back()

    cdef void give_lease_back(self) noexcept:
        cdef Backend lease = self.lease
        if lease is not None:
            self.lease = None
            self.path.leases.give(lease, self.watching >= 0)
        self.watching = -1
        self.asking = False
