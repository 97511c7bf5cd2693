# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The nested epoll instance that drives the data path (DESIGN 3).

All data-path sockets live in an epoll instance of our own whose descriptor is the only thing uvloop watches. One wake
of uvloop takes a batch of events, runs every peer's `ready()` as a C call, and ends the batch: each peer that was
touched is flushed (one send(2) per peer per batch), and only then are descriptors of closed peers really closed, so
that a number cannot be reused while events for it are still in the batch.

No peer has a batch for itself: one that has more to do than its turn allows asks for another (`more`), and is given one
in the next batch, behind all others (`go_on`). uvloop's own callbacks run between two batches.

With many active clients and many events a batch waits for a moment (`pause_ns`) before it is taken, as network cards
coalesce interrupts: woken by the first of many events it would handle each with its own sends, and every send wakes a
server or a client for one command. With few clients, whose next event waits for our answer, or with long pipelines,
whose events are few, nothing waits. For the same reason a client's small output may be put off by one batch while more
replies are due to it (`postpone`); should no batch come, an alarm brings one after half a millisecond.

What other code touches outside a batch (a timer, a control task) arms one `call_soon`, which is a batch without events.
"""
cimport cython
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport free, malloc, realloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport close, read

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
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP

cdef extern from "sys/timerfd.h" nogil:
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, itimerspec* old)
    int TFD_NONBLOCK, TFD_CLOEXEC

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void* buf, size_t n, int flags)
    ssize_t send(int fd, const void* buf, size_t n, int flags)
    int shutdown(int fd, int how)
    int MSG_NOSIGNAL, SHUT_WR

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "linux/sockios.h" nogil:
    unsigned long SIOCOUTQ, SIOCINQ

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long arg)
    int PR_SET_TIMERSLACK

cdef enum:
    EVENTS = 256                # taken with one epoll_wait
    ROUNDS = 4                  # full batches before uvloop gets its turn
    PAUSE_FROM = 24             # active clients from which a pause before a batch gains more than it costs ...
    PAUSE_FOR = 4               # ... if at least so many events are to be expected meanwhile
    PERIOD_NS = 5000000         # clients heard within this are active
    PAUSE_SLACK_NS = 1000       # the kernel's timer slack, 50 us by default, would double a pause
    ALARM_NS = 500000           # what was put off waits this long for a batch

cdef double DECAY = 0.9         # weight of the past, per batch, in the rate of events
cdef int64_t ahead_ns = 0       # what the clock was put forward by


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec + ahead_ns


def put_forward(int64_t ns):
    """Makes it so much later for all of the data path: a test need neither wait for a deadline nor be quicker."""
    global ahead_ns
    ahead_ns += ns


cdef inline uint32_t epoll_bits(uint32_t interest) noexcept nogil:
    return (
        (EPOLLIN if interest & WANT_READ else 0)
        | (EPOLLOUT if interest & WANT_WRITE else 0)
        | (EPOLLRDHUP if interest & WANT_END else 0)
    )


cdef inline uint32_t event_bits(uint32_t bits) noexcept nogil:
    return (
        (EVENT_READ if bits & EPOLLIN else 0)
        | (EVENT_WRITE if bits & EPOLLOUT else 0)
        | (EVENT_END if bits & EPOLLRDHUP else 0)
        | (EVENT_GONE if bits & (EPOLLERR | EPOLLHUP) else 0)
    )


cdef class Peer:
    """A socket of the data path. Subclasses say what to do when it is ready and when a batch ends.

    `receive` and `transmit` are the only places that touch the socket's bytes.
    """

    cdef void ready(self, uint32_t events) noexcept:
        pass

    cdef void go_on(self) noexcept:
        """Its next turn, when it asked for one."""
        pass

    cdef void flush(self) noexcept:
        pass

    cdef ssize_t receive(self, char* to, size_t n) noexcept:
        """Bytes that have come, at most n: how many, 0 = the other side will send nothing more, or a Transfer."""
        cdef ssize_t got
        while True:
            got = recv(self.fd, to, n, 0)
            if got >= 0:
                return got
            if errno == EAGAIN:
                return WOULD_BLOCK
            if errno != EINTR:
                return BROKEN

    cdef ssize_t transmit(self, const char* p, size_t n) noexcept:
        """Gives bytes to the kernel: how many it took, or a Transfer."""
        cdef ssize_t sent
        while True:
            sent = send(self.fd, p, n, MSG_NOSIGNAL)
            if sent >= 0:
                return sent
            if errno == EAGAIN:
                return WOULD_BLOCK
            if errno != EINTR:
                return BROKEN

    cdef int in_kernel(self) noexcept:
        """Bytes that were sent and that the other side's kernel has not taken; 0 when that cannot be told."""
        cdef int n = 0
        if ioctl(self.fd, SIOCOUTQ, &n) != 0:
            return 0
        return n

    cdef int unread(self) noexcept:
        """Bytes that have come and were not read; 0 when that cannot be told."""
        cdef int n = 0
        return n if ioctl(self.fd, SIOCINQ, &n) == 0 else 0

    cdef void end_of_output(self) noexcept:
        """Tells the other side that nothing more will come; it may go on sending."""
        shutdown(self.fd, SHUT_WR)

    cdef bint open_fd(self, int fd) noexcept:
        """Takes ownership of a connected non-blocking descriptor and begins to read; false when epoll refuses it."""
        cdef epoll_event ev
        ev.events = EPOLLIN | EPOLLRDHUP
        ev.data.ptr = <void*> <PyObject*> self
        if epoll_ctl(self.reactor.epfd, EPOLL_CTL_ADD, fd, &ev) != 0:
            return False
        self.fd = fd
        self.interest = WANT_READ | WANT_END
        self.reactor.peers.add(self)
        return True

    cdef void want(self, uint32_t interest) noexcept:
        """What epoll is to report: Interest bits. (Errors and hang-ups are always reported.)"""
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
        self.reactor.close_later(self, self.fd)
        self.fd = -1
        self.interest = 0


@cython.final
cdef class Reactor:
    """One per event loop. `start()` hangs it on the loop, `stop()` takes it off; peers must be closed before that.

    python_most_ns: what answers of proxy.serve may take of a batch, for which everybody waits.
    """

    def __cinit__(self, loop, *, int64_t pause_ns=50_000, int64_t python_most_ns=5_000_000):
        cdef epoll_event ev
        self.alarm_fd = -1
        self.set_guard(None, INT64_MIN, INT64_MAX)
        self.loop = loop
        self.pause_ns = pause_ns
        self.period = 1                 # a new peer's is 0: not counted yet
        self.peers = set()
        self.closed_peers = []
        self.waiting = []
        self.late = []
        self.python_ns = self.python_most_ns = python_most_ns
        self.put_off = []
        self._end = self._end_soon
        self._more = self._ready_again
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise OSError(errno, "epoll_create1")
        self.alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.alarm_fd < 0:
            raise OSError(errno, "timerfd_create")
        ev.events = EPOLLIN
        ev.data.ptr = NULL              # no peer: the alarm
        if epoll_ctl(self.epfd, EPOLL_CTL_ADD, self.alarm_fd, &ev) != 0:
            raise OSError(errno, "epoll_ctl")
        self.shared = <char*> malloc(SHARED)
        if self.shared == NULL:
            raise MemoryError
        self.now = monotonic_ns()

    def __dealloc__(self):
        if self.epfd >= 0:
            close(self.epfd)
        if self.alarm_fd >= 0:
            close(self.alarm_fd)
        free(self.shared)
        free(self.closing_fds)

    def start(self):
        """Begins to watch for events."""
        prctl(PR_SET_TIMERSLACK, PAUSE_SLACK_NS)
        self.loop.add_reader(self.epfd, self._ready)

    def stop(self):
        """Stops watching; closes what was waiting to be closed."""
        self.loop.remove_reader(self.epfd)
        self.set_guard(None, INT64_MIN, INT64_MAX)
        self.end_batch()

    @property
    def open_peers(self):
        """Number of open sockets, clients and backends."""
        return len(self.peers)

    @property
    def active_clients(self):
        """Distinct clients that were heard in the last few milliseconds."""
        return self.active

    cdef void tick(self) noexcept:
        self.now = monotonic_ns()

    def _ready(self):
        cdef epoll_event ev[EVENTS]
        cdef int n, i, _
        cdef uint64_t times
        cdef Peer peer
        self.begin()
        for _ in range(ROUNDS):
            n = epoll_wait(self.epfd, ev, EVENTS, 0)
            if n <= 0 and not self.waiting and not self.late:
                break
            self.busy = True
            self.batches += 1
            if n > 0:
                self.seen = self.seen * DECAY + n
                self.took = self.took * DECAY + (self.now - self.last_begun)
                self.last_begun = self.now
            for i in range(n):
                if ev[i].data.ptr == NULL:
                    read(self.alarm_fd, &times, sizeof(times))
                    self.alarmed = False
                    continue
                self.events += 1
                peer = <Peer> ev[i].data.ptr
                if peer.fd < 0:
                    continue
                self.now = monotonic_ns()
                peer.ready(event_bits(ev[i].events))
            if self.waiting or self.late:
                self.turns()
            self.end_batch()
            if n < EVENTS:
                break
        self.go_on()

    cdef void begin(self) noexcept:
        """Counts active clients, and waits for more of them when there are many."""
        cdef timespec pause
        self.now = monotonic_ns()
        self.python_ns = self.python_most_ns
        if self.now >= self.period_ends:
            # A silent period leaves nobody active: many of them may have passed.
            self.active = self.heard if self.now < self.period_ends + PERIOD_NS else 0
            self.heard = 0
            self.period += 1
            self.period_ends = self.now + PERIOD_NS
        if self.active < PAUSE_FROM or self.waiting or self.late or self.seen * self.pause_ns < PAUSE_FOR * self.took:
            return
        pause.tv_sec = 0
        pause.tv_nsec = self.pause_ns
        nanosleep(&pause, NULL)

    cdef void turns(self) noexcept:
        """One turn for everybody who asked for one before this batch, first for whom Python had no time left then."""
        cdef Peer peer
        cdef list waiting = self.late + self.waiting
        self.waiting = []
        self.late = []
        self.in_turns = True
        for peer in waiting:
            peer.queued = False
            if peer.fd >= 0:
                self.now = monotonic_ns()
                peer.go_on()
        self.in_turns = False

    cdef void more(self, Peer peer) noexcept:
        """Gives the peer another turn in the next batch."""
        if peer.queued:
            return
        peer.queued = True
        if not self.busy:
            self.arm_more()
        self.waiting.append(peer)

    cdef void more_late(self, Peer peer) noexcept:
        """The same for one that wants an answer of Python's; in the order in which they came to wait."""
        if not peer.queued:
            self.more(peer)
            self.waiting.pop()
            self.late.append(peer)

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

    cdef void postpone(self, Peer peer) noexcept:
        """Has the peer flushed when the next batch ends."""
        peer.postponed = True
        self.put_off.append(peer)

    cdef void arm(self) noexcept:
        if not self.armed:
            self.armed = True
            self.loop.call_soon(self._end)

    cdef void arm_more(self) noexcept:
        if not self.more_armed:
            self.more_armed = True
            self.loop.call_soon(self._more)

    def _ready_again(self):
        self.more_armed = False
        self._ready()

    cdef void set_alarm(self) noexcept:
        """Makes a batch in a while, should nothing else make one before."""
        cdef itimerspec when
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = 0
        when.it_value.tv_nsec = ALARM_NS
        self.alarmed = timerfd_settime(self.alarm_fd, 0, &when, NULL) == 0

    def _end_soon(self):
        self.armed = False
        self.tick()
        self.end_batch()
        self.go_on()

    cdef void go_on(self) noexcept:
        """Sees to it that there is a next batch when somebody waits for one."""
        if self.waiting or self.late:
            self.arm_more()
        elif self.put_off and not self.alarmed:
            self.set_alarm()

    cdef void end_batch(self) noexcept:
        """Flushes until nothing is touched any more (a flush may touch others), then closes descriptors."""
        cdef Peer peer
        cdef list put_off
        cdef int i
        self.busy = True
        if self.put_off:
            put_off = self.put_off
            self.put_off = []
            for peer in put_off:
                self.touch(peer)
        self.flush_touched()
        if self.memory > self.memory_high or self.memory < self.memory_low:
            self.guard.flush()
            self.flush_touched()
        self.busy = False
        if self.nclosing:
            for i in range(self.nclosing):
                close(self.closing_fds[i])
            self.nclosing = 0
            self.closed_peers = []

    cdef void flush_touched(self) noexcept:
        cdef Peer peer
        while self.first is not None:
            peer = self.first
            self.first = peer.next_touched
            if self.first is None:
                self.last = None
            peer.next_touched = None
            peer.touched = False
            peer.flush()

    cdef void set_guard(self, Peer guard, int64_t low, int64_t high) noexcept:
        """Whom to tell when clients hold less than low or more than high."""
        self.guard = guard
        self.memory_low = low
        self.memory_high = high

    cdef void close_later(self, Peer peer, int fd) noexcept:
        cdef int* grown
        if self.nclosing == self.closing_cap:
            grown = <int*> realloc(self.closing_fds, (self.closing_cap * 2 + 64) * sizeof(int))
            if grown == NULL:
                close(fd)           # out of memory: a number reused in this batch is the lesser evil
                return
            self.closing_fds = grown
            self.closing_cap = self.closing_cap * 2 + 64
        self.closing_fds[self.nclosing] = fd
        self.nclosing += 1
        self.closed_peers.append(peer)
        self.peers.discard(peer)
        if not self.busy:
            self.arm()
