# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a node's error line means for a request (DESIGN 4, "Who is trusted").

MOVED and ASK are followed at once, but only to nodes of the published topology: what names another one waits until a
refresh has made it known, or its time is over. MOVED is learnt, for the slot of that request and no other. What a
node refuses for a while without carrying it out (TRYAGAIN, CLUSTERDOWN, LOADING, READONLY, MASTERDOWN, in the server's
own words: see cluster.redirection) is parked and sent again.

A script says what its author likes. A redirection out of one is followed once, for this request alone, and never
learnt; nor does what a script says make a node unfit. A refusal in the server's exact words is believed, as any
cluster client does: a script that returns one of them is sent again.
"""
cimport cython

from proxy.cluster.redirection cimport (
    REDIR_ASK, REDIR_CLUSTERDOWN, REDIR_LOADING, REDIR_MASTERDOWN, REDIR_MOVED, REDIR_NONE, REDIR_READONLY,
    Redirection, parse_redirection,
)
from proxy.forward.counters cimport (
    RETRY_CLUSTERDOWN, RETRY_FULL, RETRY_LOADING, RETRY_MASTERDOWN, RETRY_MOVED, RETRY_READONLY, RETRY_TRYAGAIN,
)
from proxy.forward.pipeline cimport ENQUEUED, WINDOW_FULL
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport REQ_SCRIPT, TARGET_LEASE, TARGET_NODE, request_fault, request_forget, request_keep
from proxy.forward.router cimport CHOSEN

cdef int* REASON_OF = [0, RETRY_MOVED, RETRY_MOVED, RETRY_TRYAGAIN, RETRY_CLUSTERDOWN, RETRY_LOADING, RETRY_READONLY,
                       RETRY_MASTERDOWN]

cdef const char* ASKING = b"*1\r\n$6\r\nASKING\r\n"
cdef enum:
    ASKING_LEN = 16


@cython.final
cdef class Redirect:
    """One per worker. port: control's side: stale(reason), resolve(host, port, node), node_unfit(node, reason)."""

    def __cinit__(self, Router router, Parking parking, *, int max_redirections):
        self.router = router
        self.parking = parking
        self.max_redirections = max_redirections

    cdef int judge(self, Backend backend, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        """A Verdict on the error line p[0:n] for a request; bytes: the command's, r.len of them."""
        cdef Redirection to
        cdef int kind = parse_redirection(p, n, &to)
        cdef bint script = r.flags & REQ_SCRIPT
        cdef Node node
        if kind == REDIR_NONE:
            return ORDINARY
        if r.sink == NULL or not (<Sink> r.sink).alive() or r.target == TARGET_LEASE:
            return ORDINARY                 # (a connection with a state of its client's: sent again, it means another)
        if kind == REDIR_MOVED or kind == REDIR_ASK:
            if script and to.slot != r.slot:
                return ORDINARY             # no server says that of this script
            if r.target == TARGET_NODE:
                return ORDINARY             # for this node and no other
            self.counts.redirections[kind] += 1
            (<Sink> r.sink).unsettle()
            request_fault(r, p, n)              # for the case that its time is over before it is answered
            node = self.known(to.host[:to.host_len], to.port, backend.node)
            if kind == REDIR_MOVED or node is None:
                self.port.stale("moved")
            if r.redirections >= (1 if script else self.max_redirections):
                if script:
                    return ORDINARY
                r.redirections = 0          # the nodes do not agree: they are given time, up to the deadline
                return self.wait(r, bytes, RETRY_MOVED)
            if node is None:
                if script:
                    r.redirections += 1
                return self.wait(r, bytes, RETRY_MOVED)
            r.redirections += 1
            if kind == REDIR_MOVED and to.slot == r.slot and not script:
                self.router.learn(r.slot, node)
            return self.follow(backend, r, bytes, node, kind == REDIR_ASK)
        self.counts.redirections[kind] += 1
        (<Sink> r.sink).unsettle()
        if kind == REDIR_READONLY or kind == REDIR_CLUSTERDOWN:
            self.port.stale("readonly" if kind == REDIR_READONLY else "clusterdown")
        elif backend.node.replica and not script and kind in (REDIR_LOADING, REDIR_MASTERDOWN):
            self.port.node_unfit(backend.node, "loading" if kind == REDIR_LOADING else "link to the primary down")
        request_fault(r, p, n)
        r.redirections = 0                  # a later round begins anew; the deadline bounds the rounds
        return self.wait(r, bytes, REASON_OF[kind])

    cdef Node named(self, bytes line, Node node, int* kind):
        """The node of the topology that a MOVED or ASK to a command on a leased connection names, or None.

        MOVED is learnt, as that of a command for the slot. node: who said it. kind: of the redirection.
        """
        cdef Redirection to
        cdef Node found
        kind[0] = parse_redirection(line, len(line), &to)
        if kind[0] != REDIR_MOVED and kind[0] != REDIR_ASK:
            return None
        self.counts.redirections[kind[0]] += 1
        found = self.known(to.host[:to.host_len], to.port, node)
        if kind[0] == REDIR_MOVED or found is None:
            self.port.stale("moved")
        if kind[0] == REDIR_MOVED and found is not None:
            self.router.learn(to.slot, found)
        return found

    cdef Node known(self, bytes host, int port, Node node):
        """The node of the topology that a redirection names; None when there is none. node: who said it."""
        address = self.port.resolve(host.decode("utf-8", "replace"), port, node)
        return None if address is None else self.router.nodes.get(address)

    cdef int wait(self, Request* r, const char* bytes, int reason) noexcept:
        return TAKEN if self.parking.park(r, bytes, r.len, reason) else STRANDED

    cdef int follow(self, Backend backend, Request* r, const char* bytes, Node node, bint ask) noexcept:
        """Sends a redirected request to the node named."""
        cdef const char* p = bytes
        cdef int result
        # Two nodes that name each other while a slot changes hands: give them time from the second round on.
        if self.router.at(node, r) != CHOSEN or r.redirections > 2 or (
            r.slot >= 0 and self.parking.parked_in[r.slot]
        ):
            return self.wait(r, p, RETRY_MOVED)
        if self.router.chosen == <void*> backend:   # the bytes stand in its own window, which may move
            if not request_keep(r, p, r.len):
                return STRANDED
            p = r.own
        if ask:
            result = (<Backend> self.router.chosen).enqueue_behind(r, ASKING, ASKING_LEN, 1, p, r.len)
        else:
            result = (<Backend> self.router.chosen).enqueue(r, p, r.len)
        if result == WINDOW_FULL:
            return self.wait(r, p, RETRY_FULL)
        if result != ENQUEUED:
            return STRANDED
        request_forget(r)
        return TAKEN
