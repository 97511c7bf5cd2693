# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a node's error line means for a request (DESIGN 4, "Who is trusted").

MOVED and ASK are followed at once, but only to nodes of the published topology: what names another one waits until a
refresh has made it known, or its time is over. MOVED is learnt, for the slot of that request and no other. What a
node refuses for a while without carrying it out (TRYAGAIN, CLUSTERDOWN, LOADING, READONLY, MASTERDOWN, in the server's
own words: see cluster.redirection) is parked and sent again.

A script says what its author likes. When one is redirected, its node is asked for the script's keys (EXISTS): what that
answers is the node's own word, and followed and learnt like any other. If it knows nothing of a redirection (or is gone
before it answers), the script is sent once more and then its line is the client's. What its client had sent behind it
is redirected, too, and must not overtake: see doubt. Nor does what a script says make a node unfit. A refusal in the
server's exact words is believed, as any cluster client does: a script that returns one of them is sent again.

NOSCRIPT is repaired: the node is given the script, if anybody knows it (Scripts), and the command is sent again, once
for each node that it comes to. The script goes ahead of it as a request of its own that nobody waits for; what else
comes back from before that point of the connection needs no further copy. So a script that forges NOSCRIPT in the
server's exact words is run once more (twice if its body had to be asked for), and costs a copy of itself;
ScriptKeeper.in_vain bounds that. Commands that the client had pipelined behind are not held back: they are carried out
before the repaired one, as they would be before the EVAL of a client that helps itself.
"""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from proxy.cluster.redirection cimport (
    REDIR_ASK, REDIR_CLUSTERDOWN, REDIR_LOADING, REDIR_MASTERDOWN, REDIR_MOVED, REDIR_NONE, REDIR_NOSCRIPT,
    REDIR_READONLY, Redirection, parse_redirection,
)
from proxy.forward.backend cimport BACKEND_UP
from proxy.forward.counters cimport (
    OUTCOME_GAVE_UP, REFUSED_DOWN, RETRY_CLUSTERDOWN, RETRY_DOWN, RETRY_FULL, RETRY_LOADING, RETRY_LOST,
    RETRY_MASTERDOWN, RETRY_MOVED, RETRY_NOSCRIPT, RETRY_PAUSED, RETRY_READONLY, RETRY_TRYAGAIN,
)
from proxy.forward.pipeline cimport ENQUEUED, WINDOW_FULL
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport (
    REQ_READ, REQ_SCRIPT, STATE_ANSWERED, STATE_NEW, STATE_PARKED, TARGET_EXTRA, TARGET_LEASE, TARGET_NODE,
    TARGET_SHARD, request_fault, request_forget, request_free, request_keep, request_move, request_new,
)
from proxy.forward.router cimport CHOSEN, HOPELESS, PAUSED, READS_PRIMARY
from proxy.forward.scripts cimport SHA_LEN, keys_of, sha_of

cdef int* REASON_OF = [0, RETRY_MOVED, RETRY_MOVED, RETRY_TRYAGAIN, RETRY_CLUSTERDOWN, RETRY_LOADING, RETRY_READONLY,
                       RETRY_MASTERDOWN]

cdef const char* ASKING = b"*1\r\n$6\r\nASKING\r\n"
cdef bytes PING = b"*1\r\n$4\r\nPING\r\n"
cdef enum:
    ASKING_LEN = 16
    LOADS_MAX = 64          # scripts of which a connection remembers where they were loaded


@cython.final
@cython.no_gc
cdef class Probe(Sink):
    """Takes the answer to a question about a redirection, and has the request in doubt until then."""

    def __cinit__(self, Redirect redirect, Node node):
        self.redirect = redirect
        self.node = node

    cdef void deliver(self, Request* q, const char* p, size_t n, bint final, bint error) noexcept:
        cdef Request* r = self.r
        if not final:
            self.odd = True                 # no answer to EXISTS is so long
            return
        request_move(q, STATE_ANSWERED)
        self.r = NULL
        self.redirect.decide(r, self.node, p, 0 if self.odd else n)
        request_free(q)                     # p may be its own
        Py_DECREF(self)

    cdef bint alive(self) noexcept:
        return self.r.sink != NULL and (<Sink> self.r.sink).alive()


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
        if kind == REDIR_NONE:
            return ORDINARY
        if r.sink == NULL or not (<Sink> r.sink).alive() or r.target == TARGET_LEASE:
            return ORDINARY                 # (a connection with a state of its client's: sent again, it means another)
        if kind == REDIR_NOSCRIPT:
            return self.repair(backend, r, bytes, p, n)
        if kind == REDIR_MOVED or kind == REDIR_ASK:
            if script and to.slot != r.slot:
                return ORDINARY             # no server says that of this script
            if r.target in (TARGET_NODE, TARGET_SHARD, TARGET_EXTRA):
                return ORDINARY             # for this node and no other
            self.counts.redirections[kind] += 1
            (<Sink> r.sink).unsettle()
            request_fault(r, p, n)              # for the case that its time is over before it is answered
            if script or self.parking.doubts and r.slot in self.parking.doubts:
                return self.doubt(backend, r, bytes)
            return self.lead(backend.node, <void*> backend, r, bytes, &to, kind)
        self.counts.redirections[kind] += 1
        (<Sink> r.sink).unsettle()
        if kind == REDIR_READONLY or kind == REDIR_CLUSTERDOWN:
            self.port.stale("readonly" if kind == REDIR_READONLY else "clusterdown")
        if script:
            pass
        elif kind == REDIR_LOADING:
            self.port.node_unfit(backend.node, "loading")
        elif kind == REDIR_MASTERDOWN and backend.node.replica:
            self.port.node_unfit(backend.node, "link to the primary down")
        elif kind == REDIR_CLUSTERDOWN and r.flags & REQ_READ:  # also what a node with slots says while it is loading
            self.port.node_unfit(backend.node, "the cluster is down for it")
        request_fault(r, p, n)
        r.redirections = 0                  # a later round begins anew; the deadline bounds the rounds
        return self.wait(r, bytes, REASON_OF[kind])

    cdef int lead(self, Node said, void* window, Request* r, const char* bytes, Redirection* to, int kind) noexcept:
        """Follows a MOVED or ASK that a node has really said. window: of the Backend where the bytes stand, or NULL."""
        cdef Node node = self.known(to.host[:to.host_len], to.port, said)
        if kind == REDIR_MOVED or node is None or node.failing:
            self.port.stale("moved")
        if r.redirections >= self.max_redirections:
            r.redirections = 0              # the nodes do not agree: they are given time, up to the deadline
            return self.wait(r, bytes, RETRY_MOVED)
        if node is None:
            return self.wait(r, bytes, RETRY_MOVED)
        r.redirections += 1
        if kind == REDIR_MOVED and to.slot == r.slot:
            self.router.learn(r.slot, node)
        elif kind == REDIR_ASK:
            self.router.asked(r)
        return self.follow(window, r, bytes, node, kind == REDIR_ASK)

    cdef Node named(self, bytes line, Node node, int* kind):
        """The node of the topology that a MOVED or ASK to a command on a leased connection names, or None.

        Whoever asks learns a MOVED, if it is of the command's own slot. node: who said it. kind: of the redirection.
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
        return found

    cdef Node known(self, bytes host, int port, Node node):
        """The node of the topology that a redirection names; None when there is none, or when it has failed and owns
        nothing any more: whoever names that one is behind. node: who said it."""
        cdef Node found
        address = self.port.resolve(host.decode("utf-8", "replace"), port, node)
        found = None if address is None else self.router.nodes.get(address)
        return None if found is not None and found.failing and not found.owner else found

    cdef int wait(self, Request* r, const char* bytes, int reason) noexcept:
        return TAKEN if self.parking.park(r, bytes, r.len, reason) else STRANDED

    cdef int follow(self, void* window, Request* r, const char* bytes, Node node, bint ask) noexcept:
        """Sends a redirected request to the node named. window: see lead."""
        cdef const char* p = bytes
        cdef int result = self.router.at(node, r)
        r.repaired = 0                      # of this node it is not known yet whether it has its script
        if result == PAUSED:
            return self.wait(r, p, RETRY_PAUSED)
        if result == HOPELESS:              # as if it had been sent there at first
            self.counts.retries[RETRY_DOWN][OUTCOME_GAVE_UP] += 1
            self.parking.recovery.refused(r, REFUSED_DOWN)
            return TAKEN
        if result != CHOSEN:
            return self.wait(r, p, RETRY_DOWN)
        # Two nodes that name each other while a slot changes hands: give them time from the second round on. What was
        # parked, and has gone on since this one was sent, may be its client's, and not yet where this would go.
        if r.redirections > 2 or (
            r.slot >= 0 and (self.parking.parked_in[r.slot] or self.parking.went_ns[r.slot] > r.sent_ns)
        ):
            return self.wait(r, p, RETRY_MOVED)
        if self.router.chosen == window:            # the bytes stand in its own window, which may move
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

    # -- scripts -------------------------------------------------------------------------------------------------

    cdef int doubt(self, Backend backend, Request* r, const char* whole) noexcept:
        """A redirection that a script may have said itself: its node is asked for the script's keys. A Verdict.

        What that node answers to EXISTS is its own word, and followed and learnt like that of any command. Meanwhile
        the requests of that slot keep their order: what else is redirected there takes the same way, behind an answer
        of its own (to PING: its redirection is no script's), and what is parked waits (Parking.doubts).
        """
        cdef size_t n = 0, count = 0
        cdef const char* keys
        cdef Request* q
        cdef Probe probe
        cdef bytes frame = PING
        if r.flags & REQ_SCRIPT:
            keys = keys_of(whole, r.len, &n, &count)
            if keys == NULL:
                return ORDINARY
            frame = b"*%d\r\n$6\r\nEXISTS\r\n%b" % (1 + count, keys[:n])
        q = request_new()
        if q == NULL or not request_keep(q, frame, len(frame)) or not request_keep(r, whole, r.len):
            if q != NULL:
                request_free(q)
            return STRANDED
        probe = Probe(self, backend.node)
        probe.r = r
        request_move(r, STATE_PARKED)       # the probe's
        self.parking.doubt(r)
        q.sink = <void*> probe
        q.number = r.number
        q.len = len(frame)
        q.start_ns = self.parking.reactor.now
        q.deadline_ns = q.start_ns + (r.deadline_ns - q.start_ns) // 2      # the rest is for r, if that node is gone
        q.affinity = r.affinity
        q.command = r.command
        q.slot = -1
        q.target = TARGET_NODE
        q.node = backend.node.number
        q.flags = REQ_READ
        q.proto = r.proto
        q.db = r.db
        Py_INCREF(probe)
        self.parking.recovery.resubmit(q)
        return TAKEN

    cdef void decide(self, Request* r, Node said, const char* p, size_t n) noexcept:
        """A request that was in doubt goes on. p[0:n]: what the node that redirected it has answered."""
        cdef Redirection to
        cdef bint script = r.flags & REQ_SCRIPT
        cdef int kind, verdict = STRANDED
        cdef bytes own
        self.parking.doubt_ends(r)
        request_move(r, STATE_NEW)
        if r.sink == NULL or not (<Sink> r.sink).alive():
            self.parking.discard(r)
            return
        if not script:
            own = r.fault[:r.fault_len]
            kind = parse_redirection(own, len(own), &to)
        else:
            kind = parse_redirection(p, n, &to) if n else REDIR_NONE
        if (kind == REDIR_MOVED or kind == REDIR_ASK) and (to.slot == r.slot or not script):
            verdict = self.lead(said, NULL, r, r.own, &to, kind)
        elif not r.doubted:
            r.doubted = 1                   # perhaps the slot has come back meanwhile: once more, and no more
            r.policy = READS_PRIMARY        # or a replica sent a script away for its flags (writes), not for its slot
            verdict = self.wait(r, r.own, RETRY_MOVED)
        if verdict == STRANDED:
            self.parking.recovery.expired(r, RETRY_MOVED)

    cdef int repair(self, Backend backend, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        """A node does not have the script that a request runs: a Verdict."""
        cdef const char* sha = sha_of(bytes, r.len)
        if sha == NULL:
            return ORDINARY
        if r.repaired:
            self.scripts.in_vain(sha)
            return ORDINARY
        load = self.scripts.load(sha)
        if load is None:
            return ORDINARY
        self.counts.redirections[<int> REDIR_NOSCRIPT] += 1
        (<Sink> r.sink).unsettle()
        request_fault(r, p, n)
        if not load or backend.state != BACKEND_UP or backend.draining or backend.node.paused:
            r.redirections = 0              # it goes to the slot's owner again, which may redirect it here again
            return self.wait(r, bytes, RETRY_NOSCRIPT if not load else RETRY_LOST)
        return self.give(backend, r, sha[:SHA_LEN].lower(), load)

    cdef int give(self, Backend backend, Request* r, bytes name, bytes load):
        """Sends a script, unless that is on its way, and the request again; the bytes stand in the node's window."""
        cdef const char* own = backend.win.data + backend.win.start + r.prefix
        cdef bint asked = r.prefix == ASKING_LEN and memcmp(own - ASKING_LEN, ASKING, ASKING_LEN) == 0
        cdef Request* ahead
        cdef int result
        if not request_keep(r, own, r.len):
            return STRANDED
        if backend.loads is None or len(backend.loads) >= LOADS_MAX:
            backend.loads = {}
        if r.pos >= <uint64_t> backend.loads.get(name, 0):
            ahead = request_new()
            if ahead == NULL:
                return STRANDED
            ahead.number = r.number
            ahead.slot = -1
            ahead.deadline_ns = r.deadline_ns
            ahead.proto = r.proto
            result = backend.enqueue(ahead, load, len(load))
            if result != ENQUEUED:
                request_free(ahead)
                return self.wait(r, r.own, RETRY_FULL) if result == WINDOW_FULL else STRANDED
            backend.loads[name] = ahead.pos + ahead.len
        if asked:
            result = backend.enqueue_behind(r, ASKING, ASKING_LEN, 1, r.own, r.len)
        else:
            result = backend.enqueue(r, r.own, r.len)
        if result == WINDOW_FULL:
            return self.wait(r, r.own, RETRY_FULL)
        if result != ENQUEUED:
            return STRANDED
        r.repaired = 1
        request_forget(r)
        return TAKEN
