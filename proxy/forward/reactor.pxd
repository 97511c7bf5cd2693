"""The nested epoll instance: one Python call per batch of events, C calls inside it."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    SHARED = 262144             # bytes of the receive buffer all peers share

cdef enum Interest:
    WANT_READ = 1
    WANT_WRITE = 2

cdef class Reactor

cdef class Peer:
    cdef Reactor reactor
    cdef readonly int fd                    # -1 = closed or not connected
    cdef uint32_t interest                  # Interest bits epoll knows of
    cdef bint touched                       # stands in the reactor's flush list
    cdef Peer next_touched
    cdef void ready(self, bint readable, bint writable) noexcept
    cdef void flush(self) noexcept
    cdef void want(self, uint32_t interest) noexcept
    cdef bint open_fd(self, int fd) noexcept
    cdef void close_fd(self) noexcept

cdef class Reactor:
    cdef int epfd
    cdef object loop
    cdef set peers                          # every open peer: epoll's pointers are borrowed from here
    cdef list graveyard                     # peers closed in this batch: events may still point to them
    cdef int* dead_fds                      # descriptors closed when the batch ends
    cdef int ndead
    cdef int dead_cap
    cdef Peer first
    cdef Peer last
    cdef bint busy                          # inside a batch
    cdef bint armed                         # a call_soon for the end of a batch of one is under way
    cdef object _end
    cdef int64_t now                        # CLOCK_MONOTONIC, ns; as of the event at hand
    cdef char* shared
    cdef readonly uint64_t batches
    cdef double seen                        # events lately, and the time they took (ns)
    cdef double took
    cdef int64_t last_batch
    cdef readonly uint64_t events
    cdef void touch(self, Peer peer) noexcept
    cdef void tick(self) noexcept
    cdef void end_batch(self) noexcept
    cdef void arm(self) noexcept
    cdef void bury(self, Peer peer, int fd) noexcept
