# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The nested epoll instance that drives the data path (DESIGN 3).

All data-path sockets live in an epoll instance of our own whose descriptor is the only thing uvloop watches. One wake
of uvloop takes a batch of events, runs every peer's `ready()` as a C call, and ends the batch: each peer that was
touched is flushed (one send(2) per peer per batch), and only then are descriptors of closed peers really closed, so
that a number cannot be reused while events for it are still in the batch.

A busy reactor pauses for a moment before it takes a batch, as network cards coalesce interrupts: woken by the first of
many events it would handle each with its own sends, and every send wakes a server or a client for one command. Few
clients, whose next event waits for our answer, are never made to wait.

What other code touches outside a batch (a timer, a control task) arms one `call_soon`, which is a batch without events.
"""
from cpython.ref cimport PyObject
from libc.errno cimport errno
from libc.stdlib cimport free, malloc, realloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport close

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long arg)
    int PR_SET_TIMERSLACK

cdef enum:
    EVENTS = 256            # taken with one epoll_wait
    ROUNDS = 4              # full batches before uvloop gets its turn
    PAUSE_NS = 50000        # a busy reactor waits this long for more events before it takes a batch ...
    PAUSE_FOR = 4           # ... if at least so many are to be expected meanwhile
    PAUSE_SLACK_NS = 1000   # the kernel's timer slack, 50 us by default, would double it

cdef double DECAY = 0.9     # weight of the past, per batch, in the rate of events


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef inline uint32_t epoll_bits(uint32_t interest) noexcept nogil:
    return (EPOLLIN if interest & WANT_READ else 0) | (EPOLLOUT if interest & WANT_WRITE else 0)


cdef class Peer:
    """A socket of the data path. Subclasses say what to do when it is ready and when a batch ends."""

    cdef void ready(self, bint readable, bint writable) noexcept:
        pass

    cdef void flush(self) noexcept:
        pass

    cdef bint open_fd(self, int fd) noexcept:
        """Takes ownership of a connected non-blocking descriptor and begins to read; false when epoll refuses it."""
        cdef epoll_event ev
        ev.events = EPOLLIN
        ev.data.ptr = <void*> <PyObject*> self
        if epoll_ctl(self.reactor.epfd, EPOLL_CTL_ADD, fd, &ev) != 0:
            return False
        self.fd = fd
        self.interest = WANT_READ
        self.reactor.peers.add(self)
        return True

    cdef void want(self, uint32_t interest) noexcept:
        """What epoll is to report: WANT_READ | WANT_WRITE. (Errors and hang-ups are always reported.)"""
        cdef epoll_event ev
        if interest == self.interest or self.fd < 0:
            return
        ev.events = epoll_bits(interest)
        ev.data.ptr = <void*> <PyObject*> self
        epoll_ctl(self.reactor.epfd, EPOLL_CTL_MOD, self.fd, &ev)
        self.interest = interest

    cdef void close_fd(self) noexcept:
        """Takes the descriptor out of epoll at once; it is closed when the batch ends."""
        if self.fd < 0:
            return
        epoll_ctl(self.reactor.epfd, EPOLL_CTL_DEL, self.fd, NULL)
        self.reactor.bury(self, self.fd)
        self.fd = -1
        self.interest = 0


cdef class Reactor:
    """One per event loop. `start()` hangs it on the loop, `stop()` takes it off; peers must be closed before that."""

    def __cinit__(self, loop):
        self.loop = loop
        self.peers = set()
        self.graveyard = []
        self._end = self._end_soon
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise OSError(errno, "epoll_create1")
        self.shared = <char*> malloc(SHARED)
        if self.shared == NULL:
            raise MemoryError
        self.now = monotonic_ns()

    def __dealloc__(self):
        if self.epfd >= 0:
            close(self.epfd)
        free(self.shared)
        free(self.dead_fds)

    def start(self):
        """Begins to watch for events."""
        prctl(PR_SET_TIMERSLACK, PAUSE_SLACK_NS)
        self.loop.add_reader(self.epfd, self._ready)

    def stop(self):
        """Stops watching; closes what was waiting to be closed."""
        self.loop.remove_reader(self.epfd)
        self.end_batch()

    @property
    def open_peers(self):
        """Number of open sockets, clients and backends."""
        return len(self.peers)

    cdef void tick(self) noexcept:
        self.now = monotonic_ns()

    def _ready(self):
        cdef epoll_event ev[EVENTS]
        cdef int n, i, _
        cdef uint32_t bits
        cdef Peer peer
        cdef timespec pause
        cdef int64_t began
        if self.seen * PAUSE_NS > PAUSE_FOR * self.took:
            pause.tv_sec = 0
            pause.tv_nsec = PAUSE_NS
            nanosleep(&pause, NULL)
        for _ in range(ROUNDS):
            n = epoll_wait(self.epfd, ev, EVENTS, 0)
            if n <= 0:
                break
            self.busy = True
            self.batches += 1
            self.events += n
            began = monotonic_ns()
            self.seen = self.seen * DECAY + n
            self.took = self.took * DECAY + (began - self.last_batch)
            self.last_batch = began
            for i in range(n):
                peer = <Peer> ev[i].data.ptr
                if peer.fd < 0:
                    continue
                self.now = monotonic_ns()
                bits = ev[i].events
                peer.ready((bits & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0, (bits & EPOLLOUT) != 0)
            self.end_batch()
            if n < EVENTS:
                break

    cdef void touch(self, Peer peer) noexcept:
        """Has the peer flushed when the present batch ends, or soon when there is none."""
        if peer.touched:
            return
        peer.touched = True
        if self.last is None:
            self.first = peer
        else:
            self.last.next_touched = peer
        self.last = peer
        if not self.busy:
            self.arm()

    cdef void arm(self) noexcept:
        if not self.armed:
            self.armed = True
            self.loop.call_soon(self._end)

    def _end_soon(self):
        self.armed = False
        self.tick()
        self.end_batch()

    cdef void end_batch(self) noexcept:
        """Flushes until nothing is touched any more (a flush may touch others), then buries the dead."""
        cdef Peer peer
        cdef int i
        self.busy = True
        while self.first is not None:
            peer = self.first
            self.first = peer.next_touched
            if self.first is None:
                self.last = None
            peer.next_touched = None
            peer.touched = False
            peer.flush()
        self.busy = False
        if self.ndead:
            for i in range(self.ndead):
                close(self.dead_fds[i])
            self.ndead = 0
            self.graveyard = []

    cdef void bury(self, Peer peer, int fd) noexcept:
        cdef int* grown
        if self.ndead == self.dead_cap:
            grown = <int*> realloc(self.dead_fds, (self.dead_cap * 2 + 64) * sizeof(int))
            if grown == NULL:
                close(fd)           # out of memory: a number reused in this batch is the lesser evil
                return
            self.dead_fds = grown
            self.dead_cap = self.dead_cap * 2 + 64
        self.dead_fds[self.ndead] = fd
        self.ndead += 1
        self.graveyard.append(peer)
        self.peers.discard(peer)
        if not self.busy:
            self.arm()
