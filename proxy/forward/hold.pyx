# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""CLIENT PAUSE in the data path: while it lasts, commands stay in their clients' input, in order, and no more is read.

dispatch asks is_paused() of every command after the checks that Redis makes before it holds one, and calls hold(). A
held client is like one that waits for room: nothing is begun, no deadline runs, and whatever is under way goes on. When
the pause is over all go on, some in each turn of the loop. As Redis, a client that leaves (or ends its input) while it
is held takes what was held with it.

The pause itself is the same in all workers: proxy.serve.client_all sees to that.
"""
from functools import partial

from libc.stdint cimport int64_t

from proxy.forward.call cimport CALL_NOT_NOW
from proxy.forward.datapath cimport DataPath
from proxy.forward.reactor cimport monotonic_ns

cdef enum:
    AT_ONCE = 128               # clients that go on in one turn of the loop

LONGEST_S = 3600.0              # a timer's; then it is set again


cdef int hold(Client client) noexcept:
    """Its next command waits: a CallResult."""
    client.held_back = client.waits_for_room = True
    client.path.held.add(client)
    return CALL_NOT_NOW


def pause(DataPath path, int level, int64_t until_ns):
    """Sets what is held, in the place of what was: a Pause, until CLOCK_MONOTONIC reads so many nanoseconds."""
    path.paused = <unsigned char> level if until_ns > monotonic_ns() else PAUSE_NONE
    path.paused_until = until_ns
    if path.pause_timer is not None:
        path.pause_timer.cancel()
        path.pause_timer = None
    if path.paused:
        set_timer(path)
    else:
        go_on(path)


def paused(DataPath path):
    """(Pause, until) in force; (0, 0) when nothing is held."""
    if path.paused and path.paused_until > monotonic_ns():
        return path.paused, path.paused_until
    return PAUSE_NONE, 0


def held(DataPath path):
    """Clients whose next command waits for the end of a pause, or for their turn after it."""
    return len(path.held)


cdef void set_timer(DataPath path):
    left_s = (path.paused_until - monotonic_ns()) / 1e9
    path.pause_timer = path.reactor.loop.call_later(min(max(left_s, 0.0), LONGEST_S), partial(look, path))


def look(DataPath path):
    """The timer's."""
    path.pause_timer = None
    if not path.paused:
        return
    if monotonic_ns() < path.paused_until:
        set_timer(path)
    else:
        path.paused = PAUSE_NONE
        go_on(path)


def go_on(DataPath path):
    """Those that were held are carried out, unless there is a pause again."""
    cdef Client client
    cdef int _
    path.reactor.tick()
    for _ in range(AT_ONCE):
        if path.paused or not path.held:
            return
        client = path.held.pop()
        client.held_back = False
        client.room()
    path.reactor.loop.call_soon(partial(go_on, path))
