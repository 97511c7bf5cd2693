# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""CLIENT TRACKING of one client: its own connections to the nodes, and what they push.

The servers do the work: a node remembers for each connection what was read on it, and pushes what has changed there. So
all commands of a client that tracks go over connections of its own (RESP3, one to each primary that it comes to; with
BCAST to every one at once), which are told `CLIENT TRACKING ON` and its options at the end of their handshake.

Why no stale value lasts:

1. A node pushes the invalidation of what a connection was told on that connection, behind the reply. The reply is by
   then sent, or answered and waiting in the client's order, or held as an answered part of a command with parts: the
   push goes behind all of these (PUSH_BEHIND), whichever of them it concerns. What is answered later was read later.
2. What a connection was told is forgotten with it. When one that was up ends, for whatever reason, "all of it" is
   invalidated (`ended`), behind all that it has answered. BCAST is told again when the next one is up (`begun`), for
   that client need not read to be told. A node that hangs ends them too: see pulse.
3. A slot that goes to another primary (MOVED, another topology) is changed there unseen: then everything is
   invalidated at once, and once more behind all that is under way (`missed`, PUSH_LAST), which may have been read at
   the old place before it moved. The same when ASK is followed: see Router.asked.

Between the moment a slot moves and the moment this worker learns of it (a MOVED to anybody here, a lost connection, the
next topology) 3. has not happened yet; servers push for most keys meanwhile, as they delete them at the old place. For
the others (cached as not there) the topology is looked at every 2 s while anybody tracks: see control.topology_refresh.
"""
cimport cython
from libc.stdint cimport int64_t
from libc.string cimport memcmp

from proxy.forward.backend cimport Backend
from proxy.forward.node cimport Node
from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport OWN_FIRST, REQ_PUSH
from proxy.forward.reply_queue cimport PUSH_BEHIND, PUSH_LAST

from proxy.resp.encode import encode_command

cdef const char* INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n"
cdef const char* FLUSH = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
cdef enum:
    INVALIDATE_LEN = 21
    FLUSH_LEN = 24

DATABASES_MAX = OWN_FIRST                       # numbers of databases, beside those of clients' own connections

cdef int64_t SHORT_LIFE_NS = 1_000_000_000      # a connection that lived shorter is not made again at once
cdef int64_t WAIT_NS = 250_000_000              # ... but after so long


cdef bint names_keys(const char* p, size_t n) noexcept:
    """Whether p[0:n], well-formed RESP, is null or an array of strings."""
    cdef size_t at = 0, size
    cdef int64_t count
    if n == 3 and p[0] == c"_":
        return True
    if p[0] != c"*" or not number(p, n, &at, &size):
        return False
    count = <int64_t> size
    while count > 0:
        count -= 1
        if at >= n or p[at] != c"$" or not number(p, n, &at, &size) or size > n - at or n - at - size < 2:
            return False
        at += size + 2
    return at == n


cdef bint number(const char* p, size_t n, size_t* at, size_t* value) noexcept:
    """Reads the digits behind the byte at `at`, which goes behind their line."""
    cdef size_t i = at[0] + 1, digits = 0
    value[0] = 0
    while i < n and c"0" <= p[i] <= c"9" and digits < 18:
        value[0] = value[0] * 10 + <size_t> (p[i] - c"0")
        i += 1
        digits += 1
    if digits == 0 or n - i < 2 or p[i] != c"\r" or p[i + 1] != c"\n":
        return False
    at[0] = i + 2
    return True


@cython.final
cdef class Tracking(Owner):
    """See the module. States: made -> begun (in RESP3: connections may be made) -> ended (and begun again ...).

    prefixes: bytes. The combination of options is a legal one: see serve.tracking.
    """

    def __init__(self, *, bint bcast=False, bint optin=False, bint optout=False, bint noloop=False, prefixes=()):
        super().__init__()
        self.bcast = bcast
        self.optin = optin
        self.optout = optout
        self.noloop = noloop
        self.prefixes = tuple(prefixes)
        words = ["CLIENT", "TRACKING", "ON"]
        flags = ("BCAST", bcast), ("OPTIN", optin), ("OPTOUT", optout), ("NOLOOP", noloop)
        words += [word for word, on in flags if on]
        for prefix in () if b"" in self.prefixes else self.prefixes:    # servers refuse what that one is part of
            words += ["PREFIX", prefix]
        self.greeting = tuple(words)
        if optin or optout:
            self.announcement = encode_command("CLIENT", "CACHING", "YES" if optin else "NO")

    def same(self, Tracking other not None):
        """Whether it says the same to the nodes."""
        return self.greeting == other.greeting

    def confirm(self):
        """Its client is being told that it is on."""
        self.announced = True

    def primaries(self):
        """The nodes that it needs connections to before it is on: with BCAST all primaries, else any that is there, to
        see whether it is allowed to."""
        cdef Node node
        cdef list there
        if self.number == 0:
            return []
        if self.bcast:
            return list(self.router.primaries)
        there = [node for node in self.router.primaries if node.resp2.down_since_ns == 0 and node.up]
        return [there[self.number % len(there)]] if there else []

    cdef bint begin(self, Router router, ReplyQueue replies, int db):
        """Connections may be made from now on; false: there is no number for them."""
        self.router = router
        self.db = db
        self.number = router.enter(self)
        if self.number == 0:
            return False
        self.replies = replies
        return True

    cdef void end(self) noexcept:
        """They are closed."""
        cdef int number = self.number
        self.replies = None
        self.number = 0
        if number:
            self.router.leave(number)

    def keep_up(self):
        """With BCAST: has a connection made to each primary that it has none to. To be called regularly."""
        cdef Node node
        cdef Backend b
        if not self.bcast or self.number == 0:
            return
        for node in self.router.primaries:
            b = self.router.own_backend(node, self.number)
            if b is not None:
                b.demand()

    # -- what the connections say --------------------------------------------------------------------------------

    cdef void pushed(self, Peer backend, const char* p, size_t n) noexcept:
        if self.replies is None or n <= INVALIDATE_LEN or memcmp(p, INVALIDATE, INVALIDATE_LEN) != 0:
            return
        if names_keys(p + INVALIDATE_LEN, n - INVALIDATE_LEN):
            self.replies.push(p, n, PUSH_BEHIND)
        else:                           # whatever it was about: everything is invalidated
            (<Backend> backend).lose("a malformed invalidation")

    cdef void begun(self, Peer backend) noexcept:
        cdef Backend b = <Backend> backend
        b.pool.begun_ns = b.reactor.now
        if self.bcast and self.announced:
            self.flush(PUSH_BEHIND)

    cdef void ended(self, Peer backend) noexcept:
        cdef Backend b = <Backend> backend
        if b.reactor.now - b.pool.begun_ns < SHORT_LIFE_NS:
            b.pool.not_before_ns = b.reactor.now + WAIT_NS
        self.flush(PUSH_BEHIND)

    cdef void missed(self) noexcept:
        self.flush(PUSH_BEHIND)
        if self.replies is not None and self.replies.tail != NULL and not self.replies.tail.flags & REQ_PUSH:
            self.flush(PUSH_LAST)       # (a push at the end is this one)

    def invalidate(self):
        """Everything is invalidated: behind what has been answered, and behind all that is under way."""
        self.missed()

    cdef void flush(self, int place) noexcept:
        """Everything is invalidated: what Redis says at FLUSHALL."""
        if self.replies is not None:
            self.replies.push(FLUSH, FLUSH_LEN, place)
