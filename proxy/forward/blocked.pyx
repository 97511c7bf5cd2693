# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A blocking command under way: BLPOP and its kin, XREAD with BLOCK, WAIT. Made by blocking.

Each takes a leased connection (WAIT one for each primary that its client wrote to) and gives it back when it is
answered. It is a barrier: it begins when all that its client has under way is answered, and nothing of the client is
carried out before it is answered itself. A client has at most one (ClientInfo.wait).

    Blocking   the command: its place in the client's order (the parent request), its bytes and its timeout
    Leg        one connection that it is sent on: the sink of the request there

States of a Leg: between attempts (timer set) -> under way (r set) -> answered. What was not executed (a redirection, a
refusal, a connection that could not be made) is tried again with the time that is left of the command's own timeout,
for as long as other commands are tried. What was sent and lost may have been executed: it is never sent again, and
answered as a node does that loses its role, because clients know that line and try again.

It has no deadline but its own timeout, and some seconds should its node hang. A client that ends its input is closed at
once, as Redis closes it; what its node has popped for it by then it still gets: CLIENT UNBLOCK, sent on a shared
connection, says whether that is so. A client that is closed takes the connection with it. A connection is given back
only when no CLIENT UNBLOCK for it is under way: that would end the wait of whoever has it next.
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
from proxy.forward.backend cimport BACKEND_UP
from proxy.forward.call cimport SLOT_NONE
from proxy.forward.counters cimport CLOSE_CLIENT
from proxy.forward.exchange cimport Exchange
from proxy.forward.node cimport Pool
from proxy.forward.pipeline cimport ENQUEUED
from proxy.forward.replicated cimport COVER_REPLIES, fewest
from proxy.forward.request cimport (
    REQ_READ, REQ_STREAMING, REQ_SWALLOWED, STATE_ANSWERED, TARGET_LEASE, request_disown, request_free, request_move,
    request_new,
)
from proxy.forward.router cimport Router

from proxy.forward.question import ask_node
from proxy.resp import errors
from proxy.resp.encode import encode_command, null_array

cdef enum:
    ASKING_LEN = 16
    ANSWER_MOST = 4096          # bytes of the reply to CLIENT UNBLOCK

cdef const char* ASKING = b"*1\r\n$6\r\nASKING\r\n"
cdef bytes UNBLOCKED = errors.UNBLOCKED
cdef bytes CHANGED = errors.UNBLOCKED_CHANGED
cdef bytes NO_LEASE = errors.NO_LEASE

cdef int64_t PATIENCE_NS = 2_000_000_000        # CLIENT UNBLOCK is tried again so long: its node may have yet to read
cdef int64_t QUESTION_NS = 1_000_000_000        # ... and each may take so long
cdef int64_t BLOCKED_NS = 1_000_000_000         # trouble after so long a wait is new trouble


# -- one connection ----------------------------------------------------------------------------------------------------

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
        cdef Blocking b = self.owner
        cdef Client client = b.client
        cdef Exchange exchange = client.path.exchange
        cdef Pool pool
        cdef Node node = self.target()
        if b.parent == NULL:
            return
        if node is None:
            self.again(exchange.text_down)
            return
        pool = node.pool(client.proto, client.db)
        if pool.down_since_ns and client.reactor.now - pool.down_since_ns > exchange.router.failover_ns:
            b.fail(exchange.text_down)
            return
        if self.lease is not None:          # something is still asked about it
            self.lease.close()
        self.lease = client.path.leases.take(node, client.proto, client.db)
        if self.lease is None:
            b.fail(NO_LEASE)
        elif not self.send(self.lease):
            b.fail(exchange.text_memory)

    cdef Node target(self):
        """The node to ask. None: there is none for now, or the command has been answered."""
        cdef Blocking b = self.owner
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

    cdef bint send(self, Backend lease) noexcept:
        cdef Blocking b = self.owner
        cdef Client client = b.client
        cdef Request* r
        cdef bytes made = b.timeout.left(b.parent, client.reactor.now) if b.sent else None
        cdef const char* p = b.parent.own
        cdef size_t n = b.parent.len
        cdef int result
        r = request_new()
        if r == NULL:
            return False
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
        b.sent = True
        lease.patient = True
        lease.demand()
        if self.asking:
            result = lease.enqueue_behind(r, ASKING, ASKING_LEN, 1, p, n)
        else:
            result = lease.enqueue(r, p, n)
        if result != ENQUEUED:
            request_free(r)
            return False
        self.r = r
        Py_INCREF(self)
        return True

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        cdef Blocking b = self.owner
        if not final:
            if b.parent != NULL and not b.for_replicas:
                r.flags |= REQ_STREAMING
                b.replies.deliver(b.parent, p, n, False, False)     # may close the client
            return
        request_move(r, STATE_ANSWERED)
        self.r = NULL
        if b.parent != NULL:
            self.answered(r, p, n, error)
        else:
            self.release()
        request_free(r)
        Py_DECREF(self)

    cdef void answered(self, Request* r, const char* p, size_t n, bint error) noexcept:
        """Its reply, or what became of it; p is good until this returns."""
        cdef Blocking b = self.owner
        cdef Exchange exchange = b.client.path.exchange
        if r.flags & REQ_STREAMING:
            b.leg_answered(self, p, n, error)
            return
        if error and p == <const char*> exchange.text_gone:
            self.release()
            self.again(exchange.text_down)
            return
        if error and p == <const char*> exchange.text_lost:
            b.fail(CHANGED)
            return
        if error and b.left and n == <size_t> len(UNBLOCKED) and memcmp(p, <const char*> UNBLOCKED, n) == 0:
            self.release()
            b.client.close(CLOSE_CLIENT)
            return
        if r.flags & REQ_SWALLOWED and r.fault != NULL and not error and r.fault[:12] != b"-ERR unknown":
            b.finish(r.fault, r.fault_len, True)        # it could not be covered, so the count says nothing
            return
        if error and self.redirected(r, p, n):
            return
        b.leg_answered(self, p, n, error)

    cdef bint redirected(self, Request* r, const char* p, size_t n) noexcept:
        """Whether an error line sends it on its way again."""
        cdef Blocking b = self.owner
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
                self.again(line)
            else:
                self.asking = kind == REDIR_ASK
                if not self.asking:
                    self.node = None        # it has been learnt
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
        cdef Blocking b = self.owner
        cdef Exchange exchange
        cdef int64_t delay, now
        if b.parent == NULL:
            return
        exchange = b.client.path.exchange
        now = b.client.reactor.now
        if self.trouble_ns == 0:
            self.trouble_ns = now
        if now - self.trouble_ns >= b.client.settings.timeout_ns:
            b.fail(fault)
            return
        delay = exchange.parking.backoff_min_ns << min(self.attempts, <uint32_t> 16)
        self.attempts += 1
        self.timer = b.client.reactor.loop.call_later(
            min(delay, exchange.parking.backoff_max_ns) / 1e9, self.retry)

    cdef void release(self) noexcept:
        """Gives its connection back, as soon as nothing is asked about it."""
        cdef Backend lease = self.lease
        if lease is not None and not self.questions:
            self.lease = None
            lease.patient = False
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
        cdef Blocking b = self.owner
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
            b.fail(CHANGED)

    def told(self, reply):
        """What the node has answered to CLIENT UNBLOCK; None or an error when it has not."""
        self.questions -= 1
        if reply == b":1\r\n":
            self.ended = self.owner.hit = True
        elif reply != b":0\r\n":
            self.owner.failed = True
            if self.r == NULL and self.lease is not None:
                self.lease.close()          # it may still come to it
        if self.r == NULL:
            self.release()
        self.owner.heard(reply)

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


# -- the command -------------------------------------------------------------------------------------------------------

@cython.final
cdef class Blocking(Wait):
    """See the module."""

    # -- answered ------------------------------------------------------------------------------------------------

    cdef void leg_answered(self, Leg leg, const char* p, size_t n, bint error) noexcept:
        cdef Leg other
        if not self.for_replicas or error:
            self.finish(p, n, error)
            return
        leg.reply = p[:n]
        leg.release()
        for other in self.legs:
            if other.reply is None:
                return
        self.combine()

    cdef void combine(self) noexcept:
        """Of WAIT: the fewest replicas of any shard."""
        cdef Leg leg
        cdef bytes made = fewest([leg.reply for leg in self.legs])
        self.finish(made, len(made), made[:1] == b"-")

    cdef void fail(self, bytes text) noexcept:
        if self.parent != NULL:
            self.finish(text, len(text), True)

    cdef void finish(self, const char* p, size_t n, bint error) noexcept:
        """Its client gets the reply; what is under way is ended."""
        cdef Request* parent = self.parent
        cdef list legs = self.legs
        cdef Leg leg
        self.end()
        parent.gather = NULL
        self.replies.deliver(parent, p, n, True, error)     # before connections are closed: p may stand there
        for leg in legs:
            leg.abandon()

    cdef void end(self) noexcept:
        self.parent = NULL
        self.legs = []
        self.client.wait = None
        self.client.path.counts.blocked -= 1

    cdef void forsake(self) noexcept:
        """The client is closed."""
        cdef list legs = self.legs
        cdef Leg leg
        request_free(self.parent)
        self.end()
        for leg in legs:
            leg.abandon()

    # -- ended before its time -----------------------------------------------------------------------------------

    cdef void evict(self) noexcept:
        self.fail(CHANGED)

    cdef void leave(self) noexcept:
        cdef Leg leg
        if self.left or self.parent == NULL:
            return
        self.left = True
        for leg in self.legs:
            if leg.r != NULL and leg.lease.state == BACKEND_UP or leg.reply is not None or self.left_early:
                continue
            self.client.close(CLOSE_CLIENT)     # not sent yet: it must not pop anything now
            return
        self.unblock(True, None)

    cdef void unblock(self, bint error, object told) noexcept:
        if told is not None:
            self.askers.append(told)
        if self.unblocking:
            return                          # what is answered to that is answered to this
        self.unblocking = True
        self.with_error = error
        self.asked_ns = self.client.reactor.now
        self.tries = 0
        self.hit = False
        self.ask()

    def ask(self):
        """Asks the nodes of those legs that are not ended; also the timer's."""
        cdef Leg leg
        cdef list asked
        if self.parent == NULL:
            self.tell(self.hit)
            return
        self.client.reactor.tick()
        asked = [leg for leg in self.legs if (<Leg> leg).reply is None and not (<Leg> leg).ended]
        for leg in asked:
            if leg.r == NULL or leg.lease.state != BACKEND_UP:
                self.ask_again()            # it is not there yet
                return
            if leg.lease.client_id <= 0:
                self.end_here()             # the node does not tell what it would be called by
                return
        self.failed = False
        self.questions = <uint32_t> len(asked) + 1
        for leg in asked:
            leg.questions += 1
            frame = encode_command(
                "CLIENT", "UNBLOCK", str(leg.lease.client_id), "ERROR" if self.with_error else "TIMEOUT")
            ask_node(
                self.client.path.exchange, leg.lease.node, frame, proto=2, timeout_ns=QUESTION_NS, most=ANSWER_MOST,
                done=leg.told, raised=self.client.path.responder.raised,
            )
        self.heard(b"")                     # not before all are asked

    cdef void heard(self, bytes reply) noexcept:
        cdef Leg leg
        self.questions -= 1
        if self.questions:
            return
        if self.parent == NULL:
            self.tell(self.hit)
            return
        if self.failed:
            self.end_here()
            return
        for leg in self.legs:
            if leg.reply is None and not leg.ended:
                self.ask_again()            # the node has yet to read the command, or its answer is on its way
                return
        self.tell(True)                     # what the node says on the connection itself is on its way: see answered

    cdef void ask_again(self) noexcept:
        if self.client.reactor.now - self.asked_ns > PATIENCE_NS:
            self.end_here()
            return
        self.client.reactor.loop.call_later(min(0.001 * (1 << min(self.tries, <uint32_t> 6)), 0.05), self.ask)
        self.tries += 1

    cdef void end_here(self) noexcept:
        """Its node does not end it: it is ended by closing the connection."""
        cdef bytes text = UNBLOCKED
        if self.left:
            self.client.close(CLOSE_CLIENT)
        else:
            if not self.with_error:
                text = null_array(self.client.proto)
                if self.for_replicas:
                    text = b":0\r\n" if b"AOF" not in self.parent.own[:self.parent.len].upper() else (
                        b"*2\r\n:0\r\n:0\r\n")
            self.finish(text, len(text), self.with_error)
        self.tell(True)

    cdef void tell(self, bint hit) noexcept:
        """Whoever has asked for its end."""
        cdef list askers = self.askers
        self.askers = []
        self.unblocking = False
        for told in askers:
            try:
                told(bool(hit))
            except Exception as error:
                self.client.path.responder.raised("unblock", error)
