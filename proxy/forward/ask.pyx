# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What proxy.serve asks of the servers for one command of a client: frames, where each goes, and how one reply is made.

For commands that are more than a forward and less than frequent: they cost Python objects. The responder answers with
one, dispatch carries it out.
"""
cimport cython
from libc.stdint cimport uint32_t

from proxy.cluster.slot cimport SLOTS
from proxy.forward.backend cimport Backend
from proxy.forward.gather cimport Gather, combine_first, combine_python, gather_begin, gather_new
from proxy.forward.node cimport Node
from proxy.forward.prepare cimport new_request
from proxy.forward.request cimport (
    REQ_READ, TARGET_ANY, TARGET_LEASE, TARGET_NODE, TARGET_SLOT, Request,
)
from proxy.forward.router cimport Router


@cython.final
cdef class Ask:
    """parts: (where, frame, swallow) each; finish: from the list of the parts' replies to the one reply, all bytes.

    where: a slot's number; a Node; a Backend that the client leases; "any" (a primary), "primaries", "nodes" (a part
    for each). frame: whole commands; swallow: how many of their replies are dropped before the one that counts, the
    first error among them deciding what becomes of a redirected or refused one (MULTI ... EXEC). read: may be sent
    again after a lost connection. Without finish the first part's reply is the answer; a failed part always is.
    """

    def __cinit__(self, list parts not None, finish=None, bint read=False):
        self.parts = parts
        self.finish = finish
        self.read = read


cdef list expanded(Router router, list parts):
    """With a part for each node that is meant."""
    cdef list out = []
    for where, frame, swallow in parts:
        if where == "primaries":
            out += [(node, frame, swallow) for node in router.primaries]
        elif where == "nodes":
            out += [(node, frame, swallow) for node in router.nodes.values()]
        else:
            out.append((where, frame, swallow))
    return out


cdef void aim(Request* r, object where, uint32_t swallow) except *:
    """Sets its target; TypeError or ValueError for what is none."""
    r.slot = -1
    r.own_swallow = swallow
    if isinstance(where, int):
        if not 0 <= where < SLOTS:
            raise ValueError(f"no slot: {where}")
        r.target = TARGET_SLOT
        r.slot = where
    elif isinstance(where, Node):
        r.target = TARGET_NODE
        r.node = (<Node> where).number
    elif isinstance(where, Backend):
        r.target = TARGET_LEASE
        r.lease = <void*> where
    elif where == "any":
        r.target = TARGET_ANY
    else:
        raise TypeError(f"no target: {where!r}")


cdef void send_ask(Client client, Call* call, Ask ask):
    """Sends the parts; an Ask that makes no sense raises before anything is sent."""
    cdef list parts = expanded(client.path.exchange.router, ask.parts)
    cdef uint32_t i, n = <uint32_t> len(parts)
    cdef Gather g = gather_new(client.replies, n, 0, combine_first if ask.finish is None else combine_python) if (
        n) else None
    cdef Request* parent
    cdef bytes frame
    if g is None:
        client.say(call.row.metric, b"-CLUSTERDOWN The cluster is down\r\n")
        return
    try:
        for i in range(n):
            where, one, swallow = parts[i]
            if not isinstance(one, bytes) or not one:
                raise TypeError(f"no frame: {one!r}")
            aim(&g.parts[i], where, swallow)
    except Exception:
        g.discard()
        raise
    g.finish = ask.finish
    g.raised = client.path.responder.raised
    g.kept = [where for where, _, _ in parts if isinstance(where, Backend)]
    parent = new_request(client, call)
    if parent == NULL:
        g.discard()
        return
    parent.flags = (parent.flags & ~REQ_READ) | (REQ_READ if ask.read else 0)
    gather_begin(g, parent)
    client.budget -= <int> n
    for i in range(n):                      # the last part may complete, and end, the gather
        frame = parts[i][1]
        client.path.exchange.submit(&g.parts[i], frame, len(frame))
