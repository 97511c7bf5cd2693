"""CLIENT PAUSE: commands that wait in their clients' input until a time is over."""
from libc.stdint cimport uint8_t

from proxy.commands.lookup cimport CMD_KNOWN, CMD_MAY_REPLICATE, Command
from proxy.forward.client cimport Client

cdef enum Pause:            # DataPath.paused
    PAUSE_NONE = 0
    PAUSE_WRITE = 1         # what may write or be replicated
    PAUSE_ALL = 2

cdef int hold(Client client) noexcept


cdef inline bint is_paused(uint8_t paused, const Command* row) noexcept nogil:
    """Whether a pause holds this command; one that is in no table may be a write."""
    return paused == PAUSE_ALL or row.flags & (CMD_KNOWN | CMD_MAY_REPLICATE) != CMD_KNOWN
