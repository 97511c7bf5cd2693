# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is done with clients from outside: taken in, counted, closed. Called by proxy.worker; never per command."""
from libc.errno cimport errno
from libc.stdint cimport int64_t

from proxy.forward.buffer cimport buffer_len
from proxy.forward.client cimport Client
from proxy.forward.counters cimport CLOSE_IDLE, CLOSE_SHUTDOWN, CLOSE_SLOW_FRAME
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.dispatch cimport Dispatch
from proxy.forward.memory cimport MemoryGuard
from proxy.forward.reactor cimport WANT_READ

from proxy.forward.router import READ_POLICIES


def accept(DataPath path, int fd, ClientSettings settings, str address, str local_address, client_id):
    """Takes a connected non-blocking descriptor and serves it.

    client_id: CLIENT ID, never given twice by one proxy. Raises OSError when epoll refuses the descriptor, which is
    then still the caller's; ValueError when the settings belong to another data path.
    """
    cdef Client client
    path.adopt(settings)
    if path.dispatcher is None:
        path.dispatcher = Dispatch()
        MemoryGuard(path).flush()
    client = Client(path, settings, address, local_address, client_id)
    if not client.open_fd(fd):
        raise OSError(errno, "cannot watch the connection")
    path.counts.accepted += 1
    path.clients.add(client)
    return client


def output_bytes(DataPath path):
    """Reply bytes held for all clients."""
    cdef Client c
    cdef size_t total = 0
    for c in path.clients:
        total += c.replies.held + buffer_len(&c.replies.out)
    return total


def follow_reads(DataPath path, ClientSettings settings, str old_policy):
    """After settings.update(reads=...): clients of these settings that still have the old policy get the new one.

    old_policy: one of READ_POLICIES, else ValueError.
    """
    cdef Client c
    cdef int old = READ_POLICIES.index(old_policy)
    for c in path.clients:
        if c.settings is settings and c.wanted_policy == old:
            c.set_reads(READ_POLICIES[settings.reads])


def drain(Client client):
    """Ends it gracefully: what has come is answered and the answers are sent, then it is closed.

    See Client.drain. It is counted as closed for `shutdown`, or for `quit` and its like when that came first.
    """
    client.drain()


def close_lingering(DataPath path, double older_than_s=1.0):
    """Closes clients that were told the end so many seconds ago and have not closed; to be called regularly."""
    cdef Client c
    path.reactor.tick()
    limit = path.reactor.now - <int64_t> (older_than_s * 1e9)
    for c in list(path.lingering):
        if c.lingering_ns <= limit:
            c.close(c.close_reason)


def close_idle(DataPath path, double idle_s):
    """Closes clients that have sent and taken nothing for idle_s seconds and have no command under way."""
    cdef Client c
    path.reactor.tick()
    limit = path.reactor.now - <int64_t> (idle_s * 1e9)
    for c in list(path.clients):
        if c.active_ns >= limit or c.replies.head != NULL or c.draining or c.subscriber is not None:
            continue                # (a subscriber waits: Redis's timeout is not for it, either)
        if c.waits_for_room or c.queued or c.touched:
            continue                # it waits for us: with a command that is not begun, or an answer that is not sent
        if c.interest & WANT_READ and c.unread() > 0:
            continue                # ... with bytes that had no turn yet: one turn reads a thousand clients at most
        if c.takes():
            c.active_ns = path.reactor.now
        else:
            c.close(CLOSE_IDLE)


def close_slow(DataPath path, double frame_s, double still_s=0.0):
    """Closes clients that have begun a command frame_s seconds ago and have not sent all of it; call it regularly.

    When one began is known to the interval between two calls: nothing is noted per command. still_s: so long have we
    stood still since the call before and read nothing, which is not the clients' time.
    """
    cdef Client c
    cdef int64_t still = <int64_t> (still_s * 1e9)
    path.reactor.tick()
    limit = path.reactor.now - <int64_t> (frame_s * 1e9)
    for c in list(path.clients):
        if not buffer_len(&c.rest) or c.paused or c.queued or c.closing or c.draining:
            c.partial_ns = 0                # nothing is left over, or what is left waits for us
        elif c.partial_ns == 0 or c.partial_of != c.total_commands:
            c.partial_ns = path.reactor.now
            c.partial_of = c.total_commands
        else:
            c.partial_ns += still
            if c.partial_ns <= limit:
                c.close(CLOSE_SLOW_FRAME)


def close_all(DataPath path):
    """Closes every client at once."""
    cdef Client c
    for c in list(path.clients):
        c.close(CLOSE_SHUTDOWN)
