# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Commands that block the connection on which they are sent: how they begin. Called by dispatch; see blocked."""
from libc.stdint cimport int64_t

from proxy.commands.lookup cimport CMD_KEYLESS
from proxy.forward.blocked cimport Blocking
from proxy.forward.call cimport CALL_DONE, CALL_NOT_NOW, SLOT_CROSS, SLOT_NO_MEMORY, find_slot
from proxy.forward.counters cimport CLOSE_ERROR
from proxy.forward.datapath cimport DataPath
from proxy.forward.leg cimport Leg
from proxy.forward.ports cimport LEFT
from proxy.forward.prepare cimport new_request
from proxy.forward.replicated cimport shards_written
from proxy.forward.request cimport STATE_GATHERING, Request, request_keep, request_move
from proxy.forward.timeout cimport Timeout

from proxy.forward.replicated import COVER

cdef enum:
    COST = 16                   # units of a turn
    CROSSSLOT_LEN = 56

cdef const char* CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"


cdef int block(Client client, Call* call) noexcept:
    """Carries out a blocking command."""
    cdef int slot = find_slot(call)
    if slot == SLOT_CROSS:
        client.replies.say(call.row.metric, CROSSSLOT, CROSSSLOT_LEN)
        return CALL_DONE
    if slot == SLOT_NO_MEMORY:
        client.close(CLOSE_ERROR)
        return CALL_DONE
    if client.replies.inflight:
        return CALL_NOT_NOW
    client.budget -= COST
    begin(client, call)
    return CALL_DONE


cdef void begin(Client client, Call* call) noexcept:
    cdef Blocking b
    cdef Leg leg
    cdef list nodes
    cdef Request* parent = new_request(client, call)
    if parent == NULL:
        return
    if not request_keep(parent, call.frame, call.n):
        client.path.exchange.fail(parent, client.path.exchange.text_memory)
        return
    request_move(parent, STATE_GATHERING)
    b = Blocking.__new__(Blocking)
    b.client = client
    b.replies = client.replies
    b.parent = parent
    b.slot = call.slot
    b.for_replicas = call.row.flags & CMD_KEYLESS != 0
    b.askers = []
    b.timeout = Timeout.__new__(Timeout)
    b.timeout.find(call, client.reactor.now)
    nodes = [None]
    if b.for_replicas:
        nodes = shards_written(client.path.exchange.router, client.replies.account.wrote)
        b.cover = COVER if client.replies.account.wrote else b""
    b.legs = []
    for node in nodes:
        leg = Leg.__new__(Leg)
        leg.owner = b
        leg.node = node
        b.legs.append(leg)
    parent.gather = <void*> b
    client.wait = b
    client.replies.unsettled = True
    client.path.counts.blocked += 1
    if not nodes:
        b.fail(client.path.exchange.text_uncovered if client.path.exchange.router.known
               else client.path.exchange.text_unknown)
    for leg in b.legs:
        if b.parent != NULL:
            leg.go()
    if b.parent != NULL and (client.half_closed or client.eof and not client.draining):
        b.left_early = True                 # what is there for it now it gets, as from Redis
        b.part(LEFT)


def look(DataPath path not None, double patience_s=3.0):
    """Ends the waits whose node lost its role so long ago and does not say so itself; to be called regularly.

    One that is alive tells those whom it blocks within a second.
    """
    cdef Client client
    cdef Blocking b
    cdef Leg leg
    if path.counts.blocked <= 0:
        return
    path.reactor.tick()
    for client in list(path.clients):
        if client.wait is not None:
            b = <Blocking> client.wait
            for leg in b.legs:
                leg.look(path.reactor.now, <int64_t> (patience_s * 1e9))
