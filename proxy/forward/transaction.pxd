"""MULTI, EXEC, DISCARD, WATCH, UNWATCH, and what a command means between MULTI and EXEC."""
from proxy.forward.call cimport Call
from proxy.forward.client cimport Client

cdef int inside(Client client, Call* call, bint fits) noexcept
cdef int control(Client client, Call* call) noexcept
