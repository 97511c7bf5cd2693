"""What WAIT and WAITAOF ask, and of whom."""
from libc.stdint cimport uint64_t

from proxy.forward.router cimport Router

cdef enum:
    COVER_REPLIES = 2

cdef list shards_written(Router router, uint64_t wrote)
cdef bytes fewest(list replies)
