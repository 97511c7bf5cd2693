# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What proxy.serve asks of the servers for one command of a client: frames, where each goes, and how one reply is made.

For commands that are more than a forward and less than frequent: they cost Python objects. The responder answers with
an Ask, or with a Later when the reply does not come from servers; dispatch carries it out. Either may lead to a further
Ask, for the same place among the client's replies.
"""
cimport cython
from libc.stdint cimport uint32_t

from proxy.cluster.slot cimport SLOTS
from proxy.cluster.slot_table cimport NO_SHARD
from proxy.forward.backend cimport Backend
from proxy.forward.counters cimport CLOSE_ERROR
from proxy.forward.gather cimport (
    Gather, Rounds, combine_first, combine_python, gather_again, gather_begin, gather_new,
)
from proxy.forward.node cimport Node, Shard
from proxy.forward.prepare cimport new_request
from proxy.forward.request cimport (
    REQ_READ, TARGET_ANY, TARGET_EXTRA, TARGET_LEASE, TARGET_NODE, TARGET_SHARD, TARGET_SLOT, Request,
)
from proxy.forward.router cimport READS_PRIMARY, Router

cdef bytes NOBODY = b"-CLUSTERDOWN The cluster is down\r\n"


@cython.final
cdef class Ask:
    """parts: (where, frame, swallow) each; finish: from the list of the parts' replies to the one reply, all bytes.

    where: a slot's number; a Node; a Backend that the client leases; "any" (a primary), "primaries", "nodes" (a part
    for each; see expanded). frame: whole commands; swallow: how many of their replies are dropped before the one that
    counts, the first error among them deciding what becomes of a redirected or refused one (MULTI ... EXEC). read: may
    be sent again after a lost connection. Without finish the first part's reply is the answer.

    finish may also return another Ask: the next round for the same command, within the same deadline. A failed part is
    the answer, and finish not called; with `errors`, finish is given error lines like other replies. Then redirections
    of parts for a slot or "any" have been followed; those for a Node or a Backend are replies. primary: parts for a
    slot go to its primary, whatever the client's read policy.

    Filled in place when it is sent, of each part: labels: its node as "host:port", "" when it is not for a certain
    one; nodes: where it went, for a further round (of "primaries": a slot, since another primary may have taken over);
    optional: whether it is one of "nodes" that owned no slots: that it does not answer is no failure of the cluster.
    """

    def __cinit__(self, list parts not None, finish=None, bint read=False, bint errors=False,
                  bint primary=False):
        self.parts = parts
        self.finish = finish
        self.read = read
        self.errors = errors
        self.primary = primary
        self.labels = []
        self.nodes = []
        self.optional = []


@cython.final
cdef class Later:
    """A reply that comes from elsewhere than the servers: whoever made it calls answer(), once, and sees to it that he
    does within a bounded time. barrier: until then nothing further that the client has sent is carried out."""

    def __cinit__(self, bint barrier=False):
        self.barrier = barrier

    @property
    def wanted(self):
        """Whether anybody waits for it: its client has not left."""
        return self.gather is None or self.gather.parent != NULL

    def answer(self, made):
        """bytes, the whole reply; or an Ask. Without effect the second time, or when the client has left."""
        cdef Gather g = self.gather
        if g is None:
            self.made = made if self.made is None else self.made    # before it is in its client's order
            return
        self.gather = None
        if isinstance(made, bytes):
            g.finish = None
        else:
            g.finish = lambda replies: made
            g.combine = combine_python
        g.deliver(&g.parts[0], <const char*> (made if isinstance(made, bytes) else b""),
                  len(made) if isinstance(made, bytes) else 0, True, isinstance(made, bytes) and made[:1] == b"-")


cdef class AskRounds(Rounds):
    """Sends what finish() asks for after the first round."""

    def __cinit__(self, Client client):
        self.client = client

    cdef bint again(self, Gather g, object made) noexcept:
        try:
            if not isinstance(made, Ask):
                raise TypeError(f"neither a reply nor an Ask: {type(made).__name__}")
            return send_parts(self.client, <Ask> made, g, NULL)
        except Exception as error:
            self.client.path.counts.internal_errors += 1
            self.client.path.responder.raised("finish", error)
            return False


cdef list expanded(Router router, list parts):
    """With a part for each node that is meant; none at all when some slots' primary is not known.

    (where, frame, swallow, kind, slot) each; kind: TARGET_SHARD and one of its slots, TARGET_EXTRA, or -1: see aim.
    What is for "primaries" follows its shard to another primary until it is executed. Of "nodes" those that own no
    slots are left out when they are known to be down, or unfit.
    """
    cdef list out = []
    cdef Node node
    cdef dict slots
    for where, frame, swallow in parts:
        if where == "primaries":
            if router.headless:
                return []
            slots = first_slots(router)
            for node in router.primaries:
                if node in slots:
                    out.append((node, frame, swallow, TARGET_SHARD, slots[node]))
                else:
                    out.append((node, frame, swallow, -1, -1))
        elif where == "nodes":
            for node in router.nodes.values():
                if node.owner or node.usable and not node.down:
                    out.append((node, frame, swallow, TARGET_EXTRA, -1))
        else:
            out.append((where, frame, swallow, -1, -1))
    return out


cdef dict first_slots(Router router):
    """A slot of each primary: Node -> slot."""
    cdef dict found = {}
    cdef int slot, index, before = NO_SHARD
    for slot in range(SLOTS):
        index = router.slots.owner[slot]
        if index != before and index != NO_SHARD:
            found.setdefault((<Shard> router.shards[index]).primary, slot)
        before = index
    return found


cdef void aim(Request* r, object where, uint32_t swallow, int kind, int slot) except *:
    """Sets its target; TypeError or ValueError for what is none. kind: what a Node is a target as; -1: TARGET_NODE."""
    r.slot = -1
    r.own_swallow = swallow
    if isinstance(where, int):
        if not 0 <= where < SLOTS:
            raise ValueError(f"no slot: {where}")
        r.target = TARGET_SLOT
        r.slot = where
    elif isinstance(where, Node):
        r.target = TARGET_NODE if kind < 0 else kind
        r.slot = slot
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
    send_parts(client, ask, None, call)


cdef bint send_parts(Client client, Ask ask, Gather before, Call* call) except? False:
    """Of a new command (call), or the next round of one; false: there was nothing to send it to, or no memory."""
    cdef list parts = expanded(client.path.exchange.router, ask.parts)
    cdef uint32_t i, n = <uint32_t> len(parts)
    cdef Gather g = gather_new(client.replies, n, 0, combine_first if ask.finish is None else combine_python) if (
        n) else None
    cdef Request* parent
    cdef bytes frame
    if g is None:
        if before is None:
            client.say(call.row.metric, NOBODY)
        else:
            before.made = NOBODY
        return False
    try:
        for i in range(n):
            where, one, swallow, kind, slot = parts[i]
            if not isinstance(one, bytes) or not one:
                raise TypeError(f"no frame: {one!r}")
            aim(&g.parts[i], where, swallow, kind, slot)
    except Exception:
        g.discard()
        raise
    ask.nodes[:] = [part[4] if part[3] == TARGET_SHARD else part[0] for part in parts]
    ask.labels[:] = [(<Node> part[0]).label if isinstance(part[0], Node) else "" for part in parts]
    ask.optional[:] = [part[3] == TARGET_EXTRA and not (<Node> part[0]).owner for part in parts]
    g.finish = ask.finish
    g.errors = ask.errors
    g.most = client.settings.hard_output // 4       # they are copied when they are combined, and once more
    g.raised = client.path.responder.raised
    g.rounds = AskRounds(client) if before is None else before.rounds
    g.kept = [where for where in ask.nodes if isinstance(where, Backend)]
    if before is None:
        parent = new_request(client, call)
        if parent == NULL:
            g.discard()
            return False
    else:
        parent = before.parent
    parent.flags = (parent.flags & ~REQ_READ) | (REQ_READ if ask.read else 0)
    if ask.finish is not None:
        client.replies.unsettled = True     # one at a time: a thousand of them pipelined would combine for seconds
    if before is None:
        gather_begin(g, parent)
    else:
        gather_again(g, before)
    if ask.primary:
        for i in range(n):
            g.parts[i].policy = READS_PRIMARY
    client.budget -= <int> n
    for i in range(n):                      # the last part may complete, and end, the gather
        frame = parts[i][1]
        client.path.exchange.submit(&g.parts[i], frame, len(frame))
    return True


cdef void send_later(Client client, Call* call, Later later):
    """Gives it its place in the client's order."""
    cdef Gather g
    cdef Request* parent
    made = later.made
    if isinstance(made, bytes):
        client.say(call.row.metric, made)
        return
    if made is not None:
        send_ask(client, call, made)
        return
    g = gather_new(client.replies, 1, 0, combine_first)
    if g is None:
        client.close(CLOSE_ERROR)
        return
    g.raised = client.path.responder.raised
    g.rounds = AskRounds(client)
    parent = new_request(client, call)
    if parent == NULL:
        g.discard()
        return
    gather_begin(g, parent)
    later.gather = g
    client.replies.unsettled = client.replies.unsettled or later.barrier
