"""CLIENT TRACKING of one client: its own connections to the nodes, and what they push."""
from proxy.forward.ports cimport Owner
from proxy.forward.reply_queue cimport ReplyQueue
from proxy.forward.router cimport Router

cdef class Tracking(Owner):
    cdef readonly bint bcast
    cdef readonly bint optin
    cdef readonly bint optout
    cdef readonly bint noloop
    cdef readonly tuple prefixes            # with bcast; () otherwise
    cdef Router router
    cdef ReplyQueue replies                 # its client's; None while it has no connections
    cdef int number                         # of its connections: Request.db; 0 = it has none
    cdef bint announced                     # its client was told that it is on
    cdef bint begin(self, Router router, ReplyQueue replies, int db)
    cdef void end(self) noexcept
    cdef void flush(self, int place) noexcept
