"""The nested epoll instance: one Python call per batch of events, C calls inside it."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    SHARED = 262144             # bytes of the receive buffer all peers share

cdef enum Interest:
    WANT_READ = 1
    WANT_WRITE = 2
    WANT_END = 4                # the other side will send nothing more (EPOLLRDHUP)

cdef enum Event:
    EVENT_READ = 1
    EVENT_WRITE = 2
    EVENT_END = 4               # the other side will send nothing more; what it sent before may not be read yet
    EVENT_GONE = 8              # an error or a hang-up: nothing can be sent any more

cdef enum Transfer:             # what receive and transmit return beside a number of bytes
    WOULD_BLOCK = -1
    BROKEN = -2                 # errno tells

cdef class Reactor

cdef class Peer:
    cdef Reactor reactor
    cdef readonly int fd                    # -1 = closed or not connected
    cdef uint32_t interest                  # Interest bits epoll knows of
    cdef bint touched                       # stands in the reactor's flush list
    cdef bint queued                        # stands in the reactor's list of those with more to do
    cdef bint postponed                     # its flush was put off by one batch
    cdef uint32_t seen_in                   # period in which it was last counted as active
    cdef Peer next_touched
    cdef void ready(self, uint32_t events) noexcept
    cdef void go_on(self) noexcept
    cdef void flush(self) noexcept
    cdef ssize_t receive(self, char* to, size_t n) noexcept
    cdef ssize_t transmit(self, const char* p, size_t n) noexcept
    cdef int in_kernel(self) noexcept
    cdef int unread(self) noexcept
    cdef void end_of_output(self) noexcept
    cdef void want(self, uint32_t interest) noexcept
    cdef bint open_fd(self, int fd) noexcept
    cdef void close_fd(self) noexcept

cdef class Reactor:
    cdef int epfd
    cdef int alarm_fd
    cdef bint alarmed                       # the alarm is set
    cdef object loop
    cdef set peers                          # every open peer: epoll's pointers are borrowed from here
    cdef list closed_peers                     # peers closed in this batch: events may still point to them
    cdef int* closing_fds                   # descriptors closed when the batch ends
    cdef int nclosing
    cdef int closing_cap
    cdef Peer first
    cdef Peer last
    cdef list waiting                       # peers with more to do, each of which gets one turn per batch
    cdef list late                          # those of them for which there was no time for Python any more
    cdef bint in_turns                      # the turns are being taken
    cdef int64_t python_most_ns             # that answers of Python's may take of a batch
    cdef int64_t python_ns                  # ... and what is left of it in this one
    cdef list put_off                       # peers whose flush was postponed in the batch before
    cdef bint busy                          # inside a batch
    cdef bint armed                         # a call_soon for the end of a batch of one is under way
    cdef bint more_armed                    # a call_soon for another batch is under way
    cdef object _end
    cdef object _more
    cdef int64_t now                        # CLOCK_MONOTONIC, ns; as of the event at hand
    cdef char* shared
    cdef public int64_t pause_ns            # how long a batch waits for more events when many clients are active
    cdef uint32_t period                    # number of the present counting period
    cdef int64_t period_ends
    cdef uint32_t active                    # distinct clients heard in the last period
    cdef uint32_t heard                     # ... in this one
    cdef readonly uint64_t batches
    cdef double seen                        # events lately, and the time they took (ns)
    cdef double took
    cdef int64_t last_begun
    cdef readonly uint64_t events
    cdef int64_t memory                     # bytes held for clients: see proxy.forward.account
    cdef int64_t memory_low                 # a batch that ends with less, or with more than memory_high, ends with
    cdef int64_t memory_high                # ... guard.flush()
    cdef Peer guard                         # proxy.forward.memory; None while neither can be
    cdef void touch(self, Peer peer) noexcept
    cdef void more(self, Peer peer) noexcept
    cdef void more_late(self, Peer peer) noexcept
    cdef void postpone(self, Peer peer) noexcept
    cdef void tick(self) noexcept
    cdef void begin(self) noexcept
    cdef void turns(self) noexcept
    cdef void go_on(self) noexcept
    cdef void end_batch(self) noexcept
    cdef void flush_touched(self) noexcept
    cdef void set_guard(self, Peer guard, int64_t low, int64_t high) noexcept
    cdef void arm(self) noexcept
    cdef void arm_more(self) noexcept
    cdef void set_alarm(self) noexcept
    cdef void close_later(self, Peer peer, int fd) noexcept


cdef int64_t monotonic_ns() noexcept nogil


cdef inline void count_active(Reactor reactor, Peer peer) noexcept:
    """Counts a client that was heard; see Reactor.begin."""
    if peer.seen_in != reactor.period:
        peer.seen_in = reactor.period
        reactor.heard += 1


cdef inline void check_memory(Reactor reactor) noexcept:
    """Has the guard look when clients hold more, or less, than it wanted to be told of."""
    if reactor.memory > reactor.memory_high or reactor.memory < reactor.memory_low:
        reactor.guard.flush()


cdef inline bint may_postpone(Reactor reactor) noexcept:
    """Whether the next batch is so near that a little output may wait for it."""
    return reactor.active >= POSTPONE_FROM


cdef enum:
    POSTPONE_FROM = 12          # active clients
