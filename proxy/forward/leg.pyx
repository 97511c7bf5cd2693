# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One connection that a blocking command is sent on: taken, lost, given back. Made by blocking; see blocked.

A client that tracks keys has it sent on its own connection to the node, which then knows what it has read.
"""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.string cimport memcmp

from proxy.cluster.redirection cimport (
    REDIR_ASK, REDIR_CLUSTERDOWN, REDIR_MOVED, REDIR_NONE, REDIR_NOSCRIPT, REDIR_READONLY, Redirection,
    parse_redirection,
)
from proxy.cluster.slot_table cimport NO_SHARD
from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED
from proxy.forward.call cimport SLOT_NONE
from proxy.forward.counters cimport (
    REFUSED_DOWN, REFUSED_LATE, REFUSED_PIPELINE, RETRY_CLUSTERDOWN, RETRY_DOWN,
)
from proxy.forward.exchange cimport Exchange
from proxy.forward.node cimport Pool
from proxy.forward.pipeline cimport ENQUEUED, NO_MEMORY, WINDOW_FULL
from proxy.forward.ports cimport EVICTED
from proxy.forward.replicated cimport COVER_REPLIES
from proxy.forward.request cimport (
    OWN_FIRST, REQ_CACHING, REQ_READ, REQ_STREAMING, REQ_SWALLOWED, STATE_ANSWERED, TARGET_LEASE, request_disown,
    request_free, request_move, request_new,
)
from proxy.forward.router cimport Router

from proxy.resp import errors

cdef enum:
    ASKING_LEN = 16

cdef const char* ASKING = b"*1\r\n$6\r\nASKING\r\n"
cdef bytes UNBLOCKED = errors.UNBLOCKED
cdef bytes CHANGED = errors.UNBLOCKED_CHANGED
cdef bytes NO_LEASE = errors.NO_LEASE
cdef bytes IN_VAIN = errors.REDIRECTED_IN_VAIN

cdef int64_t BLOCKED_NS = 1_000_000_000         # trouble after so long a wait is new trouble
cdef int64_t HELD_NS = 500_000_000              # how often it is looked whether its node is still paused


cdef class Command(Wait):
    """The command as its connections know it: Blocking is the one subclass."""

    cdef void finish(self, const char* p, size_t n, bint error) noexcept:
        pass

    cdef void fail(self, bytes text) noexcept:
        pass

    cdef void lose(self) noexcept:
        pass

    cdef void end_here(self) noexcept:
        pass

    cdef void elapsed(self) noexcept:
        pass

    cdef void leg_answered(self, Leg leg, const char* p, size_t n, bint error) noexcept:
        pass

    cdef void heard(self, bytes reply) noexcept:
        pass


@cython.final
cdef class Leg(Sink):
    """See the module."""

    def retry(self):
        """The timer's."""
        self.timer = None
        if self.owner.parent != NULL:
            self.owner.client.reactor.tick()
            self.go()

    cdef void go(self) noexcept:
        """An attempt: to where the command belongs now."""
        cdef Command b = self.owner
        cdef Client client = b.client
        cdef Exchange exchange = client.path.exchange
        cdef Pool pool
        cdef int64_t down_ns
        cdef Node node = self.target()
        cdef int result
        if b.parent == NULL:
            return
        if b.parting and not b.left_early:
            b.end_here()                        # it is to be over: nothing is popped for it any more
            return
        if node is None:
            self.again(exchange.text_down)
            return
        if node.paused or self.questions:       # (what is answered to those is said of the attempt before)
            self.hold()
            return
        self.held = False
        pool = node.pool(client.proto, client.own_db)
        down_ns = pool.down_since_ns or node.resp2.down_since_ns
        if down_ns and client.reactor.now - down_ns > exchange.router.failover_ns:
            exchange.counts.refusals[REFUSED_DOWN] += 1
            b.fail(exchange.text_down)
            return
        if down_ns:
            self.again(exchange.text_down)      # the shared connections find out when it is back: no storm of leases
            return
        if self.lease is not None:          # something is still asked about it
            self.lease.close()
        if client.route >= OWN_FIRST and not b.for_replicas:    # what is read, or popped, there is tracked
            self.lease = exchange.router.own_backend(node, client.route)
            if self.lease is None or self.lease.state == BACKEND_BACKOFF:
                self.lease = None
                self.again(exchange.text_down)
                return
        else:
            self.lease = client.path.leases.take(node, client.proto, client.own_db)
        if self.lease is None:
            b.fail(NO_LEASE)
            return
        result = self.send(self.lease)
        if result == NO_MEMORY:
            b.fail(exchange.text_memory)
        elif result != ENQUEUED:            # closed as soon as it was wanted, or full
            self.release()
            self.again(exchange.text_down)

    cdef Node target(self):
        """The node to ask. None: there is none for now, or the command has been answered."""
        cdef Command b = self.owner
        cdef Exchange exchange = b.client.path.exchange
        cdef Router router = exchange.router
        cdef Node node = self.node
        if node is not None and (self.asking or node.owner) and not node.gone:
            return node
        if b.for_replicas:
            b.fail(CHANGED)
            return None
        self.asking = False
        self.node = None
        if not router.known:
            exchange.port.stale("unknown")
            b.fail(exchange.text_unknown)
            return None
        if b.slot == SLOT_NONE and router.primaries:        # its keys could not be found: any node says why
            return <Node> router.primaries[b.client.affinity % <uint32_t> len(router.primaries)]
        if b.slot == SLOT_NONE or router.slots.owner[b.slot] == NO_SHARD:
            exchange.port.stale("uncovered")
            b.fail(exchange.text_uncovered)
            return None
        return router.primary_of(b.slot)

    cdef int send(self, Backend lease) noexcept:
        """An EnqueueResult; WINDOW_FULL also when the connection is closed."""
        cdef Command b = self.owner
        cdef Client client = b.client
        cdef Request* r
        cdef bytes made = b.timeout.left(b.parent, client.reactor.now) if b.sent else None
        cdef const char* p = b.parent.own
        cdef size_t n = b.parent.len
        cdef int result
        r = request_new()
        if r == NULL:
            return NO_MEMORY
        if b.for_replicas:
            made = b.cover + (p[:n] if made is None else made)
        if made is not None:
            p = made
            n = len(made)
        r.sink = <void*> self
        r.account = &b.replies.account
        r.number = b.parent.number
        r.start_ns = client.reactor.now
        r.deadline_ns = INT64_MAX
        if b.timeout.timeout_ns > 0:
            r.deadline_ns = max(b.timeout.until_ns, r.start_ns) + client.settings.timeout_ns    # its node hangs
        r.command = b.parent.command
        r.slot = SLOT_NONE
        r.target = TARGET_LEASE
        r.lease = <void*> lease
        r.proto = <unsigned char> lease.proto
        r.db = <unsigned short> lease.db
        if b.for_replicas:
            r.flags = REQ_READ              # may be asked again, and is no write of the client's own
            r.own_swallow = COVER_REPLIES if b.cover else 0
        else:
            r.flags |= b.parent.flags & REQ_CACHING
        self.settled = self.suspended = self.ended = False
        lease.patient = True
        lease.demand()
        if lease.state == BACKEND_CLOSED:
            result = WINDOW_FULL
        elif self.asking:
            result = lease.enqueue_behind(r, ASKING, ASKING_LEN, 1, p, n)
        else:
            result = lease.enqueue(r, p, n)
        if result != ENQUEUED:
            request_free(r)
            return result
        b.sent = True
        self.r = r
        Py_INCREF(self)
        return ENQUEUED

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        cdef Command b = self.owner
        if not final:
            if b.parent != NULL and not b.for_replicas:
                r.flags |= REQ_STREAMING
                b.replies.deliver(b.parent, p, n, False, False)     # may close the client
            return
        request_move(r, STATE_ANSWERED)
        self.r = NULL
        self.ended = False
        if b.parent != NULL:
            self.answered(r, p, n, error)
        else:
            self.release()
        request_free(r)
        Py_DECREF(self)

    cdef void answered(self, Request* r, const char* p, size_t n, bint error) noexcept:
        """Its reply, or what became of it; p is good until this returns."""
        cdef Command b = self.owner
        cdef Exchange exchange = b.client.path.exchange
        if r.flags & REQ_STREAMING:
            b.leg_answered(self, p, n, error)
            return
        if error and p == <const char*> exchange.text_gone:
            self.release()
            self.again(exchange.text_down)
            return
        if error and p == <const char*> exchange.text_lost:
            b.lose()
            return
        if error and n == <size_t> len(UNBLOCKED) and memcmp(p, <const char*> UNBLOCKED, n) == 0:
            self.settled = True                 # what was asked about it has been carried out
            if b.parting:
                self.release()
                b.lose()
                return
            if b.lapses:
                self.release()
                b.elapsed()
                return
            if self.suspended:
                self.suspended = False
                self.release()
                self.go()
                return
        if r.flags & REQ_SWALLOWED and r.fault != NULL and not error and r.fault[:12] != b"-ERR unknown":
            b.finish(r.fault, r.fault_len, True)        # it could not be covered, so the count says nothing
            return
        if error and self.redirected(r, p, n):
            return
        b.leg_answered(self, p, n, error)

    cdef bint redirected(self, Request* r, const char* p, size_t n) noexcept:
        """Whether an error line sends it on its way again."""
        cdef Command b = self.owner
        cdef Exchange exchange = b.client.path.exchange
        cdef Redirection to
        cdef int kind = parse_redirection(p, n, &to)
        cdef Node said = self.lease.node
        cdef bytes line
        if kind == REDIR_NONE or kind == REDIR_NOSCRIPT or b.for_replicas:
            return False
        line = p[:n]
        if b.client.reactor.now - r.sent_ns > BLOCKED_NS:
            self.trouble_ns = self.attempts = 0
        self.asking = False
        self.node = None
        if kind == REDIR_MOVED or kind == REDIR_ASK:
            self.node = exchange.redirect.named(line, said, &kind)
            self.release()
            self.redirections += 1
            if self.node is None or self.redirections > exchange.redirect.max_redirections:
                self.node = None
                self.redirections = 0
                self.again(IN_VAIN)
            else:
                self.asking = kind == REDIR_ASK
                if self.asking:
                    exchange.router.asked(b.parent)
                else:
                    if to.slot == b.slot:   # a broken node says that of another's
                        exchange.router.learn(b.slot, self.node)
                    self.node = None
                if self.trouble_ns == 0:
                    self.trouble_ns = b.client.reactor.now
                self.go()
            return True
        exchange.counts.redirections[kind] += 1
        if kind == REDIR_READONLY or kind == REDIR_CLUSTERDOWN:
            exchange.port.stale("readonly" if kind == REDIR_READONLY else "clusterdown")
        self.release()
        self.redirections = 0
        self.again(line)
        return True

    cdef void again(self, bytes fault) noexcept:
        """Tries again a little later; fault: what its client is told when the time for that is over."""
        cdef Command b = self.owner
        cdef Exchange exchange
        cdef int64_t delay, now
        if b.parent == NULL:
            return
        if b.parting and not b.left_early:
            b.end_here()
            return
        exchange = b.client.path.exchange
        now = b.client.reactor.now
        if self.trouble_ns == 0:
            self.trouble_ns = now
            if not b.replies.account.weary:
                exchange.counts.holds[RETRY_DOWN if fault is exchange.text_down else RETRY_CLUSTERDOWN] += 1
        if b.replies.account.weary or now - self.trouble_ns >= b.client.settings.timeout_ns:
            exchange.counts.refusals[REFUSED_PIPELINE if b.replies.account.weary else REFUSED_LATE] += 1
            b.replies.account.weary = True
            b.fail(fault)
            return
        delay = exchange.parking.backoff_min_ns << min(self.attempts, <uint32_t> 16)
        self.attempts += 1
        self.timer = b.client.reactor.loop.call_later(
            min(delay, exchange.parking.backoff_max_ns) / 1e9, self.retry)

    cdef void hold(self) noexcept:
        """Its node is paused (proxy.forward.gate): it is sent when that is over, with what is left of its own time.

        Or something is asked about the attempt before: it is sent when that is answered (told).
        """
        cdef Command b = self.owner
        cdef int64_t now = b.client.reactor.now, wait = HELD_NS
        self.held = b.sent = True
        if not self.questions:
            self.trouble_ns = self.attempts = 0
        if b.timeout.timeout_ns > 0:
            if now >= b.timeout.until_ns:
                b.elapsed()
                return
            wait = min(wait, b.timeout.until_ns - now)
        self.timer = b.client.reactor.loop.call_later(wait / 1e9, self.retry)

    cdef void release(self) noexcept:
        """Gives its connection back, as soon as nothing is asked about it.

        One of its client's own is used for what comes next at once: it is closed if a CLIENT UNBLOCK may come to that.
        """
        cdef Backend lease = self.lease
        if lease is None or self.questions and lease.pool is None:
            return
        self.lease = None
        lease.patient = False
        if self.questions and not self.settled or self.owner.parting == EVICTED and lease.pool is None:
            lease.close()
        else:
            self.owner.client.path.leases.give(lease, False)

    cdef void abandon(self) noexcept:
        """Nobody waits for it any more. What is under way is ended with its connection."""
        cdef Backend lease = self.lease
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.r == NULL:
            self.release()
        elif lease is not None:
            request_disown(self.r)
            self.lease = None
            lease.close()

    cdef void look(self, int64_t now, int64_t patience_ns) noexcept:
        """See look()."""
        cdef Command b = self.owner
        cdef Node node = None if self.lease is None or self.r == NULL else self.lease.node
        cdef Node wanted
        cdef bint astray = False
        if node is not None:
            astray = node.gone or node.replica
            if not astray and not self.asking:
                wanted = node if b.slot < 0 else b.client.path.exchange.router.primary_of(b.slot)
                astray = not node.owner if b.slot < 0 else wanted is not None and wanted is not node
        if not astray:
            self.astray_ns = 0
        elif self.astray_ns == 0:
            self.astray_ns = now
        elif now - self.astray_ns > patience_ns:
            b.lose()

    def told(self, reply):
        """What the node has answered to CLIENT UNBLOCK; None or an error when it has not."""
        self.questions -= 1
        if reply == b":1\r\n":
            self.ended = self.r != NULL     # else it is over, and perhaps about to be begun again
            self.owner.hit = self.owner.hit or self.ended or self.owner.parent == NULL
        elif reply != b":0\r\n":
            self.owner.failed = True
            if self.r == NULL and self.lease is not None:
                self.lease.close()          # it may still come to it
        if self.r == NULL:
            self.release()
        self.owner.heard(reply)
        if self.held and self.r == NULL and not self.questions and self.timer is not None:
            self.timer.cancel()
            self.retry()

    cdef void cut(self) noexcept:
        """Lost in the middle of a reply that had begun to reach the client."""
        self.r = NULL
        if self.owner.parent != NULL:
            self.owner.replies.cut()
        Py_DECREF(self)

    cdef bint alive(self) noexcept:
        return self.owner.parent != NULL

    cdef void unsettle(self) noexcept:
        pass                                # its client does not go on before it is answered
