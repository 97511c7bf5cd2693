# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A blocking command under way: BLPOP and its kin, XREAD with BLOCK, WAIT. Made by blocking.

Each takes a leased connection (WAIT one for each primary that its client wrote to) and gives it back when it is
answered. It is a barrier: it begins when all that its client has under way is answered, and nothing of the client is
carried out before it is answered itself. A client has at most one (ClientInfo.wait).

    Blocking   the command: its place in the client's order (the parent request), its bytes and its timeout
    Leg        one connection that it is sent on: the sink of the request there (see leg)

States of a Leg: between attempts (timer set) -> under way (r set) -> answered. What was not executed (a redirection, a
refusal, a connection that could not be made) is tried again with the time that is left of the command's own timeout,
for as long as other commands are tried. What was sent and lost may have been executed: it is never sent again, and
answered as a node does that loses its role, because clients know that line and try again.

It has no deadline but its own timeout, and some seconds should its node hang. Before its time it is ended (part) for a
client that ends its input, which is closed at once, as Redis closes it; for one that is killed; at the end of a drain;
or to make room. What its node has popped for it by then it still gets: CLIENT UNBLOCK, sent on a shared connection,
says whether that is so. But for the first, its node has a second for that: then the connection is closed, and so it is
when the client is gone. A connection is given back only when no CLIENT UNBLOCK for it is under way: that would end the
wait of whoever has it next.
"""
cimport cython
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.backend cimport BACKEND_UP
from proxy.forward.counters cimport CLOSE_CLIENT, CLOSE_KILLED, CLOSE_SHUTDOWN
from proxy.forward.leg cimport Leg
from proxy.forward.ports cimport DRAINED, KILLED, LEFT
from proxy.forward.replicated cimport fewest
from proxy.forward.request cimport REQ_STREAMING, Request, request_free

from proxy.forward.question import ask_node
from proxy.resp import errors
from proxy.resp.encode import encode_command, null_array

cdef enum:
    ANSWER_MOST = 4096          # bytes of the reply to CLIENT UNBLOCK

cdef bytes UNBLOCKED = errors.UNBLOCKED
cdef bytes CHANGED = errors.UNBLOCKED_CHANGED

cdef int64_t PATIENCE_NS = 2_000_000_000        # CLIENT UNBLOCK is tried again so long: its node may have yet to read
cdef int64_t QUESTION_NS = 1_000_000_000        # ... and each may take so long
cdef int64_t PARTING_NS = 1_000_000_000         # one that is to be over is over then, whatever its node says


cdef list to_end(Blocking b):
    """Its legs that are not ended; for a pause only those that are still to be, at the node where they were then."""
    return [
        leg for leg in b.legs if (<Leg> leg).reply is None and not (<Leg> leg).ended
        and (not b.suspending or (<Leg> leg).suspended and (<Leg> leg).r != NULL)
    ]


@cython.final
cdef class Blocking(Command):
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

    cdef bint begun(self) noexcept:
        """Whether a part of its reply has reached its client: no other answer is possible any more."""
        cdef Leg leg
        for leg in self.legs:
            if leg.r != NULL and leg.r.flags & REQ_STREAMING:
                return True
        return False

    cdef void fail(self, bytes text) noexcept:
        if self.parent == NULL:
            return
        if self.begun():
            self.replies.cut()
        else:
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

    cdef void lose(self) noexcept:
        if self.parting == KILLED:
            self.client.close(CLOSE_KILLED)
        elif self.parting == LEFT:
            self.client.close(CLOSE_CLIENT)
        elif self.parting == DRAINED and not self.begun():
            self.client.end(CLOSE_SHUTDOWN)     # no error, which an application may die of: as a server that shuts down
            self.finish(b"", 0, False)
        else:
            self.fail(CHANGED)

    cdef void part(self, int why) noexcept:
        cdef Leg leg
        if self.parent == NULL or why <= self.parting:
            return
        self.parting = why
        self.keep_on()
        if why == KILLED:
            self.client.end(CLOSE_KILLED)
        for leg in self.legs:
            if leg.r != NULL and leg.lease.state == BACKEND_UP or leg.reply is not None or (
                self.left_early and why == LEFT
            ):
                continue
            self.end_here()                     # not sent yet: it must not pop anything now
            return
        if why != LEFT:
            self.client.reactor.tick()
            self.parted_ns = self.client.reactor.now
            self.part_now()
        self.unblock(True, None)

    def part_now(self):
        """The timer's: whatever its node has to say comes too late, and so does a client that takes what was popped."""
        cdef int64_t left
        if self.client.fd < 0 or self.parent == NULL and self.parting != KILLED:
            return
        self.client.reactor.tick()
        left = self.parted_ns + PARTING_NS - self.client.reactor.now
        if left > 0:
            self.client.reactor.loop.call_later(left / 1e9, self.part_now)
        elif self.parting == KILLED:
            self.client.close(CLOSE_KILLED)
        else:
            self.end_here()

    cdef void unblock(self, bint error, object told) noexcept:
        if told is not None:
            self.askers.append(told)
            if self.keep_on():              # whoever wants its end is not to get a pause of it
                self.with_error = error
                self.lapses = not error     # its node has been told to end it with an error, and is going to
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
        asked = to_end(self)
        for leg in asked:
            if leg.held and leg.r == NULL:
                self.end_here()             # its node is paused, and knows nothing of it
                return
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
                done=leg.told, raised=self.client.path.responder.raised, through=True,
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
        for leg in to_end(self):
            if leg.held and leg.r == NULL:
                self.end_here()             # ended for a pause, and somebody has asked for its end since
            else:
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
        cdef bytes text
        if self.keep_on():
            self.tell(False)                # it goes on at its node, pause or not
            return
        if self.parting:
            self.lose()
        elif self.begun():
            self.tell(False)                # it waits no more: the rest of its reply is on its way
            return
        else:
            text = UNBLOCKED if self.with_error else self.nothing()
            self.finish(text, len(text), self.with_error)
        self.tell(True)

    cdef bytes nothing(self):
        """The reply when its time is over."""
        if not self.for_replicas:
            return null_array(self.client.proto)
        return b":0\r\n" if b"AOF" not in self.parent.own[:self.parent.len].upper() else b"*2\r\n:0\r\n:0\r\n"

    cdef void elapsed(self) noexcept:
        cdef bytes text = self.nothing()
        self.finish(text, len(text), False)

    # -- its node is to be paused ----------------------------------------------------------------------------------

    cdef void suspend(self, Node node) noexcept:
        """Has it ended at this node, where nothing has been popped for it; its legs hold it until the pause is over.

        Whatever cannot be ended goes on as it is.
        """
        cdef Leg leg
        cdef bint there = False
        if self.parent == NULL or self.parting or self.unblocking:
            return
        for leg in self.legs:
            there = there or leg.r != NULL and leg.lease is not None and leg.lease.node is node
        if not there:
            return
        for leg in self.legs:
            leg.suspended = leg.r != NULL
        self.suspending = True
        self.unblock(True, None)

    cdef bint keep_on(self) noexcept:
        """It is not to be begun again after all; whether it was to be."""
        cdef Leg leg
        cdef bint was = self.suspending
        self.suspending = False
        if was:
            for leg in self.legs:
                leg.suspended = False
        return was

    cdef void tell(self, bint hit) noexcept:
        """Whoever has asked for its end."""
        cdef list askers = self.askers
        self.askers = []
        self.unblocking = self.suspending = False
        for told in askers:
            try:
                told(bool(hit))
            except Exception as error:
                self.client.path.responder.raised("unblock", error)
