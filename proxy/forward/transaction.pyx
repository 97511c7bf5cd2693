# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""MULTI, EXEC, DISCARD, WATCH, UNWATCH, and what a command means between MULTI and EXEC. Called by dispatch.

Commands are queued here, with the checks that a server makes when it queues them. At EXEC they go out together as one
request on the shared connection, MULTI and EXEC around them, where nothing can come between; its +OK and +QUEUED are
swallowed. A refusal while it was queued (MOVED, TRYAGAIN ...) means that nothing was executed: it is sent again whole.

The first key fixes the slot. Commands without keys ride along; those that the proxy answers itself are answered when
the reply of EXEC is there, in their place (proxy.serve.transaction). Only WATCH needs a connection of the client's own:
then all of EXEC is proxy.serve's business, too.

Barriers: WATCH, and EXEC after it, wait until all that the client has under way is answered, and nothing new is read
before they are.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memcmp

from proxy.commands.lookup cimport (
    CLASS_ANY, CLASS_FORWARD, CLASS_LOCAL, CLASS_PING, CLASS_PUBLISH, CLASS_REFUSED, CLASS_SCRIPT, CLASS_SPLIT_MGET,
    CLASS_SPLIT_MSET, CLASS_SPLIT_SUM, CLASS_TRANSACTION, CMD_BLOCKING, CMD_KNOWN, CMD_NO_MULTI, CMD_READONLY,
)
from proxy.forward.answer cimport ask_serve, refuse
from proxy.forward.buffer cimport buffer_append, buffer_len
from proxy.forward.call cimport CALL_DONE, CALL_NOT_NOW, SLOT_CROSS, SLOT_NO_MEMORY, SLOT_NONE, find_slot
from proxy.forward.counters cimport CLOSE_ERROR
from proxy.forward.hold cimport hold
from proxy.forward.prepare cimport must_wait, new_request
from proxy.forward.queued cimport Queued
from proxy.forward.request cimport OWN_FIRST, REQ_READ, Request
from proxy.forward.router cimport READS_PRIMARY

cdef const char* OK = b"+OK\r\n"
cdef const char* QUEUED = b"+QUEUED\r\n"
cdef const char* EMPTY = b"*0\r\n"
cdef const char* ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
cdef const char* CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
cdef const char* TOO_LONG = b"-ERR the transaction is too long (clients.max_query)\r\n"
cdef const char* EXEC = b"*1\r\n$4\r\nEXEC\r\n"
cdef enum:
    OK_LEN = 5
    QUEUED_LEN = 9
    EMPTY_LEN = 4
    ABORTED_LEN = 62
    CROSSSLOT_LEN = 56
    TOO_LONG_LEN = 54
    EXEC_LEN = 14


cdef inline bint named(const Call* call, const char* name, size_t n) noexcept nogil:
    return call.row.name_len == n and memcmp(call.row.name, name, n) == 0


cdef inline int say(Client client, const Call* call, const char* text, size_t n) noexcept:
    client.replies.say(call.row.metric, text, n)
    return CALL_DONE


# -- outside -----------------------------------------------------------------------------------------------------------

cdef int control(Client client, Call* call) noexcept:
    """One of these commands, outside of a transaction."""
    if named(call, b"multi", 5):
        client.begin_multi()
        return say(client, call, OK, OK_LEN)
    if named(call, b"watch", 5):
        return watch(client, call)
    if named(call, b"unwatch", 7):
        client.give_lease_back()
        return say(client, call, OK, OK_LEN)
    return refuse(client, call, "no_multi")


cdef int watch(Client client, Call* call) noexcept:
    cdef int slot = find_slot(call)
    if slot == SLOT_NO_MEMORY:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if slot == SLOT_CROSS or (client.watching >= 0 and client.watching != slot):
        return say(client, call, CROSSSLOT, CROSSSLOT_LEN)
    if client.replies.inflight or client.path.exchange.full and must_wait(client, call, slot):
        return CALL_NOT_NOW
    return settled(client, ask_serve(client, call, client.path.responder.watch, (slot,)))


cdef inline int settled(Client client, int result) noexcept:
    """Nothing that the client sends next is read before what it has under way now is answered."""
    if client.fd >= 0 and client.replies.inflight:
        client.replies.unsettled = True
    return result


# -- inside ------------------------------------------------------------------------------------------------------------

cdef int inside(Client client, Call* call, bint fits) noexcept:
    """A command of a client that has said MULTI. fits: its number of arguments is right."""
    cdef Queued queued = client.transaction
    cdef uint32_t flags = call.row.flags
    cdef int klass = call.row.klass
    if not flags & CMD_KNOWN:
        return spoil(client, call, "unknown")
    if not fits:
        if not named(call, b"exec", 4):
            return spoil(client, call, "arity")
        client.leave()
        return refuse(client, call, "arity")
    if flags & CMD_NO_MULTI:
        return spoil(client, call, "inside")
    if klass == CLASS_TRANSACTION:
        if named(call, b"exec", 4):
            return execute(client, call)
        if named(call, b"discard", 7):
            client.leave()
            return say(client, call, OK, OK_LEN)
        if named(call, b"multi", 5):
            return refuse(client, call, "nested")
        if named(call, b"watch", 5):
            return refuse(client, call, "watch_inside")
        return queue_local(client, call)                # UNWATCH
    if klass == CLASS_REFUSED:
        return spoil(client, call, "refused")
    if call.row.container and call.argc > 1:
        return spoil(client, call, "subcommand")
    if named(call, b"quit", 4) or named(call, b"reset", 5):
        return ask_serve(client, call, client.path.responder.answer, ())
    if call.row.flags & CMD_BLOCKING or named(call, b"wait", 4):    # (Redis 7.0's WAIT has no flag): they do not block
        return queue_forward(client, call, queued)
    if klass in (
        CLASS_FORWARD, CLASS_SCRIPT, CLASS_ANY, CLASS_PING, CLASS_PUBLISH, CLASS_SPLIT_MGET, CLASS_SPLIT_MSET,
        CLASS_SPLIT_SUM,
    ) or named(call, b"echo", 4) or named(call, b"time", 4) or (
        client.route >= OWN_FIRST and named(call, b"client|caching", 14)
    ):
        return queue_forward(client, call, queued)
    if klass == CLASS_LOCAL:
        return queue_local(client, call)
    return spoil(client, call, "unserved")


cdef int spoil(Client client, Call* call, str why) noexcept:
    """Refused: and so will be EXEC."""
    client.transaction.spoil()
    if why == "unknown" or why == "subcommand":
        return ask_serve(client, call, client.path.responder.unknown, ())
    return refuse(client, call, why)


cdef int queue_forward(Client client, Call* call, Queued queued) noexcept:
    """A command that goes to a server, in the slot of the others."""
    cdef int slot = SLOT_NONE if call.row.klass == CLASS_ANY else find_slot(call)
    if slot == SLOT_NO_MEMORY:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if slot == SLOT_CROSS or (slot >= 0 and (
        (queued.slot >= 0 and queued.slot != slot) or (client.watching >= 0 and client.watching != slot)
    )):
        queued.spoil()
        return say(client, call, CROSSSLOT, CROSSSLOT_LEN)
    if queued.spoiled:
        queued.n += 1                       # it is not going to be executed, but was queued for the client
        return say(client, call, QUEUED, QUEUED_LEN)
    if buffer_len(&queued.frames) + queued.texts + call.n > client.settings.max_query:
        queued.spoil()
        return say(client, call, TOO_LONG, TOO_LONG_LEN)
    if not queued.add(call.frame, call.n):
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if slot >= 0:
        queued.slot = slot
    if not call.row.flags & CMD_READONLY and call.row.klass != CLASS_PING:
        queued.reads = False
    return say(client, call, QUEUED, QUEUED_LEN)


cdef int queue_local(Client client, Call* call) noexcept:
    """A command that the proxy answers itself, if that can be done in the middle of a transaction."""
    return ask_serve(client, call, client.path.responder.queue, ())


cdef int execute(Client client, Call* call) noexcept:
    cdef Queued queued = client.transaction
    cdef int result, slot = client.watching if client.watching >= 0 else queued.slot
    cdef bytes frame
    if queued.spoiled:
        client.leave()
        return say(client, call, ABORTED, ABORTED_LEN)
    if client.path.paused and not queued.reads:
        return hold(client)
    if client.lease is None and client.watching < 0 and not queued.local:
        if queued.sent == 0:
            client.end_multi()
            return say(client, call, EMPTY, EMPTY_LEN)
        return send(client, call, queued)
    if client.replies.inflight or client.path.exchange.full and slot >= 0 and must_wait(client, call, slot):
        return CALL_NOT_NOW
    frame = queued.frames.data[queued.frames.start:queued.frames.end] + EXEC[:EXEC_LEN] if queued.sent else b""
    result = ask_serve(
        client, call, client.path.responder.execute,
        (queued.slot, frame, queued.sent + 1, queued.local, queued.reads),
    )
    if result != CALL_DONE:
        return result
    if client.transaction is queued:
        client.end_multi()
    return settled(client, result)


cdef int send(Client client, Call* call, Queued queued) noexcept:
    """All of it as one request on the shared connection."""
    cdef Request* r
    call.slot = queued.slot
    if client.path.exchange.full and must_wait(client, call, call.slot):
        return CALL_NOT_NOW
    if not buffer_append(&queued.frames, EXEC, EXEC_LEN):
        client.close(CLOSE_ERROR)
        return CALL_DONE
    call.n = buffer_len(&queued.frames)
    r = new_request(client, call)
    if r == NULL:
        return CALL_DONE
    r.own_swallow = queued.sent + 1
    r.policy = READS_PRIMARY
    if queued.reads:
        r.flags |= REQ_READ
    client.transaction = None
    client.path.exchange.submit(r, queued.frames.data + queued.frames.start, call.n)
    queued.drop()
    if queued.slot < 0:
        client.served_by = client.path.exchange.router.served_by
    return CALL_DONE
