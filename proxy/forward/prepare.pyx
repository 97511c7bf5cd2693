# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests made of calls: numbered, with a place in their client's order, and aimed. Called by dispatch and ask."""
from proxy.commands.lookup cimport CMD_READONLY, CMD_SCRIPT
from proxy.forward.counters cimport CLOSE_ERROR
from proxy.forward.exchange cimport WAITS_FOR_RESUME, WAITS_FOR_ROOM, WAITS_NOT
from proxy.forward.request cimport (
    REQ_READ, REQ_SCRIPT, TARGET_ANY, TARGET_SLOT, request_init, request_new,
)
from proxy.forward.router cimport READS_PRIMARY


cdef Request* new_request(Client client, const Call* call) noexcept:
    """A request for a call at the end of its client's order; NULL (and the client closed) when there is no memory."""
    cdef Request* r = request_new()
    if r == NULL:
        client.close(CLOSE_ERROR)
        return NULL
    client.path.commands += 1
    r.number = client.path.commands
    aim(r, client, call, call.slot)
    r.sink = <void*> client.replies
    r.account = &client.replies.account
    r.start_ns = client.reactor.now
    r.deadline_ns = r.start_ns + client.settings.timeout_ns
    r.command = call.row.metric
    r.len = call.n
    client.replies.append(r)
    return r


cdef void aim(Request* r, Client client, const Call* call, int slot) noexcept:
    """Sets what decides where a request goes. slot: -1 = to any primary."""
    r.affinity = client.affinity
    r.flags = (REQ_READ if call.row.flags & CMD_READONLY else 0) | (REQ_SCRIPT if call.row.flags & CMD_SCRIPT else 0)
    r.flags |= client.caching
    r.policy = client.policy if client.watching < 0 else READS_PRIMARY      # a replica would not have what is watched
    r.proto = client.proto
    r.db = client.route
    r.slot = <short> slot
    r.target = TARGET_SLOT if slot >= 0 else TARGET_ANY
    r.node = client.served_by


cdef bint must_wait(Client client, const Call* call, int slot) noexcept:
    """Some connection's window is full, or a node paused: whether this command, or a part of it, would go there.

    Then the client is told when there is room again, or goes on when the node does.
    """
    cdef Request probe
    cdef int what
    request_init(&probe)
    aim(&probe, client, call, slot)
    what = client.path.exchange.must_wait(&probe)
    if what == WAITS_FOR_ROOM:
        client.wait_for_room()
    elif what == WAITS_FOR_RESUME:
        gate(client)
    return what != WAITS_NOT


cdef void gate(Client client) noexcept:
    """Its next command is for a node that is paused: it stays in the client's input. See proxy.forward.gate."""
    client.held_back = client.waits_for_room = True
    client.path.gated[client] = None
