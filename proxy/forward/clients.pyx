# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is done with clients from outside: taken in, counted, closed. Called by proxy.worker; never per command."""
from libc.errno cimport errno
from libc.stdint cimport int64_t

from proxy.forward.buffer cimport buffer_len
from proxy.forward.client cimport Client
from proxy.forward.counters cimport CLOSE_IDLE, CLOSE_SHUTDOWN
from proxy.forward.datapath cimport ClientSettings, DataPath


def accept(DataPath path, int fd, ClientSettings settings, str address, str local_address):
    """Takes a connected non-blocking descriptor and serves it; raises OSError when epoll refuses it."""
    cdef Client client = Client(path, settings, address, local_address)
    if not client.open_fd(fd):
        raise OSError(errno, "cannot watch the connection")
    path.counters.accepted += 1
    path.clients.add(client)
    return client


def output_bytes(DataPath path):
    """Reply bytes held for all clients."""
    cdef Client c
    cdef size_t total = 0
    for c in path.clients:
        total += c.held + buffer_len(&c.out)
    return total


def close_idle(DataPath path, double idle_s):
    """Closes clients that have sent nothing for idle_s seconds and wait for nothing."""
    cdef Client c
    path.reactor.tick()
    limit = path.reactor.now - <int64_t> (idle_s * 1e9)
    for c in list(path.clients):
        if c.active_ns < limit and c.head == NULL:
            c.close(CLOSE_IDLE)


def close_all(DataPath path):
    """Closes every client at once."""
    cdef Client c
    for c in list(path.clients):
        c.close(CLOSE_SHUTDOWN)
